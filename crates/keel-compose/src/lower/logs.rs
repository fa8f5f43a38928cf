//! What becomes of output: `logging`.

use std::collections::BTreeMap;

use keel_model::LogPolicy;

use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::number::{parse_decimal, parse_size};
use crate::value::Node;

impl Lower<'_> {
    pub(super) fn logs(&mut self, context: &Context<'_>) -> LogPolicy {
        let mut policy = LogPolicy::default();
        let Some(logging) = context.node.get("logging") else { return policy };
        match logging.get("driver").and_then(Node::as_str) {
            Some("none") => policy.keep = false,
            None | Some("" | "json-file" | "local") => {}
            // The engine takes it from here.
            Some(_) if context.is_container() => return policy,
            Some(driver) => {
                let message = format!(
                    "the log driver `{driver}` has no effect: output is kept in rotated files here"
                );
                self.warn(&logging.span, message);
            }
        }
        for (key, value) in logging.get("options").into_iter().flat_map(Node::entries) {
            let text = value.display().unwrap_or_default();
            let understood = match key {
                "max-size" => parse_size(&text)
                    .ok()
                    .and_then(|size| u64::try_from(size).ok())
                    .filter(|size| *size > 0)
                    .map(|size| policy.max_size = size)
                    .is_some(),
                "max-file" => parse_decimal(&text)
                    .and_then(|files| u32::try_from(files).ok())
                    .filter(|files| *files > 0)
                    .map(|files| policy.max_files = files)
                    .is_some(),
                _ if context.is_container() => true,
                _ => {
                    self.warn(&value.span, format!("the log option `{key}` has no effect: output is kept in rotated files here"));
                    true
                }
            };
            if !understood {
                let message = format!("`{text}` is not a value of the log option `{key}`");
                self.error(
                    Code::InvalidValue,
                    &value.span,
                    message,
                    "write for example max-size: 10m, max-file: 3",
                );
            }
        }
        policy
    }
}

/// The log driver of a container and its options.
pub(super) fn driver(context: &Context<'_>) -> (Option<String>, BTreeMap<String, String>) {
    let Some(logging) = context.node.get("logging") else { return Default::default() };
    let driver = logging.text("driver").filter(|driver| !driver.is_empty());
    let options = logging.get("options").into_iter().flat_map(Node::entries);
    let text = |value: &Node| value.display().filter(|_| !value.is_null()).unwrap_or_default();
    (driver.map(str::to_owned), options.map(|(key, value)| (key.to_owned(), text(value))).collect())
}
