//! Getting a connection for a request: choose, reuse or connect, try another, hold.
//!
//! Nothing of the request has been sent while this runs, so everything may be tried that its bounds allow.

use std::rc::Rc;
use std::time::Duration;

use keel_model::UpstreamTls;
use keel_route::breaker::Pass;
use keel_route::retry::{Failure, MAX_CONNECTS};
use tokio::time::Instant;

use crate::cluster::{Avoid, InFlight, WorkerEndpoint};
use crate::conn::Conn;
use crate::counted::{self, Counted};
use crate::deadline::Deadline;
use crate::http2::Lane;
use crate::limits::{CONNECT, REFUSED_GRACE, REFUSED_PAUSE, REFUSED_PAUSE_MOST};
use crate::stream::{self, ConnectError};
use crate::tls::{self, HandshakeError};
use crate::waiting::{self, Ticket};
use crate::worker::Worker;

/// A way to speak to an endpoint: a connection of HTTP/1 (or of opaque bytes) for one request at a time, or a place
/// on one of HTTP/2.
pub trait Line: Sized {
    /// One that is kept open.
    fn kept(endpoint: &WorkerEndpoint, now_ms: u64, reuse: Reuse) -> Option<Self>;

    /// A new one.
    fn open(
        request: &Counted,
        endpoint: &WorkerEndpoint,
        ticket: Option<&Ticket>,
    ) -> impl Future<Output = Result<Self, ConnectError>>;
}

impl Line for Conn {
    fn kept(endpoint: &WorkerEndpoint, now_ms: u64, reuse: Reuse) -> Option<Self> {
        match reuse {
            Reuse::No => None,
            Reuse::Any | Reuse::Checked => endpoint.check_out(now_ms, reuse == Reuse::Any),
        }
    }

    async fn open(
        request: &Counted,
        endpoint: &WorkerEndpoint,
        ticket: Option<&Ticket>,
    ) -> Result<Self, ConnectError> {
        dial(request, endpoint, ticket, HTTP1).await
    }
}

impl Line for Lane {
    fn kept(endpoint: &WorkerEndpoint, _now_ms: u64, _reuse: Reuse) -> Option<Self> {
        // Whether it is alive shows when the request is sent, and then nothing has been lost.
        if endpoint.is_private() { None } else { endpoint.http2.take() }
    }

    async fn open(
        request: &Counted,
        endpoint: &WorkerEndpoint,
        ticket: Option<&Ticket>,
    ) -> Result<Self, ConnectError> {
        let dial = dial(request, endpoint, ticket, HTTP2);
        if endpoint.is_private() {
            Lane::alone(dial).await
        } else {
            endpoint.http2.open(dial).await
        }
    }
}

/// Protocols that are offered to endpoints over TLS.
const HTTP1: &[&[u8]] = &[b"http/1.1"];
const HTTP2: &[&[u8]] = &[b"h2"];

/// Connects as the policy says: within its bounds, with a word about the client, over TLS.
async fn dial(
    request: &Counted,
    endpoint: &WorkerEndpoint,
    ticket: Option<&Ticket>,
    protocols: &[&[u8]],
) -> Result<Conn, ConnectError> {
    let (shared, policy) = (&endpoint.shared, request.cluster.policy());
    let time = request.cluster.times().connect;
    let place = waiting::enter(shared, policy.limits.max_connections, ticket);
    let place = place.map_err(|_| ConnectError::Full)?;
    let tcp = stream::connect(shared.address, time).await?;
    if policy.send_proxy.is_none() && policy.tls.is_none() {
        return Ok(Conn::from(tcp).with_place(place));
    }
    let worker = &request.session.worker;
    let deadline = Deadline::new(&worker.deadlines);
    deadline.set(time.max(CONNECT));
    let mut conn = Conn::from(tcp);
    if let Some(version) = policy.send_proxy {
        let header = request.session.proxy_header(version);
        let written = stream::write_all(&conn, &header, &deadline).await;
        written.map_err(|_| ConnectError::Refused)?;
    }
    if let Some(tls) = &policy.tls {
        let begun = begin_tls(request, conn, tls, protocols, &deadline).await;
        conn = begun.map_err(|error| no_tls(request, endpoint, &error))?;
    }
    Ok(conn.with_place(place))
}

async fn begin_tls(
    request: &Counted,
    conn: Conn,
    tls: &UpstreamTls,
    protocols: &[&[u8]],
    deadline: &Deadline,
) -> Result<Conn, NoTls> {
    let config = request.session.worker.shared.upstreams.config(tls, protocols);
    let config = config.map_err(|error| NoTls::for_good(&error))?;
    let name = tls::server_name(tls, request.cluster.service());
    let name = name.map_err(|error| NoTls::for_good(&error))?;
    let tcp = conn.into_plain().ok_or(NoTls { why: String::new(), for_good: false })?;
    match tls::connect(tcp, config, name, deadline).await {
        Ok(tls) => Ok(Conn::from(tls)),
        Err(error @ HandshakeError::Refused(_)) => Err(NoTls::for_good(&error)),
        Err(error) => Err(NoTls { why: error.to_string(), for_good: false }),
    }
}

