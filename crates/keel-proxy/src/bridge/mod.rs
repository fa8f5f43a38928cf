//! Requests and answers between any two versions of HTTP, piece by piece.
//!
//! HTTP/1 to HTTP/1 has a faster way of its own ([`crate::http1`]); everything else comes through here: clients of
//! HTTP/2, services of HTTP/2 (gRPC), and answers that are changed on their way. The rules of trying again are the
//! same as there.

mod endpoint;
pub mod head;
mod sink;
mod source;
mod tunnel;
mod upload;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use keel_model::Protocol;
use keel_route::retry::{self, Failure, Verdict};

use crate::access::Entry;
use crate::bridge::endpoint::Outcome;
use crate::bridge::head::RequestHead;
use crate::bridge::sink::{Caller, Http1Caller};
use crate::bridge::source::{Http1Source, Source};
use crate::bridge::upload::Upload;
use crate::cluster::Counted;
use crate::deadline::Deadline;
use crate::http1::{self, Next, Refusal};
use crate::http2::Lane;
use crate::ids::Ids;
use crate::reply::Reply;
use crate::session::{Client, Session};
use crate::upstream::{Placement, Reuse, Unavailable, Upstream};

/// Serves one request of a client of HTTP/2.
pub async fn serve_http2(
    session: &Rc<Session>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let caller = Caller::Http2(respond);
    let protocol = "HTTP/2.0";
    let is_head = parts.method == http::Method::HEAD;
    let mut head = match RequestHead::from_http2(parts) {
        Ok(head) => head,
        Err(refusal) => {
            let text = Reply::refused(refusal);
            if let Some(entry) = Entry::of_connection(session, protocol) {
                entry.replied(&text);
            }
            caller.reply(&text, false, is_head, body.is_end_stream()).await;
            return;
        }
    };
    let ids = Ids::new(&mut session.worker.random.borrow_mut());
    head.complete(session, &ids);
    let source = if body.is_end_stream() { Source::Empty } else { Source::Http2(body) };
    let counted = session.count(session.target.cluster(), None);
    counted.log(Entry::of_head(session, protocol, &head));
    let exchange = Exchange::new(session, &head, caller, counted);
    exchange.run(source).await;
}

/// Serves one request of a client of HTTP/1 whose service speaks HTTP/2; `input` is what was read behind its head.
pub async fn serve_http1(
    client: &Client,
    request: &http1::Request,
    mut head: RequestHead,
    input: &mut crate::buffer::Buffer,
    counted: Counted,
) -> Next {
    let session = &client.session;
    let ids = Ids::new(&mut session.worker.random.borrow_mut());
    head.complete(session, &ids);
    let protocol = if request.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    counted.log(Entry::of_head(session, protocol, &head));
    let caller = Caller::Http1(Http1Caller { client, request });
    let exchange = Exchange::new(session, &head, caller, counted);
    if request.body.is_over() {
        return exchange.run(Source::Empty).await.0;
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
        body: request.body.clone(),
        input: std::mem::take(input),
        trailers: Vec::new(),
    });
    let (next, source) = exchange.run(source).await;
    if let Source::Http1(source) = source {
        *input = source.input;
    }
    next
}

/// One request, from its first try to the end of its answer.
struct Exchange<'a> {
    session: &'a Session,
    head: &'a RequestHead,
    /// Until the head of an answer was sent.
    caller: Option<Caller<'a>>,
    counted: Counted,
}

impl<'a> Exchange<'a> {
    fn new(
        session: &'a Session,
        head: &'a RequestHead,
        caller: Caller<'a>,
        counted: Counted,
    ) -> Self {
        counted.cluster.budget.borrow_mut().request();
        Self { session, head, caller: Some(caller), counted }
    }

