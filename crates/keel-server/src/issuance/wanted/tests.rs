//! Examples of routes and of the certificates that they want.

use std::sync::Arc;

use keel_model::{AcmeChallenge, Filters, Route, RouteKind, StackRecord};
use keel_store::Version;
use serde_json::json;

use super::*;
use crate::world::{StackState, Stored};

fn route(name: &str, rule: Rule, tls: Option<RouteTls>) -> Route {
    Route {
        name: name.to_owned(),
        entrypoints: vec!["websecure".to_owned()],
        rule,
        priority: None,
        kind: RouteKind::Http,
        port: None,
        split: Vec::new(),
        tls,
        filters: Filters::default(),
        timeout: None,
    }
}

fn host(name: &str) -> Rule {
    Rule::Host(name.to_owned())
}

fn authority() -> Acme {
    Acme {
        directory: "https://ca.test/dir".to_owned(),
        email: None,
        challenge: AcmeChallenge::Http01,
        ca: None,
    }
}

fn world(acme: Option<Acme>, routes: Vec<Route>) -> World {
    let mut stack = crate::tests::stack(&[("web", 1)], "1");
    stack.acme = acme;
    stack.services.values_mut().next().unwrap().routes = routes;
    let record = json!({
        "stack": stack, "generation": 1, "removing": false, "remove_volumes": false,
        "changed_at": 0, "change": "up"
    });
    let value: StackRecord = serde_json::from_value(record).unwrap();
    let name = value.stack.name.clone();
    let record = Some(Stored { version: Version(1), value: Arc::new(value) });
    World { stacks: [(name, StackState { record, ..StackState::default() })].into() }
}

fn wanted(rules: Vec<Rule>) -> (Vec<Vec<String>>, Vec<String>) {
    let routes = rules.into_iter().enumerate();
    let routes = routes.map(|(n, rule)| route(&format!("r{n}"), rule, Some(RouteTls::Acme)));
    let found = demands(&world(Some(authority()), routes.collect()));
    let mut names: Vec<_> = found.acme.into_iter().map(|one| one.names).collect();
    names.sort();
    (names, found.problems)
}

#[test]
fn the_hosts_of_a_rule_are_the_names_of_a_certificate() {
    let rule = Rule::All(vec![
        Rule::Any(vec![host("WWW.shop.test"), host("shop.test")]),
        Rule::Not(Box::new(host("old.shop.test"))),
        Rule::PathPrefix("/api".to_owned()),
    ]);
    let (names, problems) = wanted(vec![rule, Rule::Sni("mail.shop.test".to_owned())]);
    assert_eq!(names, [vec!["mail.shop.test"], vec!["shop.test", "www.shop.test"]]);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn one_certificate_does_for_routes_of_the_same_hosts() {
    let both = || Rule::Any(vec![host("a.test"), host("b.test")]);
    let (names, _) = wanted(vec![host("b.test"), both(), both(), host("c.test")]);
    assert_eq!(names, [vec!["a.test", "b.test"], vec!["c.test"]]);
    let many = Rule::Any((0..250).map(|n| host(&format!("n{n:03}.test"))).collect());
    let (names, _) = wanted(vec![many]);
    assert_eq!(names.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
}

#[test]
fn what_no_authority_can_prove_is_told() {
    for (name, reason) in [
        ("*.shop.test", "wildcards"),
        ("10.0.0.1", "address"),
        ("localhost", "no name that others know"),
        ("a..test", "no host name"),
        ("a_b.test", "no host name"),
    ] {
        let (names, problems) = wanted(vec![host(name)]);
        assert_eq!(names, [[""; 0]; 0]);
        assert!(problems[0].contains(reason), "{problems:?}");
        assert!(problems[0].contains("route r0 of stack shop"), "{problems:?}");
    }
    let (_, problems) = wanted(vec![Rule::default()]);
    assert!(problems[0].contains("names no host"), "{problems:?}");
    let orphan = route("web", host("a.test"), Some(RouteTls::Acme));
    let found = demands(&world(None, vec![orphan]));
    assert!(found.problems[0].contains("names no authority"), "{:?}", found.problems);
}

#[test]
fn other_routes_want_nothing() {
    let files = RouteTls::Files { cert: "a.pem".into(), key: "a.key".into() };
    let routes = vec![
        route("a", host("a.test"), Some(files)),
        route("b", host("b.test"), Some(RouteTls::Any)),
        route("c", host("c.test"), None),
    ];
    assert_eq!(demands(&world(Some(authority()), routes)), Demands::default());
}
