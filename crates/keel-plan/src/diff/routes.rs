//! Routes of a service as a tree that people can compare.

use std::collections::BTreeSet;

use keel_model::{ClientKey, RateLimit, Route, RouteTls, Service, Stack};
use serde_json::{Map, Value, json};

/// Routes by name, with their rules as text.
pub(super) fn tree(service: &Service) -> Value {
    service.routes.iter().map(one).collect()
}

/// A route in the words of `x-keel`: filters stand beside the rest, rules and limits are text.
fn one(route: &Route) -> Value {
    let mut tree = serde_json::to_value(route).unwrap_or_default();
    tree["rule"] = Value::String(route.rule.to_string());
    let Some(fields) = tree.as_object_mut() else { return tree };
    if let Some(Value::Object(filters)) = fields.remove("filters") {
        fields.extend(filters.into_iter().filter(|(key, _)| key != "rate_limits"));
    }
    if !route.filters.rate_limits.is_empty() {
        let limits = route.filters.rate_limits.iter().map(limit).collect::<Vec<_>>();
        fields.insert("rate_limit".to_owned(), Value::String(limits.join(", ")));
    }
    tree
}

fn limit(limit: &RateLimit) -> String {
    let by = match &limit.key {
        ClientKey::All => "all".to_owned(),
        ClientKey::Source => "source".to_owned(),
        ClientKey::Path => "path".to_owned(),
        ClientKey::Header(name) => format!("header:{name}"),
        ClientKey::Cookie(name) => format!("cookie:{name}"),
    };
    format!("{}/{:?} (burst {}, by {by})", limit.requests, limit.per, limit.burst)
}

/// Labels of the service; what those about routing mean is shown as routes and traffic.
fn shown_labels(service: &Service) -> Map<String, Value> {
    let routing = |key: &str| ["traefik.", "keel."].iter().any(|prefix| key.starts_with(prefix));
    let labels = service.labels.iter().filter(|(key, _)| !routing(key));
    labels.map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect()
}

/// The labels of `deploy`, the entrypoints that the routes of a service use or that send to them, and who issues their certificates.
pub(super) fn surroundings(service: &Service, stack: &Stack) -> Map<String, Value> {
    let used: BTreeSet<&String> =
        service.routes.iter().flat_map(|route| &route.entrypoints).collect();
    let sending = stack.entrypoints.iter().filter(|(_, entrypoint)| {
        entrypoint.redirect_to.as_ref().is_some_and(|target| used.contains(target))
    });
    let sending = sending.map(|(name, _)| name);
    let entrypoints: Map<String, Value> = used
        .iter()
        .copied()
        .chain(sending)
        .filter_map(|name| {
            Some((name.clone(), serde_json::to_value(stack.entrypoints.get(name)?).ok()?))
        })
        .collect();
    let mut fields = Map::new();
    fields.insert("deploy".to_owned(), json!({ "labels": shown_labels(service) }));
    fields.insert("entrypoints".to_owned(), Value::Object(entrypoints));
    if let Some(acme) = &stack.acme
        && service.routes.iter().any(|route| route.tls == Some(RouteTls::Acme))
    {
        fields.insert("acme".to_owned(), serde_json::to_value(acme).unwrap_or_default());
    }
    fields
}