/// Why there is no TLS with an endpoint.
struct NoTls {
    why: String,
    /// Trying again does not help, as it does with an endpoint that is just restarting.
    for_good: bool,
}

impl NoTls {
    fn for_good(error: &dyn std::fmt::Display) -> Self {
        Self { why: error.to_string(), for_good: true }
    }
}

/// Tells people of a handshake that fails: once in a while, as each request meets it.
fn no_tls(request: &Counted, endpoint: &WorkerEndpoint, error: &NoTls) -> ConnectError {
    let NoTls { why, for_good } = error;
    let cluster = request.cluster.id();
    let shared = &request.session.worker.shared;
    let (now_ms, instance) = (shared.now_ms(), &endpoint.shared.instance);
    if *for_good && shared.notices.no_tls(now_ms, cluster, instance, why) {
        tracing::warn!(cluster, error = %why, "no TLS with an endpoint");
    } else {
        tracing::debug!(cluster, error = %why, "no TLS with an endpoint");
    }
    if *for_good { ConnectError::NoTls } else { ConnectError::Refused }
}

/// A line to an endpoint, and the request's place in its count.
#[derive(Debug)]
pub struct Upstream<L = Conn> {
    pub line: L,
    pub in_flight: InFlight,
    /// It has served another request before.
    pub reused: bool,
}

/// Which connections a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Any kept-alive one: the request can be repeated.
    Any,
    /// One that was checked a moment ago.
    Checked,
    /// Only a new one.
    No,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// No endpoint, and none expected.
    NoEndpoint,
    /// None came in time, or all refused.
    HeldTooLong,
    /// The TLS handshake failed with all that came in time.
    NoTls,
    /// Too many are waiting already.
    TooManyHeld,
    /// The client has left meanwhile.
    ClientGone,
}

impl Unavailable {
    /// The same in one word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::HeldTooLong => "held_too_long",
            Self::NoTls => "no_tls",
            Self::TooManyHeld => "too_many_held",
            Self::ClientGone => "client_gone",
        }
    }
}

/// The search for a place for one request, over all its attempts.
#[derive(Debug, Default)]
pub struct Placement<'a> {
    /// Whose leaving ends the search, if that is for this to notice.
    client: Option<&'a Conn>,
    avoid: Avoid,
    connects: u32,
    pauses: u32,
    held: Option<(Pass, Instant)>,
    /// With the last endpoint that was asked there was no TLS.
    no_tls: bool,
    /// In the line of an endpoint that may have no more connections for now.
    ticket: Option<Box<Ticket>>,
    /// The endpoint that broke may be dying: its successor, or news of it, is worth a moment.
    cautious: bool,
}

impl<'a> Placement<'a> {
    /// A search that ends when its client leaves.
    pub fn of(client: Option<&'a Conn>) -> Self {
        Self { client, ..Self::default() }
    }

    /// The next connection to try.
    pub async fn acquire<L: Line>(
        &mut self,
        worker: &Worker,
        request: &Counted,
        reuse: Reuse,
    ) -> Result<Upstream<L>, Unavailable> {
        loop {
            let last_resort = !request.cluster.expected();
            if let Some(in_flight) = self.pick(worker, request, last_resort) {
                if self.cautious && self.avoid.has_broken(&in_flight.endpoint) {
                    self.cautious = false;
                    let changed = request.cluster.changed.notified();
                    drop(in_flight);
                    let _ = Box::pin(tokio::time::timeout(REFUSED_PAUSE, changed)).await;
                    continue;
                }
                match self.open(worker, request, in_flight, reuse).await {
                    Some(upstream) => return Ok(upstream),
                    None if !self.connects.is_multiple_of(MAX_CONNECTS) => continue,
                    None => {}
                }
            }
            if let Err(unavailable) = Box::pin(self.wait(request)).await {
                if unavailable == Unavailable::ClientGone {
                    return Err(unavailable);
                }
                // Better an endpoint that drains or refused before than none.
                self.avoid.refused.clear();
                if let Some(in_flight) = self.pick(worker, request, true)
                    && let Some(upstream) = self.open(worker, request, in_flight, reuse).await
                {
                    return Ok(upstream);
                }
                return Err(unavailable);
            }
        }
    }

