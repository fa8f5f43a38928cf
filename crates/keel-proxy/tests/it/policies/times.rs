//! How long things may take.

use bytes::Bytes;
use std::time::{Duration, Instant};

use keel_model::{Protocol, Rule, Timeouts, TrafficPolicy};
use keel_route::snapshot::RouteEntry;

use super::{NEVER, silent, under};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::background::wait;
use crate::http2::client::{Http2Client, request};
use crate::http2::either::{Caller, Endpoint, Version};
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::CART;
use crate::routes::{Site, all, nothing, route, several};

const SHORT: Duration = Duration::from_millis(400);

fn within(request: Duration) -> TrafficPolicy {
    let timeouts = Timeouts { request: Some(request), ..Timeouts::default() };
    TrafficPolicy { timeouts, ..TrafficPolicy::default() }
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    wait(all(async |client, version| {
        let endpoint = silent(version);
        let mut site = Site::bare(under(&within(SHORT), &[&endpoint]));
        let begun = Instant::now();
        for method in ["GET", "POST"] {
            let answer = site.ask(client, method, "a.test/", &nothing()).await;
            let text = "An instance of shop/cart:80 did not answer in time.\n";
            assert_eq!((answer.status, &*answer.text()), (504, text));
        }
        assert!(begun.elapsed() >= SHORT * 2 && begun.elapsed() < Duration::from_secs(10));
        // A route knows better.
        let slow = RouteEntry { timeout_ms: Some(1), ..route("x", Rule::default(), CART) };
        let patient = Timeouts { request: Some(NEVER), ..Timeouts::default() };
        let policy = TrafficPolicy { timeouts: patient, ..TrafficPolicy::default() };
        site.state.clusters.insert(CART.into(), under(&policy, &[&endpoint]));
        site.state.listeners[0].table = Some("web".into());
        site.route(vec![slow]);
        assert_eq!(site.ask(client, "GET", "a.test/", &nothing()).await.status, 504);
        let edges = site.edges("shop/x");
        assert_eq!((edges.len(), edges[0].statuses.get(&504)), (1, Some(&1)));
        assert_eq!(site.proxy.stats().in_flight, 0);
    }));
}

/// Begins an answer and says no more.
fn stuck(version: Version) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(|mut connection| {
            while connection.request().is_some() {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(|mut exchange| async move {
            let mut body = exchange.begin(http::Response::builder());
            body.send_data("half".into(), false).unwrap();
            tokio::time::sleep(NEVER).await;
        })),
    }
}

#[test]
fn an_answer_that_takes_too_long_is_cut_off() {
    let pieces = Timeouts { idle: Some(SHORT), ..Timeouts::default() };
    let pieces = TrafficPolicy { timeouts: pieces, ..TrafficPolicy::default() };
    wait(all(async |client, version| {
        let endpoint = stuck(version);
        for policy in [within(SHORT), pieces.clone()] {
            let mut site = Site::bare(under(&policy, &[&endpoint]));
            match client {
                Version::One => {
                    let mut client = Client::connect(site.address);
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert!(client.head().starts_with("HTTP/1.1 200 "));
                    let mut rest = Vec::new();
                    let read = std::io::Read::read_to_end(&mut client.reader, &mut rest);
                    // Without a length the end alone must not look like that of the answer.
                    assert!(read.is_err() || !rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
                }
                Version::Two => {
                    let client = Http2Client::connect(site.address).await;
                    let call = client.begin(request("GET", "/"), true).await;
                    assert!(call.answer().await.unwrap_err().is_reset());
                }
            }
            assert_eq!(site.proxy.stats().failed, 1);
        }
    }));
}

#[test]
fn calls_of_grpc_say_themselves_how_long_they_may_take() {
    wait(async {
        let endpoint = silent(Version::Two);
        let site = Site::bare(several(&[&endpoint]));
        let client = Http2Client::connect(site.address).await;
        let call = request("POST", "/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "300m");
        let answer = client.begin(call, true).await.answer().await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["grpc-status"]),
            (200, &"4".parse().unwrap())
        );
    });
}

#[test]
fn a_service_without_instances_is_waited_for_as_long_as_it_says() {
    wait(async {
        for client in [Version::One, Version::Two] {
            let timeouts = Timeouts { hold: Some(SHORT), ..Timeouts::default() };
            let policy = TrafficPolicy { timeouts, ..TrafficPolicy::default() };
            let mut site = Site::bare(under(&policy, &[]));
            let begun = Instant::now();
            let answer = site.ask(client, "GET", "a.test/", &nothing()).await;
            assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
            // Without it the proxy of these tests holds for 20 seconds.
            assert!(begun.elapsed() >= SHORT && begun.elapsed() < Duration::from_secs(10));
            assert_eq!(site.proxy.stats().held, 1);
        }
    });
}

