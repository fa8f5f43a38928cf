//! Regular expressions for both engines, which use PCRE2 on bytes.
//!
//! Users write for the `regex` crate. Its parser reads the expression, and what it means is written anew: the text that
//! comes out has a small alphabet without quotes, spaces, `$`, `;` and `#`, so that no expression can end a word
//! or a directive of a configuration. Where PCRE2 reads the same text differently (`$` before a newline, `\d` and
//! `\w` beyond ASCII, classes with `&&`), the meaning of the original is kept.
//!
//! Not kept: a part of a class outside of ASCII that takes more than [`MAX_SEQUENCES`] byte sequences is rounded to all
//! or nothing of what is outside. Only raw bytes of a request could tell, which senders have to encode.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Capture, Class, ClassUnicode, Hir, HirKind, Look, Repetition};
use regex_syntax::utf8::{Utf8Sequence, Utf8Sequences};

/// Byte sequences that stand for the part of one class outside of ASCII.
const MAX_SEQUENCES: usize = 32;
/// Longest expression that comes out, in bytes.
const MAX_LENGTH: usize = 8 * 1024;
/// The most repetitions that PCRE2 counts to.
const MAX_REPEAT: u32 = 65_535;
/// Parentheses inside of parentheses.
const MAX_NESTING: u32 = 100;

/// Whether upper and lower case differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Sensitive,
    Ignored,
}

/// An expression that was understood.
#[derive(Debug)]
pub(crate) struct Pattern {
    hir: Hir,
    /// Names of groups and their numbers.
    names: BTreeMap<String, u32>,
}

impl Pattern {
    /// Reads an expression; `None` if it is not one.
    pub fn parse(expression: &str, case: Case) -> Option<Self> {
        let hir = ParserBuilder::new()
            .utf8(false)
            .nest_limit(MAX_NESTING)
            .case_insensitive(case == Case::Ignored)
            .build()
            .parse(expression)
            .ok()?;
        let mut names = BTreeMap::new();
        collect_names(&hir, &mut names);
        Some(Self { hir, names })
    }

    /// The expression without groups that capture; `None` if it is too long.
    pub fn plain(&self) -> Option<String> {
        self.with_groups(&[])
    }

    /// The expression, with only these groups capturing, in the order of the expression; `None` if it is too long.
    pub fn with_groups(&self, groups: &[u32]) -> Option<String> {
        let mut printer = Printer { out: String::new(), groups, impossible: false };
        printer.print(&self.hir);
        (!printer.impossible && printer.out.len() <= MAX_LENGTH).then_some(printer.out)
    }

    /// The number of the group that a replacement calls `name` (a number or a name); `None` if there is none, and
    /// then it stands for nothing.
    pub fn group(&self, name: &str) -> Option<u32> {
        let known = self.hir.properties().explicit_captures_len();
        match name.parse::<u32>() {
            Ok(number) => (usize::try_from(number).is_ok_and(|n| n <= known)).then_some(number),
            Err(_) => self.names.get(name).copied(),
        }
    }
}

fn collect_names(hir: &Hir, names: &mut BTreeMap<String, u32>) {
    match hir.kind() {
        HirKind::Capture(Capture { index, name, sub }) => {
            if let Some(name) = name {
                names.insert(name.to_string(), *index);
            }
            collect_names(sub, names);
        }
        HirKind::Repetition(Repetition { sub, .. }) => collect_names(sub, names),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| collect_names(part, names));
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => {}
    }
}

/// The bytes of `text` as an expression that matches them and nothing else.
pub(crate) fn literal(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    text.iter().for_each(|byte| push_byte(&mut out, *byte));
    out
}

/// An expression for a part of a query that reads as `text` once decoded (`+` and `%xx`).
pub(crate) fn decoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let (high, low) = (hex_class(byte >> 4), hex_class(byte & 15));
        match byte {
            b' ' => out.push_str(r"(?:\x2B|%20)"),
            // These part a query; they only stand for themselves when encoded. So does what begins an encoding.
            b'&' | b'=' | b'+' => {
                let _ = write!(out, "%{high}{low}");
            }
            _ => {
                out.push_str("(?:");
                push_byte(&mut out, byte);
                let _ = write!(out, "|%{high}{low})");
            }
        }
    }
    out
}

