//! Changes of a path: an expression of variables, with a map for each change that depends on the path.

use keel_model::PathRewrite;

use super::Writer;
use super::words::{in_value, matching, quoted};
use crate::change::{self, Change, Part};

impl Writer<'_> {
    /// The path that comes out when `rewrites` are applied to that of the request. What can't be done is noted.
    pub(super) fn rewritten(&mut self, rewrites: &[PathRewrite], place: &str) -> String {
        let mut value = "$keel_path".to_owned();
        for rewrite in rewrites {
            match change::of(rewrite) {
                Ok(changes) => {
                    for change in changes {
                        value = self.changed(&value, &change);
                    }
                }
                Err(lack) => self.plan.note(lack, place),
            }
        }
        value
    }

    fn changed(&mut self, value: &str, change: &Change) -> String {
        let (expression, parts) = match change {
            Change::Whole(path) => return in_value(path),
            Change::Prefix(prefix) => return format!("{}{value}", in_value(prefix)),
            Change::Replace { expression, parts } => (expression, parts),
        };
        let parts = parts.iter().map(|part| match part {
            Part::Text(text) => in_value(text),
            Part::Group(number) => format!("${number}"),
        });
        let to = quoted(&parts.collect::<String>());
        let value = quoted(value);
        self.paths += 1;
        let name = format!("$keel_path{}", self.paths);
        let lines = [format!("default {value}"), format!("{} {to}", matching(expression))];
        self.maps.block(format!("map {value} {name}"), &lines);
        name
    }
}
