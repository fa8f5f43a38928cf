//! Outlier detection: an endpoint whose answers fail is left out for a growing time.
//!
//! A [`Standing`] is what all workers of a proxy remember of an endpoint, in one word. So many failures in a row, over
//! all workers, leave it out for `base` × the number of times that this happened, up to `max`. When that time is over it
//! gets real traffic again, but on probation: a small share of it ([`Standing::share_per_mille`]), and the first failure
//! leaves it out again. Every success takes back one failure and gives it more of its share; once it has all of it, each
//! further `base` without being left out takes back one of the times.
//!
//! # What is a failure
//!
//! Answers with 500 and above, as in Envoy's consecutive 5xx, except 501 and 505, which are said of the request and not of
//! the instance; connections that break before the end of an answer; answers that do not begin in time. 500 counts
//! because a broken instance (no database, out of disk) says just that. The price is that one request that fails
//! everywhere can, repeated without anything else in between, leave out endpoints one after the other; `max_percent`
//! bounds it. Refused connections are [`crate::eject`]'s, which is quicker; clients that go away say nothing.
//!
//! It is never a reason to fail: who has nothing else left uses an endpoint that is left out.

use keel_model::Outlier;

use crate::balance::FULL_WEIGHT;

/// Bits of the packed form: the time, then the number of times, then failures.
const TIME_BITS: u32 = 40;
const TIMES_BITS: u32 = 8;
const LAST_MS: u64 = (1 << TIME_BITS) - 1;
/// Share of an endpoint on probation that has not had a success yet, in thousandths.
const LEAST_PER_MILLE: u16 = 100;

/// What an exchange with an endpoint says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Success,
    /// It may not.
    Failure,
}

impl Outcome {
    /// By the status of an answer.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        if status >= 500 && !matches!(status, 501 | 505) { Self::Failure } else { Self::Success }
    }

    /// By the `grpc-status` of an answer: those that Envoy maps to 500, 503 and 504 (`UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`,
    /// `UNAVAILABLE`, `DATA_LOSS`).
    #[must_use]
    pub fn of_grpc(status: u32) -> Self {
        if matches!(status, 2 | 4 | 13 | 14 | 15) { Self::Failure } else { Self::Success }
    }
}

/// An endpoint that is left out from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// For so many milliseconds.
    pub for_ms: u64,
    /// It was left out before, and is not forgiven yet.
    pub is_again: bool,
}

/// What is remembered of an endpoint. The default: nothing against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// In a row; on probation, those not yet made up for.
    failures: u16,
    /// How often it was left out, less those forgiven.
    times: u8,
    /// Left out before this time, in milliseconds of the caller's clock; after it, when a time was last forgiven.
    until_ms: u64,
}

impl Standing {
    /// After an exchange that ended at `now_ms`. Exchanges that end while it is left out change nothing: they were on
    /// their way, or had no other place to go.
    ///
    /// `room` is asked whether one more endpoint may be left out ([`room`]), only when it would be.
    #[must_use]
    pub fn observe(
        self,
        outcome: Outcome,
        policy: &Outlier,
        now_ms: u64,
        room: impl FnOnce() -> bool,
    ) -> Self {
        if policy.consecutive_errors == 0 {
            return Self::default();
        }
        match outcome {
            _ if self.is_out(now_ms) => self,
            Outcome::Success => self.succeeded(policy, now_ms),
            Outcome::Failure => self.failed(policy, now_ms, room),
        }
    }

    fn failed(self, policy: &Outlier, now_ms: u64, room: impl FnOnce() -> bool) -> Self {
        let failures = self.failures.saturating_add(1);
        let most = threshold(policy);
        if failures < most || !room() {
            return Self { failures, ..self };
        }
        let times = self.times.saturating_add(1);
        let pause = (policy.base * u32::from(times)).min(policy.max).as_millis();
        let until_ms = now_ms.saturating_add(u64::try_from(pause).unwrap_or(LAST_MS)).min(LAST_MS);
        Self { failures: most - 1, times, until_ms }
    }

