//! From an assignment to all that a runtime needs to start it.

use keel_model::{Assignment, Service};
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
        }
    }
}
