//! A cluster as one worker sees it: where requests may go, and the idle connections kept to each endpoint.
//!
//! Everything here is synchronous: choosing an endpoint and counting the request there is one step, so that once
//! a worker has applied a change nothing new goes to an endpoint that drains.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{Balance, EndpointState, Protocol, Timeouts, TrafficLimits, TrafficPolicy};
use keel_route::balance::{self, Balancer, Random, Token};
use keel_route::concurrency::Limiter;
use keel_route::outlier::{self, Outcome};
use keel_route::retry::{self, Budget};
use keel_route::snapshot::ClusterId;
use tokio::sync::Notify;

use crate::conn::Conn;
use crate::counted::Affinity;
use crate::http2::Pool;
use crate::limits::{BODY_STALL, MAX_IDLE_PER_ENDPOINT, UPSTREAM_FRESH, UPSTREAM_IDLE};
use crate::notices;
use crate::shared::{ClusterShared, Counters, EndpointShared, Shared};

/// The state of a cluster, to be applied by every worker.
#[derive(Clone, Debug)]
pub struct ClusterChange {
    pub shared: Arc<ClusterShared>,
    pub endpoints: Arc<[(Arc<EndpointShared>, EndpointState)]>,
    pub expected: bool,
    pub protocol: Protocol,
    pub policy: Arc<TrafficPolicy>,
    /// For the ready endpoints, in order.
    pub balancer: Balancer,
    pub limiter: Option<Arc<Limiter>>,
}

impl ClusterChange {
    /// No endpoints any more.
    fn empty(shared: Arc<ClusterShared>) -> Self {
        let policy = Arc::<TrafficPolicy>::default();
        Self {
            shared,
            endpoints: Arc::new([]),
            expected: false,
            protocol: Protocol::Auto,
            balancer: Balancer::new(&policy.balance, &[], None),
            policy,
            limiter: None,
        }
    }
}

