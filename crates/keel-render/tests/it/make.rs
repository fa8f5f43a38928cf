//! Snapshots, routes and clusters in few words.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keel_model::{
    Endpoint, EndpointState, Filters, InstanceId, Protocol, RouteKind, Rule, TrafficPolicy,
};
use keel_route::snapshot::{Cluster, Listener, RouteEntry, RouteTable, Snapshot};

pub const TABLE: &str = "web";

pub fn endpoint(name: &str, address: SocketAddr, state: EndpointState) -> Endpoint {
    Endpoint { instance: InstanceId::new(name).unwrap(), address, state }
}

/// The name of the cluster of `name`.
pub fn id(name: &str) -> String {
    format!("shop/{name}:80")
}

/// A cluster of HTTP endpoints.
pub fn cluster(endpoints: &[(&str, SocketAddr)]) -> Cluster {
    let endpoints = endpoints.iter().map(|(name, at)| endpoint(name, *at, EndpointState::Ready));
    Cluster { endpoints: endpoints.collect(), protocol: Protocol::Http, ..Cluster::default() }
}

pub fn with_policy(cluster: Cluster, change: impl FnOnce(&mut TrafficPolicy)) -> Cluster {
    let mut policy = TrafficPolicy::default();
    change(&mut policy);
    Cluster { policy: Some(Box::new(policy)), ..cluster }
}

/// A route to the cluster of `to`.
pub fn route(name: &str, rule: Rule, to: &str) -> RouteEntry {
    RouteEntry {
        name: format!("shop/{name}"),
        rule,
        priority: 10,
        kind: RouteKind::Http,
        clusters: vec![(id(to), 1)],
        filters: Filters::default(),
        timeout_ms: None,
    }
}

pub fn with_filters(mut route: RouteEntry, change: impl FnOnce(&mut Filters)) -> RouteEntry {
    change(&mut route.filters);
    route
}

pub fn at(priority: i64, route: RouteEntry) -> RouteEntry {
    RouteEntry { priority, ..route }
}

/// One listener with these routes.
pub fn routed(
    bind: SocketAddr,
    routes: Vec<RouteEntry>,
    clusters: BTreeMap<String, Cluster>,
) -> Snapshot {
    let table = RouteTable { routes, redirect_https: None };
    let listener = Listener { bind, table: Some(TABLE.to_owned()), ..Listener::default() };
    Snapshot {
        listeners: vec![listener],
        clusters,
        tables: BTreeMap::from([(TABLE.to_owned(), table)]),
        ..Snapshot::default()
    }
}

pub fn host(name: &str) -> Rule {
    Rule::Host(name.to_owned())
}

pub fn prefix(path: &str) -> Rule {
    Rule::PathPrefix(path.to_owned())
}

pub fn all<const N: usize>(rules: [Rule; N]) -> Rule {
    Rule::All(rules.to_vec())
}

pub fn any<const N: usize>(rules: [Rule; N]) -> Rule {
    Rule::Any(rules.to_vec())
}

pub fn not(rule: Rule) -> Rule {
    Rule::Not(Box::new(rule))
}
