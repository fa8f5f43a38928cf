//! Host ports that a container engine still holds for containers that were taken over.
//!
//! The proxy can't listen at such a port. It listens at another one, its *detour*, and rules of the machine's packet
//! filter lead new connections there; those that exist go on as they are. When the last such container is gone, the
//! proxy opens the port itself beside the detour, and only then do the rules go ([`keeper`]). What is held is derived from
//! what is stored and from what the runtime knows, so that a server that died in between is followed by one that goes on.

mod filter;
mod keeper;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use keel_model::{HeldPort, ServiceName, StackName, Transport};
use keel_route::snapshot::Listener;
use keel_runtime::Runtime;
use sha2::{Digest as _, Sha256};

use crate::error::Refusal;
use crate::world::{StackState, World};

pub use filter::firewall;
pub use keeper::{Keeper, remove_all};

/// By service: host ports that an engine holds, and where the proxy listens in their place.
pub type Chosen = BTreeMap<ServiceName, BTreeMap<u16, u16>>;

/// What becomes of one host port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The service whose container holds it, or held it.
    pub owner: (StackName, ServiceName),
    /// Where the proxy listens in its place.
    pub detour: u16,
    /// The host addresses at which it is held; those at which it was, when nobody holds it any more.
    pub ips: BTreeSet<IpAddr>,
    /// A container that has it is still there, running or not: it may be started again.
    pub held: bool,
    /// The service publishes it, as far as the file says: traffic from outside goes through the proxy. Otherwise only what
    /// is meant for virtual addresses does.
    pub published: bool,
    /// The stack goes.
    pub removing: bool,
}

/// All of them, by host port. The engine gives a port to one container only.
pub type Ways = BTreeMap<u16, Way>;

/// By which the rules of one server are told from those of others: a short name that differs between state directories.
pub fn tag(state_dir: &Path) -> String {
    let path = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// What there is to lead around.
pub fn ways(world: &World, runtime: &dyn Runtime) -> Ways {
    let mut ways = Ways::new();
    for (name, stack) in &world.stacks {
        for (service, ports) in &stack.detours {
            let holds = holds(stack, service, runtime);
            for (port, detour) in &**ports {
                let held: BTreeSet<IpAddr> =
                    holds.iter().filter(|held| held.port == *port).map(|held| held.ip).collect();
                let published = published(stack, service, *port);
                let way = Way {
                    owner: (name.clone(), service.clone()),
                    detour: *detour,
                    held: !held.is_empty(),
                    ips: if held.is_empty() { published.clone() } else { held },
                    published: !published.is_empty(),
                    removing: stack.record.as_ref().is_none_or(|record| record.value.removing),
                };
                ways.entry(*port).or_insert(way);
            }
        }
    }
    ways
}

/// The ports that containers of a service hold.
fn holds(stack: &StackState, service: &ServiceName, runtime: &dyn Runtime) -> Vec<HeldPort> {
    let assignments = stack.assignments.values().map(|stored| &stored.value);
    let adopted = assignments.filter_map(|assignment| {
        let adoption = assignment.adoption.as_ref()?;
        (assignment.service == *service).then_some((&assignment.id, adoption))
    });
    let held = adopted.flat_map(|(id, adoption)| match (runtime.adopted(id), runtime.seen(id)) {
        (Some(held), _) => held,
        // Its worker has not come to it yet.
        (None, None) => adoption.holds.clone(),
        // Another container is in its place.
        (None, Some(_)) => Vec::new(),
    });
    held.collect()
}

/// The host addresses at which the file publishes a port.
fn published(stack: &StackState, name: &ServiceName, port: u16) -> BTreeSet<IpAddr> {
    let record = stack.record.as_ref().map(|record| &record.value.stack);
    let Some(service) = record.and_then(|stack| stack.services.get(name)) else {
        return BTreeSet::new();
    };
    let chosen = stack.addresses.get(name).map(|address| &address.chosen);
    let tcp = service.publish.iter().filter(|it| it.transport == Transport::Tcp);
    let of_port = tcp.filter(|it| {
        let chosen = chosen.and_then(|chosen| chosen.get(&it.target)).copied();
        it.published.or(chosen) == Some(port)
    });
    let both =
        [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)];
    of_port.flat_map(|it| it.ip.map_or(both.to_vec(), |ip| vec![ip])).collect()
}

/// Moves the listeners that can't be opened while a port is held; once it is not, they are in both places.
pub fn divert(listeners: &mut Vec<Listener>, ways: &Ways) {
    let mut added = Vec::new();
    for listener in listeners.iter_mut() {
        let Some(way) = ways.get(&listener.bind.port()) else { continue };
        if !way.ips.iter().any(|ip| clash(*ip, listener.bind.ip())) {
            continue;
        }
        if way.held {
            listener.bind.set_port(way.detour);
        } else {
            let mut beside = listener.clone();
            beside.bind.set_port(way.detour);
            added.push(beside);
        }
    }
    listeners.extend(added);
}

/// Whether sockets at the same port of these addresses exclude each other.
fn clash(one: IpAddr, other: IpAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    one == other || (same_family && (one.is_unspecified() || other.is_unspecified()))
}

/// Makes sure that detours to these ports can be made, and warns of what may be in their way.
///
/// # Errors
/// [`Refusal`] when they can't be.
pub fn preflight(holds: &[HeldPort]) -> Result<Vec<String>, Refusal> {
    if holds.is_empty() {
        return Ok(Vec::new());
    }
    filter::check().map_err(|why| {
        let message =
            format!("the published ports of these containers can't be led to keel's proxy: {why}");
        Refusal::new("no_detour", message)
            .hint("install iptables, and run the server as root outside of a container")
    })?;
    let ports: BTreeSet<String> = holds.iter().map(|held| held.port.to_string()).collect();
    let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
    Ok(firewall().map(|why| {
        format!(
            "{why}: traffic to port {ports} comes in by the chain INPUT from now on, no more by FORWARD; keel lets in what it \
             leads around, but allow these ports before the containers are replaced (for example `ufw allow 8080/tcp`)"
        )
    }).into_iter().collect())
}
