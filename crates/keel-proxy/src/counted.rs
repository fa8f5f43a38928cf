//! One request (or opaque connection) from its first try to the end of its answer: counted, bounded, and remembered
//! by what it is placed by.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use http::HeaderMap;
use keel_route::balance::Token;
use keel_route::breaker::{Full, Pass};
use keel_route::concurrency::Completion;
use keel_route::retry_after;

use crate::access::{Ended, Entry};
use crate::cluster::{WorkerCluster, WorkerEndpoint};
use crate::deadline::{Flow, Idle};
use crate::edge::{Edge, Record};
use crate::limits::BUSY;
use crate::reply::Reply;
use crate::session::Session;

/// The status of a request whose client left before its answer.
const CLIENT_GONE: u16 = 499;

/// What a request is placed by, beside load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Affinity {
    /// Of the client's key, for the hashing policies.
    pub hash: Option<u64>,
    /// Of the endpoint where the client was before.
    pub token: Option<Token>,
}

/// One request, for the counters.
#[derive(Debug)]
pub struct Counted {
    pub cluster: Rc<WorkerCluster>,
    pub session: Rc<Session>,
    pub affinity: Affinity,
    edge: Rc<Edge>,
    begun: Instant,
    none: Cell<bool>,
    record: Cell<Record>,
    failed: Cell<bool>,
    /// When it became a tunnel: what comes then is no waiting for an answer.
    upgraded_us: Cell<Option<u64>>,
    /// Its line in the access log, if that is on.
    log: OnceCell<Box<Entry>>,
    passes: RefCell<Passes>,
    /// What passes while the request is still on its way.
    pub flow: Option<Rc<Flow>>,
}

/// Places that are given back at the end.
#[derive(Debug, Default)]
struct Passes {
    request: Option<Pass>,
    adaptive: Option<Pass>,
}

impl Counted {
    pub fn begin(
        session: Rc<Session>,
        cluster: Rc<WorkerCluster>,
        edge: Rc<Edge>,
        affinity: Affinity,
    ) -> Self {
        let counted = Self {
            cluster,
            session,
            affinity,
            edge,
            begun: Instant::now(),
            none: Cell::new(false),
            record: Cell::default(),
            failed: Cell::default(),
            upgraded_us: Cell::default(),
            log: OnceCell::new(),
            passes: RefCell::default(),
            flow: None,
        };
        add(&counted.cluster.counters().requests, 1);
        counted
    }

    /// Takes a place among the requests that the service may have in flight.
    ///
    /// # Errors
    /// When there is none left.
    pub fn enter(&self) -> Result<(), Full> {
        let bounds = self.cluster.bounds();
        if bounds.limits.max_requests.is_none() && bounds.limiter.is_none() {
            return Ok(());
        }
        let mut passes = self.passes.borrow_mut();
        passes.request = Some(self.cluster.shared.breaker.request(&bounds.limits)?);
        if let Some(limiter) = &bounds.limiter {
            passes.adaptive = Some(limiter.enter()?);
        }
        Ok(())
    }

    /// What a request is told that had no place; counted as failed.
    pub fn full(&self, full: Full) -> Reply {
        let seconds = {
            let random = &mut *self.session.worker.random.borrow_mut();
            retry_after::seconds(BUSY, random)
        };
        let reply = Reply::full(self.cluster.id(), full, seconds);
        self.failed(reply.status());
        reply
    }

    /// The answer has begun, or will not come: for finding out how much the service can take.
    pub fn completed(&self, completion: Completion) {
        if let Some(pass) = self.passes.borrow_mut().adaptive.take()
            && let Some(limiter) = &self.cluster.bounds().limiter
        {
            limiter.on_complete(completion, unix_ms());
            drop(pass);
        }
    }

    /// It is a tunnel from here on: no latency says anything of it.
    pub fn is_tunnel(&self) {
        self.passes.borrow_mut().adaptive = None;
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

    /// The proxy answers by itself, which goes out as `own` says.
    pub fn replied(&self, reply: &Reply, own: Record) {
        self.because(reply.reason());
        self.note(|record| {
            let Record { status, grpc_status, bytes_out, .. } = own;
            *record = Record { status, grpc_status, bytes_out, ..*record };
        });
    }

    /// The client has left. Where it had no part of an answer that is said as nginx says it: 499.
    pub fn client_gone(&self) {
        self.because("client_gone");
        self.note(|record| {
            if record.status == 0 {
                record.status = CLIENT_GONE;
            }
        });
    }

    /// Why the proxy answers by itself or breaks off.
    pub fn because(&self, reason: &'static str) {
        if let Some(entry) = self.log.get() {
            entry.because(reason);
        }
    }

    /// For how long its two sides may say nothing.
    pub fn idle(&self) -> Idle<'_> {
        Idle { time: self.cluster.times().idle, flow: self.flow.as_deref() }
    }

    /// A piece of the answer has passed.
    pub fn passed(&self, bytes: u64) {
        self.moved(0, bytes);
        if let Some(flow) = &self.flow {
            flow.passed();
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
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Several proxies measure how much a service can take at the same moments, by this clock.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
