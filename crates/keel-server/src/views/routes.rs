//! Routes and entrypoints as people and programs see them.

use keel_model::{Filters, Route, RouteKind, RouteTls, Service, ServiceName, Stack};
use keel_route::snapshot::ListenerFailure;

use super::Viewer;
use crate::api::types::{EntrypointView, RouteView};
use crate::traffic::{default_priority, tcp_ports};

impl Viewer {
    /// The routes of all stacks, in order of stack and service, each as it is declared.
    pub fn routes(&self) -> Vec<RouteView> {
        let world = self.worlds.current();
        let failed = &self.proxy.borrow().failed;
        let records = world.stacks.values().filter_map(|stack| stack.record.as_ref());
        let mut views = Vec::new();
        for record in records {
            let stack = &record.value.stack;
            let entrypoints = entrypoints(stack, failed);
            for (name, service) in &stack.services {
                views.extend(
                    service.routes.iter().map(|r| view(stack, &entrypoints, name, service, r)),
                );
            }
        }
        views
    }
}

/// The entrypoints of a stack, with what kept them from being opened.
pub(super) fn entrypoints(stack: &Stack, failed: &[ListenerFailure]) -> Vec<EntrypointView> {
    let view = |(name, entrypoint): (&String, &keel_model::Entrypoint)| {
        let failure = failed.iter().find(|failure| failure.bind == entrypoint.bind);
        EntrypointView {
            name: name.clone(),
            address: entrypoint.bind,
            tls: entrypoint.tls,
            error: failure.map(|failure| failure.reason.clone()),
        }
    };
    stack.entrypoints.iter().map(view).collect()
}

fn view(
    stack: &Stack,
    entrypoints: &[EntrypointView],
    name: &ServiceName,
    service: &Service,
    route: &Route,
) -> RouteView {
    let served = |entrypoint: &&EntrypointView| route.entrypoints.contains(&entrypoint.name);
    RouteView {
        stack: stack.name.clone(),
        name: route.name.clone(),
        rule: route.rule.to_string(),
        priority: route.priority.unwrap_or_else(|| default_priority(&route.rule)),
        kind: route.kind,
        entrypoints: entrypoints.iter().filter(served).cloned().collect(),
        tls: tls(route).to_owned(),
        service: name.clone(),
        port: route.port.or_else(|| tcp_ports(service).next()),
        split: route.split.iter().map(|part| (part.service.clone(), part.per_mille)).collect(),
        filters: filters(&route.filters),
    }
}

fn tls(route: &Route) -> &'static str {
    match (route.kind, &route.tls) {
        (RouteKind::Passthrough, _) => "passthrough",
        (_, None) => "none",
        (_, Some(RouteTls::Any)) => "any",
        (_, Some(RouteTls::Acme)) => "acme",
        (_, Some(RouteTls::Files { .. })) => "files",
    }
}

fn filters(filters: &Filters) -> Vec<String> {
    let used = [
        ("allow", !filters.allow.is_empty()),
        ("redirect", filters.redirect.is_some()),
        ("cors", filters.cors.is_some()),
        ("basic_auth", filters.basic_auth.is_some()),
        ("rate_limit", !filters.rate_limits.is_empty()),
        ("max_body", filters.max_body.is_some()),
        ("rewrite", filters.rewrite.is_some()),
        ("request_headers", !filters.request_headers.is_empty()),
        ("response_headers", !filters.response_headers.is_empty()),
        ("compress", filters.compress.is_some()),
    ];
    used.into_iter().filter(|(_, used)| *used).map(|(name, _)| name.to_owned()).collect()
}
