//! From entrypoints and routes of all stacks to listeners and tables. Pure.
//!
//! Stacks that name the same address share its table. What could not be served together was refused when it was
//! applied ([`crate::changes`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use keel_model::{Entrypoint, Protocol, Route, RouteKind, Service, ServiceName, Stack, StackName};
use keel_route::snapshot::{ClusterId, Listener, ListenerTls, RouteEntry, RouteTable, TableId};

use super::snapshot::{cluster_id, tcp_ports};

/// Shares of a route are parts of this.
const WHOLE: u16 = 1000;

/// The table of an entrypoint.
pub fn table_id(entrypoint: &Entrypoint) -> TableId {
    entrypoint.bind.to_string()
}

pub use keel_route::rule_text::default_priority;

/// Adds the entrypoints of a stack, with its routes, to what other stacks have.
pub fn add(
    tables: &mut BTreeMap<TableId, RouteTable>,
    listeners: &mut Vec<Listener>,
    name: &StackName,
    stack: &Stack,
    ipv6: bool,
) {
    for (entrypoint_name, entrypoint) in &stack.entrypoints {
        let id = table_id(entrypoint);
        let table = tables.entry(id.clone()).or_default();
        let target = entrypoint.redirect_to.as_ref().and_then(|to| stack.entrypoints.get(to));
        table.redirect_https = table.redirect_https.or(target.map(|target| target.bind.port()));
        for (service_name, service) in &stack.services {
            let here = |route: &&Route| route.entrypoints.contains(entrypoint_name);
            let entries = service.routes.iter().filter(here);
            table
                .routes
                .extend(entries.filter_map(|r| entry(name, stack, service_name, service, r)));
        }
        if !listeners.iter().any(|listener| listener.bind == entrypoint.bind) {
            listeners.extend(opened(entrypoint, &id, ipv6));
        }
    }
}

/// Where the server speaks first nothing can be told apart: an entrypoint for connections only is opaque.
pub fn settle_protocols(listeners: &mut [Listener], tables: &BTreeMap<TableId, RouteTable>) {
    for listener in listeners.iter_mut().filter(|listener| listener.tls.is_none()) {
        let routes =
            listener.table.as_ref().and_then(|id| tables.get(id)).map(|table| &table.routes);
        let opaque = |routes: &Vec<RouteEntry>| {
            !routes.is_empty() && routes.iter().all(|route| route.kind == RouteKind::Tcp)
        };
        if routes.is_some_and(opaque) {
            listener.protocol = Protocol::Tcp;
        }
    }
}

fn opened(entrypoint: &Entrypoint, id: &TableId, ipv6: bool) -> Vec<Listener> {
    let mut binds = vec![entrypoint.bind];
    if ipv6 && entrypoint.bind.ip() == IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED) {
        binds.push(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), entrypoint.bind.port()));
    }
    let tls = entrypoint.tls.then(|| ListenerTls {
        min: entrypoint.min_tls,
        client_auth: entrypoint.client_auth.clone(),
    });
    let listener = |bind| Listener {
        bind,
        protocol: Protocol::Auto,
        cluster: ClusterId::new(),
        published: true,
        table: Some(id.clone()),
        tls: tls.clone(),
        accept_proxy_from: entrypoint.accept_proxy_from.clone(),
        ..Listener::default()
    };
    binds.into_iter().map(listener).collect()
}

/// A route with its services resolved; `None` when it leads nowhere.
fn entry(
    name: &StackName,
    stack: &Stack,
    service_name: &ServiceName,
    service: &Service,
    route: &Route,
) -> Option<RouteEntry> {
    let cluster = |name: &StackName, owner: &ServiceName, service: &Service, port: Option<u16>| {
        let port = port.or_else(|| tcp_ports(service).next())?;
        Some(cluster_id(name, owner, port))
    };
    let mut clusters = Vec::with_capacity(route.split.len() + 1);
    let mut rest = WHOLE;
    for part in &route.split {
        let other = stack.services.get(&part.service)?;
        let weight = part.per_mille.min(rest);
        rest -= weight;
        if weight > 0 {
            clusters.push((cluster(name, &part.service, other, part.port)?, u32::from(weight)));
        }
    }
    if rest > 0 {
        clusters.insert(0, (cluster(name, service_name, service, route.port)?, u32::from(rest)));
    }
    Some(RouteEntry {
        name: format!("{name}/{}", route.name),
        rule: route.rule.clone(),
        priority: route.priority.unwrap_or_else(|| default_priority(&route.rule)),
        kind: route.kind,
        clusters,
        filters: route.filters.clone(),
        timeout_ms: route.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    })
}
