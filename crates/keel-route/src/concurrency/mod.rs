//! Finds the number of requests that a service can work on at a time, by its latency.
//!
//! More requests than a service has room for only wait inside it: they are not answered sooner, and all others
//! later. So the limit grows while latency stays what it is without a queue, and falls when it rises (`search`).
//! Gradient2 of Netflix' concurrency-limits is the model, changed where it is known to go astray.
//!
//! A [`Limiter`] belongs to a service and is shared by the workers of a proxy, without waiting: answers are added to
//! counters, and the one that finds a window full works out the next limit. Several proxies find their parts of what the
//! service can take; for that their clocks have to agree roughly (Unix time), because they look at the empty service
//! at the same moments.
//!
//! Latency means the time from sending a request to the beginning of its answer, and in flight is a request for as
//! long. Opaque and upgraded connections are none of its business: they last as long as they like.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use keel_model::AdaptiveConcurrency;

use crate::breaker::{Bound, Full, Gate, Pass};

mod search;

use search::{Search, WINDOW_MS, Window};

/// Logarithms are added up as multiples of this part.
const FRACTION: f64 = 65_536.0;

/// Lets in as many requests as the service can take.
#[derive(Debug)]
pub struct Limiter {
    gate: Arc<Gate>,
    limit: AtomicU32,
    /// The window so far: when it began, answers, the sum of the logarithms of their microseconds, and so on.
    begun_ms: AtomicU64,
    samples: AtomicU32,
    sum: AtomicU64,
    most_in_flight: AtomicU32,
    dropped: AtomicU32,
    /// Only ever tried: who finds it taken has nothing to do.
    search: Mutex<Search>,
}

/// What became of a request that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Its answer began after so many microseconds.
    Answered(u64),
    /// It was not answered in time, or refused for load (503, 429): its latency says nothing.
    Dropped,
}

impl Limiter {
    /// A limiter that knows nothing yet, at `now_ms`: it begins at the maximum.
    #[must_use]
    pub fn new(policy: &AdaptiveConcurrency, now_ms: u64) -> Self {
        let search = Search::new(policy);
        Self {
            gate: Gate::new(Bound::Concurrency),
            limit: AtomicU32::new(search.limit()),
            begun_ms: AtomicU64::new(now_ms),
            samples: AtomicU32::new(0),
            sum: AtomicU64::new(0),
            most_in_flight: AtomicU32::new(0),
            dropped: AtomicU32::new(0),
            search: Mutex::new(search),
        }
    }

    /// Requests that may be in flight now, at least one.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Lets a request in, if there is room. The pass is held until [`Limiter::on_complete`] has been told.
    ///
    /// # Errors
    /// When as many are in flight as the service can take.
    pub fn enter(&self) -> Result<Pass, Full> {
        self.gate.enter(Some(self.limit()))
    }

    /// A request that was let in has been answered, or will not be, at `now_ms`. Who gives up because the client is
    /// gone says nothing.
    pub fn on_complete(&self, completion: Completion, now_ms: u64) {
        self.most_in_flight.fetch_max(self.gate.inside(), Relaxed);
        match completion {
            Completion::Answered(latency_us) => {
                let logarithm = (latency_us.max(1) as f64).ln();
                self.sum.fetch_add((logarithm * FRACTION) as u64, Relaxed);
                self.samples.fetch_add(1, Relaxed);
            }
            Completion::Dropped => {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
        if now_ms.saturating_sub(self.begun_ms.load(Relaxed)) >= WINDOW_MS
            && let Ok(mut search) = self.search.try_lock()
        {
            self.look(&mut search, now_ms);
        }
    }

    /// Closes the window if it is time. What others add meanwhile falls into one window or the next.
    fn look(&self, search: &mut Search, now_ms: u64) {
        let window = Window {
            age_ms: now_ms.saturating_sub(self.begun_ms.load(Relaxed)),
            samples: self.samples.load(Relaxed),
            sum: self.sum.load(Relaxed) as f64 / FRACTION,
            most_in_flight: self.most_in_flight.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        };
        if search.look(window, now_ms) {
            self.samples.store(0, Relaxed);
            self.sum.store(0, Relaxed);
            self.most_in_flight.store(0, Relaxed);
            self.dropped.store(0, Relaxed);
            self.begun_ms.store(now_ms, Relaxed);
            self.limit.store(search.limit(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
