//! The filters of one route together: their order, and what passes through.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{
    BasicAuth, ClientKey, Compress, Cors, Filters as Declared, HeaderEdits, PathRewrite, RateLimit,
    Redirect, Rewrite as DeclaredRewrite,
};
use proptest::prelude::*;

use super::*;
use crate::request::tests::{Fields, get};

fn filters(declared: &Declared) -> Filters {
    let mut problems = Vec::new();
    let filters = Filters::new(declared, "shop/api", &Memory::new([1; 48]), &mut problems);
    assert_eq!(problems, [""; 0]);
    filters
}

fn answer(decision: Decision) -> Answer {
    match decision {
        Decision::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn passed(decision: Decision) -> Pass {
    match decision {
        Decision::Pass(pass) => pass,
        other => panic!("{other:?}"),
    }
}

const NONE: Fields<'static> = &[];

/// All filters that can refuse.
fn strict() -> Declared {
    let second = Duration::from_secs(1);
    Declared {
        allow: vec!["10.0.0.0/8".parse().unwrap()],
        redirect: Some(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: None,
            path: None,
            status: 308,
        }),
        cors: Some(Cors { origins: vec!["https://a.example".into()], ..Cors::default() }),
        basic_auth: Some(BasicAuth {
            realm: "shop".into(),
            users: vec!["ben:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=".into()],
            user_header: Some("X-User".into()),
            remove_header: true,
        }),
        rate_limits: vec![RateLimit { requests: 1, per: second, burst: 2, key: ClientKey::All }],
        max_body: Some(100),
        rewrite: Some(DeclaredRewrite {
            host: Some("internal:81".into()),
            path: vec![PathRewrite::StripPrefix(vec!["/api".into()])],
        }),
        compress: Some(Compress::default()),
        ..Declared::default()
    }
}

#[test]
fn one_after_the_other_in_the_order_of_their_fields() {
    let filters = filters(&strict());
    let fields: Fields<'_> = &[
        ("origin", "https://a.example"),
        ("access-control-request-method", "PUT"),
        ("accept-encoding", "br"),
        ("authorization", "Basic YmVuOnNlY3JldA=="),
    ];
    let without_password = &fields[..3];
    let view = RequestView {
        method: "OPTIONS",
        path: "/api/x",
        query: Some("y=1"),
        client: [192, 168, 0, 1].into(),
        ..get(&without_password)
    };
    let decide = |view: &RequestView<'_>, length| filters.decide(view, Some(length), 0, None);
    assert_eq!(answer(decide(&view, 101)).status, 403);
    let view = RequestView { client: "::ffff:10.0.0.1".parse().unwrap(), ..view };
    assert_eq!(answer(decide(&view, 101)).status, 308);
    let view = RequestView { tls: true, ..view };
    assert_eq!(answer(decide(&view, 101)).status, 204);
    let view = RequestView { method: "PUT", ..view };
    let denied = answer(decide(&view, 101));
    assert_eq!(denied.status, 401);
    let readable = [
        ("access-control-allow-origin".to_owned(), "https://a.example".to_owned()),
        ("vary".to_owned(), "Origin".to_owned()),
    ];
    assert!(readable.iter().all(|field| denied.headers.contains(field)), "{denied:?}");
    let view = RequestView { headers: &fields, ..view };
    assert_eq!(answer(decide(&view, 101)).status, 413);
    let pass = passed(decide(&view, 100));
    let expected = Pass {
        target: Some("/x?y=1".into()),
        request: vec![
            ("authorization".into(), None),
            ("x-user".into(), Some("ben".into())),
            ("x-forwarded-prefix".into(), Some("/api".into())),
        ],
        response: vec![
            ("access-control-allow-origin".into(), Some("https://a.example".into())),
            ("access-control-allow-credentials".into(), None),
            ("access-control-expose-headers".into(), None),
        ],
        vary_origin: true,
        accepted: Some(Encoding::Br),
    };
    assert_eq!(pass, expected);
    assert_eq!(answer(decide(&view, 100)).status, 429, "two in a burst, and the 413 was one");
    assert_eq!(filters.host.as_deref(), Some("internal:81"));
}

