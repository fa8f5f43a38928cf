//! House rules that no compiler checks: file lengths, module headers, leftovers, banned words.
//!
//! The banned words are data (`data/denied.txt`). Functions that are too long are clippy's affair.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::report::{Style, Verdict};
use crate::source::Code;
use crate::workspace::{Workspace, read};

/// Lines of a file, tests not counted, that fail.
const MAX_LINES: usize = 800;
/// Lines that want a reason.
const MANY_LINES: usize = 450;
/// Kinds of text file that are read.
const TEXT: &[&str] =
    &["rs", "toml", "md", "sh", "py", "ts", "js", "css", "html", "yaml", "yml", "json", "txt", ""];
/// Directories whose content is somebody else's.
const FOREIGN: &[&str] = &["fixtures", "corpus", "testdata", "snapshots"];
/// Not read: the list itself, and what cargo writes.
const EXEMPT: &[&str] = &["crates/xtask/data/denied.txt", "Cargo.lock", "LICENSE"];

/// The entries of the list by kind.
#[derive(Debug, Default)]
struct Denied {
    paths: Vec<String>,
    words: Vec<String>,
    files: Vec<String>,
    types: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &[String], _: Style) -> Result<Verdict> {
    crate::no_arguments(arguments)?;
    let denied = Denied::parse(include_str!("../data/denied.txt"))?;
    let mut verdict = Verdict::default();
    for path in workspace.files()? {
        let shown = workspace.show(&path);
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let foreign = FOREIGN.iter().any(|name| shown.split('/').any(|part| part == *name));
        if foreign || !TEXT.contains(&extension.as_ref()) || EXEMPT.contains(&shown.as_str()) {
            continue;
        }
        // What is not text by content is none of ours to judge.
        let Ok(source) = read(&path) else { continue };
        verdict.problems.extend(check_words(&shown, &source, &denied));
        if extension == "rs" {
            check_rust(&shown, &source, &denied, &mut verdict);
        }
    }
    Ok(verdict)
}

impl Denied {
    fn parse(list: &str) -> Result<Self> {
        let mut denied = Self::default();
        for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (kind, entry) = line.split_once('\t').context("an entry without a tab")?;
            let entries = match kind {
                "path" => &mut denied.paths,
                "word" => &mut denied.words,
                "file" => &mut denied.files,
                "type" => &mut denied.types,
                other => anyhow::bail!("an entry of unknown kind {other:?}"),
            };
            entries.push(entry.to_owned());
        }
        Ok(denied)
    }
}

fn check_words(path: &str, source: &str, denied: &Denied) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let number = index + 1;
        for entry in denied.paths.iter().filter(|entry| names_path(line, entry)) {
            problems.push(format!("{path}:{number}: {entry} is a path of one machine"));
        }
        for entry in denied.words.iter().filter(|entry| has_word(line, entry)) {
            problems.push(format!("{path}:{number}: {entry} is left over"));
        }
    }
    problems
}

/// Whether `line` has `entry` at the start of a path (and not in the midst of one).
fn names_path(line: &str, entry: &str) -> bool {
    line.match_indices(entry).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-}~*/".contains(c))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

fn check_rust(path: &str, source: &str, denied: &Denied, verdict: &mut Verdict) {
    let first = source.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        verdict.problems.push(format!("{path}: begins without `//!`: say what it is for"));
    }
    let code = Code::of(source);
    let counted = code.without_tests();
    let is_test = path.split('/').any(|part| part == "tests" || part == "tests.rs");
    let lines = if is_test { 0 } else { untested_lines(source, &code, &counted) };
    if lines > MAX_LINES {
        let problem =
            format!("{path}: {lines} lines without tests, more than {MAX_LINES}: split it");
        verdict.problems.push(problem);
    } else if lines > MANY_LINES {
        verdict.notes.push(format!("{path}: {lines} lines without tests"));
    }
    let stem = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
    if denied.files.iter().any(|entry| *entry == stem) {
        verdict.problems.push(format!("{path}: name the file after what it does"));
    }
    for (number, line) in counted.lines() {
        let Some(name) = type_name(line) else { continue };
        if let Some(entry) = denied.types.iter().find(|entry| name.ends_with(entry.as_str())) {
            let problem = format!("{path}:{number}: {name}: say what it does instead of {entry}");
            verdict.problems.push(problem);
        }
    }
}

