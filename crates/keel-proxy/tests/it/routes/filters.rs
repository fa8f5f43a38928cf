//! What routes change in requests and answers.

use std::time::Duration;

use keel_model::{Cors, Filters, HeaderEdits, PathRewrite, Rewrite, Rule};
use keel_route::snapshot::{Challenges, RouteEntry};

use super::{Site, all, answer, clusters, mirror, named, nothing, route};
use crate::http2::background::wait;
use crate::http2::either::{Endpoint, Version};
use crate::proxy::CART;

fn pairs(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn path_host_and_fields_of_requests_are_rewritten() {
    let filters = Filters {
        rewrite: Some(Rewrite {
            host: Some("inner.test:81".into()),
            path: vec![
                PathRewrite::StripPrefix(vec!["/api".into()]),
                PathRewrite::AddPrefix("/v2".into()),
            ],
        }),
        request_headers: HeaderEdits {
            remove: vec!["X-Secret".into()],
            set: pairs(&[
                ("X-Set", "ours"),
                ("X-Forwarded-Proto", "gopher"),
                ("X-Forwarded-Client-Cert", "its own"),
            ]),
            add: pairs(&[("X-Add", "more")]),
        },
        ..Filters::default()
    };
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = Site::filtered(&endpoint, filters.clone());
        let sent = nothing().with("x-secret", "1").with("x-set", "theirs").with("x-add", "one");
        let sent = sent.with("x-secret", "2").with("x-set", "theirs too");
        let sent = sent.with("x_set", "theirs").with("x_secret", "3");
        let text = site.ask(client, "GET", "outer.test/api/a%20b?c=d&e", &sent).await.text();
        let has = |line: &str| text.lines().any(|found| found.eq_ignore_ascii_case(line));
        assert!(text.starts_with("GET /v2/a%20b?c=d&e\nhost: inner.test:81\n"), "{text}");
        for line in ["x-set: ours", "x-add: one", "x-add: more", "x-forwarded-prefix: /api"] {
            assert!(has(line), "{line}: {text}");
        }
        assert!(has("x-forwarded-host: outer.test") && has("x-forwarded-proto: gopher"), "{text}");
        assert!(has("x-forwarded-client-cert: its own"), "{text}");
        for gone in ["x-secret", "x_secret", "theirs", "x-forwarded-proto: http"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }));
}

#[test]
fn a_route_may_distrust_what_was_said_of_the_client() {
    let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"];
    let remove = names.iter().chain(&["x-request-id"]).map(|n| (*n).to_owned()).collect();
    let request_headers = HeaderEdits { remove, ..HeaderEdits::default() };
    let distrusting = Filters { request_headers, ..Filters::default() };
    let set = pairs(&[("X-Request-Id", "ours"), ("X-Forwarded-For", "1.2.3.4")]);
    let request_headers = HeaderEdits { set, ..HeaderEdits::default() };
    let setting = Filters { request_headers, ..Filters::default() };
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let sent = names.into_iter().fold(nothing(), |sent, name| sent.with(name, "evil"));
        let sent = sent.with("x-request-id", "evil");
        for (filters, expected) in [
            (
                &distrusting,
                &["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: a.b"]
                    as &[_],
            ),
            (&setting, &["x-forwarded-for: 1.2.3.4, 127.0.0.1", "x-request-id: ours"]),
        ] {
            let site = Site::filtered(&endpoint, filters.clone());
            let text = site.ask(client, "GET", "a.b/", &sent).await.text().to_lowercase();
            for line in expected {
                let name = &line[..line.find(':').unwrap() + 1];
                let found: Vec<_> = text.lines().filter(|l| l.starts_with(name)).collect();
                assert_eq!(found, [*line], "{text}");
            }
            assert!(std::ptr::eq(filters, &setting) || !text.contains("evil"), "{text}");
        }
    }));
}

#[test]
fn the_body_of_a_rewritten_request_stays_as_it_is() {
    let rewrite = Rewrite { host: None, path: vec![PathRewrite::Replace("/fixed".into())] };
    let filters = Filters { rewrite: Some(rewrite), ..Filters::default() };
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = Site::filtered(&endpoint, filters.clone());
        let body = "x".repeat(100_000);
        let sent = super::with_body(&body);
        let text = site.ask(client, "POST", "a.test/b?c", &sent).await.text();
        assert!(text.starts_with("POST /fixed?c\n"), "{}", &text[..200]);
        assert!(text.ends_with(&format!("\n\n{body}")));
    }));
}

