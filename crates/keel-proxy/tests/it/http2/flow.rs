//! Backpressure and multiplexing: memory stays bounded, and nobody waits for somebody else's slowness.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::Response;
use keel_model::Protocol;
use tokio::sync::{Semaphore, watch};

use super::background::{spawn, wait};
use super::client::{Http2Client, part, read, request, send};
use super::either::{Endpoint, Version, serve};
use super::endpoint::{Exchange, Http2Endpoint};
use crate::backend::Backend;
use crate::client::Client;
use crate::proxy::{PATIENCE, Proxy};

const MIB: usize = 1 << 20;
/// Larger than everything between the two ends.
const LARGE: usize = 48 * MIB;
const PIECE: usize = 64 * 1024;

/// Waits until `count` has begun and does not rise any more; where it stands.
async fn settled(count: &AtomicUsize) -> usize {
    let (mut last, mut same) = (0, 0);
    let settle = async {
        // Twenty looks in a row.
        while same < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = count.load(Ordering::SeqCst);
            same = if now == last && now > 0 { same + 1 } else { 0 };
            last = now;
        }
    };
    tokio::time::timeout(PATIENCE, settle).await.expect("it settles");
    last
}

/// Answers every request with [`LARGE`] bytes as they are taken; counts them.
fn pouring(version: Version, poured: &Arc<AtomicUsize>) -> Endpoint {
    let poured = Arc::clone(poured);
    match version {
        Version::One => Endpoint::One(Backend::new(move |mut connection| {
            while connection.request().is_some() {
                connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
                for _ in 0..LARGE / PIECE {
                    connection.send(&"p".repeat(PIECE));
                    poured.fetch_add(PIECE, Ordering::SeqCst);
                }
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(move |mut exchange| {
            let poured = Arc::clone(&poured);
            async move {
                let mut body = exchange.begin(Response::builder());
                for n in 1..=LARGE / PIECE {
                    let last = n == LARGE / PIECE;
                    if send(&mut body, vec![b'p'; PIECE].into(), last).await.is_err() {
                        return;
                    }
                    poured.fetch_add(PIECE, Ordering::SeqCst);
                }
            }
        })),
    }
}

#[test]
fn a_client_that_reads_slowly_slows_its_endpoint() {
    for (client, version) in
        [(Version::Two, Version::One), (Version::Two, Version::Two), (Version::One, Version::Two)]
    {
        let poured = Arc::default();
        let endpoint = pouring(version, &poured);
        let (proxy, address) = endpoint.behind();
        let before = proxy.process.memory();
        wait(async {
            let bounded = async || {
                let taken = settled(&poured).await;
                let grown = proxy.process.memory().saturating_sub(before);
                assert!(taken < LARGE / 2, "{taken} bytes were taken, {client:?} {version:?}");
                assert!(grown < 4 * MIB, "{grown} bytes more, {client:?} {version:?}");
            };
            let all = if client == Version::One {
                let mut client = Client::connect(address);
                client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
                client.head();
                bounded().await;
                client.rest().len()
            } else {
                let client = Http2Client::connect(address).await;
                let mut call = client.begin(request("GET", "/"), true).await;
                let mut body = call.head().await.unwrap().into_body();
                bounded().await;
                read(&mut body).await.unwrap().0.len()
            };
            assert_eq!(all, LARGE);
        });
    }
}

/// Reads the body of a request only when told to; then answers with its length.
fn thirsty(version: Version, open: watch::Receiver<bool>) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(move |mut connection| {
            while let Some(head) = connection.head() {
                while !*open.borrow() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                let body = crate::backend::read_body(&mut connection.reader, &head);
                connection.answer(&body.unwrap().len().to_string());
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(move |mut exchange| {
            let mut open = open.clone();
            async move {
                open.wait_for(|open| *open).await.unwrap();
                let (body, _) = exchange.body().await.unwrap();
                exchange.answer(body.len().to_string());
            }
        })),
    }
}

#[test]
fn an_endpoint_that_reads_slowly_slows_its_client() {
    for version in [Version::One, Version::Two] {
        let (tell, told) = watch::channel(false);
        let endpoint = thirsty(version, told);
        let (proxy, address) = endpoint.behind();
        let before = proxy.process.memory();
        wait(async {
            let client = Http2Client::connect(address).await;
            let asking = request("POST", "/").header("content-length", LARGE);
            let mut call = client.begin(asking, false).await;
            let sent = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&sent);
            let sending = spawn(async move {
                for n in 1..=LARGE / PIECE {
                    call.send(vec![b'u'; PIECE], n == LARGE / PIECE).await.unwrap();
                    count.fetch_add(PIECE, Ordering::SeqCst);
                }
                call
            });
            let stalled = settled(&sent).await;
            let grown = proxy.process.memory().saturating_sub(before);
            assert!(grown < 4 * MIB, "{grown} bytes more, {version:?}");
            assert!(stalled < LARGE / 2, "{stalled} bytes were taken, {version:?}");
            tell.send(true).unwrap();
            let answer = sending.await.unwrap().answer().await.unwrap();
            assert_eq!(answer.text(), LARGE.to_string());
        });
    }
}

/// Answers `/large` with a megabyte for every request, and others with the length of their body, except `/stall`.
async fn mixed(mut exchange: Exchange) {
    match exchange.path() {
        "/large" => exchange.answer(vec![b'l'; MIB]),
        "/stall" => {
            // Takes nothing of the body for as long as the stream is there.
            let _ = std::future::poll_fn(|cx| exchange.respond.poll_reset(cx)).await;
        }
        _ => {
            let (body, _) = exchange.body().await.unwrap();
            exchange.answer(body.len().to_string());
        }
    }
}

/// With windows that no test fills.
fn roomy() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(1 << 30);
    builder
}

#[test]
fn a_stream_that_is_stuck_blocks_no_other_of_its_connection() {
    let endpoint = Http2Endpoint::with(roomy(), mixed);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(1 << 30);
        let client = Http2Client::with(address, &builder).await;
        // An answer that nobody reads, and a body that nobody reads.
        let mut unread = client.begin(request("GET", "/large"), true).await;
        let _unread = unread.head().await.unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let mut stuck = client.begin(request("POST", "/stall"), false).await;
        let sending = spawn(async move {
            while stuck.send(vec![b'u'; 1000], false).await.is_ok() {
                count.fetch_add(1000, Ordering::SeqCst);
            }
        });
        assert!(settled(&sent).await < 2 * MIB);
        for _ in 0..3 {
            assert_eq!(client.post("/", vec![b'x'; 3 * MIB]).await.text(), (3 * MIB).to_string());
            assert_eq!(client.get("/large").await.body.len(), MIB);
        }
        sending.abort();
    });
}

