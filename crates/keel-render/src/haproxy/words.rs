//! How HAProxy reads text, and how it is written so that it reads back as it was.
//!
//! A line is parted into words at spaces. Inside of single quotes nothing means anything, so a word with other than plain
//! characters goes into single quotes, and a single quote out of them. A line ends at its end whatever the quotes:
//! callers keep control characters away ([`clean`]), and [`word`] drops those that come all the same. Values of
//! headers and the like are then read as formats, in which only `%` means something.

use std::fmt::Write as _;

/// `text`, if a line can have it.
pub(crate) fn clean(text: &str) -> Option<&str> {
    (!text.chars().any(char::is_control)).then_some(text)
}

/// One word that reads as `text`.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@,=+*()-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut out = String::from("'");
    for c in text.chars() {
        match c {
            '\'' => out.push_str(r"'\''"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Part of a format that reads as `text`.
pub(crate) fn in_format(text: &str) -> String {
    text.replace('%', "%%")
}

/// One word that is a format which reads as `text`.
pub(crate) fn format(text: &str) -> String {
    // A word without characters counts as none.
    if text.is_empty() { "%[str()]".to_owned() } else { word(&in_format(text)) }
}

/// The lines of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    out: String,
}

impl Lines {
    /// Begins a section.
    pub fn section(&mut self, head: &str) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        let _ = writeln!(self.out, "{head}");
    }

    /// A line of the section.
    pub fn line(&mut self, line: impl AsRef<str>) {
        debug_assert!(!line.as_ref().contains('\n'), "a line is one line: {:?}", line.as_ref());
        let _ = writeln!(self.out, "    {}", line.as_ref());
    }

    /// Lines of the section.
    pub fn lines(&mut self, lines: impl IntoIterator<Item = impl AsRef<str>>) {
        lines.into_iter().for_each(|line| self.line(line));
    }

    pub fn into_text(self) -> String {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, expected) in [
            ("/api/v1", "/api/v1"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            (r#"a"b\c$d{e}#"#, r#"'a"b\c$d{e}#'"#),
            ("a\nb", "'ab'"),
        ] {
            assert_eq!(word(text), expected);
        }
        assert_eq!(format("50%[x]"), "'50%%[x]'");
        assert_eq!((clean("a\tb"), clean("ab")), (None, Some("ab")));
    }
}