/// An endpoint, with the idle connections that this worker keeps to it.
#[derive(Debug)]
pub struct WorkerEndpoint {
    pub shared: Arc<EndpointShared>,
    proxy: Arc<Shared>,
    /// Takes new requests. A connection to one that does not is closed instead of kept.
    ready: Cell<bool>,
    idle: RefCell<Vec<IdleStream>>,
    /// How often the way in which connections are made has changed.
    ways: Cell<u32>,
    /// Each connection begins with a word about one client and serves no other.
    private: Cell<bool>,
    pub http2: Pool,
    /// What brings a client back here.
    pub token: Cell<Option<Token>>,
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
            ways: Cell::new(0),
            private: Cell::new(false),
            http2: Pool::default(),
            token: Cell::new(None),
        }
    }

    /// Takes new requests.
    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// Whether a connection serves only the request that it was made for.
    pub fn is_private(&self) -> bool {
        self.private.get()
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
        if self.private.get() {
            return None;
        }
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

    fn check_in(&self, stream: Conn, now_ms: u64) {
        if self.is_place_wanted() {
            return drop(stream);
        }
        let mut idle = self.idle.borrow_mut();
        let usable = self.ready.get() && !self.private.get();
        if usable && idle.len() < MAX_IDLE_PER_ENDPOINT {
            idle.push(IdleStream { stream, since_ms: now_ms });
        }
    }

    /// Whether any worker waits for a connection to be closed.
    fn is_place_wanted(&self) -> bool {
        self.shared.is_place_wanted(|| self.proxy.now_ms())
    }

    /// A connection could not be made because of their number: those that serve nobody make room, here at once and
    /// in the other workers with their next look.
    pub fn want_place(&self) {
        self.shared.want_place(self.proxy.now_ms());
        self.make_room();
    }

    fn make_room(&self) {
        self.idle.take();
        self.http2.close_unused();
    }

    fn close_idle(&self, now_ms: u64) {
        if self.is_place_wanted() {
            return self.make_room();
        }
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
    ways: u32,
}

impl InFlight {
    fn begin(endpoint: &Rc<WorkerEndpoint>) -> Self {
        endpoint.shared.begin();
        Self { endpoint: Rc::clone(endpoint), ways: endpoint.ways.get() }
    }

    /// Keeps its connection for the next request, unless connections are made in another way by now.
    pub fn check_in(self, stream: Conn, now_ms: u64) {
        if self.ways == self.endpoint.ways.get() {
            self.endpoint.check_in(stream, now_ms);
        }
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

/// How long things may take, from the policy.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub connect: Duration,
    pub response: Duration,
    /// Of one try; that of the answer where the policy says nothing.
    pub one_try: Duration,
    pub request: Option<Duration>,
    pub idle: Duration,
    pub hold: Duration,
}

impl Times {
    fn new(policy: &TrafficPolicy, hold: Duration) -> Self {
        let Timeouts { connect, response, request, idle, hold: own } = policy.timeouts;
        Self {
            connect,
            response,
            one_try: retry::try_timeout(&policy.retry, response),
            request,
            idle: idle.unwrap_or(BODY_STALL),
            hold: own.unwrap_or(hold),
        }
    }
}

/// What bounds the requests in flight.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    pub limits: TrafficLimits,
    pub limiter: Option<Arc<Limiter>>,
}

#[derive(Debug)]
struct View {
    ready: Vec<Rc<WorkerEndpoint>>,
    draining: Vec<Rc<WorkerEndpoint>>,
    expected: bool,
    protocol: Protocol,
    policy: Arc<TrafficPolicy>,
    balancer: Balancer,
    bounds: Rc<Bounds>,
}

/// One cluster in one worker.
#[derive(Debug)]
pub struct WorkerCluster {
    pub shared: Arc<ClusterShared>,
    view: RefCell<View>,
    times: Cell<Times>,
    keyed: Cell<bool>,
    /// Woken by every change.
    pub changed: Notify,
    pub budget: RefCell<Budget>,
    proxy: Arc<Shared>,
    worker: usize,
}

impl WorkerCluster {
    /// A cluster without endpoints.
    pub fn new(shared: Arc<ClusterShared>, proxy: &Arc<Shared>, worker: usize) -> Self {
        let policy = Arc::<TrafficPolicy>::default();
        let times = Times::new(&policy, proxy.hold);
        let view = View {
            ready: Vec::new(),
            draining: Vec::new(),
            expected: false,
            protocol: Protocol::Auto,
            balancer: Balancer::new(&policy.balance, &[], None),
            policy,
            bounds: Rc::default(),
        };
        Self {
            shared,
            proxy: Arc::clone(proxy),
            view: RefCell::new(view),
            times: Cell::new(times),
            keyed: Cell::new(false),
            changed: Notify::new(),
            budget: RefCell::new(Budget::new(proxy.now_ms())),
            worker,
        }
    }

    pub fn id(&self) -> &ClusterId {
        &self.shared.id
    }

    /// The service, as it is called in the stack.
    pub fn service(&self) -> &str {
        let id = self.shared.id.as_str();
        let name = id.split_once('/').map_or(id, |(_, name)| name);
        name.split_once(':').map_or(name, |(name, _)| name)
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
    pub fn times(&self) -> Times {
        self.times.get()
    }

    /// What bounds the requests in flight.
    pub fn bounds(&self) -> Rc<Bounds> {
        Rc::clone(&self.view.borrow().bounds)
    }

    /// How its traffic is treated.
    pub fn policy(&self) -> Arc<TrafficPolicy> {
        Arc::clone(&self.view.borrow().policy)
    }

    /// Whether something of the request itself says where it goes.
    pub fn asks_for_key(&self) -> bool {
        self.keyed.get()
    }

    /// Whether clients are bound to endpoints by a cookie.
    pub fn is_sticky(&self) -> bool {
        self.keyed.get() && self.view.borrow().policy.sticky.is_some()
    }

    /// Whether any endpoint takes new requests.
    pub fn has_ready(&self) -> bool {
        !self.view.borrow().ready.is_empty()
    }

    /// Takes over a new state. Endpoints that stay keep their connections; those that drain or are gone lose the
    /// idle ones.
    pub fn apply(&self, change: &ClusterChange) {
        let (known, was) = {
            let mut view = self.view.borrow_mut();
            let ready = std::mem::take(&mut view.ready);
            let draining = std::mem::take(&mut view.draining);
            (ready.into_iter().chain(draining).collect::<Vec<_>>(), Arc::clone(&view.policy))
        };
        let (mut ready, mut draining) = (Vec::new(), Vec::new());
        for (shared, state) in change.endpoints.iter() {
            let endpoint = known
                .iter()
                .find(|e| Arc::ptr_eq(&e.shared, shared))
                .map_or_else(|| self.new_endpoint(shared), Rc::clone);
            match state {
                EndpointState::Ready => ready.push(endpoint),
                EndpointState::Draining => draining.push(endpoint),
            }
        }
        // Connections are made as the policy says: with other TLS they are others.
        let other_lines =
            was.tls != change.policy.tls || was.send_proxy != change.policy.send_proxy;
        for endpoint in known {
            endpoint.ways.set(endpoint.ways.get().wrapping_add(u32::from(other_lines)));
            if other_lines || !ready.iter().any(|e| Rc::ptr_eq(e, &endpoint)) {
                endpoint.set_ready(false);
            }
        }
        for (index, endpoint) in ready.iter().enumerate() {
            endpoint.set_ready(true);
            endpoint.private.set(change.policy.send_proxy.is_some());
            endpoint.token.set(change.balancer.token(index));
        }
        self.times.set(Times::new(&change.policy, self.proxy.hold));
        let hashes = matches!(change.policy.balance, Balance::RingHash(_) | Balance::Maglev(_));
        self.keyed.set(hashes || change.policy.sticky.is_some());
        self.budget.borrow_mut().set_percent(change.policy.retry.budget_percent);
        let limits = change.policy.limits.clone();
        self.view.replace(View {
            ready,
            draining,
            expected: change.expected,
            protocol: change.protocol,
            policy: Arc::clone(&change.policy),
            balancer: change.balancer.clone(),
            bounds: Rc::new(Bounds { limits, limiter: change.limiter.clone() }),
        });
        self.changed.notify_waiters();
    }

    fn new_endpoint(&self, shared: &Arc<EndpointShared>) -> Rc<WorkerEndpoint> {
        Rc::new(WorkerEndpoint::new(Arc::clone(shared), Arc::clone(&self.proxy)))
    }

    /// Forgets all endpoints, for when the cluster is gone.
    pub fn clear(&self) {
        self.apply(&ClusterChange::empty(Arc::clone(&self.shared)));
    }

    /// Closes connections that were idle for too long or were closed by the endpoint.
    pub fn close_idle(&self, now_ms: u64) {
        self.view.borrow().ready.iter().for_each(|e| e.close_idle(now_ms));
    }

    /// Chooses an endpoint and counts the request there. In order: ready ones; the one that broke; those that are left
    /// out; and, as a last resort, draining ones. `tick_ms` is a clock that may be a tick late.
    pub fn pick(
        &self,
        avoid: &Avoid,
        last_resort: bool,
        affinity: Affinity,
        random: &mut Random,
        tick_ms: u64,
    ) -> Option<InFlight> {
        let view = &mut *self.view.borrow_mut();
        let View { ready, draining, policy, balancer, .. } = view;
        // The clock is read only if something is ejected at all.
        let now_ms = Cell::new(None);
        let left_out = |e: &WorkerEndpoint| {
            e.shared.is_out(tick_ms)
                || e.shared.ever_ejected() && {
                    let now = now_ms.get().unwrap_or_else(|| self.proxy.now_ms());
                    now_ms.set(Some(now));
                    e.shared.ejected(now)
                }
        };
        let mut choose = |usable: &dyn Fn(&Rc<WorkerEndpoint>) -> bool| {
            let state = |i: usize| usable(&ready[i]).then(|| ready[i].shared.load(policy, tick_ms));
            let chosen = match affinity.token {
                Some(token) => balancer.pick_sticky(token, affinity.hash, random, state),
                None => balancer.pick(affinity.hash, random, state),
            };
            chosen.map(|i| InFlight::begin(&ready[i]))
        };
        choose(&|e| !left_out(e) && !avoid.has_refused(e) && !avoid.has_broken(e))
            .or_else(|| choose(&|e| !left_out(e) && !avoid.has_refused(e)))
            .or_else(|| choose(&|e| !avoid.has_refused(e)))
            .or_else(|| {
                let draining: &[_] = if last_resort { draining } else { &[] };
                let load = |i: usize| {
                    let endpoint = &draining[i];
                    (!avoid.has_refused(endpoint)).then(|| endpoint.shared.in_flight())
                };
                balance::pick(draining.len(), random, load).map(|i| InFlight::begin(&draining[i]))
            })
    }

    /// As [`WorkerCluster::pick`], with the choice made: `None` if that one takes nothing new, or is left out.
    pub fn pick_one(&self, endpoint: &Arc<EndpointShared>, tick_ms: u64) -> Option<InFlight> {
        let view = self.view.borrow();
        let chosen = view.ready.iter().find(|e| Arc::ptr_eq(&e.shared, endpoint))?;
        (!endpoint.is_out(tick_ms)).then(|| InFlight::begin(chosen))
    }

    /// Whether latencies matter for where requests go.
    pub fn is_timed(&self) -> bool {
        let view = self.view.borrow();
        view.bounds.limiter.is_some()
            || view.ready.len() > 1 && view.policy.balance == Balance::LeastRequest
    }

    /// An exchange with `endpoint` ended with `outcome`.
    pub fn judge(&self, endpoint: &WorkerEndpoint, outcome: Outcome, tick_ms: u64) {
        let view = self.view.borrow();
        let room = || {
            let usable = |e: &&Rc<WorkerEndpoint>| {
                !e.shared.is_out(tick_ms) && !e.shared.ejected(self.proxy.now_ms())
            };
            let usable = view.ready.iter().filter(usable).count();
            outlier::room(&view.policy.outlier, view.ready.len(), usable)
        };
        let policy = &view.policy.outlier;
        if let Some(out) = endpoint.shared.judge(outcome, policy, tick_ms, room) {
            let notice = notices::left_out(self.id(), &endpoint.shared.instance, out, policy);
            self.proxy.notices.add(tick_ms, notice);
        }
    }
}
