//! From `x-keel` and labels to routes, entrypoints and traffic policies.

#![allow(clippy::unwrap_used)] // A failed expectation ends a test.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_compose::{Diagnostic, LoadOptions, Lowered, MemorySource, load};
use keel_model::{
    Balance, ClientKey, PathRewrite, ProxyVersion, Route, RouteKind, RouteTls, Service, Stack,
};

const BCRYPT: &str = "ann:$2y$05$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn lower(compose: &str) -> Result<Lowered, Vec<Diagnostic>> {
    let source = MemorySource::new()
        .with("/app/compose.yaml", compose)
        .with("/app/tls/cert.pem", "")
        .with("/app/tls/key.pem", "")
        .with("/app/ca.pem", "-----BEGIN CERTIFICATE-----")
        .with("/app/c.pem", "-----BEGIN CERTIFICATE-----")
        .with("/app/k.pem", "-----BEGIN PRIVATE KEY-----")
        .with("/app/junk.pem", "junk")
        .with("/app/users", format!("# who\n{BCRYPT}\n"));
    load(&LoadOptions::new("/app", BTreeMap::new()), &source)?.to_stack(&source)
}

fn stack(compose: &str) -> Stack {
    lower(compose).unwrap_or_else(|errors| panic!("{errors:#?}")).stack
}

fn told(diagnostics: &[Diagnostic]) -> Vec<String> {
    let text = |diagnostic: &Diagnostic| {
        diagnostic.to_string().replace("/app/compose.yaml:", "").replace("\n  help: ", " | ")
    };
    diagnostics.iter().map(text).collect()
}

fn errors(compose: &str) -> Vec<String> {
    told(&lower(compose).expect_err(compose))
}

fn warnings(compose: &str) -> Vec<String> {
    told(&lower(compose).unwrap_or_else(|errors| panic!("{errors:#?}")).notes)
}

/// A service `a` with this under `x-keel`.
fn with(settings: &str) -> String {
    format!("services: {{a: {{command: ./a, expose: [80, 81], x-keel: {settings}}}}}")
}

fn service(settings: &str) -> Service {
    stack(&with(settings)).services["a"].clone()
}

fn route(settings: &str) -> Route {
    service(&format!("{{routes: [{settings}]}}")).routes.remove(0)
}

/// A service `a` with these labels.
fn labelled(labels: &[&str]) -> String {
    let lines: String = labels.iter().map(|label| format!("      - '{label}'\n")).collect();
    format!("services:\n  a:\n    command: ./a\n    expose: [80, 81]\n    labels:\n{lines}")
}

fn entrypoints(stack: &Stack) -> Vec<String> {
    stack
        .entrypoints
        .iter()
        .map(|(name, e)| {
            let tls = if e.tls { " tls" } else { "" };
            let to = e.redirect_to.as_ref().map(|to| format!(" -> {to}")).unwrap_or_default();
            format!("{name} {}{tls}{to}", e.bind)
        })
        .collect()
}

#[test]
fn short_routes() {
    for (text, rule, tls) in [
        ("shop.example.com", "Host(`shop.example.com`)", None),
        ("\"*.Example.com\"", "Host(`*.example.com`)", None),
        ("shop.example.com/api", "Host(`shop.example.com`) && PathPrefix(`/api`)", None),
        ("shop.example.com/", "Host(`shop.example.com`)", None),
        ("/api", "PathPrefix(`/api`)", None),
        ("https://a.de/x", "Host(`a.de`) && PathPrefix(`/x`)", Some(RouteTls::Any)),
    ] {
        let found = route(text);
        assert_eq!((found.rule.to_string().as_str(), found.tls), (rule, tls), "{text}");
    }
    assert_eq!(
        stack("services: {a: {command: ./a, expose: [80], x-keel: {routes: a.de}}}").services["a"]
            .routes
            .len(),
        1
    );
}

#[test]
fn a_route_with_everything() {
    let stack = stack(
        "x-keel:
  entrypoints: {extra: {bind: '127.0.0.1:8443', tls: true, min_tls: 1.3, client_auth: ca.pem, accept_proxy_from: 10.0.0.0/8}}
  acme: {directory: letsencrypt-staging, email: a@b.de, challenge: tls-alpn-01, ca: roots.pem}
services:
  b: {command: ./b, expose: [90]}
  a:
    command: ./a
    expose: [80, 81]
    x-keel:
      routes:
        - name: api
          host: [a.de, '*.b.de']
          path: [/api, {exact: /x}, {regex: '/v[0-9]+'}]
          method: [get, POST]
          headers: {X-A: '1', X-B: , X-C: {regex: '^2'}}
          query: {q: 1, debug: }
          client: 10.0.0.0/8
          priority: 7
          port: 81
          entrypoints: [extra]
          tls: {cert: tls/cert.pem, key: tls/key.pem}
          split: {b: 2.5%}
          timeout: 30s
",
    );
    let route = &stack.services["a"].routes[0];
    assert_eq!(
        route.rule.to_string(),
        "(Host(`a.de`) || Host(`*.b.de`)) && (PathPrefix(`/api`) || Path(`/x`) || PathRegexp(`^/v[0-9]+`)) && \
         (Method(`GET`) || Method(`POST`)) && Header(`X-A`, `1`) && Header(`X-B`) && HeaderRegexp(`X-C`, `^2`) && \
         Query(`debug`) && Query(`q`, `1`) && ClientIP(`10.0.0.0/8`)"
    );
    assert_eq!((route.name.as_str(), route.priority, route.port), ("api", Some(7), Some(81)));
    assert_eq!(route.entrypoints, ["extra"]);
    assert_eq!(
        route.tls,
        Some(RouteTls::Files { cert: "/app/tls/cert.pem".into(), key: "/app/tls/key.pem".into() })
    );
    assert_eq!((route.split[0].service.as_str(), route.split[0].per_mille), ("b", 25));
    assert_eq!(route.timeout, Some(Duration::from_secs(30)));
    let extra = &stack.entrypoints["extra"];
    assert_eq!(extra.bind.to_string(), "127.0.0.1:8443");
    assert_eq!(extra.client_auth.as_ref().unwrap().ca, std::path::Path::new("/app/ca.pem"));
    assert_eq!(extra.accept_proxy_from.len(), 1);
    assert_eq!(entrypoints(&stack), ["extra 127.0.0.1:8443 tls"]);
    let acme = stack.acme.unwrap();
    assert!(acme.directory.contains("staging"));
    assert_eq!(acme.ca.unwrap(), std::path::Path::new("/app/roots.pem"));
}

