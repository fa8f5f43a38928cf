//! Requests and answers between any two versions of HTTP, piece by piece.
//!
//! HTTP/1 to HTTP/1 has a faster way of its own ([`crate::http1`]); everything else comes through here: clients of
//! HTTP/2, services of HTTP/2 (gRPC), and answers that are changed on their way. The rules of trying again are the
//! same as there.

mod compress;
mod connect;
mod endpoint;
pub mod head;
mod received;
mod sink;
mod source;
mod tunnel;
mod upload;

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use keel_model::Protocol;
use keel_route::retry::Failure;

use crate::access::Entry;
use crate::bridge::compress::Compressing;
use crate::bridge::endpoint::Outcome;
use crate::bridge::head::RequestHead;
use crate::bridge::sink::{Caller, Http1Caller};
use crate::bridge::source::{Http1Source, Source};
use crate::bridge::upload::Upload;
use crate::counted::Counted;
use crate::deadline::Deadline;
use crate::http1::forward::Origin;
use crate::http1::{self, Next, Refusal};
use crate::http2::Lane;
use crate::ids::Ids;
use crate::reply::Reply;
use crate::route::{self, AnswerChanges, Decided, RouteAt, Way};
use crate::session::{Client, Session};
use crate::tries::{Repeatable, Trial, Tries};
use crate::upstream::{Placement, Reuse, Unavailable, Upstream};

/// Serves one request of a client of HTTP/2, waiting by `deadline`; `Next::Reset` if the client has given it up.
pub async fn serve_http2(
    session: &Rc<Session>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    deadline: &Deadline,
) -> Next {
    let (parts, body) = request.into_parts();
    let mut caller = Caller::Http2(respond);
    let protocol = "HTTP/2.0";
    let is_head = parts.method == http::Method::HEAD;
    let complete = body.is_end_stream();
    let mut head = match RequestHead::from_http2(parts) {
        Ok(head) => head,
        Err(refusal) => {
            let reply = Reply::refused(refusal);
            let entry = Entry::of_connection(session, protocol);
            session.answered_here(&reply, reply.record(), None, entry);
            return caller.reply(&reply, false, is_head, complete).await;
        }
    };
    let ids = Ids::new(&mut session.worker.random.borrow_mut());
    // As the client sent it, before the route changes it.
    let entry = Entry::of_head(session, protocol, &head, &ids);
    if let Some(reply) = session.shed() {
        session.answered_here(&reply, caller.record(&reply, head.is_grpc()), None, entry);
        return caller.reply(&reply, head.is_grpc(), is_head, complete).await;
    }
    let way = match decide(session, &head).await {
        Ok(way) => way,
        Err((reply, route)) => {
            session.answered_here(
                &reply,
                caller.record(&reply, head.is_grpc()),
                route.as_ref(),
                entry,
            );
            return caller.reply(&reply, head.is_grpc(), is_head, complete).await;
        }
    };
    head.distrust(session);
    head.change(&way);
    if head.expects_continue && !complete {
        // The expectation is of one hop: it is met here, and the endpoint hears nothing of it.
        let permission = caller.announce(http::StatusCode::CONTINUE, HeaderMap::new(), deadline);
        if permission.await.is_err() {
            return Next::Reset;
        }
    }
    let source = Source::http2(body);
    let asked = Asked { session, head: &head, ids: &ids, deadline };
    run(asked, caller, (way, entry), source).await.0
}

/// Where a request goes, or what it is answered here.
async fn decide(session: &Session, head: &RequestHead) -> Result<Way, (Reply, Option<RouteAt>)> {
    if let Some(way) = session.straight() {
        return Ok(way);
    }
    let mut verified = None;
    loop {
        match session.decide(&head.view(session), head.length, verified.as_ref()) {
            Decided::Go(way) => return Ok(way),
            Decided::Answer(reply, route) => return Err((reply, route)),
            Decided::Verify(check) if verified.is_none() => {
                // Where it holds up nobody.
                verified = tokio::task::spawn_blocking(move || check.run()).await.ok();
                if verified.is_some() {
                    continue;
                }
            }
            // The password was checked a moment ago.
            Decided::Verify(_) => {}
        }
        return Err((Reply::unverified(), None));
    }
}

