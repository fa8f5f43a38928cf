//! The search for the limit: a state machine that is fed windows.
//!
//! - Time is cut into windows of at least [`WINDOW_MS`], [`WINDOW_LATENCIES`] times the latency and
//!   [`WINDOW_REQUESTS`] requests. The latency of a window is the geometric mean, in which one very slow answer weighs
//!   little, and a mixture of quick and slow requests stays comparable with itself.
//! - `gradient = clamp(TOLERANCE · base / latency, ½, 1)`, `target = limit · gradient + √limit`, and the limit goes a
//!   fifth of the way to the target. In quiet windows, which do not use half of it, it comes down slowly to
//!   [`QUIET_ROOM`] times what is used, so that it has something to say when load comes; it falls by a tenth in
//!   windows in which more than [`DROPS_PERCENT`] of the requests were dropped.
//! - `base` is the latency without a queue. It follows quiet windows in seconds, others in about a minute. Gradient2
//!   knows the latter only; under lasting overload it calls the queue normal and lets it grow. So when the limit
//!   is reached all the time, every [`REVIEW_MS`] a third of it is allowed for two windows: the queue empties, and the
//!   second window tells `base` anew, be the service quicker or slower than it was. If it is much quicker, a queue
//!   had passed for normal: the lower limit stays, and is divided again. This happens only while requests are
//!   refused anyway, and at all proxies at the same time, since otherwise the others would keep the queue full.
//! - The search begins at the maximum: a proxy that takes over from another one in full swing must not refuse what the
//!   other one served.

use keel_model::AdaptiveConcurrency;

/// Shortest window in milliseconds.
pub(super) const WINDOW_MS: u64 = 100;
/// Shortest window in latencies: what changed must have had time to show.
const WINDOW_LATENCIES: f64 = 2.0;
/// Fewest requests in a window.
const WINDOW_REQUESTS: u32 = 50;
/// A window that is not full by then is thrown away, in milliseconds.
pub(super) const WINDOW_MOST_MS: u64 = 30_000;
/// Latency may be this many times `base` without being held against the service: so much is noise.
const TOLERANCE: f64 = 1.25;
/// The time between looks at the empty service, while the limit is reached, in milliseconds.
const REVIEW_MS: u64 = 10_000;
/// A service that has little to do keeps this limit.
const QUIET_LEAST: f64 = 20.0;
/// A quiet service keeps this many times the requests that it has in flight.
const QUIET_ROOM: f64 = 5.0;
/// How far the limit goes there in one window.
const QUIET_PACE: f64 = 0.02;
/// How far the limit goes towards its target in one window.
const SMOOTHING: f64 = 0.2;
/// Percent of the requests of a window; up to here, drops have other reasons than load.
const DROPS_PERCENT: u32 = 5;
/// What is left of the limit after a window in which more were dropped.
const AFTER_DROP: f64 = 0.9;
/// When the latency of the empty service is below `base` by this factor, there was a queue before that passed for normal.
const QUEUED: f64 = 1.5;
/// What the limit is divided by to empty the queue.
const EMPTIED: f64 = 3.0;
/// How far `base` goes towards the latency of a quiet window.
const BASE_QUIET: f64 = 0.1;
/// How far `base` goes towards the latency of any other.
const BASE_BUSY: f64 = 0.002;

/// What is known so far.
#[derive(Clone, Debug)]
pub(super) struct Search {
    min: f64,
    max: f64,
    /// [`QUIET_LEAST`], within the bounds.
    quiet_least: f64,
    limit: f64,
    /// Latency without a queue: the logarithm of microseconds.
    base: Option<f64>,
    phase: Phase,
    /// Since when the limit is reached in every window.
    reached_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The limit follows the latency.
    Following,
    /// The limit is lowered so that the queue empties.
    Emptying,
    /// The queue is empty, and the latency is measured.
    Measuring,
}

/// Answers of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    pub age_ms: u64,
    pub samples: u32,
    /// Sum of the logarithms of latencies in microseconds.
    pub sum: f64,
    pub most_in_flight: u32,
    pub dropped: u32,
}

