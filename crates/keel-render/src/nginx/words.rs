//! How nginx reads text, and how it is written so that it reads back as it was.
//!
//! Inside of double quotes only `\` and `"` end or change anything for the reader of the file. Where a directive takes
//! variables, `$` means something in quotes too and has no escape; [`DOLLAR`] is a variable that holds one.

use std::fmt::Write as _;

/// A variable whose value is a dollar sign.
pub(crate) const DOLLAR: &str = "${keel_dollar}";

/// `text`, if a directive can have it.
pub(crate) fn clean(text: &str) -> Option<&str> {
    (!text.chars().any(char::is_control)).then_some(text)
}

/// Part of a value that reads as `text` where variables are known.
pub(crate) fn in_value(text: &str) -> String {
    text.replace('$', DOLLAR)
}

/// One argument. Variables in it are variables.
pub(crate) fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// One argument that reads as `text` where variables are known.
pub(crate) fn value(text: &str) -> String {
    quoted(&in_value(text))
}

/// The key of a map for an expression of ours, which needs no quoting beyond the quotes.
pub(crate) fn matching(expression: &str) -> String {
    format!("\"~{expression}\"")
}

/// One directive, or one with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Directive {
    Line(String),
    Block(String, Vec<String>),
}

impl From<String> for Directive {
    fn from(line: String) -> Self {
        Self::Line(line)
    }
}

impl From<&str> for Directive {
    fn from(line: &str) -> Self {
        Self::Line(line.to_owned())
    }
}

/// Nested blocks of directives.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    out: String,
    depth: usize,
}

impl Blocks {
    /// Blocks inside of others.
    pub fn at_depth(depth: usize) -> Self {
        Self { out: String::new(), depth }
    }

    pub fn open(&mut self, head: impl AsRef<str>) {
        let _ = writeln!(self.out, "{:width$}{} {{", "", head.as_ref(), width = self.depth * 4);
        self.depth += 1;
    }

    pub fn close(&mut self) {
        self.depth -= 1;
        let _ = writeln!(self.out, "{:width$}}}", "", width = self.depth * 4);
    }

    /// A directive without its semicolon.
    pub fn line(&mut self, directive: impl AsRef<str>) {
        let directive = directive.as_ref();
        debug_assert!(!directive.contains('\n'), "a directive is one line: {directive:?}");
        let _ = writeln!(self.out, "{:width$}{directive};", "", width = self.depth * 4);
    }

    pub fn lines(&mut self, directives: impl IntoIterator<Item = impl AsRef<str>>) {
        directives.into_iter().for_each(|directive| self.line(directive));
    }

    /// Directives of both kinds.
    pub fn directives(&mut self, directives: &[Directive]) {
        for directive in directives {
            match directive {
                Directive::Line(line) => self.line(line),
                Directive::Block(head, lines) => self.block(head, lines),
            }
        }
    }

    /// A block of entries.
    pub fn block(&mut self, head: impl AsRef<str>, lines: &[String]) {
        self.open(head);
        self.lines(lines);
        self.close();
    }

    /// Blocks that were written for this depth.
    pub fn append(&mut self, blocks: Self) {
        self.out.push_str(&blocks.out);
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub fn into_text(self) -> String {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        assert_eq!(value(r#"a "b" \ ; { } $x"#), r#""a \"b\" \\ ; { } ${keel_dollar}x""#);
        assert_eq!(quoted("a$b\nc"), "\"a$bc\"");
        assert_eq!((clean("a\rb"), clean("ab")), (None, Some("ab")));
    }
}
