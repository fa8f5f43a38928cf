//! The parser and the published schema agree; mistakes have places; the page about routes is complete.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;
use crate::yaml::{Limits, parse};

const SCHEMA: &str = include_str!("../../../../docs/x-keel.schema.json");

fn node(text: &str) -> Node {
    parse(&Arc::from("f"), text.as_bytes(), Limits::default()).unwrap().remove(0)
}

fn schema() -> Json {
    serde_json::from_str(SCHEMA).unwrap()
}

fn properties(pointer: &str) -> BTreeSet<String> {
    let schema = schema();
    schema.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_published_schema_is_valid_and_has_the_same_keys() {
    jsonschema::meta::validate(&schema()).unwrap();
    let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(properties("/properties"), set(&KEYS));
    assert_eq!(properties("/$defs/readiness/properties"), set(&READINESS_KEYS));
    assert_eq!(properties("/$defs/rollout/properties"), set(&ROLLOUT_KEYS));
    assert_eq!(properties("/$defs/restart_backoff/properties"), set(&BACKOFF_KEYS));
    let route = "/$defs/route/oneOf/1/properties";
    let traffic = "/$defs/traffic/properties";
    for (pointer, keys) in [
        (route.to_owned(), &routes::route_keys()[..]),
        ("/$defs/path_rule/oneOf/1/properties".to_owned(), &matches::PATH_KEYS),
        (format!("{route}/tls/oneOf/2/properties"), &routes::TLS_KEYS),
        (format!("{route}/split/additionalProperties/oneOf/1/properties"), &routes::SPLIT_KEYS),
        ("/$defs/redirect/oneOf/1/properties".to_owned(), &filters::REDIRECT_KEYS),
        ("/$defs/cors/oneOf/2/properties".to_owned(), &access::CORS_KEYS),
        ("/$defs/basic_auth/oneOf/1/properties".to_owned(), &access::AUTH_KEYS),
        ("/$defs/rate_limit/oneOf/1/properties".to_owned(), &access::RATE_KEYS),
        (format!("{route}/rewrite/properties"), &filters::REWRITE_KEYS),
        ("/$defs/regex_pair/properties".to_owned(), &filters::FROM_TO_KEYS),
        ("/$defs/header_edits/properties".to_owned(), &filters::HEADER_KEYS),
        ("/$defs/compress/oneOf/1/properties".to_owned(), &filters::COMPRESS_KEYS),
        (traffic.to_owned(), &traffic::TRAFFIC_KEYS),
        (format!("{traffic}/sticky/oneOf/2/properties"), &traffic::STICKY_KEYS),
        (format!("{traffic}/outlier/oneOf/1/properties"), &traffic::OUTLIER_KEYS),
        (format!("{traffic}/check/oneOf/2/properties"), &traffic::CHECK_KEYS),
        (format!("{traffic}/retry/oneOf/2/properties"), &traffic::RETRY_KEYS),
        (format!("{traffic}/timeouts/properties"), &traffic::TIMEOUT_KEYS),
        (format!("{traffic}/limits/properties"), &traffic::LIMIT_KEYS),
        (format!("{traffic}/adaptive_concurrency/oneOf/1/properties"), &traffic::ADAPTIVE_KEYS),
        (format!("{traffic}/tls/oneOf/1/properties"), &traffic::UPSTREAM_TLS_KEYS),
        ("/$defs/top/properties".to_owned(), &top::TOP_KEYS),
        ("/$defs/entrypoint/oneOf/1/properties".to_owned(), &top::ENTRYPOINT_KEYS),
        ("/$defs/top/properties/acme/oneOf/2/properties".to_owned(), &top::ACME_KEYS),
    ] {
        assert_eq!(properties(&pointer), set(keys), "{pointer}");
    }
}

#[test]
fn parser_and_schema_agree() {
    let cases = [
        (json!({}), true),
        (json!({"runtime": "process", "network": "isolated"}), true),
        (json!({"runtime": "vm"}), false),
        (json!({"readiness": "none"}), true),
        (
            json!({"readiness": {"http": "/ready", "port": 80, "interval": "1s", "failures": 2}}),
            true,
        ),
        (json!({"readiness": {"http": "ready"}}), false),
        (json!({"readiness": {"http": "/a", "tcp": true}}), false),
        (json!({"readiness": {"tcp": false}}), false),
        (json!({"readiness": {"exec": []}}), false),
        (json!({"readiness": {"exec": ["true"], "timeout": "1.5s"}}), true),
        (json!({"readiness": {"port": 0}}), false),
        (json!({"readiness": {"interval": 5}}), false),
        (json!({"protocol": "http"}), true),
        (json!({"protocol": {"8080": "tcp"}}), true),
        (json!({"protocol": {"web": "tcp"}}), false),
        (json!({"protocol": "smtp"}), false),
        (json!({"rollout": {"min_healthy_time": "30s", "drain_timeout": "1m"}}), true),
        (json!({"rollout": {"drain": "1m"}}), false),
        (json!({"restart_backoff": {"initial": "1s", "max": "1m", "reset_after": "10m"}}), true),
        (json!({"vip": true}), false),
        (json!([]), false),
    ];
    agree(&cases);
}

fn agree(cases: &[(Json, bool)]) {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (value, valid) in cases {
        assert_eq!(validator.is_valid(value), *valid, "schema: {value}");
        assert_eq!(read(&node(&value.to_string())).is_ok(), *valid, "parser: {value}");
    }
}

fn route(value: Json) -> Json {
    json!({"routes": [value]})
}

fn traffic(value: Json) -> Json {
    json!({"traffic": value})
}

#[test]
fn parser_and_schema_agree_on_routes() {
    agree(&[
        (json!({"routes": null}), true),
        (json!({"routes": "a.de"}), true),
        (json!({"routes": ["a.de/api", "*.b.de", "/x", "https://c.de"]}), true),
        (json!({"routes": ["ftp://a.de"]}), false),
        (json!({"routes": 1}), false),
        (json!({"protocol": "http2"}), true),
        (route(json!({"host": ["a.de"], "path": {"exact": "/x"}, "method": "GET"})), true),
        (route(json!({"path": [{"regex": "/v[0-9]"}, "/a"]})), true),
        (route(json!({"path": {"exact": "/x", "regex": "/"}})), false),
        (route(json!({"path": "a"})), false),
        (
            route(
                json!({"path": "/", "headers": {"X-A": "1", "X-B": null, "X-C": {"regex": "a"}, "X-D": ["1", 2]}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "headers": {"X-A": {"rgex": "a"}}})), false),
        (route(json!({"path": "/", "query": {"a": 1, "b": null}, "client": ["10.0.0.0/8"]})), true),
        (
            route(
                json!({"rule": "Host(`a.de`)", "priority": -1, "port": 80, "entrypoints": "web"}),
            ),
            true,
        ),
        (route(json!({"path": "/", "port": 0})), false),
        (route(json!({"path": "/", "tls": true})), true),
        (route(json!({"path": "/", "tls": "acme"})), true),
        (route(json!({"path": "/", "tls": {"cert": "c", "key": "k"}})), true),
        (route(json!({"path": "/", "tls": {"cert": "c"}})), false),
        (route(json!({"path": "/", "tls": "on"})), false),
        (route(json!({"kind": "passthrough", "sni": ["a.de", "*"]})), true),
        (route(json!({"kind": "udp"})), false),
        (
            route(json!({"path": "/", "split": {"b": "10%", "c": {"share": "2.5%", "port": 81}}})),
            true,
        ),
        (route(json!({"path": "/", "split": {"b": 10}})), false),
        (route(json!({"path": "/", "split": {"b": "0.25%"}})), false),
    ]);
}

#[test]
fn parser_and_schema_agree_on_filters() {
    let hash = format!("ann:$2y$05${}", "a".repeat(53));
    agree(&[
        (route(json!({"path": "/", "timeout": "30s", "max_body": "10m"})), true),
        (route(json!({"path": "/", "max_body": "ten"})), false),
        (route(json!({"path": "/", "redirect": "https"})), true),
        (route(json!({"path": "/", "redirect": "https://www.a.de/x"})), true),
        (route(json!({"path": "/", "redirect": "ftp"})), false),
        (
            route(
                json!({"path": "/", "redirect": {"scheme": "https", "port": 8443, "status": 301}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "redirect": {"status": 200}})), false),
        (route(json!({"path": "/", "redirect": {}})), false),
        (route(json!({"path": "/", "cors": true})), true),
        (
            route(
                json!({"path": "/", "cors": {"origins": ["https://a.de"], "credentials": true, "max_age": "1h"}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "cors": {"methods": ["PUT"]}})), false),
        (route(json!({"path": "/", "basic_auth": [hash]})), true),
        (
            route(
                json!({"path": "/", "basic_auth": {"file": "users", "realm": "me", "remove_header": true}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "basic_auth": {"realm": "me"}})), false),
        (route(json!({"path": "/", "rate_limit": "100/s"})), true),
        (
            route(
                json!({"path": "/", "rate_limit": [{"rate": "6/m", "burst": 2, "by": "header:X-Key"}]}),
            ),
            true,
        ),
        (route(json!({"path": "/", "rate_limit": {"burst": 2}})), false),
        (route(json!({"path": "/", "rate_limit": {"rate": "6/m", "by": "ip"}})), false),
        (
            route(
                json!({"path": "/", "rewrite": {"strip_prefix": ["/a", "/b"], "regex": {"from": "a", "to": "b"}, "host": "in"}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "rewrite": {"replace_prefix": {"from": "/a"}}})), false),
        (
            route(
                json!({"path": "/", "request_headers": {"set": {"X-A": 1}, "remove": ["X-B"], "add": {"X-C": "c"}}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "response_headers": {"set": {"X-A": [1]}}})), false),
        (
            route(
                json!({"path": "/", "compress": {"encodings": ["br"], "min_size": "1k", "types": ["text/*"]}}),
            ),
            true,
        ),
        (route(json!({"path": "/", "compress": {"encodings": ["lz4"]}})), false),
        (route(json!({"path": "/", "allow": []})), false),
        (route(json!({"path": "/", "basic_auth": []})), false),
        (route(json!({"path": "/", "rate_limit": []})), false),
        (route(json!({"path": "/", "client": []})), false),
        (route(json!({"path": "/", "method": []})), false),
        (route(json!({"path": "/", "host": []})), false),
        (route(json!({"path": []})), false),
        (route(json!({"path": "/", "headers": {}})), false),
        (route(json!({"path": "/", "query": {}})), false),
        (route(json!({"path": "/", "entrypoints": []})), false),
        (route(json!({"path": "/", "cors": []})), false),
    ]);
}

#[test]
fn parser_and_schema_agree_on_traffic() {
    agree(&[
        (traffic(json!(null)), true),
        (
            traffic(
                json!({"balance": "random", "sticky": true, "prefer_zone": true, "slow_start": "10s"}),
            ),
            true,
        ),
        (traffic(json!({"balance": {"ring_hash": {"by": "path"}}})), true),
        (traffic(json!({"balance": {"maglev": "cookie:id"}})), true),
        (traffic(json!({"balance": {"maglev": "all"}})), false),
        (traffic(json!({"balance": "least"})), false),
        (traffic(json!({"balance": "maglev"})), false),
        (traffic(json!({"outlier": true})), false),
        (traffic(json!({"check": true})), false),
        (
            traffic(
                json!({"sticky": {"cookie": "c", "ttl": "1h", "secure": true, "same_site": "lax"}}),
            ),
            true,
        ),
        (traffic(json!({"sticky": {"same_site": "some"}})), false),
        (traffic(json!({"outlier": false, "retry": false, "check": false})), true),
        (
            traffic(
                json!({"outlier": {"consecutive_errors": 0, "base": "1s", "max": "2s", "max_percent": "10%"}}),
            ),
            true,
        ),
        (traffic(json!({"outlier": {"max_percent": 10}})), false),
        (
            traffic(
                json!({"check": {"path": "/h", "interval": "1s", "timeout": "1s", "failures": 1, "successes": 1}}),
            ),
            true,
        ),
        (traffic(json!({"check": {"interval": "1s"}})), false),
        (traffic(json!({"retry": 2})), true),
        (
            traffic(json!({"retry": {"attempts": 3, "budget": "20%", "on_status": [502, 503]}})),
            true,
        ),
        (traffic(json!({"retry": {"on_status": 200}})), false),
        (
            traffic(
                json!({"timeouts": {"connect": "1s", "hold": "0s"}, "limits": {"max_pending": 0}}),
            ),
            true,
        ),
        (traffic(json!({"limits": {"max_requests": 0}})), false),
        (traffic(json!({"adaptive_concurrency": true, "send_proxy_protocol": "v1"})), true),
        (traffic(json!({"send_proxy_protocol": "v3"})), false),
        (traffic(json!({"tls": {"server_name": "in", "ca": "c", "cert": "c", "key": "k"}})), true),
        (traffic(json!({"tls": {"key": "k"}})), false),
    ]);
}

#[test]
fn parser_and_schema_agree_on_the_top_level() {
    let mut schema = schema();
    let top = schema["$defs"]["top"].clone();
    for (key, value) in top.as_object().unwrap() {
        schema[key] = value.clone();
    }
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (value, valid) in [
        (json!({}), true),
        (
            json!({"entrypoints": {"web": ":80", "b": 8080, "c": "127.0.0.1:1", "d": "[::1]:1"}}),
            true,
        ),
        (json!({"entrypoints": {"web": {"redirect_to": "websecure"}}}), true),
        (
            json!({"entrypoints": {"s": {"bind": ":1", "tls": true, "min_tls": 1.3, "client_auth": "ca.pem"}}}),
            true,
        ),
        (
            json!({"entrypoints": {"s": {"bind": ":1", "tls": true, "client_auth": {"ca": "c", "optional": true}}}}),
            true,
        ),
        (
            json!({"entrypoints": {"s": {"bind": ":1", "tls": true, "client_auth": {"optional": true}}}}),
            false,
        ),
        (json!({"entrypoints": {"web": "eighty"}}), false),
        (json!({"entrypoints": {"a b": ":80"}}), false),
        (json!({"entrypoints": {"web": {"bind": ":80", "min_tls": "1.1"}}}), false),
        (json!({"acme": "me@a.de"}), true),
        (
            json!({"acme": {"directory": "https://ca.internal/dir", "challenge": "tls-alpn-01", "ca": "c"}}),
            true,
        ),
        (json!({"acme": {"directory": "http://ca.internal"}}), false),
        (json!({"acme": {"challenge": "dns-01"}}), false),
        (json!({"runtime": "process"}), false),
    ] {
        assert_eq!(validator.is_valid(&value), valid, "schema: {value}");
        assert_eq!(read_top(&node(&value.to_string())).is_ok(), valid, "parser: {value}");
    }
}

#[test]
fn errors_have_places_and_neighbours() {
    let errors = read(&node("readines: none\nrollout: {drain_timeot: 1s}\n")).unwrap_err();
    let lines: Vec<u32> = errors.iter().map(|error| error.span.as_ref().unwrap().line).collect();
    assert_eq!(lines, [1, 2]);
    assert!(errors[0].help.as_ref().unwrap().contains("readiness"));
    assert!(errors[1].help.as_ref().unwrap().contains("drain_timeout"));
    let wrong = read_top(&node("runtime: process")).unwrap_err();
    assert!(wrong[0].help.as_ref().unwrap().contains("setting of a service"));
    assert_eq!(read_top(&node("{}")), Ok(XTop::default()));
}

#[test]
fn the_page_about_routes_has_every_key() {
    let page = include_str!("../../../../docs/routes.md");
    let keys = routes::route_keys().into_iter().chain(traffic::TRAFFIC_KEYS).chain(top::TOP_KEYS);
    for key in keys.chain(top::ENTRYPOINT_KEYS) {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
    let inner: [&[&str]; 15] = [
        &filters::REDIRECT_KEYS,
        &access::CORS_KEYS,
        &access::AUTH_KEYS,
        &access::RATE_KEYS,
        &filters::REWRITE_KEYS,
        &filters::FROM_TO_KEYS,
        &filters::HEADER_KEYS,
        &filters::COMPRESS_KEYS,
        &traffic::STICKY_KEYS,
        &traffic::OUTLIER_KEYS,
        &traffic::CHECK_KEYS,
        &traffic::RETRY_KEYS,
        &traffic::TIMEOUT_KEYS,
        &traffic::LIMIT_KEYS,
        &top::ACME_KEYS,
    ];
    for key in inner.into_iter().flatten() {
        assert!(page.contains(key), "{key}");
    }
}
