//! TLS towards endpoints.

use keel_model::{EndpointState, Rule, TrafficPolicy, UpstreamTls};
use keel_route::snapshot::Cluster;

use super::authority::Authority;
use super::{Front, offered};
use crate::http2::background::wait;
use crate::http2::either::{Endpoint, Version};
use crate::proxy::{CART, cluster};
use crate::routes::{Site, all, mirror, nothing, route, with_body};

fn behind(front: &Front, endpoint: &Endpoint, tls: UpstreamTls) -> Cluster {
    let policy = TrafficPolicy { tls: Some(tls), ..TrafficPolicy::default() };
    Cluster {
        protocol: endpoint.protocol(),
        policy: Some(Box::new(policy)),
        ..cluster(&[(front.address, EndpointState::Ready)], false)
    }
}

fn site(cluster: Cluster) -> Site {
    let clusters = [(CART.to_owned(), cluster)].into();
    Site::new(vec![route("all", Rule::default(), CART)], clusters)
}

#[test]
fn endpoints_that_prove_who_they_are_are_spoken_to() {
    let (authority, partner) = (Authority::new("root"), Authority::new("partner"));
    let identity = partner.identity("proxy");
    let own = authority.issue(&["cart.internal"]);
    let body: String = (0..1 << 17).map(|n| format!("{n:08}")).collect();
    wait(all(async |client, version| {
        let endpoint = mirror(version);
        let front = Front::new(&endpoint, &own, offered(version), Some(&partner)).await;
        let tls = UpstreamTls {
            server_name: Some("cart.internal".into()),
            ca: Some(authority.file()),
            identity: Some(identity.clone()),
            insecure: false,
        };
        let site = site(behind(&front, &endpoint, tls));
        for _ in 0..2 {
            let answer = site.ask(client, "POST", "a.test/", &with_body(&body)).await;
            assert_eq!(answer.status, 200);
            assert!(answer.text().split_once("\n\n").unwrap().1 == body);
        }
        for handshake in front.seen() {
            assert_eq!(handshake.name.as_deref(), Some("cart.internal"));
            assert_eq!(handshake.protocol, Some(offered(version)[0].into()));
            assert!(handshake.identified);
        }
        assert!(!front.seen().is_empty());
    }));
}

#[test]
fn endpoints_that_prove_nothing_are_not() {
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let own = authority.issue(&["cart.internal"]);
    wait(async {
        for version in [Version::One, Version::Two] {
            let endpoint = mirror(version);
            let front = Front::new(&endpoint, &own, offered(version), None).await;
            let tls = |name: &str, ca: &Authority, insecure| UpstreamTls {
                server_name: Some(name.into()),
                ca: Some(ca.file()),
                identity: None,
                insecure,
            };
            let mut site = site(behind(&front, &endpoint, tls("cart.internal", &other, false)));
            for (tls, status) in [
                (tls("cart.internal", &other, false), 503),
                (tls("else.internal", &authority, false), 503),
                (tls("else.internal", &other, true), 200),
                (tls("cart.internal", &authority, false), 200),
                // What was open to the right one is not used any more.
                (tls("cart.internal", &other, false), 503),
            ] {
                site.proxy.server.update(behind(&front, &endpoint, tls));
                let answer = site.ask(version, "GET", "a.test/", &nothing()).await;
                assert_eq!(answer.status, status, "{version:?} {}", answer.text());
                let said = answer.text().contains("TLS handshake with");
                assert_eq!(said, status == 503, "{version:?} {}", answer.text());
            }
        }
    });
}
