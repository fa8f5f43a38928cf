//! Long forms and default values.
//!
//! [`canonicalize`] turns every short form into its long form after each file; [`set_defaults`] fills in what the
//! model leaves unsaid once all files of a project (or of an include) are merged.

use crate::diagnostic::{Code, Diagnostic, Outcome, Severity, fail};
use crate::merge::started;
use crate::path::{ITEM, Path};
use crate::short::{self, Volume};
use crate::value::{Map, Node, Value};

#[derive(Clone, Copy)]
enum Form {
    /// A string is the build context.
    Build,
    /// Anything becomes text.
    Text,
    /// `KEY=VALUE` strings become a mapping.
    KeyValue,
    DependsOn,
    EnvFile,
    /// A string becomes a list of one.
    StringOrList,
    Extends,
    Gpus,
    /// A list of names becomes a mapping without values.
    Names,
    Volume,
    Device,
    /// A name becomes `{source: name}`.
    FileMount,
    Ports,
    Ssh,
    /// The old `external: {name: …}`.
    External,
    Include,
}

fn form_for(path: &[&str]) -> Option<Form> {
    Some(match path {
        ["services", _, rest @ ..] => match rest {
            ["build"] => Form::Build,
            ["build", "provenance" | "sbom"] => Form::Text,
            ["build", "additional_contexts"] => Form::KeyValue,
            ["build", "ssh"] => Form::Ssh,
            ["build", "secrets", ITEM] | ["secrets" | "configs", ITEM] => Form::FileMount,
            ["depends_on"] => Form::DependsOn,
            ["env_file"] => Form::EnvFile,
            ["label_file" | "dns"] | ["develop", "watch", ITEM, "ignore" | "include"] => {
                Form::StringOrList
            }
            ["extends"] => Form::Extends,
            ["gpus"] => Form::Gpus,
            ["networks" | "models"] => Form::Names,
            ["volumes", ITEM] => Form::Volume,
            ["devices", ITEM] => Form::Device,
            ["ports"] => Form::Ports,
            _ => return None,
        },
        ["volumes" | "networks" | "secrets" | "configs", _] => Form::External,
        ["include", ITEM] => Form::Include,
        _ => return None,
    })
}

/// How strict the short forms are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// A short form that cannot be read is an error.
    Strict,
    /// It is left as it is: without interpolation it may contain variables.
    Lenient,
}

/// Brings a document into long form; deprecations are added to `notes`.
pub(crate) fn canonicalize(
    document: &mut Node,
    strictness: Strictness,
    notes: &mut Vec<Diagnostic>,
) -> Outcome<()> {
    walk(document, &Path::ROOT, strictness, notes)?;
    drop_empty_dns(document);
    Ok(())
}

