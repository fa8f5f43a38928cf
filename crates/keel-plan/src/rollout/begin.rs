//! Opens a rollout when a service first appears, changes, is restarted by the user, or is tried again.

use std::collections::BTreeSet;

use keel_model::{
    EventKind, Goal, InstanceId, RevisionId, Rollout, RolloutState, Service, ServiceName,
};

use crate::draft::Draft;
use crate::view::is_job;

/// Brings the rollout record of `name` in line with what the user wants now.
pub(crate) fn begin(draft: &mut Draft<'_>, name: &ServiceName, service: &Service) {
    let restarts = restarts_asked(draft, name, service);
    let wanted = draft.wanted(name).cloned();
    if let (Some(occasion), Some(wanted)) = (occasion(draft, name, service), wanted) {
        let before = draft.rollouts.get(name);
        let from = before.and_then(|rollout| in_force(rollout, service));
        let raise = u64::from(occasion == Occasion::Restart);
        let epoch = before.map_or(0, |rollout| rollout.epoch + raise);
        let rollout = fresh(draft, name, from, wanted, restarts, epoch);
        forgive(draft, name, &rollout.to);
        open(draft, name, rollout, occasion);
        return;
    }
    let generation = draft.desired.record.generation;
    if let Some(rollout) = draft.rollouts.get_mut(name) {
        // Asked for less often than before: a dependency that restarts with it was dropped.
        rollout.restarts = restarts;
        if !rollout.state.is_final() {
            // Other changes of the stack, such as a new scale, are no wish to try again after a failure.
            rollout.generation = generation;
        }
    }
}

/// Why a rollout begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// The service is new.
    FirstDeployment,
    /// Its spec changed.
    NewRevision,
    /// The user asked for it, perhaps of a service that it restarts with.
    Restart,
    /// It failed, and the user has spoken since.
    AnotherTry,
}

/// Why a rollout of `name` is to begin now, if one is.
pub(crate) fn occasion(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
) -> Option<Occasion> {
    let Some(rollout) = draft.rollouts.get(name) else { return Some(Occasion::FirstDeployment) };
    let failed = matches!(
        rollout.state,
        RolloutState::RolledBack | RolloutState::Paused | RolloutState::Failed
    );
    // A new revision restarts everything anyway; its epoch is left alone.
    if draft.wanted(name) != Some(&rollout.to) {
        Some(Occasion::NewRevision)
    } else if restarts_asked(draft, name, service) > rollout.restarts {
        Some(Occasion::Restart)
    } else if failed && draft.desired.record.applied > rollout.generation {
        Some(Occasion::AnotherTry)
    } else {
        None
    }
}

/// The revision to return to: the last that was complete.
pub(crate) fn in_force(rollout: &Rollout, service: &Service) -> Option<RevisionId> {
    // A job can't be taken back by running the one before again.
    if is_job(service) {
        return None;
    }
    match rollout.state {
        RolloutState::Complete => Some(rollout.to.clone()),
        _ => rollout.from.clone(),
    }
}

/// How often the user has asked for a restart of this service, or of one that it restarts with.
///
/// A dependency counts once its own restart is through, so that the restart travels along the chain in order.
fn restarts_asked(draft: &Draft<'_>, name: &ServiceName, service: &Service) -> u64 {
    let record = &draft.desired.record;
    let own = record.intents.get(name).map_or(0, |intent| intent.restarts);
    let known = draft.rollouts.get(name).map_or(0, |rollout| rollout.restarts);
    let mut waiting = false;
    let mut inherited = 0u64;
    for on in service.depends_on.iter().filter(|(_, d)| d.restart).map(|(on, _)| on) {
        let Some(rollout) = draft.rollouts.get(on) else { continue };
        waiting |= !rollout.state.is_final();
        inherited = inherited.saturating_add(rollout.restarts);
    }
    let asked = own.saturating_add(inherited);
    if waiting && asked > known && own <= known { known } else { asked }
}

fn fresh(
    draft: &Draft<'_>,
    name: &ServiceName,
    from: Option<RevisionId>,
    to: RevisionId,
    restarts: u64,
    epoch: u64,
) -> Rollout {
    let now = draft.clock.now;
    Rollout {
        service: name.clone(),
        failed_before: failed_before(draft, name, &to),
        from,
        to,
        state: RolloutState::Progressing,
        started_at: now,
        progressed_at: now,
        changed_at: now,
        failures: 0,
        reason: String::new(),
        generation: draft.desired.record.generation,
        restarts,
        epoch,
        marks: std::collections::BTreeMap::new(),
        failed_instance: None,
    }
}

/// The revisions that failed when they were tried last, as far as one could still return to them. What is to be tried now
/// is not among them.
fn failed_before(draft: &Draft<'_>, name: &ServiceName, to: &RevisionId) -> BTreeSet<RevisionId> {
    let Some(before) = draft.rollouts.get(name) else { return BTreeSet::new() };
    // A restart that fails says nothing against the revision that it was of.
    let is_new = before.from.as_ref() != Some(&before.to);
    let last = Some(&before.to).filter(|_| before.state.has_failed() && is_new);
    let all = before.failed_before.iter().chain(last);
    all.filter(|it| *it != to && draft.knows(name, it)).cloned().collect()
}

fn open(draft: &mut Draft<'_>, name: &ServiceName, mut rollout: Rollout, occasion: Occasion) {
    let reason = match occasion {
        Occasion::FirstDeployment => "first deployment",
        Occasion::NewRevision => "new revision",
        Occasion::Restart => "restart",
        Occasion::AnotherTry => "another try",
    };
    let message = match &rollout.from {
        Some(from) if *from != rollout.to => format!("{reason}: {from} to {}", rollout.to),
        _ => format!("{reason}: {}", rollout.to),
    };
    reason.clone_into(&mut rollout.reason);
    draft.rollouts.insert(name.clone(), rollout);
    draft.event(EventKind::Rollout, Some(name), None, message);
}

/// Trying again starts with a clean slate: failures of instances that stay no longer count.
fn forgive(draft: &mut Draft<'_>, name: &ServiceName, revision: &RevisionId) {
    let failed: Vec<InstanceId> = draft
        .of(name)
        .map(|instance| &instance.assignment)
        .filter(|a| a.goal == Goal::Run && a.failures > 0 && a.revision == *revision)
        .map(|a| a.id.clone())
        .collect();
    for id in failed {
        draft.assign(&id, |a| a.failures = 0);
    }
}
