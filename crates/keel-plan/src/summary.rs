//! How each service stands, in one word and a few numbers: what `keel ps` prints and `keel up --wait` waits for.
//!
//! It only reads; it shares its judgement with the planner, so both always agree on what "done" means.

use std::collections::BTreeMap;

use keel_model::{InstanceId, RevisionId, Rollout, RolloutState, Service, ServiceName};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::depend::Gate;
use crate::draft::Draft;
use crate::rollout::begin;
use crate::{Desired, Observed, restart, scale, service};

/// How a service stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Instances are on their way, or wait for what they depend on; none has failed.
    Starting,
    /// All instances are ready.
    Ready,
    /// It is in force, but instances are missing, not ready or failing.
    Degraded,
    /// All instances ended well and are not to run again.
    Completed,
    /// It does not run, or its revision failed with nothing to return to.
    Failed,
    /// Stopped by the user.
    Stopped,
    /// Instances are being moved to a new revision or restarted.
    RollingOut,
    /// The new revision failed; instances are being moved back.
    RollingBack,
    /// The new revision failed; the one before is in force again.
    RolledBack,
    /// The new revision failed; the rollout waits for the user.
    Paused,
    /// The stack is being removed.
    Removing,
}

/// What someone who waits for a service should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Go on waiting.
    Wait,
    /// What was asked for is the case.
    Done,
    /// It will not come about by itself.
    Failed,
}

/// How a service stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Wanted instances.
    pub desired: usize,
    /// Wanted instances whose process runs.
    pub running: usize,
    /// Wanted instances that take requests.
    pub ready: usize,
    /// Wanted instances that ended well and are not to run again.
    pub completed: usize,
    /// The revision that the user wants.
    pub revision: RevisionId,
    /// In one word.
    pub state: ServiceState,
    /// Why, for people; empty when there is nothing to say.
    pub reason: String,
    /// The instance whose output shows what went wrong.
    pub failed_instance: Option<InstanceId>,
    /// Whether what the user asked for is the case and nothing is left to do.
    pub converged: bool,
}

impl ServiceSummary {
    /// What someone who waits for the service should do.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.state {
            _ if self.converged => Outcome::Done,
            ServiceState::Failed | ServiceState::Paused | ServiceState::RolledBack => {
                Outcome::Failed
            }
            _ => Outcome::Wait,
        }
    }
}

/// How each service of the record stands.
#[must_use]
pub fn summary(desired: &Desired, observed: &Observed) -> BTreeMap<ServiceName, ServiceSummary> {
    let draft = Draft::new(desired, observed, Clock::standing());
    let services = &desired.record.stack.services;
    let order = crate::depend::start_order(services);
    let one = |(rank, name): (usize, &ServiceName)| {
        (name.clone(), summarize(&draft, name, &services[name], &order[..rank]))
    };
    order.iter().enumerate().map(one).collect()
}

fn summarize(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
) -> ServiceSummary {
    let places = || scale::places(draft, name, service);
    let mut summary = ServiceSummary {
        desired: scale::wanted(draft, service),
        running: places().filter(|i| i.runs()).count(),
        ready: places().filter(|i| i.is_ready()).count(),
        completed: places().filter(|i| i.has_completed(service)).count(),
        revision: draft.wanted(name).cloned().unwrap_or_else(|| service.spec.revision()),
        state: ServiceState::Starting,
        reason: String::new(),
        failed_instance: None,
        converged: false,
    };
    if draft.desired.record.removing {
        summary.state = ServiceState::Removing;
    } else if draft.desired.record.intents.get(name).is_some_and(|intent| intent.stopped) {
        summary.state = ServiceState::Stopped;
        let slots = draft.slots(name).next().is_some();
        summary.converged = !slots && draft.of(name).all(crate::Instance::has_ended);
    } else {
        running(draft, name, service, before, &mut summary);
    }
    summary
}

/// The state of a service that should run.
fn running(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
    summary: &mut ServiceSummary,
) {
    let rollout = draft.rollouts.get(name);
    let Some(rollout) = rollout.filter(|_| begin::occasion(draft, name, service).is_none()) else {
        let before = rollout.and_then(|rollout| begin::in_force(rollout, service));
        let first = before.is_none();
        summary.state = if first { ServiceState::Starting } else { ServiceState::RollingOut };
        return;
    };
    summary.reason.clone_from(&rollout.reason);
    summary.failed_instance.clone_from(&rollout.failed_instance);
    match rollout.state {
        RolloutState::Progressing => under_way(draft, name, service, before, rollout, summary),
        RolloutState::RollingBack => summary.state = ServiceState::RollingBack,
        RolloutState::RolledBack => summary.state = ServiceState::RolledBack,
        RolloutState::Paused => summary.state = ServiceState::Paused,
        RolloutState::Failed => summary.state = ServiceState::Failed,
        RolloutState::Complete => in_force(draft, name, service, before, summary),
    }
}

fn under_way(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
    rollout: &Rollout,
    summary: &mut ServiceSummary,
) {
    summary.state = match rollout.from {
        None => ServiceState::Starting,
        Some(_) => ServiceState::RollingOut,
    };
    if !scale::has_nodes(draft) {
        "waits for a machine to run on".clone_into(&mut summary.reason);
    } else if let Gate::Waiting(why) | Gate::Blocked(why) =
        service::gate(draft, name, service, before)
    {
        summary.reason = why;
    } else if let Some((id, why)) = first_trouble(draft, name, service) {
        summary.reason = format!("{id} {why}");
        summary.failed_instance = Some(id);
    }
}

fn in_force(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    before: &[ServiceName],
    summary: &mut ServiceSummary,
) {
    let slots = scale::places(draft, name, service).count();
    summary.reason.clear();
    if slots == summary.desired && summary.ready + summary.completed == summary.desired {
        let all = summary.completed == summary.desired && summary.desired > 0;
        summary.state = if all { ServiceState::Completed } else { ServiceState::Ready };
        summary.converged = true;
        return;
    }
    summary.state = ServiceState::Degraded;
    let trouble = first_trouble(draft, name, service);
    let keeps_failing =
        |i: &crate::Instance| restart::keeps_failing(i, service, &draft.clock).is_some();
    if summary.desired > 0 && slots > 0 && draft.slots(name).all(keeps_failing) {
        summary.state = ServiceState::Failed;
    }
    if let Some((id, why)) = trouble {
        summary.reason = format!("{id} {why}");
        summary.failed_instance = Some(id);
    } else if let Gate::Waiting(why) | Gate::Blocked(why) =
        service::gate(draft, name, service, before)
    {
        summary.reason = why;
    } else {
        let (ready, desired) = (summary.ready + summary.completed, summary.desired);
        summary.reason = format!("{ready} of {desired} instances are ready");
        let was_ready = |i: &crate::Instance| {
            !i.is_ready() && i.status.as_ref().is_some_and(|s| s.ready_since.is_some())
        };
        if ready > desired {
            summary.state = ServiceState::Ready;
            summary.reason = format!("{} instances leave", ready - desired);
        } else if !draft.slots(name).any(was_ready) {
            summary.state = ServiceState::Starting;
        }
    }
}

/// The first instance in trouble, and which.
fn first_trouble(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
) -> Option<(InstanceId, String)> {
    draft.slots(name).find_map(|instance| {
        let trouble = instance.trouble(service, &draft.clock)?;
        Some((instance.assignment.id.clone(), instance.explain(trouble, service)))
    })
}
