//! A cluster as one worker sees it: where requests may go, and the idle connections kept to each endpoint.
//!
//! Everything here is synchronous: choosing an endpoint and counting the request there is one step, so that once
//! a worker has applied a change nothing new goes to an endpoint that drains.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use keel_model::EndpointState;
use keel_route::balance::{self, Random};
use keel_route::retry::Budget;
use keel_route::snapshot::ClusterId;
use tokio::sync::Notify;

use crate::conn::Conn;
use crate::limits::{MAX_IDLE_PER_ENDPOINT, UPSTREAM_FRESH, UPSTREAM_IDLE};
use crate::shared::{ClusterShared, Counters, EndpointShared, Shared};

/// The state of a cluster, to be applied by every worker.
#[derive(Clone, Debug)]
pub struct ClusterChange {
    pub shared: Arc<ClusterShared>,
    pub endpoints: Arc<[(Arc<EndpointShared>, EndpointState)]>,
    pub expected: bool,
}

/// An endpoint, with the idle connections that this worker keeps to it.
#[derive(Debug)]
pub struct WorkerEndpoint {
    pub shared: Arc<EndpointShared>,
    proxy: Arc<Shared>,
    /// Takes new requests. A connection to one that does not is closed instead of kept.
    ready: Cell<bool>,
    idle: RefCell<Vec<IdleStream>>,
}

#[derive(Debug)]
struct IdleStream {
    stream: Conn,
    since_ms: u64,
}

impl WorkerEndpoint {
    fn new(shared: Arc<EndpointShared>, proxy: Arc<Shared>) -> Self {
        Self { shared, proxy, ready: Cell::new(false), idle: RefCell::default() }
    }

    /// Takes new requests.
    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    fn set_ready(&self, ready: bool) {
        self.ready.set(ready);
        if !ready {
            self.idle.take();
        }
    }

