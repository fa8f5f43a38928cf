//! One try of a request at one endpoint, and its answer on the way back.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use keel_route::retry::Failure;

use crate::bridge::received::{Answer, Received};
use crate::bridge::sink::{Extent, Sink};
use crate::bridge::source::{Cut, Http1Source, Piece, Source};
use crate::bridge::upload::{Broken, Upload};
use crate::bridge::{Exchange, failure_of};
use crate::counted::Counted;
use crate::deadline::{Deadline, Idle};
use crate::http1::{Body, Next, Request};
use crate::http2::Lane;
use crate::limits::MAX_INTERIM;
use crate::stream;
use crate::tries::{Repeatable, Trial};
use crate::upstream::Upstream;

/// How one try ended.
pub enum Outcome {
    /// An answer was passed on; what becomes of a connection of HTTP/1.
    Answered(Next),
    /// No part of an answer was passed on.
    Failed(Failure),
    /// The answer is to be asked for once more, which has been decided.
    Again(Failure),
    /// The body of the request is over this many bytes.
    TooLarge(u64),
    /// The answer did not begin in time.
    TimedOut,
    /// The caller is gone.
    CallerGone,
    /// The caller sent something that is not a body.
    Malformed,
    /// HTTP/2 has no form for its host or target.
    NoForm,
    /// The endpoint takes no tunnels over HTTP/2.
    NoTunnel,
}

