//! The real engines accept every configuration, whatever the snapshot says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{
    ActiveCheck, AdaptiveConcurrency, Balance, BasicAuth, ClientKey, Compress, Cors, EndpointState,
    Filters, HeaderEdits, Outlier, PathRewrite, Protocol, ProxyVersion, RateLimit, Redirect, Retry,
    Rewrite, RouteKind, Rule, StickyCookie, Timeouts, TrafficLimits, TrafficPolicy, UpstreamTls,
};
use keel_render::render;
use keel_route::snapshot::{Cluster, Listener, ListenerTls, RouteEntry, RouteTable, Snapshot};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::cases;
use crate::engine::{complaints, installed, options, own_ip};
use crate::make::{endpoint, routed};
use crate::tls::{authority, certificate};

/// Text as users write it, and as they should not.
fn text() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        "[a-z]{1,8}",
        "[\"';{}$%\\\\#\\[\\] \\n\\r\\t\\x00-]{1,6}",
        "\\PC{0,12}",
        Just("--".to_owned()),
        Just("}".to_owned()),
        Just("default".to_owned()),
        Just("${x}%[src]\\1$1".to_owned()),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![3 => text().prop_map(|text| format!("/{text}")), 1 => text(), 1 => Just("/".to_owned())]
}

fn expression() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/v[0-9]+/(?<name>[a-z]*)".to_owned()),
        Just("(?i)a|\\w{2,3}$".to_owned()),
        Just("[^/]+\\.(js|css)".to_owned()),
        text(),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[Xx]-[A-Za-z]{1,6}", 1 => Just("Host".to_owned()), 1 => text()]
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    prop::sample::select(vec![
        "10.0.0.0/8",
        "127.0.0.1/32",
        "::1/128",
        "2001:db8::/32",
        "0.0.0.0/0",
    ])
    .prop_map(|net| net.parse().unwrap())
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-c]\\.example", 2 => Just("*.example".to_owned()), 1 => text()]
}

fn rule() -> BoxedStrategy<Rule> {
    let leaf = prop_oneof![
        3 => host().prop_map(Rule::Host),
        1 => expression().prop_map(Rule::HostRegex),
        1 => path().prop_map(Rule::Path),
        3 => path().prop_map(Rule::PathPrefix),
        1 => expression().prop_map(Rule::PathRegex),
        1 => prop_oneof![Just("GET".to_owned()), text()].prop_map(Rule::Method),
        1 => (name(), prop::option::of(text())).prop_map(|(n, v)| Rule::Header(n, v)),
        1 => (name(), expression()).prop_map(|(n, e)| Rule::HeaderRegex(n, e)),
        1 => (text(), prop::option::of(text())).prop_map(|(n, v)| Rule::Query(n, v)),
        1 => net().prop_map(Rule::Client),
        1 => prop_oneof![host(), Just("*".to_owned())].prop_map(Rule::Sni),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Rule::All),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Rule::Any),
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
        ]
    })
    .boxed()
}

fn change() -> BoxedStrategy<PathRewrite> {
    prop_oneof![
        path().prop_map(PathRewrite::Replace),
        prop::collection::vec(path(), 1..3).prop_map(PathRewrite::StripPrefix),
        path().prop_map(PathRewrite::AddPrefix),
        (path(), path()).prop_map(|(from, to)| PathRewrite::ReplacePrefix { from, to }),
        (expression(), text()).prop_map(|(from, to)| PathRewrite::Regex { from, to }),
    ]
    .boxed()
}

fn edits() -> BoxedStrategy<HeaderEdits> {
    let values = || prop::collection::btree_map(name(), text(), 0..3);
    (prop::collection::vec(name(), 0..2), values(), values())
        .prop_map(|(remove, set, add)| HeaderEdits { remove, set, add })
        .boxed()
}

fn key() -> impl Strategy<Value = ClientKey> {
    prop_oneof![
        Just(ClientKey::All),
        Just(ClientKey::Source),
        Just(ClientKey::Path),
        name().prop_map(ClientKey::Header),
        name().prop_map(ClientKey::Cookie),
    ]
}

fn redirect() -> BoxedStrategy<Redirect> {
    use prop::option::of;
    (of(text()), of(host()), of(any::<u16>()), of(change()), 300u16..310)
        .prop_map(|(scheme, host, port, path, status)| Redirect {
            scheme,
            host,
            port,
            path,
            status,
        })
        .boxed()
}

fn cors() -> BoxedStrategy<Cors> {
    let list = || prop::collection::vec(prop_oneof![text(), Just("*".to_owned())], 0..3);
    (list(), list(), list(), list(), any::<bool>())
        .prop_map(|(origins, methods, headers, expose, credentials)| Cors {
            origins,
            methods,
            headers,
            expose,
            credentials,
            max_age: credentials.then_some(Duration::from_secs(5)),
        })
        .boxed()
}

