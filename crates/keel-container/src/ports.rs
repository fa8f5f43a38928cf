//! Ports of the host that the engine has opened for a container.

use std::net::{IpAddr, SocketAddr};

use bollard::query_parameters::InspectContainerOptions;
use keel_runtime::ContainerExec;

use crate::answer::understood;
use crate::{Engine, Error};

/// Where a port of a container is open on the host.
///
/// # Errors
/// When the engine can't say.
pub async fn published(
    of: &ContainerExec,
    target: u16,
    protocol: &str,
) -> Result<Vec<SocketAddr>, Error> {
    let engine = Engine::of(of);
    let client = engine.client().await?;
    let seen = client.inspect_container(&of.container, None::<InspectContainerOptions>).await;
    let seen = understood(seen).map_err(|error| engine.failed(&error))?;
    let ports = seen.network_settings.and_then(|settings| settings.ports).unwrap_or_default();
    let bindings = ports.get(&format!("{target}/{protocol}")).cloned().flatten();
    let one = |binding: bollard::models::PortBinding| {
        // Podman says nothing where it listens at all addresses.
        let ip = binding.host_ip.filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        let ip: IpAddr = ip.parse().ok()?;
        Some(SocketAddr::new(ip, binding.host_port?.parse().ok()?))
    };
    Ok(bindings.into_iter().flatten().filter_map(one).collect())
}
