//! TLS that ends at a listener: certificates by name, versions by ALPN, and what passes over it.

use std::process::Command;

use keel_route::snapshot::ListenerTls;

use super::authority::Authority;
use super::{BOTH, Visitor, door, leaf};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::background::wait;
use crate::http2::either::{Caller, Endpoint, Version};
use crate::routes::{all, mirror, named, nothing, with_body};

#[test]
fn certificates_are_shown_by_name_and_versions_agreed_on() {
    let authority = Authority::new("root");
    let [a, b, wild] = ["a.test", "b.test", "*.c.test"].map(|name| authority.issue(&[name]));
    let endpoint = named(Version::One, "in");
    let certificates = vec![a.clone(), b.clone(), wild.clone()];
    let site = door(&endpoint, ListenerTls::default(), certificates);
    wait(async {
        for (name, shown) in [("a.test", &a), ("b.test", &b), ("x.c.test", &wild)] {
            let visitor = Visitor::new(&authority, name);
            for (offer, agreed) in [
                (&["h2", "http/1.1"] as &[_], Some("h2")),
                (&["http/1.1"], Some("http/1.1")),
                (&[], None),
            ] {
                let found = visitor.shown(site.address, offer).await;
                assert_eq!(found, (leaf(shown), agreed.map(Into::into)), "{name}");
            }
        }
        // For other names there is one that proves nothing.
        let other = Visitor::new(&authority, "d.test");
        assert!(other.greet(site.address, &["h2"]).await.is_err());
    });
}

#[test]
fn services_hear_that_a_request_came_over_tls() {
    let authority = Authority::new("root");
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = door(&endpoint, ListenerTls::default(), vec![authority.issue(&["a.test"])]);
        let way = Visitor::new(&authority, "a.test").speaks(client, site.address).await;
        let mut caller = Caller::connect(client, way).await;
        for n in 0..3 {
            let answer = caller.ask_host("a.test", "GET", &format!("/{n}"), &nothing()).await;
            let text = answer.text().to_lowercase();
            assert!(text.starts_with(&format!("get /{n}\nhost: a.test\n")), "{text}");
            for line in ["x-forwarded-proto: https", "x-forwarded-for: 127.0.0.1"] {
                assert!(text.contains(&format!("\n{line}\n")), "{line} {text}");
            }
            assert!(!text.contains("x-forwarded-client-cert"), "{text}");
        }
    }));
}

#[test]
fn large_bodies_pass_over_tls() {
    let authority = Authority::new("root");
    let body: String = (0..1 << 17).map(|n| format!("{n:08}")).collect();
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = door(&endpoint, ListenerTls::default(), vec![authority.issue(&["a.test"])]);
        let way = Visitor::new(&authority, "a.test").speaks(client, site.address).await;
        let mut caller = Caller::connect(client, way).await;
        for _ in 0..2 {
            let answer = caller.ask("POST", "/", &with_body(&body)).await;
            assert_eq!(answer.status, 200);
            assert!(answer.text().split_once("\n\n").unwrap().1 == body);
        }
    }));
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let authority = Authority::new("root");
    let (old, new) = (authority.issue(&["a.test"]), authority.issue(&["a.test"]));
    let endpoint = named(Version::One, "in");
    let mut site = door(&endpoint, ListenerTls::default(), vec![old.clone()]);
    let visitor = Visitor::new(&authority, "a.test");
    wait(async {
        assert_eq!(visitor.shown(site.address, &[]).await.0, leaf(&old));
        let mut open = Vec::new();
        for version in BOTH {
            let way = visitor.speaks(version, site.address).await;
            let mut caller = Caller::connect(version, way).await;
            assert_eq!(caller.ask("GET", "/", &nothing()).await.text(), "in");
            open.push(caller);
        }
        site.state.certificates = vec![new.clone()].into();
        site.apply();
        for _ in 0..4 {
            assert_eq!(visitor.shown(site.address, &[]).await.0, leaf(&new));
        }
        for mut caller in open {
            assert_eq!(caller.ask("GET", "/", &nothing()).await.text(), "in");
        }
    });
}

#[test]
fn curl_is_served_in_both_versions() {
    let authority = Authority::new("root");
    let endpoint = named(Version::One, "in");
    let site = door(&endpoint, ListenerTls::default(), vec![authority.issue(&["a.test"])]);
    let port = site.address.port();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let output = Command::new("curl")
            .args(["-sS", flag, "-w", " %{http_version} %{response_code}", "--cacert"])
            .arg(authority.file())
            .args(["--resolve", &format!("a.test:{port}:{}", site.address.ip())])
            .arg(format!("https://a.test:{port}/"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("in {version} 200"));
    }
}

#[test]
fn an_upgraded_connection_over_tls_becomes_a_tunnel() {
    let backend = Backend::new(|mut connection| {
        let head = connection.head().unwrap();
        assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
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
    let authority = Authority::new("root");
    let endpoint = Endpoint::One(backend);
    let site = door(&endpoint, ListenerTls::default(), vec![authority.issue(&["a.test"])]);
    let visitor = Visitor::new(&authority, "a.test");
    let way = wait(visitor.speaks(Version::One, site.address));
    let mut client = Client::connect(way);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.line(), "first\n");
    let long = "x".repeat(200_000);
    client.send(format!("{long}\n"));
    assert!(client.line() == format!("{}\n", long.to_uppercase()));
    client.end_sending();
    assert_eq!(client.rest(), b"end");
}
