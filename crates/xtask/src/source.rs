//! Rust source as text: what is code, what is comment, string or test.
//!
//! A small scanner instead of a parser: it keeps every line where it is and blanks what a check must not see. It
//! does not expand macros and does not know types.

/// Source whose comments and literals are blanked, line by line as in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Code(String);

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    RawText(usize),
}

impl Code {
    /// Blanks comments and the content of literals.
    pub(crate) fn of(source: &str) -> Self {
        let chars: Vec<char> = source.chars().collect();
        let mut out = String::with_capacity(source.len());
        let mut inside = Inside::Code;
        let mut at = 0;
        while at < chars.len() {
            let (next, length, visible) =
                step(&chars[at..], inside, at.checked_sub(1).map(|b| chars[b]));
            for &c in &chars[at..(at + length).min(chars.len())] {
                out.push(if visible || c == '\n' { c } else { ' ' });
            }
            at += length;
            inside = next;
        }
        Self(out)
    }

    /// The same without the items marked `#[cfg(test)]`.
    pub(crate) fn without_tests(&self) -> Self {
        let mut chars: Vec<char> = self.0.chars().collect();
        let marker: Vec<char> = "#[cfg(test)]".chars().collect();
        let mut at = 0;
        while at + marker.len() <= chars.len() {
            if chars[at..at + marker.len()] != marker[..] {
                at += 1;
                continue;
            }
            let end = item_end(&chars, at + marker.len());
            chars[at..end].iter_mut().filter(|c| **c != '\n').for_each(|c| *c = ' ');
            at = end;
        }
        Self(chars.into_iter().collect())
    }

    /// Names of modules in files of their own that are compiled for tests only.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let mut names = Vec::new();
        for after in self.0.split("#[cfg(test)]").skip(1) {
            let item = after.split(['{', ';']).next().unwrap_or_default();
            let ends_here = after[item.len()..].starts_with(';');
            let mut words = item.split_whitespace().skip_while(|word| *word != "mod").skip(1);
            if let (true, Some(name)) = (ends_here, words.next()) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Number and text of each line.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.0.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Line numbers at which `path` is used, written out or through `use` with braces. `path` may end inside a word
    /// (`std::net::Tcp` finds `TcpStream`) if `whole` is false.
    pub(crate) fn uses(&self, path: &str, whole: bool) -> Vec<usize> {
        let matches = |found: &str| {
            found.strip_prefix(path).is_some_and(|rest| {
                !whole || !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
            })
        };
        let mut lines: Vec<_> =
            self.imports().into_iter().filter(|(_, p)| matches(p)).map(|(l, _)| l).collect();
        for (number, line) in self.lines() {
            let found = line.match_indices(path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let fresh = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
                fresh && matches(&line[at..])
            });
            if found {
                lines.push(number);
            }
        }
        lines.sort_unstable();
        lines.dedup();
        lines
    }

    /// Whether `word` occurs as a whole identifier.
    pub(crate) fn mentions(&self, word: &str) -> bool {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        self.0.match_indices(word).any(|(at, _)| {
            let before = self.0[..at].chars().next_back();
            let after = self.0[at + word.len()..].chars().next();
            !before.is_some_and(part) && !after.is_some_and(part)
        })
    }

    /// Every path named by a `use` item, braces expanded, with the line of the item.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut imports = Vec::new();
        let mut offset = 0;
        for statement in self.0.split_inclusive([';', '{', '}']) {
            let start = offset;
            offset += statement.len();
            let words = statement.trim_start();
            let item = words.strip_prefix("pub ").unwrap_or(words);
            if !item.starts_with("use ") {
                continue;
            }
            // The statement was cut at its first brace; take it up to the semicolon.
            let whole = self.0[start..].split(';').next().unwrap_or_default();
            let lead = whole.len() - whole.trim_start().len();
            let line = 1 + self.0[..start + lead].matches('\n').count();
            let tree = whole.trim_start().split_once("use ").map_or("", |(_, tree)| tree);
            expand("", &without_renames(tree), &mut |path| imports.push((line, path)));
        }
        imports
    }
}