    /// What becomes of a connection of HTTP/1, and what is left of the body of the request.
    async fn run<'s>(mut self, source: Source<'s>) -> (Next, Source<'s>) {
        let mut upload = Upload::new(source);
        let ended = match self.time_limit() {
            Some(limit) => tokio::time::timeout(limit, self.until_answered(&mut upload)).await,
            None => Ok(self.until_answered(&mut upload).await),
        };
        let next = match ended {
            Ok(next) => next,
            Err(_) => {
                let text = Reply::timed_out(self.counted.cluster.id());
                self.failed(&text, upload.is_over()).await
            }
        };
        (next, upload.source)
    }

    /// The caller waits no longer than this.
    fn time_limit(&self) -> Option<Duration> {
        let limit = self.counted.cluster.timeouts().request;
        let grpc = self.head.headers.get("grpc-timeout").filter(|_| self.head.is_grpc());
        let grpc = grpc.and_then(|value| grpc_timeout(value.as_bytes()));
        [limit, grpc].into_iter().flatten().min()
    }

    async fn until_answered(&mut self, upload: &mut Upload<'_>) -> Next {
        let mut placement = Placement::default();
        let (mut sends, mut cut_off_retries) = (0, 0);
        let repeatable = self.head.is_idempotent() && upload.is_over();
        let mut reuse = if repeatable { Reuse::Any } else { Reuse::Checked };
        loop {
            upload.rewind();
            sends += 1;
            let (outcome, endpoint) = match self.attempt(&mut placement, reuse, upload).await {
                Ok(tried) => tried,
                Err(why) => {
                    let text = Reply::unavailable(self.counted.cluster.id(), why);
                    return self.failed(&text, upload.is_over()).await;
                }
            };
            let failure = match outcome {
                Outcome::Answered(next) => return next,
                Outcome::Failed(failure) => failure,
                Outcome::TimedOut => {
                    let text = Reply::timed_out(self.counted.cluster.id());
                    return self.failed(&text, upload.is_over()).await;
                }
                Outcome::Malformed => {
                    let refusal = Refusal::Malformed("its body is not properly chunked");
                    return self.reply(&Reply::refused(refusal), false).await;
                }
                Outcome::CallerGone => {
                    self.counted.failed(0);
                    self.counted.because("client_gone");
                    return Next::Reset;
                }
            };
            let state = retry::Request {
                idempotent: self.head.is_idempotent(),
                repeatable: upload.is_repeatable(),
                sends,
                cut_off_retries,
            };
            let again = match retry::verdict(failure, state) {
                Verdict::Retry => true,
                Verdict::RetryOnBudget => {
                    cut_off_retries += 1;
                    let now = self.session.worker.shared.now_ms();
                    self.counted.cluster.budget.borrow_mut().take(now)
                }
                Verdict::GiveUp => false,
            };
            if !again {
                let text = Reply::broken(self.counted.cluster.id());
                return self.failed(&text, upload.is_over()).await;
            }
            self.counted.retried();
            placement.broke(endpoint, failure);
            reuse = Reuse::No;
        }
    }

    /// Finds a place and sends the request there.
    async fn attempt(
        &mut self,
        placement: &mut Placement,
        reuse: Reuse,
        upload: &mut Upload<'_>,
    ) -> Result<(Outcome, Rc<crate::cluster::WorkerEndpoint>), Unavailable> {
        let worker = &self.session.worker;
        if self.speaks_http2() {
            let upstream: Upstream<Lane> = placement.acquire(worker, &self.counted, reuse).await?;
            placement.placed();
            let endpoint = Rc::clone(&upstream.in_flight.endpoint);
            self.counted.tries(&endpoint);
            Ok((Box::pin(self.try_http2(upstream, upload)).await, endpoint))
        } else {
            let upstream = placement.acquire(worker, &self.counted, reuse).await?;
            placement.placed();
            let endpoint = Rc::clone(&upstream.in_flight.endpoint);
            self.counted.tries(&endpoint);
            Ok((Box::pin(self.try_http1(upstream, upload)).await, endpoint))
        }
    }

    /// What the service is spoken to in. Where nothing is declared it hears what the client chose to speak in clear;
    /// a browser that speaks HTTP/2 over TLS has not chosen for the service, but a client of gRPC has.
    fn speaks_http2(&self) -> bool {
        if self.head.protocol.is_some() {
            return false;
        }
        match self.counted.cluster.protocol() {
            Protocol::Http2 => true,
            Protocol::Http | Protocol::Tcp => false,
            Protocol::Auto => match self.caller {
                Some(Caller::Http1(_)) | None => false,
                Some(Caller::Http2(_)) => !self.session.is_secure() || self.head.is_grpc(),
            },
        }
    }

    /// Tells the caller that the platform failed it.
    async fn failed(&mut self, text: &Reply, complete: bool) -> Next {
        self.counted.failed(text.status());
        self.counted.because(text.reason());
        self.reply(text, complete).await
    }

    async fn reply(&mut self, text: &Reply, complete: bool) -> Next {
        match (&self.caller, self.head.is_grpc()) {
            (Some(_), true) => self.counted.replied_grpc(text),
            (Some(_), false) => self.counted.replied(text),
            (None, _) => {}
        }
        let is_head = self.head.method == http::Method::HEAD;
        match self.caller.take() {
            Some(caller) => caller.reply(text, self.head.is_grpc(), is_head, complete).await,
            // A part of an answer was sent: what was dropped on the way here has told the caller.
            None => Next::Reset,
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::new(&self.session.worker.deadlines)
    }
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
        // Streams above the last one that the peer names were not looked at; the library tells only about those.
        Some(h2::Reason::NO_ERROR) if error.is_go_away() => Failure::NothingSent,
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