    fn succeeded(self, policy: &Outlier, now_ms: u64) -> Self {
        let Self { failures, times, until_ms } = self;
        if times == 0 {
            return Self::default();
        }
        if failures > 0 {
            return Self { failures: failures - 1, ..self };
        }
        if u128::from(now_ms.saturating_sub(until_ms)) < policy.base.as_millis() {
            return self;
        }
        if times == 1 {
            return Self::default();
        }
        Self { failures, times: times - 1, until_ms: now_ms.min(LAST_MS) }
    }

    /// Whether it is left out at `now_ms`.
    #[must_use]
    pub fn is_out(self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    /// What is news at `now_ms` after an exchange that made this of `before`: that it is left out, if it is only now.
    #[must_use]
    pub fn news(self, before: Self, now_ms: u64) -> Option<LeftOut> {
        let is_news = self.is_out(now_ms) && !before.is_out(now_ms);
        is_news.then(|| LeftOut { for_ms: self.until_ms - now_ms, is_again: before.times > 0 })
    }

    /// When it is let in again, in milliseconds of the caller's clock, if it is out at `now_ms`.
    #[must_use]
    pub fn back_at_ms(self, now_ms: u64) -> Option<u64> {
        self.is_out(now_ms).then_some(self.until_ms)
    }

    /// How much of its share an endpoint that is not left out may have, in thousandths: all, unless it is on probation.
    #[must_use]
    pub fn share_per_mille(self, policy: &Outlier) -> u16 {
        let most = u32::from(threshold(policy));
        let missing = u32::from(self.failures).min(most);
        if self.times == 0 || missing == 0 {
            return FULL_WEIGHT;
        }
        let share = (most - missing) * u32::from(FULL_WEIGHT) / most;
        u16::try_from(share).unwrap_or(FULL_WEIGHT).max(LEAST_PER_MILLE)
    }

    /// In one word, to be shared between threads. Nothing against it is 0.
    #[must_use]
    pub fn pack(self) -> u64 {
        let Self { failures, times, until_ms } = self;
        u64::from(failures) << (TIME_BITS + TIMES_BITS) | u64::from(times) << TIME_BITS | until_ms
    }

    /// The reverse of [`Standing::pack`].
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        let failures = u16::try_from(word >> (TIME_BITS + TIMES_BITS)).unwrap_or(u16::MAX);
        let times = (word >> TIME_BITS) & ((1 << TIMES_BITS) - 1);
        Self { failures, times: u8::try_from(times).unwrap_or(u8::MAX), until_ms: word & LAST_MS }
    }
}

/// Failures in a row that lead to being left out, as far as they can be counted.
fn threshold(policy: &Outlier) -> u16 {
    u16::try_from(policy.consecutive_errors).unwrap_or(u16::MAX).max(1)
}

