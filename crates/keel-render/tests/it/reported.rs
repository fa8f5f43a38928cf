//! What an engine can't do is reported, and nothing else is.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{
    ActiveCheck, AdaptiveConcurrency, BasicAuth, Compress, Outlier, PathRewrite, Protocol,
    ProxyVersion, RateLimit, Redirect, Rewrite, RouteKind, Rule, StickyCookie,
};
use keel_render::{Engine, Lack, Options, StreamModule, render};
use keel_route::snapshot::{Cluster, Listener, ListenerTls, RouteEntry, Snapshot};

use crate::cases;
use crate::make::{cluster, id, prefix, route, routed, with_filters, with_policy};

fn reported(engine: Engine, snapshot: &Snapshot) -> BTreeSet<Lack> {
    let options = crate::engine::options(Path::new("/run"));
    let options = Options { stream: StreamModule::File("/module.so".to_owned()), ..options };
    let rendered = render(engine, snapshot, &options);
    for gap in &rendered.gaps {
        assert_eq!(gap.what.why(engine), Some(gap.why));
        assert!(!gap.place.is_empty());
    }
    rendered.gaps.into_iter().map(|gap| gap.what).collect()
}

fn with_routes(routes: Vec<RouteEntry>) -> Snapshot {
    let bind = "127.0.0.1:80".parse().unwrap();
    let mut snapshot = routed(bind, routes, cases::clusters(&[("one", bind)]));
    snapshot.listeners[0].tls = Some(ListenerTls::default());
    let authority = crate::tls::authority();
    Arc::make_mut(&mut snapshot.certificates)
        .push(crate::tls::certificate(&authority, &["a.example"]));
    snapshot
}

#[test]
fn usual_things_are_no_gaps() {
    let snapshot = with_routes(vec![route("web", prefix("/"), "one")]);
    for engine in [Engine::Haproxy, Engine::Nginx] {
        assert_eq!(reported(engine, &snapshot), BTreeSet::new());
        assert_eq!(reported(engine, &Snapshot::default()), BTreeSet::new());
    }
}

#[test]
fn http2_without_tls_is_missed_only_where_a_service_speaks_it() {
    let calls = route("calls", prefix("/calls"), "grpc");
    let moved = with_filters(route("moved", prefix("/m"), "grpc"), |f| {
        f.redirect = Some(Redirect {
            scheme: Some("https".to_owned()),
            host: None,
            port: None,
            path: None,
            status: 308,
        });
    });
    let web = route("web", prefix("/"), "one");
    let mut snapshot = with_routes(vec![calls, moved, web]);
    let grpc = Cluster { protocol: Protocol::Http2, ..snapshot.clusters[&id("one")].clone() };
    snapshot.clusters.insert(id("grpc"), grpc);
    let places = |snapshot: &Snapshot| {
        let gaps = render(Engine::Nginx, snapshot, &Options::default()).gaps.into_iter();
        let gaps = gaps.filter(|gap| gap.what == Lack::CleartextHttp2);
        gaps.map(|gap| gap.place).collect::<Vec<_>>()
    };
    assert_eq!(places(&snapshot), Vec::<String>::new(), "TLS says what is spoken");
    snapshot.listeners[0].tls = None;
    assert_eq!(places(&snapshot), ["route shop/calls"]);
    assert!(!reported(Engine::Haproxy, &snapshot).contains(&Lack::CleartextHttp2));
}

#[test]
fn what_is_asked_of_routes() {
    let text = |text: &str| text.to_owned();
    let limit = RateLimit {
        requests: 1,
        per: Duration::from_secs(7),
        burst: 1,
        key: keel_model::ClientKey::All,
    };
    let full = with_filters(route("full", prefix("/"), "one"), |f| {
        f.compress = Some(Compress::default());
        f.basic_auth = Some(BasicAuth {
            realm: text("r"),
            users: vec![text("a:$apr1$x$y"), text("nothing")],
            user_header: Some(text("bad name")),
            remove_header: false,
        });
        f.rate_limits = vec![limit.clone(), limit.clone(), limit.clone(), limit];
        f.max_body = Some(1);
        f.response_headers.set.insert(text("Server"), text("x"));
        f.request_headers.set.insert(text("X-A"), text("a\nb"));
        let many = "(a)(b)(c)(d)(e)(f)(g)";
        f.rewrite = Some(Rewrite {
            host: None,
            path: vec![
                PathRewrite::Regex { from: text(many), to: text("$1$2$3$4$5$6$7") },
                PathRewrite::Regex { from: text("("), to: text("") },
            ],
        });
    });
    let mut full = RouteEntry { timeout_ms: Some(5), ..full };
    full.clusters = vec![(id("one"), 1), (id("two"), 2)];
    let moved = with_filters(route("moved", prefix("/m"), "one"), |f| {
        f.redirect =
            Some(Redirect { scheme: None, host: None, port: Some(1), path: None, status: 200 });
    });
    let hosts = |n: usize| {
        Rule::Any(
            (0..n)
                .map(|i| Rule::All(vec![Rule::Host(format!("h{i}")), prefix(&format!("/{i}"))]))
                .collect(),
        )
    };
    let wide = route("wide", hosts(65), "one");
    let snapshot = with_routes(vec![full, moved, wide]);
    let both = [
        Lack::RuleSize,
        Lack::Expression,
        Lack::Groups,
        Lack::HeaderName,
        Lack::ControlCharacter,
        Lack::Codings,
        Lack::UserLine,
        Lack::RedirectStatus,
        Lack::RequestTimeout,
    ];
    let mut haproxy = BTreeSet::from(both);
    haproxy.extend([Lack::CompressMinimum, Lack::PasswordHash, Lack::LimitCount, Lack::BodySize]);
    assert_eq!(reported(Engine::Haproxy, &snapshot), haproxy);
    let mut nginx = BTreeSet::from(both);
    nginx.extend([
        Lack::Weights,
        Lack::CompressTypes,
        Lack::FilterOrder,
        Lack::LimitRounding,
        Lack::ServerHeader,
    ]);
    assert_eq!(reported(Engine::Nginx, &snapshot), nginx);
}

