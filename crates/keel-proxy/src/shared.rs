//! What all threads share: counters, load and ejection of endpoints. Atomics only, no locks, but for those who wait
//! anyway ([`crate::waiting`]) and for what is seldom ([`crate::notices`]).
//!
//! Counters are kept per worker, each on cache lines of its own, and summed when asked for. The number in flight
//! at an endpoint is one atomic, because every worker balances by it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use keel_model::{InstanceId, Outlier, TrafficPolicy};
use keel_route::balance::{FULL_WEIGHT, Load};
use keel_route::breaker::{Bound, Breaker, Gate};
use keel_route::eject::Ejection;
use keel_route::ewma::Ewma;
use keel_route::outlier::{LeftOut, Outcome, Standing};
use keel_route::shed::Shed;
use keel_route::slow_start;
use keel_route::snapshot::{ClusterId, ClusterStats};
use tokio::sync::{Notify, mpsc};

use crate::limits::PLACE_WANTED;
use crate::notices::Notices;
use crate::tls::{Listeners, Upstreams};
use crate::waiting::Waiting;

/// What workers tell the control thread, and the clock they share with it.
#[derive(Debug)]
pub struct Shared {
    /// Wakes the control thread when the last request at a draining endpoint ended.
    pub drained: Notify,
    /// Instances that refused a connection.
    pub refused: mpsc::Sender<InstanceId>,
    /// Zero of the clock in milliseconds that ejection uses.
    pub started: Instant,
    /// How long a request is held.
    pub hold: std::time::Duration,
    /// How many workers there are.
    pub workers: usize,
    /// Connections that one worker may have.
    pub max_connections: usize,
    /// TLS that ends here.
    pub tls: Listeners,
    /// TLS towards endpoints.
    pub upstreams: Upstreams,
    /// Open client connections of all workers.
    pub connections: AtomicUsize,
    /// What is refused: 0 nothing, [`NEW_CONNECTIONS`], or requests, which may come back after so many milliseconds.
    pub shed: AtomicU64,
    /// What people are to be told of endpoints; seldom anything.
    pub notices: Notices,
}

/// Connections that are new are refused, as a value of [`Shared::shed`].
const NEW_CONNECTIONS: u64 = 1;

impl Shared {
    /// Two workers that nobody runs.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn for_fuzzing() -> Self {
        Self {
            drained: Notify::new(),
            refused: mpsc::channel(1).0,
            started: Instant::now(),
            hold: std::time::Duration::ZERO,
            workers: 2,
            max_connections: 1,
            tls: Listeners::default(),
            upstreams: Upstreams::default(),
            connections: AtomicUsize::new(0),
            shed: AtomicU64::new(0),
            notices: Notices::default(),
        }
    }

    /// Notes what is refused from now on.
    pub fn set_shed(&self, shed: Shed) {
        self.shed.store(
            match shed {
                Shed::No => 0,
                Shed::NewConnections => NEW_CONNECTIONS,
                Shed::Requests(wait) => {
                    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(NEW_CONNECTIONS + 1)
                }
            },
            Relaxed,
        );
    }

    /// Whether new connections are refused.
    pub fn refuses_connections(&self) -> bool {
        self.shed.load(Relaxed) != 0
    }

    /// How long those have to wait whose request is refused: all of them, or only on connections that came when
    /// there was little memory already.
    pub fn sheds(&self, late: bool) -> Option<Duration> {
        match self.shed.load(Relaxed) {
            0 => None,
            NEW_CONNECTIONS => late.then_some(Duration::from_secs(1)),
            wait_ms => Some(Duration::from_millis(wait_ms)),
        }
    }

    /// Milliseconds since the proxy started.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One endpoint of one cluster, as all workers see it. What is 0 is not known.
