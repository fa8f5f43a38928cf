//! HTTP/1.1 as clients and endpoints see it.

use std::time::{Duration, Instant};

use keel_model::Protocol;
use proptest::prelude::*;

use crate::backend::Backend;
use crate::client::{Client, get};
use crate::http2::background::wait;
use crate::http2::client::Http2Client;
use crate::proxy::Proxy;

/// A proxy in front of one endpoint.
fn behind(backend: &Backend) -> (Proxy, Client) {
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    (proxy, Client::connect(address))
}

/// Answers with the head and body that it got.
fn mirror() -> Backend {
    Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8(request.body).unwrap();
            connection.answer(&format!("{}{body}", request.head));
        }
    })
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = mirror();
    let (_proxy, mut client) = behind(&backend);
    for _ in 0..5 {
        let answer = client.get("/x");
        assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\nContent-Length: "), "{}", answer.head);
        assert!(answer.body.starts_with("GET /x HTTP/1.1\r\nHost: cart\r\n"), "{}", answer.body);
        assert!(answer.body.contains("X-Forwarded-For: 127.0.0.1\r\n"));
        assert!(answer.body.contains("X-Forwarded-Host: cart\r\n"));
    }
    assert_eq!(client.post("hello").body.split("\r\n\r\n").nth(1), Some("hello"));
    assert_eq!(backend.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = mirror();
    let (_proxy, mut client) = behind(&backend);
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    client.send(format!(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n{post}\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    assert!(client.answer().body.starts_with("GET /1 "));
    let second = client.answer().body;
    assert!(second.starts_with("POST /2 ") && second.ends_with("\r\n\r\nabc"));
    assert!(client.answer().body.starts_with("GET /3 "));
}

#[test]
fn chunks_and_trailers_pass_both_ways() {
    let chunks = "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n";
    let backend = Backend::new(move |mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8(request.body).unwrap();
            assert!(request.head.contains("Transfer-Encoding: chunked\r\n"), "{}", request.head);
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            // In pieces that have nothing to do with the chunks.
            for piece in body.as_bytes().chunks(4) {
                connection.send(std::str::from_utf8(piece).unwrap());
            }
        }
    });
    let (_proxy, mut client) = behind(&backend);
    for size in [1, 7, 1000] {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        chunks.as_bytes().chunks(size).for_each(|piece| client.send(piece));
        assert_eq!(client.answer().body, chunks);
    }
}

#[test]
fn answers_without_a_body_do_not_block_the_next() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            match request.head.split(' ').nth(1).unwrap() {
                "/204" => connection.send("HTTP/1.1 204 No Content\r\n\r\n"),
                "/304" => connection.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
                _ => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
            }
        }
    });
    let (_proxy, mut client) = behind(&backend);
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().contains("Content-Length: 9\r\n"));
    assert_eq!(client.get("/204").status, 204);
    assert_eq!(client.get("/304").status, 304);
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200 "));
}

#[test]
fn permission_to_continue_is_asked_and_given() {
    let backend = Backend::new(|mut connection| {
        let head = connection.head().unwrap();
        assert!(head.contains("Expect: 100-continue\r\n"));
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = crate::backend::read_body(&mut connection.reader, &head).unwrap();
        connection.answer(&String::from_utf8(body).unwrap());
    });
    let (_proxy, mut client) = behind(&backend);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(client.answer().body, "hello");
}

#[test]
fn an_upgraded_connection_becomes_a_tunnel() {
    let backend = Backend::new(|mut connection| {
        let head = connection.head().unwrap();
        assert!(
            head.contains("Upgrade: websocket\r\n") && head.contains("Connection: Upgrade\r\n")
        );
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst\n",
        );
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut connection.reader, &mut line).unwrap_or(0) > 0 {
            connection.send(&line.to_uppercase());
            line.clear();
        }
        connection.send("end");
    });
    let (mut proxy, mut client) = behind(&backend);
    // What is sent before the answer belongs to the new protocol as well.
    client.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly\n",
    );
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("Upgrade: websocket\r\n"), "{head}");
    assert_eq!(client.line(), "first\n");
    assert_eq!(client.line(), "EARLY\n");
    client.send("one\n");
    assert_eq!(client.line(), "ONE\n");
    assert_eq!(proxy.stats().in_flight, 1);
    client.end_sending();
    assert_eq!(client.rest(), b"end");
}

