//! Connections that routes choose by server name, and those that are no TLS or never become it.

use std::io::Read as _;
use std::time::Instant;

use keel_model::{Protocol, RouteKind, Rule};
use keel_route::snapshot::{ListenerTls, RouteEntry};

use super::authority::Authority;
use super::{BOTH, Front, Visitor, door_with, leaf};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::background::wait;
use crate::http2::either::{Caller, Endpoint, Version};
use crate::proxy::{CART, cluster};
use crate::routes::{clusters, named, nothing, route};

fn by_name(kind: RouteKind, name: &str, cluster: &str) -> RouteEntry {
    RouteEntry { kind, ..route(name, Rule::Sni(name.into()), cluster) }
}

fn ready(address: std::net::SocketAddr) -> keel_route::snapshot::Cluster {
    cluster(&[(address, keel_model::EndpointState::Ready)], true)
}

#[test]
fn connections_of_a_name_lose_their_tls_and_go_through() {
    let backend = Backend::new(|mut connection| {
        // The server speaks first.
        connection.send("hello\n");
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut connection.reader, &mut line).unwrap_or(0) > 0 {
            connection.send(&line.to_uppercase());
            line.clear();
        }
        connection.send("end");
    });
    let authority = Authority::new("root");
    let web = named(Version::One, "web");
    let names = ["a.test", "db.test"].map(|name| authority.issue(&[name]));
    let routes =
        vec![route("web", Rule::default(), CART), by_name(RouteKind::Tcp, "db.test", "db")];
    let mut site = door_with(routes, &web, ListenerTls::default(), names.to_vec());
    site.state.clusters.extend(clusters([("db", &Endpoint::One(backend))]));
    site.apply();
    let way = wait(Visitor::new(&authority, "db.test").way_to(site.address, &[]));
    let mut client = Client::connect(way);
    assert_eq!(client.line(), "hello\n");
    client.send("one\n");
    assert_eq!(client.line(), "ONE\n");
    client.end_sending();
    assert_eq!(client.rest(), b"end");
    wait(async {
        for version in BOTH {
            let way = Visitor::new(&authority, "a.test").speaks(version, site.address).await;
            let mut caller = Caller::connect(version, way).await;
            assert_eq!(caller.ask("GET", "/", &nothing()).await.text(), "web");
        }
    });
    let edges = site.edges("shop/db.test");
    assert_eq!((edges.len(), edges[0].statuses.get(&0)), (1, Some(&1)));
    assert!(edges[0].bytes_in == 4 && edges[0].bytes_out == 13, "{edges:?}");
}

#[test]
fn connections_of_a_name_pass_with_their_tls() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let own = theirs.issue(&["vault.test"]);
    let (web, vault) = (named(Version::One, "web"), named(Version::Two, "vault"));
    wait(async {
        let front = Front::new(&vault, &own, &["h2"], None).await;
        let routes = vec![
            route("web", Rule::default(), CART),
            by_name(RouteKind::Passthrough, "vault.test", "vault"),
        ];
        let certificates = vec![ours.issue(&["a.test"])];
        let mut site = door_with(routes, &web, ListenerTls::default(), certificates);
        site.state.clusters.insert("vault".into(), ready(front.address));
        for at_plain_listener in [false, true] {
            if at_plain_listener {
                site.state.listeners[0].tls = None;
            }
            site.apply();
            let visitor = Visitor::new(&theirs, "vault.test");
            let (shown, agreed) = visitor.shown(site.address, &["h2", "http/1.1"]).await;
            assert_eq!((shown, agreed.as_deref()), (leaf(&own), Some(b"h2".as_slice())));
            let way = visitor.speaks(Version::Two, site.address).await;
            let mut caller = Caller::connect(Version::Two, way).await;
            assert_eq!(caller.ask("GET", "/", &nothing()).await.text(), "vault");
            let other = Visitor::new(&ours, "a.test").greet(site.address, &["h2"]).await;
            assert_eq!(other.is_ok(), !at_plain_listener);
            // Another name is none of its business.
            let lost = Visitor::new(&theirs, "else.test").greet(site.address, &["h2"]).await;
            assert!(lost.is_err());
        }
        let answer = site.ask(Version::One, "GET", "a.test/", &nothing()).await;
        assert_eq!(answer.text(), "web");
    });
}

#[test]
fn what_never_becomes_tls_is_cut_off() {
    let authority = Authority::new("root");
    let endpoint = named(Version::One, "in");
    let routes = vec![route("all", Rule::default(), CART)];
    let certificates = vec![authority.issue(&["a.test"])];
    let site = door_with(routes, &endpoint, ListenerTls::default(), certificates);
    let hello_begun: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for (bytes, most_s) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(), 5),
        (b"\0\0\0\0\0\0\0\0", 5),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 5),
        // As for the head of a request.
        (hello_begun, 13),
    ] {
        let begun = Instant::now();
        let mut client = Client::connect(site.address);
        client.send(bytes);
        // A reset is an end, too.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.reader, &mut rest);
        assert!(rest.len() < 100 && !rest.starts_with(b"HTTP"), "{rest:?}");
        assert!(begun.elapsed().as_secs() < most_s, "{bytes:?}: {:?}", begun.elapsed());
    }
    wait(async {
        let way = Visitor::new(&authority, "a.test").speaks(Version::One, site.address).await;
        let mut caller = Caller::connect(Version::One, way).await;
        assert_eq!(caller.ask("GET", "/", &nothing()).await.text(), "in");
    });
}

#[test]
fn a_plain_listener_of_its_own_leads_to_the_route_for_connections() {
    // The server speaks first, as some databases do.
    let backend = Backend::new(|mut connection| {
        connection.send("hello\n");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut connection.reader, &mut line).unwrap();
        connection.send(&line.to_uppercase());
    });
    let authority = Authority::new("root");
    let web = named(Version::One, "web");
    let mut db = by_name(RouteKind::Tcp, "*", "db");
    let certificates = vec![authority.issue(&["a.test"])];
    let mut site = door_with(vec![db.clone()], &web, ListenerTls::default(), certificates);
    site.state.clusters.extend(clusters([("db", &Endpoint::One(backend))]));
    (site.state.listeners[0].tls, site.state.listeners[0].protocol) = (None, Protocol::Tcp);
    site.apply();
    for _ in 0..2 {
        let mut client = Client::connect(site.address);
        assert_eq!(client.line(), "hello\n");
        client.send("one\n");
        assert_eq!(client.line(), "ONE\n");
    }
    assert_eq!(site.edges("shop/*").len(), 1);
    // Those whom it does not allow are not let in.
    db.filters.allow = vec!["192.0.2.0/24".parse().unwrap()];
    let table = site.state.tables.values_mut().next().unwrap();
    table.routes = vec![db];
    site.apply();
    let mut client = Client::connect(site.address);
    assert!(matches!(client.reader.read(&mut [0]), Ok(0) | Err(_)));
}
