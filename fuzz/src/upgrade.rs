//! The upgrade to HTTP/2: a request becomes the frame that the library reads as the same request and nothing more.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use h2::server::Connection;
use keel_proxy::fuzz::{settings_end, upgraded};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client begins with: the preface, and settings that change nothing.
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A request on stream 3 by indices of the static table: GET, http, /.
const NEXT: &[u8] = b"\0\0\x03\x01\x05\0\0\0\x03\x82\x86\x84";
/// Turns of the connection until it has seen all that is there.
const TURNS: usize = 16;
/// Fields that concern one hop only, or become another one.
const HOP: &[&str] = &[
    "connection",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A name in lower case, and a value.
type Field = (String, Vec<u8>);

/// `upgrade`.
pub fn run(bytes: &[u8]) {
    settings(bytes);
    let Some((frame, head)) = upgraded(bytes) else { return };
    settings(&bytes[head..]);
    let requests = seen(&[BEGINNING, &frame, NEXT].concat());
    // The library may refuse what HTTP/1.1 allows, but then it goes on with the next frame.
    let last = requests.last().expect("the next request is seen");
    assert_eq!((last.method().as_str(), last.uri().path()), ("GET", "/"));
    assert!(last.headers().is_empty(), "fields of the first request are in the next");
    let [first, _] = &requests[..] else {
        assert_eq!(requests.len(), 1, "one request became several");
        return;
    };
    let (method, fields) = sent(&bytes[..head]);
    assert_eq!(first.method().as_str(), method);
    let passed: Vec<Field> = first
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    assert_eq!(sorted(passed), sorted(fields));
}

/// A verdict stands whatever follows.
fn settings(bytes: &[u8]) {
    let whole = settings_end(bytes);
    for cut in crate::cuts(bytes, 4) {
        crate::stands(&whole, &settings_end(&bytes[..cut]), |end| *end, cut);
    }
}

/// The method of a head, and the fields that are for the service.
fn sent(head: &[u8]) -> (String, Vec<Field>) {
    let mut lines = head.split(|b| *b == b'\n').map(|line| line.trim_ascii());
    let first = lines.by_ref().find(|line| !line.is_empty()).expect("a first line");
    let method = String::from_utf8_lossy(first.split(|b| *b == b' ').next().unwrap_or_default());
    let fields: Vec<Field> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|b| *b == b':')?;
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            Some((name, line[colon + 1..].trim_ascii().to_vec()))
        })
        .collect();
    let nominated: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| value.split(|b| *b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let passes = |(name, _): &Field| !HOP.contains(&name.as_str()) && !nominated.contains(name);
    (method.into_owned(), fields.into_iter().filter(passes).collect())
}

/// Fields of one name keep their order, the names do not.
fn sorted(mut fields: Vec<Field>) -> Vec<Field> {
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

/// The requests that the library reads.
fn seen(bytes: &[u8]) -> Vec<http::Request<h2::RecvStream>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut handshake = pin!(h2::server::handshake(Wire(bytes)));
    let mut connection: Option<Connection<Wire<'_>, bytes::Bytes>> = None;
    let mut requests = Vec::new();
    for _ in 0..TURNS {
        let Some(connection) = &mut connection else {
            if let Poll::Ready(begun) = handshake.as_mut().poll(&mut context) {
                connection = Some(begun.expect("the beginning is right"));
            }
            continue;
        };
        match connection.poll_accept(&mut context) {
            // What could answer is dropped with the request, which resets its stream.
            Poll::Ready(Some(Ok((request, _)))) => requests.push(request),
            Poll::Ready(Some(Err(_)) | None) => break,
            Poll::Pending => {}
        }
    }
    requests
}

/// A connection on which everything has arrived, everything can be sent, and nothing more comes.
struct Wire<'a>(&'a [u8]);

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.0.split_at(self.0.len().min(room.remaining()));
        room.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_usual_upgrade_is_seen_by_the_library() {
        let input = include_bytes!("../corpus/upgrade/curl");
        let (frame, _) = upgraded(input).expect("an upgrade");
        let requests = seen(&[BEGINNING, &frame, NEXT].concat());
        let targets: Vec<_> = requests.iter().map(|r| r.uri().to_string()).collect();
        assert_eq!(targets, ["http://a.test/a?b", "/"]);
    }
}