#[test]
fn old_clients_get_what_they_understand() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            assert!(request.head.contains(" HTTP/1.1\r\n"));
            if request.head.starts_with("GET /chunked") {
                connection
                    .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
                connection.send("2\r\nde\r\n0\r\n\r\n");
            } else {
                connection.answer("whole");
            }
        }
    });
    let (_proxy, mut client) = behind(&backend);
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = client.answer();
    assert!(answer.head.contains("Connection: keep-alive\r\n") && answer.body == "whole");
    client.send("GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    assert_eq!(client.rest(), b"abcde");
}

#[test]
fn an_answer_may_end_with_its_connection() {
    let backend = Backend::new(|mut connection| {
        connection.request();
        connection.send("HTTP/1.0 200 OK\r\n\r\nall ");
        connection.send("of it");
    });
    let (_proxy, mut client) = behind(&backend);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    assert_eq!(client.rest(), b"all of it");
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let backend = Backend::new(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    });
    let (mut proxy, mut client) = behind(&backend);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    let mut rest = Vec::new();
    assert!(std::io::Read::read_to_end(&mut client.reader, &mut rest).is_err(), "a reset");
    assert_eq!(proxy.stats().failed, 1);
}

#[test]
fn large_bodies_pass_both_ways_at_once() {
    // The answer begins before the request is complete; neither side may wait for the other.
    let backend = Backend::new(|mut connection| {
        let head = connection.head().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n");
        assert!(head.contains("Content-Length: 20000000\r\n"));
        let mut from = connection.reader.get_ref().try_clone().unwrap();
        std::io::copy(&mut std::io::Read::take(&mut connection.reader, 20_000_000), &mut from)
            .unwrap();
    });
    let (_proxy, mut client) = behind(&backend);
    let mut writer = client.reader.get_ref().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        use std::io::Write;
        writer
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n")
            .unwrap();
        for piece in 0..2_000u32 {
            writer.write_all(&[u8::try_from(piece % 251).unwrap(); 10_000]).unwrap();
        }
    });
    client.head();
    let mut piece = [0; 10_000];
    for number in 0..2_000u32 {
        std::io::Read::read_exact(&mut client.reader, &mut piece).unwrap();
        assert!(piece.iter().all(|b| u32::from(*b) == number % 251), "piece {number}");
    }
    sending.join().unwrap();
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let backend = Backend::new(|mut connection| {
        connection.head();
        connection
            .send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
    });
    let (_proxy, mut client) = behind(&backend);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    client.send([b'x'; 10_000]);
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.as_str()), (413, "no\n"));
    assert!(answer.head.contains("Connection: close\r\n"));
    assert!(client.ended());
}

