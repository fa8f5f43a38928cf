//! From an assignment to all that a runtime needs to start it.

use std::collections::BTreeMap;

use keel_model::{
    Assignment, ContainerNetwork, InstanceId, MountSource, RevisionId, Service, ServiceName, Spec,
    Stack, StackName, Volume,
};
use keel_runtime::Launch;

use super::Context;
use crate::board::Board;
use crate::names;
use crate::network::Network;
use crate::views::Viewer;
use crate::world::{StackState, World};

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
        let record = world.stacks.get(&assignment.stack).and_then(|stack| stack.record.as_ref());
        let bare = bare(
            assignment.id.clone(),
            (&assignment.stack, &assignment.service),
            assignment.revision.clone(),
            &service.spec,
        );
        // Containers that were taken over ask the engine, at least until they are told names.
        let adopted = world.stacks.get(&assignment.stack).is_some_and(StackState::has_adopted);
        let names = std::iter::once(assignment.service.to_string());
        let names = names.chain(service.aliases.iter().cloned());
        let aliases = if adopted { names.collect() } else { Vec::new() };
        let bare = Launch { attempt: assignment.attempt, aliases, ..bare };
        let around = Around { world: &world, board: &self.board, network: &self.network };
        around.complete(bare, record.map(|record| &record.value.stack))
    }
}

/// Everything that a runtime needs for a command that runs once beside the instances of a service of `stack`, which the
/// server may not know yet.
pub fn beside(
    viewer: &Viewer,
    stack: &Stack,
    service: (&ServiceName, &Service),
    id: InstanceId,
) -> Launch {
    let spec = &service.1.spec;
    let bare = bare(id, (&stack.name, service.0), spec.revision(), spec);
    let world = viewer.worlds.current();
    let around = Around { world: &world, board: &viewer.board, network: &viewer.network };
    around.complete(bare, Some(stack))
}

/// Nothing of what is around it.
fn bare(
    id: InstanceId,
    (stack, service): (&StackName, &ServiceName),
    revision: RevisionId,
    spec: &Spec,
) -> Launch {
    Launch {
        id,
        stack: stack.clone(),
        service: service.clone(),
        revision,
        attempt: 1,
        spec: spec.clone(),
        environment: BTreeMap::new(),
        hosts: Vec::new(),
        nameserver: None,
        networks: Vec::new(),
        volumes: Vec::new(),
        aliases: Vec::new(),
    }
}

/// Where names and addresses come from.
struct Around<'a> {
    world: &'a World,
    board: &'a Board,
    network: &'a Network,
}

impl Around<'_> {
    /// Adds names and addresses, and the networks and volumes as `stack` describes them.
    fn complete(&self, bare: Launch, stack: Option<&Stack>) -> Launch {
        let table = names::table(self.world, &self.board.view(), self.network);
        let mut hosts = keel_discovery::hosts_entries(&table, &bare.stack);
        for (name, addresses) in &bare.spec.hosts {
            for address in addresses {
                if let Some(address) = self.network.host_entry(address) {
                    hosts.push((address, name.clone()));
                }
            }
        }
        let (networks, volumes) = stack.map_or_else(Default::default, |stack| {
            (networks_of(&bare.spec, stack), volumes_of(&bare.spec, stack))
        });
        Launch {
            environment: keel_discovery::environment(&table, &bare.stack, &bare.service),
            hosts,
            nameserver: self.network.nameserver(&bare.stack),
            networks,
            volumes,
            ..bare
        }
    }
}

/// What the stack says of the networks that a container is attached to.
fn networks_of(spec: &Spec, stack: &Stack) -> Vec<keel_model::Network> {
    let Some(container) = &spec.container else { return Vec::new() };
    let ContainerNetwork::Attached(attachments) = &container.network else { return Vec::new() };
    let attached =
        |network: &&keel_model::Network| attachments.iter().any(|to| to.network == network.name);
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