#[test]
fn clients_that_read_slowly_block_no_other_client_of_the_same_endpoint() {
    // All share the connections to the endpoint.
    let endpoint = Http2Endpoint::with(roomy(), mixed);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let mut slow: Vec<(Http2Client, RecvStream)> = Vec::new();
        for _ in 0..24 {
            let client = Http2Client::connect(address).await;
            let mut call = client.begin(request("GET", "/large"), true).await;
            slow.push((client, call.head().await.unwrap().into_body()));
        }
        for _ in 0..8 {
            let client = Http2Client::connect(address).await;
            assert_eq!(client.get("/large").await.body.len(), MIB);
        }
        for (_, mut body) in slow {
            assert_eq!(read(&mut body).await.unwrap().0.len(), MIB);
        }
    });
    assert!(endpoint.connections() <= 4, "{} connections", endpoint.connections());
}

/// Small messages, as streams of gRPC have them: many more than a reader who sleeps leaves room for.
const MESSAGES: usize = 20_000;
const MESSAGE: usize = 12;

#[test]
fn a_stream_of_small_messages_waits_for_its_reader() {
    let (tell, told) = watch::channel(false);
    let endpoint = Http2Endpoint::with(roomy(), move |mut exchange: Exchange| {
        let mut open = told.clone();
        async move {
            if exchange.path() == "/down" {
                let mut body = exchange.begin(Response::builder());
                for n in 1..=MESSAGES {
                    let message = Bytes::from_static(&[b'm'; MESSAGE]);
                    if send(&mut body, message, n == MESSAGES).await.is_err() {
                        return;
                    }
                }
            } else {
                open.wait_for(|open| *open).await.unwrap();
                let (body, _) = exchange.body().await.unwrap();
                exchange.answer(body.len().to_string());
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(16 * 1024).data_frame_budget(100 * MIB);
        let client = Http2Client::with(address, &builder).await;
        // Downwards: the first message is read, then nothing until the other direction has stalled too.
        let mut call = client.begin(request("GET", "/down"), true).await;
        let mut down = call.head().await.unwrap().into_body();
        let mut got = part(&mut down).await.unwrap().unwrap().len();
        let mut call = client.begin(request("POST", "/up"), false).await;
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let sending = spawn(async move {
            for n in 1..=MESSAGES {
                call.send(Bytes::from_static(&[b'm'; MESSAGE]), n == MESSAGES).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
            call
        });
        settled(&sent).await;
        tell.send(true).unwrap();
        let answer = sending.await.unwrap().answer().await.unwrap();
        assert_eq!(answer.text(), (MESSAGES * MESSAGE).to_string());
        while let Some(message) = part(&mut down).await {
            got += message.unwrap().len();
        }
        assert_eq!(got, MESSAGES * MESSAGE);
    });
}

#[test]
fn readers_that_sleep_over_small_messages_break_nobodys_connection() {
    // Together they wait for far more frames than the library lets wait on one connection.
    let endpoint = Http2Endpoint::with(roomy(), move |mut exchange: Exchange| async move {
        if exchange.path() != "/down" {
            return exchange.answer("done");
        }
        let mut body = exchange.begin(Response::builder());
        for n in 1..=MESSAGES {
            let message = Bytes::from_static(&[b'm'; MESSAGE]);
            if send(&mut body, message, n == MESSAGES).await.is_err() {
                return;
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let before = proxy.process.memory();
    wait(async {
        let mut sleepers: Vec<(Http2Client, RecvStream)> = Vec::new();
        for _ in 0..24 {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(8 * 1024);
            let client = Http2Client::with(address, &builder).await;
            let mut call = client.begin(request("GET", "/down"), true).await;
            sleepers.push((client, call.head().await.unwrap().into_body()));
        }
        for _ in 0..8 {
            let client = Http2Client::connect(address).await;
            assert_eq!(client.get("/").await.text(), "done");
        }
        let grown = proxy.process.memory().saturating_sub(before);
        assert!(grown < 64 * MIB, "{grown} bytes more");
        for (_, mut body) in sleepers {
            assert_eq!(read(&mut body).await.unwrap().0.len(), MESSAGES * MESSAGE);
        }
    });
    assert!(endpoint.connections() <= 4, "{} connections", endpoint.connections());
}

/// Answers when `gate` opens; counts how many are there at once, and the most of it.
fn gated(
    builder: h2::server::Builder,
    gate: &Arc<Semaphore>,
    there: &Arc<AtomicUsize>,
    most: &Arc<AtomicUsize>,
) -> Http2Endpoint {
    let (gate, there, most) = (Arc::clone(gate), Arc::clone(there), Arc::clone(most));
    Http2Endpoint::with(builder, move |exchange| {
        let (gate, there, most) = (Arc::clone(&gate), Arc::clone(&there), Arc::clone(&most));
        async move {
            most.fetch_max(there.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _pass = gate.acquire().await;
            there.fetch_sub(1, Ordering::SeqCst);
            exchange.answer("done");
        }
    })
}

#[test]
fn as_many_streams_as_are_allowed_run_at_once_and_more_wait() {
    let (gate, there, most) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
    let endpoint = gated(h2::server::Builder::new(), &gate, &there, &most);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        // The first answer comes after the proxy's settings.
        gate.add_permits(1);
        client.get("/").await;
        gate.forget_permits(1);
        let calls: Vec<_> = (0..600)
            .map(|_| {
                let send = client.send.clone();
                spawn(async move {
                    let mut send = send.ready().await.unwrap();
                    let asking = request("GET", "/").body(()).unwrap();
                    let (head, _body) = send.send_request(asking, true).unwrap();
                    head.await.unwrap().status()
                })
            })
            .collect();
        assert_eq!(settled(&there).await, 256);
        gate.add_permits(1000);
        for call in calls {
            assert_eq!(call.await.unwrap(), 200);
        }
        assert_eq!(most.load(Ordering::SeqCst), 256);
    });
    let stats = proxy.stats();
    assert_eq!((stats.requests, stats.failed, stats.retries), (601, 0, 0));
}

#[test]
fn an_endpoint_that_takes_few_streams_gets_no_more_on_a_connection() {
    let (gate, there, most) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(10);
    let endpoint = gated(builder, &gate, &there, &most);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        let mut calls = Vec::new();
        for _ in 0..100 {
            calls.push(client.begin(request("GET", "/"), true).await);
        }
        settled(&there).await;
        gate.add_permits(1000);
        for call in calls {
            assert_eq!(call.answer().await.unwrap().text(), "done");
        }
        assert!(most.load(Ordering::SeqCst) <= 10 * endpoint.connections());
        // Now it is known: a second wave may open more connections, and each keeps to it.
        let again: Vec<_> = (0..100)
            .map(|_| {
                let send = client.send.clone();
                spawn(async move {
                    let mut send = send.ready().await.unwrap();
                    let asking = request("GET", "/").body(()).unwrap();
                    send.send_request(asking, true).unwrap().0.await.unwrap().status()
                })
            })
            .collect();
        for call in again {
            assert_eq!(call.await.unwrap(), 200);
        }
    });
    let stats = proxy.stats();
    assert_eq!((stats.failed, stats.retries), (0, 0), "{stats:?}");
}
