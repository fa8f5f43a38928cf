//! When an instance that ended, could not start or is unhealthy is started again.
//!
//! The first restart after a quiet time is immediate; then starts are kept apart, twice as far each time, up to a
//! limit, until an attempt has lasted for `reset_after`. What an explicit restart does is in [`crate::rollout`].

use std::time::Duration;

use keel_model::{
    EventKind, Goal, InstanceId, RestartCondition, RestartPolicy, Service, ServiceName, Timestamp,
};

use crate::Instance;
use crate::clock::Clock;
use crate::draft::Draft;
use crate::view::Trouble;
use crate::withdraw;

/// Restarts in a row after which an instance that fails again counts as unable to run.
pub(crate) const LOOPING_AFTER: u32 = 2;

/// What the policy says about an instance in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it now; this many failures in a row are then behind it.
    Now(u32),
    /// Later.
    Wait,
    /// Never by itself.
    GiveUp,
}

/// Restarts the instances of a service that need it.
pub(crate) fn heal(draft: &mut Draft<'_>, name: &ServiceName, service: &Service) {
    let ready = draft.slots(name).filter(|instance| instance.is_ready()).count();
    let due: Vec<(InstanceId, Trouble, u32, String)> = draft
        .slots(name)
        .filter(|instance| instance.assignment.goal == Goal::Run)
        .filter_map(|instance| {
            let trouble = instance.trouble(service, &draft.clock)?;
            match verdict(instance, trouble, service, &draft.clock) {
                Verdict::Now(failures) => Some((
                    instance.assignment.id.clone(),
                    trouble,
                    failures,
                    instance.explain(trouble, service),
                )),
                Verdict::Wait | Verdict::GiveUp => None,
            }
        })
        .collect();
    for (id, trouble, failures, reason) in due {
        draft.assign(&id, |a| a.failures = failures);
        if trouble == Trouble::Unhealthy && ready > 0 {
            withdraw::drain(draft, &id, Goal::Run, &reason);
        } else {
            start_again(draft, &id, &reason);
        }
    }
}

/// Starts the next attempt of an instance.
pub(crate) fn start_again(draft: &mut Draft<'_>, id: &InstanceId, reason: &str) {
    let now = draft.clock.now;
    let Some(service) = draft.instances.get(id).map(|i| i.assignment.service.clone()) else {
        return;
    };
    let epoch = draft.rollouts.get(&service).map_or(0, |rollout| rollout.epoch);
    draft.assign(id, |a| {
        a.goal = Goal::Run;
        a.after_drain = Goal::Remove;
        a.attempt += 1;
        a.goal_since = now;
        a.restarts = a.restarts.max(epoch);
        reason.clone_into(&mut a.reason);
    });
    draft.event(EventKind::InstanceRestarting, Some(&service), Some(id), reason.to_owned());
}

/// What the policy says about an instance in trouble.
pub(crate) fn verdict(
    instance: &Instance,
    trouble: Trouble,
    service: &Service,
    clock: &Clock,
) -> Verdict {
    let policy = &service.restart;
    let failures = failures_in_a_row(instance, policy);
    // A success under `OnFailure` is no trouble in the first place, see `has_completed`.
    let never = policy.condition == RestartCondition::Never;
    if never || policy.max_attempts.is_some_and(|most| failures >= most) {
        return Verdict::GiveUp;
    }
    let due = match policy.delay {
        Some(fixed) => instance.lasted(trouble_since(instance, trouble), fixed, clock),
        None => clock.passed(instance.assignment.goal_since, backoff(policy, failures)),
    };
    if due { Verdict::Now(failures.saturating_add(1)) } else { Verdict::Wait }
}

/// Whether it keeps failing: it will not be started again, or has just failed for the third time in a row.
pub(crate) fn keeps_failing(
    instance: &Instance,
    service: &Service,
    clock: &Clock,
) -> Option<Trouble> {
    let trouble = instance.trouble(service, clock)?;
    let looping = failures_in_a_row(instance, &service.restart) >= LOOPING_AFTER;
    let hopeless = verdict(instance, trouble, service, clock) == Verdict::GiveUp;
    (looping || hopeless).then_some(trouble)
}

/// Failed attempts before this one; none if this one lasted long enough to be forgiven.
fn failures_in_a_row(instance: &Instance, policy: &RestartPolicy) -> u32 {
    let lasted = instance.fresh().and_then(|status| {
        let end = status.exit.as_ref().map(|exit| exit.at).or(status.ready_since)?;
        Some(end.since(status.started_at?))
    });
    if lasted.is_some_and(|lasted| lasted >= policy.reset_after) {
        0
    } else {
        instance.assignment.failures
    }
}

/// Since when it has been in trouble; a fixed delay counts from here.
fn trouble_since(instance: &Instance, trouble: Trouble) -> Timestamp {
    let told = instance.assignment.goal_since;
    let Some(status) = instance.fresh() else { return told };
    let since = match trouble {
        Trouble::Exited | Trouble::NotStarted => status.exit.as_ref().map(|exit| exit.at),
        Trouble::Unhealthy | Trouble::NeverReady => status.ready_since.or(status.started_at),
    };
    since.unwrap_or(told)
}

/// The least time between two starts, after `failures` restarts in a row.
///
/// It counts from one start to the next and not from the end: what ran longer than that is replaced at once, and
/// what ends at once is still started no more often.
fn backoff(policy: &RestartPolicy, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            let factor = 2u32.saturating_pow(doublings);
            policy.backoff_initial.saturating_mul(factor).min(policy.backoff_max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_from_an_immediate_first_restart() {
        let policy = RestartPolicy::default();
        let seconds: Vec<u64> = (0..9).map(|n| backoff(&policy, n).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(&policy, u32::MAX), policy.backoff_max);
    }
}
