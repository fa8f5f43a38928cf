//! Decides how a rollout stands: it goes on, is complete, or has failed.

use std::time::Duration;

use keel_model::{
    FailureAction, Goal, InstanceId, Mark, Rollout, RolloutPolicy, RolloutState, Service,
    ServiceName,
};

use super::{Course, Direction};
use crate::clock::Clock;
use crate::draft::Draft;
use crate::view::is_job;
use crate::{Instance, restart, scale, withdraw};

/// Whether an instance counts as a working instance of the revision that a rollout goes to.
pub(crate) fn counts(
    instance: &Instance,
    service: &Service,
    rollout: &Rollout,
    direction: Direction,
    clock: &Clock,
) -> bool {
    if instance.has_completed(service) {
        return true;
    }
    if is_job(service) {
        return false;
    }
    // A failure that is tolerated doesn't hold up the others.
    if rollout.marks.get(&instance.assignment.id) == Some(&Mark::Failed) {
        return true;
    }
    let wait = match direction {
        Direction::Forward => service.rollout.min_healthy_time,
        // One that nothing can be asked is ready only after it has run for a while.
        Direction::First | Direction::Restart | Direction::Back => Duration::ZERO,
    };
    instance.ready_for(wait, clock)
}

/// Whether it was healthy for so long that a failure no longer counts against the revision.
fn settled(instance: &Instance, service: &Service, direction: Direction, clock: &Clock) -> bool {
    let policy = &service.rollout;
    let wait = match direction {
        Direction::Forward => policy.min_healthy_time.max(policy.monitor),
        Direction::First | Direction::Restart | Direction::Back => Duration::ZERO,
    };
    let ready = instance.ready_for(wait, clock);
    instance.has_completed(service) || ready
}

/// Judges the rollout of `name`, and gives it a new state where that is due.
pub(crate) fn judge(draft: &mut Draft<'_>, name: &ServiceName, service: &Service) {
    let Some(rollout) = draft.rollouts.get(name) else { return };
    let course = Course::of(draft, rollout);
    match (rollout.state, course.direction) {
        (RolloutState::Progressing | RolloutState::Failed, Direction::First) => {
            first(draft, name, service, &course);
        }
        (RolloutState::Progressing, _) => progressing(draft, name, service, &course),
        (RolloutState::RollingBack, _) => rolling_back(draft, name, service, &course),
        _ => {}
    }
}

/// A first deployment has nothing to return to: it fails for the eyes of the user only, and goes on trying.
fn first(draft: &mut Draft<'_>, name: &ServiceName, service: &Service, course: &Course) {
    if arrived(draft, name, service, course, counts) {
        complete(draft, name);
        return;
    }
    mark_ready(draft, name, course);
    let Some(rollout) = draft.rollouts.get(name) else { return };
    if rollout.state == RolloutState::Failed {
        return;
    }
    // Those of a revision that the user has corrected say nothing about the new one.
    let is_newest = |instance: &&Instance| course.fits(&instance.assignment);
    let failing = draft.slots(name).filter(is_newest).find_map(|instance| {
        let trouble = restart::keeps_failing(instance, service, &draft.clock)?;
        Some((instance.assignment.id.clone(), instance.explain(trouble, service)))
    });
    let verdict = failing.or_else(|| stuck(draft, name, service, course));
    if let Some((id, why)) = verdict {
        fail(draft, name, &id, &why, RolloutState::Failed);
    }
}

fn progressing(draft: &mut Draft<'_>, name: &ServiceName, service: &Service, course: &Course) {
    mark_ready(draft, name, course);
    mark_settled_and_failed(draft, name, service, course);
    let Some(rollout) = draft.rollouts.get(name) else { return };
    if let Some((id, why)) = too_many_failures(draft, service, rollout) {
        let state = outcome(draft, rollout, service);
        if state != RolloutState::Progressing {
            fail(draft, name, &id, &why, state);
            return;
        }
    }
    let done =
        |instance: &Instance, service: &Service, rollout: &Rollout, _, _: &Clock| match rollout
            .marks
            .get(&instance.assignment.id)
        {
            Some(Mark::Failed) => true,
            Some(Mark::Settled) => instance.is_ready() || instance.has_completed(service),
            Some(Mark::Ready) | None => false,
        };
    if arrived(draft, name, service, course, done) {
        complete(draft, name);
        return;
    }
    if let Some((id, why)) = stuck(draft, name, service, course) {
        match draft.rollouts.get(name).map(|rollout| outcome(draft, rollout, service)) {
            None | Some(RolloutState::Progressing) => mark(draft, name, &id, Mark::Failed),
            Some(state) => fail(draft, name, &id, &why, state),
        }
    }
}