#[test]
fn fields_of_answers_are_changed_and_those_of_framing_are_not() {
    let filters = Filters {
        response_headers: HeaderEdits {
            remove: vec!["Server".into()],
            set: pairs(&[("Cache-Control", "no-store")]),
            add: pairs(&[("Set-Cookie", "ours=1"), ("Vary", "X-Ours")]),
        },
        ..Filters::default()
    };
    wait(all(async |client, endpoint| {
        let endpoint = Endpoint::new(endpoint, |got| {
            let mut answer = answer(if got.target == "/500" { 500 } else { 200 }, "body");
            let message = std::mem::take(&mut answer.message);
            answer.message = message
                .with("server", "secret/1.0")
                .with("cache-control", "public")
                .with("set-cookie", "theirs=1")
                .with("set-cookie", "theirs=2");
            answer
        });
        let site = Site::filtered(&endpoint, filters.clone());
        for (path, status) in [("/", 200), ("/500", 500)] {
            let answer = site.ask(client, "GET", &format!("a.test{path}"), &nothing()).await;
            assert_eq!((answer.status, &*answer.text()), (status, "body"));
            let all = |name| answer.message.fields.get_all(name).iter().collect::<Vec<_>>();
            assert_eq!(all("cache-control"), ["no-store"]);
            assert_eq!(all("set-cookie"), ["theirs=1", "theirs=2", "ours=1"]);
            assert_eq!(all("server").len(), 0);
            assert_eq!(all("content-length"), ["4"]);
            assert_eq!(all("vary"), ["X-Ours"]);
        }
    }));
}

#[test]
fn scripts_of_other_sites_are_told_what_they_may() {
    let filters = Filters {
        cors: Some(Cors {
            origins: vec!["https://*.good.test".into()],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["*".into()],
            expose: vec!["X-Total".into()],
            credentials: true,
            max_age: Some(Duration::from_secs(600)),
        }),
        ..Filters::default()
    };
    wait(all(async |client, endpoint| {
        let endpoint = Endpoint::new(endpoint, |got| {
            let mut answer = answer(200, &got.method);
            let message = std::mem::take(&mut answer.message);
            let message = message.with("access-control-allow-origin", "*").with("vary", "Accept");
            answer.message = message;
            answer
        });
        let site = Site::filtered(&endpoint, filters.clone());
        let preflight = |origin: &str| {
            let sent = nothing().with("origin", origin);
            let sent = sent.with("access-control-request-method", "PUT");
            sent.with("access-control-request-headers", "x-a, x-b")
        };
        let origin = "https://a.good.test";
        let told = site.ask(client, "OPTIONS", "a.test/x", &preflight(origin)).await;
        assert_eq!((told.status, told.text()), (204, String::new()));
        assert_eq!(told.field("content-length"), None, "RFC 9110, 8.6");
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-allow-headers", "x-a, x-b"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "600"),
        ] {
            assert_eq!(told.field(name), Some(value), "{name}");
        }
        let told = site.ask(client, "OPTIONS", "a.test/x", &preflight("https://evil.test")).await;
        assert_eq!((told.status, told.field("access-control-allow-origin")), (204, None));
        // No preflight: the service's own business.
        assert_eq!(site.ask(client, "OPTIONS", "a.test/x", &nothing()).await.text(), "OPTIONS");

        for (sent, expected) in [(origin, Some(origin)), ("https://evil.test", None)] {
            let answer = site.ask(client, "GET", "a.test/x", &nothing().with("origin", sent)).await;
            assert_eq!((answer.status, &*answer.text()), (200, "GET"));
            let all = |name| answer.message.fields.get_all(name).iter().collect::<Vec<_>>();
            assert_eq!(all("access-control-allow-origin"), Vec::from_iter(expected));
            assert_eq!(all("vary"), ["Accept", "Origin"]);
            let exposed = expected.map(|_| "X-Total");
            assert_eq!(answer.field("access-control-expose-headers"), exposed);
        }
    }));
}

#[test]
fn proofs_for_certificate_authorities_are_given_before_any_route() {
    let endpoint = named(Version::One, "service");
    let redirect = keel_model::Redirect {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: None,
        status: 308,
    };
    let filters = Filters { redirect: Some(redirect), ..Filters::default() };
    let all = RouteEntry { filters, ..route("all", Rule::default(), CART) };
    let mut site = Site::new(vec![all], clusters([(CART, &endpoint)]));
    let http = [("token_1-a".to_owned(), "token_1-a.thumb".to_owned())].into();
    site.state.challenges = Challenges { http, ..Challenges::default() };
    site.apply();
    wait(async {
        for version in [Version::One, Version::Two] {
            let path = "a.test/.well-known/acme-challenge/";
            let known = site.ask(version, "GET", &format!("{path}token_1-a"), &nothing()).await;
            assert_eq!((known.status, &*known.text()), (200, "token_1-a.thumb"));
            assert_eq!(known.field("content-type"), Some("application/octet-stream"));
            let other = site.ask(version, "GET", &format!("{path}token_2"), &nothing()).await;
            assert_eq!(other.status, 308);
        }
    });
    site.state.challenges = Challenges::default();
    site.apply();
    wait(async {
        let path = "a.test/.well-known/acme-challenge/token_1-a";
        assert_eq!(site.ask(Version::One, "GET", path, &nothing()).await.status, 308);
    });
}
