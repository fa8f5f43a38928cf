//! What a line of the access log will need, taken while the request is at hand.
//!
//! Whether a request fails or is slow is known at its end only, so what a line needs of its head is copied for every
//! request while the log is on; it is put into words at the end, and only if the line is to be kept.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use http::HeaderMap;
use keel_route::access_log::AccessLog;
use keel_route::edges::is_grpc_failure;

use crate::access::line::Line;
use crate::access::stamp;
use crate::bridge::head::RequestHead;
use crate::cluster::WorkerEndpoint;
use crate::edge::Record;
use crate::http1;
use crate::ids::Ids;
use crate::limits::MAX_LOG_FIELD;
use crate::reply::Reply;
use crate::session::Session;

/// What was copied of the head.
#[derive(Clone, Copy, Debug)]
enum Part {
    Method,
    Host,
    Path,
    Agent,
    Referer,
    RequestId,
    TraceId,
}

/// Number of parts.
const PARTS: usize = 7;

/// The parts one behind the other.
#[derive(Debug, Default)]
struct Copied {
    bytes: Vec<u8>,
    ends: [usize; PARTS],
}

impl Copied {
    /// In the order of [`Part`].
    fn new(parts: [&[u8]; PARTS]) -> Self {
        // One byte more than fits tells that something was cut.
        let cut = parts.map(|part| &part[..part.len().min(MAX_LOG_FIELD + 1)]);
        let mut copied = Self::default();
        copied.bytes.reserve_exact(cut.iter().map(|part| part.len()).sum());
        for (part, end) in cut.iter().zip(&mut copied.ends) {
            copied.bytes.extend_from_slice(part);
            *end = copied.bytes.len();
        }
        copied
    }

    fn get(&self, part: Part) -> &[u8] {
        let at = part as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }
}

/// A line to be.
#[derive(Debug)]
pub struct Entry {
    session: Rc<Session>,
    log: Rc<AccessLog>,
    sampled: bool,
    at_ms: u64,
    begun: Instant,
    protocol: &'static str,
    copied: Copied,
    /// The endpoint of the latest try, and when it was found.
    tried: RefCell<Option<(Rc<WorkerEndpoint>, Instant)>>,
    upstream_us: Cell<Option<u64>>,
    reason: Cell<&'static str>,
}

/// What is known at the end.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub record: Record,
    /// The platform failed it.
    pub failed: bool,
    pub route: &'a str,
    pub cluster: &'a str,
}

impl Entry {
    /// For a request of HTTP/1; `None` if it will not be logged.
    pub fn of_http1(
        session: &Rc<Session>,
        request: &http1::Request,
        head: &http1::request::Head<'_, '_>,
        ids: &Ids,
    ) -> Option<Box<Self>> {
        let log = session.worker.log.wanted(session.target.is_published())?;
        let field = |name: &str| {
            let mut passed = head.headers.iter().filter(|h| !head.nominates(h.name));
            let found = passed.find(|h| h.name.eq_ignore_ascii_case(name));
            found.map(|h| h.value)
        };
        let (request_id, trace) = (ids.request(), ids.trace());
        let copied = Copied::new([
            head.method.as_bytes(),
            head.host.unwrap_or_default(),
            path(head.target.as_bytes(), &log),
            field("user-agent").unwrap_or_default(),
            path(field("referer").unwrap_or_default(), &log),
            field("x-request-id").unwrap_or(&request_id),
            trace_id(field("traceparent").unwrap_or(&trace)),
        ]);
        let protocol = if request.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
        Some(Self::new(session, log, protocol, copied))
    }

    /// For a request of any version, as the client sent it; `None` if it will not be logged.
    pub fn of_head(
        session: &Rc<Session>,
        protocol: &'static str,
        head: &RequestHead,
        ids: &Ids,
    ) -> Option<Box<Self>> {
        let log = session.worker.log.wanted(session.target.is_published())?;
        let (request_id, trace) = (ids.request(), ids.trace());
        let or = |name, own| head.headers().get(name).map_or(own, |value| value.as_bytes());
        let copied = Copied::new([
            head.method.as_str().as_bytes(),
            head.host.as_bytes(),
            path(head.target.as_bytes(), &log),
            field(head.headers(), "user-agent"),
            path(field(head.headers(), "referer"), &log),
            or("x-request-id", &request_id),
            trace_id(or("traceparent", &trace)),
        ]);
        Some(Self::new(session, log, protocol, copied))
    }

    /// For something that is no request: opaque bytes, or a head that was refused. `None` if it will not be logged.
    pub fn of_connection(session: &Rc<Session>, protocol: &'static str) -> Option<Box<Self>> {
        let log = session.worker.log.wanted(session.target.is_published())?;
        Some(Self::new(session, log, protocol, Copied::default()))
    }