impl Exchange<'_> {
    /// Sends the request to an endpoint of HTTP/1.
    pub async fn try_http1(
        &mut self,
        upstream: Upstream,
        trial: &Trial,
        upload: &mut Upload<'_>,
    ) -> Outcome {
        let waiting = self.waiting;
        let is_tunnel = self.head.protocol.is_some();
        let chunked = !is_tunnel && !upload.is_none() && self.head.length.is_none();
        let framing: &[u8] = if chunked { b"Transfer-Encoding: chunked\r\n" } else { b"" };
        if is_tunnel {
            return Box::pin(self.try_tunnel(upstream, trial, upload, waiting)).await;
        }
        let heads = &self.session.worker.heads;
        let mut first = heads.take();
        self.head.to_http1(framing, &self.origin(), &mut first);
        let ended = match upload.begin_http1(chunked, &mut first).await {
            Ok(ended) => ended,
            Err(Cut::Malformed) => return Outcome::Malformed,
            Err(Cut::TooLarge(most)) => return Outcome::TooLarge(most),
            Err(Cut::Gone) => return Outcome::CallerGone,
        };
        if let Err((0, _)) = stream::write_all(&upstream.line, &first, waiting).await {
            return Outcome::Failed(Failure::NothingSent);
        }
        heads.give(first);
        let uploaded = std::cell::Cell::new(ended);
        let state = self.repeatable(upload);
        let on_the_way = OnTheWay { trial, uploaded: &uploaded, state };
        let outcome = if ended {
            self.answer_http1(&upstream, waiting, on_the_way).await
        } else {
            let deadline = self.deadline();
            let sending = async {
                let sent = upload.send_http1(&upstream.line, chunked, &deadline).await;
                uploaded.set(sent.is_ok());
                sent
            };
            let answering = self.answer_http1(&upstream, waiting, on_the_way);
            Box::pin(both(sending, answering)).await
        };
        match outcome {
            Passed::Answered(next, reusable) => {
                if reusable && uploaded.get() {
                    let Upstream { line, in_flight, .. } = upstream;
                    let now_ms = self.session.worker.deadlines.now_ms();
                    in_flight.check_in(line, now_ms);
                }
                Outcome::Answered(next)
            }
            Passed::Not(outcome) => outcome,
        }
    }

    async fn answer_http1(
        &mut self,
        upstream: &Upstream,
        waiting: &Deadline,
        on_the_way: OnTheWay<'_>,
    ) -> Passed {
        let mut input = Received::default();
        let answer = match self.http1_head(upstream, waiting, on_the_way, &mut input).await {
            Ok(answer) => answer,
            Err(outcome) => return Passed::Not(outcome),
        };
        if let Some(again) = self.once_more(answer.status, on_the_way) {
            return Passed::Not(again);
        }
        let source = Http1Source {
            worker: &self.session.worker,
            conn: &upstream.line,
            body: answer.body,
            ahead: input.ahead,
            input: input.buffer,
            trailers: Vec::new(),
        };
        let Answer { status, headers, reusable, .. } = answer;
        let (next, source) =
            self.pass_on(status, headers, Source::Http1(source), waiting, on_the_way).await;
        let Source::Http1(source) = source else {
            return Passed::Answered(next, false);
        };
        let reusable = reusable && source.body.is_over() && source.is_drained();
        self.session.worker.buffers.give(source.input);
        Passed::Answered(next, reusable)
    }

    /// Reads heads until one is that of the answer.
    async fn http1_head(
        &mut self,
        upstream: &Upstream,
        waiting: &Deadline,
        on_the_way: OnTheWay<'_>,
        input: &mut Received,
    ) -> Result<Answer, Outcome> {
        let request = self.as_http1();
        let mut interim = 0;
        loop {
            waiting.set(self.counted.cluster.times().one_try);
            let caller = &mut self.caller;
            let ready = waiting.until(|cx| {
                if let Poll::Ready(ready) = upstream.line.poll_read_ready(cx) {
                    return Poll::Ready(ready.map(|()| true));
                }
                match caller.as_mut() {
                    Some(caller) => caller.poll_gone(cx).map(|()| Ok(false)),
                    None => Poll::Pending,
                }
            });
            match ready.await {
                Ok(true) => {}
                Ok(false) => return Err(Outcome::CallerGone),
                Err(e) if e.kind() == io::ErrorKind::TimedOut && !on_the_way.uploaded.get() => {
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Outcome::TimedOut),
                Err(_) => {}
            }
            match input.read(&upstream.line, &self.session.worker) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) if interim > 0 || !input.is_empty() => {
                    return Err(Outcome::Failed(Failure::Answering));
                }
                Ok(0) | Err(_) if upstream.reused => return Err(Outcome::Failed(Failure::Stale)),
                Ok(_) | Err(_) => return Err(Outcome::Failed(Failure::CutOff)),
            }
            while let Some(answer) =
                input.head(&request).map_err(|()| Outcome::Failed(Failure::Answering))?
            {
                if !answer.status.is_informational() {
                    if !answer.body.is_over() && input.is_empty() {
                        upstream.line.got_part(answer.head);
                    }
                    return Ok(answer);
                }
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(Outcome::Failed(Failure::Answering));
                }
                self.announce(answer.status, answer.headers, waiting).await?;
            }
            upstream.line.got_part(input.len());
        }
    }

    async fn announce(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        waiting: &Deadline,
    ) -> Result<(), Outcome> {
        // Permission to go on was given by the proxy itself.
        if status == StatusCode::CONTINUE {
            return Ok(());
        }
        match &mut self.caller {
            Some(caller) => {
                let told = caller.announce(status, headers, waiting).await;
                told.map_err(|_| Outcome::CallerGone)
            }
            None => Ok(()),
        }
    }

    /// What the parser of answers has to know of the request.
    pub(super) fn as_http1(&self) -> Request {
        Request {
            head: 0,
            idempotent: false,
            is_head: self.head.method == Method::HEAD,
            http10: false,
            keep_alive: true,
            upgrade: false,
            expects_continue: false,
            body: Body::EMPTY,
        }
    }

    /// Sends the request to an endpoint of HTTP/2.
    pub async fn try_http2(
        &mut self,
        mut upstream: Upstream<Lane>,
        trial: &Trial,
        upload: &mut Upload<'_>,
    ) -> Outcome {
        let secure = self.counted.cluster.policy().tls.is_some();
        let Ok(request) = self.head.to_http2(secure, &self.origin()) else {
            return Outcome::NoForm;
        };
        let send = &mut upstream.line.send;
        let ready = poll_fn(|cx| send.poll_ready(cx)).await;
        let ended = upload.is_none();
        let sent = ready.and_then(|()| send.send_request(request, ended));
        let (mut response, mut body) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, "an endpoint takes no more requests on a connection");
                upstream.line.is_over();
                return Outcome::Failed(Failure::NothingSent);
            }
        };
        let waiting = self.waiting;
        let uploaded = std::cell::Cell::new(ended);
        let state = self.repeatable(upload);
        let on_the_way = OnTheWay { trial, uploaded: &uploaded, state };
        let outcome = if ended {
            self.answer_http2(&mut response, waiting, on_the_way).await
        } else {
            let deadline = self.deadline();
            let sending = async {
                let sent = upload.send_http2(&mut body, &deadline).await;
                uploaded.set(sent.is_ok());
                sent
            };
            let answering = self.answer_http2(&mut response, waiting, on_the_way);
            Box::pin(both(sending, answering)).await
        };
        match outcome {
            Passed::Answered(next, _) => Outcome::Answered(next),
            Passed::Not(outcome) => outcome,
        }
    }

    async fn answer_http2(
        &mut self,
        response: &mut h2::client::ResponseFuture,
        waiting: &Deadline,
        on_the_way: OnTheWay<'_>,
    ) -> Passed {
        let mut interim = 0;
        let answer = loop {
            waiting.set(self.counted.cluster.times().one_try);
            let caller = &mut self.caller;
            let news = waiting.until(|cx| {
                if let Poll::Ready(Some(told)) = response.poll_informational(cx) {
                    return Poll::Ready(Ok(News::Interim(told)));
                }
                let response = std::pin::Pin::new(&mut *response);
                if let Poll::Ready(answer) = response.poll(cx) {
                    return Poll::Ready(Ok(News::Answer(answer)));
                }
                match caller.as_mut() {
                    Some(caller) => caller.poll_gone(cx).map(|()| Ok(News::CallerGone)),
                    None => Poll::Pending,
                }
            });
            match news.await {
                Ok(News::Answer(Ok(answer))) => break answer,
                Ok(News::Answer(Err(error)) | News::Interim(Err(error))) => {
                    return Passed::Not(Outcome::Failed(failure_of(&error)));
                }
                Ok(News::CallerGone) => return Passed::Not(Outcome::CallerGone),
                Ok(News::Interim(Ok(told))) => {
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Passed::Not(Outcome::Failed(Failure::Answering));
                    }
                    let (parts, ()) = told.into_parts();
                    if let Err(outcome) = self.announce(parts.status, parts.headers, waiting).await
                    {
                        return Passed::Not(outcome);
                    }
                }
                Err(_) if !on_the_way.uploaded.get() => {}
                Err(_) => return Passed::Not(Outcome::TimedOut),
            }
        };
        let (parts, body) = answer.into_parts();
        if let Some(again) = self.once_more(parts.status, on_the_way) {
            return Passed::Not(again);
        }
        let source = Source::http2(body);
        let (next, _) =
            self.pass_on(parts.status, parts.headers, source, waiting, on_the_way).await;
        Passed::Answered(next, false)
    }

    /// Notes what the answer says of its endpoint; what is to be done instead of passing it on.
    fn once_more(&mut self, status: StatusCode, on_the_way: OnTheWay<'_>) -> Option<Outcome> {
        on_the_way.trial.answered(&self.counted, status.as_u16());
        let state = Repeatable {
            kept: on_the_way.state.kept && on_the_way.uploaded.get(),
            ..on_the_way.state
        };
        let failure = Failure::Status(status.as_u16());
        let is_failure = status.is_client_error() || status.is_server_error();
        (is_failure && self.tries.again(&self.counted, failure, state))
            .then_some(Outcome::Again(failure))
    }

    /// Passes an answer on; what becomes of a connection of HTTP/1, and the rest of the body.
    pub(super) async fn pass_on<'s>(
        &mut self,
        status: StatusCode,
        mut headers: HeaderMap,
        mut source: Source<'s>,
        waiting: &Deadline,
        on_the_way: OnTheWay<'_>,
    ) -> (Next, Source<'s>) {
        if status == StatusCode::NO_CONTENT {
            // It has none, whatever the endpoint says (RFC 9110, 8.6).
            headers.remove(header::CONTENT_LENGTH);
        }
        let Some(caller) = self.caller.take() else { return (Next::Reset, source) };
        self.counted.answered(status.as_u16());
        self.counted.grpc(&headers);
        let mut encoder = None;
        if let Some(compression) = self.compression.take() {
            let is_head = self.head.method == Method::HEAD;
            encoder = compression.begin(status, is_head, &mut headers);
        }
        if let Some(changes) = &self.changes {
            changes.apply(&mut headers);
        }
        let extent = if source.is_over() { Extent::None } else { Extent::Some };
        let Ok(mut sink) = caller.head(status, headers, extent, waiting).await else {
            return (Next::Reset, source);
        };
        if extent == Extent::Some {
            let counted = &self.counted;
            let relayed = match encoder {
                Some(encoder) => {
                    Box::pin(encoder.relay(&mut source, &mut sink, waiting, counted)).await
                }
                None => relay(&mut source, &mut sink, waiting, counted).await,
            };
            match relayed {
                Ok(()) => {}
                Err(Broken::Sink) => {
                    self.counted.client_gone();
                    return (Next::Reset, source);
                }
                Err(Broken::Source | Broken::Malformed | Broken::TooLarge(_)) => {
                    self.counted.failed(0);
                    self.counted.because("cut_off");
                    return (sink.abort().await, source);
                }
            }
        }
        (sink.done(on_the_way.uploaded.get()), source)
    }
}

