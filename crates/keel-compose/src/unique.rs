//! Removes earlier items of lists that a later item redefines.
//!
//! After files are merged a list can hold two entries for the same port, mount target or variable; the later one
//! wins and takes the earlier one's place. [`index_for`] says which lists have such identities (compose-go's
//! `unique` table).

use std::collections::HashMap;

use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::path::{ITEM, Path};
use crate::short::Volume;
use crate::value::{Node, Value};

/// What identifies an item.
#[derive(Clone, Copy)]
enum Index {
    /// The text before `=`.
    Key,
    /// The mount target.
    Volume,
    /// The device's path inside.
    Device,
    /// The target, or a default directory and the name.
    Mount(&'static str),
    /// Address, published port, target port and protocol.
    Port,
    /// The path.
    EnvFile,
    /// The port number.
    Expose,
}

fn index_for(path: &[&str]) -> Option<Index> {
    Some(match path {
        ["networks", _, "labels"] | ["networks", _, "ipam", "options"] => Index::Key,
        ["services", _, rest @ ..] => match rest {
            ["configs"] => Index::Mount(""),
            ["secrets"] => Index::Mount("/run/secrets"),
            ["devices"] => Index::Device,
            ["volumes"] => Index::Volume,
            ["ports"] => Index::Port,
            ["env_file"] => Index::EnvFile,
            ["expose"] => Index::Expose,
            [
                "annotations" | "cap_add" | "cap_drop" | "dns" | "dns_opt" | "dns_search"
                | "environment" | "labels" | "links" | "profiles" | "sysctls" | "tmpfs",
            ]
            | ["build", "args" | "additional_contexts" | "platform" | "tags" | "labels"]
            | ["deploy", "labels"]
            | ["networks", _, "aliases" | "link_local_ips"] => Index::Key,
            _ => return None,
        },
        _ => return None,
    })
}

/// Applies the rule to a whole document.
pub(crate) fn enforce(document: &mut Node) -> Outcome<()> {
    walk(document, &Path::ROOT)
}

fn walk(node: &mut Node, path: &Path<'_>) -> Outcome<()> {
    match &mut node.value {
        Value::Map(map) => {
            for (key, child) in map.iter_mut() {
                walk(child, &path.child(key))?;
            }
        }
        Value::Seq(items) => {
            if let Some(index) = path.with_parts(index_for) {
                *items = unique(std::mem::take(items), index, path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn unique(items: Vec<Node>, index: Index, path: &Path<'_>) -> Outcome<Vec<Node>> {
    let mut result: Vec<Node> = Vec::with_capacity(items.len());
    let mut places: HashMap<String, usize> = HashMap::new();
    for item in items {
        match places.get(&key_of(&item, index, path)?) {
            Some(at) => result[*at] = item,
            None => {
                places.insert(key_of(&item, index, path)?, result.len());
                result.push(item);
            }
        }
    }
    Ok(result)
}

fn key_of(item: &Node, index: Index, path: &Path<'_>) -> Outcome<String> {
    let place = path.child(ITEM);
    let wrong = |wanted: &str| {
        let message = format!("`{place}` must be {wanted}, not {}", item.kind_name());
        fail(Diagnostic::error(Code::InvalidValue, message).at(&item.span))
    };
    let missing = |key: &str| {
        fail(
            Diagnostic::error(Code::MissingKey, format!("`{place}` has no `{key}`")).at(&item.span),
        )
    };
    match (index, &item.value) {
        (Index::Key, Value::String(text)) => {
            Ok(text.split_once('=').map_or(text.as_str(), |(key, _)| key).to_owned())
        }
        (Index::Key, _) => wrong("a string"),
        (Index::Volume, Value::String(text)) => match Volume::parse(text) {
            Ok(volume) => Ok(volume.target),
            Err(message) => fail(Diagnostic::error(Code::InvalidValue, message).at(&item.span)),
        },
        (Index::Device, Value::String(text)) => {
            let mut parts = text.split(':');
            let first = parts.next().unwrap_or_default();
            Ok(parts.next().unwrap_or(first).to_owned())
        }
        (Index::Volume | Index::Device, Value::Map(map)) => {
            match map.get("target").and_then(Node::as_str) {
                Some(target) => Ok(target.to_owned()),
                None => missing("target"),
            }
        }
        (Index::Mount(directory), Value::String(name)) => Ok(format!("{directory}/{name}")),
        (Index::Mount(directory), Value::Map(map)) => {
            let text = |key| map.get(key).and_then(Node::display);
            Ok(text("target")
                .unwrap_or_else(|| format!("{directory}/{}", text("source").unwrap_or_default())))
        }
        (Index::Mount(_), _) => wrong("a name or a mapping"),
        (Index::Expose, Value::String(_) | Value::Int(_)) => Ok(item.display().unwrap_or_default()),
        (Index::Expose, _) => wrong("a port"),
        (Index::Port, Value::Map(map)) => {
            if !map.contains("target") {
                return missing("target");
            }
            Ok(port_key(item))
        }
        (Index::EnvFile, Value::Map(map)) => match map.get("path").and_then(Node::as_str) {
            Some(path) => Ok(path.to_owned()),
            None => missing("path"),
        },
        (Index::Port | Index::EnvFile, Value::String(_) | Value::Int(_)) => {
            Ok(item.display().unwrap_or_default())
        }
        _ => Ok(String::new()),
    }
}

/// The identity of a port in long form. An integer and a string are different identities, as in compose-go.
fn port_key(port: &Node) -> String {
    let part = |key: &str, default: &str| match port.get(key) {
        None => default.to_owned(),
        Some(node) if node.as_str().is_some() => node.display().unwrap_or_default(),
        Some(node) => format!("#{}", node.display().unwrap_or_default()),
    };
    format!(
        "{}:{}:{}/{}",
        part("host_ip", "0.0.0.0"),
        part("published", ""),
        part("target", ""),
        part("protocol", "tcp")
    )
}