/// Whether one more of `endpoints` may be left out, of which `usable` still take requests. Never the last one; at
/// most `max_percent` of all, but one in any case unless that is 0: else it would be switched off for small sets
/// without anybody noticing. Refused and checked endpoints count as left out, too.
#[must_use]
pub fn room(policy: &Outlier, endpoints: usize, usable: usize) -> bool {
    let out = endpoints.saturating_sub(usable) + 1;
    let within = out * 100 <= endpoints * usize::from(policy.max_percent);
    usable > 1 && (within || (out == 1 && policy.max_percent > 0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Outcome::{Failure, Success};
    use super::*;
    use crate::balance::{Balancer, EndpointKey, Load, Random};

    fn after(standing: Standing, outcomes: &[Outcome], now: u64) -> Standing {
        let policy = Outlier::default();
        outcomes.iter().fold(standing, |s, o| s.observe(*o, &policy, now, || true))
    }

    #[test]
    fn five_failures_in_a_row_leave_it_out_longer_each_time() {
        let fresh = Standing::default();
        let other = after(fresh, &[Failure, Failure, Failure, Failure, Success, Failure], 0);
        assert!(!other.is_out(0));
        let mut standing = after(fresh, &[Failure; 5], 1_000);
        let mut now = 1_000;
        for times in [1, 2, 3] {
            assert_eq!(standing.back_at_ms(now), Some(now + times * 10_000));
            let before = Standing { until_ms: now, times: u8::from(times > 1), ..standing };
            let news = LeftOut { for_ms: times * 10_000, is_again: times > 1 };
            assert_eq!(standing.news(before, now), Some(news));
            assert_eq!(standing.news(standing, now), None);
            assert_eq!(after(standing, &[Failure, Success], now + 1), standing, "on their way");
            now += times * 10_000;
            assert!(!standing.is_out(now));
            // On probation one is enough.
            standing = after(standing, &[Failure], now);
        }
        for _ in 0..300 {
            now = standing.back_at_ms(now).unwrap();
            standing = after(standing, &[Failure], now);
        }
        assert_eq!(standing.back_at_ms(now), Some(now + 300_000));
    }

    #[test]
    fn successes_bring_it_back_little_by_little() {
        let policy = Outlier::default();
        let out = after(after(Standing::default(), &[Failure; 5], 0), &[Failure], 10_000);
        assert_eq!(out.back_at_ms(10_000), Some(30_000));
        let mut standing = out;
        for share in [200, 400, 600, 800, 1_000] {
            assert_eq!(standing.share_per_mille(&policy), share);
            standing = after(standing, &[Success], 31_000);
        }
        // It has its share, but is not forgiven: five more failures cost three times the base.
        let again = after(standing, &[Failure; 5], 32_000);
        assert_eq!(again.back_at_ms(32_000), Some(62_000));
        // One of the two times after the base, the other after as long again.
        standing = after(standing, &[Success], 40_000);
        assert_eq!(after(standing, &[Failure; 5], 40_000).back_at_ms(40_000), Some(60_000));
        assert_ne!(after(standing, &[Success], 49_999), Standing::default());
        assert_eq!(after(standing, &[Success], 50_000), Standing::default());
    }

    #[test]
    fn it_can_be_switched_off_and_changed() {
        let off = Outlier { consecutive_errors: 0, ..Outlier::default() };
        let bad = after(Standing::default(), &[Failure; 5], 0);
        assert_eq!(bad.observe(Failure, &off, 1, || true), Standing::default());
        let strict = Outlier { consecutive_errors: 1, ..Outlier::default() };
        let once = Standing::default().observe(Failure, &strict, 0, || true);
        assert!(once.is_out(9_999) && !once.is_out(10_000));
        assert_eq!(once.share_per_mille(&strict), 1_000);
        let long = Outlier { consecutive_errors: u32::MAX, ..Outlier::default() };
        assert!(
            !after(Standing::default(), &[Failure; 4], 0)
                .observe(Failure, &long, 0, || true)
                .is_out(0)
        );
        // Without room it waits at the threshold.
        let full = (0..9)
            .fold(Standing::default(), |s, _| s.observe(Failure, &Outlier::default(), 0, || false));
        assert!(!full.is_out(0) && after(full, &[Failure], 0).is_out(0));
    }

    #[test]
    fn what_counts() {
        let failures = |of: &dyn Fn(u16) -> Outcome, to: u16| {
            (0..to).filter(|s| of(*s) == Failure).collect::<Vec<_>>()
        };
        assert_eq!(failures(&Outcome::of_status, 507), [500, 502, 503, 504, 506]);
        assert_eq!(failures(&|s| Outcome::of_grpc(s.into()), 20), [2, 4, 13, 14, 15]);
    }

    #[test]
    fn how_many_may_be_left_out() {
        let policy = Outlier::default();
        for (endpoints, usable, allowed) in [
            (0, 0, false),
            (1, 1, false),
            (2, 2, true),
            (2, 1, false),
            (3, 3, true),
            (3, 2, false),
            (4, 3, true),
            (4, 2, false),
            (10, 6, true),
            (10, 5, false),
        ] {
            assert_eq!(room(&policy, endpoints, usable), allowed, "{endpoints} {usable}");
        }
        let few = Outlier { max_percent: 10, ..policy.clone() };
        assert!(room(&few, 3, 3) && !room(&few, 9, 8) && room(&few, 20, 19));
        let all = Outlier { max_percent: 100, ..policy.clone() };
        assert!(room(&all, 3, 2) && !room(&all, 3, 1));
        assert!(!room(&Outlier { max_percent: 0, ..policy }, 3, 3));
    }

    proptest! {
        #[test]
        fn the_last_one_is_never_left_out_nor_too_many(
            count in 1usize..8,
            max_percent in 0u8..=100,
            errors in 1u32..4,
            events in prop::collection::vec((0usize..8, prop::bool::weighted(0.8), 0u64..3_000), 0..300),
        ) {
            let policy = Outlier {
                consecutive_errors: errors,
                max_percent,
                base: Duration::from_secs(1),
                max: Duration::from_secs(20),
            };
            let mut words = vec![0u64; count];
            let mut now = 0;
            for (i, fails, passed) in events {
                now += passed;
                let i = i % count;
                let usable = words.iter().filter(|w| !Standing::unpack(**w).is_out(now)).count();
                let outcome = if fails { Failure } else { Success };
                let standing = Standing::unpack(words[i]);
                let next = standing.observe(outcome, &policy, now, || room(&policy, count, usable));
                words[i] = next.pack();
                prop_assert_eq!(Standing::unpack(words[i]), next);
                let share = next.share_per_mille(&policy);
                prop_assert!((LEAST_PER_MILLE..=FULL_WEIGHT).contains(&share));
                let out = words.iter().filter(|w| Standing::unpack(**w).is_out(now)).count();
                prop_assert!(out < count);
                prop_assert!(out <= 1 || out * 100 <= count * usize::from(max_percent));
                prop_assert!(next.back_at_ms(now).is_none_or(|at| at <= now + 20_000));
            }
        }
    }

    #[test]
    fn a_broken_endpoint_costs_few_requests_and_comes_back_when_mended() {
        let policy = Outlier::default();
        let names = ["a", "b", "c", "d"];
        let keys = names.map(EndpointKey::new);
        let mut balancer = Balancer::new(&keel_model::Balance::LeastRequest, &keys, None);
        let mut random = Random::new(3);
        let mut words = [0u64; 4];
        let mut failed_then = [0; 3];
        let mut hits_late = 0;
        // A request every millisecond for three minutes; the second endpoint is broken for the first two.
        for now in 0..180_000u64 {
            let standing = |i: usize| Standing::unpack(words[i]);
            let state = |i: usize| {
                let weight_per_mille = standing(i).share_per_mille(&policy);
                (!standing(i).is_out(now)).then_some(Load { weight_per_mille, ..Load::default() })
            };
            let i = balancer.pick(None, &mut random, state).unwrap();
            let fails = i == 1 && now < 120_000;
            failed_then[usize::try_from(now / 60_000).unwrap()] += u32::from(fails);
            hits_late += u32::from(i == 1 && now >= 160_000);
            let usable = (0..4).filter(|i| !standing(*i).is_out(now)).count();
            let outcome = if fails { Failure } else { Success };
            words[i] =
                standing(i).observe(outcome, &policy, now, || room(&policy, 4, usable)).pack();
        }
        // Five at first, and one each time that it is tried again (after 10, 30 and 60 s, then 100).
        assert!(
            failed_then[0] <= 8 && failed_then[1] <= 2 && failed_then[2] == 0,
            "{failed_then:?}"
        );
        assert!((4_000..6_000).contains(&hits_late), "{hits_late}");
    }
}