#[test]
fn filters() {
    let found = route(
        "{path: /, allow: [10.0.0.0/8, '::1'], redirect: {scheme: https, strip_prefix: /a, status: 302},
          cors: {origins: ['https://*.a.de'], methods: [PUT], headers: '*', expose: X-A, credentials: true, max_age: 1h},
          basic_auth: {file: users, realm: me, user_header: X-User, remove_header: true},
          rate_limit: [100/s, {rate: 6/m, burst: 2, by: 'cookie:id'}], max_body: 10m,
          rewrite: {add_prefix: /v1, strip_prefix: [/api, /x], regex: {from: '^/a(.*)', to: '$$1'}, host: in.de},
          request_headers: {set: {X-A: 1}, remove: Cookie}, response_headers: {add: {X-B: b}},
          compress: {encodings: [gzip, br], min_size: 2k, types: [text/html]}}",
    );
    let filters = found.filters;
    assert_eq!(filters.allow.len(), 2);
    let redirect = filters.redirect.unwrap();
    assert_eq!(
        (redirect.status, redirect.path),
        (302, Some(PathRewrite::StripPrefix(vec!["/a".into()])))
    );
    let cors = filters.cors.unwrap();
    assert_eq!(
        (cors.origins, cors.headers),
        (vec!["https://*.a.de".to_owned()], vec!["*".to_owned()])
    );
    assert_eq!((cors.credentials, cors.max_age), (true, Some(Duration::from_secs(3600))));
    let auth = filters.basic_auth.unwrap();
    assert_eq!((auth.realm.as_str(), auth.users.len()), ("me", 1));
    assert_eq!((auth.user_header.as_deref(), auth.remove_header), (Some("X-User"), true));
    assert_eq!(filters.rate_limits[0].burst, 100);
    assert_eq!(filters.rate_limits[1].key, ClientKey::Cookie("id".into()));
    assert_eq!(filters.max_body, Some(10 << 20));
    let rewrite = filters.rewrite.unwrap();
    assert_eq!(rewrite.host.as_deref(), Some("in.de"));
    assert_eq!(
        rewrite.path,
        [
            PathRewrite::StripPrefix(vec!["/api".into(), "/x".into()]),
            PathRewrite::Regex { from: "^/a(.*)".into(), to: "$1".into() },
            PathRewrite::AddPrefix("/v1".into()),
        ]
    );
    assert_eq!(filters.request_headers.set["X-A"], "1");
    assert_eq!(filters.request_headers.remove, ["Cookie"]);
    assert_eq!(filters.response_headers.add["X-B"], "b");
    assert_eq!(filters.compress.unwrap().min_size, 2048);
    let short = route("{path: /, compress: true, cors: 'https://a.de', redirect: https}").filters;
    assert_eq!(short.compress.unwrap().min_size, 1024);
    assert_eq!(short.redirect.unwrap().status, 308);
}

#[test]
fn users_come_from_a_secret_too() {
    let source = MemorySource::new()
        .with(
            "/app/compose.yaml",
            "services: {a: {command: ./a, expose: [80], x-keel: {routes: {path: /, basic_auth: {secret: who}}}}}
secrets: {who: {file: ./users}}",
        )
        .with("/app/users", BCRYPT);
    let project = load(&LoadOptions::new("/app", BTreeMap::new()), &source).unwrap();
    let stack = project.to_stack(&source).unwrap().stack;
    let auth = stack.services["a"].routes[0].filters.basic_auth.clone().unwrap();
    assert_eq!(auth.users, [BCRYPT]);
    assert!(!format!("{auth:?}").contains("2y"), "no hash in what is printed for debugging");
}

#[test]
fn traffic() {
    let policy = service(
        "{traffic: {balance: {maglev: {by: 'header:X-Key'}}, sticky: true, slow_start: 30s, prefer_zone: true,
          outlier: {consecutive_errors: 3, base: 1s, max: 1m, max_percent: 30%}, check: /health,
          retry: {attempts: 2, budget: 10%, per_try_timeout: 1s, on_status: [503]},
          timeouts: {connect: 500ms, response: 10s, request: 20s, idle: 1m, hold: 0s},
          limits: {max_connections: 10, max_pending: 0, max_requests: 5}, adaptive_concurrency: {min: 2, max: 9},
          tls: {server_name: in.de, ca: ca.pem, cert: c.pem, key: k.pem}, send_proxy_protocol: v2}}",
    )
    .traffic;
    assert_eq!(policy.balance, Balance::Maglev(ClientKey::Header("X-Key".into())));
    assert_eq!(policy.sticky.unwrap().name, "keel_a");
    assert_eq!(policy.slow_start, Some(Duration::from_secs(30)));
    assert!(policy.prefer_zone);
    assert_eq!((policy.outlier.consecutive_errors, policy.outlier.max_percent), (3, 30));
    let check = policy.check.unwrap();
    assert_eq!((check.path.as_str(), check.failures, check.successes), ("/health", 3, 2));
    assert_eq!((policy.retry.attempts, policy.retry.budget_percent), (2, 10));
    assert_eq!(policy.retry.on_status, [503]);
    assert_eq!(policy.timeouts.hold, Some(Duration::ZERO));
    assert_eq!(policy.limits.max_pending, Some(0));
    assert_eq!(policy.adaptive.unwrap().max, 9);
    let tls = policy.tls.unwrap();
    assert_eq!(tls.identity, Some(("/app/c.pem".into(), "/app/k.pem".into())));
    assert_eq!(policy.send_proxy, Some(ProxyVersion::V2));
    let off = service("{traffic: {outlier: false, retry: false, sticky: {cookie: x, ttl: 1h, secure: true, same_site: none}}}").traffic;
    assert_eq!((off.outlier.consecutive_errors, off.retry.attempts), (0, 0));
    assert_eq!(off.sticky.unwrap().same_site.as_deref(), Some("none"));
    let untouched = service("{}").traffic;
    assert_eq!(untouched, keel_model::TrafficPolicy::default());
}

