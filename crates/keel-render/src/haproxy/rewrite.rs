//! Changes of a path, as `http-request` actions one after the other.

use super::words::{format, in_format, word};
use crate::change::{Change, Part};

/// The action for one change, without its condition.
pub(super) fn action(change: &Change) -> String {
    match change {
        Change::Whole(path) => format!("http-request set-path {}", format(path)),
        Change::Prefix(prefix) => {
            format!("http-request set-path {}", word(&format!("{}%[path]", in_format(prefix))))
        }
        Change::Replace { expression, parts } => {
            let parts = parts.iter().map(|part| match part {
                Part::Text(text) => in_format(text),
                Part::Group(number) => format!("\\{number}"),
            });
            let to: String = parts.collect();
            format!("http-request replace-path {} {}", word(expression), word(&to))
        }
    }
}
