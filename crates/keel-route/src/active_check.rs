//! Active checks: when an endpoint is asked, and when its answers take it out or bring it back.
//!
//! An endpoint that the platform calls ready is well until so many checks in a row have failed; so a proxy that starts
//! serves at once. Then it is out until so many in a row have succeeded.

use std::time::Duration;

use keel_model::ActiveCheck;

use crate::balance::Random;

/// Checks of one endpoint are at least this far apart.
pub const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// Each interval is longer or shorter by up to this share, in percent, so that proxies do not ask all at once.
const JITTER_PERCENT: u32 = 10;
/// Steps in which chance is divided.
const STEPS: u32 = 1 << 16;

/// What the checks of an endpoint have shown. The default: well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    out: bool,
    /// Results in a row that speak for the opposite.
    against: u32,
}

impl Checked {
    /// After one more check, which succeeded or did not.
    #[must_use]
    pub fn observe(self, succeeded: bool, policy: &ActiveCheck) -> Self {
        if succeeded != self.out {
            return Self { against: 0, ..self };
        }
        let needed = if self.out { policy.successes } else { policy.failures };
        let against = self.against.saturating_add(1);
        if against >= needed {
            Self { out: !self.out, against: 0 }
        } else {
            Self { against, ..self }
        }
    }

    /// Whether it is left out.
    #[must_use]
    pub fn is_out(self) -> bool {
        self.out
    }
}

/// Whether an answer with this status is a success.
#[must_use]
pub fn is_success(status: u16) -> bool {
    (200..400).contains(&status)
}

/// How long to wait for the first check: anything up to the interval, so that many endpoints that appear together
/// are asked one after the other.
#[must_use]
pub fn first_in(policy: &ActiveCheck, random: &mut Random) -> Duration {
    part(policy.interval.max(LEAST_INTERVAL), random)
}

/// How long to wait from the beginning of one check to the next.
#[must_use]
pub fn next_in(policy: &ActiveCheck, random: &mut Random) -> Duration {
    let interval = policy.interval.max(LEAST_INTERVAL);
    let jitter = interval / 100 * JITTER_PERCENT;
    interval.saturating_sub(jitter).saturating_add(part(jitter.saturating_mul(2), random))
}

/// A random part of `whole`.
fn part(whole: Duration, random: &mut Random) -> Duration {
    let steps = u32::try_from(random.below(STEPS as usize)).unwrap_or(0);
    whole / STEPS * steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(failures: u32, successes: u32) -> ActiveCheck {
        ActiveCheck {
            path: "/".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            failures,
            successes,
        }
    }

    #[test]
    fn so_many_in_a_row() {
        let policy = policy(3, 2);
        let mut checked = Checked::default();
        for (succeeded, out) in [
            (false, false),
            (false, false),
            (true, false),
            (false, false),
            (false, false),
            (false, true),
            (true, true),
            (false, true),
            (true, true),
            (true, false),
            (false, false),
        ] {
            checked = checked.observe(succeeded, &policy);
            assert_eq!(checked.is_out(), out);
        }
        assert!(is_success(204) && is_success(399) && !is_success(199) && !is_success(400));
    }

    proptest! {
        #[test]
        fn it_is_what_the_last_run_says(
            failures in 0u32..5,
            successes in 0u32..5,
            results in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let policy = policy(failures, successes);
            let mut checked = Checked::default();
            for (n, succeeded) in results.iter().enumerate() {
                checked = checked.observe(*succeeded, &policy);
                let run = results[..=n].iter().rev().take_while(|r| *r == succeeded).count();
                let needed = if *succeeded { successes } else { failures };
                if run >= needed as usize {
                    prop_assert_eq!(checked.is_out(), !succeeded);
                }
            }
        }

        #[test]
        fn intervals_stay_near_and_above_the_least(seed in any::<u64>(), millis in 0u64..100_000) {
            let policy = ActiveCheck { interval: Duration::from_millis(millis), ..policy(1, 1) };
            let interval = policy.interval.max(LEAST_INTERVAL);
            let mut random = Random::new(seed);
            let (first, next) = (first_in(&policy, &mut random), next_in(&policy, &mut random));
            prop_assert!(first <= interval);
            prop_assert!(next >= interval * 89 / 100 && next <= interval * 111 / 100, "{next:?}");
        }
    }

    #[test]
    fn many_endpoints_are_not_asked_at_once() {
        let mut random = Random::new(1);
        let early = (0..1_000)
            .filter(|_| first_in(&policy(1, 1), &mut random) < Duration::from_secs(1))
            .count();
        assert!((150..250).contains(&early), "{early}");
    }
}
