//! What may be tried again without the risk of doing a thing twice.
//!
//! Three situations, by what the endpoint can have seen: nothing (the connection was not made, or it took
//! not one byte); perhaps nothing (a kept-alive connection turned out to be closed); perhaps everything (the
//! connection broke before the first byte of an answer). Once a byte of the answer has arrived nothing is
//! tried again. A request that is not idempotent (RFC 9110, 9.2.2) is repeated only in the first situation.
//!
//! Only repeats that put load on a service twice draw on the [`Budget`].

/// Connections tried for one request before waiting for news of the service.
pub const MAX_CONNECTS: u32 = 4;
/// Times that a request is sent at all, whatever happens.
pub const MAX_SENDS: u32 = 4;
/// Times that a request is sent again after it was cut off by an endpoint that had taken it.
pub const MAX_CUT_OFF_RETRIES: u32 = 1;
/// Retries per thousand requests that the budget allows in the long run (20 %).
const PER_MILLE: u64 = 200;
/// Retries that are always there to begin with, so that little traffic can retry too.
const FLOOR: u64 = 100;
/// The floor grows back by this many retries per second.
const FLOOR_PER_SECOND: u64 = 10;
/// The most retries that busy times can save up: those in flight at an instance that dies, all at once.
const MOST: u64 = 2_000;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The endpoint took no byte of the request.
    NothingSent,
    /// A kept-alive connection was closed before any byte of an answer.
    Stale,
    /// A new connection broke before any byte of an answer.
    CutOff,
    /// The connection broke after the answer had begun, or the endpoint answered nonsense.
    Answering,
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
    /// How often it was repeated after [`Failure::CutOff`].
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

/// What to do after `failure` of `request`.
#[must_use]
pub fn verdict(failure: Failure, request: Request) -> Verdict {
    if !request.repeatable || request.sends >= MAX_SENDS {
        return Verdict::GiveUp;
    }
    match failure {
        Failure::NothingSent => Verdict::Retry,
        Failure::Stale if request.idempotent => Verdict::Retry,
        Failure::CutOff if request.idempotent && request.cut_off_retries < MAX_CUT_OFF_RETRIES => {
            Verdict::RetryOnBudget
        }
        Failure::Stale | Failure::CutOff | Failure::Answering => Verdict::GiveUp,
    }
}

/// Keeps retries a fraction of the traffic, so that a failing service is not buried under them.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Thousandths of a retry.
    saved: u64,
    refilled_ms: u64,
}

impl Budget {
    /// A budget with its floor available at `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { saved: FLOOR * 1_000, refilled_ms: now_ms }
    }

    /// A request came.
    pub fn request(&mut self) {
        self.saved = (self.saved + PER_MILLE).min(MOST * 1_000);
    }

    /// Takes one retry out, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.refilled_ms).min(60_000);
        self.refilled_ms = now_ms.max(self.refilled_ms);
        if self.saved < FLOOR * 1_000 {
            self.saved = (self.saved + passed * FLOOR_PER_SECOND).min(FLOOR * 1_000);
        }
        let enough = self.saved >= 1_000;
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
            Just(Failure::Answering)
        ]
    }

    proptest! {
        #[test]
        fn what_may_have_been_done_is_never_done_twice(
            failure in failure(),
            repeatable: bool,
            sends in 1u32..10,
            cut_off_retries in 0u32..10,
        ) {
            let request = Request { idempotent: false, repeatable, sends, cut_off_retries };
            if verdict(failure, request) != Verdict::GiveUp {
                prop_assert_eq!(failure, Failure::NothingSent);
            }
        }

        #[test]
        fn every_request_ends(failures in prop::collection::vec(failure(), 20), idempotent: bool) {
            let mut request = Request { idempotent, repeatable: true, sends: 0, cut_off_retries: 0 };
            for failure in failures {
                request.sends += 1;
                match verdict(failure, request) {
                    Verdict::GiveUp => return Ok(()),
                    Verdict::RetryOnBudget => request.cut_off_retries += 1,
                    Verdict::Retry => {}
                }
            }
            prop_assert!(false, "still trying after 20 failures");
        }

        #[test]
        fn retries_stay_within_a_fifth_and_the_floor(
            rounds in prop::collection::vec((0u64..50, 0u64..50), 1..200),
        ) {
            let mut budget = Budget::new(0);
            let (mut requests, mut retries) = (0, 0);
            for (come, wanted) in rounds {
                (0..come).for_each(|_| budget.request());
                requests += come;
                retries += (0..wanted).filter(|_| budget.take(0)).count() as u64;
                prop_assert!(retries <= FLOOR + requests / 5);
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
    fn an_empty_budget_grows_back_with_time() {
        let mut budget = Budget::new(0);
        assert_eq!((0..200).filter(|_| budget.take(0)).count(), 100);
        assert!(!budget.take(99));
        assert_eq!((0..200).filter(|_| budget.take(1_000)).count(), 10);
    }
}
