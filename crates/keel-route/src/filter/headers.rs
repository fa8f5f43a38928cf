//! Changes of header fields, checked once so that nothing in them can break a message.

use keel_model::HeaderEdits;

use crate::request::passes_for;
use crate::rule::is_token;

/// Fields that say where a message ends or what becomes of the connection: the proxy's own business on each side.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A name in lower case and a value.
type Field = (Box<str>, Box<str>);

/// Changes of header fields: first removed, then set, then added. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    remove: Vec<Box<str>>,
    set: Vec<Field>,
    add: Vec<Field>,
}

impl Edits {
    pub(crate) fn new(edits: &HeaderEdits, what: &str, problems: &mut Vec<String>) -> Self {
        let mut name = |text: &str| match check_name(text) {
            Ok(name) => Some(name),
            Err(problem) => {
                problems.push(format!("{what}: {problem}"));
                None
            }
        };
        let remove = edits.remove.iter().filter_map(|text| name(text)).collect();
        let mut fields = |fields: &std::collections::BTreeMap<String, String>| -> Vec<Field> {
            let named = fields.iter().filter_map(|(text, value)| Some((name(text)?, value)));
            named.map(|(name, value)| (name, value.as_str().into())).collect()
        };
        let edits = Self { remove, set: fields(&edits.set), add: fields(&edits.add) };
        for (name, value) in edits.set.iter().chain(&edits.add) {
            if !is_value(value) {
                problems.push(format!("{what}: the value of {name} may only have visible ASCII characters, spaces and tabs"));
            }
        }
        edits
    }

    /// Fields that go.
    #[must_use]
    pub fn remove(&self) -> &[Box<str>] {
        &self.remove
    }

    /// Fields that stand in the place of all of their name.
    #[must_use]
    pub fn set(&self) -> &[(Box<str>, Box<str>)] {
        &self.set
    }

    /// Fields that come in addition.
    #[must_use]
    pub fn add(&self) -> &[(Box<str>, Box<str>)] {
        &self.add
    }

    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a field of this name, or one that passes for it, is left out when a message is copied, because it is
    /// removed or set anew.
    #[must_use]
    pub fn leaves_out(&self, name: &str) -> bool {
        let is = |edited: &str| passes_for(name, edited);
        self.remove.iter().any(|edited| is(edited)) || self.set.iter().any(|(edited, _)| is(edited))
    }
}

/// The name of a field that may be changed, in lower case.
///
/// # Errors
/// Why it may not be.
pub(crate) fn check_name(text: &str) -> Result<Box<str>, String> {
    let name = text.to_ascii_lowercase();
    if !is_token(&name) {
        return Err(format!("{text:?} is not the name of a header field"));
    }
    if name == "host" {
        return Err("the header Host is changed with `rewrite.host`".into());
    }
    if FRAMING.contains(&name.as_str()) {
        return Err(format!(
            "the header {text} belongs to the proxy and can't be changed; leave it out"
        ));
    }
    Ok(name.into())
}

/// Whether `text` can be the value of a field: visible ASCII, spaces and tabs (RFC 9110, 5.5, without `obs-text`).
pub(crate) fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_are_compared_without_case() {
        let edits = HeaderEdits {
            remove: vec!["Server".into()],
            set: fields(&[("X-Frame-Options", "DENY")]),
            add: fields(&[("Link", "</a>; rel=preload")]),
        };
        let mut problems = Vec::new();
        let edits = Edits::new(&edits, "response_headers", &mut problems);
        assert_eq!(problems, [""; 0]);
        assert_eq!(edits.remove(), ["server".into()]);
        assert!(edits.leaves_out("SERVER") && edits.leaves_out("x-frame-options"));
        assert!(!edits.leaves_out("link"));
    }

    #[test]
    fn what_could_break_a_message_is_refused() {
        for (name, value) in [
            ("X", "a\r\nB: c"),
            ("X", "a\0"),
            ("X", "ä"),
            ("X Y", "a"),
            ("X:", "a"),
            ("", "a"),
            ("Content-Length", "0"),
            ("transfer-encoding", "chunked"),
            ("Host", "a"),
        ] {
            let edits = HeaderEdits { set: fields(&[(name, value)]), ..HeaderEdits::default() };
            let mut problems = Vec::new();
            Edits::new(&edits, "request_headers", &mut problems);
            assert_eq!(problems.len(), 1, "{name:?} {value:?}: {problems:?}");
            assert!(problems[0].starts_with("request_headers: "), "{problems:?}");
        }
    }
}
