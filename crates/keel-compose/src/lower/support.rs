//! Warnings and refusals that need nothing but the table of keys, and a few that depend on values.

use keel_model::RuntimeKind;

use super::{Context, Lower};
use crate::diagnostic::{Code, Span};
use crate::keys::{NESTED_KEYS, SERVICE_KEYS, Support, TOP_KEYS};
use crate::services::is_process;
use crate::value::{Node, Value};

impl Lower<'_> {
    /// Reports what the top level has that does not work here.
    pub(super) fn top_level(&mut self) {
        let model = &self.project.model;
        let processes = self.project.active_services().any(|(_, service)| is_process(service));
        let kind = if processes { RuntimeKind::Process } else { RuntimeKind::Container };
        for row in TOP_KEYS {
            let Some(node) = model.get(row.key).filter(|node| !is_empty(node)) else { continue };
            let span =
                model.as_map().and_then(|map| map.key_span(row.key)).unwrap_or(&node.span).clone();
            self.apply(row.support(kind), row.key, &span);
        }
        if !processes {
            return;
        }
        let declared: Vec<&str> =
            self.project.networks().into_iter().filter(|name| *name != "default").collect();
        if let [first, ..] = declared[..]
            && let Some(map) = model.get("networks").and_then(Node::as_map)
            && let Some(span) = map.key_span(first)
        {
            let span = span.clone();
            self.warn(&span, "networks do not separate host processes: every service of the stack reaches every other");
        }
    }

    /// Reports the keys of a service that do not work for its kind.
    pub(super) fn unsupported_keys(&mut self, context: &Context<'_>) {
        let Some(map) = context.node.as_map() else { return };
        for row in SERVICE_KEYS {
            if let Some(node) = map.get(row.key).filter(|node| !is_empty(node)) {
                let span = map.key_span(row.key).unwrap_or(&node.span).clone();
                self.apply(row.support(context.runtime), row.key, &span);
            }
        }
        for row in NESTED_KEYS {
            let path: Vec<&str> = row.key.split('.').collect();
            let mut found = Vec::new();
            collect(context.node, &path, &mut found);
            for span in found {
                self.apply(row.support(context.runtime), row.key, &span);
            }
        }
        self.unsupported_values(context);
    }

    fn unsupported_values(&mut self, context: &Context<'_>) {
        if let Some(mode) = context.node.get("network_mode").filter(|_| !context.is_container())
            && let Some(text) = mode.as_str().filter(|text| !matches!(*text, "host" | ""))
        {
            self.warn(
                &mode.span,
                format!(
                    "`network_mode: {text}` has no effect: a host process has the host's network"
                ),
            );
        }
        if let Some(mode) = context.node.at(&["deploy", "endpoint_mode"])
            && mode.as_str() == Some("dnsrr")
        {
            self.warn(
                &mode.span,
                "`dnsrr` has no effect: a service always has an address of its own",
            );
        }
        if context.is_container() {
            return;
        }
        for volume in context.node.get("volumes_from").map(Node::items).unwrap_or_default() {
            if volume.as_str().is_some_and(|text| text.starts_with("container:")) {
                self.warn(&volume.span, "`container:` has no effect: there are no containers");
            }
        }
    }

    fn apply(&mut self, support: Support, key: &str, span: &Span) {
        match support {
            Support::Honoured | Support::Partly(_) | Support::AsAbove => {}
            Support::Warn(reason) => self.warn(span, format!("`{key}` has no effect: {reason}")),
            Support::Refused(remedy) => {
                self.error(Code::Unsupported, span, format!("`{key}` does not work here"), remedy);
            }
        }
    }
}

/// Whether a value asks for nothing: absent, `false`, empty.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Null | Value::Bool(false) => true,
        // Some flags are texts by now, `build.provenance` for one.
        Value::String(text) => matches!(text.as_str(), "" | "false"),
        Value::Seq(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        _ => false,
    }
}

/// The places of a dotted key; `*` stands for any key and `[]` for any item.
fn collect(node: &Node, path: &[&str], found: &mut Vec<Span>) {
    let Some((key, rest)) = path.split_first() else {
        if !is_empty(node) {
            found.push(node.span.clone());
        }
        return;
    };
    if *key == "*" {
        node.entries().for_each(|(_, child)| collect(child, rest, found));
    } else if let Some(name) = key.strip_suffix("[]") {
        let items = node.get(name).map(Node::items).unwrap_or_default();
        items.iter().for_each(|item| collect(item, rest, found));
    } else if let Some(child) = node.get(key) {
        collect(child, rest, found);
    }
}
