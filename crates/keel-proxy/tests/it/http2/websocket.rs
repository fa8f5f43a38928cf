//! WebSocket over HTTP/2 (RFC 8441) to services that speak it over HTTP/1.1.

use std::io::{BufRead, Read};
use std::sync::mpsc;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol as Extended;
use http::request::Builder;
use http::{Method, Request};
use keel_model::Protocol;

use super::background::{spawn, wait};
use super::client::{Http2Client, part, read};
use super::either::{Endpoint, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::{Backend, Connection};
use crate::client::Client;
use crate::proxy::{Proxy, until};

/// Asks for `protocol` over a stream.
pub fn connect(path: &str, protocol: &'static str) -> Builder {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://cart{path}"))
        .extension(Extended::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
}

/// A client that knows that the proxy takes such requests.
pub async fn client(address: std::net::SocketAddr) -> Http2Client {
    let client = Http2Client::connect(address).await;
    // The answer comes after the settings that say so.
    client.begin(super::client::request("OPTIONS", "*"), true).await.answer().await.unwrap();
    assert!(client.send.is_extended_connect_protocol_enabled());
    client
}

/// One over HTTP/1.1, after the handshake and the first line of an [`accepting`] service.
pub fn open_http1(address: std::net::SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client
        .send("GET /chat?x=y HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
    client.send("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.line(), "first\n");
    client
}

/// Returns every line.
pub fn echo() -> Backend {
    accepting(|mut connection| {
        let mut line = String::new();
        while connection.reader.read_line(&mut line).unwrap_or(0) > 0 {
            connection.send(&line);
            line.clear();
        }
    })
}

/// Takes the handshake; what comes after it is `script`'s.
pub fn accepting(script: impl Fn(Connection) + Send + Sync + 'static) -> Backend {
    Backend::new(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.head.starts_with("OPTIONS ") {
                connection.answer("");
                continue;
            }
            let lines: Vec<_> = request.head.lines().map(str::to_lowercase).collect();
            for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
                assert!(lines.iter().any(|l| l == line), "{line} in {}", request.head);
            }
            let keys = lines.iter().filter(|line| line.starts_with("sec-websocket-key: "));
            // 16 bytes in base64 (RFC 6455, 4.1).
            assert_eq!(
                keys.map(|line| line.len()).collect::<Vec<_>>(),
                ["sec-websocket-key: ".len() + 24]
            );
            assert!(request.head.starts_with("GET /chat?x=y HTTP/1.1\r\n"), "{}", request.head);
            connection.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
            connection.send("Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n");
            connection.send("Sec-WebSocket-Protocol: chat\r\n\r\nfirst\n");
            return script(connection);
        }
    })
}

/// Answers each line in capitals.
fn shout(mut connection: Connection) {
    let mut line = String::new();
    while connection.reader.read_line(&mut line).unwrap_or(0) > 0 {
        connection.send(&line.to_uppercase());
        line.clear();
    }
    connection.send("the end");
}

#[test]
fn frames_pass_both_ways_and_each_way_ends_by_itself() {
    let (mut proxy, address) = Endpoint::One(accepting(shout)).behind();
    wait(async {
        let client = client(address).await;
        let mut call = client.begin(connect("/chat?x=y", "websocket"), false).await;
        let answer = call.head().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        for of_the_handshake in ["sec-websocket-accept", "connection", "upgrade"] {
            assert!(!answer.headers().contains_key(of_the_handshake), "{of_the_handshake}");
        }
        let mut down = answer.into_body();
        assert_eq!(part(&mut down).await.unwrap().unwrap(), "first\n");
        for n in 0..10 {
            call.send(format!("line {n}\n"), false).await.unwrap();
            assert_eq!(part(&mut down).await.unwrap().unwrap(), format!("LINE {n}\n"));
        }
        assert_eq!(proxy.stats().in_flight, 1);
        call.send(Bytes::new(), true).await.unwrap();
        assert_eq!(read(&mut down).await.unwrap().0, "the end");
    });
    until("it is not in flight", || (proxy.stats().in_flight == 0).then_some(()));
    assert_eq!(proxy.stats().failed, 0);
}

#[test]
fn bulk_passes_both_ways_at_once() {
    const SIZE: usize = 8_000_000;
    let echo = accepting(|mut connection| {
        let mut to = connection.reader.get_ref().try_clone().unwrap();
        let _ = std::io::copy(&mut connection.reader, &mut to);
    });
    let (_proxy, address) = Endpoint::One(echo).behind();
    wait(async {
        let client = client(address).await;
        let mut call = client.begin(connect("/chat?x=y", "websocket"), false).await;
        let mut down = call.head().await.unwrap().into_body();
        let bytes: Bytes = (0..SIZE).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let sending = spawn(async move { call.send(sent, true).await });
        let (all, _) = read(&mut down).await.unwrap();
        sending.await.unwrap().unwrap();
        assert!(all.starts_with(b"first\n") && all[6..] == bytes);
    });
}

#[test]
fn a_connection_that_breaks_on_one_side_breaks_on_the_other() {
    let (tell, told) = mpsc::channel();
    let backend = accepting(move |mut connection| {
        let mut line = String::new();
        connection.reader.read_line(&mut line).unwrap();
        match line.as_str() {
            "break\n" => connection.reset(),
            _ => {
                connection.send("heard\n");
                tell.send(connection.reader.read_to_end(&mut Vec::new())).unwrap();
            }
        }
    });
    let (_proxy, address) = Endpoint::One(backend).behind();
    wait(async {
        let client = client(address).await;
        let mut call = client.begin(connect("/chat?x=y", "websocket"), false).await;
        let mut down = call.head().await.unwrap().into_body();
        call.send("break\n", false).await.unwrap();
        let error = read(&mut down).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
        // And the other way.
        let mut call = client.begin(connect("/chat?x=y", "websocket"), false).await;
        let mut down = call.head().await.unwrap().into_body();
        call.send("wait\n", false).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"heard\n") {
            heard.extend(part(&mut down).await.unwrap().unwrap());
        }
        call.body.send_reset(Reason::CANCEL);
        drop((call, down));
        let read = told.recv_timeout(crate::proxy::PATIENCE).unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_handshake_that_is_refused_is_answered_as_the_service_does() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            if request.head.starts_with("OPTIONS ") {
                connection.answer("");
            } else {
                connection.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope");
            }
        }
    });
    let (mut proxy, address) = Endpoint::One(backend).behind();
    wait(async {
        let client = client(address).await;
        for _ in 0..2 {
            let mut call = client.begin(connect("/", "websocket"), false).await;
            let answer = call.head().await.unwrap();
            assert_eq!(answer.status(), 403);
            assert_eq!(read(&mut answer.into_body()).await.unwrap().0, "nope");
        }
        // Only WebSocket is known.
        let call = client.begin(connect("/", "something-else"), true).await;
        assert_eq!(call.answer().await.unwrap().status, 405);
        let stats = proxy.stats();
        assert_eq!((stats.requests, stats.failed), (3, 0));
    });
}

#[test]
fn a_handshake_is_not_repeated_once_it_was_taken() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            if request.head.starts_with("OPTIONS ") {
                connection.answer("");
            } else {
                return;
            }
        }
    });
    let (mut proxy, address) = Endpoint::One(backend).behind();
    wait(async {
        let client = client(address).await;
        let mut call = client.begin(connect("/", "websocket"), false).await;
        assert_eq!(call.head().await.unwrap().status(), 502);
    });
    assert_eq!(proxy.stats().retries, 0);
}

#[test]
fn a_service_that_speaks_only_http2_is_not_spoken_to_in_http1() {
    // There is no way to it yet, and the client hears so instead of waiting.
    let endpoint = Http2Endpoint::named("two");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        client.get("/").await;
        let mut call = client.begin(connect("/", "websocket"), false).await;
        assert_eq!(call.head().await.unwrap().status(), 502);
    });
}
