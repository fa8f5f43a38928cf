//! One try of a request at one endpoint, and its answer on the way back.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use keel_route::retry::Failure;

use crate::bridge::sink::{Extent, Sink};
use crate::bridge::source::{Cut, Http1Source, Piece, Source};
use crate::bridge::upload::{Broken, Upload, chunk};
use crate::bridge::{Exchange, failure_of};
use crate::buffer::Buffer;
use crate::cluster::Counted;
use crate::deadline::Deadline;
use crate::http1::{self, Body, Next, Request, response};
use crate::http2::Lane;
use crate::limits::{BODY_STALL, MAX_HEAD, MAX_INTERIM};
use crate::stream;
use crate::upstream::Upstream;

/// How one try ended.
pub enum Outcome {
    /// An answer was passed on; what becomes of a connection of HTTP/1.
    Answered(Next),
    /// No part of an answer was passed on.
    Failed(Failure),
    /// The answer did not begin in time.
    TimedOut,
    /// The caller is gone.
    CallerGone,
    /// The caller sent something that is not a body.
    Malformed,
}

/// The head of an answer of HTTP/1.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    reusable: bool,
}

impl Exchange<'_> {
    /// Sends the request to an endpoint of HTTP/1.
    pub async fn try_http1(&mut self, upstream: Upstream, upload: &mut Upload<'_>) -> Outcome {
        let waiting = self.deadline();
        let is_tunnel = self.head.protocol.is_some();
        let chunked = !is_tunnel && !upload.is_none() && self.head.length.is_none();
        let framing: &[u8] = if chunked { b"Transfer-Encoding: chunked\r\n" } else { b"" };
        if is_tunnel {
            return self.try_tunnel(upstream, upload, &waiting).await;
        }
        let mut first = self.head.to_http1(framing);
        // What is at hand of the body goes out together with the head.
        let mut ended = upload.is_none();
        if !ended {
            match upload.at_hand().await {
                Some(Ok(Piece::Data(data))) => {
                    if chunked {
                        chunk(&data, None, &mut first)
                    } else {
                        first.extend(&data)
                    }
                    upload.source.passed(data.len());
                    ended = !chunked && upload.is_over();
                }
                Some(Ok(Piece::Trailers(trailers))) => {
                    if chunked {
                        chunk(&[], Some(&trailers), &mut first)
                    }
                    ended = true;
                }
                Some(Ok(Piece::End)) => {
                    if chunked {
                        chunk(&[], Some(&HeaderMap::new()), &mut first)
                    }
                    ended = true;
                }
                Some(Err(Cut::Malformed)) => return Outcome::Malformed,
                Some(Err(Cut::Gone)) => return Outcome::CallerGone,
                None => {}
            }
        }
        if let Err((0, _)) = stream::write_all(&upstream.line, &first, &waiting).await {
            return Outcome::Failed(Failure::NothingSent);
        }
        let sending_deadline = self.deadline();
        let uploaded = std::cell::Cell::new(ended);
        let outcome = {
            let sending = async {
                if ended {
                    return Ok(());
                }
                let sent = upload.send_http1(&upstream.line, chunked, &sending_deadline).await;
                uploaded.set(sent.is_ok());
                sent
            };
            let answering = self.answer_http1(&upstream, &waiting, &uploaded);
            both(sending, answering).await
        };
        self.counted.moved(upload.total, 0);
        match outcome {
            Passed::Answered(next, reusable) => {
                if reusable && uploaded.get() {
                    let Upstream { line, in_flight, .. } = upstream;
                    let now_ms = self.session.worker.deadlines.now_ms();
                    in_flight.endpoint.check_in(line, now_ms);
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
        uploaded: &std::cell::Cell<bool>,
    ) -> Passed {
        let mut input = self.session.worker.buffers.take();
        let answer = match self.http1_head(upstream, waiting, uploaded, &mut input).await {
            Ok(answer) => answer,
            Err(outcome) => return Passed::Not(outcome),
        };
        let source = Http1Source {
            worker: &self.session.worker,
            conn: &upstream.line,
            body: answer.body,
            input,
            trailers: Vec::new(),
        };
        let Answer { status, headers, reusable, .. } = answer;
        let (next, source) =
            self.pass_on(status, headers, Source::Http1(source), waiting, uploaded).await;
        let Source::Http1(source) = source else {
            return Passed::Answered(next, false);
        };
        let reusable = reusable && source.body.is_over() && source.input.is_empty();
        self.session.worker.buffers.give(source.input);
        Passed::Answered(next, reusable)
    }

    /// Reads heads until one is that of the answer.
    async fn http1_head(
        &mut self,
        upstream: &Upstream,
        waiting: &Deadline,
        uploaded: &std::cell::Cell<bool>,
        input: &mut Buffer,
    ) -> Result<Answer, Outcome> {
        let request = self.as_http1();
        let mut interim = 0;
        loop {
            let response_time = self.counted.cluster.timeouts().response;
            waiting.set(response_time);
            let caller = &mut self.caller;
            let ready = waiting.until(|cx| {
                if let Some(caller) = caller.as_mut()
                    && caller.poll_gone(cx).is_ready()
                {
                    return Poll::Ready(Ok(false));
                }
                upstream.line.poll_read_ready(cx).map_ok(|()| true)
            });
            match ready.await {
                Ok(true) => {}
                Ok(false) => return Err(Outcome::CallerGone),
                Err(e) if e.kind() == io::ErrorKind::TimedOut && !uploaded.get() => continue,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Outcome::TimedOut),
                Err(_) => {}
            }
            match upstream.line.try_read(input.room(MAX_HEAD)) {
                Ok(n @ 1..) => input.filled(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) if interim > 0 || !input.is_empty() => {
                    return Err(Outcome::Failed(Failure::Answering));
                }
                Ok(0) | Err(_) if upstream.reused => return Err(Outcome::Failed(Failure::Stale)),
                Ok(_) | Err(_) => return Err(Outcome::Failed(Failure::CutOff)),
            }
            while let Some((head, answer)) =
                read_head(input, &request).map_err(|()| Outcome::Failed(Failure::Answering))?
            {
                input.consume(head);
                if !answer.status.is_informational() {
                    return Ok(answer);
                }
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(Outcome::Failed(Failure::Answering));
                }
                self.announce(answer.status, answer.headers, waiting).await?;
            }
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
        upload: &mut Upload<'_>,
    ) -> Outcome {
        let Ok(request) = self.head.to_http2(false) else {
            return Outcome::Failed(Failure::Answering);
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
        let waiting = self.deadline();
        let sending_deadline = self.deadline();
        let uploaded = std::cell::Cell::new(ended);
        let outcome = {
            let sending = async {
                if ended {
                    return Ok(());
                }
                let sent = upload.send_http2(&mut body, &sending_deadline).await;
                uploaded.set(sent.is_ok());
                sent
            };
            let answering = self.answer_http2(&mut response, &waiting, &uploaded);
            both(sending, answering).await
        };
        self.counted.moved(upload.total, 0);
        match outcome {
            Passed::Answered(next, _) => Outcome::Answered(next),
            Passed::Not(outcome) => outcome,
        }
    }

    async fn answer_http2(
        &mut self,
        response: &mut h2::client::ResponseFuture,
        waiting: &Deadline,
        uploaded: &std::cell::Cell<bool>,
    ) -> Passed {
        let mut interim = 0;
        let answer = loop {
            waiting.set(self.counted.cluster.timeouts().response);
            let caller = &mut self.caller;
            let news = waiting.until(|cx| {
                if let Some(caller) = caller.as_mut()
                    && caller.poll_gone(cx).is_ready()
                {
                    return Poll::Ready(Ok(News::CallerGone));
                }
                if let Poll::Ready(Some(told)) = response.poll_informational(cx) {
                    return Poll::Ready(Ok(News::Interim(told)));
                }
                let response = std::pin::Pin::new(&mut *response);
                response.poll(cx).map(|answer| Ok(News::Answer(answer)))
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
                Err(_) if !uploaded.get() => {}
                Err(_) => return Passed::Not(Outcome::TimedOut),
            }
        };
        let (parts, body) = answer.into_parts();
        let source = if body.is_end_stream() { Source::Empty } else { Source::Http2(body) };
        let (next, _) = self.pass_on(parts.status, parts.headers, source, waiting, uploaded).await;
        Passed::Answered(next, false)
    }

    /// Passes an answer on; what becomes of a connection of HTTP/1, and the rest of the body.
    async fn pass_on<'s>(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        mut source: Source<'s>,
        waiting: &Deadline,
        uploaded: &std::cell::Cell<bool>,
    ) -> (Next, Source<'s>) {
        let Some(caller) = self.caller.take() else { return (Next::Reset, source) };
        self.counted.answered(status.as_u16());
        self.counted.grpc(&headers);
        let extent = if source.is_over() { Extent::None } else { Extent::Some };
        let Ok(mut sink) = caller.head(status, headers, extent, waiting).await else {
            return (Next::Reset, source);
        };
        if extent == Extent::Some {
            let relayed = relay(&mut source, &mut sink, waiting, &self.counted).await;
            match relayed {
                Ok(()) => {}
                Err(Broken::Sink) => {
                    self.counted.because("client_gone");
                    return (Next::Reset, source);
                }
                Err(Broken::Source | Broken::Malformed) => {
                    self.counted.failed(0);
                    self.counted.because("cut_off");
                    return (sink.abort(), source);
                }
            }
        }
        (sink.done(uploaded.get()), source)
    }
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
            }
        }
        answering.as_mut().poll(cx)
    })
    .await
}

