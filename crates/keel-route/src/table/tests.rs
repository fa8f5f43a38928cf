//! Finding routes: examples, and a comparison with asking each rule in turn.

use std::collections::BTreeMap;

use ipnet::IpNet;
use keel_model::{Filters as Declared, Rule};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::request::tests::{Fields, get};
use crate::rule_text::default_priority;

fn entry(name: &str, rule: Rule) -> RouteEntry {
    RouteEntry {
        name: name.into(),
        priority: default_priority(&rule),
        rule,
        kind: RouteKind::Http,
        clusters: vec![(name.into(), 1)],
        filters: Declared::default(),
        timeout_ms: None,
    }
}

fn table(routes: Vec<RouteEntry>) -> Table {
    let table = RouteTable { routes, redirect_https: None };
    Table::compile(&table, &Memory::new([0; 48])).unwrap()
}

fn host(name: &str) -> Rule {
    Rule::Host(name.into())
}

fn prefix(path: &str) -> Rule {
    Rule::PathPrefix(path.into())
}

const NONE: Fields<'static> = &[];

/// The name of the route that wants `http://host/path`.
fn found<'t>(table: &'t Table, host: &str, path: &str) -> Option<&'t str> {
    table.find(&RequestView { host, path, ..get(&NONE) }).map(Route::name)
}

#[test]
fn all_workers_share_a_table_and_any_thread_checks_a_password() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Table>();
    shared::<Memory>();
    sent::<crate::filter::AuthCheck>();
    sent::<Verified>();
}

#[test]
fn by_host_and_path() {
    let table = table(vec![
        entry("a", host("a.example")),
        entry("a-api", Rule::All(vec![host("a.example"), prefix("/api")])),
        entry("wild", host("*.example")),
        entry("admin", prefix("/admin-of-all-the-hosts-there-are")),
        entry("rest", Rule::All(vec![])),
    ]);
    for (host, path, expected) in [
        ("a.example", "/", "a"),
        ("A.EXAMPLE.:8080", "/", "a"),
        ("a.example", "/api/x", "a-api"),
        ("a.example", "/apis", "a"),
        ("b.example", "/api", "wild"),
        ("a.b.example", "/api", "rest"),
        ("b.example", "/admin-of-all-the-hosts-there-are", "admin"),
        ("", "*", "rest"),
    ] {
        assert_eq!(found(&table, host, path), Some(expected), "{host} {path}");
    }
}

#[test]
fn priority_then_name() {
    let at = |name, priority| RouteEntry { priority, ..entry(name, Rule::All(vec![])) };
    let table = table(vec![at("b", 1), at("low", -5), at("a", 1), at("high", 2)]);
    let names: Vec<_> = table.routes().iter().map(Route::name).collect();
    assert_eq!(names, ["high", "a", "b", "low", "refused"]);
    assert!(table.routes().iter().enumerate().all(|(at, route)| route.index() == at));
    assert_eq!(found(&table, "x", "/"), Some("high"));
}

#[test]
fn no_spelling_of_a_path_leads_around_a_prefix() {
    let table = table(vec![
        entry("admin", prefix("/admin")),
        entry("open", prefix("/open")),
        entry("rest", Rule::All(vec![])),
    ]);
    for (path, expected) in [
        ("/admin", "admin"),
        ("//admin/x", "admin"),
        ("/%61dmin", "admin"),
        ("/open/../admin", "admin"),
        ("/open/%2e%2E/admin", "admin"),
        ("/open//../admin", "open"),
        ("/./admin", "admin"),
        ("/administrator", "rest"),
        // Read in two ways.
        ("/admin%2Fx", "refused"),
        ("/%2Fadmin", "refused"),
        ("/open/..;/admin", "refused"),
        ("/open/..%2Fadmin", "refused"),
        ("/open%2F..%2Fadmin", "refused"),
        ("/open/..%5Cadmin", "refused"),
        ("/open\\..\\admin", "refused"),
        ("/open%5Cx/.;x\\..\\admin", "refused"),
        ("/admin;x=1/users", "refused"),
        ("/admin%2F..%2Fopen", "refused"),
        ("/admin#x", "refused"),
        ("/admin%00x", "refused"),
        // In two ways that lead to one place.
        ("/admin/a%2Fb", "admin"),
        ("/open/group%2Fproject/..;v=1", "open"),
        ("/x/a;b=1/c%2Fd", "rest"),
        ("/open;v=1x%2f", "refused"),
    ] {
        assert_eq!(found(&table, "a", path), Some(expected), "{path}");
    }
}