    fn new(
        session: &Rc<Session>,
        log: Rc<AccessLog>,
        protocol: &'static str,
        copied: Copied,
    ) -> Box<Self> {
        let sampled = log.samples(&mut session.worker.random.borrow_mut());
        Box::new(Self {
            session: Rc::clone(session),
            log,
            sampled,
            at_ms: stamp::now_ms(),
            begun: Instant::now(),
            protocol,
            copied,
            tried: RefCell::default(),
            upstream_us: Cell::default(),
            reason: Cell::new(""),
        })
    }

    /// It goes to `endpoint` now.
    pub fn tries(&self, endpoint: &Rc<WorkerEndpoint>) {
        self.tried.replace(Some((Rc::clone(endpoint), Instant::now())));
    }

    /// The head of an answer is here.
    pub fn answered(&self) {
        if let Some((_, since)) = &*self.tried.borrow() {
            self.upstream_us.set(Some(micros(*since)));
        }
    }

    /// Why the proxy answers by itself or breaks off; the first word counts.
    pub fn because(&self, reason: &'static str) {
        if self.reason.get().is_empty() {
            self.reason.set(reason);
        }
    }

    /// It ends with an answer of our own that belongs to no cluster.
    pub fn replied(self: Box<Self>, reply: &Reply, own: Record, route: &str) {
        self.because(reply.reason());
        let record = Record { latency_us: micros(self.begun), ..own };
        self.end(Ended { record, failed: false, route, cluster: "" });
    }

    /// Writes the line, unless it is one of those that are left out.
    pub fn end(self: Box<Self>, ended: Ended<'_>) {
        let Ended { record, route, cluster, .. } = ended;
        let failed = ended.failed || record.grpc_status.is_some_and(is_grpc_failure);
        let keep = self.sampled || self.log.always_keeps(failed, record.status, record.latency_us);
        if !keep {
            return;
        }
        let session = &self.session;
        let caller = session.caller();
        let tried = self.tried.borrow();
        let instance = tried.as_ref().map_or("", |(e, _)| e.shared.instance.as_str());
        let secure = session.secure.as_ref();
        session.worker.log.write(
            &self.log,
            &Line {
                at_ms: self.at_ms,
                client: &session.peer_text,
                caller: &caller,
                method: self.copied.get(Part::Method),
                host: self.copied.get(Part::Host),
                path: self.copied.get(Part::Path),
                protocol: self.protocol,
                status: record.status,
                grpc_status: record.grpc_status,
                bytes_in: record.bytes_in,
                bytes_out: record.bytes_out,
                duration_us: record.latency_us,
                upstream_us: self.upstream_us.get(),
                retries: record.retries,
                route,
                cluster,
                instance,
                request_id: self.copied.get(Part::RequestId),
                trace_id: self.copied.get(Part::TraceId),
                agent: self.copied.get(Part::Agent),
                referer: self.copied.get(Part::Referer),
                tls: secure.and_then(|s| s.version).unwrap_or(""),
                sni: secure.and_then(|s| s.sni.as_deref()).unwrap_or(""),
                reason: self.reason.get(),
            },
        );
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a [u8] {
    headers.get(name).map_or(&[], |value| value.as_bytes())
}

/// Without its query, unless that is wanted.
fn path<'a>(target: &'a [u8], log: &AccessLog) -> &'a [u8] {
    match memchr::memchr(b'?', target) {
        Some(end) if !log.query => &target[..end],
        _ => target,
    }
}

/// The trace of a `traceparent`: the second of its parts.
fn trace_id(traceparent: &[u8]) -> &[u8] {
    traceparent.split(|b| *b == b'-').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_again() {
        let long = vec![b'x'; MAX_LOG_FIELD + 9];
        let copied = Copied::new([b"GET", b"", b"/a", &long, b"r", b"", b"t"]);
        assert_eq!(copied.get(Part::Method), b"GET");
        assert_eq!(copied.get(Part::Host), b"");
        assert_eq!(copied.get(Part::Path), b"/a");
        assert_eq!(copied.get(Part::Agent).len(), MAX_LOG_FIELD + 1);
        assert_eq!(copied.get(Part::TraceId), b"t");
        assert_eq!(Copied::default().get(Part::TraceId), b"");
    }

    #[test]
    fn queries_are_left_out_unless_wanted() {
        let mut log = AccessLog::default();
        assert_eq!(path(b"/a?token=1?2", &log), b"/a");
        assert_eq!(path(b"*", &log), b"*");
        log.query = true;
        assert_eq!(path(b"/a?token=1", &log), b"/a?token=1");
    }

    #[test]
    fn the_id_of_a_trace() {
        assert_eq!(trace_id(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").len(), 32);
        assert_eq!(trace_id(b"nonsense"), b"");
    }
}