/// What an answer has to know of the request that it answers.
#[derive(Clone, Copy)]
pub(super) struct OnTheWay<'a> {
    pub trial: &'a Trial,
    /// The whole request has been sent.
    pub uploaded: &'a std::cell::Cell<bool>,
    pub state: Repeatable,
}

enum News {
    Answer(Result<http::Response<h2::RecvStream>, h2::Error>),
    Interim(Result<http::Response<()>, h2::Error>),
    CallerGone,
}

/// How one try ended, and whether its connection can serve another request.
enum Passed {
    Answered(Next, bool),
    Not(Outcome),
}

/// The answer may begin, and even end, while the body of the request is still on its way.
async fn both(
    sending: impl Future<Output = Result<(), Broken>>,
    answering: impl Future<Output = Passed>,
) -> Passed {
    let (mut sending, mut answering) = (pin!(sending), pin!(answering));
    let mut stopped = false;
    poll_fn(|cx| {
        if !stopped && let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            stopped = true;
            match sent {
                // It may have answered before it closed.
                Ok(()) | Err(Broken::Sink) => {}
                Err(Broken::Source) => return Poll::Ready(Passed::Not(Outcome::CallerGone)),
                Err(Broken::Malformed) => return Poll::Ready(Passed::Not(Outcome::Malformed)),
                Err(Broken::TooLarge(most)) => {
                    return Poll::Ready(Passed::Not(Outcome::TooLarge(most)));
                }
            }
        }
        answering.as_mut().poll(cx)
    })
    .await
}

