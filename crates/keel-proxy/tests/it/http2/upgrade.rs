//! HTTP/2 in clear from a connection of HTTP/1.1 (RFC 7540, 3.2), and what else may be said on a connection.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use keel_model::{EndpointState, Protocol};
use keel_route::snapshot::Cluster;

use super::either::{Endpoint, dechunk, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PADDED, PING, PREFACE, PRIORITY, SETTINGS,
    WINDOW_UPDATE, block, fields, frame, setting,
};
use crate::proxy::{CART, Proxy, cluster, listener, until};

const ASKING: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";

/// Answers with the first line of the head, and whether fields of one hop got through.
fn first_line() -> Backend {
    Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            let head = request.head.to_lowercase();
            assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
            let line = request.head.lines().next().unwrap().to_owned();
            connection.answer(&line);
        }
    })
}

/// The data of the answer on `stream`.
fn body(client: &mut Frames, stream: u32) -> String {
    let data = client.until("data", |frame| frame.kind == DATA && frame.stream == stream);
    String::from_utf8(data.payload).unwrap()
}

#[test]
fn a_connection_may_be_upgraded_by_a_request() {
    // However the client's first bytes are cut.
    for size in [1, 7, 1000] {
        let backend = first_line();
        let (mut proxy, address) = Endpoint::One(backend).behind();
        let mut client = Client::connect(address);
        client.send(format!("GET /one?a=b HTTP/1.1\r\nHost: cart\r\n{ASKING}X: y\r\n\r\n"));
        let head = client.head();
        assert_eq!(
            head,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        );
        let begin = [PREFACE, &frame(SETTINGS, 0, 0, &setting(4, 70_000))].concat();
        for piece in begin.chunks(size) {
            client.send(piece);
        }
        let mut frames = Frames::new(client.reader);
        assert!(frames.until("the answer", |frame| frame.kind == HEADERS).stream == 1);
        assert_eq!(body(&mut frames, 1), "GET /one?a=b HTTP/1.1");
        frames.get(3);
        assert_eq!(body(&mut frames, 3), "GET / HTTP/1.1");
        assert_eq!(proxy.stats().requests, 2);
    }
}

#[test]
fn an_upgraded_request_reaches_a_service_of_http2_too() {
    let endpoint = Http2Endpoint::named("two");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let mut client = Client::connect(address);
    client.send(format!("GET / HTTP/1.1\r\nHost: cart\r\n{ASKING}\r\n"));
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    assert_eq!(body(&mut Frames::new(client.reader), 1), "two:0");
}

#[test]
fn who_cannot_have_the_upgrade_is_served_in_http1() {
    let backend = first_line();
    let (_proxy, address) = Endpoint::One(backend).behind();
    let mut client = Client::connect(address);
    let settings = "HTTP2-Settings: AAMAAABk\r\n";
    for fields in [
        // With a body, without settings, without naming the upgrade for this hop.
        format!("{ASKING}Content-Length: 2\r\n\r\nok"),
        "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n".into(),
        format!("Upgrade: h2c\r\n{settings}\r\n"),
        // Over TLS only (RFC 7540, 3.1).
        format!("Connection: Upgrade\r\nUpgrade: h2\r\n{settings}\r\n"),
    ] {
        client.send(format!("PUT /one HTTP/1.1\r\nHost: cart\r\n{fields}"));
        assert_eq!(client.answer().body, "PUT /one HTTP/1.1", "{fields:?}");
    }
}

#[test]
fn what_does_not_go_on_in_http2_after_the_upgrade_is_cut_off() {
    let (mut proxy, address) = Endpoint::One(first_line()).behind();
    let long = [PREFACE, &frame(SETTINGS, 0, 0, &[0; 6 * 1000])].concat();
    let no_settings = [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat();
    for begin in [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), no_settings, long] {
        let mut client = Client::connect(address);
        client.send(format!("GET / HTTP/1.1\r\nHost: cart\r\n{ASKING}\r\n"));
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        // It may be cut off while this is written.
        let _ = client.reader.get_mut().write_all(&begin);
        let _ = Frames::new(client.reader).end();
    }
    assert_eq!(proxy.stats().requests, 0);
}

#[test]
fn a_client_that_speaks_late_is_served_in_what_it_speaks() {
    let backend = first_line();
    let mut proxy = Proxy::start();
    let bind = proxy.address();
    // Nothing is said of what the listener speaks, so that the endpoint may have to speak first.
    let state = cluster(&[(backend.address, EndpointState::Ready)], true);
    let clusters = [(CART.to_owned(), Cluster { protocol: Protocol::Http, ..state })].into();
    assert_eq!(proxy.server.replace(vec![listener(bind, Protocol::Auto)], clusters), []);
    let stream = TcpStream::connect(bind).unwrap();
    let connected = || backend.connections.load(Ordering::SeqCst) > 0;
    until("the endpoint is asked whether it speaks first", || connected().then_some(()));
    let mut client = Frames::new(BufReader::new(stream));
    client.write(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    for stream in [1, 3] {
        client.get(stream);
        assert_eq!(body(&mut client, stream), "GET / HTTP/1.1");
    }
    assert_eq!(proxy.stats().requests, 2);
}

#[test]
fn what_else_is_said_on_a_connection_disturbs_no_request() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            let (body, _) = dechunk(&request.body);
            connection.answer(std::str::from_utf8(&body).unwrap());
        }
    });
    let (_proxy, address) = Endpoint::One(backend).behind();
    // A small table, no push, one stream, a small window; and one setting that nobody knows.
    let settings =
        [setting(1, 0), setting(2, 0), setting(3, 1), setting(4, 100), setting(0xf0f0, 7)].concat();
    let mut client = Frames::connect(address, &settings);
    client.until("the acknowledgement", |frame| frame.kind == SETTINGS && frame.flags == ACK);
    for n in 0..20u32 {
        let stream = 2 * n + 1;
        client.send(PRIORITY, 0, stream, &[0, 0, 0, 0, 16]);
        // A dependency in front of the fields, which are padded.
        let mut payload = vec![3, 0, 0, 0, 0, 16];
        payload.extend(block(&fields("POST", &[("priority", "u=1, i")])));
        payload.extend([0; 3]);
        client.send(HEADERS, END_HEADERS | PADDED | 0x20, stream, &payload);
        client.send(PING, 0, 0, &u64::from(n).to_be_bytes());
        // Frames and flags that nobody knows are ignored (RFC 9113, 4.1 and 5.5).
        client.send(0xee, 0xff, stream, b"whatever");
        client.send(0xee, 0xff, 0, b"whatever");
        client.send(PRIORITY, 0, stream + 100, &[0, 0, 0, 0, 16]);
        client.send(SETTINGS, 0, 0, &setting(4, 100 + n));
        client.send(WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes());
        client.send(DATA, PADDED, stream, &[2, b'a', b'b', 0, 0]);
        client.send(DATA, END_STREAM | PADDED, stream, &[0, b'c']);
        let pong = client.until("the answer to the ping", |frame| frame.kind == PING);
        assert_eq!((pong.flags, pong.payload), (ACK, u64::from(n).to_be_bytes().to_vec()));
        assert_eq!(body(&mut client, stream), "abc");
    }
}
