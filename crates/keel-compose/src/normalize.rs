//! What Compose adds to a merged model: the default network, implied dependencies, names of resources.

use std::collections::BTreeMap;

use crate::diagnostic::Span;
use crate::services::is_process;
use crate::short::clean;
use crate::template::is_instance_variable;
use crate::value::{Map, Node, Value};

/// Applies all rules; `name` is the project's.
pub(crate) fn normalize(document: &mut Node, name: &str, variables: &BTreeMap<String, String>) {
    let span = document.span.clone();
    let Some(model) = document.as_map_mut() else { return };
    networks(model, &span);
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        for (_, service) in services.iter_mut() {
            let span = service.span.clone();
            let process = is_process(service);
            if let Some(map) = service.as_map_mut() {
                normalize_service(map, &span, variables, process);
            }
        }
    }
    for kind in ["networks", "volumes", "configs", "secrets"] {
        resource_names(model, kind, name);
    }
}

/// Connects services that name no network to `default`, and declares `default` when one is connected.
fn networks(model: &mut Map, span: &Span) {
    let mut uses_default = false;
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        for (_, service) in services.iter_mut() {
            let span = service.span.clone();
            let Some(map) = service.as_map_mut() else { continue };
            if map.contains("provider") || map.contains("network_mode") {
                continue;
            }
            let declared = map.get("networks").and_then(Node::as_map);
            if declared.is_none_or(Map::is_empty) {
                let mut default = Map::new();
                default.insert("default", Node::null(&span));
                map.insert("networks", Node::new(Value::Map(default), &span));
                uses_default = true;
            } else if declared.is_some_and(|networks| networks.contains("default")) {
                uses_default = true;
            }
        }
    }
    let mut networks = match model.remove("networks") {
        Some(Node { value: Value::Map(map), .. }) => map,
        _ => Map::new(),
    };
    if uses_default && !networks.contains("default") {
        networks.insert("default", Node::null(span));
    }
    if !networks.is_empty() {
        model.insert("networks", Node::new(Value::Map(networks), span));
    }
}

fn normalize_service(
    service: &mut Map,
    span: &Span,
    variables: &BTreeMap<String, String>,
    process: bool,
) {
    if service.get("pull_policy").and_then(Node::as_str) == Some("if_not_present") {
        service.insert("pull_policy", Node::string("missing", span));
    }
    if let Some(build) = service.get_mut("build").and_then(Node::as_map_mut) {
        if build.get("context").is_none_or(Node::is_null) {
            build.insert("context", Node::string(".", span));
        }
        let absent = |key: &str| build.get(key).is_none_or(Node::is_null);
        if absent("dockerfile") && absent("dockerfile_inline") {
            build.insert("dockerfile", Node::string("Dockerfile", span));
        }
        if let Some(arguments) = build.get_mut("args") {
            fill_values(arguments, &|name| variables.get(name), false);
        }
    }
    if let Some(environment) = service.get_mut("environment") {
        // What every instance of a process has for itself is not the caller's.
        let lookup =
            |name: &str| variables.get(name).filter(|_| !(process && is_instance_variable(name)));
        fill_values(environment, &lookup, true);
    }
    implied_dependencies(service, span);
    if let Some(Node { value: Value::Seq(volumes), .. }) = service.get_mut("volumes") {
        for volume in volumes {
            let target = volume.as_map_mut().and_then(|map| map.get_mut("target"));
            if let Some(Node { value: Value::String(target), .. }) = target {
                *target = if target.is_empty() { ".".to_owned() } else { clean(target) };
            }
        }
    }
}

/// Gives variables without a value the caller's; those that the caller does not have stay or go.
fn fill_values<'v>(
    node: &mut Node,
    lookup: &dyn Fn(&str) -> Option<&'v String>,
    keep_absent: bool,
) {
    match &mut node.value {
        Value::Seq(items) => items.retain_mut(|item| {
            let Value::String(text) = &mut item.value else { return false };
            if text.contains('=') {
                return true;
            }
            match lookup(text) {
                Some(value) => {
                    *text = format!("{text}={value}");
                    true
                }
                None => keep_absent,
            }
        }),
        Value::Map(map) => map.retain(|key, value| {
            if !value.is_null() {
                return true;
            }
            match lookup(key) {
                Some(found) => {
                    value.value = Value::String(found.clone());
                    true
                }
                None => keep_absent,
            }
        }),
        _ => {}
    }
}

/// Sharing something with another service means to depend on it.
fn implied_dependencies(service: &mut Map, span: &Span) {
    let mut implied: Vec<(String, bool)> = Vec::new();
    let texts = |key: &str| {
        let items = service.get(key).map(Node::items).unwrap_or_default();
        items.iter().filter_map(Node::as_str)
    };
    for link in texts("links") {
        let parts: Vec<&str> = link.split(':').collect();
        implied.push((if parts.len() == 2 { parts[0] } else { link }.to_owned(), true));
    }
    for namespace in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        let shared = service.get(namespace).and_then(Node::as_str);
        if let Some(other) = shared.and_then(|text| text.strip_prefix("service:")) {
            implied.push((other.to_owned(), true));
        }
    }
    for other in texts("volumes_from") {
        if !other.starts_with("container:") {
            implied.push((other.split(':').next().unwrap_or_default().to_owned(), false));
        }
    }
    if implied.is_empty() {
        return;
    }
    let mut depends_on = match service.remove("depends_on") {
        Some(Node { value: Value::Map(map), .. }) => map,
        _ => Map::new(),
    };
    for (name, restart) in implied {
        if depends_on.contains(&name) {
            continue;
        }
        let mut dependency = Map::new();
        dependency.insert("condition", Node::string("service_started", span));
        dependency.insert("restart", Node::new(Value::Bool(restart), span));
        dependency.insert("required", Node::new(Value::Bool(true), span));
        depends_on.insert(name, Node::new(Value::Map(dependency), span));
    }
    service.insert("depends_on", Node::new(Value::Map(depends_on), span));
}

/// A resource without a name is called `<project>_<key>`, or by its key when it is external.
fn resource_names(model: &mut Map, kind: &str, project: &str) {
    let Some(resources) = model.get_mut(kind).and_then(Node::as_map_mut) else { return };
    for (key, resource) in resources.iter_mut() {
        let span = resource.span.clone();
        if resource.as_map().is_none() {
            resource.value = Value::Map(Map::new());
        }
        let external = resource.get("external").and_then(Node::display);
        let is_external =
            matches!(external.as_deref(), Some("1" | "t" | "T" | "TRUE" | "true" | "True"));
        let name = if is_external { key.to_owned() } else { format!("{project}_{key}") };
        if let Some(map) = resource.as_map_mut()
            && map.get("name").is_none_or(Node::is_null)
        {
            map.insert("name", Node::string(name, &span));
        }
    }
}
