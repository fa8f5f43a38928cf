//! Relative paths and variables without values.
//!
//! Paths in a file are relative to the project directory (or to the directory of the included or extended file,
//! which itself is relative to the project directory); here they are joined with it. [`environment`] gives variables
//! that are only named the caller's value.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use crate::diagnostic::{Code, Diagnostic, Outcome, fail};
use crate::path::{ITEM, Path};
use crate::services::is_process;
use crate::short::clean;
use crate::source::FileSource;
use crate::template::is_instance_variable;
use crate::value::{Map, Node, Value};

/// Where relative paths start, and what `~` means.
pub(crate) struct Base<'a> {
    pub directory: PathBuf,
    pub home: Option<String>,
    pub source: &'a dyn FileSource,
}

#[derive(Clone, Copy)]
enum Rule {
    /// A build context: URLs and other services stay.
    Context,
    /// A path that may be one of another system.
    Foreign,
    /// A path of this system.
    Local,
    /// A path whose links are followed.
    Linked,
    /// The source of a bind mount.
    Mount,
    /// The device of a local volume that is a bind mount.
    Volume,
}

fn rule_for(path: &[&str]) -> Option<Rule> {
    Some(match path {
        ["services", _, rest @ ..] => match rest {
            ["build", "context"] | ["build", "additional_contexts", _] => Rule::Context,
            ["build", "ssh", _] => Rule::Foreign,
            ["env_file", ITEM, "path"] | ["label_file", ITEM] | ["extends", "file"] => Rule::Local,
            ["develop", "watch", ITEM, "path"] => Rule::Linked,
            ["volumes", ITEM] => Rule::Mount,
            ["x-keel", "routes", ITEM, "tls", "cert" | "key"]
            | ["x-keel", "routes", "tls", "cert" | "key"]
            | ["x-keel", "routes", ITEM, "basic_auth", "file"]
            | ["x-keel", "routes", "basic_auth", "file"]
            | ["x-keel", "traffic", "tls", "ca" | "cert" | "key"] => Rule::Local,
            _ => return None,
        },
        ["x-keel", "acme", "ca"]
        | ["x-keel", "entrypoints", _, "client_auth"]
        | ["x-keel", "entrypoints", _, "client_auth", "ca"] => Rule::Local,
        ["configs" | "secrets", _, "file"] => Rule::Foreign,
        ["volumes", _] => Rule::Volume,
        _ => return None,
    })
}

/// Joins every relative path of a document with the base directory.
pub(crate) fn paths(document: &mut Node, base: &Base<'_>) -> Outcome<()> {
    walk(document, &Path::ROOT, base)
}

fn walk(node: &mut Node, path: &Path<'_>, base: &Base<'_>) -> Outcome<()> {
    // `client_auth` is a path or a mapping that has one.
    let rule = path
        .with_parts(rule_for)
        .filter(|rule| !matches!((rule, &node.value), (Rule::Local, Value::Map(_))));
    if let Some(rule) = rule {
        return apply(node, rule, base);
    }
    match &mut node.value {
        Value::Map(map) => {
            for (key, child) in map.iter_mut() {
                walk(child, &path.child(key), base)?;
            }
        }
        Value::Seq(items) => {
            for item in items {
                walk(item, &path.child(ITEM), base)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn apply(node: &mut Node, rule: Rule, base: &Base<'_>) -> Outcome<()> {
    match (rule, &mut node.value) {
        (Rule::Context, Value::String(text)) if !is_remote_context(text) => {
            *text = base.local(text);
        }
        (Rule::Foreign, Value::String(text)) => *text = base.foreign(text),
        (Rule::Local, Value::String(text)) => *text = base.local(text),
        (Rule::Linked, Value::String(text)) => {
            let joined = base.local(text);
            let resolved = base.source.canonical(FilePath::new(&joined));
            *text = resolved.to_string_lossy().into_owned();
        }
        (Rule::Mount, Value::Map(map)) => {
            if map.get("type").and_then(Node::as_str) != Some("bind") {
                return Ok(());
            }
            let Some(Node { value: Value::String(source), .. }) = map.get_mut("source") else {
                let message = "a bind mount needs a `source`";
                return fail(Diagnostic::error(Code::MissingKey, message).at(&node.span));
            };
            *source = base.foreign(source);
        }
        (Rule::Volume, Value::Map(map)) => {
            if map.get("driver").and_then(Node::as_str) != Some("local") {
                return Ok(());
            }
            let Some(options) = map.get_mut("driver_opts").and_then(Node::as_map_mut) else {
                return Ok(());
            };
            let is_bind = options.get("o").and_then(Node::as_str) == Some("bind");
            if let Some(Node { value: Value::String(device), .. }) = options.get_mut("device")
                && is_bind
            {
                *device = base.foreign(device);
            }
        }
        _ => {}
    }
    Ok(())
}

impl Base<'_> {
    fn expand_home(&self, path: &str) -> String {
        match (path.strip_prefix('~'), &self.home) {
            (Some(rest), Some(home)) => clean(&format!("{home}/{rest}")),
            _ => path.to_owned(),
        }
    }

    fn join(&self, path: &str) -> String {
        let directory = self.directory.to_string_lossy();
        if directory.is_empty() { clean(path) } else { clean(&format!("{directory}/{path}")) }
    }

    fn local(&self, path: &str) -> String {
        let path = self.expand_home(path);
        if path.is_empty() || path.starts_with('/') { path } else { self.join(&path) }
    }

    fn foreign(&self, path: &str) -> String {
        let path = self.expand_home(path);
        if path.starts_with('/') || is_windows_absolute(&path) { path } else { self.join(&path) }
    }
}

fn is_windows_absolute(path: &str) -> bool {
    let bytes = path.as_bytes();
    path.starts_with("\\\\")
        || (bytes.len() >= 3 && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/'))
}

/// Whether a build context is a URL or another service, not a directory.
pub(crate) fn is_remote_context(text: &str) -> bool {
    text.contains("://")
        || ["service:", "github.com/", "git@"].iter().any(|prefix| text.starts_with(prefix))
}

/// Gives `environment: [NAME]` the caller's value of NAME, and notes the content of secrets and configs that come
/// from a variable.
pub(crate) fn environment(document: &mut Node, variables: &BTreeMap<String, String>) {
    let services = document.as_map_mut().and_then(|map| map.get_mut("services"));
    for (_, service) in services.and_then(Node::as_map_mut).into_iter().flat_map(Map::iter_mut) {
        let process = is_process(service);
        let list = service.as_map_mut().and_then(|map| map.get_mut("environment"));
        let Some(Node { value: Value::Seq(items), .. }) = list else { continue };
        items.retain(|item| item.as_str().is_some());
        for item in items {
            if let Value::String(text) = &mut item.value
                && !(process && is_instance_variable(text))
                && let Some(value) = variables.get(text.as_str())
            {
                *text = format!("{text}={value}");
            }
        }
    }
}
