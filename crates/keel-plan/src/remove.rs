//! How things that are not wanted any more go: orphans, and whole stacks in reverse order of dependency.

use keel_model::{Goal, InstanceId, ServiceName};

use crate::depend;
use crate::draft::Draft;
use crate::{restart, withdraw};

/// Deletes the records of instances that their nodes have forgotten.
pub(crate) fn forget_gone(draft: &mut Draft<'_>) {
    let gone: Vec<InstanceId> = draft
        .instances
        .values()
        .filter(|i| i.gone && i.assignment.goal == Goal::Remove)
        .map(|i| i.assignment.id.clone())
        .collect();
    for id in gone {
        draft.forget(&id);
    }
}

/// Withdraws the instances of services that are not in the record.
pub(crate) fn orphans(draft: &mut Draft<'_>) {
    let services = &draft.desired.record.stack.services;
    let strangers: Vec<ServiceName> = draft
        .instances
        .values()
        .map(|i| i.assignment.service.clone())
        .filter(|service| !services.contains_key(service))
        .collect();
    for service in strangers {
        withdraw_all(draft, &service, "its service is not in the stack any more");
        withdraw::advance(draft, &service);
    }
}

/// `keel down`: everything is withdrawn, dependents before what they depend on, and then forgotten.
pub(crate) fn stack(draft: &mut Draft<'_>, order: &[ServiceName]) {
    orphans(draft);
    for (rank, name) in order.iter().enumerate().rev() {
        withdraw::advance(draft, name);
        if depend::dependents_have_ended(draft, name, &order[rank + 1..]) {
            withdraw_all(draft, name, "the stack is removed");
        } else if let Some(service) = draft.desired.record.stack.services.get(name) {
            // Those that depend on it may still have requests in flight.
            restart::heal(draft, name, service);
        }
    }
    if draft.instances.is_empty() {
        draft.forget_stack();
    }
}

fn withdraw_all(draft: &mut Draft<'_>, name: &ServiceName, reason: &str) {
    let ids: Vec<InstanceId> = draft.of(name).map(|i| i.assignment.id.clone()).collect();
    for id in ids {
        withdraw::withdraw(draft, &id, Goal::Remove, reason);
    }
}
