//! What breaks, on either side, and who hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::Reason;
use http::Response;
use keel_model::{EndpointState, Protocol, TrafficPolicy};
use tokio::sync::mpsc;

use super::background::wait;
use super::client::{Http2Client, request};
use super::either::{Answer, Endpoint, Message, Version, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, OK, block};
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