#[test]
fn a_rule_that_names_such_a_character_is_taken_at_its_word() {
    let table = table(vec![
        entry("matrix", Rule::PathRegex("/admin;[a-z]+/x".into())),
        entry("encoded", Rule::Path("/a%2fb".into())),
        entry("rest", Rule::All(vec![])),
    ]);
    assert_eq!(found(&table, "a", "/admin;v/x"), Some("matrix"));
    assert_eq!(found(&table, "a", "/a%2Fb"), Some("encoded"));
}

#[test]
fn where_no_rule_looks_at_paths_none_is_refused() {
    let table = table(vec![entry("a", host("a")), entry("rest", Rule::All(vec![]))]);
    let long = format!("/{};x", "a".repeat(10_000));
    for path in ["/admin%2F..%2Fopen", "/a;b/..;/c", &long] {
        assert_eq!(found(&table, "a", path), Some("a"));
    }
    let by_path =
        self::table(vec![entry("open", prefix("/open")), entry("rest", Rule::All(vec![]))]);
    assert_eq!(found(&by_path, "a", &long), Some("refused"));
}

#[test]
fn a_refusal_is_an_answer() {
    let table = table(vec![entry("admin", prefix("/admin"))]);
    let view = RequestView { path: "/admin%2Fx", ..get(&NONE) };
    let route = table.find(&view).unwrap();
    assert!(!route.is_plain(&view));
    let Decision::Answer(answer) = route.decide(&view, None, 0) else { panic!("an answer") };
    assert_eq!(answer.status, 400);
}

#[test]
fn connections_by_server_name() {
    let tcp =
        |name, sni: &str| RouteEntry { kind: RouteKind::Tcp, ..entry(name, Rule::Sni(sni.into())) };
    let office = RouteEntry {
        kind: RouteKind::Passthrough,
        filters: Declared { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Declared::default() },
        ..entry(
            "office",
            Rule::All(vec![
                Rule::Sni("db.example".into()),
                Rule::Client("10.0.0.0/8".parse().unwrap()),
            ]),
        )
    };
    let table = table(vec![
        tcp("db", "db.example"),
        tcp("wild", "*.example"),
        tcp("any", "*"),
        office,
        entry("http", host("db.example")),
    ]);
    for (sni, client, expected) in [
        (Some("DB.example"), [192, 168, 0, 1], "db"),
        (Some("db.example"), [10, 0, 0, 1], "office"),
        (Some("x.example"), [10, 0, 0, 1], "wild"),
        (Some("x.y.example"), [10, 0, 0, 1], "any"),
        (None, [10, 0, 0, 1], "any"),
    ] {
        let found = table.find_tcp(sni, client.into()).map(Route::name);
        assert_eq!(found, Some(expected), "{sni:?} {client:?}");
    }
    let office = table.routes().iter().find(|route| route.name() == "office").unwrap();
    assert_eq!(office.kind(), RouteKind::Passthrough);
    assert!(office.allows("::ffff:10.0.0.1".parse().unwrap()));
    assert!(!office.allows([11, 0, 0, 1].into()));
    assert_eq!(found(&table, "db.example", "/"), Some("http"));
    assert!(found(&table, "x.example", "/").is_none());
}