fn auth() -> BoxedStrategy<BasicAuth> {
    let user = prop_oneof![
        Just(cases::BCRYPT.to_owned()),
        Just("a:$apr1$x$y".to_owned()),
        (text(), text()).prop_map(|(user, hash)| format!("{user}:{hash}")),
    ];
    (text(), prop::collection::vec(user, 0..3), prop::option::of(name()), any::<bool>())
        .prop_map(|(realm, users, user_header, remove_header)| BasicAuth {
            realm,
            users,
            user_header,
            remove_header,
        })
        .boxed()
}

fn filters() -> BoxedStrategy<Filters> {
    let option = |some| prop::option::weighted(0.3, some);
    let limit =
        (0u32..1000, 1u64..100_000, 0u32..50, key()).prop_map(|(requests, per, burst, key)| {
            RateLimit { requests, per: Duration::from_millis(per), burst, key }
        });
    let rewrite = (prop::option::of(host()), prop::collection::vec(change(), 0..3))
        .prop_map(|(host, path)| Rewrite { host, path });
    let compress = prop::collection::vec(prop_oneof![text(), Just("text/*".to_owned())], 0..4)
        .prop_map(|types| Compress { types, ..Compress::default() });
    let first = (
        prop::collection::vec(net(), 0..2),
        prop::option::weighted(0.15, redirect()),
        prop::option::weighted(0.3, cors()),
        prop::option::weighted(0.3, auth()),
        prop::collection::vec(limit, 0..3),
    );
    let second = (
        option(any::<u64>()),
        prop::option::weighted(0.4, rewrite),
        edits(),
        edits(),
        prop::option::weighted(0.3, compress),
    );
    (first, second)
        .prop_map(|(first, second)| Filters {
            allow: first.0,
            redirect: first.1,
            cors: first.2,
            basic_auth: first.3,
            rate_limits: first.4,
            max_body: second.0,
            rewrite: second.1,
            request_headers: second.2,
            response_headers: second.3,
            compress: second.4,
        })
        .boxed()
}

fn balance() -> impl Strategy<Value = Balance> {
    prop_oneof![
        Just(Balance::LeastRequest),
        Just(Balance::RoundRobin),
        Just(Balance::Random),
        key().prop_map(Balance::RingHash),
        key().prop_map(Balance::Maglev),
    ]
}

fn upstream_tls() -> impl Strategy<Value = UpstreamTls> {
    (prop::option::of(host()), any::<bool>(), any::<bool>()).prop_map(
        |(server_name, insecure, ca)| {
            let ca = ca.then(|| PathBuf::from("/etc/ssl/certs/ca-certificates.crt"));
            UpstreamTls { server_name, ca, identity: None, insecure }
        },
    )
}

fn policy() -> BoxedStrategy<TrafficPolicy> {
    let millis = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    let sticky =
        (name(), prop::option::of(millis(0..100_000)), any::<bool>(), prop::option::of(text()))
            .prop_map(|(name, ttl, secure, same_site)| StickyCookie {
                name,
                ttl,
                secure,
                same_site,
            });
    let check = (path(), millis(0..5000), 0u32..5).prop_map(|(path, interval, failures)| {
        ActiveCheck { path, interval, timeout: interval, failures, successes: failures }
    });
    let retry = (0u32..5, any::<u8>(), prop::collection::vec(400u16..510, 0..3)).prop_map(
        |(attempts, budget_percent, on_status)| Retry {
            attempts,
            budget_percent,
            per_try_timeout: None,
            on_status,
        },
    );
    let limits =
        (prop::option::of(1u32..99), prop::option::of(1u32..99), prop::option::of(0u32..99))
            .prop_map(|(max_connections, max_pending, max_requests)| TrafficLimits {
                max_connections,
                max_pending,
                max_requests,
            });
    let option = prop::option::of::<BoxedStrategy<Duration>>;
    let times = (millis(0..9000), millis(0..400_000), option(millis(0..9000).boxed())).prop_map(
        |(connect, response, idle)| Timeouts { connect, response, idle, request: idle, hold: idle },
    );
    (
        (balance(), prop::option::of(sticky), option(millis(0..9000).boxed()), any::<bool>()),
        (0u32..9, prop::option::of(check), retry, times, limits),
        (prop::option::of(upstream_tls()), prop::option::of(any::<bool>())),
    )
        .prop_map(|(first, second, third)| TrafficPolicy {
            balance: first.0,
            sticky: first.1,
            slow_start: first.2,
            prefer_zone: first.3,
            outlier: Outlier { consecutive_errors: second.0, ..Outlier::default() },
            check: second.1,
            retry: second.2,
            timeouts: second.3,
            limits: second.4,
            adaptive: first.3.then_some(AdaptiveConcurrency { min: 1, max: 2 }),
            tls: third.0,
            send_proxy: third.1.map(|v1| if v1 { ProxyVersion::V1 } else { ProxyVersion::V2 }),
        })
        .boxed()
}

/// Snapshots that are tried.
const CASES: u32 = 60;
const PROTOCOLS: [Protocol; 4] = [Protocol::Auto, Protocol::Http, Protocol::Http2, Protocol::Tcp];
const CLUSTERS: [&str; 4] = ["shop/cart:80", "shop_cart_80", "a b\";{$", ""];

