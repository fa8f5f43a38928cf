//! Protocols on the real engines.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use keel_model::{Protocol, ProxyVersion};
use keel_render::Engine;
use keel_route::snapshot::Listener;

use crate::echo::{Echo, PATIENCE, ask};
use crate::engine::{Running, installed, own_address};
use crate::make::{cluster, id, with_policy};
use crate::traffic::{HERE, curl, direct, get, greeter, read_until};

#[test]
fn upgrades_pass_and_answers_are_not_held_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..read]).to_lowercase();
                if text.contains("upgrade: websocket") {
                    let _ = stream.write_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello");
                    let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                } else {
                    let _ = stream.write_all(b"HTTP/1.1 200 Go\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata\n\r\n");
                    let _ = stream.read(&mut head);
                }
            });
        }
    });
    for engine in installed() {
        let bind = own_address();
        let one = cluster(&[("ws", address)]);
        let _running = Running::start(engine, &direct(bind, Protocol::Http, one));
        let mut socket = TcpStream::connect(bind).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        read_until(&mut socket, "hello");
        socket.write_all(b"ping").unwrap();
        read_until(&mut socket, "ping");
        let mut events = TcpStream::connect(bind).unwrap();
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        events.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        read_until(&mut events, "data");
    }
}

#[test]
fn opaque_connections_and_those_that_are_told_apart() {
    let greeter = greeter("tcp");
    let echo = Echo::new("one");
    for engine in installed() {
        let (opaque, told) = (own_address(), own_address());
        let mut tcp = cluster(&[("tcp", greeter)]);
        tcp.protocol = Protocol::Tcp;
        let mut snapshot = direct(opaque, Protocol::Tcp, tcp);
        let mut auto = cluster(&[("one", echo.address)]);
        auto.protocol = Protocol::Auto;
        snapshot.clusters.insert(id("auto"), auto);
        let listener = snapshot.listeners[0].clone();
        let (protocol, cluster) = (Protocol::Auto, id("auto"));
        snapshot.listeners.push(Listener { bind: told, protocol, cluster, ..listener.clone() });
        let first = own_address();
        snapshot.listeners.push(Listener { bind: first, protocol: Protocol::Auto, ..listener });
        let _running = Running::start(engine, &snapshot);
        for bind in [opaque, first] {
            let mut stream = TcpStream::connect(bind).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            read_until(&mut stream, "I am tcp\n");
            stream.write_all(b"hello\n").unwrap();
            read_until(&mut stream, "hello\n");
        }
        let answer = get(told, "");
        assert_eq!(answer.name(), "one", "{engine:?}");
        if engine == Engine::Haproxy {
            assert!(answer.text().to_lowercase().contains("x-forwarded-for: 127.0.0.1"));
            let answer = curl(&["--http2-prior-knowledge", &format!("http://{told}/")]);
            assert!(answer.contains("2 200"), "{answer}");
        }
    }
}

#[test]
fn proxy_protocol_in_and_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let shower = listener.local_addr().unwrap();
    // Answers with the first line that it gets.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let first = String::from_utf8_lossy(&head[..read]);
            let first = first.lines().next().unwrap_or_default().to_owned();
            let _ = stream.write_all(first.as_bytes());
        }
    });
    let echo = Echo::new("one");
    for engine in installed() {
        let (inwards, outwards) = (own_address(), own_address());
        let mut snapshot = direct(inwards, Protocol::Http, cluster(&[("one", echo.address)]));
        snapshot.listeners[0].accept_proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
        let mut tcp = cluster(&[("show", shower)]);
        tcp.protocol = Protocol::Tcp;
        let tcp = with_policy(tcp, |policy| policy.send_proxy = Some(ProxyVersion::V1));
        snapshot.clusters.insert(id("show"), tcp);
        let listener = Listener { bind: outwards, protocol: Protocol::Tcp, ..Listener::default() };
        snapshot.listeners.push(Listener { cluster: id("show"), ..listener });
        let _running = Running::start(engine, &snapshot);
        let request = "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let answer = ask(inwards, HERE, request.as_bytes());
        let text = answer.text().to_lowercase();
        assert!(text.contains("x-forwarded-for: 203.0.113.9"), "{engine:?}: {text}");
        let mut stream = TcpStream::connect(outwards).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"hi").unwrap();
        read_until(&mut stream, "PROXY TCP4 127.0.0.1 ");
    }
}

#[test]
fn http2_without_tls_where_it_is_declared() {
    let echo = Echo::new("one");
    for engine in installed() {
        // The service is an engine as well: what comes in as HTTP/2 goes on as HTTP/1.1.
        let inner = own_address();
        let _inner = Running::start(
            engine,
            &direct(inner, Protocol::Http2, cluster(&[("one", echo.address)])),
        );
        let bind = own_address();
        let mut one = cluster(&[("one", inner)]);
        one.protocol = Protocol::Http2;
        let _running = Running::start(engine, &direct(bind, Protocol::Http2, one));
        let answer = curl(&["--http2-prior-knowledge", &format!("http://{bind}/a%20b?c=d")]);
        assert!(answer.contains("2 200"), "{engine:?}: {answer}");
        assert!(answer.contains("GET /a%20b?c=d HTTP/1.1"), "{engine:?}: {answer}");
    }
}

#[test]
fn only_services_and_proxies_that_are_told_of_say_what_an_earlier_proxy_knows() {
    let echo = Echo::new("one");
    let networks = |network: &str| vec![network.parse().unwrap()];
    for engine in installed() {
        for (published, from, believed) in [
            (false, Vec::new(), true),
            (true, Vec::new(), false),
            (true, networks("127.0.0.0/8"), true),
        ] {
            let bind = own_address();
            let mut snapshot = direct(bind, Protocol::Http, cluster(&[("one", echo.address)]));
            snapshot.listeners[0].published = published;
            let introduces = !from.is_empty();
            snapshot.listeners[0].accept_proxy_from = from;
            let _running = Running::start(engine, &snapshot);
            let request = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Host: o\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 7\r\nX_Forwarded_For: 6\r\nX-Forwarded-Client-Cert: evil\r\nX-Forwarded-For: 192.0.2.9\r\nConnection: close\r\n\r\n";
            let header = if introduces { "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n" } else { "" };
            let answer = ask(bind, HERE, format!("{header}{request}").as_bytes());
            let text = answer.text().to_lowercase();
            let said = |line: &str| text.contains(line);
            let case = format!("{engine:?}, published: {published}: {text}");
            assert_eq!(said("x-forwarded-host: o\n"), believed, "{case}");
            assert_eq!(said("x-forwarded-host: h\n"), !believed, "{case}");
            assert_eq!(said("x-forwarded-proto: https"), believed, "{case}");
            assert_eq!(said("x-forwarded-proto: http\n"), !believed, "{case}");
            assert_eq!(said("x-forwarded-port: 7"), believed, "{case}");
            assert!(!said("x_forwarded_for") && !said("evil"), "{case}");
            let own = if introduces { "203.0.113.9" } else { "127.0.0.1" };
            assert!(said("192.0.2.9") && said(own), "the chain goes on: {case}");
        }
    }
}