/// What follows, how many characters it takes, and whether they stay visible.
fn step(rest: &[char], inside: Inside, before: Option<char>) -> (Inside, usize, bool) {
    let starts = |text: &str| text.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
    match inside {
        Inside::Code if starts("//") => (Inside::LineComment, 2, false),
        Inside::Code if starts("/*") => (Inside::BlockComment(1), 2, false),
        Inside::Code if starts("\"") => (Inside::Text, 1, true),
        Inside::Code
            if starts("r")
                && !before.is_some_and(|c| (c.is_alphanumeric() && c != 'b') || c == '_') =>
        {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) == Some(&'"') {
                (Inside::RawText(hashes), 2 + hashes, true)
            } else {
                (Inside::Code, 1, true)
            }
        }
        Inside::Code if starts("'") => match (rest.get(1), rest.get(2)) {
            (Some('\\'), _) => {
                let end = rest.iter().skip(3).position(|c| *c == '\'').map_or(3, |i| i + 4);
                (Inside::Code, end, false)
            }
            (Some(_), Some('\'')) => (Inside::Code, 3, false),
            _ => (Inside::Code, 1, true),
        },
        Inside::Code => (Inside::Code, 1, true),
        Inside::LineComment if starts("\n") => (Inside::Code, 1, true),
        Inside::LineComment => (Inside::LineComment, 1, false),
        Inside::BlockComment(depth) if starts("/*") => (Inside::BlockComment(depth + 1), 2, false),
        Inside::BlockComment(1) if starts("*/") => (Inside::Code, 2, false),
        Inside::BlockComment(depth) if starts("*/") => (Inside::BlockComment(depth - 1), 2, false),
        Inside::BlockComment(depth) => (Inside::BlockComment(depth), 1, false),
        Inside::Text if starts("\\") => (Inside::Text, 2, false),
        Inside::Text if starts("\"") => (Inside::Code, 1, true),
        Inside::Text => (Inside::Text, 1, false),
        Inside::RawText(hashes) => {
            let ends = starts("\"") && (1..=hashes).all(|i| rest.get(i) == Some(&'#'));
            if ends { (Inside::Code, 1 + hashes, true) } else { (inside, 1, false) }
        }
    }
}

/// The end of the item that begins at `at`: after its block, or after its semicolon.
fn item_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0usize;
    for (index, c) in chars.iter().enumerate().skip(at) {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return index + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    chars.len()
}

/// A use tree without white space and without `as name`.
fn without_renames(tree: &str) -> String {
    let mut kept = String::new();
    let mut words = tree.split_whitespace();
    while let Some(word) = words.next() {
        if word == "as" {
            let renamed = words.next().unwrap_or_default();
            let after = renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            kept.push_str(after);
        } else {
            kept.push_str(word);
        }
    }
    kept
}

/// Calls `found` with every path of a use tree without white space, such as `std::{fs,io::{self,Read}}`.
fn expand(prefix: &str, tree: &str, found: &mut impl FnMut(String)) {
    let Some(open) = tree.find('{') else {
        found(format!("{prefix}{tree}"));
        return;
    };
    let inner_prefix = format!("{prefix}{}", &tree[..open]);
    let inner = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
    let mut depth = 0i32;
    let mut start = 0;
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if start < at {
                    expand(&inner_prefix, &inner[start..at], found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let source = r##"let a = "x // \" y"; // std::fs
/* std /* nested */ fs */ let b = 'x'; let c: &'static str = r#"raw " std::fs"#;
let d = '\''; let e = b"std::fs"; let r = br"\"; f(r)"##;
        let code = Code::of(source);
        assert_eq!(code.0.len(), source.len());
        assert!(!code.0.contains("std"), "{}", code.0);
        for kept in
            ["let a = ", "let b =", "&'static str = r#\"", "let d", "let e", "let r", "f(r)"]
        {
            assert!(code.0.contains(kept), "{kept} in {}", code.0);
        }
    }

    #[test]
    fn tests_are_taken_out() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { { } }\n}\nfn c() {}\n#[cfg(test)]\npub(crate) mod fixture;\nfn d() {}\n";
        let code = Code::of(source);
        assert_eq!(code.test_modules(), ["fixture"]);
        let rest = code.without_tests();
        assert!(!rest.mentions("b") && !rest.mentions("fixture"));
        assert!(rest.mentions("a") && rest.mentions("c") && rest.mentions("d"));
        assert_eq!(rest.lines().count(), code.lines().count());
    }

    #[test]
    fn paths_are_found_however_they_are_written() {
        let lines = |source: &str, path| Code::of(source).uses(path, true);
        assert_eq!(lines("\nlet a = std::fs::read(b);", "std::fs"), [2]);
        assert_eq!(lines("use std::fs;", "std::fs"), [1]);
        assert_eq!(lines("// c\nuse std::{\n    fs::File, io,\n};", "std::fs"), [2]);
        assert_eq!(lines("pub use std::{io::{self, Read}, fs as f};", "std::fs"), [1]);
        assert_eq!(lines("use std::fsx; let my_std::fs; operand::a()", "rand"), [0; 0]);
        assert_eq!(lines("let now = time::Instant::now();", "Instant::now"), [1]);
        assert_eq!(
            Code::of("use std::net::{IpAddr, TcpStream};").uses("std::net::Tcp", false),
            [1]
        );
        assert_eq!(
            Code::of("use std::net::{IpAddr, SocketAddr};").uses("std::net::Tcp", false),
            [0; 0]
        );
    }
}
