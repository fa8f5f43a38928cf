//! What may be tried again without the risk of doing a thing twice.
//!
//! Three situations, by what the endpoint can have seen: nothing (the connection was not made, or it took
//! not one byte); perhaps nothing (a kept-alive connection turned out to be closed); perhaps everything (the
//! connection broke before the first byte of an answer, the answer did not begin in time, or it has a status that
//! the policy counts as none). Once a byte of the answer has been passed on nothing is tried again. A request that is
//! not idempotent (RFC 9110, 9.2.2) is repeated only in the first situation.
//!
//! Only repeats that put load on a service twice draw on the [`Budget`]; the policy bounds them for each request.

use std::time::Duration;

use keel_model::Retry;

use crate::balance::Random;

/// Connections tried for one request before waiting for news of the service.
pub const MAX_CONNECTS: u32 = 4;
/// Times that a request is sent again at most to an endpoint that may have taken it, whatever the policy says.
pub const MAX_ATTEMPTS: u32 = 10;
/// Times that a request is sent because endpoints did not take it, beyond the repeats that the policy allows.
const FREE_SENDS: u32 = 3;
/// Retries that are always there to begin with, so that little traffic can retry too.
const FLOOR: u64 = 100;
/// The floor grows back by this many retries per second.
const FLOOR_PER_SECOND: u64 = 10;
/// The most retries that busy times can save up: those in flight at an instance that dies, all at once.
const MOST: u64 = 2_000;
/// Pause before the second repeat; doubles with each further one, as Envoy's.
const PAUSE: Duration = Duration::from_millis(25);
/// The longest such pause.
const PAUSE_MOST: Duration = Duration::from_millis(250);

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The endpoint took no byte of the request, or said that it has not looked at it (HTTP/2: `REFUSED_STREAM`, or a
    /// stream beyond the last one of a `GOAWAY`; RFC 9113, 8.7).
    NothingSent,
    /// A kept-alive connection was closed before any byte of an answer.
    Stale,
    /// A new connection broke before any byte of an answer.
    CutOff,
    /// The connection broke after the answer had begun, or the endpoint answered nonsense.
    Answering,
    /// The answer did not begin within the time of one try.
    TimedOut,
    /// The answer has this status, and nothing of it has been passed on. To give up means to pass it on.
    Status(u16),
}

/// The request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// Everything that was sent of it is still at hand.
    pub repeatable: bool,
    /// How often it was sent, the failed attempt included.
    pub sends: u32,
    /// How often it was repeated on budget: after an endpoint may have taken it.
    pub cut_off_retries: u32,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it again.
    Retry,
    /// Send it again, if the budget has something left.
    RetryOnBudget,
    /// Tell the client.
    GiveUp,
}

/// What to do after `failure` of `request`, where nobody says otherwise.
#[must_use]
pub fn verdict(failure: Failure, request: Request) -> Verdict {
    judge(&Retry::default(), failure, request)
}

/// What to do after `failure` of `request` under a policy.
#[must_use]
pub fn judge(policy: &Retry, failure: Failure, request: Request) -> Verdict {
    let attempts = policy.attempts.min(MAX_ATTEMPTS);
    if !request.repeatable || request.sends >= attempts + FREE_SENDS {
        return Verdict::GiveUp;
    }
    let again = request.idempotent && request.cut_off_retries < attempts;
    match failure {
        Failure::NothingSent => Verdict::Retry,
        Failure::Stale if request.idempotent => Verdict::Retry,
        Failure::CutOff | Failure::TimedOut if again => Verdict::RetryOnBudget,
        Failure::Status(status) if again && policy.on_status.contains(&status) => {
            Verdict::RetryOnBudget
        }
        _ => Verdict::GiveUp,
    }
}

/// How long the answer to one try may take to begin, when `left` is what remains for all tries.
#[must_use]
pub fn try_timeout(policy: &Retry, left: Duration) -> Duration {
    policy.per_try_timeout.map_or(left, |each| each.min(left))
}

