//! The shape of a Compose file, and its check.
//!
//! [`shapes`] is the table (our own wording of the Compose Specification's schema); this module checks a merged
//! document against it. All violations are reported, each at its line and column, and an unknown key names its
//! nearest neighbour.

mod shapes;

use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::path::{ITEM, Path};
use crate::value::{Map, Node, Value};

#[cfg(test)]
pub(crate) use shapes::SERVICE;
pub(crate) use shapes::TOP;

/// At most this many violations are reported for one document.
const MAX_ERRORS: usize = 50;

/// A scalar type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Null,
    Bool,
    Integer,
    Number,
    String,
}

/// What a value may look like.
pub(crate) enum Shape {
    /// One of some scalar types.
    Scalar(&'static [Type]),
    /// An integer within bounds, or a string.
    Bounded(i64, i64),
    /// One of some words.
    Word(&'static [&'static str]),
    /// A string that passes a test, and what the test wants.
    Text(fn(&str) -> bool, &'static str),
    /// A mapping with known keys.
    Object(Object),
    /// A mapping with free keys.
    MapOf(MapOf),
    /// A list.
    List(&'static Shape, Unique),
    /// One of several shapes, told apart by the kind of value.
    Either(&'static [&'static Shape]),
}

/// A mapping with known keys.
pub(crate) struct Object {
    pub fields: &'static [(&'static str, &'static Shape)],
    pub required: &'static [&'static str],
    /// `x-…` keys are allowed.
    pub extensible: bool,
    /// Other keys are allowed.
    pub open: bool,
}

/// A mapping with free keys.
pub(crate) struct MapOf {
    pub key: fn(&str) -> bool,
    pub value: &'static Shape,
    /// Keys that do not pass are allowed, with any value.
    pub open: bool,
}

/// Whether the items of a list must differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unique {
    Yes,
    No,
}

/// Everything in a document that does not fit the schema, in the order of its places.
pub(crate) fn check(document: &Node) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    value(document, &TOP, &Path::ROOT, &mut errors);
    errors.sort_by(|a, b| a.span.cmp(&b.span));
    errors.truncate(MAX_ERRORS);
    errors
}

fn value(node: &Node, shape: &Shape, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    match shape {
        Shape::Scalar(types) => {
            if !types.iter().any(|kind| is_of(node, *kind)) {
                errors.push(wrong_type(node, shape, path));
            }
        }
        Shape::Bounded(low, high) => match node.value {
            Value::String(_) => {}
            Value::Int(number) if (*low..=*high).contains(&number) => {}
            _ => errors.push(wrong_type(node, shape, path)),
        },
        Shape::Word(words) => word(node, words, path, errors),
        Shape::Text(test, wanted) => match node.as_str() {
            Some(text) if test(text) => {}
            Some(text) => {
                let message = format!("`{path}` must be {wanted}, not `{text}`");
                errors.push(Diagnostic::error(Code::InvalidValue, message).at(&node.span));
            }
            None => errors.push(wrong_type(node, shape, path)),
        },
        Shape::Object(object) => match node.as_map() {
            Some(map) => fields(node, map, object, path, errors),
            None => errors.push(wrong_type(node, shape, path)),
        },
        Shape::MapOf(map_of) => match node.as_map() {
            Some(map) => entries(map, map_of, path, errors),
            None => errors.push(wrong_type(node, shape, path)),
        },
        Shape::List(item, unique) => match node.as_seq() {
            Some(items) => list(items, item, *unique, path, errors),
            None => errors.push(wrong_type(node, shape, path)),
        },
        Shape::Either(shapes) => match shapes.iter().find(|shape| same_kind(node, shape)) {
            Some(shape) => value(node, shape, path, errors),
            None => errors.push(wrong_type(node, shape, path)),
        },
    }
}

fn is_of(node: &Node, kind: Type) -> bool {
    match (&node.value, kind) {
        (Value::Null, Type::Null)
        | (Value::Bool(_), Type::Bool)
        | (Value::Int(_) | Value::Uint(_), Type::Integer | Type::Number)
        | (Value::Float(_), Type::Number)
        | (Value::String(_), Type::String) => true,
        (Value::Float(number), Type::Integer) => number.fract() == 0.0,
        _ => false,
    }
}

/// Whether a value is of the kind that a shape describes, so that this shape's errors are the helpful ones.
fn same_kind(node: &Node, shape: &Shape) -> bool {
    match shape {
        Shape::Scalar(types) => types.iter().any(|kind| is_of(node, *kind)),
        Shape::Bounded(..) => matches!(node.value, Value::Int(_) | Value::String(_)),
        Shape::Word(_) | Shape::Text(..) => node.as_str().is_some(),
        Shape::Object(_) | Shape::MapOf(_) => node.as_map().is_some(),
        Shape::List(..) => node.as_seq().is_some(),
        Shape::Either(shapes) => shapes.iter().any(|shape| same_kind(node, shape)),
    }
}

fn word(node: &Node, words: &[&'static str], path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    let Some(text) = node.as_str() else {
        let message =
            format!("`{path}` must be one of {}, not {}", list_of(words), node.kind_name());
        errors.push(Diagnostic::error(Code::InvalidValue, message).at(&node.span));
        return;
    };
    if words.contains(&text) {
        return;
    }
    let message = format!("`{path}` must be one of {}, not `{text}`", list_of(words));
    let error = Diagnostic::error(Code::InvalidValue, message).at(&node.span);
    errors.push(match nearest(text, words.iter().copied()) {
        Some(word) => error.help(format!("did you mean `{word}`?")),
        None => error,
    });
}