#[test]
fn without_filters_only_dot_segments_are_changed() {
    let filters = filters(&Declared::default());
    assert!(filters.is_plain());
    for (path, query, expected) in [
        ("/a//%61;b%2Fc", Some("d"), None),
        ("/a/../b", Some("c=/../d"), Some("/b?c=/../d")),
        ("/a/%2E", None, Some("/a/")),
        ("", Some(""), Some("/?")),
        ("*", None, None),
    ] {
        let view = RequestView { path, query, ..get(&NONE) };
        let expected = Pass { target: expected.map(str::to_owned), ..Pass::default() };
        assert_eq!(passed(filters.decide(&view, None, 0, None)), expected, "{path}");
    }
}

#[test]
fn what_is_changed_for_all_requests_is_not_decided_for_each() {
    let set = BTreeMap::from([("X-A".to_owned(), "1".to_owned())]);
    let edits = HeaderEdits { set, ..HeaderEdits::default() };
    let rewrite = DeclaredRewrite { host: Some("internal".into()), path: vec![] };
    for declared in [
        Declared { request_headers: edits.clone(), ..Declared::default() },
        Declared { response_headers: edits, ..Declared::default() },
        Declared { rewrite: Some(rewrite), ..Declared::default() },
    ] {
        let filters = filters(&declared);
        assert!(filters.idle && !filters.is_plain());
        assert_eq!(passed(filters.decide(&get(&NONE), None, 0, None)), Pass::default());
    }
}

#[test]
fn a_rewrite_leaves_what_has_no_path_alone() {
    let rewrite = |path| Some(DeclaredRewrite { host: None, path: vec![path] });
    let prefix = PathRewrite::AddPrefix("/v1".into());
    let filters = filters(&Declared { rewrite: rewrite(prefix), ..Declared::default() });
    let view = RequestView { method: "OPTIONS", path: "*", ..get(&NONE) };
    assert_eq!(passed(filters.decide(&view, None, 0, None)).target, None);
    let view = RequestView { path: "", ..view };
    assert_eq!(passed(filters.decide(&view, None, 0, None)).target.as_deref(), Some("/v1/"));
}

#[test]
fn a_slow_password_is_verified_and_then_passes_once() {
    let basic_auth = Some(BasicAuth {
        realm: "shop".into(),
        users: vec!["ann:$2y$04$YS7Kc2pSuX4cOpoe3qPbYO/VRRAcs76X1mjtpElUAEBB3M0EvAdFe".into()],
        user_header: None,
        remove_header: false,
    });
    let minute = Duration::from_secs(60);
    let limit = RateLimit { requests: 1, per: minute, burst: 1, key: ClientKey::Source };
    let filters =
        filters(&Declared { basic_auth, rate_limits: vec![limit], ..Declared::default() });
    let fields: Fields<'_> = &[("authorization", "Basic YW5uOnNlY3JldA==")];
    let view = get(&fields);
    let Decision::Verify(check) = filters.decide(&view, None, 0, None) else { panic!("a check") };
    let verified = check.run();
    // The check itself has not used up the limit.
    assert_eq!(passed(filters.decide(&view, None, 0, Some(&verified))), Pass::default());
    assert_eq!(answer(filters.decide(&view, None, 0, None)).status, 429);
}

proptest! {
    #[test]
    fn nothing_panics_and_the_query_is_never_lost(
        host in "[a-z.:\\[\\]]{0,8}|\\PC{0,8}",
        path in "[/.%a-f0-9;\\\\é]{0,16}",
        query in prop::option::of("[a-z=&%?/.]{0,12}"),
        origin in "https://a.example|\\PC{0,10}",
        tls in any::<bool>(),
        length in prop::option::of(0u64..300),
        now_ms in any::<u64>(),
    ) {
        let mut declared = strict();
        declared.basic_auth = None;
        declared.rate_limits = vec![];
        let filters = filters(&declared);
        let fields: Fields<'_> = &[("origin", &origin)];
        let view = RequestView {
            host: &host, path: &path, query: query.as_deref(), tls, ..get(&fields)
        };
        match filters.decide(&view, length, now_ms, None) {
            Decision::Pass(Pass { target: Some(target), .. }) => {
                prop_assert!(target.starts_with('/') || !path.starts_with('/'));
                prop_assert_eq!(target.split_once('?').map(|(_, query)| query), query.as_deref());
            }
            Decision::Pass(_) => {}
            Decision::Answer(answer) => {
                for (name, value) in answer.headers {
                    prop_assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b)), "{name}: {value}");
                }
            }
            Decision::Verify(_) => prop_assert!(false),
        }
    }
}