/// How long to wait before a request is repeated on budget for the `repeat`-th time (from 1). The first goes
/// elsewhere at once; when that fails too the service itself has a problem, and gets a moment of a random length.
#[must_use]
pub fn pause(repeat: u32, random: &mut Random) -> Duration {
    let Some(doublings) = repeat.checked_sub(2) else { return Duration::ZERO };
    let most = PAUSE.saturating_mul(1 << doublings.min(16)).min(PAUSE_MOST);
    let micros = usize::try_from(most.as_micros()).unwrap_or(usize::MAX);
    Duration::from_micros(random.below(micros) as u64)
}

/// Keeps retries a fraction of the traffic, so that a failing service is not buried under them.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Thousandths of a retry.
    saved: u64,
    /// What each request adds.
    per_mille: u64,
    refilled_ms: u64,
}

impl Budget {
    /// The usual budget with its floor available at `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self::with_percent(Retry::default().budget_percent, now_ms)
    }

    /// A budget of so many retries per hundred requests, with its floor available at `now_ms`. With 0 there are none.
    #[must_use]
    pub fn with_percent(percent: u8, now_ms: u64) -> Self {
        let per_mille = u64::from(percent) * 10;
        Self { saved: FLOOR * 1_000, per_mille, refilled_ms: now_ms }
    }

    /// Another share from now on; what was saved stays.
    pub fn set_percent(&mut self, percent: u8) {
        self.per_mille = u64::from(percent) * 10;
    }

    /// A request came.
    pub fn request(&mut self) {
        self.saved = (self.saved + self.per_mille).min(MOST * 1_000);
    }

    /// Takes one retry out, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.refilled_ms).min(60_000);
        self.refilled_ms = now_ms.max(self.refilled_ms);
        if self.saved < FLOOR * 1_000 {
            self.saved = (self.saved + passed * FLOOR_PER_SECOND).min(FLOOR * 1_000);
        }
        let enough = self.saved >= 1_000 && self.per_mille > 0;
        if enough {
            self.saved -= 1_000;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure() -> impl Strategy<Value = Failure> {
        prop_oneof![
            Just(Failure::NothingSent),
            Just(Failure::Stale),
            Just(Failure::CutOff),
            Just(Failure::Answering),
            Just(Failure::TimedOut),
            Just(Failure::Status(503)),
            Just(Failure::Status(418)),
        ]
    }

    fn policy() -> impl Strategy<Value = Retry> {
        let statuses = prop::collection::vec(500u16..505, 0..3);
        (0u32..20, statuses).prop_map(|(attempts, on_status)| Retry {
            attempts,
            on_status,
            ..Retry::default()
        })
    }

    proptest! {
        #[test]
        fn what_may_have_been_done_is_never_done_twice(
            policy in policy(),
            failure in failure(),
            repeatable: bool,
            sends in 1u32..10,
            cut_off_retries in 0u32..10,
        ) {
            let request = Request { idempotent: false, repeatable, sends, cut_off_retries };
            if judge(&policy, failure, request) != Verdict::GiveUp {
                prop_assert_eq!(failure, Failure::NothingSent);
            }
        }

        #[test]
        fn every_request_ends_and_is_repeated_as_often_as_allowed(
            policy in policy(),
            failures in prop::collection::vec(failure(), 20),
            idempotent: bool,
        ) {
            let mut request = Request { idempotent, repeatable: true, sends: 0, cut_off_retries: 0 };
            for failure in failures {
                request.sends += 1;
                match judge(&policy, failure, request) {
                    Verdict::GiveUp => return Ok(()),
                    Verdict::RetryOnBudget => request.cut_off_retries += 1,
                    Verdict::Retry => {}
                }
                prop_assert!(request.cut_off_retries <= policy.attempts);
            }
            prop_assert!(false, "still trying after 20 failures");
        }

        #[test]
        fn retries_stay_within_their_share_and_the_floor(
            percent in 0u8..=100,
            rounds in prop::collection::vec((0u64..50, 0u64..50), 1..200),
        ) {
            let mut budget = Budget::with_percent(percent, 0);
            let (mut requests, mut retries) = (0, 0);
            for (come, wanted) in rounds {
                (0..come).for_each(|_| budget.request());
                requests += come;
                retries += (0..wanted).filter(|_| budget.take(0)).count() as u64;
                prop_assert!(retries <= FLOOR + requests * u64::from(percent) / 100);
                prop_assert!(percent > 0 || retries == 0);
            }
        }
    }

    #[test]
    fn table() {
        let get = Request { idempotent: true, repeatable: true, sends: 1, cut_off_retries: 0 };
        let post = Request { idempotent: false, ..get };
        assert_eq!(verdict(Failure::NothingSent, post), Verdict::Retry);
        assert_eq!(verdict(Failure::Stale, get), Verdict::Retry);
        assert_eq!(verdict(Failure::Stale, post), Verdict::GiveUp);
        assert_eq!(verdict(Failure::CutOff, get), Verdict::RetryOnBudget);
        assert_eq!(verdict(Failure::CutOff, post), Verdict::GiveUp);
        let again = Request { cut_off_retries: 1, sends: 2, ..get };
        assert_eq!(verdict(Failure::CutOff, again), Verdict::GiveUp);
        assert_eq!(verdict(Failure::Answering, get), Verdict::GiveUp);
        let long = Request { repeatable: false, ..get };
        assert_eq!(verdict(Failure::CutOff, long), Verdict::GiveUp);
    }

    #[test]
    fn policies() {
        let get = Request { idempotent: true, repeatable: true, sends: 1, cut_off_retries: 0 };
        let post = Request { idempotent: false, ..get };
        let usual = Retry::default();
        assert_eq!(judge(&usual, Failure::TimedOut, get), Verdict::RetryOnBudget);
        assert_eq!(judge(&usual, Failure::TimedOut, post), Verdict::GiveUp);
        assert_eq!(judge(&usual, Failure::Status(503), get), Verdict::GiveUp);
        let more = Retry { attempts: 3, on_status: vec![502, 503], ..Retry::default() };
        assert_eq!(judge(&more, Failure::Status(503), get), Verdict::RetryOnBudget);
        assert_eq!(judge(&more, Failure::Status(500), get), Verdict::GiveUp);
        assert_eq!(judge(&more, Failure::Status(503), post), Verdict::GiveUp);
        let third = Request { sends: 5, cut_off_retries: 2, ..get };
        assert_eq!(judge(&more, Failure::CutOff, third), Verdict::RetryOnBudget);
        let fourth = Request { cut_off_retries: 3, ..third };
        assert_eq!(judge(&more, Failure::CutOff, fourth), Verdict::GiveUp);
        assert_eq!(judge(&more, Failure::NothingSent, fourth), Verdict::Retry);
        let none = Retry { attempts: 0, ..Retry::default() };
        assert_eq!(judge(&none, Failure::CutOff, get), Verdict::GiveUp);
        assert_eq!(judge(&none, Failure::NothingSent, post), Verdict::Retry);
    }

    #[test]
    fn times_of_tries() {
        let second = Duration::from_secs(1);
        assert_eq!(try_timeout(&Retry::default(), second), second);
        let each = Retry { per_try_timeout: Some(second / 4), ..Retry::default() };
        assert_eq!(try_timeout(&each, second), second / 4);
        assert_eq!(try_timeout(&each, second / 8), second / 8);
        let mut random = Random::new(1);
        let mut longest = |repeat| (0..99).map(|_| pause(repeat, &mut random)).max().unwrap();
        assert_eq!(longest(1), Duration::ZERO);
        for (repeat, most) in [(2, PAUSE), (3, PAUSE * 2), (9, PAUSE_MOST), (u32::MAX, PAUSE_MOST)]
        {
            let longest = longest(repeat);
            assert!(most * 3 / 4 < longest && longest < most, "{repeat}: {longest:?}");
        }
    }

    #[test]
    fn an_empty_budget_grows_back_with_time() {
        let mut budget = Budget::new(0);
        assert_eq!((0..200).filter(|_| budget.take(0)).count(), 100);
        assert!(!budget.take(99));
        assert_eq!((0..200).filter(|_| budget.take(1_000)).count(), 10);
    }
}
