//! What a service is told by fields that only proxies may say, whoever says them, in every pair of versions.

use std::net::SocketAddr;

use http::HeaderMap;
use keel_model::EndpointState;
use keel_route::snapshot::{Cluster, Listener};

use crate::http2::background::wait;
use crate::http2::either::{ALL, Caller, Endpoint, Message, Version};
use crate::http2::heads::{mirror, mirrored};
use crate::proxy::{CART, Proxy, cluster, listener};

/// Before `endpoint`, at a listener that is changed as is wanted.
fn before(endpoint: &Endpoint, change: impl FnOnce(&mut Listener)) -> (Proxy, SocketAddr) {
    let mut proxy = Proxy::start();
    let mut listener = listener(proxy.address(), endpoint.protocol());
    change(&mut listener);
    let bind = listener.bind;
    let ready = cluster(&[(endpoint.address(), EndpointState::Ready)], true);
    let clusters = [(CART.to_owned(), Cluster { protocol: endpoint.protocol(), ..ready })].into();
    assert_eq!(proxy.server.replace(vec![listener], clusters), []);
    (proxy, bind)
}

/// The fields that the endpoint gets of a request with `fields`.
fn told(client: Version, address: SocketAddr, fields: &[(&'static str, &str)]) -> HeaderMap {
    let message =
        fields.iter().fold(Message::default(), |all, (name, value)| all.with(name, value));
    wait(async {
        let mut caller = Caller::connect(client, address).await;
        mirrored(&caller.ask("GET", "/", &message).await.message.content.bytes())
    })
}

fn values<'a>(fields: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    fields.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

const SAID: &[(&str, &str)] = &[
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "said"),
    ("x-forwarded-port", "443"),
    ("x-forwarded-prefix", "/said"),
    ("x-forwarded-user", "root"),
    ("x-forwarded-for", "1.1.1.1"),
];

#[test]
fn clients_outside_are_not_believed_to_be_proxies() {
    for (client, endpoint) in ALL {
        let endpoint = mirror(endpoint);
        let (_proxy, address) = before(&endpoint, |listener| listener.published = true);
        let got = told(client, address, SAID);
        assert_eq!(values(&got, "x-forwarded-proto"), ["http"], "{client:?}");
        assert_eq!(values(&got, "x-forwarded-host"), ["cart"]);
        assert_eq!(values(&got, "x-forwarded-for"), ["1.1.1.1, 127.0.0.1"], "the last is ours");
        for name in ["x-forwarded-port", "x-forwarded-prefix", "x-forwarded-user"] {
            assert!(!got.contains_key(name), "{name}");
        }
    }
}

#[test]
fn services_and_trusted_proxies_are_believed() {
    let inside = |_: &mut Listener| {};
    let trusted = |listener: &mut Listener| {
        listener.published = true;
        listener.accept_proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
    };
    for (client, endpoint) in ALL {
        let endpoint = mirror(endpoint);
        for change in [inside, trusted] {
            let (_proxy, address) = before(&endpoint, change);
            let got = told(client, address, SAID);
            for (name, value) in &SAID[..5] {
                assert_eq!(values(&got, name), [*value], "{name} {client:?}");
            }
        }
    }
}

#[test]
fn names_that_programs_take_for_others_do_not_pass() {
    const ALIASES: &[&str] = &[
        "content_length",
        "transfer_encoding",
        "x_forwarded_for",
        "x-forwarded_proto",
        "x_forwarded_port",
        "x_forwarded-client-cert",
        "x_request_id",
        "keep_alive",
    ];
    for (client, endpoint) in ALL {
        let endpoint = mirror(endpoint);
        let (_proxy, address) = before(&endpoint, |_| {});
        let fields: Vec<_> = ALIASES
            .iter()
            .chain(&["x_mine", "my_forwarded_for"])
            .map(|name| (*name, "7"))
            .collect();
        let got = told(client, address, &fields);
        for name in ALIASES {
            assert!(!got.contains_key(*name), "{name} {client:?}");
        }
        assert_eq!(
            (values(&got, "x_mine"), values(&got, "my_forwarded_for")),
            (vec!["7"], vec!["7"])
        );
        assert_eq!(values(&got, "x-forwarded-for"), ["127.0.0.1"]);
    }
}

#[test]
fn no_client_keeps_from_a_service_what_it_is_to_be_told() {
    let names = "X-Request-Id, traceparent, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, Content-Length";
    for endpoint in [Version::One, Version::Two] {
        let endpoint = mirror(endpoint);
        let (_proxy, address) = before(&endpoint, |_| {});
        let got = told(
            Version::One,
            address,
            &[
                ("connection", names),
                ("x-request-id", "theirs"),
                ("traceparent", "theirs"),
                ("x-forwarded-host", "theirs"),
                ("x-forwarded-proto", "theirs"),
            ],
        );
        let id = values(&got, "x-request-id");
        assert!(id.len() == 1 && id[0].len() == 32, "{id:?}");
        assert!(values(&got, "traceparent")[0].contains(id[0]), "{got:?}");
        assert_eq!(values(&got, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(values(&got, "x-forwarded-host"), ["cart"]);
        assert_eq!(values(&got, "x-forwarded-proto"), ["http"]);
    }
}
