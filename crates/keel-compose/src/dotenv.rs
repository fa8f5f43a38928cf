//! Variable files: `.env`, `--env-file`, `env_file` and `label_file`.
//!
//! The syntax is that of Compose's dotenv: `export`, quotes over several lines, comments, escapes, interpolation
//! of values (also with variables of the same file), `KEY: value`, and a bare `KEY` that takes the caller's value.
//! [`parse_raw`] is the other format, `docker run --env-file`'s, which takes every line literally.

use std::collections::{BTreeMap, BTreeSet};

use crate::template::Template;

/// Why a variable file could not be read; the line counts from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DotenvError {
    pub line: u32,
    pub message: String,
}

type Variables = BTreeMap<String, String>;
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Adds the variables of a file to `out`; values may refer to `lookup` first and to `out` second.
///
/// Returns the variables that were used without a value.
pub(crate) fn parse(
    text: &str,
    out: &mut Variables,
    lookup: Lookup<'_>,
) -> Result<BTreeSet<String>, DotenvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser { text, at: 0, unset: BTreeSet::new() };
    while parser.skip_to_statement() {
        let Some(key) = parser.key()? else { continue };
        match key {
            Key::Inherited(name) => {
                if let Some(value) = lookup(&name) {
                    out.insert(name, value);
                }
            }
            Key::Assigned(name) => {
                let value = parser.value(out, lookup)?;
                out.insert(name, value);
            }
        }
    }
    Ok(parser.unset)
}

/// Adds the variables of a file in raw format: `KEY=VALUE` literally, a bare `KEY` takes the caller's value.
pub(crate) fn parse_raw(
    text: &str,
    out: &mut Variables,
    lookup: Lookup<'_>,
) -> Result<(), DotenvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = u32::try_from(at + 1).unwrap_or(u32::MAX);
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (line, lookup(line)),
        };
        if key.is_empty() {
            let message = format!("no variable name in `{line}`");
            return Err(DotenvError { line: number, message });
        }
        if key.contains([' ', '\t']) {
            let message = format!("the variable `{key}` contains white space");
            return Err(DotenvError { line: number, message });
        }
        if let Some(value) = value {
            out.insert(key.to_owned(), value);
        }
    }
    Ok(())
}

enum Key {
    Assigned(String),
    Inherited(String),
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    unset: BTreeSet<String>,
}

/// White space within a line.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn error<T>(&self, at: usize, message: impl Into<String>) -> Result<T, DotenvError> {
        let line = self.text[..at].matches('\n').count() + 1;
        Err(DotenvError { line: u32::try_from(line).unwrap_or(u32::MAX), message: message.into() })
    }

    /// Moves over white space and comments; `false` at the end.
    fn skip_to_statement(&mut self) -> bool {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.is_empty() {
                return false;
            }
            if !trimmed.starts_with('#') {
                return true;
            }
            match trimmed.find('\n') {
                Some(end) => self.at += end,
                None => return false,
            }
        }
    }

    fn key(&mut self) -> Result<Option<Key>, DotenvError> {
        if let Some(after) = self.rest().strip_prefix("export")
            && after.starts_with(char::is_whitespace)
        {
            self.at = self.text.len() - after.trim_start_matches(is_blank).len();
        }
        let start = self.at;
        let mut end = None;
        for (offset, c) in self.rest().char_indices() {
            match c {
                '=' | ':' | '\n' => {
                    end = Some((offset, c));
                    break;
                }
                '_' | '.' | '-' | '[' | ']' => {}
                c if is_blank(c) || c.is_alphabetic() || c.is_numeric() => {}
                c => {
                    let line = self.rest().lines().next().unwrap_or_default();
                    let message = format!("unexpected character `{c}` in variable name `{line}`");
                    return self.error(start, message);
                }
            }
        }
        // A last line without a separator is, in Compose, the value of a variable without a name.
        let Some((offset, separator)) = end else {
            return Ok(Some(Key::Assigned(String::new())));
        };
        let name = self.rest()[..offset].trim_end().to_owned();
        if name.contains(' ') {
            return self.error(start, format!("the variable name `{name}` contains a space"));
        }
        self.at += offset + 1;
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(is_blank).len();
        Ok(Some(if separator == '\n' { Key::Inherited(name) } else { Key::Assigned(name) }))
    }

    fn value(&mut self, known: &Variables, lookup: Lookup<'_>) -> Result<String, DotenvError> {
        let start = self.at;
        let quote = match self.rest().chars().next() {
            Some(c @ ('"' | '\'')) => c,
            _ => {
                let rest = self.rest();
                let line = rest.split('\n').next().unwrap_or_default();
                let length = (line.len() + 1).min(rest.len());
                let value = line.split(" #").next().unwrap_or_default().trim_end().to_owned();
                self.at += length;
                return self.expand(&value, start, known, lookup);
            }
        };
        let mut value = String::new();
        let mut escaped = false;
        for (offset, c) in self.text[start..].char_indices().skip(1) {
            if c == quote && !escaped {
                self.at = start + offset + 1;
                return if quote == '"' {
                    self.expand(&unescape(&value), start, known, lookup)
                } else {
                    Ok(value)
                };
            }
            if c == '\\' && !escaped {
                escaped = true;
                continue;
            }
            if escaped && c != quote {
                value.push('\\');
            }
            escaped = false;
            value.push(c);
        }
        let line = self.rest().lines().next().unwrap_or_default().to_owned();
        self.error(start, format!("the quote is not closed: {line}"))
    }

    fn expand(
        &mut self,
        value: &str,
        at: usize,
        known: &Variables,
        lookup: Lookup<'_>,
    ) -> Result<String, DotenvError> {
        let find = |name: &str| lookup(name).or_else(|| known.get(name).cloned());
        let mut template = Template { lookup: &find, defer: false, unset: BTreeSet::new() };
        let result = template.substitute(value);
        self.unset.append(&mut template.unset);
        result.or_else(|error| self.error(at, error.to_string()))
    }
}