/// Passes a body on; its length.
pub(super) async fn relay(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    deadline: &Deadline,
    counted: &Counted,
) -> Result<(), Broken> {
    let idle = counted.idle();
    loop {
        match next_piece(source, sink, deadline, idle).await? {
            Piece::Data(data) => {
                let n = data.len();
                let last = source.is_over();
                if !(last && sink.takes_last(&data)) {
                    let sending = Box::pin(sink.data(data, last, deadline));
                    source.beside(sending).await.map_err(|_| Broken::Sink)?;
                }
                source.passed(n);
                counted.passed(n as u64);
                if last {
                    return Ok(());
                }
            }
            Piece::Trailers(trailers) => {
                counted.grpc(&trailers);
                sink.finish(Some(trailers), deadline).await.map_err(|_| Broken::Sink)?;
                return Ok(());
            }
            Piece::End => {
                sink.finish(None, deadline).await.map_err(|_| Broken::Sink)?;
                return Ok(());
            }
        }
    }
}

/// The next part of a body. What is at hand goes on at once; nothing is kept back while the endpoint thinks.
async fn next_piece(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    deadline: &Deadline,
    idle: Idle<'_>,
) -> Result<Piece, Broken> {
    match at_hand(source).await {
        Some(piece) => piece,
        None => awaited_piece(source, sink, deadline, idle).await,
    }
}

/// The next part of a body, if it is at hand.
pub(super) async fn at_hand(source: &mut Source<'_>) -> Option<Result<Piece, Broken>> {
    poll_fn(|cx| match source.poll_next(cx) {
        Poll::Ready(piece) => Poll::Ready(Some(piece.map_err(broken))),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Waits for the next part of a body; what has come before is sent meanwhile.
pub(super) async fn awaited_piece(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    deadline: &Deadline,
    idle: Idle<'_>,
) -> Result<Piece, Broken> {
    sink.flush(deadline).await.map_err(|_| Broken::Sink)?;
    let next = deadline.until_idle(idle, |cx| {
        if sink.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        source.poll_next(cx).map(Ok)
    });
    match next.await {
        Ok(piece) => piece.map_err(broken),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Broken::Sink),
        Err(_) => Err(Broken::Source),
    }
}

fn broken(cut: Cut) -> Broken {
    match cut {
        Cut::Gone => Broken::Source,
        Cut::Malformed | Cut::TooLarge(_) => Broken::Malformed,
    }
}
