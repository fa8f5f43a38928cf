//! The table of names that DNS, `/etc/hosts` and environment variables are views of.

use std::collections::BTreeMap;

use keel_discovery::{InstanceAddress, ServiceNames, Table};
use keel_model::{Generation, Goal, ServiceName, ServicePort, StackName};

use crate::board::BoardView;
use crate::clock;
use crate::network::Network;
use crate::world::{StackState, World};

/// All names.
pub fn table(world: &World, board: &BoardView, network: &Network) -> Table {
    let stacks = world
        .stacks
        .iter()
        .map(|(name, stack)| (name.clone(), services(stack, board, network)))
        .collect::<BTreeMap<StackName, BTreeMap<ServiceName, ServiceNames>>>();
    // The serial number of the zone: whole seconds rise, and fit its 32 bits.
    Table { generation: Generation(clock::now().0 / 1000), stacks }
}

fn services(
    stack: &StackState,
    board: &BoardView,
    network: &Network,
) -> BTreeMap<ServiceName, ServiceNames> {
    let Some(record) = &stack.record else { return BTreeMap::new() };
    record
        .value
        .stack
        .services
        .iter()
        .filter_map(|(name, service)| {
            let address = stack.addresses.get(name)?;
            let ports = service
                .ports
                .iter()
                .map(|port| ServicePort {
                    target: network.client_port(port.target),
                    ..port.clone()
                })
                .collect();
            let instances = stack
                .assignments
                .values()
                .filter(|stored| stored.value.service == *name)
                .filter_map(|stored| {
                    let status = board.statuses.get(&stored.value.id)?;
                    let binding = status.ports.first()?;
                    let ready = status.ready && stored.value.goal == Goal::Run;
                    Some(InstanceAddress {
                        id: stored.value.id.clone(),
                        address: binding.address,
                        ready,
                    })
                })
                .collect();
            let names = ServiceNames {
                vip: address.address,
                ports,
                aliases: service.aliases.clone(),
                instances,
            };
            Some((name.clone(), names))
        })
        .collect()
}
