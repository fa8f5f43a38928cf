//! How a later file changes an earlier one, and how a service changes the one it extends.
//!
//! Mappings merge key by key, lists append, scalars replace. [`special`] is the table of places with a rule of
//! their own (compose-go's `mergeSpecials`).

use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::path::Path;
use crate::value::{Map, Node, Value};

/// A place's own rule.
#[derive(Clone, Copy)]
enum Rule {
    /// The later value, whatever it is.
    Replace,
    /// Both as lists of `KEY=VALUE`, one after the other.
    Sequence,
    /// A string is the build context.
    Build,
    /// A list is a mapping with default conditions.
    DependsOn,
    /// A list is a mapping without values.
    Names,
    /// As `Sequence`, without repeating entries.
    ExtraHosts,
    /// Options merge only when the driver stays the same.
    Logging,
    /// Pools are told apart by their subnet.
    IpamConfig,
}

fn special(path: &[&str]) -> Option<Rule> {
    Some(match path {
        ["services", _, "command" | "entrypoint"]
        | ["services", _, "healthcheck", "test"]
        | ["services", _, "ulimits", _] => Rule::Replace,
        ["networks", _, "ipam", "config"] => Rule::IpamConfig,
        ["networks" | "volumes", _, "labels"]
        | [
            "services",
            _,
            "annotations" | "dns" | "dns_opt" | "dns_search" | "env_file" | "environment"
            | "label_file" | "labels" | "sysctls" | "tmpfs",
        ]
        | ["services", _, "build", "args" | "additional_contexts" | "labels"]
        | ["services", _, "deploy", "labels"]
        | ["services", _, "volumes", _, "volume", "labels"] => Rule::Sequence,
        ["services", _, "build"] => Rule::Build,
        ["services", _, "build", "extra_hosts"] | ["services", _, "extra_hosts"] => {
            Rule::ExtraHosts
        }
        ["services", _, "depends_on"] => Rule::DependsOn,
        ["services", _, "logging"] => Rule::Logging,
        ["services", _, "models" | "networks"] => Rule::Names,
        _ => return None,
    })
}

/// Merges a later document into an earlier one.
pub(crate) fn merge(base: Node, over: Node) -> Outcome<Node> {
    node(base, over, &Path::ROOT)
}

/// Merges a service into the one that it extends.
pub(crate) fn extend_service(base: Node, over: Node) -> Outcome<Node> {
    let services = Path::ROOT.child("services");
    node(base, over, &services.child("x"))
}

fn node(base: Node, over: Node, path: &Path<'_>) -> Outcome<Node> {
    if let Some(rule) = path.with_parts(special) {
        return apply(rule, base, over, path);
    }
    if over.is_null() {
        return Ok(base);
    }
    match (base.value, over.value) {
        (Value::Map(map), Value::Map(other)) => Ok(Node {
            value: Value::Map(mappings(map, other, path)?),
            span: over.span,
            tag: over.tag,
            inset: None,
        }),
        (Value::Seq(mut items), Value::Seq(other)) => {
            items.extend(other);
            Ok(Node { value: Value::Seq(items), span: over.span, tag: over.tag, inset: None })
        }
        (value @ (Value::Map(_) | Value::Seq(_)), other) => {
            let base = Node { value, span: base.span, tag: base.tag, inset: base.inset };
            let over = Node { value: other, span: over.span, tag: over.tag, inset: over.inset };
            fail(cannot_override(&base, &over, path))
        }
        (_, value) => Ok(Node { value, span: over.span, tag: over.tag, inset: over.inset }),
    }
}

fn cannot_override(base: &Node, over: &Node, path: &Path<'_>) -> Diagnostic {
    let message = format!(
        "`{path}` is {} at {}; {} cannot override it",
        base.kind_name(),
        base.span,
        over.kind_name()
    );
    Diagnostic::error(Code::Conflict, message)
        .at(&over.span)
        .help("write it in the same form, or mark it `!override` to replace it")
}

fn mappings(mut base: Map, over: Map, path: &Path<'_>) -> Outcome<Map> {
    for (key, span, value) in over {
        let merged = match base.remove(&key) {
            None => value,
            Some(existing) => node(existing, value, &path.child(&key))?,
        };
        base.insert_at(key, span, merged);
    }
    Ok(base)
}