/// Serves one request of a client of HTTP/1 whose service speaks HTTP/2, or whose bodies are to be looked at; `input`
/// is what was read behind its head.
pub async fn serve_http1(
    client: &Client,
    request: &http1::Request,
    mut head: RequestHead,
    input: &mut crate::buffer::Buffer,
    way: Way,
) -> Next {
    let session = &client.session;
    let ids = Ids::new(&mut session.worker.random.borrow_mut());
    let protocol = if request.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let entry = Entry::of_head(session, protocol, &head, &ids);
    head.distrust(session);
    head.change(&way);
    let caller = Caller::Http1(Http1Caller::new(client, request));
    let deadline = Deadline::new(&session.worker.deadlines);
    let asked = Asked { session, head: &head, ids: &ids, deadline: &deadline };
    let is_tunnel = head.protocol.is_some();
    if request.body.is_over() && !is_tunnel {
        return run(asked, caller, (way, entry), Source::Empty).await.0;
    }
    if request.expects_continue {
        let permission = b"HTTP/1.1 100 Continue\r\n\r\n";
        let written = crate::stream::write_all(&client.stream, permission, &client.deadline).await;
        if written.is_err() {
            return Next::Close;
        }
    }
    let source = Source::Http1(Http1Source {
        worker: &session.worker,
        conn: &client.stream,
        body: if is_tunnel { http1::Body::UntilClose } else { request.body.clone() },
        ahead: Bytes::new(),
        input: std::mem::take(input),
        trailers: Vec::new(),
    });
    let (next, source) = run(asked, caller, (way, entry), source).await;
    if let Source::Http1(source) = source {
        *input = source.input;
    }
    next
}

/// A request and what it is served with.
#[derive(Clone, Copy)]
struct Asked<'a> {
    session: &'a Rc<Session>,
    head: &'a RequestHead,
    ids: &'a Ids,
    /// For waiting on the endpoint and for the answer to go out.
    deadline: &'a Deadline,
}

/// Serves a request on its way. What becomes of a connection of HTTP/1, and what is left of the request's body.
async fn run<'a, 's>(
    asked: Asked<'a>,
    caller: Caller<'a>,
    (way, entry): (Way, Option<Box<Entry>>),
    source: Source<'s>,
) -> (Next, Source<'s>) {
    let Asked { session, head, ids, deadline } = asked;
    let mut counted = way.count(session);
    counted.log(entry);
    if let Err(full) = counted.enter() {
        let reply = counted.full(full);
        counted.replied(&reply, caller.record(&reply, head.is_grpc()));
        let is_head = head.method == http::Method::HEAD;
        let next = caller.reply(&reply, head.is_grpc(), is_head, source.is_over()).await;
        return (next, source);
    }
    counted.cluster.budget.borrow_mut().request();
    let mut upload = Upload::new(source, way.max_body(), counted.cluster.times().idle);
    counted.flow.clone_from(&upload.flow);
    let mut exchange = Exchange {
        session,
        head,
        ids,
        waiting: deadline,
        caller: Some(caller),
        counted,
        limit: way.time_limit(),
        compression: Compressing::new(&way),
        changes: way.answer_changes(),
        tries: Tries::default(),
        trial: None,
    };
    let next = exchange.run(&mut upload).await;
    (next, upload.source)
}

/// One request, from its first try to the end of its answer.
struct Exchange<'a> {
    session: &'a Session,
    head: &'a RequestHead,
    ids: &'a Ids,
    waiting: &'a Deadline,
    /// Until the head of an answer was sent.
    caller: Option<Caller<'a>>,
    counted: Counted,
    /// The whole answer must have come by then.
    limit: Option<Duration>,
    /// How the answer may be compressed.
    compression: Option<Compressing>,
    /// What is changed in the head of the answer.
    changes: Option<Box<AnswerChanges>>,
    tries: Tries,
    /// The one that is under way.
    trial: Option<Trial>,
}