fn walk(
    node: &mut Node,
    path: &Path<'_>,
    strictness: Strictness,
    notes: &mut Vec<Diagnostic>,
) -> Outcome<()> {
    if let Some(form) = path.with_parts(form_for)
        && !apply(node, form, path, strictness, notes)?
    {
        return Ok(());
    }
    match &mut node.value {
        Value::Map(map) => {
            for (key, child) in map.iter_mut() {
                walk(child, &path.child(key), strictness, notes)?;
            }
        }
        Value::Seq(items) => {
            for item in items {
                walk(item, &path.child(ITEM), strictness, notes)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Rewrites one value; `true` when its children have forms of their own.
fn apply(
    node: &mut Node,
    form: Form,
    path: &Path<'_>,
    strictness: Strictness,
    notes: &mut Vec<Diagnostic>,
) -> Outcome<bool> {
    let span = node.span.clone();
    let wrong = |node: &Node, wanted: &str| {
        let message = format!("`{path}` must be {wanted}, not {}", node.kind_name());
        fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span))
    };
    let lenient = strictness == Strictness::Lenient;
    let new_value = match (form, &node.value) {
        (Form::Build, Value::Map(_)) => return Ok(true),
        (Form::Build, Value::String(text)) => single("context", text, node),
        (Form::Build, _) => return wrong(node, "a path or a mapping"),
        (Form::Text, Value::String(_)) => return Ok(false),
        (Form::Text, _) => Value::String(node.display().unwrap_or_default()),
        (Form::KeyValue, Value::Seq(items)) => match key_values(items, path) {
            Ok(value) => value,
            Err(_) if lenient => return Ok(false),
            Err(errors) => return Err(errors),
        },
        (Form::DependsOn, Value::Map(_)) => return depends_on(node, path).map(|()| false),
        (Form::DependsOn, Value::Seq(items)) => named(items, started),
        (Form::DependsOn, _) => return wrong(node, "a list or a mapping"),
        (Form::EnvFile, Value::String(_)) => Value::Seq(vec![env_file(node.clone())]),
        (Form::EnvFile, Value::Seq(items)) => {
            Value::Seq(items.iter().cloned().map(env_file).collect())
        }
        (Form::EnvFile, _) => return wrong(node, "a path or a list"),
        (Form::StringOrList, Value::String(_)) => Value::Seq(vec![node.clone()]),
        (Form::Extends, Value::String(text)) => single("service", text, node),
        (Form::Gpus, Value::String(_)) => {
            let mut all = Map::new();
            all.insert("count", Node::string("all", &span));
            Value::Seq(vec![Node::new(Value::Map(all), &span)])
        }
        (Form::Names, Value::Seq(items)) => named(items, Node::null),
        (Form::Volume, Value::String(text)) => match Volume::parse(text) {
            Ok(volume) => volume.into_node(&span).value,
            Err(_) if lenient => return Ok(false),
            Err(message) => return fail(Diagnostic::error(Code::InvalidValue, message).at(&span)),
        },
        (Form::Device, Value::String(text)) => match short::device(text, &span) {
            Ok(device) => device.value,
            Err(_) if lenient => return Ok(false),
            Err(message) => return fail(Diagnostic::error(Code::InvalidValue, message).at(&span)),
        },
        (Form::FileMount, Value::String(text)) => single("source", text, node),
        (Form::Ports, Value::Seq(items)) => match ports(items) {
            Ok(value) => value,
            Err(_) if lenient => return Ok(false),
            Err(errors) => return Err(errors),
        },
        (Form::Ports, _) => return wrong(node, "a list"),
        (Form::Ssh, Value::Seq(items)) => ssh(items)?,
        (Form::External, Value::Map(_)) => return external(node, path, notes).map(|()| false),
        (Form::Include, Value::String(text)) => single("path", text, node),
        _ => return Ok(false),
    };
    node.value = new_value;
    Ok(false)
}

fn single(key: &str, text: &str, node: &Node) -> Value {
    let mut map = Map::new();
    map.insert(key, Node::string(text, &node.span));
    Value::Map(map)
}

fn named(items: &[Node], value: impl Fn(&crate::diagnostic::Span) -> Node) -> Value {
    let mut map = Map::new();
    for item in items {
        if let Some(name) = item.as_str() {
            map.insert(name, value(&item.span));
        }
    }
    Value::Map(map)
}

fn key_values(items: &[Node], path: &Path<'_>) -> Outcome<Value> {
    let mut map = Map::new();
    for item in items {
        let Some((key, value)) = item.as_str().and_then(|text| text.split_once('=')) else {
            let message = format!("items of `{path}` must have the form KEY=VALUE");
            return fail(Diagnostic::error(Code::InvalidValue, message).at(&item.span));
        };
        map.insert(key, Node::string(value, &item.span));
    }
    Ok(Value::Map(map))
}

fn depends_on(node: &mut Node, path: &Path<'_>) -> Outcome<()> {
    for (name, dependency) in node.as_map_mut().into_iter().flat_map(Map::iter_mut) {
        let span = dependency.span.clone();
        let Some(map) = dependency.as_map_mut() else {
            let message = format!("`{path}.{name}` must be a mapping with a `condition`");
            return fail(Diagnostic::error(Code::InvalidValue, message).at(&span));
        };
        if !map.contains("condition") {
            map.insert("condition", Node::string("service_started", &span));
        }
        if !map.contains("required") {
            map.insert("required", Node::new(Value::Bool(true), &span));
        }
    }
    Ok(())
}

fn env_file(item: Node) -> Node {
    let span = item.span.clone();
    let mut map = match item.value {
        Value::String(path) => {
            let mut map = Map::new();
            map.insert("path", Node::string(path, &span));
            map
        }
        Value::Map(map) => map,
        _ => Map::new(),
    };
    if !map.contains("required") {
        map.insert("required", Node::new(Value::Bool(true), &span));
    }
    Node::new(Value::Map(map), &span)
}

fn ports(items: &[Node]) -> Outcome<Value> {
    let mut result = Vec::with_capacity(items.len());
    for item in items {
        match &item.value {
            Value::Map(_) => result.push(item.clone()),
            Value::String(_) | Value::Int(_) => {
                let text = item.display().unwrap_or_default();
                match short::ports(&text, &item.span) {
                    Ok(nodes) => result.extend(nodes),
                    Err(message) => {
                        return fail(
                            Diagnostic::error(Code::InvalidValue, message)
                                .at(&item.span)
                                .help("write [[IP:]PUBLISHED:]TARGET[/PROTOCOL], in quotes"),
                        );
                    }
                }
            }
            _ => {
                let message = format!(
                    "a port must be a number, a string or a mapping, not {}",
                    item.kind_name()
                );
                return fail(Diagnostic::error(Code::InvalidValue, message).at(&item.span));
            }
        }
    }
    Ok(Value::Seq(result))
}

fn ssh(items: &[Node]) -> Outcome<Value> {
    let mut map = Map::new();
    for item in items {
        let text = item.as_str().unwrap_or_default();
        match text.split_once('=') {
            Some((id, path)) => map.insert(id, Node::string(path, &item.span)),
            None if text == "default" => map.insert(text, Node::null(&item.span)),
            None => {
                let message = format!("`{text}` is not an SSH key");
                return fail(
                    Diagnostic::error(Code::InvalidValue, message)
                        .at(&item.span)
                        .help("write `default` or ID=PATH"),
                );
            }
        }
    }
    Ok(Value::Map(map))
}

fn external(node: &mut Node, path: &Path<'_>, notes: &mut Vec<Diagnostic>) -> Outcome<()> {
    let Some(map) = node.as_map_mut() else { return Ok(()) };
    let Some(external) = map.get("external").filter(|value| value.as_map().is_some()) else {
        return Ok(());
    };
    let external = external.clone();
    map.insert("external", Node::new(Value::Bool(true), &external.span));
    let Some(name) = external.get("name") else { return Ok(()) };
    notes.push(Diagnostic {
        severity: Severity::Warning,
        ..Diagnostic::error(Code::Deprecated, format!("`{path}.external.name` is the old spelling"))
            .at(&name.span)
            .help("write `external: true` and `name:` beside it")
    });
    match map.get("name") {
        Some(own) if own != name => fail(
            Diagnostic::error(Code::Conflict, format!("`{path}` has two different names"))
                .at(&name.span)
                .help("keep `name` only"),
        ),
        Some(_) => Ok(()),
        None => {
            map.insert("name", name.clone());
            Ok(())
        }
    }
}

/// Empty entries of `dns` are what is left of unset variables; they are dropped.
fn drop_empty_dns(document: &mut Node) {
    let services = document.as_map_mut().and_then(|map| map.get_mut("services"));
    let Some(services) = services.and_then(Node::as_map_mut) else { return };
    for (_, service) in services.iter_mut() {
        let dns = service.as_map_mut().and_then(|map| map.get_mut("dns"));
        if let Some(Node { value: Value::Seq(items), .. }) = dns {
            items.retain(|item| !item.is_null() && item.as_str() != Some(""));
        }
    }
}

/// Fills in default values of build, secrets, ports and devices.
pub(crate) fn set_defaults(document: &mut Node) {
    defaults(document, &Path::ROOT);
}

fn defaults(node: &mut Node, path: &Path<'_>) {
    let span = node.span.clone();
    let text = |text: &str| Node::string(text, &span);
    let handled = path.with_parts(|parts| match parts {
        ["services", _, "build"] => {
            add(node, "context", || text("."));
            true
        }
        ["services", _, "secrets", _] => {
            let source = node.get("source").and_then(Node::display).unwrap_or_default();
            add(node, "target", || text(&format!("/run/secrets/{source}")));
            true
        }
        ["services", _, "ports", _] => {
            add(node, "protocol", || text("tcp"));
            add(node, "mode", || text("ingress"));
            true
        }
        ["services", _, "deploy", "resources", "reservations", "devices", _]
        | ["services", _, "gpus", _] => {
            if node.get("device_ids").is_none() {
                add(node, "count", || text("all"));
            }
            true
        }
        _ => false,
    });
    if handled {
        return;
    }
    match &mut node.value {
        Value::Map(map) => {
            for (key, child) in map.iter_mut() {
                defaults(child, &path.child(key));
            }
        }
        Value::Seq(items) => {
            for item in items {
                defaults(item, &path.child(ITEM));
            }
        }
        _ => {}
    }
}

/// Sets a key that a mapping does not have.
fn add(node: &mut Node, key: &str, value: impl FnOnce() -> Node) {
    if let Some(map) = node.as_map_mut()
        && !map.contains(key)
    {
        map.insert(key, value());
    }
}