/// The way back ends when nothing but the old revision is left, ready or not: healing does the rest. If the old
/// revision does not come up either, what still serves of the new one is all there is: that is left to the user.
fn rolling_back(draft: &mut Draft<'_>, name: &ServiceName, service: &Service, course: &Course) {
    mark_ready(draft, name, course);
    let places = || scale::places(draft, name, service);
    let fits = places().filter(|i| course.fits(&i.assignment)).count();
    let all = places().count();
    if fits == all && fits >= scale::wanted(draft, service) {
        let reason = draft.rollouts.get(name).map(|r| r.reason.clone()).unwrap_or_default();
        draft.turn_rollout(name, RolloutState::RolledBack, reason);
    } else if let Some((id, why)) = stuck(draft, name, service, course) {
        let reason = format!("the revision before does not come up: {id} {why}");
        draft.turn_rollout(name, RolloutState::Paused, reason);
    }
}

/// Whether all instances fit, are as many as wanted, and `good`.
fn arrived(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    course: &Course,
    good: impl Fn(&Instance, &Service, &Rollout, Direction, &Clock) -> bool,
) -> bool {
    let Some(rollout) = draft.rollouts.get(name) else { return false };
    let mut count = 0;
    let all = scale::places(draft, name, service).all(|instance| {
        count += 1;
        course.fits(&instance.assignment)
            && good(instance, service, rollout, course.direction, &draft.clock)
    });
    all && count == scale::wanted(draft, service) && scale::has_nodes(draft)
}

fn complete(draft: &mut Draft<'_>, name: &ServiceName) {
    let failures = draft.rollouts.get(name).map_or(0, |rollout| rollout.failures);
    let reason = match failures {
        0 => "all instances are ready".to_owned(),
        n => format!("all instances are ready, {n} failed on the way"),
    };
    if let Some(rollout) = draft.rollouts.get_mut(name) {
        rollout.marks.clear();
        rollout.failed_instance = None;
    }
    draft.turn_rollout(name, RolloutState::Complete, reason);
}

/// Marks instances that became ready for the first time; each is progress.
fn mark_ready(draft: &mut Draft<'_>, name: &ServiceName, course: &Course) {
    let ready: Vec<InstanceId> = draft
        .slots(name)
        .filter(|i| course.fits(&i.assignment) && i.is_ready())
        .map(|i| i.assignment.id.clone())
        .collect();
    let now = draft.clock.now;
    let present = &draft.instances;
    let Some(rollout) = draft.rollouts.get_mut(name) else { return };
    rollout.marks.retain(|id, _| present.contains_key(id));
    for id in ready {
        rollout.marks.entry(id).or_insert_with(|| {
            rollout.progressed_at = now;
            Mark::Ready
        });
    }
}

fn mark_settled_and_failed(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    service: &Service,
    course: &Course,
) {
    let Some(rollout) = draft.rollouts.get(name) else { return };
    let news: Vec<(InstanceId, Mark)> = draft
        .slots(name)
        .filter(|i| i.assignment.goal == Goal::Run && course.fits(&i.assignment))
        .filter_map(|i| {
            let id = &i.assignment.id;
            if matches!(rollout.marks.get(id), Some(Mark::Settled | Mark::Failed)) {
                return None;
            }
            let mark = if i.trouble(service, &draft.clock).is_some() {
                Mark::Failed
            } else if settled(i, service, course.direction, &draft.clock) {
                Mark::Settled
            } else {
                return None;
            };
            Some((id.clone(), mark))
        })
        .collect();
    for (id, news) in news {
        mark(draft, name, &id, news);
    }
}

