//! Requests on one connection, as we understand them and as hyper does.
//!
//! What we take, hyper must not frame differently, and what we pass on hyper must read as exactly the requests that we
//! took: then neither can be made to see a request that the other does not.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Response;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use keel_proxy::fuzz::{Ends, RequestHead};

/// Most requests that are looked at.
const MOST: usize = 8;
/// Most lines of a head, or behind a chunked body, that hyper takes (100 fields).
const MOST_LINES: usize = 100;

/// A request: its method, and the content of its body.
type Seen = (String, Vec<u8>);

/// `hyper_agrees`.
pub fn run(bytes: &[u8]) {
    let (ours, passed_on) = we_see(bytes);
    let theirs = hyper_sees(bytes);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "hyper frames it differently");
    }
    assert_eq!(hyper_sees(&passed_on), ours, "{}", passed_on.escape_ascii());
}

/// The requests that we take, and what endpoints get.
fn we_see(mut bytes: &[u8]) -> (Vec<Seen>, Vec<u8>) {
    let (mut seen, mut passed_on) = (Vec::new(), Vec::new());
    while seen.len() < MOST {
        while let Some(rest) = bytes.strip_prefix(b"\r\n") {
            bytes = rest;
        }
        let Ok(Some(head)) = RequestHead::read(bytes) else { break };
        if head.passed_on.split(|b| *b == b'\n').count() > MOST_LINES {
            break;
        }
        let mut reader = head.reader();
        let mut content = Vec::new();
        let body = &bytes[head.length()..];
        let Ok(taken) = reader.take(body, &mut content) else { break };
        let lines = body[..taken].split(|b| *b == b'\n').count();
        if !reader.is_over() || (head.body() == Ends::Chunked && lines > MOST_LINES) {
            break;
        }
        let method = head.passed_on.split(|b| *b == b' ').next().unwrap_or_default();
        seen.push((String::from_utf8_lossy(method).into_owned(), content));
        passed_on.extend_from_slice(&head.passed_on);
        passed_on.extend_from_slice(&body[..taken]);
        bytes = &body[taken..];
        // What follows an upgrade is of another protocol.
        if !head.keep_alive() || head.upgrade() {
            break;
        }
    }
    (seen, passed_on)
}

/// The requests that hyper takes.
fn hyper_sees(bytes: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let method = request.method().to_string();
            if let Ok(body) = request.into_body().collect().await {
                seen.borrow_mut().push((method, body.to_bytes().to_vec()));
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new().half_close(true).serve_connection(Wire(bytes), service);
    let mut connection = pin!(connection);
    let mut context = Context::from_waker(Waker::noop());
    // All is there from the beginning, so that it only waits to let others run.
    for _ in 0..4 * MOST {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
    let mut seen = seen.take();
    seen.truncate(MOST);
    seen
}

/// A connection on which everything has arrived and everything can be sent.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let n = self.0.len().min(room.remaining());
        let (now, later) = self.0.split_at(n);
        room.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
