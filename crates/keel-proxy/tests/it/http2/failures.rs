//! What breaks, on either side: who hears of it, what is tried again, what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::Reason;
use http::Response;
use keel_model::{EndpointState, Protocol, TrafficPolicy};
use tokio::sync::mpsc;

use super::background::wait;
use super::client::{Http2Client, request};
use super::either::{ALL, Answer, Caller, Content, Endpoint, Message, Version, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::{Backend, read_body};
use crate::client::Client;
use crate::frames::{
    CANCEL, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, OK,
    REFUSED_STREAM, RST_STREAM, block,
};
use crate::proxy::{Proxy, cluster, until};

/// An endpoint whose handling of a request ends with the request; each end is told.
fn patient(version: Version, began: mpsc::Sender<()>, ended: mpsc::Sender<()>) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(move |mut connection| {
            while let Some(head) = connection.head() {
                if head.contains(" /answer ") {
                    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    connection.send("1\r\nx\r\n");
                }
                began.blocking_send(()).unwrap();
                // Until the proxy closes it, or gives up waiting for that.
                let mut rest = Vec::new();
                let read = std::io::Read::read_to_end(&mut connection.reader, &mut rest);
                let gave_up =
                    read.err().is_some_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
                assert!(!gave_up, "the endpoint hears of it");
                ended.blocking_send(()).unwrap();
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(move |mut exchange| {
            let (began, ended) = (began.clone(), ended.clone());
            async move {
                let mut body = None;
                if exchange.path() == "/answer" {
                    let mut stream = exchange.begin(Response::builder());
                    stream.send_data("x".into(), false).unwrap();
                    body = Some(stream);
                }
                began.send(()).await.unwrap();
                let reset = std::future::poll_fn(|cx| match &mut body {
                    Some(body) => body.poll_reset(cx),
                    None => exchange.respond.poll_reset(cx),
                });
                assert_eq!(reset.await.unwrap(), Reason::CANCEL);
                ended.send(()).await.unwrap();
            }
        })),
    }
}

#[test]
fn a_request_that_its_client_gives_up_ends_at_its_endpoint_too() {
    for version in [Version::One, Version::Two] {
        let ((begin, mut began), (end, mut ended)) = (mpsc::channel(1), mpsc::channel(1));
        let endpoint = patient(version, begin, end);
        let (mut proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            // While the endpoint thinks, while the body is on its way, while the answer is.
            for (path, whole) in [("/think", true), ("/think", false), ("/answer", true)] {
                let mut call = client.begin(request("POST", path), whole).await;
                if !whole {
                    call.send("the first of it", false).await.unwrap();
                }
                began.recv().await.unwrap();
                if path == "/answer" {
                    assert_eq!(call.head().await.unwrap().status(), 200);
                }
                call.body.send_reset(Reason::CANCEL);
                drop(call);
                ended.recv().await.unwrap();
            }
        });
        until("nothing is in flight", || (proxy.stats().in_flight == 0).then_some(()));
        let stats = proxy.stats();
        assert_eq!((stats.requests, stats.retries), (3, 0));
        assert_eq!(stats.failed, 0, "the platform failed nobody");
    }
}

