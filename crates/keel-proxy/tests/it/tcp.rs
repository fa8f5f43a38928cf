//! Connections that are not HTTP/1.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol};

use crate::backend::{Backend, nobody};
use crate::client::{self, Client};
use crate::proxy::{CART, Proxy, cluster, listener, until};

/// Sends back what it gets, and says goodbye when the client has ended.
fn echo() -> Backend {
    Backend::new(|mut connection| {
        let mut to = connection.reader.get_ref().try_clone().unwrap();
        if std::io::copy(&mut connection.reader, &mut to).is_ok() {
            connection.send("bye");
        }
    })
}

#[test]
fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let backend = echo();
    let mut proxy = Proxy::start();
    for protocol in [Protocol::Tcp, Protocol::Auto] {
        let address = proxy.serve(protocol, &[backend.address]);
        let mut client = Client::connect(address);
        client.send(b"\x00\x01hello\n");
        assert_eq!(client.line(), "\x00\x01hello\n");
        client.end_sending();
        assert_eq!(client.rest(), b"bye");
    }
}

#[test]
fn requests_are_known_however_they_begin() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            connection.answer(&request.head);
        }
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    for (begins, seen) in [
        ("get / HTTP/1.1", "get / HTTP/1.1\r\n"),
        ("\r\nGET / HTTP/1.1", "GET / HTTP/1.1\r\n"),
        ("\r\n\r\nGet / HTTP/1.1", "Get / HTTP/1.1\r\n"),
    ] {
        let mut client = Client::connect(address);
        client.send(format!("{begins}\r\nHost: a\r\n\r\n"));
        let got = client.answer().body;
        assert!(got.starts_with(seen) && got.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{got}");
    }
    let mut client = Client::connect(address);
    client.send("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status, 400, "as everywhere");
}

#[test]
fn the_server_may_speak_first() {
    let backend = Backend::new(|mut connection| {
        connection.send("220 ready\r\n");
        let mut line = String::new();
        connection.reader.read_line(&mut line).unwrap();
        connection.send(&format!("250 {line}"));
    });
    let mut proxy = Proxy::start();
    for protocol in [Protocol::Tcp, Protocol::Auto] {
        let address = proxy.serve(protocol, &[backend.address]);
        let mut client = Client::connect(address);
        assert_eq!(client.line(), "220 ready\r\n");
        client.send("EHLO me\r\n");
        assert_eq!(client.line(), "250 EHLO me\r\n");
    }
}

#[test]
fn a_client_of_http_may_be_silent_at_first() {
    let backend = Backend::new(|mut connection| {
        while connection.request().is_some() {
            connection.answer("in");
        }
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    // The system keeps a connection for a second until its client has said something.
    for silence in [0, 300, 2500] {
        let mut client = Client::connect(address);
        std::thread::sleep(Duration::from_millis(silence));
        assert_eq!(client.get("/").body, "in");
        assert_eq!(client.get("/").body, "in");
    }
    // One that has nothing to say is not kept by anybody.
    drop(Client::connect(address));
    assert_eq!(client::get(address, "/").body, "in");
}

#[test]
fn a_listener_that_was_for_http_lets_the_server_speak_first() {
    let backend = Backend::new(|mut connection| connection.send("220 ready\r\n"));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    let ready = [(backend.address, EndpointState::Ready)];
    let clusters = BTreeMap::from([(CART.to_owned(), cluster(&ready, true))]);
    let failed = proxy.server.replace(vec![listener(address, Protocol::Tcp)], clusters);
    assert_eq!(failed, []);
    // Nothing would come for a second if the system still waited for the client.
    let greeted = (0..5).any(|_| {
        let (begun, mut client) = (Instant::now(), Client::connect(address));
        client.line() == "220 ready\r\n" && begun.elapsed() < Duration::from_millis(900)
    });
    assert!(greeted);
}

#[test]
fn tls_that_is_not_ended_here_passes_untouched() {
    let backend = echo();
    let mut proxy = Proxy::start();
    for protocol in [Protocol::Http, Protocol::Auto] {
        let address = proxy.serve(protocol, &[backend.address]);
        let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".as_slice();
        let mut client = Client::connect(address);
        client.send(hello);
        client.end_sending();
        assert_eq!(client.rest(), [hello, b"bye"].concat());
    }
}

#[test]
fn bulk_passes_with_backpressure() {
    let backend = echo();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Tcp, &[backend.address]);
    let mut client = Client::connect(address);
    let mut writer = client.reader.get_ref().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for piece in 0..1_000u32 {
            writer.write_all(&[u8::try_from(piece % 251).unwrap(); 50_000]).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut piece = vec![0; 50_000];
    for number in 0..1_000u32 {
        client.reader.read_exact(&mut piece).unwrap();
        assert!(piece.iter().all(|b| u32::from(*b) == number % 251), "piece {number}");
    }
    assert_eq!(client.rest(), b"bye");
    sending.join().unwrap();
}

#[test]
fn another_endpoint_is_tried_and_a_broken_connection_is_seen_as_broken() {
    let backend = Backend::new(|mut connection| {
        connection.send("hello\n");
        let mut line = String::new();
        connection.reader.read_line(&mut line).unwrap();
        connection.reset();
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Tcp, &[nobody(), backend.address]);
    for _ in 0..8 {
        let mut client = Client::connect(address);
        assert_eq!(client.line(), "hello\n");
        client.send("break\n");
        assert!(client.reader.read(&mut [0]).is_err(), "a reset");
    }
}

#[test]
fn a_tunnel_counts_as_in_flight_until_it_ends() {
    let backend = echo();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Tcp, &[backend.address]);
    let mut client = Client::connect(address);
    client.send("x\n");
    client.line();
    proxy.server.update(cluster(&[(backend.address, EndpointState::Draining)], true));
    proxy.server.in_flight(backend.address, 1);
    // It goes on even when the endpoint is gone from the state.
    client.send("y\n");
    assert_eq!(client.line(), "y\n");
    drop(client);
    proxy.server.in_flight(backend.address, 0);
}

#[test]
fn a_connection_waits_for_an_endpoint() {
    let backend = echo();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Tcp, &[]);
    let mut client = Client::connect(address);
    client.send("x\n");
    crate::proxy::until("the connection is held", || (proxy.stats().held == 1).then_some(()));
    proxy.server.update(cluster(&[(backend.address, EndpointState::Ready)], true));
    assert_eq!(client.line(), "x\n");
    // Not expected: refused at once.
    proxy.server.update(cluster(&[], false));
    let mut client = Client::connect(address);
    assert!(!matches!(client.reader.read(&mut [0]), Ok(1..)));
}

#[test]
fn a_client_of_http_that_speaks_late_is_served_as_one() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[old.address]);
    let mut clients = [Client::connect(address), Client::connect(address)];
    until("both are taken for opaque", || (proxy.stats().in_flight == 2).then_some(()));
    assert_eq!(clients[0].get("/").body, "old:0");
    // The other one has not spoken: it does not keep the endpoint from draining.
    let endpoints = [(old.address, EndpointState::Draining), (new.address, EndpointState::Ready)];
    proxy.server.update(cluster(&endpoints, true));
    proxy.server.in_flight(old.address, 0);
    for client in &mut clients {
        assert_eq!(client.get("/").body, "new:0");
        assert_eq!(client.post("x").body, "new:1");
    }
    let stats = until("all have ended", || Some(proxy.stats()).filter(|s| s.in_flight == 0));
    assert_eq!((stats.requests, stats.failed), (5, 0));
}

#[test]
fn a_client_that_says_nothing_at_all_hears_what_the_server_has_to_say() {
    let backend = Backend::new(|mut connection| {
        let mut said = Vec::new();
        connection.reader.read_to_end(&mut said).unwrap();
        connection.send(&format!("{} bytes", said.len()));
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let mut client = Client::connect(address);
    until("it is passed on", || (proxy.stats().in_flight == 1).then_some(()));
    client.end_sending();
    assert_eq!(client.rest(), b"0 bytes");
}
