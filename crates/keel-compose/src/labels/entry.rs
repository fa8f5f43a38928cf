//! The labels of a service that are about routing, one by one, each with its place and its row of the table.

use crate::diagnostic::{Code, Diagnostic, Span, nearest};
use crate::keys::Support;
use crate::value::{Node, Value};

use super::table;

/// What such labels begin with; the later wins.
const PREFIXES: [&str; 2] = ["traefik.", "keel."];

/// One label.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its key without the prefix: words of the table in lower case, names as they are written.
    pub path: Vec<String>,
    /// The key as it is written.
    pub key: String,
    pub value: Node,
    pub key_place: Span,
    /// It is honoured. One that is not has been told, and still defines what it names.
    pub honoured: bool,
    rank: usize,
}

impl Entry {
    pub fn text(&self) -> &str {
        self.value.as_str().unwrap_or_default().trim()
    }

    /// The words behind the name (`routers.web.tls.options` → `tls.options`).
    pub fn option(&self) -> String {
        self.path.get(3..).unwrap_or_default().join(".")
    }

    pub fn same(&self, other: &Self) -> bool {
        self.path == other.path && self.text() == other.text()
    }

    /// The parts of a list with commas, each with its place.
    pub fn list(&self) -> Vec<Node> {
        let text = self.value.as_str().unwrap_or_default();
        let mut parts = Vec::new();
        let mut at = 0;
        for part in text.split(',') {
            let lead = part.chars().take_while(|c| c.is_whitespace()).count();
            if !part.trim().is_empty() {
                parts.push(Node::string(part.trim(), &self.value.place_of(at + lead)));
            }
            at += part.chars().count() + 1;
        }
        parts
    }
}

/// The prefix of a label that is about routing.
pub(super) fn prefix_of(key: &str) -> Option<&'static str> {
    PREFIXES.into_iter().find(|prefix| {
        key.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    })
}

/// All labels of a service that are about routing; those that are not honoured are told.
pub(super) fn collect(
    service: &Node,
    errors: &mut Vec<Diagnostic>,
    notes: &mut Vec<Diagnostic>,
) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for labels in [service.get("labels"), service.at(&["deploy", "labels"])].into_iter().flatten() {
        for (key, key_place, value) in pairs(labels) {
            let Some(prefix) = prefix_of(&key) else { continue };
            let rank = PREFIXES.iter().position(|known| *known == prefix).unwrap_or_default();
            let found = known(&key, prefix, &key_place, errors, notes);
            let Some((path, honoured)) = found else { continue };
            let entry = Entry { path, key, value, key_place, honoured, rank };
            add(&mut entries, entry, errors);
        }
    }
    entries
}

/// Adds a label; of two that say the same thing, the one with the stronger prefix stays.
fn add(entries: &mut Vec<Entry>, entry: Entry, errors: &mut Vec<Diagnostic>) {
    let Some(other) = entries.iter_mut().find(|other| other.path == entry.path) else {
        entries.push(entry);
        return;
    };
    if other.rank < entry.rank {
        *other = entry;
    } else if other.rank == entry.rank && other.text() != entry.text() {
        let message = format!("`{}` has another value at {}", entry.key, other.key_place);
        errors.push(
            Diagnostic::error(Code::Conflict, message)
                .at(&entry.key_place)
                .help("keep one of them"),
        );
    }
}

/// Keys and values of labels in either form.
fn pairs(labels: &Node) -> Vec<(String, Span, Node)> {
    match &labels.value {
        Value::Map(map) => map
            .iter()
            .map(|(key, value)| {
                let text = if value.is_null() { None } else { value.display() };
                let mut node = Node::string(text.unwrap_or_default(), &value.span);
                node.inset = value.inset;
                (key.to_owned(), map.key_span(key).unwrap_or(&value.span).clone(), node)
            })
            .collect(),
        Value::Seq(items) => items
            .iter()
            .filter_map(|item| {
                let (key, value) = item.as_str()?.split_once('=').or(Some((item.as_str()?, "")))?;
                let before = key.chars().count() + 1;
                let mut node = Node::string(value, &item.place_of(before));
                // What is wrong with a value is shown at the value, where that can be told.
                node.inset = item.inset.map(|_| 0);
                if item.inset.is_none() {
                    node.span = item.span.clone();
                }
                Some((key.to_owned(), item.span.clone(), node))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The path of a label, and whether it is honoured.
fn known(
    key: &str,
    prefix: &str,
    place: &Span,
    errors: &mut Vec<Diagnostic>,
    notes: &mut Vec<Diagnostic>,
) -> Option<(Vec<String>, bool)> {
    let parts: Vec<&str> = key[prefix.len()..].split('.').collect();
    let Some((row, path)) = table::find(&parts) else {
        unknown(key, prefix, &parts, place, errors, notes);
        return None;
    };
    match row.support {
        Support::Honoured | Support::Partly(_) | Support::AsAbove => Some((path, true)),
        Support::Warn(reason) => {
            let message = format!("`{key}` has no effect: {reason}");
            notes.push(Diagnostic::warning(Code::Unsupported, message).at(place));
            Some((path, false))
        }
        Support::Refused(remedy) => {
            let message = format!("`{key}` does not work here");
            errors.push(Diagnostic::error(Code::Unsupported, message).at(place).help(remedy));
            None
        }
    }
}

fn unknown(
    key: &str,
    prefix: &str,
    parts: &[&str],
    place: &Span,
    errors: &mut Vec<Diagnostic>,
    notes: &mut Vec<Diagnostic>,
) {
    if !matches!(parts[0].to_ascii_lowercase().as_str(), "http" | "tcp") {
        // Other tools have labels of these beginnings too, for their own purposes.
        let message = format!("`{key}` has no effect: it is not a label of routing");
        let near = nearest(parts[0], ["http", "tcp", "enable"]);
        let mut note = Diagnostic::warning(Code::Unsupported, message).at(place);
        note.help = near.map(|near| format!("did you mean `{prefix}{near}`?"));
        notes.push(note);
        return;
    }
    let mut error =
        Diagnostic::error(Code::UnknownKey, format!("there is no label `{key}`")).at(place);
    error.help = Some(match table::nearest_to(parts) {
        Some(near) => format!("did you mean `{prefix}{near}`?"),
        None => "docs/labels.md lists the labels".to_owned(),
    });
    errors.push(error);
}
