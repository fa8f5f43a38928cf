//! Values of Docker's scalar and list types, from whatever form the file uses.

use std::collections::BTreeMap;

use serde_json::{Map as JsonMap, Value as Json};

use super::{Flavor, Kind, wrong};
use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::interpolate::boolean;
use crate::number::{
    parse_decimal, parse_duration, parse_float, parse_size, print_duration, through_f32,
};
use crate::shellwords;
use crate::value::{Node, Value};

pub(super) fn convert(node: &Node, kind: &Kind, flavor: Flavor) -> Outcome<Json> {
    match kind {
        Kind::Text => text(node).map(Json::from),
        Kind::Flag => flag(node).map(Json::from),
        Kind::Int => integer(node).map(Json::from),
        Kind::Uint => match integer(node)? {
            number if number >= 0 => Ok(Json::from(number)),
            _ => wrong(node, "an integer from 0"),
        },
        Kind::Float | Kind::Cpus => number_of(node).map(|number| float(through_f32(number))),
        Kind::Bytes => bytes_of(node).map(|bytes| match bytes {
            0 => Json::Null,
            bytes => Json::from(bytes.to_string()),
        }),
        Kind::Duration => duration_of(node).map(|nanos| Json::from(print_duration(nanos))),
        Kind::Texts | Kind::TextOrList | Kind::Numbers => texts(node, kind),
        Kind::Command => command_of(node).map(Json::from),
        Kind::HealthTest => health_test(node),
        Kind::Labels => labels(node),
        Kind::Environment => environment_of(node).map(|variables| {
            variables
                .into_iter()
                .map(|(key, value)| (key, value.map_or(Json::Null, Json::from)))
                .collect()
        }),
        Kind::Options => options(node),
        Kind::MultiOptions => multi_options(node),
        Kind::TextMap => {
            let Some(map) = node.as_map() else { return wrong(node, "a mapping") };
            map.iter().map(|(key, value)| Ok((key.to_owned(), Json::from(text(value)?)))).collect()
        }
        Kind::Hosts => hosts_of(node).map(Json::from),
        Kind::FileMode => file_mode(node).map(|mode| {
            let sign = if mode < 0 { "-" } else { "" };
            Json::from(format!("0{sign}{:o}", mode.unsigned_abs()))
        }),
        Kind::DeviceCount => device_count(node),
        Kind::EnvFile => env_file(node),
        Kind::Ssh | Kind::Ulimit | Kind::List(_) | Kind::MapOf(_) | Kind::Struct(_) => {
            Ok(super::plain(node, flavor))
        }
    }
}

/// A float as JSON prints it in Go: whole numbers without a point.
pub(super) fn float(number: f64) -> Json {
    #[allow(clippy::cast_possible_truncation)] // Guarded by the comparison.
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return Json::from(number as i64);
    }
    Json::from(number)
}

fn text(node: &Node) -> Outcome<String> {
    match &node.value {
        Value::String(text) => Ok(text.clone()),
        Value::Int(number) => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        _ => wrong(node, "a string"),
    }
}

fn flag(node: &Node) -> Outcome<bool> {
    let value = match &node.value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => boolean(text),
        _ => None,
    };
    value.map_or_else(|| wrong(node, "true or false"), Ok)
}

fn integer(node: &Node) -> Outcome<i64> {
    let value = match &node.value {
        Value::Int(number) => Some(*number),
        #[allow(clippy::cast_possible_truncation)] // As Docker converts.
        Value::Float(number) => Some(*number as i64),
        Value::String(text) => parse_decimal(text),
        _ => None,
    };
    value.map_or_else(|| wrong(node, "an integer"), Ok)
}

/// A number, also in a string.
pub(crate) fn number_of(node: &Node) -> Outcome<f64> {
    let value = match &node.value {
        #[allow(clippy::cast_precision_loss)] // As Docker converts.
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => parse_float(text),
        _ => None,
    };
    value.map_or_else(|| wrong(node, "a number"), Ok)
}

/// A size in bytes. A float counts as absent, as Docker has it.
pub(crate) fn bytes_of(node: &Node) -> Outcome<i64> {
    match &node.value {
        Value::Int(number) => Ok(*number),
        Value::String(text) => parse_size(text)
            .or_else(|message| fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span))),
        _ => Ok(0),
    }
}

