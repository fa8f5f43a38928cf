//! From the routes of the world to the certificates that they want. Pure.

use std::collections::{BTreeMap, BTreeSet};

use keel_acme::Wanted;
use keel_model::{Acme, RouteTls, Rule, StackName};

use crate::world::World;

/// Most names of one certificate (Let's Encrypt).
const MAX_NAMES: usize = 100;
/// Longest name (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;

/// What routes want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// From authorities.
    pub acme: Vec<Wanted>,
    /// What can't be had, for people.
    pub problems: Vec<String>,
}

/// What the routes of all stacks want.
pub fn demands(world: &World) -> Demands {
    let mut demands = Demands::default();
    let mut wanted: Vec<Wanted> = Vec::new();
    for (name, state) in &world.stacks {
        let Some(record) = state.record.as_ref().filter(|record| !record.value.removing) else {
            continue;
        };
        let stack = &record.value.stack;
        for route in stack.services.values().flat_map(|service| &service.routes) {
            if route.tls != Some(RouteTls::Acme) {
                continue;
            }
            let place = format!("route {} of stack {name}", route.name);
            let (names, problems) = names(&route.rule, &place);
            demands.problems.extend(problems);
            match &stack.acme {
                Some(acme) => wanted.extend(split(acme, &names)),
                None => demands.problems.push(no_authority(name, &place)),
            }
        }
    }
    demands.acme = largest(wanted);
    demands
}

fn no_authority(stack: &StackName, place: &str) -> String {
    format!(
        "{place} wants a certificate, but stack {stack} names no authority; add `acme:` to `x-keel`"
    )
}

fn split(acme: &Acme, names: &BTreeSet<String>) -> Vec<Wanted> {
    let names: Vec<&String> = names.iter().collect();
    let parts = names.chunks(MAX_NAMES);
    let of = |part: &[&String]| part.iter().map(|name| (*name).clone()).collect();
    parts.map(|part| Wanted { names: of(part), acme: acme.clone() }).collect()
}

/// Without those whose names another one has too. Two routes of one host want one certificate.
fn largest(wanted: Vec<Wanted>) -> Vec<Wanted> {
    let by_id: BTreeMap<String, Wanted> = wanted.into_iter().map(|one| (one.id(), one)).collect();
    let is_within = |small: &Wanted, large: &Wanted| {
        small.acme.directory == large.acme.directory
            && small.names.len() < large.names.len()
            && small.names.iter().all(|name| large.names.binary_search(name).is_ok())
    };
    // By name rather than each against each: there may be thousands.
    let mut holders: BTreeMap<&str, Vec<&Wanted>> = BTreeMap::new();
    for one in by_id.values() {
        for name in &one.names {
            holders.entry(name).or_default().push(one);
        }
    }
    let is_needed = |one: &&Wanted| {
        let others = one.names.first().and_then(|name| holders.get(name.as_str()));
        !others.into_iter().flatten().any(|other| is_within(one, other))
    };
    by_id.values().filter(is_needed).cloned().collect()
}

/// The hosts that a rule names, and what can't be proved of them.
fn names(rule: &Rule, place: &str) -> (BTreeSet<String>, Vec<String>) {
    let mut hosts = BTreeSet::new();
    collect(rule, &mut hosts);
    let mut problems = Vec::new();
    if hosts.is_empty() {
        problems.push(format!(
            "{place} wants a certificate from an authority, but its rule names no host; add `host:`, or use `tls: any`"
        ));
    }
    hosts.retain(|host| match unprovable(host) {
        None => true,
        Some(reason) => {
            problems.push(format!("no certificate for {host} ({place}): {reason}"));
            false
        }
    });
    (hosts, problems)
}

fn collect(rule: &Rule, hosts: &mut BTreeSet<String>) {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().for_each(|rule| collect(rule, hosts)),
        Rule::Host(host) | Rule::Sni(host) if host != "*" => {
            hosts.insert(host.trim_end_matches('.').to_ascii_lowercase());
        }
        // What is not wanted, and what is no name.
        _ => {}
    }
}

fn unprovable(host: &str) -> Option<&'static str> {
    let is_label = |label: &str| {
        let mut letters = label.bytes();
        letters.all(|b| b.is_ascii_alphanumeric() || b == b'-') && (1..=63).contains(&label.len())
    };
    if host.starts_with("*.") {
        return Some(
            "authorities issue wildcards only for proofs over DNS, which keel does not offer; \
                     name the hosts, or use a certificate from files",
        );
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Some("it is an address");
    }
    if host.len() > MAX_NAME || !host.split('.').all(is_label) {
        return Some("it is no host name");
    }
    (!host.contains('.')).then_some("it is no name that others know")
}

#[cfg(test)]
mod tests;