#[test]
fn default_entrypoints_are_there_when_routes_use_them() {
    let of = |settings: &str| entrypoints(&stack(&with(settings)));
    assert!(of("{}").is_empty());
    assert_eq!(of("{routes: a.de}"), ["web 0.0.0.0:80"]);
    let secure = ["web 0.0.0.0:80 -> websecure", "websecure 0.0.0.0:443 tls"];
    assert_eq!(of("{routes: {host: a.de, tls: true}}"), secure);
    assert_eq!(of("{routes: {host: a.de, tls: acme, entrypoints: websecure}}"), secure);
    assert_eq!(
        of("{routes: {host: a.de, tls: true, entrypoints: websecure}}"),
        ["websecure 0.0.0.0:443 tls"]
    );
    assert_eq!(of("{routes: {kind: passthrough, sni: a.de}}"), secure);
    let own = |top: &str, settings: &str| {
        entrypoints(&stack(&format!("x-keel: {{entrypoints: {top}}}\n{}", with(settings))))
    };
    assert_eq!(
        own("{web: 8080, websecure: ':8443'}", "{routes: {host: a.de, tls: true}}"),
        ["web 0.0.0.0:8080 -> websecure", "websecure 0.0.0.0:8443 tls"]
    );
    assert_eq!(own("{spare: '[::1]:90'}", "{}"), ["spare [::1]:90"]);
    assert_eq!(
        own("{web: {redirect_to: websecure}}", "{}"),
        ["web 0.0.0.0:80 -> websecure", "websecure 0.0.0.0:443 tls"]
    );
    assert_eq!(
        own(
            "{http: 80, https: {bind: 443, tls: true}}",
            "{routes: {host: a.de, tls: acme, entrypoints: https}}"
        ),
        ["http 0.0.0.0:80", "https 0.0.0.0:443 tls"],
        "an authority is answered at any plain entrypoint on port 80"
    );
    assert_eq!(
        own(
            "{https: {bind: 443, tls: true}}",
            "{routes: {host: a.de, tls: acme, entrypoints: https}}"
        ),
        ["https 0.0.0.0:443 tls", "web 0.0.0.0:80"]
    );
    let implied = route("{host: a.de, entrypoints: websecure}");
    assert_eq!(implied.tls, Some(RouteTls::Any), "an entrypoint with TLS gives it to its routes");
}

#[test]
fn connections() {
    let compose = |settings: &str| {
        format!(
            "x-keel: {{entrypoints: {{db: ':5432'}}}}\n{}",
            with(&format!("{{routes: {settings}}}"))
        )
    };
    let of = |settings: &str| stack(&compose(settings)).services["a"].routes[0].clone();
    let plain = of("{kind: tcp, entrypoints: db, allow: 10.0.0.0/8}");
    assert_eq!(plain.rule.to_string(), "HostSNI(`*`) && ClientIP(`10.0.0.0/8`)");
    assert_eq!((plain.kind, plain.tls), (RouteKind::Tcp, None));
    let through = of("{kind: passthrough, sni: ['*.a.de', b.de]}");
    assert_eq!(through.rule.to_string(), "HostSNI(`*.a.de`) || HostSNI(`b.de`)");
    assert_eq!((through.entrypoints, through.tls), (vec!["websecure".to_owned()], None));
    let ended = of("{kind: tcp, rule: 'HostSNI(`a.de`)', tls: true}");
    assert_eq!(ended.entrypoints, ["websecure"]);
}