#[derive(Debug)]
pub struct EndpointShared {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub address: SocketAddr,
    in_flight: AtomicU64,
    ejection: AtomicU64,
    /// What its answers were like ([`Standing`]).
    standing: AtomicU64,
    /// How fast they were ([`Ewma`]).
    ewma: AtomicU64,
    ready_since_ms: AtomicU64,
    draining: AtomicBool,
    /// Left out by the checks of the proxy.
    checked_out: AtomicBool,
    /// Its connections.
    pub connections: Arc<Gate>,
    /// When one could not be made because of their number.
    place_wanted_ms: AtomicU64,
    /// Those of all workers who wait for one.
    pub waiting: Waiting,
}

impl EndpointShared {
    pub fn new(instance: InstanceId, address: SocketAddr) -> Self {
        Self {
            instance,
            address,
            in_flight: AtomicU64::new(0),
            ejection: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            ewma: AtomicU64::new(0),
            ready_since_ms: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            checked_out: AtomicBool::new(false),
            connections: Gate::new(Bound::Connections),
            place_wanted_ms: AtomicU64::new(0),
            waiting: Waiting::default(),
        }
    }

    /// Requests and opaque connections in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(SeqCst)
    }

    pub fn begin(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    /// Ends what [`EndpointShared::begin`] began; true if the endpoint is draining and this was the last.
    pub fn end(&self) -> bool {
        self.in_flight.fetch_sub(1, SeqCst) == 1 && self.draining.load(SeqCst)
    }

    /// Notes whether it drains; one that becomes ready again is no longer left out.
    pub fn set_draining(&self, draining: bool, now_ms: u64) {
        if self.draining.swap(draining, SeqCst) && !draining {
            self.revive(now_ms);
        }
    }

    /// It is new, or ready again: what was before does not count.
    pub fn revive(&self, now_ms: u64) {
        for word in [&self.ejection, &self.standing, &self.ewma] {
            word.store(0, Relaxed);
        }
        self.ready_since_ms.store(now_ms, Relaxed);
    }

    /// Whether it refused its latest connection, be it long ago.
    pub fn ever_ejected(&self) -> bool {
        self.ejection.load(Relaxed) != 0
    }

    pub fn ejected(&self, now_ms: u64) -> bool {
        Ejection::unpack(self.ejection.load(Relaxed)).ejected(now_ms)
    }

    /// It refused a connection. A lost update between two threads is no loss: both say the same.
    pub fn refused(&self, now_ms: u64) {
        let ejection = Ejection::unpack(self.ejection.load(Relaxed));
        self.ejection.store(ejection.refused(now_ms).pack(), Relaxed);
    }

    /// It took a connection.
    pub fn accepted(&self) {
        if self.ejection.load(Relaxed) != 0 {
            self.ejection.store(0, Relaxed);
        }
    }

    /// A connection could not be made because of their number.
    pub fn want_place(&self, now_ms: u64) {
        self.place_wanted_ms.store(now_ms.max(1), Relaxed);
    }

    /// Whether someone waits for a connection to be closed. The clock is only asked if someone ever has.
    pub fn is_place_wanted(&self, now_ms: impl FnOnce() -> u64) -> bool {
        let wanted_ms = self.place_wanted_ms.load(Relaxed);
        wanted_ms != 0 && u128::from(now_ms().saturating_sub(wanted_ms)) < PLACE_WANTED.as_millis()
    }

    /// Whether it is left out because of its answers, or by the proxy's own checks.
    pub fn is_out(&self, now_ms: u64) -> bool {
        let standing = self.standing.load(Relaxed);
        (standing != 0 && Standing::unpack(standing).is_out(now_ms)) || self.is_checked_out()
    }

    /// Whether it is left out by the proxy's own checks.
    pub fn is_checked_out(&self) -> bool {
        self.checked_out.load(Relaxed)
    }

    /// Notes what the proxy's own checks have shown.
    pub fn set_checked_out(&self, out: bool) {
        self.checked_out.store(out, Relaxed);
    }

    /// An exchange ended with `outcome`; `room` says whether one more endpoint may be left out.
    /// That it is left out from now on is said to one of those who ended.
    pub fn judge(
        &self,
        outcome: Outcome,
        policy: &Outlier,
        now_ms: u64,
        room: impl Fn() -> bool,
    ) -> Option<LeftOut> {
        if outcome == Outcome::Success && self.standing.load(Relaxed) == 0 {
            return None;
        }
        let mut news = None;
        // Given up only if other threads change it all the time; they say the same.
        let changed = self.standing.fetch_update(Relaxed, Relaxed, |word| {
            let before = Standing::unpack(word);
            let after = before.observe(outcome, policy, now_ms, &room);
            news = after.news(before, now_ms);
            (after != before).then(|| after.pack())
        });
        changed.ok().and(news)
    }

    /// An answer began so long after the request. A lost update is one sample of many.
    pub fn answered_after(&self, latency_us: u64, now_ms: u64) {
        let ewma = Ewma::unpack(self.ewma.load(Relaxed)).observe(latency_us, now_ms);
        self.ewma.store(ewma.pack(), Relaxed);
    }

    /// A try failed so long after the request.
    pub fn failed_after(&self, latency_us: u64, now_ms: u64) {
        let ewma = Ewma::unpack(self.ewma.load(Relaxed)).failed(latency_us, now_ms);
        self.ewma.store(ewma.pack(), Relaxed);
    }

    /// How loaded it is, for choosing.
    pub fn load(&self, policy: &TrafficPolicy, now_ms: u64) -> Load {
        let standing = self.standing.load(Relaxed);
        let mut weight_per_mille = FULL_WEIGHT;
        if standing != 0 {
            weight_per_mille = Standing::unpack(standing).share_per_mille(&policy.outlier);
        }
        if policy.slow_start.is_some() {
            let age = now_ms.saturating_sub(self.ready_since_ms.load(Relaxed));
            let share = slow_start::share_per_mille(age, policy.slow_start);
            weight_per_mille = weight_per_mille.min(share);
        }
        let ewma = self.ewma.load(Relaxed);
        let ewma_us = if ewma == 0 { None } else { Ewma::unpack(ewma).value(now_ms) };
        Load { in_flight: self.in_flight(), ewma_us, weight_per_mille }
    }
}

