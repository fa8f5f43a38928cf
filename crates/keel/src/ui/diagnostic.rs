//! Errors and warnings about input files, with the line that they are about.
//!
//! The form is rustc's: message, place, source line, marker, hint. The lines come from a [`Lines`], so that rendering
//! itself reads nothing.

use std::collections::BTreeSet;

use keel_compose::{Diagnostic, Severity, Span};
use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::paint::Paint;

/// Longest part of a source line that is shown, in characters.
const MAX_LINE: usize = 160;
/// Diagnostics shown at most; the rest is counted.
const MAX_SHOWN: usize = 50;

/// Gives the lines of the files that diagnostics speak of.
pub trait Lines {
    /// The line with this number, from 1, of a file as the diagnostic names it.
    fn line(&self, file: &str, number: u32) -> Option<String>;

    /// The file as a user would name it.
    fn name<'a>(&self, file: &'a str) -> &'a str {
        file
    }
}

/// Renders diagnostics for people: errors last, so that they stay in sight; each at most once.
pub fn render(diagnostics: &[Diagnostic], lines: &dyn Lines, paint: Paint) -> String {
    let mut seen = BTreeSet::new();
    let mut text = String::new();
    let unique = sorted(diagnostics)
        .into_iter()
        .filter(|diagnostic| seen.insert(diagnostic.to_string()))
        .collect::<Vec<_>>();
    let hidden = unique.len().saturating_sub(MAX_SHOWN);
    for diagnostic in unique.into_iter().skip(hidden) {
        text.push_str(&one(diagnostic, lines, paint));
    }
    if hidden > 0 {
        text.push_str(&format!("{}: {hidden} more are not shown\n", paint.bold("note")));
    }
    text
}

fn sorted(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by_key(|diagnostic| std::cmp::Reverse(diagnostic.severity));
    sorted
}

fn one(diagnostic: &Diagnostic, lines: &dyn Lines, paint: Paint) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => paint.error("error"),
        Severity::Warning => paint.warning("warning"),
        Severity::Note => paint.hint("note"),
    };
    let mut text = format!("{severity}: {}\n", paint.bold(&diagnostic.message));
    if let Some(span) = &diagnostic.span {
        text.push_str(&place(span, lines, paint));
    }
    if let Some(help) = &diagnostic.help {
        text.push_str(&format!("{}: {}\n", paint.hint("hint"), help.replace('\n', "\n      ")));
    }
    text
}

fn place(span: &Span, lines: &dyn Lines, paint: Paint) -> String {
    let number = span.line.to_string();
    let margin = " ".repeat(number.len());
    let file = lines.name(&span.file);
    let mut text = format!("{margin}{} {file}:{}:{}\n", paint.frame("-->"), span.line, span.column);
    let Some(line) = lines.line(&span.file, span.line) else { return text };
    let column = span.column.saturating_sub(1) as usize;
    if line.trim().is_empty() || column >= MAX_LINE {
        return text;
    }
    let shown: String = line.chars().map(printable).take(MAX_LINE).collect();
    let before: String = shown.chars().take(column).collect();
    let marked: String = shown.chars().skip(column).take(token_length(&shown, column)).collect();
    let bar = paint.frame("|");
    text.push_str(&format!("{margin} {bar}\n{} {bar} {shown}\n", paint.frame(&number)));
    text.push_str(&format!(
        "{margin} {bar} {}{}\n",
        " ".repeat(before.width()),
        paint.error("^".repeat(marked.width().max(1)))
    ));
    text
}

