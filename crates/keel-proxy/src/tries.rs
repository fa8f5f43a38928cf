//! The tries of one request: whether there is another one, and what each says of its endpoint.

use std::rc::Rc;
use std::time::Instant;

use keel_route::concurrency::Completion;
use keel_route::outlier::Outcome;
use keel_route::retry::{self, Failure, Verdict};

use crate::cluster::WorkerEndpoint;
use crate::counted::Counted;

/// How often a request was sent, and why again.
#[derive(Debug, Default)]
pub struct Tries {
    sends: u32,
    /// Repeated although an endpoint may have taken it.
    repeats: u32,
}

/// The request, as far as repeating it goes.
#[derive(Clone, Copy, Debug)]
pub struct Repeatable {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// Everything that was sent of it is still at hand.
    pub kept: bool,
}

impl Tries {
    /// It is sent once more.
    pub fn sent(&mut self) {
        self.sends += 1;
    }

    /// Whether it is to be sent again after `failure`. Takes from the budget if so.
    pub fn again(&mut self, request: &Counted, failure: Failure, state: Repeatable) -> bool {
        let policy = request.cluster.policy();
        let state = retry::Request {
            idempotent: state.idempotent,
            repeatable: state.kept,
            sends: self.sends,
            cut_off_retries: self.repeats,
        };
        match retry::judge(&policy.retry, failure, state) {
            Verdict::Retry => true,
            Verdict::RetryOnBudget => {
                let now = request.session.worker.shared.now_ms();
                let granted = request.cluster.budget.borrow_mut().take(now);
                self.repeats += u32::from(granted);
                granted
            }
            Verdict::GiveUp => false,
        }
    }

    /// Before a request goes out again that an endpoint may have taken: the first time at once, then after a moment.
    pub async fn pause(&self, request: &Counted) {
        let pause = {
            let random = &mut *request.session.worker.random.borrow_mut();
            retry::pause(self.repeats, random)
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// One try at one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    pub endpoint: Rc<WorkerEndpoint>,
    /// When it began, where that matters.
    begun: Option<Instant>,
}

impl Trial {
    pub fn begin(request: &Counted, endpoint: &Rc<WorkerEndpoint>) -> Self {
        request.tries(endpoint);
        let begun = request.cluster.is_timed().then(Instant::now);
        Self { endpoint: Rc::clone(endpoint), begun }
    }

    fn took_us(&self) -> Option<u64> {
        let took = self.begun?.elapsed().as_micros();
        Some(u64::try_from(took).unwrap_or(u64::MAX))
    }

    /// The head of the answer has come.
    pub fn answered(&self, request: &Counted, status: u16) {
        let tick_ms = request.session.worker.deadlines.now_ms();
        let outcome = Outcome::of_status(status);
        request.cluster.judge(&self.endpoint, outcome, tick_ms);
        let Some(took) = self.took_us() else { return };
        if outcome == Outcome::Success {
            self.endpoint.shared.answered_after(took, tick_ms);
        } else {
            self.endpoint.shared.failed_after(took, tick_ms);
        }
        request.completed(match status {
            429 | 503 => Completion::Dropped,
            _ => Completion::Answered(took),
        });
    }

    /// No answer has come, or none that can be understood.
    pub fn failed(&self, request: &Counted, failure: Failure) {
        // Of these it has seen nothing, or nothing is its fault.
        if matches!(failure, Failure::NothingSent | Failure::Stale | Failure::Status(_)) {
            return;
        }
        let tick_ms = request.session.worker.deadlines.now_ms();
        request.cluster.judge(&self.endpoint, Outcome::Failure, tick_ms);
        if let Some(took) = self.took_us() {
            self.endpoint.shared.failed_after(took, tick_ms);
            request.completed(Completion::Dropped);
        }
    }
}