impl Search {
    pub fn new(policy: &AdaptiveConcurrency) -> Self {
        let min = f64::from(policy.min.max(1));
        let max = f64::from(policy.max).max(min);
        Self {
            min,
            max,
            quiet_least: QUIET_LEAST.clamp(min, max),
            limit: max,
            base: None,
            phase: Phase::Following,
            reached_ms: None,
        }
    }

    /// Requests that may be in flight now, at least one.
    pub fn limit(&self) -> u32 {
        match self.phase {
            Phase::Following => self.limit as u32,
            Phase::Emptying | Phase::Measuring => self.lowered() as u32,
        }
    }

    /// Looks at the window so far. True: it is closed, and the next one begins.
    pub fn look(&mut self, window: Window, now_ms: u64) -> bool {
        if window.age_ms >= WINDOW_MOST_MS {
            self.phase = Phase::Following;
            return true;
        }
        let latency_ms = self.base.map_or(0.0, |base| base.exp() / 1_000.0);
        let shown = (latency_ms * WINDOW_LATENCIES).min(WINDOW_MOST_MS as f64 / 2.0);
        // To empty the queue takes time and no statistics.
        let requests = window.samples.saturating_add(window.dropped);
        let full = requests >= WINDOW_REQUESTS || self.phase == Phase::Emptying;
        let close = full && window.age_ms >= WINDOW_MS && window.age_ms as f64 >= shown;
        if close {
            self.close(window, now_ms);
        }
        close
    }

    fn close(&mut self, window: Window, now_ms: u64) {
        let latency = window.sum / f64::from(window.samples.max(1));
        let requests = u64::from(window.samples) + u64::from(window.dropped);
        let dropped = u64::from(window.dropped) * 100 > requests * u64::from(DROPS_PERCENT);
        match self.phase {
            Phase::Emptying => self.phase = Phase::Measuring,
            Phase::Measuring if dropped => self.phase = Phase::Following,
            Phase::Measuring => self.measured(latency),
            Phase::Following if dropped => self.set(self.limit * AFTER_DROP),
            Phase::Following => self.follow(latency, window, now_ms),
        }
    }

    /// The latency at the lowered limit. What differs by no more than noise is taken half, as it is one window's.
    fn measured(&mut self, latency: f64) {
        let base = self.base.unwrap_or(latency);
        let same = (latency - base).abs() <= TOLERANCE.ln();
        self.base = Some(if same { f64::midpoint(latency, base) } else { latency });
        let lowered = self.lowered();
        if latency < base - QUEUED.ln() && lowered < self.limit {
            self.limit = lowered;
            self.phase = Phase::Emptying;
        } else {
            self.phase = Phase::Following;
        }
    }

    fn follow(&mut self, latency: f64, window: Window, now_ms: u64) {
        let base = *self.base.get_or_insert(latency);
        let in_flight = f64::from(window.most_in_flight);
        let reached = in_flight >= self.limit.floor();
        let quiet = in_flight < self.limit / 2.0;
        let quicker = latency < base - TOLERANCE.ln();
        let pace = if quiet || quicker { BASE_QUIET } else { BASE_BUSY };
        self.base = Some(base + (latency - base) * pace);
        if quiet {
            let room = (in_flight * QUIET_ROOM).max(self.quiet_least);
            self.set(self.limit - (self.limit - room).max(0.0) * QUIET_PACE);
        } else {
            let gradient = (TOLERANCE * (base - latency).exp()).clamp(0.5, 1.0);
            let target = self.limit * gradient + self.limit.sqrt();
            self.set(self.limit + (target - self.limit) * SMOOTHING);
        }
        if !reached {
            self.reached_ms = None;
            return;
        }
        let since = *self.reached_ms.get_or_insert(now_ms);
        let turn = now_ms / REVIEW_MS > since / REVIEW_MS;
        if turn && now_ms.saturating_sub(since) >= REVIEW_MS / 2 {
            self.phase = Phase::Emptying;
            self.reached_ms = None;
        }
    }

    fn lowered(&self) -> f64 {
        (self.limit / EMPTIED).max(self.min)
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(self.min, self.max);
    }
}