/// An expression for the percent-encoding of a byte.
pub(crate) fn triplet(byte: u8) -> String {
    format!("%{}{}", hex_class(byte >> 4), hex_class(byte & 15))
}

fn hex_class(nibble: u8) -> String {
    let digit = char::from(b"0123456789ABCDEF"[usize::from(nibble & 15)]);
    match digit {
        '0'..='9' => digit.to_string(),
        letter => format!("[{letter}{}]", letter.to_ascii_lowercase()),
    }
}

fn push_byte(out: &mut String, byte: u8) {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
        b'_' | b'-' | b'/' | b'=' | b'&' | b'~' | b',' | b':' | b'@' | b'%' => {
            out.push(char::from(byte));
        }
        b'.' => out.push_str(r"\."),
        _ => {
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
}

fn push_in_class(out: &mut String, byte: u8) {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'/' | b'.' => out.push(char::from(byte)),
        _ => {
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
}

struct Printer<'a> {
    out: String,
    groups: &'a [u32],
    impossible: bool,
}

impl Printer<'_> {
    fn print(&mut self, hir: &Hir) {
        if self.out.len() > MAX_LENGTH {
            self.impossible = true;
        }
        if self.impossible {
            return;
        }
        match hir.kind() {
            HirKind::Empty => self.out.push_str("(?:)"),
            HirKind::Literal(literal) => {
                literal.0.iter().for_each(|b| push_byte(&mut self.out, *b))
            }
            HirKind::Class(class) => self.class(class),
            HirKind::Look(look) => self.out.push_str(look_text(*look)),
            HirKind::Repetition(repetition) => self.repetition(repetition),
            HirKind::Capture(Capture { index, sub, .. }) => {
                self.out.push_str(if self.groups.contains(index) { "(" } else { "(?:" });
                self.print(sub);
                self.out.push(')');
            }
            HirKind::Concat(parts) => parts.iter().for_each(|part| self.print(part)),
            HirKind::Alternation(parts) => {
                self.out.push_str("(?:");
                for (index, part) in parts.iter().enumerate() {
                    if index > 0 {
                        self.out.push('|');
                    }
                    self.print(part);
                }
                self.out.push(')');
            }
        }
    }

    fn repetition(&mut self, repetition: &Repetition) {
        let Repetition { min, max, greedy, sub } = repetition;
        if *min > MAX_REPEAT || max.is_some_and(|max| max > MAX_REPEAT) {
            self.impossible = true;
            return;
        }
        let single = match sub.kind() {
            HirKind::Class(_) | HirKind::Capture(_) => true,
            HirKind::Literal(literal) => literal.0.len() == 1,
            _ => false,
        };
        if !single {
            self.out.push_str("(?:");
        }
        self.print(sub);
        if !single {
            self.out.push(')');
        }
        let _ = match (min, max) {
            (0, None) => write!(self.out, "*"),
            (1, None) => write!(self.out, "+"),
            (0, Some(1)) => write!(self.out, "?"),
            (min, None) => write!(self.out, "{{{min},}}"),
            (min, Some(max)) if min == max => write!(self.out, "{{{min}}}"),
            (min, Some(max)) => write!(self.out, "{{{min},{max}}}"),
        };
        if !greedy {
            self.out.push('?');
        }
    }

    fn class(&mut self, class: &Class) {
        let mut ascii = [false; 128];
        let mut rest = Rest::None;
        match class {
            Class::Unicode(class) => {
                for range in class.ranges() {
                    for code in u32::from(range.start())..=u32::from(range.end()).min(127) {
                        ascii[code as usize] = true;
                    }
                }
                rest = rest_of(class);
            }
            Class::Bytes(class) => {
                let mut high = Vec::new();
                for range in class.ranges() {
                    for byte in range.start()..=range.end() {
                        match ascii.get_mut(usize::from(byte)) {
                            Some(bit) => *bit = true,
                            None => high.push(byte),
                        }
                    }
                }
                if high.len() == 128 {
                    rest = Rest::All;
                } else if !high.is_empty() {
                    rest = Rest::Some(high.iter().map(|byte| format!("\\x{byte:02X}")).collect());
                }
            }
        }
        self.out.push_str(&class_text(&ascii, &rest));
    }
}