/// Remembers what became of an instance of the new revision.
fn mark(draft: &mut Draft<'_>, name: &ServiceName, id: &InstanceId, mark: Mark) {
    let now = draft.clock.now;
    let Some(rollout) = draft.rollouts.get_mut(name) else { return };
    if mark == Mark::Failed {
        rollout.failures = rollout.failures.saturating_add(1);
        rollout.failed_instance = Some(id.clone());
    }
    rollout.progressed_at = now;
    rollout.marks.insert(id.clone(), mark);
}

/// Whether more instances failed than the policy tolerates; with the last that did, and why.
fn too_many_failures(
    draft: &Draft<'_>,
    service: &Service,
    rollout: &Rollout,
) -> Option<(InstanceId, String)> {
    let wanted = u64::try_from(scale::wanted(draft, service)).unwrap_or(u64::MAX).max(1);
    let share = u64::from(rollout.failures).saturating_mul(1_000_000) / wanted;
    let id = rollout.failed_instance.as_ref()?;
    if rollout.failures == 0 || share <= u64::from(service.rollout.max_failure_ppm) {
        return None;
    }
    let why = draft
        .instances
        .get(id)
        .and_then(|i| Some(i.explain(i.trouble(service, &draft.clock)?, service)))
        .unwrap_or_else(|| "failed".to_owned());
    Some((id.clone(), why))
}

/// An instance of the new revision that is not ready although the progress deadline has passed.
fn stuck(
    draft: &Draft<'_>,
    name: &ServiceName,
    service: &Service,
    course: &Course,
) -> Option<(InstanceId, String)> {
    let rollout = draft.rollouts.get(name)?;
    let deadline = service.rollout.progress_deadline;
    let late = draft.slots(name).find(|i| {
        let written_off = rollout.marks.get(&i.assignment.id) == Some(&Mark::Failed);
        let works = i.is_ready() || i.has_completed(service);
        course.fits(&i.assignment) && !works && !written_off
    })?;
    if is_job(service) || !draft.clock.passed(rollout.progressed_at, deadline) {
        return None;
    }
    Some((
        late.assignment.id.clone(),
        format!("made no progress for {} s and is not ready", deadline.as_secs()),
    ))
}

/// What the policy makes of a failed revision. `Progressing` means: go on.
fn outcome(draft: &Draft<'_>, rollout: &Rollout, service: &Service) -> RolloutState {
    let back = rollout.from.as_ref().filter(|from| **from != rollout.to);
    let can_return = back.is_some_and(|from| draft.knows(&rollout.service, from));
    match service.rollout.failure_action {
        FailureAction::Continue => RolloutState::Progressing,
        FailureAction::Pause => RolloutState::Paused,
        FailureAction::Rollback if can_return => RolloutState::RollingBack,
        FailureAction::Rollback => RolloutState::Failed,
    }
}

/// Ends the rollout as failed, and keeps the instance that shows why.
fn fail(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    id: &InstanceId,
    why: &str,
    state: RolloutState,
) {
    let Some(rollout) = draft.rollouts.get_mut(name) else { return };
    rollout.failed_instance = Some(id.clone());
    let first = rollout.from.is_none();
    draft.turn_rollout(name, state, format!("{id} {why}"));
    if !first {
        withdraw::withdraw(draft, id, Goal::Stop, "kept so that its output can be read");
    }
}

/// What a service depends on has failed: it can't go on.
pub(crate) fn block(draft: &mut Draft<'_>, name: &ServiceName, why: &str) {
    let progressing =
        draft.rollouts.get(name).is_some_and(|rollout| rollout.state == RolloutState::Progressing);
    if progressing {
        draft.turn_rollout(name, RolloutState::Failed, why.to_owned());
    }
}

/// What a first deployment was blocked by has come right: it goes on.
pub(crate) fn unblock(draft: &mut Draft<'_>, name: &ServiceName) {
    let blocked = draft
        .rollouts
        .get(name)
        .is_some_and(|rollout| rollout.state == RolloutState::Failed && rollout.from.is_none());
    if blocked {
        let reason = "what it waited for has come right";
        draft.turn_rollout(name, RolloutState::Progressing, reason.to_owned());
    }
}

/// The policy that paces the instances of a service on its way in `direction`.
pub(crate) fn policy(service: &Service, direction: Direction) -> &RolloutPolicy {
    match direction {
        Direction::Back => service.rollback.as_ref().unwrap_or(&service.rollout),
        Direction::First | Direction::Forward | Direction::Restart => &service.rollout,
    }
}