    /// A kept-alive connection that still looks alive. For a request that must not be repeated it must have been
    /// used a moment ago and is asked once more.
    pub fn check_out(&self, now_ms: u64, repeatable: bool) -> Option<Conn> {
        loop {
            let IdleStream { stream, since_ms } = self.idle.borrow_mut().pop()?;
            let idle_ms = u128::from(now_ms.saturating_sub(since_ms));
            let usable = if repeatable {
                idle_ms < UPSTREAM_IDLE.as_millis() && stream.is_quiet()
            } else {
                idle_ms < UPSTREAM_FRESH.as_millis() && stream.is_quiet_now()
            };
            if usable {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub fn check_in(&self, stream: Conn, now_ms: u64) {
        let mut idle = self.idle.borrow_mut();
        if self.ready.get() && idle.len() < MAX_IDLE_PER_ENDPOINT {
            idle.push(IdleStream { stream, since_ms: now_ms });
        }
    }

    fn close_idle(&self, now_ms: u64) {
        self.idle.borrow_mut().retain(|idle| {
            u128::from(now_ms.saturating_sub(idle.since_ms)) < UPSTREAM_IDLE.as_millis()
                && idle.stream.is_quiet()
        });
    }
}

/// One request (or opaque connection) at an endpoint; counted there until dropped.
#[derive(Debug)]
pub struct InFlight {
    pub endpoint: Rc<WorkerEndpoint>,
}

impl InFlight {
    fn begin(endpoint: &Rc<WorkerEndpoint>) -> Self {
        endpoint.shared.begin();
        Self { endpoint: Rc::clone(endpoint) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.endpoint.shared.end() {
            self.endpoint.proxy.drained.notify_one();
        }
    }
}

/// Endpoints to be left out while one request is being placed.
#[derive(Debug, Default)]
pub struct Avoid {
    /// Refused this request a connection.
    pub refused: Vec<Rc<WorkerEndpoint>>,
    /// Took this request and broke; used again only if there is no other.
    pub broke: Option<Rc<WorkerEndpoint>>,
}

impl Avoid {
    fn has_refused(&self, endpoint: &Rc<WorkerEndpoint>) -> bool {
        self.refused.iter().any(|r| Rc::ptr_eq(r, endpoint))
    }

    pub fn has_broken(&self, endpoint: &Rc<WorkerEndpoint>) -> bool {
        self.broke.as_ref().is_some_and(|b| Rc::ptr_eq(b, endpoint))
    }
}

#[derive(Debug, Default)]
struct View {
    ready: Vec<Rc<WorkerEndpoint>>,
    draining: Vec<Rc<WorkerEndpoint>>,
    expected: bool,
}

/// One cluster in one worker.
#[derive(Debug)]
pub struct WorkerCluster {
    pub shared: Arc<ClusterShared>,
    view: RefCell<View>,
    /// Woken by every change.
    pub changed: Notify,
    pub budget: RefCell<Budget>,
    proxy: Arc<Shared>,
    worker: usize,
}

impl WorkerCluster {
    /// A cluster without endpoints.
    pub fn new(shared: Arc<ClusterShared>, proxy: &Arc<Shared>, worker: usize) -> Self {
        Self {
            shared,
            proxy: Arc::clone(proxy),
            view: RefCell::default(),
            changed: Notify::new(),
            budget: RefCell::new(Budget::new(proxy.now_ms())),
            worker,
        }
    }

    pub fn id(&self) -> &ClusterId {
        &self.shared.id
    }

    /// This worker's counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters[self.worker]
    }

    /// Whether an endpoint is expected to appear.
    pub fn expected(&self) -> bool {
        self.view.borrow().expected
    }

    /// Whether any endpoint takes new requests.
    pub fn has_ready(&self) -> bool {
        !self.view.borrow().ready.is_empty()
    }

    /// Takes over a new state. Endpoints that stay keep their connections; those that drain or are gone lose the
    /// idle ones.
    pub fn apply(&self, change: &ClusterChange) {
        let old = self.view.take();
        let known: Vec<_> = old.ready.into_iter().chain(old.draining).collect();
        let mut view = View { expected: change.expected, ..View::default() };
        for (shared, state) in change.endpoints.iter() {
            let endpoint = known
                .iter()
                .find(|e| Arc::ptr_eq(&e.shared, shared))
                .map_or_else(|| self.new_endpoint(shared), Rc::clone);
            match state {
                EndpointState::Ready => view.ready.push(endpoint),
                EndpointState::Draining => view.draining.push(endpoint),
            }
        }
        for endpoint in known {
            if !view.ready.iter().any(|e| Rc::ptr_eq(e, &endpoint)) {
                endpoint.set_ready(false);
            }
        }
        view.ready.iter().for_each(|e| e.set_ready(true));
        self.view.replace(view);
        self.changed.notify_waiters();
    }

    fn new_endpoint(&self, shared: &Arc<EndpointShared>) -> Rc<WorkerEndpoint> {
        Rc::new(WorkerEndpoint::new(Arc::clone(shared), Arc::clone(&self.proxy)))
    }

    /// Empties it: the cluster is gone.
    pub fn clear(&self) {
        let endpoints = Arc::from([]);
        let shared = Arc::clone(&self.shared);
        self.apply(&ClusterChange { shared, endpoints, expected: false });
    }

    /// Closes connections that were idle for too long or were closed by the endpoint.
    pub fn close_idle(&self, now_ms: u64) {
        self.view.borrow().ready.iter().for_each(|e| e.close_idle(now_ms));
    }

    /// Chooses an endpoint and counts the request there. In order: ready ones; the one that broke; ejected ones;
    /// and, as a last resort, draining ones.
    pub fn pick(&self, avoid: &Avoid, last_resort: bool, random: &mut Random) -> Option<InFlight> {
        let view = self.view.borrow();
        // The clock is read only if something is ejected at all.
        let now_ms = Cell::new(None);
        let ejected = |e: &WorkerEndpoint| {
            e.shared.ever_ejected() && {
                let now = now_ms.get().unwrap_or_else(|| self.proxy.now_ms());
                now_ms.set(Some(now));
                e.shared.ejected(now)
            }
        };
        let choose = |from: &[Rc<WorkerEndpoint>],
                      random: &mut Random,
                      usable: &dyn Fn(&Rc<WorkerEndpoint>) -> bool| {
            let load = |i: usize| usable(&from[i]).then(|| from[i].shared.in_flight());
            balance::pick(from.len(), random, load).map(|i| InFlight::begin(&from[i]))
        };
        choose(&view.ready, random, &|e| {
            !ejected(e) && !avoid.has_refused(e) && !avoid.has_broken(e)
        })
        .or_else(|| choose(&view.ready, random, &|e| !ejected(e) && !avoid.has_refused(e)))
        .or_else(|| choose(&view.ready, random, &|e| !avoid.has_refused(e)))
        .or_else(|| {
            let draining: &[_] = if last_resort { &view.draining } else { &[] };
            choose(draining, random, &|e| !avoid.has_refused(e))
        })
    }
}

/// One request from its first try to the end of its answer, for the counters.
#[derive(Debug)]
pub struct Counted {
    pub cluster: Rc<WorkerCluster>,
    begun: Instant,
    none: Cell<bool>,
}

impl Counted {
    pub fn begin(cluster: Rc<WorkerCluster>) -> Self {
        cluster.counters().requests.fetch_add(1, Relaxed);
        Self { cluster, begun: Instant::now(), none: Cell::new(false) }
    }

    /// It turned out to be none: what came on the connection is counted request by request.
    pub fn was_none(self) {
        self.cluster.counters().requests.fetch_sub(1, Relaxed);
        self.none.set(true);
    }

    pub fn failed(&self) {
        self.cluster.counters().failed.fetch_add(1, Relaxed);
    }

    pub fn retried(&self) {
        self.cluster.counters().retries.fetch_add(1, Relaxed);
    }

    pub fn answered(&self, status: u16) {
        if status >= 500 {
            self.cluster.counters().server_errors.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.none.get() {
            return;
        }
        let time = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let counters = self.cluster.counters();
        counters.total_us.fetch_add(time, Relaxed);
        counters.ended.fetch_add(1, Relaxed);
    }
}