#[test]
fn a_request_given_up_while_it_was_held_is_never_sent() {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let endpoint = Endpoint::new(Version::Two, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Answer { status: 200, message: Message::default() }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[]);
    wait(async {
        let client = Http2Client::connect(address).await;
        let mut calls = Vec::new();
        for _ in 0..20 {
            calls.push(client.begin(request("POST", "/"), true).await);
        }
        until("they are held", || (proxy.stats().held == 20).then_some(()));
        let kept = calls.pop().unwrap();
        for mut call in calls {
            call.body.send_reset(Reason::CANCEL);
        }
        // What comes on the same connection behind the resets comes after them.
        let last = client.begin(request("POST", "/"), true).await;
        until("the last is held", || (proxy.stats().held == 21).then_some(()));
        let mut state = cluster(&[(endpoint.address(), EndpointState::Ready)], true);
        state.protocol = Protocol::Http2;
        proxy.server.update(state);
        assert_eq!(kept.answer().await.unwrap().status, 200);
        assert_eq!(last.answer().await.unwrap().status, 200);
    });
    assert_eq!(taken.load(Ordering::SeqCst), 2);
}

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
            call.send("body", true).await.unwrap();
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
    address: std::net::SocketAddr,
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
    address: std::net::SocketAddr,
    pieces: impl Iterator<Item = &[u8]>,
    known: bool,
) -> String {
    let client = Http2Client::connect(address).await;
    let pieces: Vec<_> = pieces.map(bytes::Bytes::copy_from_slice).collect();
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

#[test]
fn an_endpoint_that_does_not_speak_http2_is_answered_for() {
    let http1 = Backend::new(|mut connection| {
        connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        connection.head();
    });
    let garbage = Backend::new(|mut connection| {
        let _ = std::io::Write::write_all(connection.reader.get_mut(), &[0xff; 5000]);
        connection.head();
    });
    let nonsense = Backend::new(|connection| {
        let mut endpoint = Frames::serve(connection, &[]);
        while let Some(frame) = endpoint.next() {
            if frame.kind == HEADERS {
                // An answer without a status.
                endpoint.send(HEADERS, END_HEADERS, frame.stream, &block(&[("x", "y")]));
            }
        }
    });
    for endpoint in [http1, garbage, nonsense] {
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
        let begun = Instant::now();
        wait(async {
            let client = Http2Client::connect(address).await;
            assert_eq!(client.post("/", "x").await.status, 502);
            assert_eq!(client.get("/").await.status, 502);
        });
        assert_eq!(Client::connect(address).get("/").status, 502);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn an_endpoint_may_not_switch_protocols_unasked() {
    let backend = Backend::new(|mut connection| {
        while connection.request().is_some() {
            let switch = "HTTP/1.1 101 Switching Protocols\r\n";
            connection.send(&format!("{switch}Connection: Upgrade\r\nUpgrade: x\r\n\r\n"));
        }
    });
    let (_proxy, address) = Endpoint::One(backend).behind();
    wait(async {
        assert_eq!(Http2Client::connect(address).await.get("/").await.status, 502);
    });
}

#[test]
fn an_endpoint_that_closes_its_connections_between_requests_is_not_noticed() {
    // With a farewell, and without; each connection serves one request, and its end is told.
    for polite in [true, false] {
        let (close, mut closed) = mpsc::channel(1);
        let endpoint = Backend::new(move |connection| {
            let mut endpoint = Frames::serve(connection, &[]);
            let request = endpoint.until("a request", |frame| {
                [HEADERS, DATA].contains(&frame.kind) && frame.flags & END_STREAM != 0
            });
            endpoint.send(HEADERS, END_HEADERS | END_STREAM, request.stream, OK);
            if polite {
                let farewell = [request.stream.to_be_bytes(), [0; 4]].concat();
                endpoint.send(GOAWAY, 0, 0, &farewell);
            }
            endpoint.end_sending();
            endpoint.end();
            close.blocking_send(()).unwrap();
        });
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
        wait(async {
            let client = Http2Client::connect(address).await;
            for n in 1..=10 {
                assert_eq!(client.post("/", "x").await.status, 200, "{n}");
                closed.recv().await.unwrap();
            }
        });
        let stats = proxy.stats();
        assert_eq!((stats.failed, stats.retries), (0, 0));
    }
}

/// A proxy before endpoints of HTTP/2 that is told how long things may take.
fn with_timeouts(
    endpoint: &Http2Endpoint,
    response_ms: u64,
    request_ms: Option<u64>,
) -> (Proxy, std::net::SocketAddr) {
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let mut policy = TrafficPolicy::default();
    policy.timeouts.response = Duration::from_millis(response_ms);
    policy.timeouts.request = request_ms.map(Duration::from_millis);
    let mut state = cluster(&[(endpoint.address, EndpointState::Ready)], true);
    state.protocol = Protocol::Http2;
    state.policy = Some(Box::new(policy));
    proxy.server.update(state);
    (proxy, address)
}

#[test]
fn an_endpoint_that_takes_too_long_is_given_up() {
    let (reset, mut resets) = mpsc::channel(1);
    let endpoint = Http2Endpoint::new(move |mut exchange| {
        let reset = reset.clone();
        async move {
            let mut body =
                (exchange.path() == "/begin").then(|| exchange.begin(Response::builder()));
            let gone = std::future::poll_fn(|cx| match &mut body {
                Some(body) => body.poll_reset(cx),
                None => exchange.respond.poll_reset(cx),
            });
            reset.send(gone.await.unwrap()).await.unwrap();
        }
    });
    let (mut proxy, address) = with_timeouts(&endpoint, 300, Some(1500));
    wait(async {
        let client = Http2Client::connect(address).await;
        let answer = client.get("/never").await;
        assert_eq!((answer.status.as_u16(), resets.recv().await), (504, Some(Reason::CANCEL)));
        // An answer that has begun can only be broken off.
        let mut call = client.begin(request("GET", "/begin"), true).await;
        assert_eq!(call.head().await.unwrap().status(), 200);
        assert!(call.answer().await.is_err());
        assert_eq!(resets.recv().await, Some(Reason::CANCEL));
        // A call of gRPC hears of it in its own terms, and may say itself how long.
        let grpc = request("POST", "/never").header("content-type", "application/grpc");
        let answer = client.begin(grpc, true).await.answer().await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["grpc-status"]),
            (200, &"4".parse().unwrap())
        );
        resets.recv().await;
    });
    assert_eq!(proxy.stats().failed, 3);
}

#[test]
fn the_deadline_of_a_call_of_grpc_is_kept() {
    let endpoint = Http2Endpoint::new(|mut exchange| async move {
        let _ = std::future::poll_fn(|cx| exchange.respond.poll_reset(cx)).await;
    });
    let (_proxy, address) = with_timeouts(&endpoint, 60_000, None);
    wait(async {
        let client = Http2Client::connect(address).await;
        let begun = Instant::now();
        let grpc = request("POST", "/never")
            .header("content-type", "application/grpc+proto")
            .header("grpc-timeout", "200m");
        let answer = client.begin(grpc, true).await.answer().await.unwrap();
        assert_eq!(answer.headers["grpc-status"], "4");
        assert!(answer.headers.contains_key("grpc-message"));
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert!(begun.elapsed() < Duration::from_secs(10));
    });
}
