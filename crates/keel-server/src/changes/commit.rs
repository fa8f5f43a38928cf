//! The write that makes a change, and what is kept of the past.

use std::collections::BTreeSet;

use keel_model::{Generation, RolloutState, Service, ServiceName, StackName, StackRecord};
use keel_store::Transaction;

use super::encode;
use crate::keys;
use crate::world::StackState;

/// Past definitions that are kept of each stack.
const HISTORY: usize = 20;

/// The write that makes a change, and that trims the history.
pub(super) fn commit(name: &StackName, stack: &StackState, wanted: &StackRecord) -> Transaction {
    let key = keys::record(name);
    let mut transaction = match &stack.record {
        Some(old) => Transaction::new().if_version(&key, old.version),
        None => Transaction::new().if_absent(&key),
    };
    let value = encode(wanted);
    transaction =
        transaction.put(keys::history(name, wanted.generation), value.clone()).put(key, value);
    let surplus = (stack.history.len() + 1).saturating_sub(HISTORY);
    let mut kept: BTreeSet<_> = wanted.stack.services.iter().map(revision_key).collect();
    for record in stack.history.values().skip(surplus) {
        kept.extend(record.stack.services.iter().map(revision_key));
    }
    kept.extend(
        stack
            .assignments
            .values()
            .map(|stored| (stored.value.service.clone(), stored.value.revision.clone())),
    );
    for (service, stored) in &stack.rollouts {
        kept.insert((service.clone(), stored.value.to.clone()));
        kept.extend(stored.value.from.iter().map(|from| (service.clone(), from.clone())));
    }
    for generation in stack.history.keys().take(surplus) {
        transaction = transaction.delete(keys::history(name, Generation(*generation)));
    }
    for (service, revision) in stack.revisions.keys().filter(|key| !kept.contains(*key)) {
        transaction = transaction.delete(keys::revision(name, service, revision));
    }
    let assigned: BTreeSet<&ServiceName> =
        stack.assignments.values().map(|stored| &stored.value.service).collect();
    for service in stack.addresses.keys() {
        if !wanted.stack.services.contains_key(service) && !assigned.contains(service) {
            transaction = transaction.delete(keys::address(name, service));
        }
    }
    transaction
}

fn revision_key(
    (name, service): (&ServiceName, &Service),
) -> (ServiceName, keel_model::RevisionId) {
    (name.clone(), service.spec.revision())
}

/// Whether two records want the same.
pub(super) fn same(old: &StackRecord, new: &StackRecord) -> bool {
    old.stack == new.stack
        && old.intents == new.intents
        && old.removing == new.removing
        && old.remove_volumes == new.remove_volumes
}

/// The services of `next` whose newest revision was taken back or did not become ready, and why.
pub(super) fn not_come_about(stack: &StackState, next: &StackRecord) -> Vec<(ServiceName, String)> {
    let failed = stack.rollouts.iter().filter(|(name, rollout)| {
        let wanted = next.stack.services.get(*name).map(|service| service.spec.revision());
        matches!(rollout.value.state, RolloutState::RolledBack | RolloutState::Failed)
            && wanted.as_ref() == Some(&rollout.value.to)
    });
    failed
        .map(|(name, rollout)| {
            (name.clone(), format!("its last release failed: {}", rollout.value.reason))
        })
        .collect()
}

/// A rollout that failed is tried again when the user says the same once more.
pub(super) fn wants_another_try(stack: &StackState) -> bool {
    stack.rollouts.values().any(|rollout| {
        matches!(
            rollout.value.state,
            RolloutState::RolledBack | RolloutState::Paused | RolloutState::Failed
        )
    })
}
