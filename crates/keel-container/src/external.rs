//! Networks and volumes that a file calls external: somebody else makes them, so that they may be missing.

use std::collections::BTreeSet;

use keel_model::{ContainerNetwork, MountSource, ServiceName, Spec, Stack};

use crate::{Engine, Error};

/// One that is not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Absent {
    /// `network` or `volume`, as the engine's command line has it.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Who wants it.
    pub service: ServiceName,
}

/// The external networks and volumes of the services that are `concerned` which the engine does not have.
///
/// # Errors
/// When the engine can't be asked.
pub async fn absent(
    engine: &Engine,
    stack: &Stack,
    concerned: impl Fn(&ServiceName) -> bool,
) -> Result<Vec<Absent>, Error> {
    let wanted = wanted(stack, concerned);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let client = engine.client().await?;
    let mut absent = Vec::new();
    for one in wanted {
        let asked = match one.kind {
            "network" => client.inspect_network(&one.name, None).await.map(drop),
            _ => client.inspect_volume(&one.name).await.map(drop),
        };
        match asked.map_err(|error| engine.failed(&error)) {
            Ok(()) => {}
            Err(Error::NotFound { .. }) => absent.push(one),
            Err(error) => return Err(error),
        }
    }
    Ok(absent)
}

/// Each with the first service that wants it.
fn wanted(stack: &Stack, concerned: impl Fn(&ServiceName) -> bool) -> Vec<Absent> {
    let (mut known, mut wanted) = (BTreeSet::new(), Vec::new());
    let services = stack.services.iter().filter(|(name, _)| concerned(name));
    for (service, spec) in services.map(|(name, service)| (name, &service.spec)) {
        let networks = stack.networks.values().filter(|it| it.external && attached(spec, &it.name));
        let networks = networks.map(|network| ("network", &network.name));
        let volumes = stack.volumes.values().filter(|it| it.external && mounted(spec, &it.name));
        for (kind, name) in networks.chain(volumes.map(|volume| ("volume", &volume.name))) {
            if known.insert((kind, name)) {
                let (name, service) = (name.clone(), service.clone());
                wanted.push(Absent { kind, name, service });
            }
        }
    }
    wanted
}

fn attached(spec: &Spec, network: &str) -> bool {
    spec.container.as_ref().is_some_and(|container| match &container.network {
        ContainerNetwork::Attached(to) => to.iter().any(|to| to.network == network),
        _ => false,
    })
}

fn mounted(spec: &Spec, volume: &str) -> bool {
    let is =
        |source: &MountSource| matches!(source, MountSource::Volume { name, .. } if name == volume);
    spec.container.is_some() && spec.mounts.iter().any(|mount| is(&mount.source))
}