#[test]
fn a_tunnel_ends_when_nothing_is_said_and_not_before() {
    let backend = Backend::new(|mut connection| {
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut connection.reader, &mut line).unwrap_or(0) > 0 {
            connection.send(&line);
            line.clear();
        }
    });
    let endpoint = Endpoint::One(backend);
    let idle = Duration::from_millis(1500);
    let timeouts = Timeouts { idle: Some(idle), ..Timeouts::default() };
    let policy = TrafficPolicy { timeouts, ..TrafficPolicy::default() };
    let mut site = Site::bare(under(&policy, &[&endpoint]));
    site.state.listeners[0].protocol = Protocol::Tcp;
    site.apply();
    let mut client = Client::connect(site.address);
    let begun = Instant::now();
    while begun.elapsed() < idle * 2 {
        client.send("word\n");
        assert_eq!(client.line(), "word\n");
        std::thread::sleep(Duration::from_millis(50));
    }
    let last = Instant::now();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.reader, &mut rest);
    assert!(rest.is_empty() && last.elapsed() >= idle / 2, "{:?}", last.elapsed());
    assert!(last.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_change_holds_for_connections_that_are_open() {
    wait(all(async |client, version| {
        let (good, bad) = (crate::routes::named(version, "in"), silent(version));
        let mut site = Site::bare(several(&[&good]));
        let mut caller = Caller::connect(client, site.address).await;
        assert_eq!(super::get(&mut caller).await.text(), "in");
        site.proxy.server.update(under(&within(SHORT), &[&bad]));
        assert_eq!(super::get(&mut caller).await.status, 504);
        // The client's connection is as good as before, whatever its version.
        site.proxy.server.update(several(&[&good]));
        assert_eq!(super::get(&mut caller).await.text(), "in");
    }));
}

/// Says a word from time to time, for three times as long as nothing may be said.
const WORDS: u32 = 12;
const PAUSE: Duration = Duration::from_millis(250);

/// An endpoint that answers at once; to `/speaks` it says words, from `/hears` it wants to hear as many.
fn halfway(version: Version) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(|mut connection| {
            let Some(head) = connection.head() else { return };
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            if head.starts_with("POST /speaks ") {
                for _ in 0..WORDS {
                    std::thread::sleep(PAUSE);
                    connection.send("4\r\nword\r\n");
                }
                connection.send("0\r\n\r\n");
            } else if crate::backend::read_body(&mut connection.reader, &head).is_some() {
                connection.send("4\r\ngood\r\n0\r\n\r\n");
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(|mut exchange| async move {
            let mut body = exchange.begin(http::Response::builder());
            if exchange.path() == "/speaks" {
                for _ in 0..WORDS {
                    tokio::time::sleep(PAUSE).await;
                    body.send_data("word".into(), false).unwrap();
                }
                body.send_data("".into(), true).unwrap();
            } else if exchange.body().await.is_ok() {
                body.send_data("good".into(), true).unwrap();
            }
        })),
    }
}

/// Speaks to a [`halfway`] over HTTP/2; all that it says.
async fn over_http2(client: &Http2Client, path: &str) -> Bytes {
    let mut call = client.begin(request("POST", path), false).await;
    let mut answer = call.head().await.unwrap().into_body();
    if path == "/hears" {
        for _ in 0..WORDS {
            tokio::time::sleep(PAUSE).await;
            call.send("word", false).await.unwrap();
        }
        call.send("", true).await.unwrap();
    }
    // What is said behind its end nobody hears.
    crate::http2::client::read(&mut answer).await.unwrap().0
}

/// The same over HTTP/1.
fn over_http1(address: std::net::SocketAddr, path: &str) -> String {
    let mut client = Client::connect(address);
    client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    if path == "/hears" {
        for _ in 0..WORDS {
            std::thread::sleep(PAUSE);
            client.send("4\r\nword\r\n");
        }
        client.send("0\r\n\r\n");
    }
    let body = crate::backend::read_body(&mut client.reader, "transfer-encoding: chunked");
    String::from_utf8(body.unwrap()).unwrap()
}

#[test]
fn one_that_only_listens_is_not_idle() {
    let timeouts = Timeouts { idle: Some(PAUSE * WORDS / 3), ..Timeouts::default() };
    let policy = TrafficPolicy { timeouts, ..TrafficPolicy::default() };
    for endpoint in [Version::One, Version::Two] {
        let endpoint = halfway(endpoint);
        let mut site = Site::bare(under(&policy, &[&endpoint]));
        let address = site.address;
        let one =
            ["/speaks", "/hears"].map(|path| std::thread::spawn(move || over_http1(address, path)));
        wait(async {
            let client = Http2Client::connect(address).await;
            let (spoken, heard) =
                tokio::join!(over_http2(&client, "/speaks"), over_http2(&client, "/hears"));
            assert_eq!((&spoken[..], &heard[..]), ("word".repeat(12).as_bytes(), &b"good"[..]));
        });
        let [spoken, heard] = one.map(|thread| thread.join().unwrap());
        assert_eq!(spoken.matches("word").count(), 12, "{spoken}");
        assert_eq!(heard, "4\r\ngood\r\n0\r\n\r\n");
        site.proxy.all_ended();
        assert_eq!(site.proxy.stats().failed, 0);
    }
}
