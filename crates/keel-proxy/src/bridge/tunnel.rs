//! WebSocket over HTTP/2 (RFC 8441) to a service that speaks it over HTTP/1.1 (RFC 6455). The other way is in
//! [`super::connect`].
//!
//! The handshakes differ, the frames behind them do not: they pass as they are.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;

use base64::Engine as _;
use http::header::HeaderName;
use http::{Method, StatusCode};
use keel_route::retry::Failure;

use crate::bridge::Exchange;
use crate::bridge::endpoint::{Outcome, relay};
use crate::bridge::received::{Answer, Received};
use crate::bridge::sink::Extent;
use crate::bridge::source::{Http1Source, Source};
use crate::bridge::upload::{Broken, Upload};
use crate::deadline::Deadline;
use crate::http1::Body;
use crate::stream;
use crate::tries::Trial;
use crate::upstream::Upstream;

pub(super) const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
pub(super) const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

impl Exchange<'_> {
    /// Asks an endpoint of HTTP/1.1 for the upgrade and passes what comes after it both ways.
    pub async fn try_tunnel(
        &mut self,
        upstream: Upstream,
        trial: &Trial,
        upload: &mut Upload<'_>,
        waiting: &Deadline,
    ) -> Outcome {
        let mut head = self.head.clone();
        head.method = Method::GET;
        let key = base64::engine::general_purpose::STANDARD.encode(self.nonce());
        if let Ok(key) = key.parse() {
            head.headers_mut().insert(KEY, key);
        }
        let mut first = Vec::new();
        let upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n";
        head.to_http1(upgrade, &self.origin(), &mut first);
        if let Err((0, _)) = stream::write_all(&upstream.line, &first, waiting).await {
            return Outcome::Failed(Failure::NothingSent);
        }
        let mut input = Received::default();
        let answer = match self.tunnel_head(&upstream, waiting, &mut input).await {
            Ok(answer) => answer,
            Err(outcome) => return outcome,
        };
        let Answer { status, mut headers, body, .. } = answer;
        headers.remove(ACCEPT);
        let agreed = status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(changes) = &self.changes {
            changes.apply(&mut headers);
        }
        let (status, body) = match status {
            StatusCode::SWITCHING_PROTOCOLS => (StatusCode::OK, Body::UntilClose),
            status => (status, body),
        };
        let Some(caller) = self.caller.take() else { return Outcome::CallerGone };
        trial.answered(&self.counted, status.as_u16());
        self.counted.is_tunnel();
        if agreed {
            self.counted.upgraded(status.as_u16());
        } else {
            self.counted.answered(status.as_u16());
        }
        let extent = if body.is_over() { Extent::None } else { Extent::Some };
        let Ok(mut sink) = caller.head(status, headers, extent, waiting).await else {
            return Outcome::CallerGone;
        };
        if extent == Extent::None {
            return Outcome::Answered(sink.done(true));
        }
        let never = [(); 2].map(|()| Deadline::never(&self.session.worker.deadlines));
        let source = Http1Source {
            worker: &self.session.worker,
            conn: &upstream.line,
            body,
            ahead: input.ahead,
            input: input.buffer,
            trailers: Vec::new(),
        };
        let mut source = Source::Http1(source);
        let passed = {
            let up = async {
                let sent = upload.send_http1(&upstream.line, false, &never[0]).await;
                sent?;
                upstream.line.end(&never[0]).await.map_err(|_| Broken::Sink)
            };
            let down = relay(&mut source, &mut sink, &never[1], &self.counted);
            until_both_end(up, down).await
        };
        match passed {
            Ok(()) => Outcome::Answered(sink.done(true)),
            Err(_) => {
                upstream.line.reset_on_close();
                Outcome::Answered(sink.abort().await)
            }
        }
    }

    fn nonce(&self) -> [u8; 16] {
        let mut random = self.session.worker.random.borrow_mut();
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&random.bits().to_be_bytes());
        nonce[8..].copy_from_slice(&random.bits().to_be_bytes());
        nonce
    }

    async fn tunnel_head(
        &mut self,
        upstream: &Upstream,
        waiting: &Deadline,
        input: &mut Received,
    ) -> Result<Answer, Outcome> {
        let mut request = self.as_http1();
        request.upgrade = true;
        waiting.set(self.counted.cluster.times().response);
        loop {
            match stream::readable(&upstream.line, waiting).await {
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Outcome::TimedOut),
                Ok(()) | Err(_) => {}
            }
            match input.read(&upstream.line, &self.session.worker) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => return Err(Outcome::Failed(Failure::CutOff)),
            }
            let failed = |()| Outcome::Failed(Failure::Answering);
            if let Some(answer) = input.head(&request).map_err(failed)? {
                return Ok(answer);
            }
        }
    }
}

/// Waits for both directions; one that breaks ends both.
pub(super) async fn until_both_end(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let mut up_ended = false;
    poll_fn(|cx| {
        if !up_ended && let Poll::Ready(sent) = up.as_mut().poll(cx) {
            up_ended = true;
            if let Err(broken) = sent {
                return Poll::Ready(Err(broken));
            }
        }
        // What the client still says after the service has ended, nobody hears.
        down.as_mut().poll(cx)
    })
    .await
}