/// Counters of one cluster in one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    pub requests: AtomicU64,
    pub ended: AtomicU64,
    pub failed: AtomicU64,
    pub server_errors: AtomicU64,
    pub retries: AtomicU64,
    pub held: AtomicU64,
    pub total_us: AtomicU64,
}

/// One cluster, as all workers see it.
#[derive(Debug)]
pub struct ClusterShared {
    /// Which cluster.
    pub id: ClusterId,
    /// By worker.
    pub counters: Box<[Counters]>,
    /// What may be in flight and may wait.
    pub breaker: Breaker,
}

impl ClusterShared {
    pub fn new(id: ClusterId, workers: usize) -> Self {
        let counters = (0..workers).map(|_| Counters::default()).collect();
        Self { id, counters, breaker: Breaker::default() }
    }

    /// The sums over all workers.
    pub fn stats(&self) -> ClusterStats {
        let sum = |field: fn(&Counters) -> &AtomicU64| {
            self.counters.iter().map(|c| field(c).load(Relaxed)).sum::<u64>()
        };
        // Ended first: a request that ends in between must not make the difference negative.
        let ended = sum(|c| &c.ended);
        let requests = sum(|c| &c.requests);
        ClusterStats {
            requests,
            failed: sum(|c| &c.failed),
            server_errors: sum(|c| &c.server_errors),
            retries: sum(|c| &c.retries),
            held: sum(|c| &c.held),
            in_flight: requests.saturating_sub(ended),
            total_us: sum(|c| &c.total_us),
            ..ClusterStats::default()
        }
    }
}
