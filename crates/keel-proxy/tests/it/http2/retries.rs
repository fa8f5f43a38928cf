//! What is tried again, with how much of it, and what never is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use keel_model::Protocol;

use super::background::wait;
use super::client::{Http2Client, request};
use super::either::{ALL, Answer, Content, Endpoint, Message, Version, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{
    CANCEL, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, REFUSED_STREAM, RST_STREAM,
};
use crate::proxy::Proxy;

/// How an endpoint that speaks frame by frame treats its first request on each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// `REFUSED_STREAM`.
    Refuse,
    /// A farewell that names no stream as seen, with this error, then the end.
    NotSeen(u32),
    /// A farewell that names the stream as seen, then the end.
    Seen,
    /// The end of the connection, without a word.
    CutOff,
    /// A reset of the stream with an error that says nothing of what was done.
    Reset,
}

/// Treats every request so; counts them.
fn treating(treatment: Treatment, taken: &Arc<AtomicUsize>) -> Backend {
    let taken = Arc::clone(taken);
    Backend::new(move |connection| {
        let mut endpoint = Frames::serve(connection, &[]);
        while let Some(frame) = endpoint.next() {
            if frame.kind != HEADERS {
                continue;
            }
            taken.fetch_add(1, Ordering::SeqCst);
            let farewell =
                |last: u32, error: u32| [last.to_be_bytes(), error.to_be_bytes()].concat();
            match treatment {
                Treatment::Refuse => {
                    endpoint.send(RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes());
                }
                Treatment::Reset => {
                    endpoint.send(RST_STREAM, 0, frame.stream, &CANCEL.to_be_bytes());
                }
                Treatment::NotSeen(error) => {
                    endpoint.send(GOAWAY, 0, 0, &farewell(0, error));
                    return;
                }
                Treatment::Seen => {
                    endpoint.send(GOAWAY, 0, 0, &farewell(frame.stream, 0));
                    return;
                }
                Treatment::CutOff => return,
            }
        }
    })
}

/// Asks with `method` at an endpoint that treats it so and a good one, often enough to meet both.
fn treated(treatment: Treatment, method: &str) -> (Vec<u16>, usize) {
    let taken = Arc::default();
    let (bad, good) = (treating(treatment, &taken), Http2Endpoint::named("good"));
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[bad.address, good.address]);
    let mut statuses = Vec::new();
    wait(async {
        let client = Http2Client::connect(address).await;
        for _ in 0..20 {
            let mut call = client.begin(request(method, "/"), false).await;
            // The answer may be faster.
            let _ = call.send("body", true).await;
            let answer = call.answer().await.unwrap();
            assert!(answer.status != 200 || answer.text() == "good:4", "with its body");
            statuses.push(answer.status.as_u16());
        }
    });
    let stats = proxy.stats();
    let failed = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(stats.failed as usize, failed);
    (statuses, taken.load(Ordering::SeqCst))
}

#[test]
fn what_no_endpoint_has_looked_at_goes_to_another_one() {
    for treatment in [
        Treatment::Refuse,
        Treatment::NotSeen(0),
        // Whatever is wrong with the connection: the stream is beyond the last one seen (RFC 9113, 6.8).
        Treatment::NotSeen(ENHANCE_YOUR_CALM),
    ] {
        let (statuses, taken) = treated(treatment, "POST");
        assert_eq!(statuses, [200; 20], "{treatment:?}");
        assert!(taken > 0, "nothing was put to the test: {treatment:?}");
    }
}

#[test]
fn what_an_endpoint_may_have_done_is_repeated_only_if_that_does_no_harm() {
    for treatment in [Treatment::Seen, Treatment::CutOff, Treatment::Reset] {
        let (statuses, taken) = treated(treatment, "PUT");
        assert_eq!(statuses, [200; 20], "{treatment:?}");
        assert!(taken > 0, "nothing was put to the test: {treatment:?}");
        let (statuses, taken) = treated(treatment, "POST");
        let failed = statuses.iter().filter(|status| **status == 502).count();
        assert_eq!((statuses.len() - failed, failed), (20 - taken, taken), "{treatment:?}");
        assert!(taken > 0, "nothing was put to the test: {treatment:?}");
    }
}