fn cluster() -> BoxedStrategy<Cluster> {
    let endpoints = prop::collection::vec((1u16..9999, any::<bool>(), any::<bool>()), 0..4);
    (endpoints, prop::sample::select(PROTOCOLS.to_vec()), prop::option::of(policy()))
        .prop_map(|(endpoints, protocol, policy)| {
            let each = endpoints.iter().enumerate().map(|(n, (port, ready, v6))| {
                let ip: IpAddr = if *v6 { "::1" } else { "127.0.0.1" }.parse().unwrap();
                let state = if *ready { EndpointState::Ready } else { EndpointState::Draining };
                endpoint(&format!("shop-cart-{n}"), (ip, *port).into(), state)
            });
            Cluster {
                endpoints: each.collect(),
                expected: true,
                protocol,
                policy: policy.map(Box::new),
                zones: BTreeMap::new(),
            }
        })
        .boxed()
}

fn route() -> BoxedStrategy<RouteEntry> {
    let kind = prop_oneof![
        6 => Just(RouteKind::Http),
        1 => Just(RouteKind::Tcp),
        1 => Just(RouteKind::Passthrough),
    ];
    let to = prop::collection::vec(
        (prop::sample::select(CLUSTERS.to_vec()), prop_oneof![0u32..5, any::<u32>()]),
        1..3,
    );
    let time = prop::option::of(any::<u64>());
    (text(), rule(), -5i64..5, kind, to, filters(), time)
        .prop_map(|(name, rule, priority, kind, to, filters, timeout_ms)| RouteEntry {
            name,
            rule,
            priority,
            kind,
            clusters: to.into_iter().map(|(id, weight)| (id.to_owned(), weight)).collect(),
            filters,
            timeout_ms,
        })
        .boxed()
}

/// A listener without its address.
fn listener() -> BoxedStrategy<Listener> {
    let tls = prop::option::weighted(0.4, Just(ListenerTls::default()));
    let proxied = prop::collection::vec(net(), 0..2);
    (
        prop::sample::select(PROTOCOLS.to_vec()),
        prop::sample::select(CLUSTERS.to_vec()),
        prop::option::weighted(0.7, Just("web".to_owned())),
        tls,
        proxied,
    )
        .prop_map(|(protocol, cluster, table, tls, accept_proxy_from)| Listener {
            protocol,
            cluster: cluster.to_owned(),
            table,
            tls,
            accept_proxy_from,
            ..Listener::default()
        })
        .boxed()
}

fn snapshot() -> BoxedStrategy<Snapshot> {
    let clusters = prop::collection::vec(cluster(), CLUSTERS.len());
    (
        prop::collection::vec(listener(), 1..4),
        prop::collection::vec(route(), 0..6),
        clusters,
        prop::option::of(1u16..),
        any::<bool>(),
    )
        .prop_map(|(listeners, routes, clusters, redirect_https, with_certificate)| {
            let table = RouteTable { routes, redirect_https };
            let ids = CLUSTERS.iter().map(|id| (*id).to_owned());
            let mut snapshot = Snapshot {
                listeners,
                clusters: ids.zip(clusters).collect(),
                tables: BTreeMap::from([("web".to_owned(), table)]),
                ..Snapshot::default()
            };
            if with_certificate {
                Arc::make_mut(&mut snapshot.certificates)
                    .push(certificate(&authority(), &["a.example", "*.example"]));
            }
            snapshot
        })
        .boxed()
}

/// Gives the listeners addresses on which nobody else listens.
fn placed(mut snapshot: Snapshot) -> Snapshot {
    let ip = own_ip();
    for (port, listener) in (8080..).zip(&mut snapshot.listeners) {
        listener.bind = SocketAddr::from((ip, port));
    }
    snapshot
}

#[test]
fn whatever_the_snapshot_says() {
    let engines = installed();
    let directory = tempfile::tempdir().unwrap();
    // Each case starts two processes: as many as are worth waiting for, unless told otherwise.
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if told { Config::default().cases } else { CASES };
    let config = Config { cases, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&snapshot(), |snapshot| {
        let snapshot = placed(snapshot);
        for engine in &engines {
            let rendered = render(*engine, &snapshot, &options(directory.path()));
            let complaints = complaints(*engine, &rendered);
            prop_assert!(
                complaints.is_empty(),
                "{complaints}\n{}",
                rendered.files[engine.main_file()]
            );
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_cases_and_nothing_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let here = [("one", "127.0.0.1:1".parse().unwrap()), ("two", "127.0.0.1:2".parse().unwrap())];
    for engine in installed() {
        let mut snapshots = vec![Snapshot::default()];
        for case in cases::cases() {
            snapshots.push(placed(routed(here[0].1, case.routes, cases::clusters(&here))));
        }
        for snapshot in snapshots {
            let rendered = render(engine, &snapshot, &options(directory.path()));
            assert_eq!(complaints(engine, &rendered), "", "{:?}", rendered.files);
        }
    }
}