impl Exchange<'_> {
    /// What becomes of a connection of HTTP/1.
    async fn run(&mut self, upload: &mut Upload<'_>) -> Next {
        let next = match self.time_limit() {
            None => self.until_answered(upload).await,
            Some(limit) => Box::pin(self.within(limit, upload)).await,
        };
        self.counted.moved(upload.total, 0);
        next
    }

    async fn within(&mut self, limit: Duration, upload: &mut Upload<'_>) -> Next {
        let ended = tokio::time::timeout(limit, self.until_answered(upload)).await;
        match ended {
            Ok(next) => next,
            Err(_) => {
                self.ran_out(upload);
                let text = Reply::timed_out(self.counted.cluster.id());
                self.failed(&text, upload.is_over()).await
            }
        }
    }

    /// The time is up. That speaks against the endpoint if it had the whole request, and if it is not the caller alone
    /// who has so little time: by that, nobody is to have endpoints left out.
    fn ran_out(&mut self, upload: &Upload<'_>) {
        let ours = self.limit.is_some() && self.limit == self.time_limit();
        let asked = self.caller.is_some() && upload.is_over();
        if let Some(trial) = self.trial.take().filter(|_| ours && asked) {
            trial.failed(&self.counted, Failure::TimedOut);
        }
    }

    /// The caller waits no longer than this.
    fn time_limit(&self) -> Option<Duration> {
        let limit = self.limit;
        if !self.head.is_grpc() {
            return limit;
        }
        let grpc = self.head.headers().get("grpc-timeout");
        let grpc = grpc.and_then(|value| grpc_timeout(value.as_bytes()));
        [limit, grpc].into_iter().flatten().min()
    }

    async fn until_answered(&mut self, upload: &mut Upload<'_>) -> Next {
        let mut placement = Placement::of(self.caller.as_ref().and_then(Caller::connection));
        let repeatable = self.head.is_idempotent() && upload.is_over();
        let mut reuse = if repeatable { Reuse::Any } else { Reuse::Checked };
        loop {
            upload.rewind();
            let (outcome, trial) = match self.attempt(&mut placement, reuse, upload).await {
                Ok(tried) => tried,
                Err(Unplaced::Unavailable(why)) => {
                    let text = Reply::unavailable(self.counted.cluster.id(), why);
                    return self.failed(&text, upload.is_over()).await;
                }
                Err(Unplaced::CallerGone) => {
                    self.counted.client_gone();
                    return Next::Reset;
                }
            };
            let (failure, decided) = match outcome {
                Outcome::Answered(next) => return next,
                Outcome::Again(failure) => (failure, true),
                Outcome::Failed(failure) => (failure, false),
                Outcome::TimedOut => (Failure::TimedOut, false),
                Outcome::Malformed => {
                    let refusal = Refusal::Malformed("its body is not properly chunked");
                    return self.reply(&Reply::refused(refusal), false).await;
                }
                Outcome::TooLarge(most) => {
                    return self.reply(&Reply::too_large(most), false).await;
                }
                Outcome::NoForm => {
                    let refusal = Refusal::Malformed("its host is not a host");
                    return self.reply(&Reply::refused(refusal), upload.is_over()).await;
                }
                Outcome::NoTunnel => {
                    let text = Reply::no_tunnel(self.counted.cluster.id());
                    return self.failed(&text, upload.is_over()).await;
                }
                // It failed itself.
                Outcome::CallerGone => {
                    self.counted.client_gone();
                    return Next::Reset;
                }
            };
            self.trial = None;
            trial.failed(&self.counted, failure);
            let state = self.repeatable(upload);
            if !decided && !self.tries.again(&self.counted, failure, state) {
                let cluster = self.counted.cluster.id();
                let text = match failure {
                    Failure::TimedOut => Reply::timed_out(cluster),
                    _ => Reply::broken(cluster),
                };
                return self.failed(&text, upload.is_over()).await;
            }
            self.counted.retried();
            placement.broke(trial.endpoint, failure);
            self.tries.pause(&self.counted).await;
            reuse = Reuse::No;
        }
    }

    fn repeatable(&self, upload: &Upload<'_>) -> Repeatable {
        Repeatable { idempotent: self.head.is_idempotent(), kept: upload.is_repeatable() }
    }

    /// Finds a place and sends the request there.
    async fn attempt(
        &mut self,
        placement: &mut Placement<'_>,
        reuse: Reuse,
        upload: &mut Upload<'_>,
    ) -> Result<(Outcome, Trial), Unplaced> {
        let worker = &self.session.worker;
        if self.speaks_http2() {
            let place = placement.acquire::<Lane>(worker, &self.counted, reuse);
            let upstream = unless_gone(&mut self.caller, &mut upload.source, place).await?;
            let trial = self.placed(placement, &upstream);
            let outcome = if self.head.protocol.is_some() {
                Box::pin(self.try_connect(upstream, &trial, upload)).await
            } else {
                self.try_http2(upstream, &trial, upload).await
            };
            Ok((outcome, trial))
        } else {
            let place = placement.acquire(worker, &self.counted, reuse);
            let upstream = unless_gone(&mut self.caller, &mut upload.source, place).await?;
            let trial = self.placed(placement, &upstream);
            let outcome = self.try_http1(upstream, &trial, upload).await;
            Ok((outcome, trial))
        }
    }

    fn placed<L>(&mut self, placement: &mut Placement<'_>, upstream: &Upstream<L>) -> Trial {
        placement.placed();
        self.tries.sent();
        let trial = Trial::begin(&self.counted, &upstream.in_flight.endpoint);
        route::bind(&mut self.changes, &self.counted, &trial.endpoint);
        self.trial = Some(trial.clone());
        trial
    }

    /// What the service is spoken to in. Where nothing is declared it hears HTTP/1, which nearly all services speak,
    /// whatever the client has chosen for its own side; but a call of gRPC means a service of gRPC.
    fn speaks_http2(&self) -> bool {
        match self.counted.cluster.protocol() {
            Protocol::Http2 => true,
            Protocol::Http | Protocol::Tcp => false,
            // Of WebSocket, too, nearly all know only that of HTTP/1.
            Protocol::Auto => matches!(self.caller, Some(Caller::Http2(_))) && self.head.is_grpc(),
        }
    }

    /// Tells the caller that the platform failed it.
    async fn failed(&mut self, text: &Reply, complete: bool) -> Next {
        self.counted.failed(text.status());
        self.counted.because(text.reason());
        self.reply(text, complete).await
    }

    /// Tells the caller, unless a part of an answer was sent.
    async fn reply(&mut self, text: &Reply, complete: bool) -> Next {
        if let Some(caller) = &self.caller {
            self.counted.replied(text, caller.record(text, self.head.is_grpc()));
        }
        let is_head = self.head.method == http::Method::HEAD;
        match self.caller.take() {
            Some(caller) => caller.reply(text, self.head.is_grpc(), is_head, complete).await,
            // A part of an answer was sent: what was dropped on the way here has told the caller.
            None => Next::Reset,
        }
    }

    /// What endpoints are told of where the request came from.
    fn origin(&self) -> Origin<'_> {
        let Session { peer_text, secure, trusted, .. } = self.session;
        Origin {
            peer: peer_text,
            // Its head names a host already.
            local: "",
            secure: secure.is_some(),
            trusted: *trusted,
            lines: secure.as_ref().map_or(&[], |secure| &secure.lines),
            ids: Some(*self.ids),
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::new(&self.session.worker.deadlines)
    }
}