#[test]
fn what_two_programs_could_understand_differently_is_refused() {
    let backend = mirror();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    for (status, request) in [
        (
            400,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n"),
        (400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0xa\r\n"),
        (400, "GET / HTTP/1.1\nHost: a\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "\0\0\0\0"),
        (405, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (417, "GET / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\n\r\n"),
        (505, "GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
    ] {
        let mut client = Client::connect(address);
        client.send(request);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{request:?}: {}", answer.body);
        assert!(answer.head.contains("Connection: close\r\n"), "{request:?}");
        assert!(client.ended(), "{request:?}");
    }
    let mut client = Client::connect(address);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "x".repeat(65 * 1024)));
    assert_eq!(client.answer().status, 431);
    // A malformed chunk after the head has gone on: the endpoint sees an incomplete request.
    let mut client = Client::connect(address);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    client.send("zzz\r\n");
    assert_eq!(client.answer().status, 400);
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn a_client_that_dribbles_its_request_is_cut_off() {
    let backend = mirror();
    let (_proxy, mut client) = behind(&backend);
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    let mut writer = client.reader.get_ref().try_clone().unwrap();
    std::thread::spawn(move || {
        while std::io::Write::write_all(&mut writer, b"A: b\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(client.answer().status, 408);
    assert!((9..13).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[test]
fn connections_for_one_hop_stay_on_it() {
    let backend = Backend::new(|mut connection| {
        let request = connection.request().unwrap();
        assert!(!request.head.to_lowercase().contains("close"), "{}", request.head);
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    });
    let (_proxy, mut client) = behind(&backend);
    assert_eq!(client.get("/").head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(client.answer().head.contains("Connection: close\r\n"));
    assert!(client.ended());
}

#[test]
fn random_bytes_do_no_harm() {
    let backend = mirror();
    let mut proxy = Proxy::start();
    let http = proxy.serve(Protocol::Http, &[backend.address]);
    let auto = proxy.address();
    let listeners = [(http, Protocol::Http), (auto, Protocol::Auto)];
    let listeners = listeners.map(|(bind, protocol)| crate::proxy::listener(bind, protocol));
    let state = keel_model::EndpointState::Ready;
    let cluster = crate::proxy::cluster(&[(backend.address, state)], true);
    let clusters = [(crate::proxy::CART.to_owned(), cluster)].into();
    assert_eq!(proxy.server.replace(listeners.to_vec(), clusters), []);
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "(GET|POST) [ -~]{0,20}HTTP/1.1\r\n([A-Za-z-]{1,9}: [ -~]{0,9}\r\n){0,5}\r\n[ -~\r\n]{0,50}"
            .prop_map(String::into_bytes),
    ];
    proptest!(ProptestConfig::with_cases(150), |(bytes in bytes)| {
        for address in [http, auto] {
            let mut client = Client::connect(address);
            client.send(&bytes);
            client.end_sending();
            // A reset is an answer too.
            let _ = std::io::Read::read_to_end(&mut client.reader, &mut Vec::new());
        }
    });
    assert_eq!(get(http, "/").status, 200);
    assert_eq!(get(auto, "/").status, 200);
}

/// How long 80 answers take of a service that writes head and body one after the other.
fn answers_in_two_writes(nodelay: bool, version: &'static str) -> Duration {
    let backend = Backend::new(move |mut connection| {
        connection.reader.get_ref().set_nodelay(nodelay).unwrap();
        while connection.request().is_some() {
            match version {
                "length" => {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
                    connection.send("ok");
                }
                "chunks" => {
                    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    connection.send("2\r\nok\r\n0\r\n\r\n");
                }
                _ => {
                    connection.send("HTTP/1.1 200 OK\r\n");
                    connection.send("Content-Length: 2\r\n\r\nok");
                }
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    let mut one = Client::connect(address);
    one.get("/");
    let begun = Instant::now();
    (0..40).for_each(|_| assert_eq!(one.get("/").status, 200));
    // Answers to clients of HTTP/2 go another way.
    wait(async {
        let two = Http2Client::connect(address).await;
        for _ in 0..40 {
            assert_eq!(two.get("/").await.status, 200);
        }
    });
    begun.elapsed()
}

#[test]
fn a_service_that_writes_in_pieces_does_not_wait_for_our_acknowledgement() {
    for version in ["length", "chunks", "head"] {
        let (quick, nagle) =
            (answers_in_two_writes(true, version), answers_in_two_writes(false, version));
        // A delayed acknowledgement takes 40 ms, each time.
        let late = Duration::from_millis(40) * 40 / 4;
        assert!(nagle < quick + late, "{version}: {nagle:?} instead of {quick:?}");
    }
}