#[test]
fn what_is_asked_of_services() {
    let full = with_policy(cluster(&[("one", "127.0.0.1:1".parse().unwrap())]), |policy| {
        policy.sticky =
            Some(StickyCookie { name: "k".to_owned(), ttl: None, secure: false, same_site: None });
        policy.slow_start = Some(Duration::from_secs(1));
        policy.prefer_zone = true;
        policy.outlier = Outlier { consecutive_errors: 1, ..Outlier::default() };
        policy.check = Some(ActiveCheck {
            path: "/".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            failures: 1,
            successes: 1,
        });
        policy.retry.budget_percent = 1;
        policy.retry.per_try_timeout = Some(Duration::from_secs(1));
        policy.retry.on_status = vec![500, 599];
        policy.timeouts.request = Some(Duration::from_secs(1));
        policy.timeouts.idle = Some(Duration::from_secs(1));
        policy.timeouts.hold = Some(Duration::from_secs(1));
        policy.limits.max_pending = Some(1);
        policy.adaptive = Some(AdaptiveConcurrency { min: 1, max: 2 });
        policy.send_proxy = Some(ProxyVersion::V2);
    });
    let mut snapshot = with_routes(vec![route("web", prefix("/"), "one")]);
    snapshot.clusters.insert(id("one"), full);
    let both = [
        Lack::Outlier,
        Lack::Hold,
        Lack::RetryBudget,
        Lack::PerTryTimeout,
        Lack::RetryStatus,
        Lack::RequestTimeout,
        Lack::IdleTimeout,
        Lack::Adaptive,
        Lack::Zones,
    ];
    let mut haproxy = BTreeSet::from(both);
    haproxy.insert(Lack::AllChecksFail);
    assert_eq!(reported(Engine::Haproxy, &snapshot), haproxy);
    let mut nginx = BTreeSet::from(both);
    nginx.extend([
        Lack::SendProxy,
        Lack::ActiveCheck,
        Lack::Pending,
        Lack::SlowStart,
        Lack::Sticky,
    ]);
    assert_eq!(reported(Engine::Nginx, &snapshot), nginx);
    let off = with_policy(cluster(&[("one", "127.0.0.1:1".parse().unwrap())]), |policy| {
        policy.outlier.consecutive_errors = 0;
    });
    snapshot.clusters.insert(id("one"), off);
    for engine in [Engine::Haproxy, Engine::Nginx] {
        assert_eq!(reported(engine, &snapshot), BTreeSet::new(), "leaving out is switched off");
    }
}

#[test]
fn an_access_log_is_asked_for() {
    let mut snapshot = with_routes(vec![route("web", prefix("/"), "one")]);
    snapshot.access_log = Some(keel_route::access_log::AccessLog::default());
    for engine in [Engine::Haproxy, Engine::Nginx] {
        assert_eq!(reported(engine, &snapshot), BTreeSet::from([Lack::AccessLog]));
        assert!(Lack::ALWAYS.iter().all(|lack| lack.why(engine).is_some()));
    }
}

#[test]
fn what_is_asked_of_listeners() {
    let mut snapshot = with_routes(vec![route("web", prefix("/"), "one")]);
    let first = snapshot.listeners[0].clone();
    snapshot.listeners.push(first.clone());
    snapshot.certificates = Arc::default();
    let at = |port: u16| ([127, 0, 0, 1], port).into();
    let proxied = vec!["10.0.0.0/8".parse().unwrap()];
    let listener = Listener { bind: at(81), cluster: id("one"), ..Listener::default() };
    snapshot.listeners.push(Listener { accept_proxy_from: proxied, ..listener.clone() });
    let refuses = BTreeSet::from(["shop/web".to_owned()]);
    snapshot.listeners.push(Listener {
        bind: at(82),
        protocol: Protocol::Http,
        refuses,
        ..listener
    });
    let certificate = keel_route::snapshot::Certificate {
        names: Vec::new(),
        chain: "nonsense".to_owned(),
        key: String::new(),
    };
    snapshot.challenges.tls_alpn.push(certificate.clone());
    Arc::make_mut(&mut snapshot.certificates).push(certificate);
    let both = [
        Lack::Networks,
        Lack::Listener,
        Lack::Certificate,
        Lack::CertificateName,
        Lack::AlpnChallenge,
    ];
    assert_eq!(reported(Engine::Haproxy, &snapshot), BTreeSet::from(both));
    let mut nginx = BTreeSet::from(both);
    nginx.extend([Lack::Detection, Lack::AcceptProxy]);
    assert_eq!(reported(Engine::Nginx, &snapshot), nginx);
    // Without the module nothing opaque can be listened for.
    let options = Options { stream: StreamModule::Absent, ..Options::default() };
    let mut tcp = route("tcp", Rule::Sni("a.example".to_owned()), "one");
    tcp.kind = RouteKind::Passthrough;
    let rendered = render(Engine::Nginx, &with_routes(vec![tcp]), &options);
    assert!(rendered.gaps.iter().any(|gap| gap.what == Lack::Opaque), "{:?}", rendered.gaps);
}