/// Passes a body on.
pub(super) async fn relay(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    deadline: &Deadline,
    counted: &Counted,
) -> Result<(), Broken> {
    loop {
        // What is at hand goes out together; nothing is kept back while the endpoint thinks.
        let at_hand = poll_fn(|cx| match source.poll_next(cx) {
            Poll::Ready(piece) => Poll::Ready(Some(piece)),
            Poll::Pending => Poll::Ready(None),
        });
        let piece = match at_hand.await {
            Some(piece) => piece,
            None => {
                sink.flush(deadline).await.map_err(|_| Broken::Sink)?;
                deadline.set(BODY_STALL);
                let next = deadline.until(|cx| {
                    if sink.poll_gone(cx).is_ready() {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                    source.poll_next(cx).map(Ok)
                });
                match next.await {
                    Ok(piece) => piece,
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(Broken::Sink),
                    Err(_) => return Err(Broken::Source),
                }
            }
        };
        match piece {
            Ok(Piece::Data(data)) => {
                let n = data.len();
                let last = source.is_over();
                sink.data(data, last, deadline).await.map_err(|_| Broken::Sink)?;
                source.passed(n);
                counted.moved(0, n as u64);
                if last {
                    return Ok(());
                }
            }
            Ok(Piece::Trailers(trailers)) => {
                counted.grpc(&trailers);
                sink.finish(Some(trailers), deadline).await.map_err(|_| Broken::Sink)?;
                return Ok(());
            }
            Ok(Piece::End) => {
                sink.finish(None, deadline).await.map_err(|_| Broken::Sink)?;
                return Ok(());
            }
            Err(Cut::Gone) => return Err(Broken::Source),
            Err(Cut::Malformed) => return Err(Broken::Malformed),
        }
    }
}

/// The head at the start of `input` and its length, once it is complete.
pub(super) fn read_head(input: &Buffer, request: &Request) -> Result<Option<(usize, Answer)>, ()> {
    let mut fields = http1::request::fields();
    let read = response::read(input.bytes(), request, true, &mut fields).map_err(|_| ())?;
    let Some((response, head)) = read else { return Ok(None) };
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers.iter().filter(|field| !head.is_of_this_hop(field)) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ())?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| ())?;
        if name == header::CONTENT_LENGTH && headers.contains_key(&name) {
            continue;
        }
        headers.append(name, value);
    }
    let status = StatusCode::from_u16(response.status).map_err(|_| ())?;
    let answer = Answer { status, headers, body: response.body, reusable: response.reusable };
    Ok(Some((response.head, answer)))
}
