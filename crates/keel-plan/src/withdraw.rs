//! How an instance leaves: Drain → drained, or the drain timeout → stopped, removed or started again.
//!
//! Invariant: an instance that takes requests is never stopped, removed or restarted by a decision of ours without
//! having been drained first. One that takes none needs no drain.

use std::time::Duration;

use keel_model::{EventKind, Goal, InstanceId, RolloutPolicy, ServiceName};

use crate::draft::Draft;
use crate::restart;

/// Withdraws an instance; `next` is what follows the drain.
pub(crate) fn withdraw(draft: &mut Draft<'_>, id: &InstanceId, next: Goal, reason: &str) {
    let Some(instance) = draft.instances.get(id) else { return };
    let (goal, after) = (instance.assignment.goal, instance.assignment.after_drain);
    match goal {
        Goal::Run if instance.serves() => drain(draft, id, next, reason),
        Goal::Run => follow(draft, id, next, reason),
        Goal::Drain if next > after => draft.assign(id, |a| {
            a.after_drain = next;
            reason.clone_into(&mut a.reason);
        }),
        Goal::Stop if next == Goal::Remove => follow(draft, id, next, reason),
        Goal::Drain | Goal::Stop | Goal::Remove => {}
    }
}

/// Stops sending requests to an instance that runs, whether or not it is ready.
pub(crate) fn drain(draft: &mut Draft<'_>, id: &InstanceId, next: Goal, reason: &str) {
    let now = draft.clock.now;
    draft.assign(id, |a| {
        a.goal = Goal::Drain;
        a.after_drain = next;
        a.goal_since = now;
        reason.clone_into(&mut a.reason);
    });
    if let Some(instance) = draft.instances.get_mut(id) {
        // What was acknowledged before belongs to an older generation.
        instance.drained = false;
        let service = instance.assignment.service.clone();
        draft.event(EventKind::InstanceDraining, Some(&service), Some(id), reason.to_owned());
    }
}

/// What comes after the drain, or instead of one.
fn follow(draft: &mut Draft<'_>, id: &InstanceId, next: Goal, reason: &str) {
    if next == Goal::Run {
        restart::start_again(draft, id, reason);
        return;
    }
    let now = draft.clock.now;
    draft.assign(id, |a| {
        a.goal = next;
        a.goal_since = now;
        reason.clone_into(&mut a.reason);
    });
}

/// Moves the draining instances of a service on, when they are drained or were given long enough.
pub(crate) fn advance(draft: &mut Draft<'_>, service: &ServiceName) {
    let done: Vec<(InstanceId, Goal, String)> = draft
        .of(service)
        .filter(|instance| instance.assignment.goal == Goal::Drain)
        .filter(|instance| {
            let a = &instance.assignment;
            let timeout = drain_timeout(draft, instance);
            instance.drained || instance.has_ended() || draft.clock.passed(a.goal_since, timeout)
        })
        .map(|i| (i.assignment.id.clone(), i.assignment.after_drain, i.assignment.reason.clone()))
        .collect();
    for (id, next, reason) in done {
        follow(draft, &id, next, &reason);
    }
}

fn drain_timeout(draft: &Draft<'_>, instance: &crate::Instance) -> Duration {
    draft.definition(&instance.assignment).map_or_else(
        || RolloutPolicy::default().drain_timeout,
        |definition| definition.rollout.drain_timeout,
    )
}
