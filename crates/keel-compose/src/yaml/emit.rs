//! Canonical values → YAML in go-yaml's style: block form, two spaces, plain scalars where they read back as the
//! same string.

use std::fmt::Write;

use serde_json::Value as Json;

use super::scalar::resolve;
use crate::number::go_general;
use crate::value::Value;

/// Prints a value as a document.
pub(crate) fn emit(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(map) if !map.is_empty() => block_map(map, 0, &mut out),
        Json::Array(items) if !items.is_empty() => block_seq(items, 0, &mut out),
        _ => {
            scalar(value, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn block_map(map: &serde_json::Map<String, Json>, indent: usize, out: &mut String) {
    for (at, (key, value)) in map.iter().enumerate() {
        // The first key of a mapping inside a list stands behind the dash.
        if at > 0 || out.is_empty() || out.ends_with('\n') {
            pad(indent, out);
        }
        text(key, indent, true, out);
        out.push(':');
        child(value, indent, out);
    }
}

fn block_seq(items: &[Json], indent: usize, out: &mut String) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 || out.is_empty() || out.ends_with('\n') {
            pad(indent, out);
        }
        out.push('-');
        match item {
            Json::Object(map) if !map.is_empty() => {
                out.push(' ');
                block_map(map, indent + 2, out);
            }
            Json::Array(items) if !items.is_empty() => {
                out.push(' ');
                block_seq(items, indent + 2, out);
            }
            _ => {
                out.push(' ');
                scalar(item, indent, out);
                out.push('\n');
            }
        }
    }
}

fn child(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            out.push('\n');
            block_map(map, indent + 2, out);
        }
        Json::Array(items) if !items.is_empty() => {
            out.push('\n');
            block_seq(items, indent + 2, out);
        }
        _ => {
            out.push(' ');
            scalar(value, indent, out);
            out.push('\n');
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(value) => out.push_str(&go_general(value)),
            None => out.push_str(&number.to_string()),
        },
        Json::String(string) => text(string, indent, false, out),
        Json::Array(_) => out.push_str("[]"),
        Json::Object(_) => out.push_str("{}"),
    }
}

/// What a text's characters permit.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // Each is an independent property of a text.
struct Analysis {
    indicators: bool,
    edges: bool,
    trailing_space: bool,
    line_breaks: bool,
    break_then_space: bool,
    space_then_break: bool,
    tabs: bool,
    special: bool,
}

fn analyze(text: &str) -> Analysis {
    let mut found = Analysis {
        indicators: text.starts_with("---") || text.starts_with("..."),
        ..Analysis::default()
    };
    let (mut previous_space, mut previous_break, mut preceded_by_blank) = (false, false, true);
    let mut chars = text.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        let last = chars.peek().is_none();
        let blank_follows =
            chars.peek().is_none_or(|next| matches!(next, ' ' | '\t' | '\n' | '\r'));
        found.indicators |= match c {
            '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
            | '@' | '`'
                if first =>
            {
                true
            }
            '?' | '-' if first => blank_follows,
            ':' => blank_follows,
            '#' => preceded_by_blank,
            _ => false,
        };
        match c {
            '\t' => found.tabs = true,
            '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => found.line_breaks = true,
            '\u{feff}' | '\u{fffe}' | '\u{ffff}' => found.special = true,
            c if c.is_control() => found.special = true,
            _ => {}
        }
        let is_break = matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let is_space = c == ' ';
        found.edges |= (is_space || is_break) && (first || last);
        found.trailing_space |= is_space && last;
        found.break_then_space |= is_space && previous_break;
        found.space_then_break |= is_break && previous_space;
        (previous_space, previous_break) = (is_space, is_break);
        preceded_by_blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        first = false;
    }
    found
}

fn text(text: &str, indent: usize, key: bool, out: &mut String) {
    let found = analyze(text);
    let broken = found.space_then_break || found.special;
    if text.contains('\n') && !key && !found.trailing_space && !broken {
        return literal(text, indent, out);
    }
    let plain_is_a_string = matches!(resolve(text), Value::String(_))
        && text != "<<"
        && !is_old_boolean(text)
        && !is_base_60(text);
    let quotable = !(broken || found.break_then_space || found.tabs || key && found.line_breaks);
    if !plain_is_a_string || !quotable || text.contains('\n') {
        double_quoted(text, out);
    } else if found.indicators || found.edges || found.line_breaks {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    } else {
        out.push_str(text);
    }
}

fn literal(text: &str, indent: usize, out: &mut String) {
    out.push('|');
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    let body = text.strip_suffix('\n');
    match body {
        None => out.push('-'),
        Some(body) if body.is_empty() || body.ends_with('\n') => out.push('+'),
        Some(_) => {}
    }
    for line in body.unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent + 2, out);
            out.push_str(line);
        }
    }
}

fn double_quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{a0}' => out.push_str("\\_"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            c if c.is_control() || c == '\u{feff}' => {
                let code = u32::from(c);
                // Writing to a string cannot fail.
                let _ = if code <= 0xff {
                    write!(out, "\\x{code:02X}")
                } else {
                    write!(out, "\\u{code:04X}")
                };
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn is_old_boolean(text: &str) -> bool {
    matches!(
        text,
        "y" | "Y"
            | "yes"
            | "Yes"
            | "YES"
            | "on"
            | "On"
            | "ON"
            | "n"
            | "N"
            | "no"
            | "No"
            | "NO"
            | "off"
            | "Off"
            | "OFF"
    )
}

/// `1:30` and the like, which YAML 1.1 reads as a number in base 60.
fn is_base_60(text: &str) -> bool {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let body = body.split_once('.').map_or(body, |(whole, fraction)| {
        if fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_') { whole } else { "" }
    });
    let mut parts = body.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    first.starts_with(|c: char| c.is_ascii_digit())
        && first.bytes().all(|b| b.is_ascii_digit() || b == b'_')
        && !rest.is_empty()
        && rest.iter().all(|part| {
            (1..=2).contains(&part.len()) && part.parse::<u8>().is_ok_and(|number| number < 60)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_quoted_when_they_would_read_back_differently() {
        for (value, expected) in [
            ("a b", "a b"),
            ("true", "\"true\""),
            ("yes", "\"yes\""),
            ("1:30", "\"1:30\""),
            ("0.5", "\"0.5\""),
            ("", "\"\""),
            ("#x", "'#x'"),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("it's", "it's"),
            ("'q'", "'''q'''"),
            (" x", "' x'"),
            ("a\tb", "\"a\\tb\""),
            ("- x", "'- x'"),
            ("-x", "-x"),
            ("[a", "'[a'"),
            ("a[b", "a[b"),
            ("2024-01-01", "\"2024-01-01\""),
        ] {
            assert_eq!(emit(&json!(value)), format!("{expected}\n"));
        }
    }

    #[test]
    fn blocks() {
        let value =
            json!({"a": [{"b": 1, "c": [2]}, "x"], "d": {}, "e": [], "f": "l1\nl2\n", "g": null});
        let expected =
            "a:\n  - b: 1\n    c:\n      - 2\n  - x\nd: {}\ne: []\nf: |\n  l1\n  l2\ng: null\n";
        assert_eq!(emit(&value), expected);
    }
}
