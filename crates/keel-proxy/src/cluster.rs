//! A cluster as one worker sees it: where requests may go, and the idle connections kept to each endpoint.
//!
//! Everything here is synchronous: choosing an endpoint and counting the request there is one step, so that once
//! a worker has applied a change nothing new goes to an endpoint that drains.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use http::HeaderMap;
use keel_model::{EndpointState, Protocol, Timeouts, TrafficPolicy};
use keel_route::balance::{self, Random};
use keel_route::retry::Budget;
use keel_route::snapshot::ClusterId;
use tokio::sync::Notify;

use crate::access::{Ended, Entry};
use crate::conn::Conn;
use crate::edge::{Edge, Record};
use crate::http2::Pool;
use crate::limits::{MAX_IDLE_PER_ENDPOINT, UPSTREAM_FRESH, UPSTREAM_IDLE};
use crate::reply::Reply;
use crate::shared::{ClusterShared, Counters, EndpointShared, Shared};

/// The state of a cluster, to be applied by every worker.
#[derive(Clone, Debug)]
pub struct ClusterChange {
    pub shared: Arc<ClusterShared>,
    pub endpoints: Arc<[(Arc<EndpointShared>, EndpointState)]>,
    pub expected: bool,
    pub protocol: Protocol,
    pub policy: Arc<TrafficPolicy>,
}

/// An endpoint, with the idle connections that this worker keeps to it.
#[derive(Debug)]
pub struct WorkerEndpoint {
    pub shared: Arc<EndpointShared>,
    proxy: Arc<Shared>,
    /// Takes new requests. A connection to one that does not is closed instead of kept.
    ready: Cell<bool>,
    idle: RefCell<Vec<IdleStream>>,
    pub http2: Pool,
}

#[derive(Debug)]
struct IdleStream {
    stream: Conn,
    since_ms: u64,
}

impl WorkerEndpoint {
    fn new(shared: Arc<EndpointShared>, proxy: Arc<Shared>) -> Self {
        Self {
            shared,
            proxy,
            ready: Cell::new(false),
            idle: RefCell::default(),
            http2: Pool::default(),
        }
    }

    /// Takes new requests.
    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    fn set_ready(&self, ready: bool) {
        self.ready.set(ready);
        if !ready {
            self.idle.take();
            self.http2.clear();
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
    protocol: Protocol,
    policy: Arc<TrafficPolicy>,
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

    /// What its endpoints speak, where that is declared.
    pub fn protocol(&self) -> Protocol {
        self.view.borrow().protocol
    }

    /// How long things may take.
    pub fn timeouts(&self) -> Timeouts {
        self.view.borrow().policy.timeouts.clone()
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
        let mut view = View {
            expected: change.expected,
            protocol: change.protocol,
            policy: Arc::clone(&change.policy),
            ..View::default()
        };
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
        self.apply(&ClusterChange {
            shared,
            endpoints,
            expected: false,
            protocol: Protocol::Auto,
            policy: Arc::default(),
        });
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
    edge: Rc<Edge>,
    begun: Instant,
    none: Cell<bool>,
    record: Cell<Record>,
    failed: Cell<bool>,
    /// When it became a tunnel: what comes then is no waiting for an answer.
    upgraded_us: Cell<Option<u64>>,
    /// Its line in the access log, if that is on.
    log: OnceCell<Box<Entry>>,
}

impl Counted {
    pub fn begin(cluster: Rc<WorkerCluster>, edge: Rc<Edge>) -> Self {
        let counted = Self {
            cluster,
            edge,
            begun: Instant::now(),
            none: Cell::new(false),
            record: Cell::default(),
            failed: Cell::default(),
            upgraded_us: Cell::default(),
            log: OnceCell::new(),
        };
        add(&counted.cluster.counters().requests, 1);
        counted
    }

    /// It turned out to be none: what came on the connection is counted request by request.
    pub fn was_none(self) {
        let requests = &self.cluster.counters().requests;
        requests.store(requests.load(Relaxed).wrapping_sub(1), Relaxed);
        self.none.set(true);
    }

    fn note(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.get();
        change(&mut record);
        self.record.set(record);
    }

    /// The platform failed it, and said so with `status` (0: not at all).
    pub fn failed(&self, status: u16) {
        add(&self.cluster.counters().failed, 1);
        self.failed.set(true);
        self.note(|record| {
            if record.status == 0 {
                record.status = status;
            }
        });
    }

    pub fn retried(&self) {
        add(&self.cluster.counters().retries, 1);
        self.note(|record| record.retries += 1);
    }

    pub fn answered(&self, status: u16) {
        if status >= 500 {
            add(&self.cluster.counters().server_errors, 1);
        }
        if let Some(entry) = self.log.get() {
            entry.answered();
        }
        self.note(|record| record.status = status);
    }

    /// The service agreed to another protocol, or to a tunnel.
    pub fn upgraded(&self, status: u16) {
        self.answered(status);
        self.upgraded_us.set(Some(self.so_far().latency_us));
    }

    /// How a call of gRPC ended, as far as `fields` (of the head of an answer or behind its body) tell.
    pub fn grpc(&self, fields: &HeaderMap) {
        let status = fields.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(status @ 0..=16) = status {
            self.note(|record| record.grpc_status = Some(status));
        }
    }

    /// It will be a line of the access log.
    pub fn log(&self, entry: Option<Box<Entry>>) {
        if let Some(entry) = entry {
            // A request has one entry.
            let _ = self.log.set(entry);
        }
    }

    /// It goes to this endpoint now.
    pub fn tries(&self, endpoint: &Rc<WorkerEndpoint>) {
        if let Some(entry) = self.log.get() {
            entry.tries(endpoint);
        }
    }

    /// The proxy answers by itself.
    pub fn replied(&self, reply: &Reply) {
        self.because(reply.reason());
        self.note(|record| {
            record.status = reply.status();
            record.bytes_out = reply.body().len() as u64;
        });
    }

    /// The proxy answers a call of gRPC by itself: in HTTP's terms all is well then.
    pub fn replied_grpc(&self, reply: &Reply) {
        self.because(reply.reason());
        self.note(|record| {
            record.status = 200;
            record.grpc_status = Some(reply.grpc_status());
        });
    }

    /// Why the proxy answers by itself or breaks off.
    pub fn because(&self, reason: &'static str) {
        if let Some(entry) = self.log.get() {
            entry.because(reason);
        }
    }

    /// Bytes of bodies passed: from the caller, and to it.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64) {
        self.note(|record| {
            record.bytes_in += bytes_in;
            record.bytes_out += bytes_out;
        });
    }

    /// What is known of it so far.
    pub fn so_far(&self) -> Record {
        let latency_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Record { latency_us, ..self.record.get() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.none.get() {
            return;
        }
        let mut record = self.so_far();
        if let Some(entry) = self.log.take() {
            let (route, cluster) = (&self.edge.key.route, self.cluster.id());
            entry.end(Ended { record, failed: self.failed.get(), route, cluster });
        }
        record.latency_us = self.upgraded_us.get().unwrap_or(record.latency_us);
        let counters = self.cluster.counters();
        add(&counters.total_us, record.latency_us);
        add(&counters.ended, 1);
        self.edge.add(record);
    }
}

/// Each worker writes its own counters, so that no read-modify-write is needed.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}