fn list_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn fields(node: &Node, map: &Map, object: &Object, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    for (key, child) in map.iter() {
        match object.fields.iter().find(|(name, _)| *name == key) {
            Some((_, shape)) => value(child, shape, &path.child(key), errors),
            None if object.open || (object.extensible && key.starts_with("x-")) => {}
            None => errors.push(unknown_key(map, key, object, path)),
        }
    }
    for required in object.required {
        if !map.contains(required) {
            let message = match path.to_string().as_str() {
                "" => format!("`{required}` is missing"),
                place => format!("`{place}` needs `{required}`"),
            };
            errors.push(Diagnostic::error(Code::MissingKey, message).at(&node.span));
        }
    }
}

fn unknown_key(map: &Map, key: &str, object: &Object, path: &Path<'_>) -> Diagnostic {
    let place = path.to_string();
    let message = if place.is_empty() {
        format!("`{key}` is not a key of a Compose file")
    } else {
        format!("`{place}` has no key `{key}`")
    };
    let mut error = Diagnostic::error(Code::UnknownKey, message);
    error.span = map.key_span(key).cloned();
    match nearest(key, object.fields.iter().map(|(name, _)| *name)) {
        Some(known) => error.help(format!("did you mean `{known}`?")),
        None if place.is_empty() && SERVICE_KEYS_AT_TOP.contains(&key) => {
            error.help("services stand under a top-level `services:` key")
        }
        None if object.extensible => error.help("keys of your own start with `x-`"),
        None => error,
    }
}

/// Keys that show that somebody wrote a service where the document begins.
const SERVICE_KEYS_AT_TOP: [&str; 4] = ["image", "build", "command", "ports"];

fn entries(map: &Map, map_of: &MapOf, path: &Path<'_>, errors: &mut Vec<Diagnostic>) {
    for (key, child) in map.iter() {
        if (map_of.key)(key) {
            value(child, map_of.value, &path.child(key), errors);
        } else if !map_of.open {
            let message = format!("`{key}` cannot be a key of `{path}`");
            let mut error = Diagnostic::error(Code::InvalidValue, message)
                .help("use letters, digits, `.`, `_` and `-`");
            error.span = map.key_span(key).cloned();
            errors.push(error);
        }
    }
}

fn list(
    items: &[Node],
    item: &Shape,
    unique: Unique,
    path: &Path<'_>,
    errors: &mut Vec<Diagnostic>,
) {
    for node in items {
        value(node, item, &path.child(ITEM), errors);
    }
    if unique == Unique::No {
        return;
    }
    let mut texts = std::collections::HashSet::new();
    for (at, node) in items.iter().enumerate() {
        let repeated = match &node.value {
            Value::String(text) => !texts.insert(text.as_str()),
            _ => items[..at].contains(node),
        };
        if repeated {
            let message = format!("`{path}` has this item twice");
            errors.push(
                Diagnostic::error(Code::InvalidValue, message).at(&node.span).help("remove one"),
            );
        }
    }
}

fn wrong_type(node: &Node, shape: &Shape, path: &Path<'_>) -> Diagnostic {
    let mut wanted = Vec::new();
    describe(shape, &mut wanted);
    wanted.dedup();
    if wanted.len() > 1 {
        wanted.retain(|kind| *kind != "null");
    }
    let duration = path.with_parts(is_duration);
    let list = match wanted.split_last() {
        _ if duration => "a duration".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "something else".to_owned(),
    };
    let place = path.to_string();
    let place = if place.is_empty() { "the file".to_owned() } else { format!("`{place}`") };
    let error = Diagnostic::error(
        Code::InvalidValue,
        format!("{place} must be {list}, not {}", node.kind_name()),
    )
    .at(&node.span);
    if duration {
        return error.help(match &node.value {
            Value::Int(seconds) if *seconds >= 0 => {
                format!("write a duration with its unit, such as `{seconds}s`")
            }
            _ => "write a duration, such as `2s` or `1m30s`".to_owned(),
        });
    }
    if !wanted.contains(&"a string") || node.is_null() {
        return error;
    }
    match (&node.value, node.display()) {
        // A date is no longer known as it was written.
        (Value::Time(_), _) => error.help("put it in quotes"),
        (_, Some(text)) => error.help(format!("put it in quotes: \"{text}\"")),
        _ => error,
    }
}

/// Whether a place wants a duration, which the schema knows only as a string.
fn is_duration(path: &[&str]) -> bool {
    let ["services", _, rest @ ..] = path else { return false };
    matches!(
        rest,
        ["stop_grace_period"]
            | ["healthcheck", "interval" | "timeout" | "start_period" | "start_interval"]
            | ["deploy", "update_config" | "rollback_config", "delay" | "monitor"]
            | ["deploy", "restart_policy", "delay" | "window"]
    )
}

fn describe(shape: &Shape, wanted: &mut Vec<&'static str>) {
    match shape {
        Shape::Scalar(types) => {
            for kind in *types {
                wanted.push(match kind {
                    Type::Null => "null",
                    Type::Bool => "true or false",
                    Type::Integer => "an integer",
                    Type::Number => "a number",
                    Type::String => "a string",
                });
            }
        }
        Shape::Bounded(0, i64::MAX) => wanted.push("an integer from 0"),
        Shape::Bounded(0, 100) => wanted.push("an integer from 0 to 100"),
        Shape::Bounded(..) => wanted.push("an integer from -1000 to 1000"),
        Shape::Word(_) | Shape::Text(..) => wanted.push("a string"),
        Shape::Object(_) | Shape::MapOf(_) => wanted.push("a mapping"),
        Shape::List(..) => wanted.push("a list"),
        Shape::Either(shapes) => shapes.iter().for_each(|shape| describe(shape, wanted)),
    }
}
