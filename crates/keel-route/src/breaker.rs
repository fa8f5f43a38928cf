//! Circuit breaking: bounds on what may be open or waiting, counted over all workers of a proxy.
//!
//! A [`Gate`] lets in as many at a time as the policy says and refuses the next at once; who is in holds a [`Pass`]
//! until it is dropped. No locks: a counter that never exceeds its bound, however many threads ask at once. Where
//! the policy sets no bound nothing is counted, so that nobody pays for it; a bound that appears later counts those
//! who come from then on.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use keel_model::TrafficLimits;

/// Requests that may wait for a connection or an endpoint, where the policy does not say.
pub const MAX_PENDING: u32 = 1024;

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Connections to one endpoint.
    Connections,
    /// Requests that wait for a connection or an endpoint.
    Pending,
    /// Requests in flight at the service.
    Requests,
    /// Requests in flight at the service, as many as it can take ([`crate::concurrency`]).
    Concurrency,
}

/// A bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} at the same time are allowed, and there are as many", .bound.name(*.limit))]
pub struct Full {
    /// Which bound.
    pub bound: Bound,
    /// Where it lies.
    pub limit: u32,
}

impl Bound {
    fn name(self, limit: u32) -> String {
        let what = match self {
            Self::Connections => "connections to an endpoint",
            Self::Pending => "waiting requests",
            Self::Requests | Self::Concurrency => "requests in flight",
        };
        format!("{limit} {what}")
    }
}

/// Counts those that are in.
#[derive(Debug)]
pub struct Gate {
    bound: Bound,
    inside: AtomicU32,
}

impl Gate {
    /// A gate with nobody inside.
    #[must_use]
    pub fn new(bound: Bound) -> Arc<Self> {
        Arc::new(Self { bound, inside: AtomicU32::new(0) })
    }

    /// Lets one more in, if fewer than `limit` are; without a limit anybody, uncounted.
    ///
    /// # Errors
    /// When it is full.
    pub fn enter(self: &Arc<Self>, limit: Option<u32>) -> Result<Pass, Full> {
        let Some(limit) = limit else { return Ok(Pass(None)) };
        let one_more = |inside: u32| (inside < limit).then(|| inside + 1);
        match self.inside.fetch_update(AcqRel, Acquire, one_more) {
            Ok(_) => Ok(Pass(Some(Arc::clone(self)))),
            Err(_) => Err(Full { bound: self.bound, limit }),
        }
    }

    /// How many are in.
    #[must_use]
    pub fn inside(&self) -> u32 {
        self.inside.load(Relaxed)
    }
}

/// A place inside, given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Pass(Option<Arc<Gate>>);

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.inside.fetch_sub(1, Release);
        }
    }
}

/// The gates of one service. Connections have theirs at each endpoint: [`Gate::new`] with [`Bound::Connections`].
#[derive(Debug)]
pub struct Breaker {
    requests: Arc<Gate>,
    pending: Arc<Gate>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { requests: Gate::new(Bound::Requests), pending: Gate::new(Bound::Pending) }
    }
}

impl Breaker {
    /// For a request from when it is placed to the end of its answer.
    ///
    /// # Errors
    /// When as many are in flight as may be.
    pub fn request(&self, limits: &TrafficLimits) -> Result<Pass, Full> {
        self.requests.enter(limits.max_requests)
    }

    /// For a request while it waits for a connection or an endpoint.
    ///
    /// # Errors
    /// When as many are waiting as may.
    pub fn pending(&self, limits: &TrafficLimits) -> Result<Pass, Full> {
        self.pending.enter(limits.max_pending.or(Some(MAX_PENDING)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_beyond_and_says_which_bound() {
        let breaker = Breaker::default();
        let limits =
            TrafficLimits { max_requests: Some(2), max_pending: Some(0), max_connections: Some(1) };
        let (first, second) = (breaker.request(&limits), breaker.request(&limits));
        assert!(first.is_ok() && second.is_ok());
        let full = breaker.request(&limits).unwrap_err();
        assert_eq!(full, Full { bound: Bound::Requests, limit: 2 });
        assert_eq!(
            full.to_string(),
            "2 requests in flight at the same time are allowed, and there are as many"
        );
        drop(first);
        let third = breaker.request(&limits);
        assert!(third.is_ok());
        assert_eq!(breaker.pending(&limits).unwrap_err().bound, Bound::Pending);
        let gate = Gate::new(Bound::Connections);
        let _open = gate.enter(limits.max_connections).unwrap();
        assert_eq!(gate.enter(limits.max_connections).unwrap_err().bound, Bound::Connections);
    }

    #[test]
    fn without_a_bound_nothing_is_counted_but_waiting_always_has_one() {
        let breaker = Breaker::default();
        let none = TrafficLimits::default();
        let passes: Vec<_> = (0..10).map(|_| breaker.request(&none).unwrap()).collect();
        assert_eq!(breaker.requests.inside(), 0);
        // A bound that comes later is neither used up by them nor freed by their end.
        let one = TrafficLimits { max_requests: Some(1), ..none.clone() };
        let counted = breaker.request(&one).unwrap();
        drop(passes);
        assert!(breaker.request(&one).is_err());
        drop(counted);
        assert!(breaker.request(&one).is_ok());
        let waiting: Vec<_> = (0..MAX_PENDING).map(|_| breaker.pending(&none).unwrap()).collect();
        assert!(breaker.pending(&none).is_err());
        drop(waiting);
        assert_eq!(breaker.pending.inside(), 0);
    }

    #[test]
    fn threads_never_exceed_it_together() {
        const LIMIT: u32 = 3;
        let gate = Gate::new(Bound::Requests);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let Ok(_pass) = gate.enter(Some(LIMIT)) else { continue };
                        assert!(inside.fetch_add(1, AcqRel) < LIMIT);
                        std::thread::yield_now();
                        inside.fetch_sub(1, AcqRel);
                    }
                });
            }
        });
        assert_eq!(gate.inside(), 0);
    }
}
