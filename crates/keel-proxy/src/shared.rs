//! What all threads share: counters, load and ejection of endpoints. Atomics only, no locks.
//!
//! Counters are kept per worker, each on cache lines of its own, and summed when asked for. The number in flight
//! at an endpoint is one atomic, because every worker balances by it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use keel_model::InstanceId;
use keel_route::eject::Ejection;
use keel_route::snapshot::{ClusterId, ClusterStats};
use tokio::sync::{Notify, mpsc};

use crate::limits;

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
    /// Connections that one worker may have.
    pub max_connections: usize,
}

impl Shared {
    /// Milliseconds since the proxy started.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One endpoint of one cluster, as all workers see it.
#[derive(Debug)]
pub struct EndpointShared {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub address: SocketAddr,
    in_flight: AtomicU64,
    ejection: AtomicU64,
    draining: AtomicBool,
}

impl EndpointShared {
    pub fn new(instance: InstanceId, address: SocketAddr) -> Self {
        Self {
            instance,
            address,
            in_flight: AtomicU64::new(0),
            ejection: AtomicU64::new(0),
            draining: AtomicBool::new(false),
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

    /// Notes whether it drains; one that becomes ready again is no longer ejected.
    pub fn set_draining(&self, draining: bool) {
        if self.draining.swap(draining, SeqCst) && !draining {
            self.revive();
        }
    }

    /// It is new, or ready again: what was before does not count.
    pub fn revive(&self) {
        self.ejection.store(0, Relaxed);
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
    held_now: AtomicUsize,
}

impl ClusterShared {
    pub fn new(id: ClusterId, workers: usize) -> Self {
        let counters = (0..workers).map(|_| Counters::default()).collect();
        Self { id, counters, held_now: AtomicUsize::new(0) }
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

/// A place among the held requests of a cluster; given back when dropped.
#[derive(Debug)]
pub struct Held(Arc<ClusterShared>);

impl Held {
    /// Takes a place, if there is one left.
    pub fn enter(cluster: &Arc<ClusterShared>) -> Option<Self> {
        if cluster.held_now.fetch_add(1, Relaxed) >= limits::MAX_HELD {
            cluster.held_now.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(Arc::clone(cluster)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held_now.fetch_sub(1, Relaxed);
    }
}
