//! Which route takes a request, and which cluster.

use keel_model::{Protocol, Redirect, Rule};
use keel_route::snapshot::{RouteEntry, RouteTable};

use super::{Site, ask, clusters, mirror, named, nothing, route};
use crate::http2::background::wait;
use crate::http2::either::{Caller, Version};
use crate::proxy::{CART, PATIENCE};

const BOTH: [Version; 2] = [Version::One, Version::Two];

fn host(name: &str) -> Rule {
    Rule::Host(name.into())
}

fn prior(priority: i64, route: RouteEntry) -> RouteEntry {
    RouteEntry { priority, ..route }
}

#[test]
fn requests_go_where_the_first_rule_that_fits_says() {
    let names = ["exact", "below", "api", "put", "beta", "login"];
    for version in BOTH {
        let endpoints = names.map(|name| (name, named(version, name)));
        let rules = [
            (1, host("shop.test")),
            (2, host("*.shop.test")),
            (10, Rule::All(vec![host("shop.test"), Rule::PathPrefix("/api".into())])),
            (20, Rule::Method("PUT".into())),
            (30, Rule::Header("X-Beta".into(), Some("yes".into()))),
            (
                40,
                Rule::Any(vec![
                    Rule::Path("/login".into()),
                    Rule::Query("login".into(), Some("1".into())),
                ]),
            ),
        ];
        let routes = rules.into_iter().zip(names);
        let routes = routes.map(|((n, rule), name)| prior(n, route(name, rule, name)));
        let site = Site::new(routes.collect(), clusters(endpoints.iter().map(|(n, e)| (*n, e))));
        wait(async {
            for caller in BOTH {
                let mut caller = Caller::connect(caller, site.address).await;
                for (method, url, beta, expected) in [
                    ("GET", "shop.test/", "no", "exact"),
                    ("GET", "SHOP.test:8080/apis", "no", "exact"),
                    ("GET", "a.shop.test/api", "no", "below"),
                    ("GET", "shop.test/api", "no", "api"),
                    ("GET", "shop.test/api/x?login=2", "no", "api"),
                    ("PUT", "shop.test/api/x", "no", "put"),
                    ("PUT", "shop.test/api/x", "yes", "beta"),
                    ("GET", "else.test/", "yes", "beta"),
                    ("GET", "else.test/login", "no", "login"),
                    ("GET", "a.shop.test/x?login=1", "yes", "login"),
                    ("GET", "else.test/", "no", ""),
                    ("GET", "a.b.shop.test/", "no", ""),
                    ("GET", "shop.test.evil/", "no", ""),
                ] {
                    let sent = nothing().with("x-beta", beta);
                    let answer = ask(&mut caller, method, url, &sent).await;
                    let found = (answer.status, answer.text());
                    match expected {
                        "" => {
                            assert_eq!(found, (404, "No route matches this request.\n".into()));
                        }
                        name => assert_eq!(found, (200, name.into()), "{method} {url} {beta}"),
                    }
                }
            }
        });
    }
}

#[test]
fn changed_routes_hold_for_the_next_request_of_an_open_connection() {
    let (old, new) = (named(Version::One, "old"), named(Version::Two, "new"));
    let backends = clusters([("old", &old), ("new", &new)]);
    let mut site = Site::new(vec![route("x", host("a.test"), "old")], backends);
    wait(async {
        for version in BOTH {
            site.route(vec![route("x", host("a.test"), "old")]);
            let mut caller = Caller::connect(version, site.address).await;
            assert_eq!(ask(&mut caller, "GET", "a.test/", &nothing()).await.text(), "old");
            site.route(vec![route("x", host("a.test"), "new")]);
            assert_eq!(ask(&mut caller, "GET", "a.test/", &nothing()).await.text(), "new");
            site.route(vec![route("x", host("b.test"), "new")]);
            let none = ask(&mut caller, "GET", "a.test/", &nothing()).await;
            assert_eq!(none.status, 404);
            // Whoever answers says when (RFC 9110, 6.6.1).
            let date = httpdate::parse_http_date(none.message.field("date").unwrap()).unwrap();
            assert!(date.elapsed().unwrap() < PATIENCE, "{date:?}");
        }
    });
}