/// Tabs would shift the marker and control characters could do anything.
fn printable(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

/// Length of the word or quoted text that begins at `column`.
fn token_length(line: &str, column: usize) -> usize {
    let mut rest = line.chars().skip(column).peekable();
    let quote = rest.peek().copied().filter(|c| matches!(c, '"' | '\''));
    if let Some(quote) = quote {
        let inner = rest.skip(1).take_while(|c| *c != quote).count();
        return inner + 2;
    }
    if line.chars().skip(column).take(2).eq("${".chars()) {
        return rest.take_while(|c| *c != '}').count() + 1;
    }
    rest.take_while(|c| !c.is_whitespace() && !matches!(c, ',' | ']' | '}'))
        .collect::<String>()
        .trim_end_matches(':')
        .chars()
        .count()
}

/// A diagnostic for programs.
#[derive(Serialize)]
struct Json<'a> {
    severity: String,
    code: &'a str,
    message: &'a str,
    file: Option<&'a str>,
    line: Option<u32>,
    column: Option<u32>,
    hint: Option<&'a str>,
}

/// Renders diagnostics for programs: one JSON object per line.
pub fn render_json(diagnostics: &[Diagnostic]) -> String {
    let mut seen = BTreeSet::new();
    sorted(diagnostics)
        .into_iter()
        .map(|diagnostic| Json {
            severity: diagnostic.severity.to_string(),
            code: diagnostic.code.as_str(),
            message: &diagnostic.message,
            file: diagnostic.span.as_ref().map(|span| &*span.file),
            line: diagnostic.span.as_ref().map(|span| span.line),
            column: diagnostic.span.as_ref().map(|span| span.column),
            hint: diagnostic.help.as_deref(),
        })
        .map(|json| serde_json::to_string(&json).expect("a struct of text and numbers is JSON"))
        .filter(|line| seen.insert(line.clone()))
        .map(|line| line + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use keel_compose::Code;

    use super::*;

    struct One(&'static str);

    impl Lines for One {
        fn line(&self, _: &str, number: u32) -> Option<String> {
            self.0.lines().nth(number as usize - 1).map(str::to_owned)
        }
    }

    fn unknown_key(line: u32, column: u32) -> Diagnostic {
        let span = Span { file: "compose.yaml".into(), line, column };
        Diagnostic::error(Code::UnknownKey, "unknown key `helthcheck`")
            .at(&span)
            .help("did you mean `healthcheck`?")
    }

    #[test]
    fn the_line_and_the_word_are_shown() {
        let lines = One("services:\n  web:\n    helthcheck:\n      test: x\n");
        insta::assert_snapshot!(render(&[unknown_key(3, 5)], &lines, Paint::PLAIN), @r"
        error: unknown key `helthcheck`
         --> compose.yaml:3:5
          |
        3 |     helthcheck:
          |     ^^^^^^^^^^
        hint: did you mean `healthcheck`?
        ");
    }

    #[test]
    fn errors_come_last_and_only_once() {
        let warning = Diagnostic::warning(Code::Unsupported, "`links` has no effect");
        let all = [unknown_key(1, 1), warning.clone(), unknown_key(1, 1), warning];
        insta::assert_snapshot!(render(&all, &One(""), Paint::PLAIN), @r"
        warning: `links` has no effect
        error: unknown key `helthcheck`
         --> compose.yaml:1:1
        hint: did you mean `healthcheck`?
        ");
    }

    #[test]
    fn hostile_positions_and_lines_are_harmless() {
        for (line, column) in [(1, 1), (1, 900), (9, 1), (1, 0), (0, 0)] {
            let lines = One("\u{1b}[2J\tweb: [é, \"x");
            struct Safe<'a>(&'a One);
            impl Lines for Safe<'_> {
                fn line(&self, file: &str, number: u32) -> Option<String> {
                    if number == 0 { None } else { self.0.line(file, number) }
                }
            }
            let text = render(&[unknown_key(line, column)], &Safe(&lines), Paint::PLAIN);
            assert!(!text.contains('\u{1b}'), "{text:?}");
        }
    }

    #[test]
    fn json_has_the_position() {
        insta::assert_snapshot!(render_json(&[unknown_key(3, 5)]), @r#"{"severity":"error","code":"unknown-key","message":"unknown key `helthcheck`","file":"compose.yaml","line":3,"column":5,"hint":"did you mean `healthcheck`?"}"#);
    }
}
