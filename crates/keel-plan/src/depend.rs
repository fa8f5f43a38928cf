//! Dependencies: in which order services start and stop, and whether one may start now.
//!
//! Services are ranked so that each comes after what it depends on. Only lower ranks are ever waited for when
//! starting and only higher ones when stopping, so that even a cycle (which the Compose reader refuses) can't stall.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{Condition, Dependency, RolloutState, Service, ServiceName};

use crate::draft::Draft;
use crate::restart;
use crate::rollout::Course;
use crate::scale;

/// Whether a service may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// All conditions hold.
    Open,
    /// Not yet, and for what.
    Waiting(String),
    /// What it waits for has failed and does not come right by itself.
    Blocked(String),
}

/// The services of the record, each after what it depends on; by name where nothing else decides.
pub(crate) fn start_order(services: &BTreeMap<ServiceName, Service>) -> Vec<ServiceName> {
    let mut order = Vec::with_capacity(services.len());
    let mut placed = BTreeSet::new();
    while placed.len() < services.len() {
        let free = |name: &&ServiceName| {
            !placed.contains(*name)
                && services[*name]
                    .depends_on
                    .keys()
                    .all(|on| placed.contains(on) || !services.contains_key(on))
        };
        // In a cycle nobody is free: the first by name breaks it.
        let next = services
            .keys()
            .find(free)
            .or_else(|| services.keys().find(|name| !placed.contains(*name)));
        let Some(next) = next else { break };
        placed.insert(next.clone());
        order.push(next.clone());
    }
    order
}

/// Which dependencies matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All: nothing of the service runs yet.
    All,
    /// Those that must have run to completion: the service runs, and a new revision of it is about to start.
    Completions,
}

/// Whether what `service` depends on allows it to start. `before` are the services of lower rank.
pub(crate) fn gate(
    draft: &Draft<'_>,
    service: &Service,
    before: &[ServiceName],
    which: Which,
) -> Gate {
    let mut waiting = None;
    for (on, dependency) in &service.depends_on {
        if which == Which::Completions && dependency.condition != Condition::CompletedSuccessfully {
            continue;
        }
        match one(draft, on, dependency, before) {
            Gate::Open => {}
            Gate::Waiting(why) => waiting = waiting.or(Some(why)),
            Gate::Blocked(_) if !dependency.required => {}
            Gate::Blocked(why) => return Gate::Blocked(why),
        }
    }
    waiting.map_or(Gate::Open, Gate::Waiting)
}

fn one(
    draft: &Draft<'_>,
    on: &ServiceName,
    dependency: &Dependency,
    before: &[ServiceName],
) -> Gate {
    let record = &draft.desired.record;
    let Some(other) = record.stack.services.get(on) else {
        return Gate::Blocked(format!("depends on {on}, which is not in the stack"));
    };
    if !before.contains(on) || scale::wanted(draft, other) == 0 {
        return Gate::Open;
    }
    if satisfied(draft, on, other, dependency.condition) {
        return Gate::Open;
    }
    let wish = match dependency.condition {
        Condition::Started => "to start",
        Condition::Healthy => "to be healthy",
        Condition::CompletedSuccessfully => "to complete",
    };
    if record.intents.get(on).is_some_and(|intent| intent.stopped) {
        if !dependency.required {
            return Gate::Open;
        }
        return Gate::Waiting(format!("waits for {on} {wish}, which is stopped"));
    }
    match failure_of(draft, on, other) {
        Some(why) => Gate::Blocked(format!("waits for {on} {wish}: {why}")),
        None => Gate::Waiting(format!("waits for {on} {wish}")),
    }
}

fn satisfied(draft: &Draft<'_>, on: &ServiceName, other: &Service, condition: Condition) -> bool {
    let done = |instance: &crate::Instance| instance.has_completed(other);
    match condition {
        Condition::Started => draft.slots(on).any(|instance| instance.runs() || done(instance)),
        Condition::Healthy => {
            let ready = draft.slots(on).filter(|i| i.is_ready() || done(i)).count();
            ready >= scale::wanted(draft, other)
        }
        Condition::CompletedSuccessfully => {
            let course = draft.rollouts.get(on).map(|rollout| Course::of(draft, rollout));
            draft.slots(on).any(|instance| {
                let current = course.as_ref().is_some_and(|c| c.fits(&instance.assignment));
                let exit = instance.fresh().and_then(|status| status.exit.as_ref());
                current && exit.is_some_and(keel_model::Exit::success)
            })
        }
    }
}

/// Why a service that is waited for can't be expected to come right.
fn failure_of(draft: &Draft<'_>, on: &ServiceName, other: &Service) -> Option<String> {
    let rollout = draft.rollouts.get(on)?;
    if rollout.state == RolloutState::Failed {
        return Some(rollout.reason.clone());
    }
    draft.slots(on).find_map(|instance| {
        let trouble = restart::keeps_failing(instance, other, &draft.clock)?;
        Some(format!("{} {}", instance.assignment.id, instance.explain(trouble, other)))
    })
}

/// Whether every service that depends on `name` and is being stopped too has ended. `after` are those of higher rank.
pub(crate) fn dependents_have_ended(
    draft: &Draft<'_>,
    name: &ServiceName,
    after: &[ServiceName],
) -> bool {
    let record = &draft.desired.record;
    after.iter().all(|dependent| {
        let depends = record
            .stack
            .services
            .get(dependent)
            .is_some_and(|service| service.depends_on.contains_key(name));
        let stopping =
            record.removing || record.intents.get(dependent).is_some_and(|intent| intent.stopped);
        !depends || !stopping || draft.of(dependent).all(crate::Instance::has_ended)
    })
}