const MISTAKES: &[(&str, &str)] = &[
    ("{routes: [{hots: a.de}]}", "`x-keel.routes[]` has no key `hots` | did you mean `host`?"),
    ("{routes: 5}", "a list of routes"),
    ("{routes: ['http://']}", "a host with a path"),
    ("{routes: [a.de:80]}", "leave out the port"),
    ("{routes: [{path: api}]}", "begins with `/`"),
    ("{routes: [{priority: 1}]}", "does not say which requests"),
    ("{routes: [{host: a.de, rule: 'Path(`/`)'}]}", "both say which requests"),
    (
        "{routes: [{rule: 'Hots(`a`)'}]}",
        "1:74: error: there is no matcher `Hots` | did you mean `Host`?",
    ),
    ("{routes: [{rule: 'Host(`a`) & Path(`/`)'}]}", "1:84: error: write `&&`"),
    ("{routes: [{host: a.de, kind: tpc}]}", "did you mean `tcp`"),
    ("{routes: [{kind: tcp, host: a.de, entrypoints: web}]}", "`host` is for requests"),
    ("{routes: [{kind: tcp, compress: true, entrypoints: web}]}", "`compress` is for requests"),
    ("{routes: [{sni: a.de, host: a.de}]}", "`sni` is for connections"),
    ("{routes: [{kind: tcp}]}", "an entrypoint of their own"),
    ("{routes: [{kind: tcp, sni: a.de, entrypoints: web}]}", "has no server name"),
    ("{routes: [{kind: passthrough, sni: a.de, tls: true}]}", "no TLS of its own"),
    ("{routes: [{kind: passthrough, sni: a.de, entrypoints: web}]}", "speaks no TLS"),
    ("{routes: [{host: a.de, tls: maybe}]}", "`true`, `acme`"),
    ("{routes: [{host: a.de, tls: {cert: x}}]}", "both `cert` and `key`"),
    ("{routes: [{host: a.de, tls: {cert: x, key: tls/key.pem}}]}", "there is no file /app/x"),
    ("{routes: [{path: /, tls: acme}]}", "names no host"),
    ("{routes: [{host: '*.a.de', tls: acme}]}", "proof by DNS"),
    ("{routes: [{host: a.de, tls: true, entrypoints: web}]}", "speaks no TLS"),
    ("{routes: [{host: a.de, entrypoints: wbe}]}", "no entrypoint `wbe` | did you mean `web`?"),
    ("{routes: [{host: a.de, port: 82}]}", "the service `a` has no port 82 | it has 80, 81"),
    ("{routes: [{host: a.de, split: {b: 10%}}]}", "there is no service `b`"),
    ("{routes: [{host: a.de, split: {a: 10%}}]}", "gets what is left"),
    ("{routes: [{host: a.de, split: {b: 10}}]}", "`10%`"),
    ("{routes: [{host: a.de, split: {b: 60%, c: 60%}}]}", "more than 100%"),
    ("{routes: [{name: b, host: a.de}, {name: b, host: b.de}]}", "the route `b` is defined at 1:"),
    ("{routes: [{host: a.de, name: 'x y'}]}", "a name of letters"),
    ("{routes: [{host: a.de, allow: 10.0.0.0/99}]}", "a network"),
    ("{routes: [{host: a.de, redirect: ftp}]}", "a scheme, an address or a path"),
    ("{routes: [{host: a.de, redirect: {status: 305}}]}", "301, 302"),
    ("{routes: [{host: a.de, redirect: {path: /a, add_prefix: /b}}]}", "both change the path"),
    (
        "{routes: [{host: a.de, cors: {origins: '*', credentials: true}}]}",
        "open the service to every site",
    ),
    ("{routes: [{host: a.de, cors: a.de}]}", "not an origin"),
    ("{routes: [{host: a.de, basic_auth: 'ann:hush'}]}", "written `$$`"),
    (
        "{routes: [{host: a.de, basic_auth: {file: nobody}}]}",
        "cannot read the users from /app/nobody",
    ),
    ("{routes: [{host: a.de, basic_auth: {secret: who}}]}", "no secret `who`"),
    ("{routes: [{host: a.de, basic_auth: {realm: x}}]}", "lets nobody in"),
    ("{routes: [{host: a.de, rate_limit: 100}]}", "`100/s`"),
    ("{routes: [{host: a.de, rate_limit: {rate: 1/s, by: ip}}]}", "`all`, `source`"),
    ("{routes: [{host: a.de, max_body: huge}]}", "a size"),
    ("{routes: [{host: a.de, rewrite: {regex: {from: '(', to: /}}}]}", "regular expression"),
    (
        "{routes: [{host: a.de, request_headers: {set: {Content-Length: 1}}}]}",
        "belongs to the connection",
    ),
    ("{routes: [{host: a.de, request_headers: {sett: {}}}]}", "did you mean `set`"),
    ("{routes: [{host: a.de, compress: {encodings: lz4}}]}", "zstd, br and gzip"),
    ("{traffic: {balanse: random}}", "did you mean `balance`"),
    ("{traffic: {balance: lest_request}}", "did you mean `least_request`"),
    ("{traffic: {balance: {ring_hash: {by: ip}}}}", "`path`, `source`"),
    ("{traffic: {sticky: {same_site: none}}}", "`secure: true`"),
    ("{traffic: {check: {interval: 1s}}}", "no `path`"),
    ("{traffic: {retry: {attempts: 11}}}", "from 0 to 10"),
    ("{traffic: {timeouts: {connect: 0s}}}", "at least `1ms`"),
    ("{traffic: {tls: {cert: x}}}", "belong together"),
    ("{traffic: {adaptive_concurrency: {min: 9, max: 2}}}", "less than `min`"),
    ("{protocol: http3}", "did you mean `http`"),
];

/// Mistakes with all that is said of them.
const HINTS: &[(&str, &str)] = &[
    (
        "{routes: [{host: a.de, redirect: {port: 81, status: 200}}]}",
        "1:108: error: this must be 301, 302, 303, 307 or 308, not `200` | without `status` it is 308, for good; 307 is for now",
    ),
    (
        "{routes: [{path: api}]}",
        "1:73: error: this must be a path that begins with `/`, not `api` | write `/api`",
    ),
    (
        "{routes: [{rule: 'Path(`api`)'}]}",
        "1:79: error: the path `api` must begin with `/` | write `/api`",
    ),
    (
        "{traffic: {check: /a b}}",
        "1:74: error: this must be a path as it stands in a request, not `/a b` | write other characters than visible ASCII in their encoded form: `%20` for a space",
    ),
    (
        "{routes: [{host: a.de, request_headers: {set: {x y: 1}}}]}",
        "1:103: error: `x y` is not the name of a header | use letters, digits, `-` and `_`, for example X-Tenant",
    ),
    (
        "{routes: [{rule: 'Header(`x y`, `1`)'}]}",
        "1:81: error: `x y` is not the name of a header | use letters, digits, `-` and `_`, for example X-Tenant",
    ),
    (
        "{routes: [{host: a.de, request_headers: {set: {x: \"1\\r\\n2\"}}}]}",
        "1:106: error: this must be the value of a header, not `1\\r\\n2` | write one line without control characters, and without spaces around it",
    ),
    (
        "{routes: [{host: a.de, request_headers: {set: {x: null}}}]}",
        "1:106: error: this must be the value of a header, not null | to take a header away, name it under `remove`",
    ),
    (
        "{traffic: {retry: {attempts: -1}}}",
        "1:85: error: this must be an integer from 0 to 10, not `-1` | it counts the tries beyond the first; `retry: false` is for none",
    ),
    (
        "{traffic: {limits: {max_requests: 0}}}",
        "1:90: error: this must be an integer from 1 to 4294967295, not `0` | leave it out for no limit",
    ),
    (
        "{routes: [{rule: 'HostRegexp(`(`)'}]}",
        "1:85: error: `(` is not a regular expression: unclosed group | a character that has a meaning stands for itself behind a backslash: `\\.`, `\\(`, `\\[`",
    ),
    (
        "{routes: [{path: {regex: '/['}}]}",
        "1:81: error: `/[` is not a regular expression: unclosed character class | a character that has a meaning stands for itself behind a backslash: `\\.`, `\\(`, `\\[`",
    ),
];