/// Lines of the file but for those that tests take up.
fn untested_lines(source: &str, code: &Code, counted: &Code) -> usize {
    let blank = |line: &str| line.trim().is_empty();
    let lost = code.lines().zip(counted.lines());
    let lost = lost.filter(|((_, before), (_, after))| !blank(before) && blank(after)).count();
    // Comments and empty lines inside of tests stay counted; close enough for a bound.
    source.lines().count() - lost
}

/// The name of the type that a line defines.
fn type_name(line: &str) -> Option<&str> {
    let words = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
    let rest =
        ["struct ", "enum ", "trait ", "type "].iter().find_map(|k| words.strip_prefix(k))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Denied {
        Denied::parse(include_str!("../data/denied.txt")).unwrap()
    }

    fn problems(path: &str, source: &str) -> Vec<String> {
        let mut verdict = Verdict::default();
        check_rust(path, source, &denied(), &mut verdict);
        verdict.problems.extend(check_words(path, source, &denied()));
        verdict.problems
    }

    #[test]
    fn a_module_says_what_it_is_for() {
        assert_eq!(problems("a.rs", "//! Why.\nfn a() {}\n"), [""; 0]);
        assert_eq!(problems("a.rs", "#![allow(x)]\n\n//! Why.\nfn a() {}\n"), [""; 0]);
        assert_eq!(problems("a.rs", "fn a() {}\n").len(), 1);
        assert_eq!(problems("a.rs", "// Why.\nfn a() {}\n").len(), 1);
    }

    #[test]
    fn long_files_fail_and_tests_do_not_count() {
        let code = |lines| format!("//! Why.\n{}", "fn a() {}\n".repeat(lines));
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "fn b() {}\n".repeat(900));
        assert_eq!(problems("a.rs", &code(MAX_LINES)).len(), 1);
        assert_eq!(problems("a.rs", &code(MAX_LINES - 1)).len(), 0);
        assert_eq!(problems("a.rs", &(code(MAX_LINES - 1) + &tests)).len(), 0);
        assert_eq!(problems("crates/a/tests/b.rs", &code(2000)).len(), 0);
        let mut verdict = Verdict::default();
        check_rust("a.rs", &code(MANY_LINES), &denied(), &mut verdict);
        assert_eq!((verdict.problems.len(), verdict.notes.len()), (0, 1));
    }

    #[test]
    fn leftovers_and_foreign_paths_fail() {
        let todo = ["TO", "DO"].concat();
        assert_eq!(problems("a.rs", &format!("//! Why.\n// {todo}: later\n")).len(), 1);
        assert_eq!(problems("a.rs", &format!("//! Why.\nconst A{todo}S: u8 = 1;\n")).len(), 0);
        let path = ["/Us", "ers/ann/keel"].concat();
        assert_eq!(problems("a.rs", &format!("//! Why.\nlet a = \"{path}\";\n")).len(), 1);
        assert_eq!(problems("a.rs", &format!("//! Why.\nlet a = \"/srv{path}\";\n")).len(), 0);
    }

    #[test]
    fn vague_names_fail() {
        assert_eq!(problems("crates/a/src/utils.rs", "//! Why.\n").len(), 1);
        let found = problems("a.rs", "//! Why.\npub(crate) struct StackManager<T>(T);\n");
        assert_eq!(found, ["a.rs:2: StackManager: say what it does instead of Manager"]);
        assert_eq!(problems("a.rs", "//! Why.\nfn a(_: ForeignManager) {}\n").len(), 0);
    }
}
