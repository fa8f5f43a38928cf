//! From an assignment to all that a runtime needs to start it.

use keel_model::{
    Assignment, ContainerNetwork, MountSource, Network, Service, Spec, Stack, Volume,
};
use keel_runtime::Launch;

use super::Context;
use crate::names;

impl Context {
    /// The definition of an assignment.
    pub(super) fn definition(&self, assignment: &Assignment) -> Option<Service> {
        let world = self.worlds.current();
        let stack = world.stacks.get(&assignment.stack)?;
        stack.definition(&assignment.service, &assignment.revision)
    }

    /// Everything that a runtime needs to start `assignment`.
    pub(super) fn launch(&self, assignment: &Assignment, service: &Service) -> Launch {
        let world = self.worlds.current();
        let table = names::table(&world, &self.board.view(), &self.network);
        let mut hosts = keel_discovery::hosts_entries(&table, &assignment.stack);
        for (name, addresses) in &service.spec.hosts {
            for address in addresses {
                if let Some(address) = self.network.host_entry(address) {
                    hosts.push((address, name.clone()));
                }
            }
        }
        let record = world.stacks.get(&assignment.stack).and_then(|stack| stack.record.as_ref());
        let (networks, volumes) = record.map_or_else(Default::default, |record| {
            (
                networks_of(&service.spec, &record.value.stack),
                volumes_of(&service.spec, &record.value.stack),
            )
        });
        Launch {
            id: assignment.id.clone(),
            stack: assignment.stack.clone(),
            service: assignment.service.clone(),
            revision: assignment.revision.clone(),
            attempt: assignment.attempt,
            spec: service.spec.clone(),
            environment: keel_discovery::environment(
                &table,
                &assignment.stack,
                &assignment.service,
            ),
            hosts,
            nameserver: self.network.nameserver(&assignment.stack),
            networks,
            volumes,
        }
    }
}

/// What the stack says of the networks that a container is attached to.
fn networks_of(spec: &Spec, stack: &Stack) -> Vec<Network> {
    let Some(container) = &spec.container else { return Vec::new() };
    let ContainerNetwork::Attached(attachments) = &container.network else { return Vec::new() };
    let attached = |network: &&Network| attachments.iter().any(|to| to.network == network.name);
    stack.networks.values().filter(attached).cloned().collect()
}

/// What the stack says of the volumes that a container mounts.
fn volumes_of(spec: &Spec, stack: &Stack) -> Vec<Volume> {
    if spec.container.is_none() {
        return Vec::new();
    }
    let mounted = |volume: &&Volume| {
        spec.mounts.iter().any(|mount| {
            matches!(&mount.source, MountSource::Volume { name, .. } if *name == volume.name)
        })
    };
    stack.volumes.values().filter(mounted).cloned().collect()
}