/// Shell-like escapes; `\$` becomes `$$`, which interpolation turns into a dollar.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let Some(c) = after.chars().next() else {
            out.push('\\');
            return out;
        };
        rest = &after[c.len_utf8()..];
        match c {
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '"' | '\\' => out.push(c),
            '$' => out.push_str("$$"),
            '0' => {
                let digits: String =
                    rest.chars().take(3).take_while(char::is_ascii_digit).collect();
                match u8::from_str_radix(&digits, 8) {
                    Ok(byte) if digits.len() == 3 => out.push(char::from(byte)),
                    _ => {
                        out.push_str("\\0");
                        out.push_str(&digits);
                    }
                }
                rest = &rest[digits.len()..];
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Variables, DotenvError> {
        let mut out = Variables::new();
        let lookup = |name: &str| (name == "HOST").then(|| "h".to_owned());
        parse(text, &mut out, &lookup).map(|_| out)
    }

    #[test]
    fn forms() {
        let text = "# comment\nexport A=1 # note\nB: two\nC=\"x\\ty $A\" # c\nD='$A'\nHOST\nE=${A:-z}-$HOST\n\
                    F=\"a\nb\"\nG=\nH=a#b\nI=\"\\$A \\\"q\\\"\"\n";
        let out = read(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two"),
            ("C", "x\ty 1"),
            ("D", "$A"),
            ("E", "1-h"),
            ("F", "a\nb"),
            ("G", ""),
            ("H", "a#b"),
            ("HOST", "h"),
            ("I", "$A \"q\""),
        ];
        assert_eq!(out.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn errors_have_lines() {
        assert_eq!(read("A=1\nB C=2\n").unwrap_err().line, 2);
        assert_eq!(read("A=1\n\nB='x\n").unwrap_err().line, 3);
        assert_eq!(read("A!=1\n").unwrap_err().line, 1);
        assert_eq!(read("A=${\n").unwrap_err().line, 1);
    }

    #[test]
    fn raw_is_literal() {
        let mut out = Variables::new();
        parse_raw("A=\"$X\" # y\n\n# c\nHOST\n", &mut out, &|_| Some("h".to_owned())).unwrap();
        assert_eq!(out["A"], "\"$X\" # y");
        assert_eq!(out["HOST"], "h");
        assert!(parse_raw("=x", &mut out, &|_| None).is_err());
        assert!(parse_raw("A B=x", &mut out, &|_| None).is_err());
    }
}