/// What a class has outside of ASCII.
enum Rest {
    None,
    All,
    Some(Vec<String>),
}

fn rest_of(class: &ClassUnicode) -> Rest {
    let outside = |range: &&regex_syntax::hir::ClassUnicodeRange| u32::from(range.end()) > 127;
    let mut sequences = Vec::new();
    let mut count: u64 = 0;
    for range in class.ranges().iter().filter(outside) {
        let start = range.start().max('\u{80}');
        count += u64::from(u32::from(range.end()) - u32::from(start)) + 1;
        if sequences.len() <= MAX_SEQUENCES {
            sequences.extend(Utf8Sequences::new(start, range.end()).map(|s| sequence_text(&s)));
        }
    }
    // The characters beyond ASCII; a range counts those that do not exist between U+D800 and U+DFFF too.
    let all = u64::from(u32::from(char::MAX)) - 127;
    if count == 0 {
        Rest::None
    } else if count + 0x800 >= all || (sequences.len() > MAX_SEQUENCES && count * 2 > all) {
        Rest::All
    } else if sequences.len() > MAX_SEQUENCES {
        Rest::None
    } else {
        Rest::Some(sequences)
    }
}

fn sequence_text(sequence: &Utf8Sequence) -> String {
    let mut out = String::new();
    for range in sequence.as_slice() {
        let _ = match range.start == range.end {
            true => write!(out, "\\x{:02X}", range.start),
            false => write!(out, "[\\x{:02X}-\\x{:02X}]", range.start, range.end),
        };
    }
    out
}

fn class_text(ascii: &[bool; 128], rest: &Rest) -> String {
    let set = |wanted: bool| {
        let mut out = String::new();
        let mut at = 0;
        while at < ascii.len() {
            let run = ascii[at..].iter().take_while(|bit| **bit == wanted).count();
            let byte = |at: usize| u8::try_from(at).unwrap_or(127);
            match run {
                0 => {}
                1 => push_in_class(&mut out, byte(at)),
                _ => {
                    push_in_class(&mut out, byte(at));
                    if run > 2 {
                        out.push('-');
                    }
                    push_in_class(&mut out, byte(at + run - 1));
                }
            }
            at += run.max(1);
        }
        out
    };
    let (yes, no) = (set(true), set(false));
    match rest {
        Rest::None if yes.is_empty() => "(?!)".to_owned(),
        Rest::None => format!("[{yes}]"),
        Rest::All if no.is_empty() => r"[\x00-\xFF]".to_owned(),
        Rest::All => format!("[^{no}]"),
        Rest::Some(sequences) => {
            let mut parts = sequences.clone();
            if !yes.is_empty() {
                parts.insert(0, format!("[{yes}]"));
            }
            format!("(?:{})", parts.join("|"))
        }
    }
}

const fn look_text(look: Look) -> &'static str {
    match look {
        Look::Start => r"\A",
        Look::End => r"\z",
        Look::StartLF | Look::StartCRLF => "(?m:^)",
        Look::EndLF | Look::EndCRLF => r"(?=\x0A|\z)",
        Look::WordAscii | Look::WordUnicode => r"\b",
        Look::WordAsciiNegate | Look::WordUnicodeNegate => r"\B",
        Look::WordStartAscii | Look::WordStartUnicode => r"\b(?=\w)",
        Look::WordEndAscii | Look::WordEndUnicode => r"\b(?<=\w)",
        Look::WordStartHalfAscii | Look::WordStartHalfUnicode => r"(?<!\w)",
        Look::WordEndHalfAscii | Look::WordEndHalfUnicode => r"(?!\w)",
    }
}