#[test]
fn a_bad_route_is_named() {
    let no_weight = RouteEntry { clusters: vec![("a".into(), 0)], ..entry("weights", host("a")) };
    for (bad, route, part) in [
        (entry("shop/api", Rule::PathRegex("(".into())), "shop/api", "unclosed group"),
        (no_weight, "weights", "weight"),
    ] {
        let routes = vec![entry("good", host("a")), bad];
        let table = RouteTable { routes, redirect_https: None };
        let error = Table::compile(&table, &Memory::new([0; 48])).unwrap_err();
        assert_eq!(error.route, route);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn what_no_route_wants_may_go_to_tls() {
    let redirecting = RouteTable { routes: vec![], redirect_https: Some(8443) };
    let table = Table::compile(&redirecting, &Memory::new([0; 48])).unwrap();
    let view = RequestView { path: "/a", query: Some("b"), ..get(&NONE) };
    let answer = table.unwanted(&view).unwrap();
    assert_eq!(answer.status, 308);
    assert_eq!(answer.headers[0].1, "https://shop.example:8443/a?b");
    assert_eq!(table.unwanted(&RequestView { tls: true, ..view }), None);
}

#[test]
fn clusters_by_weight() {
    let clusters = vec![("a".to_owned(), 900), ("none".to_owned(), 0), ("b".to_owned(), 100)];
    let routes = |clusters| table(vec![RouteEntry { clusters, ..entry("r", Rule::All(vec![])) }]);
    let ten = routes(clusters);
    let route = &ten.routes()[0];
    let mut random = Random::new(1);
    let mut hits = BTreeMap::new();
    for _ in 0..10_000 {
        *hits.entry(route.clusters()[route.cluster(&mut random, None)].0.as_str()).or_insert(0) +=
            1;
    }
    assert!((850..1150).contains(&hits["b"]), "{hits:?}");
    assert!(!hits.contains_key("none"));
    // The same client, the same cluster; with another weight only as many move as have to.
    let twenty = vec![("a".to_owned(), 800), ("none".to_owned(), 0), ("b".to_owned(), 200)];
    let twenty = routes(twenty);
    let of = |route: &Route, hash| {
        route.clusters()[route.cluster(&mut Random::new(1), Some(hash))].0.clone()
    };
    let (mut at_b, mut moved) = (0, 0);
    for hash in 0..10_000 {
        let (before, after) = (of(route, hash), of(&twenty.routes()[0], hash));
        assert_eq!(before, of(route, hash));
        assert!(before == after || before == "a", "{hash}");
        at_b += u32::from(before == "b");
        moved += u32::from(before != after);
    }
    assert!((850..1150).contains(&at_b) && (850..1150).contains(&moved), "{at_b} {moved}");
}

#[test]
fn thousands_of_hosts_cost_no_more_than_one() {
    let entry = |n| entry(&format!("r{n:04}"), host(&format!("h{n}.example")));
    let table = table((0..5000).map(entry).collect());
    assert_eq!(table.http.candidates("h77.example").count(), 1);
    assert_eq!(found(&table, "h4999.example", "/"), Some("r4999"));
}

// The comparison: the same rules, asked one after the other in a way as plain as can be.

#[derive(Debug)]
struct Asked {
    host: String,
    path: String,
    method: &'static str,
    client: [u8; 4],
    sni: Option<&'static str>,
    header: Option<&'static str>,
    query: Option<&'static str>,
}

fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(parent) => {
            name.strip_suffix(parent).is_some_and(|label| !label.is_empty() && !label.contains('.'))
        }
        None => pattern == name,
    }
}

