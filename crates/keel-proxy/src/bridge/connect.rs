//! WebSocket to a service that speaks HTTP/2 (RFC 8441), for clients of either version.
//!
//! A client of HTTP/1 shakes hands as RFC 6455 has it; the key that this takes has no meaning over HTTP/2, so that its
//! proof is given here.

use std::task::Poll;

use base64::Engine as _;
use h2::{Reason, RecvStream};
use http::Method;
use http::header::HeaderValue;
use keel_route::retry::Failure;
use sha1::{Digest as _, Sha1};

use crate::bridge::endpoint::{OnTheWay, Outcome, relay};
use crate::bridge::sink::Sink;
use crate::bridge::source::Source;
use crate::bridge::tunnel::{ACCEPT, KEY, until_both_end};
use crate::bridge::upload::Upload;
use crate::bridge::{Exchange, failure_of};
use crate::deadline::Deadline;
use crate::http2::Lane;
use crate::tries::Trial;
use crate::upstream::Upstream;

/// Added to a client's key before its digest is taken (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

impl<'a> Exchange<'a> {
    /// Asks an endpoint of HTTP/2 for a tunnel and passes what comes through it both ways.
    pub async fn try_connect(
        &mut self,
        mut upstream: Upstream<Lane>,
        trial: &Trial,
        upload: &mut Upload<'_>,
    ) -> Outcome {
        if !upstream.line.takes_tunnels().await {
            return Outcome::NoTunnel;
        }
        let secure = self.counted.cluster.policy().tls.is_some();
        let Ok(mut request) = self.head.to_http2(secure, &self.origin()) else {
            return Outcome::NoForm;
        };
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let key = request.headers_mut().remove(KEY);
        let send = &mut upstream.line.send;
        let ready = std::future::poll_fn(|cx| send.poll_ready(cx)).await;
        let sent = ready.and_then(|()| send.send_request(request, false));
        let Ok((response, mut body)) = sent else {
            upstream.line.is_over();
            return Outcome::Failed(Failure::NothingSent);
        };
        let waiting = self.deadline();
        let (parts, down) = match self.agreement(response, &waiting).await {
            Ok(answer) => answer.into_parts(),
            Err(outcome) => {
                body.send_reset(Reason::CANCEL);
                return outcome;
            }
        };
        let mut down = Source::http2(down);
        if !parts.status.is_success() {
            let uploaded = std::cell::Cell::new(true);
            let state = self.repeatable(upload);
            trial.answered(&self.counted, parts.status.as_u16());
            let on_the_way = OnTheWay { trial, uploaded: &uploaded, state };
            let (next, _) =
                self.pass_on(parts.status, parts.headers, down, &waiting, on_the_way).await;
            return Outcome::Answered(next);
        }
        trial.answered(&self.counted, parts.status.as_u16());
        let Ok(mut sink) = self.agree(parts, key.as_ref(), &waiting).await else {
            body.send_reset(Reason::CANCEL);
            return Outcome::CallerGone;
        };
        let never = [(); 2].map(|()| Deadline::never(&self.session.worker.deadlines));
        let passed = {
            let up = upload.send_http2(&mut body, &never[0]);
            let down = relay(&mut down, &mut sink, &never[1], &self.counted);
            until_both_end(up, down).await
        };
        match passed {
            Ok(()) => Outcome::Answered(sink.done(true)),
            Err(_) => {
                body.send_reset(Reason::CANCEL);
                Outcome::Answered(sink.abort().await)
            }
        }
    }

    /// Waits for the endpoint's word, as long as the caller does.
    async fn agreement(
        &mut self,
        mut response: h2::client::ResponseFuture,
        waiting: &Deadline,
    ) -> Result<http::Response<RecvStream>, Outcome> {
        waiting.set(self.counted.cluster.times().response);
        let caller = &mut self.caller;
        let answer = waiting.until(|cx| {
            if caller.as_mut().is_some_and(|caller| caller.poll_gone(cx).is_ready()) {
                return Poll::Ready(Ok(None));
            }
            std::pin::Pin::new(&mut response).poll(cx).map(|answer| Ok(Some(answer)))
        });
        match answer.await {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(Some(Err(error))) => Err(Outcome::Failed(failure_of(&error))),
            Ok(None) => Err(Outcome::CallerGone),
            Err(_) => Err(Outcome::TimedOut),
        }
    }

    /// Tells the caller that the tunnel is open.
    async fn agree(
        &mut self,
        parts: http::response::Parts,
        key: Option<&HeaderValue>,
        waiting: &Deadline,
    ) -> Result<Sink<'a>, Outcome> {
        let mut headers = parts.headers;
        headers.remove(ACCEPT);
        if let Some(changes) = &self.changes {
            changes.apply(&mut headers);
        }
        let Some(caller) = self.caller.take() else { return Err(Outcome::CallerGone) };
        self.counted.is_tunnel();
        self.counted.upgraded(caller.tunnel_status().as_u16());
        if let Some(proof) = key.and_then(|key| proof(key.as_bytes()).parse().ok()) {
            headers.insert(ACCEPT, proof);
        }
        caller.tunnel(headers, waiting).await.map_err(|_| Outcome::CallerGone)
    }
}

/// What shows a client of HTTP/1 that its key was understood (RFC 6455, 4.2.2).
fn proof(key: &[u8]) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_proof_of_the_standard() {
        assert_eq!(super::proof(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