#[test]
fn a_request_is_repeated_with_its_whole_body_or_not_at_all() {
    // By pieces that come one after the other, so that none of them is at hand together with the head.
    for (client, version) in ALL.into_iter().filter(|all| *all != (Version::One, Version::One)) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let breaking = match version {
            Version::One => Endpoint::One(Backend::new(move |mut connection| {
                if connection.request().is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    connection.reset();
                }
            })),
            Version::Two => Endpoint::Two(Http2Endpoint::new(move |mut exchange| {
                let count = Arc::clone(&count);
                async move {
                    if exchange.body().await.is_ok() {
                        count.fetch_add(1, Ordering::SeqCst);
                        exchange.reset(Reason::INTERNAL_ERROR);
                    }
                }
            })),
        };
        let good = Endpoint::new(version, |got| Answer {
            status: 200,
            message: Message::new(Content::Known(got.message.content.bytes())),
        });
        let mut proxy = Proxy::start();
        let both = [breaking.address(), good.address()];
        let address = serve(&mut proxy, good.protocol(), &both);
        wait(async {
            for known in [true, false].into_iter().cycle().take(16) {
                let body: String = (0..40).map(|n| format!("piece {n} of the body.")).collect();
                let pieces = body.as_bytes().chunks(100);
                let answer = match client {
                    Version::One => pieces_by_http1(address, pieces, known),
                    Version::Two => pieces_by_http2(address, pieces, known).await,
                };
                assert_eq!(answer, body, "from {client:?} to {version:?}, length known: {known}");
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 0, "nothing was put to the test");
        assert_eq!(proxy.stats().failed, 0);
    }
}

fn pieces_by_http1<'a>(
    address: SocketAddr,
    pieces: impl Iterator<Item = &'a [u8]>,
    known: bool,
) -> String {
    let mut client = Client::connect(address);
    let pieces: Vec<_> = pieces.collect();
    let framing = match known {
        true => format!("Content-Length: {}", pieces.concat().len()),
        false => "Transfer-Encoding: chunked".into(),
    };
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
    for piece in pieces {
        if known {
            client.send(piece);
        } else {
            client.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
    }
    if !known {
        client.send("0\r\n\r\n");
    }
    client.answer().body
}

async fn pieces_by_http2(
    address: SocketAddr,
    pieces: impl Iterator<Item = &[u8]>,
    known: bool,
) -> String {
    let client = Http2Client::connect(address).await;
    let pieces: Vec<_> = pieces.map(Bytes::copy_from_slice).collect();
    let length = pieces.concat().len();
    let put = request("PUT", "/");
    let put = if known { put.header("content-length", length) } else { put };
    let mut call = client.begin(put, false).await;
    for (n, piece) in pieces.iter().enumerate() {
        call.send(piece.clone(), n + 1 == pieces.len()).await.unwrap();
        tokio::task::yield_now().await;
    }
    call.answer().await.unwrap().text().to_owned()
}

#[test]
fn a_long_body_is_not_repeated() {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let endpoint = Http2Endpoint::new(move |mut exchange| {
        let count = Arc::clone(&count);
        async move {
            if exchange.body().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
                exchange.reset(Reason::INTERNAL_ERROR);
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        for (size, sends) in [(60_000, 2), (70_000, 1)] {
            let mut call = client.begin(request("PUT", "/"), false).await;
            call.send(vec![b'x'; size], true).await.unwrap();
            assert_eq!(call.answer().await.unwrap().status, 502);
            assert_eq!(taken.swap(0, Ordering::SeqCst), sends, "{size} bytes");
        }
    });
}
