//! What concerns services as a whole: their kind, profiles, selection, and what only they use.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail};
use crate::load::no_such_service;
use crate::project::Project;
use crate::template::{self, Reading};
use crate::value::{Map, Node, Value};

/// Whether a service runs as a process of the host.
///
/// `x-keel.runtime` decides; without it, a service that has something to run but neither an image nor a build.
pub(crate) fn is_process(service: &Node) -> bool {
    match service.at(&["x-keel", "runtime"]).and_then(Node::as_str) {
        Some("process") => return true,
        Some("container") => return false,
        _ => {}
    }
    let has = |key: &str| service.get(key).is_some_and(|node| !node.is_null());
    let has_image = service.text("image").is_some_and(|image| !image.is_empty());
    !has_image && !has("build") && !has("provider") && (has("command") || has("entrypoint"))
}

/// Decides what deferred variables mean, now that the kind of each service is known.
pub(crate) fn settle(model: &mut Node) -> Outcome<()> {
    let services = model.as_map_mut().and_then(|map| map.get_mut("services"));
    let mut errors = Vec::new();
    for (_, service) in services.and_then(Node::as_map_mut).into_iter().flat_map(Map::iter_mut) {
        let reading = if is_process(service) { Reading::Instance } else { Reading::Compose };
        let Some(map) = service.as_map_mut() else { continue };
        for key in [
            "command",
            "entrypoint",
            "environment",
            "healthcheck",
            "pre_start",
            "post_start",
            "pre_stop",
        ] {
            if let Some(node) = map.get_mut(key) {
                settle_node(node, reading, &mut errors);
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn settle_node(node: &mut Node, reading: Reading, errors: &mut Vec<Diagnostic>) {
    match &mut node.value {
        Value::String(text) => match template::settle(text, reading) {
            None => {}
            Some(Ok(settled)) => *text = settled,
            Some(Err(message)) => {
                errors.push(Diagnostic::error(Code::Interpolation, message).at(&node.span));
            }
        },
        Value::Seq(items) => items.iter_mut().for_each(|item| settle_node(item, reading, errors)),
        Value::Map(map) => {
            map.iter_mut().for_each(|(_, child)| settle_node(child, reading, errors));
        }
        _ => {}
    }
}

fn profiles_of(service: &Node) -> impl Iterator<Item = &str> {
    service.get("profiles").map(Node::items).unwrap_or_default().iter().filter_map(Node::as_str)
}

/// Marks the services that no active profile selects.
pub(crate) fn apply_profiles(project: &mut Project) {
    let active: BTreeSet<&str> = project.profiles.iter().map(String::as_str).collect();
    let services = project.model.get("services").into_iter().flat_map(Node::entries);
    project.inactive = services
        .filter(|(_, service)| {
            let mut own = profiles_of(service).peekable();
            own.peek().is_some()
                && !active.contains("*")
                && !own.any(|profile| active.contains(profile))
        })
        .map(|(name, _)| name.to_owned())
        .collect();
}

/// Restricts the project to some services and what they depend on, and removes inactive ones.
pub(crate) fn select(project: &mut Project, names: &[String]) -> Outcome<()> {
    if !names.is_empty() {
        activate_named(project, names);
        let selected = closure(project, names)?;
        let all: Vec<String> = project.service_names().map(str::to_owned).collect();
        project.inactive.extend(all.into_iter().filter(|name| !selected.contains(name)));
    }
    if names.is_empty() {
        return Ok(());
    }
    let inactive = project.inactive.clone();
    let services = project.model.as_map_mut().and_then(|map| map.get_mut("services"));
    for (_, service) in services.and_then(Node::as_map_mut).into_iter().flat_map(Map::iter_mut) {
        let depends_on = service.as_map_mut().and_then(|map| map.get_mut("depends_on"));
        if let Some(depends_on) = depends_on.and_then(Node::as_map_mut) {
            depends_on.retain(|name, _| !inactive.contains(name));
        }
    }
    Ok(())
}

/// Naming an inactive service activates its profiles.
fn activate_named(project: &mut Project, names: &[String]) {
    let services = project.model.get("services");
    let further: Vec<String> = names
        .iter()
        .filter(|name| project.inactive.contains(*name))
        .filter_map(|name| services?.get(name))
        .flat_map(profiles_of)
        .map(str::to_owned)
        .collect();
    project.profiles.extend(further);
    apply_profiles(project);
}

/// The named services and everything that they depend on.
fn closure(project: &Project, names: &[String]) -> Outcome<BTreeSet<String>> {
    let known: BTreeSet<&str> = project.service_names().collect();
    let mut selected = BTreeSet::new();
    let mut waiting: Vec<(String, bool)> = names.iter().map(|name| (name.clone(), true)).collect();
    while let Some((name, required)) = waiting.pop() {
        if !known.contains(name.as_str()) {
            if required {
                return fail(no_such_service(&name, &known));
            }
            continue;
        }
        if !selected.insert(name.clone()) {
            continue;
        }
        let depends_on = project.service(&name).and_then(|service| service.get("depends_on"));
        for (other, dependency) in depends_on.into_iter().flat_map(Node::entries) {
            let required =
                dependency.get("required").and_then(Node::display).as_deref() != Some("false");
            waiting.push((other.to_owned(), required));
        }
    }
    Ok(selected)
}

/// Removes networks, volumes, secrets and configs that no active service uses.
pub(crate) fn drop_unused(project: &mut Project) {
    let mut used: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    let mut uses = |section: &'static str, name: Option<&str>| {
        used.entry(section).or_default().extend(name.map(str::to_owned));
    };
    for (_, service) in project.active_services() {
        for section in ["networks", "models"] {
            for (name, _) in service.get(section).into_iter().flat_map(Node::entries) {
                uses(section, Some(name));
            }
        }
        for volume in service.get("volumes").map(Node::items).unwrap_or_default() {
            if volume.text("type") == Some("volume") {
                uses("volumes", volume.text("source"));
            }
        }
        for section in ["secrets", "configs"] {
            for item in service.get(section).map(Node::items).unwrap_or_default() {
                uses(section, item.text("source"));
            }
        }
        for secret in crate::xkeel::secrets_of(service) {
            uses("secrets", Some(secret));
        }
        for item in service.at(&["build", "secrets"]).map(Node::items).unwrap_or_default() {
            uses("secrets", item.text("source"));
        }
    }
    let Some(model) = project.model.as_map_mut() else { return };
    for section in ["networks", "volumes", "secrets", "configs", "models"] {
        let names = used.get(section);
        if let Some(map) = model.get_mut(section).and_then(Node::as_map_mut) {
            map.retain(|name, _| names.is_some_and(|names| names.contains(name)));
        }
    }
}

/// Two services cannot have the same `container_name`.
pub(crate) fn check_container_names(project: &Project) -> Outcome<()> {
    let mut names: BTreeMap<&str, (&str, &Span)> = BTreeMap::new();
    for (service, node) in project.active_services() {
        let Some(name) = node.get("container_name") else { continue };
        let Some(text) = name.as_str().filter(|text| !text.is_empty()) else { continue };
        if let Some((other, place)) = names.insert(text, (service, &name.span)) {
            let message =
                format!("the container name `{text}` is used by `{other}` at {place} already");
            return fail(
                Diagnostic::error(Code::Conflict, message)
                    .at(&name.span)
                    .help("rename one of them"),
            );
        }
    }
    Ok(())
}
