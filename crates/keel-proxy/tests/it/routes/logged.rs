//! The access log of requests that routes answer by themselves, and of those that were sent twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use keel_model::{
    Balance, BasicAuth, ClientKey, Filters, RateLimit, Redirect, Retry, Rule, TrafficPolicy,
};
use keel_route::access_log::AccessLog;
use keel_route::snapshot::RouteEntry;
use serde_json::Value;

use super::{Site, all, ask, clusters, named, nothing, route, with_body};
use crate::http2::background::wait;
use crate::http2::either::{Caller, Content, Message, Version};
use crate::policies::{mood, moody, patient, under};
use crate::proxy::{CART, until};

/// Turns the log on; its file.
fn log(site: &mut Site) -> PathBuf {
    let path = site.proxy.dir.path().join("access.log");
    site.state.access_log = Some(AccessLog { path: path.clone(), ..AccessLog::default() });
    site.apply();
    path
}

/// The lines, once there are so many.
fn lines(path: &Path, count: usize) -> Vec<Value> {
    until("the lines of the log", || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(text.lines().count() <= count, "{text}");
        let whole = text.lines().count() == count;
        whole.then(|| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    })
}

/// Why, in the order of [`refusing`].
const REASONS: [&str; 5] =
    ["redirected", "unauthorized", "forbidden", "rate_limited", "body_too_large"];

/// A route of each kind that answers by itself, by host, with what its line of the log says.
fn refusing() -> Vec<(&'static str, Filters, u16)> {
    let redirect = Redirect {
        scheme: None,
        host: Some("elsewhere.test".into()),
        port: None,
        path: None,
        status: 308,
    };
    let auth = BasicAuth {
        realm: "shop".into(),
        users: vec!["ben:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=".into()],
        user_header: None,
        remove_header: false,
    };
    let key = ClientKey::Header("X-Key".into());
    let limit = RateLimit { requests: 1, per: Duration::from_secs(3600), burst: 1, key };
    vec![
        ("moved.test", Filters { redirect: Some(redirect), ..Filters::default() }, 308),
        ("private.test", Filters { basic_auth: Some(auth), ..Filters::default() }, 401),
        (
            "inside.test",
            Filters { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Filters::default() },
            403,
        ),
        ("limited.test", Filters { rate_limits: vec![limit], ..Filters::default() }, 429),
        ("small.test", Filters { max_body: Some(4), ..Filters::default() }, 413),
    ]
}

#[test]
fn what_routes_answer_by_themselves_is_logged() {
    wait(all(async |client, endpoint| {
        let endpoint = named(endpoint, "in");
        let routes = refusing().into_iter().map(|(host, filters, _)| RouteEntry {
            filters,
            ..route(host, Rule::Host(host.into()), CART)
        });
        let mut site = Site::new(routes.collect(), clusters([(CART, &endpoint)]));
        let path = log(&mut site);
        let mut written = 0;
        for ((host, _, status), reason) in refusing().into_iter().zip(REASONS) {
            // The first request still has its place under the limit.
            let passed = usize::from(host == "limited.test");
            for turn in 0..=passed {
                let sent = with_body("12345").with("x-key", "a").with("user-agent", "me");
                let got = site.ask(client, "POST", &format!("{host}/a?b=c"), &sent).await;
                let wanted = if turn < passed { 200 } else { status };
                assert_eq!(got.status, wanted, "{host}");
                written += 1;
                let line = lines(&path, written).pop().unwrap();
                let known = format!("shop/{host}");
                for (name, value) in
                    [("route", known.as_str()), ("host", host), ("path", "/a"), ("method", "POST")]
                {
                    assert_eq!(line[name], value, "{name}: {line}");
                }
                assert_eq!((&line["status"], &line["user_agent"]), (&wanted.into(), &"me".into()));
                if wanted == 200 {
                    assert_eq!(line.get("reason"), None, "{line}");
                } else {
                    // No instance had anything to do with it.
                    assert_eq!((line.get("instance"), line.get("upstream_us")), (None, None));
                    assert_eq!(line["reason"], reason, "{line}");
                    assert_eq!(line["bytes_out"], got.text().len(), "{line}");
                }
            }
        }
        let got = site.ask(client, "GET", "unknown.test/", &nothing()).await;
        assert_eq!(got.status, 404);
        let line = lines(&path, written + 1).pop().unwrap();
        assert_eq!((&line["status"], &line["reason"]), (&404.into(), &"no_route".into()));
        assert_eq!(line.get("route"), None, "{line}");
    }));
}

#[test]
fn the_bytes_of_a_request_are_counted_once_however_often_it_is_sent() {
    const SIZE: usize = 20_000;
    let retry = Retry { on_status: vec![503], ..Retry::default() };
    let policy = TrafficPolicy {
        retry,
        balance: Balance::RoundRobin,
        outlier: patient(),
        ..Default::default()
    };
    wait(all(async |client, version| {
        let (failing, good) = (moody(version, "bad", &mood(503)), named(version, "good"));
        let mut site = Site::bare(under(&policy, &[&failing, &good]));
        let path = log(&mut site);
        let mut caller = Caller::connect(client, site.address).await;
        let mut written = 0;
        for content in [
            Content::Known("x".repeat(SIZE).into()),
            Content::Unknown("x".repeat(SIZE).into(), HeaderMap::new()),
        ] {
            // Between two versions the chunks are gone; else they count: two with a head and an end each, and the last.
            let chunked = matches!(content, Content::Unknown(..));
            let chunks = chunked && (client, version) == (Version::One, Version::One);
            let size = if chunks { SIZE + 2 * (6 + 2) + 5 } else { SIZE };
            let mut retries = 0;
            for _ in 0..4 {
                let sent = Message::new(content.clone());
                assert_eq!(ask(&mut caller, "PUT", "a.test/", &sent).await.status, 200);
                written += 1;
                let line = lines(&path, written).pop().unwrap();
                assert_eq!(line["bytes_in"], size, "{line}");
                retries += line["retries"].as_u64().unwrap_or(0);
            }
            // Of two requests one meets the failing instance first.
            assert!(retries >= 1, "nothing was sent twice");
        }
    }));
}