/// A part of what stands in the place of a match.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Group(&'a str),
}

/// The parts of a replacement, read as the `regex` crate does: `$1`, `$name` (the longest possible name), `${name}`
/// and `$$`.
pub(crate) fn replacement(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let after = &rest[at + 1..];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let bare = after.find(|c| !word(c)).unwrap_or(after.len());
        if let Some(tail) = after.strip_prefix('$') {
            pieces.push(Piece::Text("$"));
            rest = tail;
        } else if let Some((name, tail)) =
            after.strip_prefix('{').and_then(|braced| braced.split_once('}'))
        {
            pieces.push(Piece::Group(name));
            rest = tail;
        } else if bare > 0 {
            pieces.push(Piece::Group(&after[..bare]));
            rest = &after[bare..];
        } else {
            pieces.push(Piece::Text("$"));
            rest = after;
        }
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(expression: &str) -> String {
        Pattern::parse(expression, Case::Sensitive).unwrap().plain().unwrap()
    }

    #[test]
    fn expressions_are_written_anew() {
        for (expression, expected) in [
            ("/api/v[0-9]+", "/api/v[0-9]+"),
            ("^/a$", r"\A/a\z"),
            (r"/a\.b c", r"/a\.b\x20c"),
            ("a|bc", "(?:a|bc)"),
            ("(?i)k", "(?:[Kk]|\\xE2\\x84\\xAA)"),
            ("[^/]*?", "[^/]*?"),
            (".", r"[^\x0A]"),
            ("(?s).{2,3}", r"[\x00-\xFF]{2,3}"),
            (r"\d", "[0-9]"),
            ("(a)(?P<x>b)", "(?:a)(?:b)"),
            ("é", r"\xC3\xA9"),
            ("[a-z&&[^b]]", "[ac-z]"),
            (r#"";\{\}%#'\\ "#, r"\x22\x3B\x7B\x7D%\x23\x27\x5C\x20"),
            ("", "(?:)"),
        ] {
            assert_eq!(plain(expression), expected, "{expression}");
        }
        for bad in ["(", "[", "a{70000}{70000}", r"\8", "(?=a)"] {
            let parsed = Pattern::parse(bad, Case::Sensitive);
            assert!(parsed.is_none_or(|p| p.plain().is_none()), "{bad}");
        }
    }

    #[test]
    fn only_groups_that_are_asked_for_capture() {
        let pattern = Pattern::parse("(a)(?<n>b)(c)", Case::Sensitive).unwrap();
        assert_eq!((pattern.group("n"), pattern.group("3")), (Some(2), Some(3)));
        assert_eq!((pattern.group("4"), pattern.group("m")), (None, None));
        assert_eq!(pattern.with_groups(&[2]).unwrap(), "(?:a)(b)(?:c)");
    }

    #[test]
    fn replacements() {
        use Piece::{Group, Text};
        let pieces = replacement("/$1a/${b}/$$x$/$");
        let expected = [
            Text("/"),
            Group("1a"),
            Text("/"),
            Group("b"),
            Text("/"),
            Text("$"),
            Text("x"),
            Text("$"),
            Text("/"),
            Text("$"),
        ];
        assert_eq!(pieces, expected);
    }

    proptest! {
        /// No expression can end a word of a configuration.
        #[test]
        fn the_alphabet_is_small(expression in "\\PC{0,20}") {
            if let Some(text) = Pattern::parse(&expression, Case::Ignored).and_then(|p| p.plain()) {
                prop_assert!(text.chars().all(|c| c.is_ascii_graphic() && !"\"'`;#$".contains(c)), "{text}");
            }
            let text = literal(expression.as_bytes()) + &decoded(&expression);
            prop_assert!(text.chars().all(|c| c.is_ascii_graphic() && !"\"'`;#${}".contains(c)), "{text}");
        }
    }
}
