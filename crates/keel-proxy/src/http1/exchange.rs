//! One request and its answer: place it, send it, pass the answer on, and try again where that is safe.
//!
//! Until the first byte of an answer arrives, what was sent is kept ([`crate::http1::upload`]) and
//! [`keel_route::retry`] decides whether it goes out once more. From then on the client sees what the endpoint
//! sends.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use keel_route::retry::Failure;

use crate::buffer::Buffer;
use crate::counted::Counted;
use crate::deadline::{Deadline, Idle};
use crate::http1::relay::{Broken, Relay};
use crate::http1::request::{Refusal, Request};
use crate::http1::response::{self, Response};
use crate::http1::upload::Upload;
use crate::http1::{Connection, Next};
use crate::limits::{MAX_HEAD, MAX_INTERIM, SMALL_BODY, TICK};
use crate::reply::Reply;
use crate::route::{self, AnswerChanges};
use crate::session::Client;
use crate::tries::{Repeatable, Trial, Tries};
use crate::upstream::{Placement, Reuse, Unavailable, Upstream};
use crate::{bridge, stream, tunnel};

/// Whether a connection to an endpoint can serve another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connected {
    Reusable,
    Used,
}

/// How one attempt ended.
enum Attempt {
    /// An answer was passed on.
    Answered(Next, Connected),
    /// No byte of an answer has come.
    Failed(Failure),
    /// The answer is to be asked for once more, which has been decided.
    Again(Failure),
    /// The two sides speak another protocol from here on; these bytes of it have come already.
    Upgraded(Buffer),
    /// The answer is not HTTP, or broke off before anything was passed on.
    Nonsense,
    /// The answer did not begin in time.
    TimedOut,
    /// The client is gone, or sent something that is not a body.
    Client(Option<Refusal>),
}

/// What ends the wait for an answer.
enum News {
    /// Something has come, or the end.
    Upstream,
    ClientGone,
}

/// How far the two directions of an exchange are.
#[derive(Debug, Default)]
struct Progress {
    /// The whole request has been sent.
    uploaded: Cell<bool>,
    /// The client has been sent (a part of) the answer.
    answered: Cell<bool>,
    /// All that was sent of the request is at hand.
    kept: bool,
}

impl Progress {
    fn uploaded(kept: bool) -> Self {
        Self { uploaded: Cell::new(true), answered: Cell::new(false), kept }
    }
}

/// Serves one request.
pub async fn run(connection: &mut Connection, request: Request) -> Next {
    let Connection { client, waiting, input, request: sent, bridged, way, log, .. } = connection;
    let Some(way) = way.take() else { return Next::Close };
    if let Some(head) = bridged.take() {
        return Box::pin(bridge::serve_http1(client, &request, *head, input, way)).await;
    }
    let head = sent.len();
    let mut upload = Upload {
        input,
        body: request.body.clone(),
        sent,
        repeatable: true,
        moved: Cell::default(),
    };
    if upload.take_what_is_there().is_err() {
        let text = Reply::refused(Refusal::Malformed("its body is not properly chunked"));
        client.session.answered_here(&text, text.record(), way.route.as_ref(), log.take());
        return reply(client, &request, false, &text).await;
    }
    if upload.body.is_over() && upload.input.is_empty() {
        // Many wait for endpoints at a time: what is in the processor's cache then is worth more than what it might read.
        client.worker.buffers.give(std::mem::take(upload.input));
    }
    let mut counted = way.count(&client.session);
    if !upload.body.is_over() {
        counted.flow = Some(Rc::default());
    }
    counted.log(log.take());
    let limit = way.time_limit();
    if let Err(full) = counted.enter() {
        let text = counted.full(full);
        counted.replied(&text, text.record());
        return reply(client, &request, upload.body.is_over(), &text).await;
    }
    counted.cluster.budget.borrow_mut().request();
    let mut exchange = Exchange {
        client,
        waiting,
        request: &request,
        counted,
        response: Vec::new(),
        head,
        changes: way.answer_changes(),
        tries: Tries::default(),
        trial: None,
        answered: false,
        passed: Cell::default(),
    };
    let next = match limit {
        None => exchange.until_answered(&mut upload).await,
        Some(limit) => Box::pin(exchange.within(limit, &mut upload)).await,
    };
    exchange.counted.moved(upload.moved.get(), exchange.passed.get());
    waiting.unset();
    next
}