/// A duration in nanoseconds.
pub(crate) fn duration_of(node: &Node) -> Outcome<i64> {
    let text = node.display().unwrap_or_default();
    parse_duration(&text).map_or_else(
        || {
            let message = format!("`{text}` is not a duration");
            fail(
                Diagnostic::error(Code::InvalidValue, message)
                    .at(&node.span)
                    .help("write for example `10s`, `1m30s` or `500ms`"),
            )
        },
        Ok,
    )
}

fn texts(node: &Node, kind: &Kind) -> Outcome<Json> {
    let items = match (&node.value, kind) {
        (Value::String(_), Kind::TextOrList | Kind::Numbers) => std::slice::from_ref(node),
        (Value::Seq(items), _) => items,
        _ => return wrong(node, "a list of strings"),
    };
    items
        .iter()
        .map(|item| match (kind, &item.value) {
            (Kind::Numbers, _) => Ok(Json::from(item.display().unwrap_or_default())),
            (Kind::TextOrList, Value::String(text)) => Ok(Json::from(text.as_str())),
            (Kind::TextOrList, _) => wrong(item, "a string"),
            _ => text(item).map(Json::from),
        })
        .collect()
}

/// A command as a list of words; a string is split as a shell would.
pub(crate) fn command_of(node: &Node) -> Outcome<Vec<String>> {
    match &node.value {
        Value::String(line) => shellwords::split(line).or_else(|message| {
            fail(
                Diagnostic::error(
                    Code::InvalidValue,
                    format!("cannot split `{line}` into words: {message}"),
                )
                .at(&node.span)
                .help("close the quotes, or write a list"),
            )
        }),
        Value::Seq(items) => items.iter().map(text).collect(),
        _ => wrong(node, "a string or a list of strings"),
    }
}

fn health_test(node: &Node) -> Outcome<Json> {
    match &node.value {
        Value::String(line) => Ok(Json::from(vec!["CMD-SHELL", line])),
        Value::Seq(items) => items
            .iter()
            .map(|item| text(item).map(Json::from))
            .collect::<Outcome<Vec<_>>>()
            .map(Json::Array),
        _ => wrong(node, "a string or a list of strings"),
    }
}

/// `KEY=VALUE` items or a mapping, with absent values as `None`.
fn pairs(node: &Node) -> Outcome<Vec<(String, Option<String>)>> {
    match &node.value {
        Value::Map(map) => {
            Ok(map.iter().map(|(key, value)| (key.to_owned(), present(value))).collect())
        }
        Value::Seq(items) => Ok(items
            .iter()
            .map(|item| {
                let text = item.display().unwrap_or_default();
                match text.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (text, None),
                }
            })
            .collect()),
        _ => wrong(node, "a mapping or a list of KEY=VALUE"),
    }
}

fn present(node: &Node) -> Option<String> {
    if node.is_null() { None } else { node.display() }
}

fn labels(node: &Node) -> Outcome<Json> {
    let sorted: BTreeMap<_, _> = pairs(node)?.into_iter().collect();
    Ok(sorted
        .into_iter()
        .map(|(key, value)| (key, Json::from(value.unwrap_or_default())))
        .collect())
}

/// Variables; `None` for those that have only a name.
pub(crate) fn environment_of(node: &Node) -> Outcome<BTreeMap<String, Option<String>>> {
    let pairs = pairs(node)?;
    if node.as_seq().is_some()
        && let Some((key, _)) = pairs.iter().find(|(key, _)| key.ends_with(char::is_whitespace))
    {
        let message = format!("the variable `{key}` has white space before its `=`");
        return fail(
            Diagnostic::error(Code::InvalidValue, message).at(&node.span).help("remove it"),
        );
    }
    Ok(pairs.into_iter().collect())
}

fn options(node: &Node) -> Outcome<Json> {
    let Some(map) = node.as_map() else { return wrong(node, "a mapping") };
    Ok(map
        .iter()
        .map(|(key, value)| (key.to_owned(), Json::from(present(value).unwrap_or_default())))
        .collect())
}

fn multi_options(node: &Node) -> Outcome<Json> {
    let Some(map) = node.as_map() else { return wrong(node, "a mapping") };
    Ok(map
        .iter()
        .map(|(key, value)| {
            let items = value.as_seq().unwrap_or(std::slice::from_ref(value));
            let texts: Vec<String> = items.iter().filter_map(Node::display).collect();
            (key.to_owned(), Json::from(texts))
        })
        .collect())
}

