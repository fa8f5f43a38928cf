//! One service's part of a turn.

use keel_model::{Goal, InstanceId, RolloutState, Service, ServiceName};

use crate::depend::{self, Gate, Which};
use crate::draft::Draft;
use crate::rollout::{Course, begin, judge};
use crate::{restart, scale, share, withdraw};

/// Decides everything about one service of a stack that is not being removed.
///
/// `before` and `after` are the services that start earlier and later.
pub(crate) fn turn(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
    after: &[ServiceName],
) {
    begin::begin(draft, name, service);
    withdraw::advance(draft, name);
    if draft.desired.record.intents.get(name).is_some_and(|intent| intent.stopped) {
        if depend::dependents_have_ended(draft, name, after) {
            stop(draft, name);
        } else {
            heal(draft, name, service);
        }
        return;
    }
    judge::judge(draft, name, service);
    let gate = gate(draft, name, service, before);
    if let Gate::Blocked(why) = &gate {
        judge::block(draft, name, why);
    }
    let runs = draft.slots(name).next().is_some();
    if gate == Gate::Open && !runs {
        judge::unblock(draft, name);
    }
    if let Some(rollout) = draft.rollouts.get(name) {
        let course = match gate {
            Gate::Open => Some(Course::of(draft, rollout)),
            // Whatever it waits for, what runs is kept at its number.
            Gate::Waiting(_) | Gate::Blocked(_) => runs.then(|| Course::held(draft, rollout)),
        };
        if let Some(course) = course {
            scale::step(draft, name, service, course);
        }
    }
    heal(draft, name, service);
}

/// Starts again what needs it and can be.
fn heal(draft: &mut Draft<'_>, name: &ServiceName, service: &Service) {
    share::follow(draft, name);
    if share::is_possible(draft, service) {
        restart::heal(draft, name, service);
    }
}

/// Dependencies hold back the first start of a service, and a new revision of it until what must complete has.
pub(crate) fn gate(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
) -> Gate {
    let Some(rollout) = draft.rollouts.get(name) else { return Gate::Open };
    if draft.slots(name).next().is_none() {
        return depend::gate(draft, service, before, Which::All);
    }
    let new = draft.slots(name).any(|i| i.assignment.revision == rollout.to);
    let moving = rollout.state == RolloutState::Progressing && rollout.from.is_some();
    if moving && !new {
        return depend::gate(draft, service, before, Which::Completions);
    }
    Gate::Open
}

/// `keel stop`: drained, then stopped, and kept.
fn stop(draft: &mut Draft<'_>, name: &ServiceName) {
    let ids: Vec<InstanceId> = draft.slots(name).map(|i| i.assignment.id.clone()).collect();
    for id in ids {
        withdraw::withdraw(draft, &id, Goal::Stop, "stopped by the user");
    }
}