const TOP_MISTAKES: &[(&str, &str)] = &[
    ("{entrypoint: {}}", "did you mean `entrypoints`"),
    ("{routes: []}", "a setting of a service"),
    ("{entrypoints: {web: eighty}}", "an address with a port"),
    ("{entrypoints: {x: {tls: true}}}", "has no address"),
    ("{entrypoints: {x: {bind: 1, min_tls: 1.3}}}", "speaks no TLS"),
    (
        "{entrypoints: {x: {bind: 1, tls: true, client_auth: no.pem}}}",
        "there is no file /app/no.pem",
    ),
    ("{entrypoints: {x: {bind: 1, redirect_to: wbsecure}}}", "did you mean `websecure`"),
    ("{entrypoints: {x: {bind: 1, redirect_to: web}}}", "speaks no TLS"),
    ("{entrypoints: {x: 90, y: '127.0.0.1:90'}}", "both want port 90"),
    (
        "{entrypoints: {x: 80}}",
        "`web` and `x` both want port 80 | routes that name no entrypoint are served at `web`",
    ),
    ("{acme: {directory: 'http://a.de'}}", "https://"),
    ("{acme: {email: me}}", "an e-mail address"),
];

/// `line:column: error: message | help` of the only error.
#[test]
fn mistakes_in_x_keel_have_their_place() {
    let mut wrong = Vec::new();
    for (settings, needle) in MISTAKES {
        let found = errors(&with(settings));
        let good = found.len() == 1 && found[0].contains(needle) && found[0].starts_with("1:");
        wrong.extend((!good).then(|| format!("{settings}: {found:#?}")));
    }
    for (settings, expected) in HINTS {
        let found = errors(&with(settings));
        wrong.extend((found != [*expected]).then(|| format!("{settings}: {found:#?}")));
    }
    for (top, needle) in TOP_MISTAKES {
        let found = errors(&format!("x-keel: {top}\n{}", with("{routes: a.de}")));
        let good = found[0].contains(needle) && found[0].starts_with("1:");
        wrong.extend((!good).then(|| format!("{top}: {found:#?}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn routes_that_want_the_same_are_told_with_both_places() {
    let two = |a: &str, b: &str| {
        let service = |name: &str, routes: &str| {
            format!(
                "  {name}:\n    command: ./a\n    expose: [80]\n    x-keel:\n      routes: [{routes}]\n"
            )
        };
        let entrypoints = "x-keel: {entrypoints: {db: 5432}}\n";
        format!("{entrypoints}services:\n{}{}", service("a", a), service("b", b))
    };
    const HELP: &str = " | change the host or path of one of them, or give the one that shall win a higher `priority`";
    for (a, b, expected) in [
        (
            "a.de/api",
            "{host: a.de, path: /api}",
            Some(
                "12:16: error: route `b` of service `b` wants Host(`a.de`) && PathPrefix(`/api`) at the entrypoint `web`, which route `a` of service `a` has at compose.yaml:7:16",
            ),
        ),
        (
            "{host: a.de, name: x}, a.de",
            "c.de",
            Some(
                "7:39: error: route `a` of service `a` wants Host(`a.de`) at the entrypoint `web`, which route `x` of service `a` has at compose.yaml:7:16",
            ),
        ),
        (
            "{kind: tcp, entrypoints: db}",
            "{kind: tcp, entrypoints: db, allow: 10.0.0.0/8}",
            Some(
                "12:16: error: route `b` of service `b` wants all connections at the entrypoint `db`, which route `a` of service `a` has at compose.yaml:7:16",
            ),
        ),
        ("{host: a.de}", "{host: a.de, priority: 500}", None),
        ("a.de", "a.de/api", None),
        ("{host: a.de, tls: true}", "a.de", None),
        ("{kind: tcp, entrypoints: db}", "{host: a.de, entrypoints: web}", None),
    ] {
        let compose = two(a, b);
        match expected {
            Some(expected) => assert_eq!(errors(&compose), [format!("{expected}{HELP}")]),
            None => assert_eq!(stack(&compose).services.len(), 2, "{a}, {b}"),
        }
    }
    // Whichever comes first, it is the one that takes all that has to move.
    let (tcp, web) = ("{kind: tcp, entrypoints: db}", "{host: a.de, entrypoints: db}");
    for (a, b, at, name, other, there) in
        [(tcp, web, "7:16", 'a', 'b', "12:16"), (web, tcp, "12:16", 'b', 'a', "7:16")]
    {
        let expected = format!(
            "{at}: error: route `{name}` of service `{name}` takes all connections at the entrypoint `db`, \
             where route `{other}` of service `{other}` is served too, described at compose.yaml:{there} \
             | give it an entrypoint of its own"
        );
        assert_eq!(errors(&two(a, b)), [expected]);
    }
}

#[test]
fn labels_as_traefik_users_write_them() {
    let compose = "services:
  shop:
    command: ./shop
    expose: [8000]
    labels:
      - traefik.enable=true
      - traefik.http.routers.shop.rule=Host(`shop.example.com`) && PathPrefix(`/api`)
      - traefik.http.routers.shop.entrypoints=websecure
      - traefik.http.routers.shop.tls.certresolver=le
      - traefik.http.routers.shop.middlewares=strip, auth@docker,sec
      - traefik.http.routers.shop.priority=42
      - traefik.http.services.shop.loadbalancer.server.port=8000
      - traefik.http.services.shop.loadbalancer.sticky.cookie=true
      - traefik.http.services.shop.loadbalancer.sticky.cookie.secure=true
      - traefik.http.services.shop.loadbalancer.healthcheck.path=/health
      - traefik.http.services.shop.loadbalancer.healthcheck.interval=10
      - Traefik.HTTP.middlewares.strip.StripPrefix.prefixes=/api
      - team=x
    deploy:
      labels:
        traefik.http.middlewares.sec.headers.stsSeconds: 60
        traefik.http.middlewares.sec.headers.framedeny: 'true'
        traefik.http.middlewares.sec.headers.customrequestheaders.X-Script-Name: test
        traefik.http.middlewares.sec.headers.customresponseheaders.Server: ''
  other:
    command: ./other
    labels:
      traefik.http.middlewares.auth.basicauth.users: 'ann:$$apr1$$x$$yyyyyyyyyyyyyyyyyyyyyy'
";
    let stack = stack(compose);
    let shop = &stack.services["shop"];
    let route = &shop.routes[0];
    assert_eq!(route.name, "shop");
    assert_eq!(route.rule.to_string(), "Host(`shop.example.com`) && PathPrefix(`/api`)");
    assert_eq!((route.priority, route.port), (Some(42), Some(8000)));
    assert_eq!(
        (&route.tls, &route.entrypoints[..]),
        (&Some(RouteTls::Acme), &["websecure".to_owned()][..])
    );
    let filters = &route.filters;
    assert_eq!(
        filters.rewrite.as_ref().unwrap().path,
        [PathRewrite::StripPrefix(vec!["/api".into()])]
    );
    assert_eq!(filters.basic_auth.as_ref().unwrap().users, ["ann:$apr1$x$yyyyyyyyyyyyyyyyyyyyyy"]);
    assert_eq!(filters.response_headers.set["Strict-Transport-Security"], "max-age=60");
    assert_eq!(filters.response_headers.set["X-Frame-Options"], "DENY");
    assert_eq!(filters.response_headers.remove, ["Server"]);
    assert_eq!(filters.request_headers.set["X-Script-Name"], "test");
    assert!(shop.traffic.sticky.as_ref().unwrap().secure);
    assert_eq!(shop.traffic.check.as_ref().unwrap().interval, Duration::from_secs(10));
    assert_eq!(entrypoints(&stack), ["web 0.0.0.0:80 -> websecure", "websecure 0.0.0.0:443 tls"]);
    assert!(stack.acme.unwrap().directory.contains("acme-v02"));
    assert!(stack.services["other"].routes.is_empty());

    let labels: Vec<&str> = shop.spec.labels.keys().map(String::as_str).collect();
    assert_eq!(labels, ["team"], "a label of a route is none of the instance");
    assert!(shop.labels.contains_key("traefik.http.routers.shop.rule"), "labels stay labels");
    let revision = |text: &str| self::stack(text).services["shop"].spec.revision();
    assert_eq!(
        revision(compose),
        revision(&compose.replace("/api", "/v2")),
        "no instance is replaced"
    );
}

#[test]
fn middlewares() {
    let filters = |labels: &[&str]| {
        let mut all = vec!["traefik.http.routers.r.rule=PathPrefix(`/`)"];
        all.extend(labels);
        stack(&labelled(&all)).services["a"].routes[0].filters.clone()
    };
    let m = |option: &str| format!("traefik.http.middlewares.m.{option}");
    let one = |options: &[&str]| {
        let labels: Vec<String> = options.iter().map(|option| m(option)).collect();
        let mut all: Vec<&str> = labels.iter().map(String::as_str).collect();
        all.push("traefik.http.routers.r.middlewares=m");
        filters(&all)
    };
    let path = |options: &[&str]| one(options).rewrite.unwrap().path.remove(0);
    assert_eq!(path(&["addprefix.prefix=x"]), PathRewrite::AddPrefix("/x".into()));
    assert_eq!(path(&["replacepath.path=/y"]), PathRewrite::Replace("/y".into()));
    assert_eq!(
        path(&["replacepathregex.regex=^/a/(.*)", "replacepathregex.replacement=/b/$$1"]),
        PathRewrite::Regex { from: "^/a/(.*)".into(), to: "/b/$1".into() }
    );
    assert_eq!(
        path(&["stripprefixregex.regex=/a/[0-9]+,/b"]),
        PathRewrite::Regex { from: "^(?:/a/[0-9]+|/b)/?".into(), to: "/".into() }
    );
    let redirect =
        one(&["redirectscheme.scheme=https", "redirectscheme.permanent=true"]).redirect.unwrap();
    assert_eq!((redirect.scheme.as_deref(), redirect.status), (Some("https"), 308));
    let moved = one(&[
        "redirectregex.regex=^https?://a.de/(.*)",
        "redirectregex.replacement=https://b.de/$${1}",
    ]);
    assert_eq!(moved.redirect.unwrap().host.as_deref(), Some("b.de"));
    let limit = one(&[
        "ratelimit.average=6",
        "ratelimit.period=1m",
        "ratelimit.sourcecriterion.requestheadername=X-Key",
    ]);
    assert_eq!(limit.rate_limits[0].per, Duration::from_secs(60));
    assert_eq!(
        (limit.rate_limits[0].burst, &limit.rate_limits[0].key),
        (1, &ClientKey::Header("X-Key".into()))
    );
    assert_eq!(one(&["ipallowlist.sourcerange=10.0.0.0/8, 127.0.0.1"]).allow.len(), 2);
    assert_eq!(one(&["ipwhitelist.sourcerange=10.0.0.0/8"]).allow.len(), 1);
    assert!(one(&["compress=true"]).compress.is_some());
    assert!(one(&["compress=false"]).compress.is_none());
    assert_eq!(one(&["buffering.maxrequestbodybytes=42"]).max_body, Some(42));
    let cors = one(&[
        "headers.accesscontrolalloworiginlist=https://a.de",
        "headers.accesscontrolmaxage=5",
    ])
    .cors
    .unwrap();
    assert_eq!(cors.max_age, Some(Duration::from_secs(5)));
    let chain = filters(&[
        "traefik.http.routers.r.middlewares=all",
        "traefik.http.middlewares.all.chain.middlewares=m,n",
        "traefik.http.middlewares.m.stripprefix.prefixes=/a",
        "traefik.http.middlewares.n.addprefix.prefix=/b",
    ]);
    assert_eq!(chain.rewrite.unwrap().path.len(), 2);
    let retry = stack(&labelled(&[
        "traefik.http.routers.r.rule=PathPrefix(`/`)",
        "traefik.http.routers.r.middlewares=m",
        "traefik.http.middlewares.m.retry.attempts=4",
    ]));
    assert_eq!(retry.services["a"].traffic.retry.attempts, 3);
}

#[test]
fn routers_and_services() {
    let of = |labels: &[&str]| stack(&labelled(labels)).services["a"].clone();
    let tcp = of(&[
        "traefik.tcp.routers.r.rule=HostSNI(`a.de`)",
        "traefik.tcp.routers.r.tls.passthrough=true",
        "traefik.tcp.services.s.loadbalancer.server.port=81",
        "traefik.tcp.services.s.loadbalancer.proxyprotocol.version=1",
    ]);
    assert_eq!((tcp.routes[0].kind, tcp.routes[0].port), (RouteKind::Passthrough, Some(81)));
    assert_eq!(tcp.traffic.send_proxy, Some(ProxyVersion::V1));
    let grpc = of(&[
        "keel.http.routers.r.rule=Host(`a.de`)",
        "keel.http.services.s.loadbalancer.server.port=81",
        "keel.http.services.s.loadbalancer.server.scheme=h2c",
    ]);
    assert_eq!(grpc.ports[1].protocol, keel_model::Protocol::Http2);
    let wins =
        of(&["traefik.http.routers.r.rule=Host(`a.de`)", "keel.http.routers.r.rule=Host(`b.de`)"]);
    assert_eq!(wins.routes[0].rule.to_string(), "Host(`b.de`)");
    assert!(
        of(&["traefik.enable=false", "traefik.http.routers.r.rule=Host(`a.de`)"]).routes.is_empty()
    );
    assert!(
        of(&["traefik.http.services.s.loadbalancer.server.port=80"]).routes.is_empty(),
        "no rule, no route"
    );

    let elsewhere = stack(
        "services:
  front: {command: ./f, labels: ['traefik.http.routers.r.rule=Host(`a.de`)', traefik.http.routers.r.service=back-svc]}
  back: {command: ./b, labels: [traefik.http.services.back-svc.loadbalancer.server.port=9000]}
",
    );
    assert!(elsewhere.services["front"].routes.is_empty());
    assert_eq!(elsewhere.services["back"].routes[0].port, Some(9000));
    assert_eq!(
        elsewhere.services["back"].ports[0].target, 9000,
        "the port of a label is a port of the service"
    );
    let both = stack(
        "services:
  a:
    command: ./a
    expose: [1]
    labels: ['traefik.http.routers.a.rule=Host(`a.de`)']
    x-keel: {routes: [b.de, c.de]}
",
    );
    let names: Vec<&str> = both.services["a"].routes.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a#2", "a#3", "a"], "a router has its name, others get free ones");
    let by_name = stack(
        "name: p
services:
  front: {command: ./f, labels: ['traefik.http.routers.r.rule=Host(`a.de`)', traefik.http.routers.r.service=back-p@docker]}
  back: {command: ./b, expose: [1]}
",
    );
    assert_eq!(by_name.services["back"].routes.len(), 1);
}

const RULE: &str = "traefik.http.routers.r.rule=Host(`a.de`)";

const LABEL_MISTAKES: &[(&[&str], &str)] = &[
    (
        &["traefik.http.routers.r.rul=Host(`a`)"],
        "6:9: error: there is no label `traefik.http.routers.r.rul` | did you mean `traefik.http.routers.r.rule`?",
    ),
    (&["traefik.http.routers.r.rule=Host(`a`"], "6:46: error: `Host(` is never closed"),
    (
        &["traefik.http.routers.r.rule=Host(`a`) && Foo(`b`)"],
        "6:51: error: there is no matcher `Foo`",
    ),
    (&["traefik.http.routers.r.tls=true"], "6:9: error: the router `r` has no rule"),
    (
        &[
            RULE,
            "traefik.http.routers.r.middlewares=a,mm",
            "traefik.http.middlewares.a.compress=true",
        ],
        "7:47: error: no label defines the middleware `mm`",
    ),
    (&[RULE, "traefik.http.routers.r.service=b"], "7:41: error: there is no service `b`"),
    (&[RULE, "traefik.http.routers.r.service=api@internal"], "dashboard"),
    (
        &[RULE, "traefik.http.routers.r.entrypoints=web,websecur"],
        "7:49: error: there is no entrypoint `websecur` | did you mean `websecure`?",
    ),
    (&[RULE, "traefik.http.routers.r.priority=high"], "7:42: error: this must be an integer"),
    (&[RULE, "traefik.http.services.s.loadbalancer.server.port=99999"], "from 1 to 65535"),
    (&[RULE, "traefik.http.services.s.loadbalancer.server.port=82"], "has no port 82"),
    (
        &[
            RULE,
            "traefik.http.services.s.loadbalancer.server.port=80",
            "traefik.http.services.t.loadbalancer.server.port=81",
        ],
        "any of several services",
    ),
    (
        &[RULE, "traefik.http.middlewares.m.forwardauth.address=http://x"],
        "does not work here | the service would be open",
    ),
    (&["traefik.http.middlewares.m.basicauth.users=ann:hush"], "written `$$`"),
    (
        &[
            "traefik.http.middlewares.m.redirectregex.regex=^https?://www\\.(.*)",
            "traefik.http.middlewares.m.redirectregex.replacement=https://$${1}",
        ],
        "can't be expressed",
    ),
    (
        &[
            "traefik.http.middlewares.m.compress=true",
            "traefik.http.middlewares.m.addprefix.prefix=/x",
        ],
        "both `compress` and `addprefix`",
    ),
    (
        &[
            RULE,
            "traefik.http.routers.r.middlewares=m",
            "traefik.http.middlewares.m.chain.middlewares=m",
        ],
        "chains are more than 8 deep",
    ),
    (&["traefik.udp.routers.r.entrypoints=x"], "speaks TCP"),
    (&["traefik.enable=perhaps"], "`true` or `false`"),
];

#[test]
fn mistakes_in_labels_have_their_place() {
    for (labels, needle) in LABEL_MISTAKES {
        let found = errors(&labelled(labels));
        assert!(found.iter().any(|error| error.contains(needle)), "{labels:?}: {found:#?}");
    }
    let of_another = |middleware: &str| {
        lower(&format!(
            "services:
  a:
    command: ./a
    expose: [1]
    labels: ['traefik.http.routers.r.rule=Host(`a.de`)', traefik.http.routers.r.middlewares=m]
  b:
    command: ./b
    profiles: [never]
    labels: ['traefik.http.middlewares.m.{middleware}', 'traefik.http.middlewares.n.retry.attempts=x']
"
        ))
    };
    assert!(of_another("addprefix.prefix=/x").is_ok());
    let broken = told(&of_another("basicauth.users=ann:hush").unwrap_err());
    assert!(
        broken.len() == 1 && broken[0].contains("written `$$`"),
        "no route without it: {broken:?}"
    );
    let twice = errors(
        "services:
  a: {command: ./a, expose: [1], labels: ['traefik.http.routers.r.rule=Host(`a.de`)']}
  b: {command: ./b, expose: [1], labels: ['traefik.http.routers.r.rule=Host(`b.de`)']}
",
    );
    assert!(
        twice[0].contains("3:43: error: the router `r` is defined by `a` already"),
        "{twice:?}"
    );
    let split = errors(
        "services: {a: {command: ./a, labels: [traefik.enable=true], deploy: {labels: [traefik.enable=false]}}}",
    );
    assert!(split[0].contains("has another value at"), "{split:?}");
}

#[test]
fn labels_without_effect_are_told() {
    let rule = "traefik.http.routers.r.rule=Host(`a.de`)";
    for (label, needle) in [
        ("traefik.docker.network=web", "has no effect: a service has one address"),
        ("traefik.http.middlewares.m.circuitbreaker.expression=x", "always left out"),
        ("traefik.http.routers.r.tls.domains[0].main=a.de", "for the hosts of the rule"),
        ("traefik.http.services.s.loadbalancer.passhostheader=false", "rewrite.host"),
        ("traefik.tags=x", "not a label of routing"),
        ("keel.team=x", "not a label of routing"),
    ] {
        let found = warnings(&labelled(&[rule, label]));
        assert!(
            found.iter().any(|text| text.starts_with("7:9: warning") && text.contains(needle)),
            "{label}: {found:#?}"
        );
    }
    let inert = [
        rule,
        "traefik.http.routers.r.middlewares=m",
        "traefik.http.middlewares.m.circuitbreaker.expression=x",
    ];
    assert_eq!(warnings(&labelled(&inert)).len(), 1, "it is defined, and does nothing");
    let both = [
        rule,
        "traefik.http.routers.r.entrypoints=web,websecure",
        "traefik.http.routers.r.tls=true",
    ];
    let found = warnings(&labelled(&both));
    assert!(found[0].contains("not served at `web`"), "{found:?}");
    assert!(warnings(&labelled(&[rule, "team=x", "x=traefik.y"])).is_empty());
}

#[test]
fn an_empty_list_is_no_list_of_everything() {
    for key in ["allow", "basic_auth", "host", "client", "method", "rate_limit", "entrypoints"] {
        let found = errors(&with(&format!("{{routes: [{{path: /, {key}: []}}]}}")));
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        assert!(found[0].contains("this list is empty | write what belongs into it"), "{found:?}");
        assert!(found[0].starts_with("1:"), "{found:?}");
    }
    assert!(errors(&with("{routes: [{path: []}]}"))[0].contains("this list is empty"));
}

#[test]
fn files_for_tls_with_services_are_looked_at() {
    let tls = |settings: &str| with(&format!("{{traffic: {{tls: {settings}}}}}"));
    stack(&tls("{ca: ca.pem}"));
    for (settings, expected) in [
        ("{ca: missing.pem}", "there is no file /app/missing.pem"),
        ("{ca: junk.pem}", "/app/junk.pem holds no certificate in PEM form"),
        ("{cert: ca.pem, key: ca.pem}", "/app/ca.pem holds no private key in PEM form"),
        ("{cert: junk.pem, key: none.pem}", "/app/junk.pem holds no certificate"),
        ("{cert: ca.pem, key: none.pem}", "there is no file /app/none.pem"),
    ] {
        let found = errors(&tls(settings));
        assert!(found[0].contains(expected) && found[0].starts_with("1:"), "{settings}: {found:?}");
    }
}

#[test]
fn one_mistake_is_one_error_with_what_to_write() {
    for (settings, expected) in [
        ("{outlier: true}", "it is on unless it is `false`"),
        ("{check: true}", "write for example `check: /healthz`"),
        ("{balance: maglev}", "write `{maglev: source}`"),
        ("{balance: ring_hash}", "`header:NAME`, `cookie:NAME`"),
    ] {
        let found = errors(&with(&format!("{{traffic: {settings}}}")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(expected), "{settings}: {found:?}");
    }
}

#[test]
fn a_star_in_a_path_is_told() {
    let found = warnings(&with("{routes: [{path: '/api/*'}]}"));
    assert!(found[0].contains("the `*` in `/api/*` stands for itself"), "{found:?}");
    let rule = "traefik.http.routers.r.rule=PathPrefix(`/api/*`)";
    assert!(warnings(&labelled(&[rule]))[0].contains("stands for itself"));
    assert!(warnings(&with("{routes: [{path: /api}, {host: '*.a.de'}]}")).is_empty());
}

#[test]
fn a_middleware_that_no_router_names_is_told() {
    let rule = "traefik.http.routers.r.rule=Host(`a.de`)";
    let prefix = "traefik.http.middlewares.m.addprefix.prefix=/x";
    let found = warnings(&labelled(&[rule, prefix]));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("the middleware `m` has no effect: no router names it"), "{found:?}");
    let chain = "traefik.http.middlewares.c.chain.middlewares=m";
    let named = "traefik.http.routers.r.middlewares=c";
    assert!(warnings(&labelled(&[rule, prefix, chain, named])).is_empty());
}

#[test]
fn entrypoints_of_the_file_redirect_to_tls_like_the_default_ones() {
    let at = |entrypoints: &str, route: &str| {
        let file = format!(
            "x-keel: {{entrypoints: {entrypoints}}}\n\
             services: {{a: {{command: ./a, expose: [80], x-keel: {{routes: [{route}]}}}}}}"
        );
        self::entrypoints(&stack(&file))
    };
    let both = "{web: ':18080', websecure: {bind: ':18443', tls: true}}";
    assert_eq!(at(both, "{host: a.de, tls: true}")[0], "web 0.0.0.0:18080 -> websecure");
    assert_eq!(at(both, "{host: a.de, tls: true, entrypoints: websecure}")[0], "web 0.0.0.0:18080");
    assert_eq!(at(both, "{host: a.de}")[0], "web 0.0.0.0:18080");
}