/// Extra hosts as sorted `HOST=ADDRESS` lines.
pub(crate) fn hosts_of(node: &Node) -> Outcome<Vec<String>> {
    let mut list: Vec<(String, String)> = Vec::new();
    match &node.value {
        Value::Map(map) => {
            for (host, addresses) in map.iter() {
                let items = addresses.as_seq().unwrap_or(std::slice::from_ref(addresses));
                for item in items {
                    list.push((host.to_owned(), present(item).unwrap_or_default()));
                }
            }
        }
        Value::Seq(items) => {
            for item in items {
                let text = item.display().unwrap_or_default();
                let Some((host, addresses)) = text.split_once('=').or_else(|| text.split_once(':'))
                else {
                    let message = format!("`{text}` names no address");
                    return fail(
                        Diagnostic::error(Code::InvalidValue, message)
                            .at(&item.span)
                            .help("write HOST=ADDRESS"),
                    );
                };
                list.extend(
                    addresses.split(',').map(|address| (host.to_owned(), address.to_owned())),
                );
            }
        }
        _ => return wrong(node, "a mapping or a list of HOST=ADDRESS"),
    }
    if let Some((host, _)) =
        list.iter().find(|(host, _)| host.is_empty() || host.contains([':', '=']))
    {
        let message = format!("`{host}` is not a host name");
        return fail(Diagnostic::error(Code::InvalidValue, message).at(&node.span));
    }
    let mut lines: Vec<String> = list
        .into_iter()
        .map(|(host, address)| {
            let bare = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            let address = bare.filter(|text| !text.is_empty()).unwrap_or(&address);
            format!("{host}={address}")
        })
        .collect();
    lines.sort();
    Ok(lines)
}

/// Permission bits: a string is octal, an integer is what it is.
pub(crate) fn file_mode(node: &Node) -> Outcome<i64> {
    match &node.value {
        Value::Int(mode) => Ok(*mode),
        Value::String(text) => file_mode_text(text).map_or_else(
            || {
                let message = format!("`{text}` is not an octal file mode");
                fail(
                    Diagnostic::error(Code::InvalidValue, message)
                        .at(&node.span)
                        .help("write for example 0440"),
                )
            },
            Ok,
        ),
        _ => wrong(node, "a file mode"),
    }
}

/// Permission bits in octal digits.
pub(crate) fn file_mode_text(text: &str) -> Option<i64> {
    i64::from_str_radix(text, 8).ok()
}

fn device_count(node: &Node) -> Outcome<Json> {
    match &node.value {
        Value::String(text) if text.eq_ignore_ascii_case("all") => Ok(Json::from(-1)),
        Value::Int(_) | Value::String(_) => match integer(node) {
            Ok(number) => Ok(Json::from(number)),
            Err(_) => wrong(node, "`all` or a number"),
        },
        _ => wrong(node, "`all` or a number"),
    }
}

/// SSH keys. Docker's JSON fails on keys with a path; here they have the short form that can be read again.
pub(super) fn ssh(node: &Node, flavor: Flavor) -> Outcome<Json> {
    let Some(map) = node.as_map() else { return wrong(node, "a list of keys") };
    let separator = if flavor == Flavor::Json { "=" } else { ": " };
    Ok(map
        .iter()
        .map(|(id, path)| match present(path) {
            Some(path) if !path.is_empty() => Json::from(format!("{id}{separator}{path}")),
            _ => Json::from(id),
        })
        .collect())
}

fn env_file(node: &Node) -> Outcome<Json> {
    let path = node.text("path").unwrap_or_default();
    let required = node.get("required").map_or(Ok(true), flag)?;
    if required {
        return Ok(Json::from(path));
    }
    let mut out = JsonMap::new();
    out.insert("path".to_owned(), Json::from(path));
    out.insert("required".to_owned(), Json::from(false));
    if let Some(format) = node.text("format") {
        out.insert("format".to_owned(), Json::from(format));
    }
    Ok(Json::Object(out))
}

/// One number for both limits, or the soft and the hard one.
pub(super) fn ulimit(node: &Node, flavor: Flavor) -> Outcome<Json> {
    match &node.value {
        Value::Int(0) => Ok(Json::Object(JsonMap::new())),
        Value::Int(number) => Ok(Json::from(*number)),
        Value::Map(map) => {
            let mut out = JsonMap::new();
            for key in ["soft", "hard"] {
                let number = map.get(key).map_or(Ok(0), integer)?;
                if number != 0 || flavor == Flavor::Yaml {
                    out.insert(key.to_owned(), Json::from(number));
                }
            }
            Ok(Json::Object(out))
        }
        _ => wrong(node, "an integer, or a mapping with `soft` and `hard`"),
    }
}
