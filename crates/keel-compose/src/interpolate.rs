//! Interpolation of one file: every string value, never a key, then the type that its place demands.
//!
//! A `"${REPLICAS}"` at `deploy.replicas` becomes an integer here, so that the schema sees what the user meant. Places
//! whose variables may belong to an instance (command, environment, …) get deferred marks, see [`crate::template`].

use std::collections::BTreeSet;

use crate::diagnostic::{Code, Diagnostic, Outcome, Span};
use crate::number::{parse_decimal, parse_float, through_f32};
use crate::path::{ITEM, Path};
use crate::template::{Template, TemplateError};
use crate::value::{Node, Value};

/// What interpolation reports besides the tree.
#[derive(Default)]
pub(crate) struct Report {
    /// Variables without a value, and where they were used first.
    pub unset: Vec<(String, Span)>,
    /// Booleans in the spelling of YAML 1.1.
    pub old_booleans: Vec<(String, Span)>,
}

struct Walk<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    report: Report,
    errors: Vec<Diagnostic>,
}

/// Interpolates a document in place.
pub(crate) fn interpolate(
    document: &mut Node,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Outcome<Report> {
    let mut walk = Walk { lookup, report: Report::default(), errors: Vec::new() };
    walk.node(document, &Path::ROOT);
    if walk.errors.is_empty() { Ok(walk.report) } else { Err(walk.errors) }
}

impl Walk<'_> {
    fn node(&mut self, node: &mut Node, path: &Path<'_>) {
        match &mut node.value {
            Value::Map(map) => {
                for (key, child) in map.iter_mut() {
                    self.node(child, &path.child(key));
                }
            }
            Value::Seq(items) => {
                for item in items {
                    self.node(item, &path.child(ITEM));
                }
            }
            Value::String(text) => {
                let text = std::mem::take(text);
                // What is replaced moves what follows.
                node.inset = node.inset.filter(|_| !text.contains('$'));
                node.value = self.string(text, path, &node.span);
            }
            _ => {}
        }
    }

    fn string(&mut self, text: String, path: &Path<'_>, span: &Span) -> Value {
        let text = if text.contains('$') {
            let defer = path.with_parts(may_defer);
            let mut template = Template { lookup: self.lookup, defer, unset: BTreeSet::new() };
            let result = template.substitute(&text);
            let unset = std::mem::take(&mut template.unset);
            self.report.unset.extend(unset.into_iter().map(|name| (name, span.clone())));
            match result {
                Ok(text) => text,
                Err(error) => {
                    self.errors.push(describe(&error).at(span));
                    return Value::String(text);
                }
            }
        } else {
            text
        };
        let Some(cast) = path.with_parts(cast_for) else { return Value::String(text) };
        match self.cast(cast, &text, span) {
            Some(value) => value,
            None => {
                let message = format!("`{path}` must be {}, not `{text}`", cast.wanted());
                self.errors.push(Diagnostic::error(Code::InvalidValue, message).at(span));
                Value::String(text)
            }
        }
    }

    fn cast(&mut self, cast: Cast, text: &str, span: &Span) -> Option<Value> {
        match cast {
            Cast::Int => parse_decimal(text).map(Value::Int),
            Cast::Float => parse_float(text).map(Value::Float),
            Cast::Float32 => parse_float(text).map(through_f32).map(Value::Float),
            Cast::Bool => {
                let value = boolean(text)?;
                if !matches!(text.to_ascii_lowercase().as_str(), "true" | "false") {
                    self.report.old_booleans.push((text.to_owned(), span.clone()));
                }
                Some(Value::Bool(value))
            }
        }
    }
}

/// A boolean as Compose reads it from a string.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "y" | "yes" | "on" => Some(true),
        "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The diagnostic for a template error, without a place.
pub(crate) fn describe(error: &TemplateError) -> Diagnostic {
    let diagnostic = Diagnostic::error(Code::Interpolation, error.to_string());
    match error {
        TemplateError::Invalid(_) => diagnostic.help("write `$$` for a literal dollar sign"),
        TemplateError::Required { variable, .. } => diagnostic
            .help(format!("set {variable} in the environment, in `.env` or with --env-file")),
        TemplateError::Depth => diagnostic,
    }
}

/// Whether variables of an instance may be meant at a place.
fn may_defer(path: &[&str]) -> bool {
    matches!(
        path,
        ["services", _, "command" | "entrypoint" | "environment"]
            | ["services", _, "command" | "entrypoint" | "environment", _]
            | ["services", _, "healthcheck", "test"]
            | ["services", _, "healthcheck", "test", _]
            | [
                "services",
                _,
                "pre_start" | "post_start" | "pre_stop",
                _,
                "command" | "environment"
            ]
            | [
                "services",
                _,
                "pre_start" | "post_start" | "pre_stop",
                _,
                "command" | "environment",
                _
            ]
    )
}

/// The type that a string becomes.
#[derive(Clone, Copy)]
enum Cast {
    Int,
    Float,
    Float32,
    Bool,
}

impl Cast {
    fn wanted(self) -> &'static str {
        match self {
            Self::Int => "an integer",
            Self::Float | Self::Float32 => "a number",
            Self::Bool => "a boolean",
        }
    }
}

/// The type that the place of a string demands.
fn cast_for(path: &[&str]) -> Option<Cast> {
    match path {
        ["services", _, rest @ ..] => service_cast(rest),
        ["networks", _, "external" | "internal" | "attachable" | "enable_ipv4" | "enable_ipv6"]
        | ["volumes" | "secrets" | "configs", _, "external"] => Some(Cast::Bool),
        _ => None,
    }
}

fn service_cast(path: &[&str]) -> Option<Cast> {
    Some(match path {
        [
            "cpu_count" | "cpu_period" | "cpu_quota" | "cpu_rt_period" | "cpu_rt_runtime"
            | "cpu_shares" | "oom_score_adj" | "pids_limit" | "scale",
        ]
        | ["deploy", "replicas"]
        | ["deploy", "update_config" | "rollback_config", "parallelism"]
        | ["deploy", "restart_policy", "max_attempts"]
        | ["deploy", "placement", "max_replicas_per_node"]
        | ["healthcheck", "retries"]
        | ["ports", ITEM, "target"]
        | ["ulimits", _]
        | ["ulimits", _, "hard" | "soft"] => Cast::Int,
        ["cpu_percent"] | ["deploy", "update_config" | "rollback_config", "max_failure_ratio"] => {
            Cast::Float
        }
        ["cpus"] => Cast::Float32,
        ["init" | "oom_kill_disable" | "privileged" | "read_only" | "stdin_open" | "tty"]
        | ["healthcheck", "disable"]
        | ["volumes", ITEM, "read_only"]
        | ["volumes", ITEM, "volume", "nocopy"] => Cast::Bool,
        _ => return None,
    })
}