#[test]
fn a_split_sends_each_service_its_share() {
    let (most, few) = (named(Version::One, "most"), named(Version::One, "few"));
    let split = RouteEntry {
        clusters: vec![("most".into(), 750), ("few".into(), 250), ("never".into(), 0)],
        ..route("x", Rule::default(), "most")
    };
    let mut site = Site::new(vec![split], clusters([("most", &most), ("few", &few)]));
    for version in BOTH {
        let mut counts = [0, 0];
        wait(async {
            let mut caller = Caller::connect(version, site.address).await;
            for _ in 0..400 {
                let answer = ask(&mut caller, "GET", "a/", &nothing()).await;
                assert_eq!(answer.status, 200);
                counts[usize::from(answer.text() == "few")] += 1;
            }
        });
        // Five standard deviations (8.7) around 100.
        assert!((57..144).contains(&counts[1]), "{counts:?}");
    }
    let edges = site.edges("shop/x");
    let sum = |cluster: &str| -> u64 {
        let of = edges.iter().filter(|edge| edge.cluster == cluster);
        of.map(|edge| edge.statuses[&200]).sum()
    };
    assert_eq!(sum("most") + sum("few"), 800);
    assert!(edges.iter().all(|edge| edge.latency.count() == edge.statuses[&200]));
}

#[test]
fn a_route_without_instances_says_so() {
    let site = Site::new(vec![route("x", Rule::default(), "shop/gone:80")], clusters([]));
    wait(async {
        for version in BOTH {
            let answer = site.ask(version, "GET", "a/", &nothing()).await;
            let text = "shop/gone:80 has no running instance.\n";
            assert_eq!((answer.status, answer.text()), (503, text.into()));
        }
    });
}

#[test]
fn what_no_route_wants_goes_to_https_or_to_the_cluster_of_the_listener() {
    let rest = named(Version::One, "rest");
    let mut site = Site::new(vec![route("x", host("a.test"), "gone")], clusters([(CART, &rest)]));
    let routes = site.state.tables["web"].routes.clone();
    let table = RouteTable { routes, redirect_https: Some(8443) };
    site.state.tables.insert("web".into(), table);
    site.apply();
    wait(async {
        for version in BOTH {
            let answer = site.ask(version, "GET", "b.test/x?y=1", &nothing()).await;
            let to = answer.field("location");
            assert_eq!((answer.status, to), (308, Some("https://b.test:8443/x?y=1")));
        }
    });
    site.state.tables.get_mut("web").unwrap().redirect_https = None;
    site.state.listeners[0].cluster = CART.into();
    site.state.listeners[0].protocol = Protocol::Http;
    site.apply();
    wait(async {
        for version in BOTH {
            assert_eq!(site.ask(version, "GET", "b.test/", &nothing()).await.text(), "rest");
            assert_eq!(site.ask(version, "GET", "a.test/", &nothing()).await.status, 503);
        }
    });
}

#[test]
fn moved_addresses_are_told_without_asking_an_endpoint() {
    let endpoint = mirror(Version::One);
    let redirect = Redirect {
        scheme: Some("https".into()),
        host: Some("www.shop.test".into()),
        port: None,
        path: Some(keel_model::PathRewrite::AddPrefix("/new".into())),
        status: 301,
    };
    let filters = keel_model::Filters { redirect: Some(redirect), ..Default::default() };
    let mut site = Site::filtered(&endpoint, filters);
    wait(async {
        for version in BOTH {
            let mut caller = Caller::connect(version, site.address).await;
            for method in ["GET", "HEAD"] {
                let answer = ask(&mut caller, method, "shop.test/a?b", &nothing()).await;
                let to = answer.field("location");
                assert_eq!((answer.status, to), (301, Some("https://www.shop.test/new/a?b")));
            }
        }
    });
    let edges = site.edges("shop/all");
    let counts: Vec<_> = edges.iter().map(|e| (&*e.cluster, e.statuses[&301])).collect();
    assert_eq!(counts, [("", 4)]);
}