fn wants(rule: &Rule, asked: &Asked) -> bool {
    match rule {
        Rule::All(rules) => rules.iter().all(|rule| wants(rule, asked)),
        Rule::Any(rules) => rules.iter().any(|rule| wants(rule, asked)),
        Rule::Not(rule) => !wants(rule, asked),
        Rule::Host(pattern) => is_named(pattern, &asked.host),
        Rule::HostRegex(pattern) => {
            regex::Regex::new(&format!("^({pattern})$")).unwrap().is_match(&asked.host)
        }
        Rule::Path(path) => *path == asked.path,
        Rule::PathPrefix(prefix) => format!("{}/", asked.path).starts_with(&format!("{prefix}/")),
        Rule::PathRegex(pattern) => {
            regex::Regex::new(&format!("^({pattern})")).unwrap().is_match(&asked.path)
        }
        Rule::Method(method) => method == asked.method,
        Rule::Header(_, value) => {
            asked.header.is_some_and(|found| value.as_deref().is_none_or(|v| v == found))
        }
        Rule::HeaderRegex(_, pattern) => {
            asked.header.is_some_and(|found| regex::Regex::new(pattern).unwrap().is_match(found))
        }
        Rule::Query(_, value) => {
            asked.query.is_some_and(|found| value.as_deref().is_none_or(|v| v == found))
        }
        Rule::Client(net) => net.contains(&std::net::IpAddr::from(asked.client)),
        Rule::Sni(pattern) => is_named(pattern, asked.sni.unwrap_or_default()),
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let text = |options: Vec<&'static str>| select(options).prop_map(str::to_owned);
    let host = || text(vec!["a.x", "b.x", "*.x", "*.y", "c"]);
    let value = || prop::option::of(text(vec!["1", "2"]));
    let nets: Vec<IpNet> =
        ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"].iter().map(|n| n.parse().unwrap()).collect();
    let leaf = prop_oneof![
        4 => host().prop_map(Rule::Host),
        1 => text(vec!["[ab]\\.x", "c|a.y"]).prop_map(Rule::HostRegex),
        1 => text(vec!["/", "/a", "/a/b"]).prop_map(Rule::Path),
        2 => text(vec!["/a", "/a/b", "/b"]).prop_map(Rule::PathPrefix),
        1 => text(vec!["/[ab]$", "/a|/b/a", "/"]).prop_map(Rule::PathRegex),
        1 => text(vec!["GET", "PUT"]).prop_map(Rule::Method),
        1 => value().prop_map(|value| Rule::Header("x-h".into(), value)),
        1 => text(vec!["^1", "[23]"]).prop_map(|pattern| Rule::HeaderRegex("X-H".into(), pattern)),
        1 => value().prop_map(|value| Rule::Query("q".into(), value)),
        1 => select(nets).prop_map(Rule::Client),
        1 => text(vec!["a.x", "*.x", "*"]).prop_map(Rule::Sni),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Rule::All),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Rule::Any),
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
        ]
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let client = select(vec![[10, 1, 0, 1], [10, 2, 0, 1], [9, 9, 9, 9]]);
    let value = || prop::option::of(select(vec!["1", "2", "3"]));
    (
        "[abc](\\.[xy])?|a\\.b\\.x",
        "(/[ab]){0,3}",
        select(vec!["GET", "PUT"]),
        client,
        prop::option::of(select(vec!["a.x", "a.b.x"])),
        value(),
        value(),
    )
        .prop_map(|(host, path, method, client, sni, header, query)| {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            Asked { host, path, method, client, sni, header, query }
        })
}

