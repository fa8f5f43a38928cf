//! The PROXY protocol on either side.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use keel_model::{EndpointState, Filters, ProxyVersion, TrafficPolicy};
use keel_route::snapshot::{Cluster, ListenerTls};

use super::authority::Authority;
use super::door;
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::either::Version;
use crate::proxy::{CART, Proxy, cluster};
use crate::routes::{Site, mirror};

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 1234 443\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc6\x33\x64\x01\x04\xd2\x01\xbb";

#[test]
fn proxies_in_front_are_believed_if_they_are_trusted() {
    let endpoint = mirror(Version::One);
    let allow = vec!["203.0.113.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
    let mut site = Site::filtered(&endpoint, Filters { allow, ..Filters::default() });
    site.state.listeners[0].accept_proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
    site.apply();
    for (header, from) in [(V1, "203.0.113.7"), (V2, "203.0.113.7"), (b"", "127.0.0.1")] {
        let mut client = Client::connect(site.address);
        // In pieces, and with the request right behind it.
        let bytes = [header, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        bytes.chunks(7).for_each(|piece| client.send(piece));
        let text = client.answer().body.to_lowercase();
        assert!(text.contains(&format!("x-forwarded-for: {from}\n")), "{text}");
        // It is said once, for all requests of the connection.
        assert!(
            client.get("/").body.to_lowercase().contains(&format!("x-forwarded-for: {from}\n"))
        );
    }
    let mut client = Client::connect(site.address);
    client.send("PROXY TCP4 nonsense\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = client.reader.get_mut().flush();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.reader, &mut rest);
    assert_eq!(rest, b"", "one that says nonsense is not served");

    site.state.listeners[0].accept_proxy_from = vec!["10.0.0.0/8".parse().unwrap()];
    site.apply();
    for header in [V1, V2] {
        let mut client = Client::connect(site.address);
        client.send([header, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert!(matches!(client.answer().status, 400 | 505));
    }
    let text = Client::connect(site.address).get("/").body.to_lowercase();
    assert!(text.contains("x-forwarded-for: 127.0.0.1\n"), "{text}");
}

#[test]
fn tls_may_follow_the_word_of_a_proxy() {
    let authority = Authority::new("root");
    let endpoint = mirror(Version::One);
    let mut site = door(&endpoint, ListenerTls::default(), vec![authority.issue(&["a.test"])]);
    site.state.listeners[0].accept_proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
    site.apply();
    let port = site.address.port();
    let output = std::process::Command::new("curl")
        .args(["-sS", "--haproxy-protocol", "--cacert"])
        .arg(authority.file())
        .args(["--resolve", &format!("a.test:{port}:{}", site.address.ip())])
        .args(["--interface", "127.0.0.77"])
        .arg(format!("https://a.test:{port}/"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().to_lowercase();
    assert!(text.contains("x-forwarded-for: 127.0.0.77\n"), "{text} {:?}", output.stderr);
    assert!(text.contains("x-forwarded-proto: https\n"), "{text}");
}

/// A connection from another address of the loopback network.
fn connect_from(from: [u8; 4], to: SocketAddr) -> Client {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    );
    let socket = socket.unwrap();
    let from = SocketAddr::from((Ipv4Addr::from(from), 0));
    rustix::net::bind(socket.as_fd(), &from).unwrap();
    rustix::net::connect(socket.as_fd(), &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::proxy::PATIENCE)).unwrap();
    Client { reader: std::io::BufReader::new(stream) }
}

/// Answers with the address that the connection was begun with.
fn introduced_backend() -> Backend {
    Backend::new(|mut connection| {
        let mut word = Vec::new();
        std::io::BufRead::read_until(&mut connection.reader, b'\n', &mut word).unwrap();
        let from = if word.starts_with(b"PROXY ") {
            String::from_utf8(word).unwrap().split(' ').nth(2).unwrap().to_owned()
        } else {
            // The rest of the signature ends with a line feed; then 4 bytes, and the addresses.
            std::io::BufRead::read_until(&mut connection.reader, b'\n', &mut word).unwrap();
            while word.len() < 28 {
                let mut byte = [0];
                std::io::Read::read_exact(&mut connection.reader, &mut byte).unwrap();
                word.push(byte[0]);
            }
            assert_eq!(word[..16], V2[..16]);
            Ipv4Addr::new(word[16], word[17], word[18], word[19]).to_string()
        };
        while connection.request().is_some() {
            connection.answer(&from);
        }
    })
}

#[test]
fn endpoints_hear_of_each_client_by_its_own_connection() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let backend = introduced_backend();
        let mut proxy = Proxy::start();
        let address = proxy.address();
        let policy = TrafficPolicy { send_proxy: Some(version), ..TrafficPolicy::default() };
        let cluster = Cluster {
            policy: Some(Box::new(policy)),
            ..cluster(&[(backend.address, EndpointState::Ready)], true)
        };
        let listeners = vec![crate::proxy::listener(address, keel_model::Protocol::Http)];
        assert_eq!(proxy.server.replace(listeners, [(CART.to_owned(), cluster)].into()), []);
        // Many, so that there are several for each worker.
        for _ in 0..3 {
            for last in 2..6 {
                let mut client = connect_from([127, 0, 0, last], address);
                for _ in 0..2 {
                    let answer = client.get("/");
                    assert_eq!((answer.status, answer.body), (200, format!("127.0.0.{last}")));
                }
            }
        }
    }
}

#[test]
fn endpoints_of_http2_hear_of_each_client_by_its_own_connection() {
    use crate::http2::background::{spawn, wait};
    use crate::http2::client::Http2Client;
    use tokio::io::{AsyncBufReadExt, BufReader};

    let address = wait(async {
        let (listener, address) = super::listen().await;
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut word = String::new();
                    stream.read_line(&mut word).await.unwrap();
                    let from = word.split(' ').nth(2).unwrap_or_default().to_owned();
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let head = http::Response::new(());
                        let mut body = respond.send_response(head, false).unwrap();
                        body.send_data(bytes::Bytes::from(from.clone()), true).unwrap();
                    }
                });
            }
        });
        address
    });
    let mut proxy = Proxy::start();
    let bind = proxy.address();
    let policy = TrafficPolicy { send_proxy: Some(ProxyVersion::V1), ..TrafficPolicy::default() };
    let cluster = Cluster {
        protocol: keel_model::Protocol::Http2,
        policy: Some(Box::new(policy)),
        ..cluster(&[(address, EndpointState::Ready)], true)
    };
    let listeners = vec![crate::proxy::listener(bind, keel_model::Protocol::Http)];
    assert_eq!(proxy.server.replace(listeners, [(CART.to_owned(), cluster)].into()), []);
    for _ in 0..3 {
        for last in 2..6 {
            let answer = connect_from([127, 0, 0, last], bind).get("/");
            assert_eq!(
                (answer.status, answer.body.contains(&format!("127.0.0.{last}\r"))),
                (200, true),
                "{}",
                answer.body
            );
        }
    }
    // Several requests of one client at once.
    wait(async {
        let client = Http2Client::connect(bind).await;
        let answers = futures_util::future::join_all((0..10).map(|_| client.get("/"))).await;
        assert!(answers.iter().all(|answer| answer.text() == "127.0.0.1"), "{answers:?}");
    });
}
