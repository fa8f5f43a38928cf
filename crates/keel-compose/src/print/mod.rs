//! The canonical form in print: what `docker compose config` shows.
//!
//! [`fields`] lists the keys of every structure in Docker's order with their types; this module turns the merged
//! model into JSON values by that table, in one of two flavours, because Docker's JSON and YAML differ in details.
//! A value that does not fit its type is an error at its place; nothing is guessed.

mod fields;
mod natural;
mod scalars;

use std::collections::BTreeSet;

use serde_json::{Map as JsonMap, Value as Json};

use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::value::{Map, Node, Value};

pub(crate) use scalars::{
    bytes_of, command_of, duration_of, environment_of, file_mode, file_mode_text, hosts_of,
    number_of,
};

/// Which of Docker's two renderings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// Without `x-` keys below the top, with `null` for absent commands and empty structures.
    Json,
    /// With `x-` keys, without empty structures.
    Yaml,
}

/// The type of a value in Docker's model.
pub(crate) enum Kind {
    Text,
    Flag,
    Int,
    Uint,
    Float,
    Bytes,
    Duration,
    /// A list of strings; integers become strings.
    Texts,
    /// A string or a list of strings.
    TextOrList,
    /// Strings and numbers, as strings.
    Numbers,
    Command,
    /// Labels: values become strings, absent values blank.
    Labels,
    /// Variables: absent values stay absent.
    Environment,
    /// Options: any scalar as a string.
    Options,
    /// Options that may repeat.
    MultiOptions,
    /// A mapping of strings.
    TextMap,
    Hosts,
    FileMode,
    Ulimit,
    DeviceCount,
    Cpus,
    Ssh,
    EnvFile,
    HealthTest,
    List(&'static Kind),
    MapOf(&'static Kind),
    Struct(&'static [Field]),
}

/// One key of a structure.
pub(crate) struct Field {
    pub key: &'static str,
    pub kind: Kind,
    pub omit: Omit,
    /// The key in JSON, where Docker spells it differently.
    pub json: &'static str,
}

/// When a key is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Omit {
    /// When it is absent or has the zero value.
    Zero,
    /// When it is absent.
    Absent,
    /// Never; absence shows as the zero value.
    Never,
    /// Never in JSON, where absence shows as `null` or an empty structure; in YAML when it is absent.
    NeverInJson,
}

/// Prints the whole model: `name`, `services` without the inactive ones, and the sections that are not empty.
pub(crate) fn project(
    model: &Node,
    inactive: &BTreeSet<String>,
    flavor: Flavor,
) -> Outcome<JsonMap<String, Json>> {
    let mut out = JsonMap::new();
    let sections: &[(&str, &Kind)] = match flavor {
        Flavor::Json => &fields::SECTIONS[..5],
        Flavor::Yaml => &fields::SECTIONS,
    };
    out.insert("name".to_owned(), Json::from(model.text("name").unwrap_or_default()));
    for (key, kind) in sections {
        let mut printed = JsonMap::new();
        for (name, node) in model.get(key).into_iter().flat_map(Node::entries) {
            if *key != "services" || !inactive.contains(name) {
                printed.insert(name.to_owned(), resource(node, kind, flavor)?);
            }
        }
        if flavor == Flavor::Yaml {
            sort_naturally(&mut printed);
        }
        if *key == "services" || !printed.is_empty() {
            out.insert((*key).to_owned(), Json::Object(printed));
        }
    }
    for (key, node) in model.entries().filter(|(key, _)| key.starts_with("x-")) {
        out.insert(key.to_owned(), plain(node, flavor));
    }
    if flavor == Flavor::Json {
        out.sort_keys();
    }
    Ok(out)
}

/// Checks the types of the whole model; the first violation of each resource is reported.
pub(crate) fn check(model: &Node) -> Outcome<()> {
    let mut errors = Vec::new();
    for (key, kind) in &fields::SECTIONS {
        for (_, node) in model.get(key).into_iter().flat_map(Node::entries) {
            if let Err(found) = resource(node, kind, Flavor::Json) {
                errors.extend(found);
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Prints a service, network, volume, …; one without a definition is an empty one.
fn resource(node: &Node, kind: &Kind, flavor: Flavor) -> Outcome<Json> {
    if node.is_null() {
        let empty = Node::new(Value::Map(Map::new()), &node.span);
        return Ok(convert(&empty, kind, flavor)?.unwrap_or(Json::Null));
    }
    Ok(convert(node, kind, flavor)?.unwrap_or(Json::Null))
}

/// go-yaml's order of keys: letters before digits before other characters differs from the order of bytes.
fn sort_naturally(map: &mut JsonMap<String, Json>) {
    let mut entries: Vec<(String, Json)> = std::mem::take(map).into_iter().collect();
    entries.sort_by(|a, b| natural::compare(&a.0, &b.0));
    map.extend(entries);
}

/// Prints one service.
pub(crate) fn service(node: &Node, flavor: Flavor) -> Outcome<Json> {
    Ok(convert(node, &fields::SERVICE, flavor)?.unwrap_or(Json::Null))
}

/// Any value as it is, for `x-` keys and models without interpolation. An empty list is null in Docker's JSON.
pub(crate) fn plain(node: &Node, flavor: Flavor) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::from(*value),
        Value::Int(value) => Json::from(*value),
        Value::Uint(value) => Json::from(*value),
        Value::Float(value) => scalars::float(*value),
        Value::Time(text) | Value::String(text) => Json::from(text.as_str()),
        Value::Seq(items) if items.is_empty() && flavor == Flavor::Json => Json::Null,
        Value::Seq(items) => items.iter().map(|item| plain(item, flavor)).collect(),
        Value::Map(map) => {
            map.iter().map(|(key, node)| (key.to_owned(), plain(node, flavor))).collect()
        }
    }
}

/// `None` stands for an absent value.
fn convert(node: &Node, kind: &Kind, flavor: Flavor) -> Outcome<Option<Json>> {
    if node.is_null() {
        return Ok(None);
    }
    match kind {
        Kind::List(item) => list(node, item, flavor).map(Some),
        Kind::MapOf(value) => map_of(node, value, flavor).map(Some),
        Kind::Struct(fields) => structure(node, fields, flavor).map(Some),
        Kind::Ulimit => scalars::ulimit(node, flavor).map(Some),
        Kind::Ssh => scalars::ssh(node, flavor).map(Some),
        scalar => {
            let mut value = scalars::convert(node, scalar, flavor)?;
            if let (Flavor::Yaml, Json::Object(map)) = (flavor, &mut value) {
                sort_naturally(map);
            }
            Ok(Some(value))
        }
    }
}

fn list(node: &Node, item: &Kind, flavor: Flavor) -> Outcome<Json> {
    let Some(items) = node.as_seq() else { return wrong(node, "a list") };
    let mut out = Vec::with_capacity(items.len());
    for node in items {
        out.push(convert(node, item, flavor)?.unwrap_or(Json::Null));
    }
    Ok(Json::Array(out))
}

fn map_of(node: &Node, value: &Kind, flavor: Flavor) -> Outcome<Json> {
    let Some(map) = node.as_map() else { return wrong(node, "a mapping") };
    let mut out = JsonMap::new();
    for (key, node) in map.iter() {
        out.insert(key.to_owned(), convert(node, value, flavor)?.unwrap_or(Json::Null));
    }
    if flavor == Flavor::Yaml {
        sort_naturally(&mut out);
    }
    Ok(Json::Object(out))
}

fn structure(node: &Node, fields: &[Field], flavor: Flavor) -> Outcome<Json> {
    let Some(map) = node.as_map() else { return wrong(node, "a mapping") };
    let mut out = JsonMap::new();
    for field in fields {
        let value = match map.get(field.key) {
            Some(node) => convert(node, &field.kind, flavor)?,
            None => None,
        };
        let key = if flavor == Flavor::Json { field.json } else { field.key };
        let shown = match (field.omit, value) {
            (Omit::Zero, Some(value)) if is_zero(&value) || is_no_time(&field.kind, &value) => None,
            (Omit::Never, None | Some(Json::Null)) => Some(zero(&field.kind)),
            (Omit::NeverInJson, value) => in_json(node, field, value, flavor)?,
            (_, value) => value,
        };
        if let Some(value) = shown {
            out.insert(key.to_owned(), value);
        }
    }
    if flavor == Flavor::Yaml {
        for (key, node) in map.iter().filter(|(key, _)| key.starts_with("x-")) {
            out.insert(key.to_owned(), plain(node, flavor));
        }
    }
    Ok(Json::Object(out))
}

fn is_zero(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(map) => map.is_empty(),
    }
}

/// What a key that is never left out in JSON shows.
fn in_json(
    node: &Node,
    field: &Field,
    value: Option<Json>,
    flavor: Flavor,
) -> Outcome<Option<Json>> {
    Ok(match (flavor, &field.kind, value) {
        // An absent structure still shows the keys that are never left out.
        (Flavor::Json, Kind::Struct(inner), None) => {
            let empty = Node::new(Value::Map(Map::new()), &node.span);
            Some(structure(&empty, inner, flavor)?)
        }
        (Flavor::Json, _, None) => Some(Json::Null),
        (Flavor::Yaml, Kind::Struct(_), value) => value.filter(|value| !is_zero(value)),
        // An explicitly empty command is kept: it overrides the image's.
        (_, _, value) => value,
    })
}

/// The zero value of a scalar type.
fn zero(kind: &Kind) -> Json {
    match kind {
        Kind::Flag => Json::from(false),
        Kind::Int | Kind::Uint => Json::from(0),
        Kind::Bytes => Json::from("0"),
        _ => Json::from(""),
    }
}

fn is_no_time(kind: &Kind, value: &Json) -> bool {
    matches!(kind, Kind::Duration) && value == "0s"
}

fn wrong<T>(node: &Node, wanted: &str) -> Outcome<T> {
    let message = format!("this must be {wanted}, not {}", node.kind_name());
    fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span))
}