proptest! {
    #[test]
    fn finding_is_the_same_as_asking_each(
        rules in prop::collection::vec((rule(), -2i64..3), 0..12),
        requests in prop::collection::vec(asked(), 1..12),
        upper in any::<bool>(),
    ) {
        let entries: Vec<RouteEntry> = rules
            .into_iter()
            .enumerate()
            .map(|(n, (rule, priority))| RouteEntry { priority, ..entry(&format!("r{:02}", 99 - n), rule) })
            .collect();
        let table = table(entries.clone());
        for asked in requests {
            let best = entries
                .iter()
                .filter(|entry| wants(&entry.rule, &asked))
                .max_by_key(|entry| (entry.priority, std::cmp::Reverse(entry.name.clone())));
            let host = if upper { format!("{}:80", asked.host.to_uppercase()) } else { asked.host.clone() };
            let headers: Vec<(&str, &str)> = asked.header.iter().map(|value| ("X-h", *value)).collect();
            let headers = headers.as_slice();
            let query = asked.query.map(|value| format!("p=1&q={value}"));
            let view = RequestView {
                method: asked.method,
                host: &host,
                path: &asked.path,
                query: query.as_deref(),
                client: asked.client.into(),
                sni: asked.sni,
                ..get(&headers)
            };
            let found = table.find(&view).map(Route::name);
            prop_assert_eq!(found, best.map(|entry| entry.name.as_str()));
        }
    }

    #[test]
    fn random_requests_never_panic(
        rules in prop::collection::vec(rule(), 0..6),
        host in "\\PC{0,12}", path in "[/.%a-f0-9;\\\\]{0,16}|\\PC{0,12}", query in "\\PC{0,12}",
        sni in "\\PC{0,12}", method in "\\PC{0,6}",
    ) {
        let entries = rules.into_iter().enumerate().map(|(n, rule)| entry(&format!("r{n}"), rule));
        let table = table(entries.collect());
        let view = RequestView {
            method: &method, host: &host, path: &path, query: Some(&query), sni: Some(&sni), ..get(&NONE)
        };
        if let Some(route) = table.find(&view) {
            let plain = route.is_plain(&view);
            match route.decide(&view, None, 0) {
                Decision::Pass(pass) => prop_assert_eq!(plain, pass.target.is_none()),
                Decision::Answer(answer) => prop_assert_eq!(answer.status, 400),
                Decision::Verify(_) => prop_assert!(false),
            }
        }
        let _ = table.find_tcp(Some(&sni), [10, 0, 0, 1].into());
    }

    /// Whatever a service makes of dots, slashes and parameters, it gets a path below `/admin` only through that route.
    #[test]
    fn no_reading_of_a_forwarded_path_gets_into_a_prefix_of_another_route(
        pieces in prop::collection::vec(
            select(vec!["/", "//", "admin", "open", "..", ".", "%2f", "%5C", "\\", ";x", "%61dmin", "%2e", "a", "#"]),
            0..10,
        ),
    ) {
        let table = table(vec![entry("admin", prefix("/admin")), entry("rest", Rule::All(vec![]))]);
        let path = format!("/{}", pieces.concat());
        let view = RequestView { path: &path, ..get(&NONE) };
        let route = table.find(&view).unwrap();
        if route.name() == "rest" {
            let forwarded = crate::path::forwarded(&path).replace("%61", "a").replace("%2e", ".");
            for reading in services(&forwarded) {
                prop_assert!(reading != "/admin" && !reading.starts_with("/admin/"), "{path} {reading}");
            }
        }
    }
}

/// What services of several habits take a path for.
fn services(path: &str) -> Vec<String> {
    let decoded = path.to_lowercase().replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    let bare = |path: &str| {
        path.split('/')
            .map(|s| s.split(';').next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("/")
    };
    let merged = |path: &str| {
        let mut path = path.to_owned();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        path
    };
    let resolved = |path: &str| {
        let mut out: Vec<&str> = Vec::new();
        for segment in path.split('/').skip(1) {
            match segment {
                ".." => {
                    out.pop();
                }
                "." => {}
                other => out.push(other),
            }
        }
        format!("/{}", out.join("/"))
    };
    let mut readings = vec![path.to_owned(), decoded.clone(), bare(path), bare(&decoded)];
    let cut = path.split('#').next().unwrap_or_default();
    readings.extend([cut.to_owned(), bare(cut)]);
    for reading in readings.clone() {
        readings.push(merged(&reading));
        readings.push(resolved(&reading));
        readings.push(resolved(&merged(&reading)));
        readings.push(merged(&resolved(&reading)));
    }
    readings
}