/// Why a request has no place.
enum Unplaced {
    Unavailable(Unavailable),
    CallerGone,
}

/// Waits for a place as long as the caller does: what it has given up is not to be done later.
async fn unless_gone<L>(
    caller: &mut Option<Caller<'_>>,
    body: &mut Source<'_>,
    place: impl Future<Output = Result<Upstream<L>, Unavailable>>,
) -> Result<Upstream<L>, Unplaced> {
    let mut place = std::pin::pin!(place);
    let mut waits = false;
    std::future::poll_fn(|cx| {
        let placed = place.as_mut().poll(cx).map_err(|why| match why {
            Unavailable::ClientGone => Unplaced::CallerGone,
            why => Unplaced::Unavailable(why),
        });
        // Most find a place at once.
        if placed.is_ready() && !waits {
            return placed;
        }
        waits = true;
        body.read_ahead(cx);
        match caller.as_mut().map(|caller| caller.poll_gone(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(Unplaced::CallerGone)),
            Some(Poll::Pending) | None => placed,
        }
    })
    .await
}

/// `1S`, `250m`: at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// How a failure of HTTP/2 is judged: a stream that was refused was not looked at (RFC 9113, 8.7).
fn failure_of(error: &h2::Error) -> Failure {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Failure::NothingSent,
        // Streams above the last one that the peer names were not looked at, whatever made it go; the library tells
        // only about those.
        Some(_) if error.is_go_away() && error.is_remote() => Failure::NothingSent,
        _ => Failure::CutOff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc() {
        assert_eq!(grpc_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1x", "1 S"] {
            assert_eq!(grpc_timeout(bad.as_bytes()), None, "{bad}");
        }
    }
}
