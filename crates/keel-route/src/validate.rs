//! What is wrong with a declared route, said before anything changes.
//!
//! The same code compiles routes for the proxy, so that a route without a problem here can't be refused there.

use std::collections::BTreeSet;

use keel_model::{Filters as Declared, Route, RouteKind, RouteTls};

use crate::filter::Filters;
use crate::memory::Memory;
use crate::rule::Matcher;
use crate::rule_text::rule_hosts;

/// All that is wrong with `route`, each with what to do about it; nothing if it can be used.
#[must_use]
pub fn validate_route(route: &Route) -> Vec<String> {
    let mut problems = Vec::new();
    if route.name.is_empty() || route.name.chars().any(|c| c.is_control() || c == '/') {
        problems.push("the name of a route may not be empty nor have a slash in it".into());
    }
    if route.entrypoints.is_empty() {
        problems.push("the route names no entrypoint; write `web` or `websecure`".into());
    }
    // Nothing comes of it but problems: no secret is at stake.
    let memory = Memory::new([0; 48]);
    let before = problems.len();
    Matcher::new(&route.rule, route.kind, &mut problems);
    if problems.len() == before {
        let hosts = rule_hosts(&route.rule);
        check_hosts(route, &hosts, &mut problems);
    }
    Filters::new(&route.filters, &route.name, &memory, &mut problems);
    check_kind(route, &mut problems);
    check_split(route, &mut problems);
    if route.timeout.is_some_and(|timeout| timeout.is_zero()) {
        problems.push("`timeout` must be more than 0; leave it out for none".into());
    }
    problems
}

/// Connections have neither headers nor paths.
fn check_kind(route: &Route, problems: &mut Vec<String>) {
    let allow = route.filters.allow.clone();
    if route.kind != RouteKind::Http && route.filters != (Declared { allow, ..Declared::default() })
    {
        problems.push(
            "a route for connections can only have the filter `allow`; the others need HTTP".into(),
        );
    }
}

fn check_split(route: &Route, problems: &mut Vec<String>) {
    let total: u32 = route.split.iter().map(|split| u32::from(split.per_mille)).sum();
    if total > 1000 {
        problems.push(format!(
            "the shares of `split` add up to {total} per thousand; they may be 1000 together"
        ));
    }
    let mut seen = BTreeSet::new();
    for split in route.split.iter().filter(|split| !seen.insert((&split.service, split.port))) {
        problems
            .push(format!("`split` names the service {} twice; add its shares up", split.service));
    }
}

/// Server names and certificates, for a rule that has these `hosts`.
fn check_hosts(route: &Route, hosts: &[&str], problems: &mut Vec<String>) {
    if route.kind == RouteKind::Tcp && route.tls.is_none() && !hosts.is_empty() {
        problems.push(
            "without TLS a connection has no server name; use `Sni: \"*\"`, or add `tls`".into(),
        );
    }
    if route.tls != Some(RouteTls::Acme) {
        return;
    }
    if hosts.is_empty() {
        problems.push(
            "a certificate is issued for names, and the rule has none; add `Host`, or use another kind of `tls`"
                .into(),
        );
    }
    // Authorities ask for a proof by DNS there (RFC 8555, 7.1.3), which is none of ours.
    for host in hosts.iter().filter(|host| host.starts_with("*.")) {
        problems.push(format!(
            "no certificate for {host} can be had by ACME without access to DNS; name the hosts, or give files"
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use keel_model::{Compress, Cors, PathRewrite, Redirect, Rewrite, Rule, ServiceName, Split};

    use super::*;

    fn route() -> Route {
        Route {
            name: "api".into(),
            entrypoints: vec!["web".into()],
            rule: Rule::Host("shop.example".into()),
            priority: None,
            kind: RouteKind::Http,
            port: None,
            split: vec![],
            tls: None,
            filters: Declared::default(),
            timeout: None,
        }
    }

    fn split(service: &str, per_mille: u16) -> Split {
        Split { service: ServiceName::new(service).unwrap(), port: None, per_mille }
    }

    fn filters(filters: Declared) -> Route {
        Route { filters, ..route() }
    }

    fn one_of_each() -> Declared {
        Declared {
            redirect: Some(Redirect {
                scheme: Some("gopher".into()),
                host: None,
                port: None,
                path: None,
                status: 308,
            }),
            cors: Some(Cors::default()),
            rewrite: Some(Rewrite {
                host: Some("a b".into()),
                path: vec![PathRewrite::AddPrefix("x".into())],
            }),
            compress: Some(Compress { encodings: vec![], ..Compress::default() }),
            ..Declared::default()
        }
    }

    #[test]
    fn good_ones() {
        let all = Route {
            split: vec![split("b", 1000), split("c", 0)],
            tls: Some(RouteTls::Acme),
            timeout: Some(Duration::from_secs(1)),
            ..route()
        };
        let tcp = Route {
            kind: RouteKind::Tcp,
            rule: Rule::Sni("*".into()),
            filters: Declared {
                allow: vec![IpAddr::from([10, 0, 0, 1]).into()],
                ..Declared::default()
            },
            ..route()
        };
        for route in [route(), all, tcp] {
            assert_eq!(validate_route(&route), [""; 0], "{route:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let wild = Rule::Host("*.shop.example".into());
        let path = Rule::Path("/".into());
        let sni = Rule::Sni("a".into());
        let acme = Some(RouteTls::Acme);
        let tcp = RouteKind::Tcp;
        for (route, parts) in [
            (Route { name: "a/b".into(), ..route() }, vec!["slash"]),
            (Route { entrypoints: vec![], ..route() }, vec!["write `web`"]),
            (Route { rule: Rule::PathRegex("(".into()), ..route() }, vec!["unclosed"]),
            (Route { split: vec![split("b", 600), split("c", 401)], ..route() }, vec!["1001"]),
            (Route { split: vec![split("b", 1), split("b", 1)], ..route() }, vec!["twice"]),
            (Route { timeout: Some(Duration::ZERO), ..route() }, vec!["leave it out"]),
            (Route { rule: wild, tls: acme.clone(), ..route() }, vec!["access to DNS"]),
            (Route { rule: path, tls: acme, ..route() }, vec!["add `Host`"]),
            (Route { kind: tcp, rule: sni.clone(), ..route() }, vec!["no server name"]),
            (
                Route {
                    kind: tcp,
                    rule: Rule::Sni("*".into()),
                    ..filters(Declared { max_body: Some(1), ..Declared::default() })
                },
                vec!["need HTTP"],
            ),
            (filters(one_of_each()), vec!["rewrite", "redirect", "cors", "begin with", "compress"]),
        ] {
            let problems = validate_route(&route);
            assert_eq!(problems.len(), parts.len(), "{problems:?}");
            for (problem, part) in problems.iter().zip(parts) {
                assert!(problem.contains(part), "{problem} has not {part}");
            }
        }
    }
}