fn apply(rule: Rule, base: Node, over: Node, path: &Path<'_>) -> Outcome<Node> {
    let span = if over.is_null() { base.span.clone() } else { over.span.clone() };
    let value = match rule {
        Rule::Replace => return Ok(over),
        Rule::Sequence => {
            let mut items = to_sequence(base);
            items.extend(to_sequence(over));
            Value::Seq(items)
        }
        Rule::ExtraHosts => {
            let mut items = to_sequence(base);
            for item in to_sequence(over) {
                if !items.contains(&item) {
                    items.push(item);
                }
            }
            Value::Seq(items)
        }
        Rule::Build => Value::Map(mappings(to_build(base), to_build(over), path)?),
        Rule::DependsOn => Value::Map(mappings(to_names(base, true), to_names(over, true), path)?),
        Rule::Names => Value::Map(mappings(to_names(base, false), to_names(over, false), path)?),
        Rule::Logging => return logging(base, over, path),
        Rule::IpamConfig => ipam_config(base, over, path)?,
    };
    Ok(Node::new(value, &span))
}

/// A mapping as sorted `KEY=VALUE` strings; a string as a list of one.
fn to_sequence(node: Node) -> Vec<Node> {
    match node.value {
        Value::Seq(items) => items,
        Value::String(_) => vec![node],
        Value::Map(map) => {
            let mut items: Vec<Node> = Vec::new();
            for (key, _, value) in map {
                match value.value {
                    Value::Null => items.push(Node::string(key, &value.span)),
                    Value::Seq(values) => items.extend(values.into_iter().map(|item| {
                        let text = item.display().unwrap_or_default();
                        Node::string(format!("{key}={text}"), &item.span)
                    })),
                    _ => {
                        let text = value.display().unwrap_or_default();
                        items.push(Node::string(format!("{key}={text}"), &value.span));
                    }
                }
            }
            items.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
            items
        }
        _ => Vec::new(),
    }
}

fn to_build(node: Node) -> Map {
    let span = node.span.clone();
    match node.value {
        Value::Map(map) => map,
        Value::String(context) => {
            let mut map = Map::new();
            map.insert("context", Node::string(context, &span));
            map
        }
        _ => Map::new(),
    }
}

fn to_names(node: Node, dependency: bool) -> Map {
    match node.value {
        Value::Map(map) => map,
        Value::Seq(items) => {
            let mut map = Map::new();
            for item in items {
                let value = if dependency { started(&item.span) } else { Node::null(&item.span) };
                if let Value::String(name) = item.value {
                    map.insert(name, value);
                }
            }
            map
        }
        _ => Map::new(),
    }
}

/// What `depends_on: [name]` means.
pub(crate) fn started(span: &crate::diagnostic::Span) -> Node {
    let mut map = Map::new();
    map.insert("condition", Node::string("service_started", span));
    map.insert("required", Node::new(Value::Bool(true), span));
    Node::new(Value::Map(map), span)
}

fn logging(base: Node, over: Node, path: &Path<'_>) -> Outcome<Node> {
    let same_driver = match (base.get("driver"), over.get("driver")) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    let span = over.span.clone();
    match (base.value, over.value) {
        (Value::Map(map), Value::Map(other)) if same_driver => {
            Ok(Node::new(Value::Map(mappings(map, other, path)?), &span))
        }
        (value, Value::Null) => Ok(Node::new(value, &base.span)),
        (_, value) => Ok(Node::new(value, &span)),
    }
}

/// Pools with the same subnet merge; others are added.
fn ipam_config(base: Node, over: Node, path: &Path<'_>) -> Outcome<Value> {
    let (base_span, over_span) = (base.span.clone(), over.span.clone());
    let (Value::Seq(pools), Value::Seq(changes)) = (base.value, over.value) else {
        let message = format!("`{path}` must be a list");
        return fail(
            Diagnostic::error(Code::InvalidValue, message)
                .at(&over_span)
                .help(format!("compare with {base_span}")),
        );
    };
    let mut result: Vec<Node> = Vec::new();
    for pool in pools {
        let mut current = to_names(pool.clone(), false);
        for change in &changes {
            let change_map = to_names(change.clone(), false);
            let known = |subnet: Option<&Node>, result: &[Node]| {
                result.iter().position(|pool| pool.get("subnet") == subnet)
            };
            if change_map.get("subnet") != current.get("subnet")
                && known(change_map.get("subnet"), &result).is_none()
            {
                result.push(Node::new(Value::Map(change_map), &change.span));
                continue;
            }
            current = mappings(current, change_map, path)?;
            let merged = Node::new(Value::Map(current.clone()), &change.span);
            match known(merged.get("subnet"), &result) {
                Some(at) => result[at] = merged,
                None => result.push(merged),
            }
        }
    }
    Ok(Value::Seq(result))
}
