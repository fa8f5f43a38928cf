//! WebSocket over HTTP/2 (RFC 8441), on either side of the proxy.

use std::io::{BufRead, Read};
use std::sync::mpsc;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol as Extended;
use http::request::Builder;
use http::{Method, Request, Response};
use keel_model::Protocol;

use super::background::{spawn, wait};
use super::client::{Http2Client, part, read, send};
use super::either::{Endpoint, serve};
use super::endpoint::{Exchange, Http2Endpoint};
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

/// A service of HTTP/2 that takes tunnels: it sends "first", then each piece in capitals, and "the end" at the end.
fn shouting_http2() -> Http2Endpoint {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    Http2Endpoint::with(builder, |mut exchange: Exchange| async move {
        let request = &exchange.request;
        let protocol = request.extensions().get::<Extended>().map(|p| p.as_str().to_owned());
        if (request.method(), protocol.as_deref()) != (&Method::CONNECT, Some("websocket")) {
            return exchange.answer("no tunnel");
        }
        if exchange.path() != "/chat" {
            let refused = Response::builder().status(403).header("content-length", 4);
            let mut body = exchange.begin(refused);
            return body.send_data("nope".into(), true).unwrap();
        }
        assert_eq!(request.headers()["sec-websocket-version"], "13");
        for of_the_handshake in ["sec-websocket-key", "connection", "upgrade", "host"] {
            assert!(!request.headers().contains_key(of_the_handshake), "{of_the_handshake}");
        }
        let protocol = Response::builder().header("sec-websocket-protocol", "chat");
        let mut down = exchange.begin(protocol);
        down.send_data("first\n".into(), false).unwrap();
        while let Some(Ok(piece)) = part(exchange.request.body_mut()).await {
            let loud = piece.to_ascii_uppercase();
            send(&mut down, loud.into(), false).await.unwrap();
        }
        down.send_data("the end".into(), true).unwrap();
    })
}

#[test]
fn a_service_that_speaks_http2_is_reached_by_clients_of_either_version() {
    let endpoint = shouting_http2();
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let mut one = Client::connect(address);
    one.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n");
    one.send("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    let head = one.head().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-protocol: chat",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    assert_eq!(one.line(), "first\n");
    wait(async {
        let client = client(address).await;
        let mut call = client.begin(connect("/chat", "websocket"), false).await;
        let answer = call.head().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"]),
            (200, &"chat".parse().unwrap())
        );
        let mut down = answer.into_body();
        assert_eq!(part(&mut down).await.unwrap().unwrap(), "first\n");
        for n in 0..10 {
            one.send(format!("one {n}\n"));
            assert_eq!(one.line(), format!("ONE {n}\n"));
            call.send(format!("two {n}\n"), false).await.unwrap();
            assert_eq!(part(&mut down).await.unwrap().unwrap(), format!("TWO {n}\n"));
        }
        assert_eq!(proxy.stats().in_flight, 2);
        call.send(Bytes::new(), true).await.unwrap();
        assert_eq!(read(&mut down).await.unwrap().0, "the end");
        one.end_sending();
        assert_eq!(one.rest(), b"the end");
        // What the service refuses is refused, and the connection goes on.
        let mut one = Client::connect(address);
        for _ in 0..2 {
            one.send(
                "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            let answer = one.answer();
            assert_eq!((answer.status, &*answer.body), (403, "nope"));
        }
        // One that would like to speak something else is served as if it had not said so.
        one.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: else\r\n\r\n");
        assert_eq!(one.answer().body, "no tunnel");
    });
    proxy.all_ended();
    assert_eq!((proxy.stats().failed, endpoint.connections() <= 2), (0, true));
}

#[test]
fn a_tunnel_to_http2_that_breaks_on_one_side_breaks_on_the_other() {
    let (tell, told) = mpsc::channel();
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let endpoint = Http2Endpoint::with(builder, move |mut exchange: Exchange| {
        let tell = tell.clone();
        async move {
            let mut down = exchange.begin(Response::builder());
            down.send_data("first\n".into(), false).unwrap();
            match part(exchange.request.body_mut()).await {
                Some(Ok(piece)) if piece == "break\n" => exchange.reset(Reason::INTERNAL_ERROR),
                _ => {
                    down.send_data("heard\n".into(), false).unwrap();
                    let ended = part(exchange.request.body_mut()).await;
                    tell.send(ended.map(|piece| piece.unwrap_err().is_reset())).unwrap();
                }
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let open = || {
        let mut client = Client::connect(address);
        client.send(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(client.line(), "first\n");
        client
    };
    let mut client = open();
    client.send("break\n");
    let error = client.reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut client = open();
    client.send("wait\n");
    assert_eq!(client.line(), "heard\n");
    let linger = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(client.reader.get_ref(), linger).unwrap();
    drop(client);
    assert_eq!(told.recv_timeout(crate::proxy::PATIENCE).unwrap(), Some(true));
    proxy.all_ended();
}

#[test]
fn a_service_of_http2_that_takes_no_tunnels_is_answered_for() {
    let endpoint = Http2Endpoint::named("two");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let why = "shop/cart:80 speaks HTTP/2 and takes no WebSocket over it";
    wait(async {
        let client = Http2Client::connect(address).await;
        client.get("/").await;
        let mut call = client.begin(connect("/", "websocket"), false).await;
        let answer = call.head().await.unwrap();
        assert_eq!(answer.status(), 502);
        let text = read(&mut answer.into_body()).await.unwrap().0;
        assert!(text.starts_with(why.as_bytes()), "{text:?}");
    });
    let mut client = Client::connect(address);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let answer = client.answer();
    assert!(answer.status == 502 && answer.body.starts_with(why), "{answer:?}");
}