struct Exchange<'a> {
    client: &'a Client,
    /// For waiting on endpoints.
    waiting: &'a Deadline,
    request: &'a Request,
    counted: Counted,
    /// The head of the answer, if it has to be rewritten.
    response: Vec<u8>,
    /// Length of the request's head.
    head: usize,
    /// What is changed in the head of the answer.
    changes: Option<Box<AnswerChanges>>,
    tries: Tries,
    /// The one that is under way.
    trial: Option<Trial>,
    /// The client has been sent (a part of) an answer.
    answered: bool,
    /// Bytes of the body of the answer so far.
    passed: Cell<u64>,
}

impl Exchange<'_> {
    /// The whole answer has to be there in time.
    async fn within(&mut self, limit: Duration, upload: &mut Upload<'_>) -> Next {
        match tokio::time::timeout(limit, self.until_answered(upload)).await {
            Ok(next) => next,
            Err(_) if self.answered => {
                self.counted.failed(0);
                self.counted.because("timed_out");
                Next::Reset
            }
            Err(_) => {
                // As long as the client is still sending, it is not for the endpoint to answer.
                if let Some(trial) = self.trial.take().filter(|_| upload.body.is_over()) {
                    trial.failed(&self.counted, Failure::TimedOut);
                }
                let text = Reply::timed_out(self.counted.cluster.id());
                self.failed(upload, &text).await
            }
        }
    }

    async fn until_answered(&mut self, upload: &mut Upload<'_>) -> Next {
        let mut placement = Placement::of(Some(&self.client.stream));
        // What is still to come may turn out too long to be kept and sent again.
        let repeatable = self.request.idempotent && upload.body.is_over();
        let mut reuse = if repeatable { Reuse::Any } else { Reuse::Checked };
        loop {
            let worker = &self.client.worker;
            let upstream = match placement.acquire(worker, &self.counted, reuse).await {
                Ok(upstream) => upstream,
                Err(Unavailable::ClientGone) => {
                    self.counted.client_gone();
                    return Next::Reset;
                }
                Err(why) => {
                    let text = Reply::unavailable(self.counted.cluster.id(), why);
                    return self.failed(upload, &text).await;
                }
            };
            placement.placed();
            let trial = Trial::begin(&self.counted, &upstream.in_flight.endpoint);
            self.tries.sent();
            self.trial = Some(trial.clone());
            route::bind(&mut self.changes, &self.counted, &trial.endpoint);
            let failure = match self.attempt(upload, upstream, &trial).await {
                Attempt::Answered(next, _) => return next,
                Attempt::Upgraded(_) => return Next::Close,
                Attempt::Again(failure) => {
                    self.next_try(&mut placement, trial, failure).await;
                    reuse = Reuse::No;
                    continue;
                }
                Attempt::Failed(failure) => failure,
                Attempt::Nonsense => Failure::Answering,
                Attempt::TimedOut => Failure::TimedOut,
                Attempt::Client(None) => {
                    self.counted.client_gone();
                    return Next::Reset;
                }
                Attempt::Client(Some(refusal)) => {
                    let text = Reply::refused(refusal);
                    self.counted.replied(&text, text.record());
                    return reply(self.client, self.request, false, &text).await;
                }
            };
            self.trial = None;
            trial.failed(&self.counted, failure);
            let state = Repeatable { idempotent: self.request.idempotent, kept: upload.repeatable };
            if !self.tries.again(&self.counted, failure, state) {
                let (cluster, instance) =
                    (self.counted.cluster.id(), &trial.endpoint.shared.instance);
                tracing::debug!(cluster, %instance, ?failure, "a request failed");
                let text = match failure {
                    Failure::TimedOut => Reply::timed_out(cluster),
                    _ => Reply::broken(cluster),
                };
                return self.failed(upload, &text).await;
            }
            self.next_try(&mut placement, trial, failure).await;
            // One kept-alive connection was stale, so the others may be too.
            reuse = Reuse::No;
        }
    }

    async fn next_try(&mut self, placement: &mut Placement<'_>, trial: Trial, failure: Failure) {
        self.trial = None;
        self.counted.retried();
        placement.broke(trial.endpoint, failure);
        Box::pin(self.tries.pause(&self.counted)).await;
    }

    /// Tells the client that the platform failed it.
    async fn failed(&self, upload: &Upload<'_>, text: &Reply) -> Next {
        self.counted.failed(text.status());
        self.counted.replied(text, text.record());
        reply(self.client, self.request, upload.body.is_over(), text).await
    }

    /// Sends the request to one endpoint and passes its answer on.
    async fn attempt(
        &mut self,
        upload: &mut Upload<'_>,
        upstream: Upstream,
        trial: &Trial,
    ) -> Attempt {
        let waiting = self.waiting;
        waiting.unset();
        let written = stream::write_all(&upstream.line, upload.sent, waiting).await;
        // If a part went out the endpoint may have answered before it closed.
        if let Err((0, _)) = written {
            return Attempt::Failed(Failure::NothingSent);
        }
        let attempt = if upload.body.is_over() {
            let kept = upload.repeatable;
            self.answer(&upstream, trial, waiting, &Progress::uploaded(kept)).await
        } else {
            Box::pin(self.both_ways(upload, &upstream, trial, waiting)).await
        };
        match attempt {
            Attempt::Answered(next, Connected::Reusable) => {
                let Upstream { line, in_flight, .. } = upstream;
                in_flight.check_in(line, self.client.worker.deadlines.now_ms());
                Attempt::Answered(next, Connected::Used)
            }
            Attempt::Upgraded(down) => {
                let up = std::mem::take(upload.input);
                self.counted.is_tunnel();
                let tunnel =
                    tunnel::both_ways(self.client, &self.counted, &upstream.line, up, down);
                let ended = Box::pin(tunnel).await;
                let next = if ended.is_ok() { Next::Close } else { Next::Reset };
                Attempt::Answered(next, Connected::Used)
            }
            other => other,
        }
    }

    /// The answer may begin, and even end, while the body of the request is still on its way.
    async fn both_ways(
        &mut self,
        upload: &mut Upload<'_>,
        upstream: &Upstream,
        trial: &Trial,
        waiting: &Deadline,
    ) -> Attempt {
        let progress = Progress::default();
        let head = self.head;
        let flow = self.counted.flow.clone();
        let idle = Idle { flow: flow.as_deref(), ..self.counted.idle() };
        let mut sending = pin!(upload.rest(self.client, &upstream.line, head, idle));
        let mut answering = pin!(self.answer(upstream, trial, waiting, &progress));
        let mut stopped = false;
        poll_fn(|cx| {
            if !stopped && let Poll::Ready(result) = sending.as_mut().poll(cx) {
                stopped = true;
                match result {
                    Ok(()) => progress.uploaded.set(true),
                    Err(Broken::Source) => return Poll::Ready(Attempt::Client(None)),
                    Err(Broken::Malformed) if progress.answered.get() => {
                        return Poll::Ready(Attempt::Client(None));
                    }
                    Err(Broken::Malformed) => {
                        let refusal = Refusal::Malformed("its body is not properly chunked");
                        return Poll::Ready(Attempt::Client(Some(refusal)));
                    }
                    // It may have answered before it closed.
                    Err(Broken::Sink) => {}
                }
            }
            answering.as_mut().poll(cx)
        })
        .await
    }

    async fn answer(
        &mut self,
        upstream: &Upstream,
        trial: &Trial,
        waiting: &Deadline,
        progress: &Progress,
    ) -> Attempt {
        let mut time = self.counted.cluster.times().one_try;
        // A client of which the runtime has not heard yet is watched only when the endpoint takes its time.
        let mut watched = !self.client.stream.is_fresh() || time <= TICK;
        // No buffer is held while the endpoint thinks; what is wrong with the connection the read will say.
        loop {
            waiting.set(if watched { time } else { TICK });
            match self.news(upstream, waiting, watched).await {
                Err(e) if is_timeout(&e) && !watched => (watched, time) = (true, time - TICK),
                // Its time begins when it has the whole request.
                Err(e) if is_timeout(&e) && !progress.uploaded.get() => {}
                Err(e) if is_timeout(&e) => return Attempt::TimedOut,
                Ok(News::ClientGone) => return Attempt::Client(None),
                Ok(News::Upstream) | Err(_) => break,
            }
        }
        let worker = &self.client.worker;
        let mut input = worker.buffers.take();
        self.response = worker.heads.take();
        let attempt = self.read_answer(upstream, trial, waiting, progress, &mut input).await;
        worker.buffers.give(input);
        worker.heads.give(std::mem::take(&mut self.response));
        attempt
    }

    /// Waits for the endpoint as long as the client is there. One that ends its side only has said all that it has to
    /// say, and may wait for an answer; a connection that is broken will take none.
    async fn news(
        &self,
        upstream: &Upstream,
        waiting: &Deadline,
        watched: bool,
    ) -> io::Result<News> {
        let client = &self.client.stream;
        let mut broken = None;
        let polled = waiting.until(|cx| {
            if let Poll::Ready(ready) = upstream.line.poll_read_ready(cx) {
                return Poll::Ready(ready.map(|()| News::Upstream));
            }
            // Most clients say nothing before they have the answer, and that costs less to look at.
            if !watched || (broken.is_none() && client.poll_read_ready(cx).is_pending()) {
                return Poll::Pending;
            }
            let broken = broken.get_or_insert_with(|| Box::pin(client.broken()));
            broken.as_mut().poll(cx).map(|()| Ok(News::ClientGone))
        });
        polled.await
    }

    async fn read_answer(
        &mut self,
        upstream: &Upstream,
        trial: &Trial,
        waiting: &Deadline,
        progress: &Progress,
        input: &mut Buffer,
    ) -> Attempt {
        let mut interim = 0;
        loop {
            if (interim > 0 || !input.is_empty())
                && matches!(self.news(upstream, waiting, true).await, Ok(News::ClientGone))
            {
                return Attempt::Client(None);
            }
            match stream::read(&upstream.line, input.room(MAX_HEAD), waiting).await {
                Err(e) if is_timeout(&e) => return Attempt::TimedOut,
                Ok(0) | Err(_) if interim > 0 || !input.is_empty() => return Attempt::Nonsense,
                Ok(0) | Err(_) if upstream.reused => return Attempt::Failed(Failure::Stale),
                Ok(0) | Err(_) => return Attempt::Failed(Failure::CutOff),
                Ok(n) => input.filled(n),
            }
            loop {
                let ending = self.client.worker.ending.get();
                let keep_alive = self.request.keep_alive && progress.uploaded.get() && !ending;
                let changes = self.changes.as_deref();
                let (bytes, out) = (input.bytes(), &mut self.response);
                match response::parse(bytes, self.request, keep_alive, changes, out) {
                    Err(_) => return Attempt::Nonsense,
                    Ok(None) => {
                        upstream.line.got_part(input.len());
                        break;
                    }
                    Ok(Some(head)) if head.is_interim() => {
                        interim += 1;
                        if interim > MAX_INTERIM {
                            return Attempt::Nonsense;
                        }
                        if self.interim(&head, input).await.is_err() {
                            return Attempt::Client(None);
                        }
                        input.consume(head.head);
                    }
                    Ok(Some(head)) => {
                        trial.answered(&self.counted, head.status);
                        let failure = Failure::Status(head.status);
                        let state = Repeatable {
                            idempotent: self.request.idempotent,
                            kept: progress.kept && progress.uploaded.get(),
                        };
                        if head.status >= 400 && self.tries.again(&self.counted, failure, state) {
                            return Attempt::Again(failure);
                        }
                        return self.pass_on(head, upstream, waiting, progress, input).await;
                    }
                }
                if input.is_empty() {
                    break;
                }
            }
        }
    }

    /// Passes on an announcement; clients of HTTP/1.0 know none.
    async fn interim(&self, head: &Response, input: &Buffer) -> Result<(), (usize, io::Error)> {
        if self.request.http10 {
            return Ok(());
        }
        let bytes = if head.rewritten { &self.response[..] } else { &input.bytes()[..head.head] };
        stream::write_all(&self.client.stream, bytes, &self.client.deadline).await
    }

    async fn pass_on(
        &mut self,
        head: Response,
        upstream: &Upstream,
        waiting: &Deadline,
        progress: &Progress,
        input: &mut Buffer,
    ) -> Attempt {
        if head.status == 101 {
            return self.upgrade(head, input).await;
        }
        let Self { client, counted, response, answered, passed, .. } = self;
        let mut body = head.body;
        let mut content = Vec::new();
        let bytes = &input.bytes()[head.head..];
        let taken =
            if head.unchunk { body.take_content(bytes, &mut content) } else { body.take(bytes) };
        let Ok(taken) = taken else { return Attempt::Nonsense };
        counted.answered(head.status);
        passed.set(if head.unchunk { content.len() } else { taken } as u64);
        progress.answered.set(true);
        *answered = true;
        // Two deadlines: an upload may be waiting for the client at the same time.
        let written = if head.unchunk {
            stream::write_both(&client.stream, response, &content, waiting).await
        } else if head.rewritten && taken <= SMALL_BODY {
            // One piece of memory is written with less ado than two.
            response.extend_from_slice(&bytes[..taken]);
            stream::write_all(&client.stream, response, waiting).await
        } else if head.rewritten {
            stream::write_both(&client.stream, response, &bytes[..taken], waiting).await
        } else {
            stream::write_all(&client.stream, &input.bytes()[..head.head + taken], waiting).await
        };
        if written.is_err() {
            return Attempt::Client(None);
        }
        input.consume(head.head + taken);
        if !body.is_over() {
            upstream.line.got_part(head.head + taken);
            let mut relay = Relay {
                worker: &client.worker,
                from: &upstream.line,
                to: &client.stream,
                deadline: waiting,
                idle: counted.idle(),
                unchunk: head.unchunk,
                moved: passed,
            };
            match Box::pin(relay.run(&mut body, input)).await {
                Ok(()) => {}
                Err(Broken::Sink) => return Attempt::Client(None),
                Err(Broken::Source | Broken::Malformed) => {
                    counted.failed(0);
                    counted.because("cut_off");
                    return Attempt::Answered(Next::Reset, Connected::Used);
                }
            }
        }
        let next = match (progress.uploaded.get(), head.keep_alive) {
            (false, _) => Next::Linger,
            (true, true) => Next::Request,
            (true, false) => Next::Close,
        };
        let reusable = head.reusable && input.is_empty() && progress.uploaded.get();
        Attempt::Answered(next, if reusable { Connected::Reusable } else { Connected::Used })
    }

    async fn upgrade(&self, head: Response, input: &mut Buffer) -> Attempt {
        let bytes = if head.rewritten { &self.response[..] } else { &input.bytes()[..head.head] };
        let deadline = &self.client.deadline;
        self.counted.upgraded(head.status);
        if stream::write_all(&self.client.stream, bytes, deadline).await.is_err() {
            return Attempt::Client(None);
        }
        input.consume(head.head);
        Attempt::Upgraded(std::mem::take(input))
    }
}

fn is_timeout(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

/// Answers a request without an endpoint. The connection goes on if the whole request has been read.
pub async fn reply(client: &Client, request: &Request, complete: bool, text: &Reply) -> Next {
    let keep_alive =
        request.keep_alive && complete && !client.worker.ending.get() && !request.http10;
    let bytes = text.write(keep_alive, request.is_head);
    match stream::write_all(&client.stream, &bytes, &client.deadline).await {
        Ok(()) if keep_alive => Next::Request,
        Ok(()) => Next::Linger,
        Err(_) => Next::Close,
    }
}