    fn pick(&self, worker: &Worker, request: &Counted, last_resort: bool) -> Option<InFlight> {
        let tick_ms = worker.deadlines.now_ms();
        if let Some(ticket) = self.ticket.as_ref().filter(|ticket| ticket.is_turn())
            && let Some(in_flight) = request.cluster.pick_one(ticket.endpoint(), tick_ms)
        {
            return Some(in_flight);
        }
        let random = &mut *worker.random.borrow_mut();
        request.cluster.pick(&self.avoid, last_resort, request.affinity, random, tick_ms)
    }

    async fn open<L: Line>(
        &mut self,
        worker: &Worker,
        request: &Counted,
        in_flight: InFlight,
        reuse: Reuse,
    ) -> Option<Upstream<L>> {
        let endpoint = &in_flight.endpoint;
        if let Some(line) = L::kept(endpoint, worker.deadlines.now_ms(), reuse) {
            return Some(Upstream { line, in_flight, reused: true });
        }
        self.connects += 1;
        let opened = Box::pin(L::open(request, endpoint, self.ticket.as_deref())).await;
        self.no_tls = matches!(opened, Err(ConnectError::NoTls));
        match opened {
            Ok(line) => {
                endpoint.shared.accepted();
                return Some(Upstream { line, in_flight, reused: false });
            }
            Err(ConnectError::Refused | ConnectError::NoTls) => {
                self.ticket = None;
                endpoint.shared.refused(worker.shared.now_ms());
                // When the queue is full the server has been told enough.
                let _ = worker.shared.refused.try_send(endpoint.shared.instance.clone());
            }
            Err(ConnectError::Full) => {
                self.ticket.get_or_insert_with(|| Box::new(Ticket::of(&endpoint.shared)));
                endpoint.want_place();
            }
            Err(ConnectError::Exhausted(error)) => {
                self.ticket = None;
                tracing::warn!(%error, "cannot open a connection to an endpoint");
            }
        }
        request.retried();
        self.avoid.refused.push(Rc::clone(endpoint));
        None
    }

    /// Waits for a change of the cluster, or a pause if all its endpoints refused.
    async fn wait(&mut self, request: &Counted) -> Result<(), Unavailable> {
        let cluster = &request.cluster;
        let refused = !self.avoid.refused.is_empty();
        let changed = cluster.changed.notified();
        let longest = cluster.times().hold;
        let hold = match (cluster.expected(), refused || self.pauses > 0) {
            // Nobody gets a certificate in this time.
            (true, true) if self.no_tls => REFUSED_GRACE.min(longest),
            (true, _) => longest,
            (false, true) => REFUSED_GRACE.min(longest),
            (false, false) => return Err(Unavailable::NoEndpoint),
        };
        if self.held.is_none() {
            let held = cluster.shared.breaker.pending(&cluster.bounds().limits);
            let held = held.map_err(|_| Unavailable::TooManyHeld)?;
            counted::add(&cluster.counters().held, 1);
            self.held = Some((held, Instant::now()));
        }
        let since = self.held.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        let left = hold.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(if self.no_tls { Unavailable::NoTls } else { Unavailable::HeldTooLong });
        }
        let pause = if refused { self.next_pause().min(left) } else { left };
        // In the line of one that takes nothing more there is nothing to wait for.
        let tick_ms = request.session.worker.deadlines.now_ms();
        self.ticket.take_if(|ticket| cluster.pick_one(ticket.endpoint(), tick_ms).is_none());
        let place_free = async {
            match &self.ticket {
                Some(ticket) => ticket.turn().await,
                None => std::future::pending().await,
            }
        };
        // Whether it changed or not, the next turn looks anew.
        tokio::select! {
            _ = tokio::time::timeout(pause, changed) => {}
            () = place_free => {}
            () = self.client_left() => return Err(Unavailable::ClientGone),
        }
        self.avoid.refused.clear();
        Ok(())
    }

    /// Waits until the client has left. What nobody has seen yet is given up as soon as it sends nothing more; for what
    /// an endpoint has seen it may be waiting.
    async fn client_left(&self) {
        match self.client {
            Some(client) if self.avoid.broke.is_none() => client.ended().await,
            Some(client) => client.broken().await,
            None => std::future::pending().await,
        }
    }

    /// `endpoint` took the request and broke.
    pub fn broke(&mut self, endpoint: Rc<WorkerEndpoint>, failure: Failure) {
        self.avoid.broke = Some(endpoint);
        self.cautious = failure == Failure::CutOff;
    }

    fn next_pause(&mut self) -> Duration {
        let pause = REFUSED_PAUSE * (1 << self.pauses.min(8));
        self.pauses += 1;
        pause.min(REFUSED_PAUSE_MOST)
    }

    /// The request found its place: it no longer counts as held.
    pub fn placed(&mut self) {
        (self.held, self.ticket) = (None, None);
    }
}
