//! The page that shows what everybody made of every case.
//!
//! A test compares its part of the page with the file; with `KEEL_WRITE_DOCS=1` it writes it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::rivals::Haproxy;

/// One part of the page: what is between two marks.
pub struct Part {
    name: &'static str,
    text: String,
}

impl Part {
    pub fn new(name: &'static str) -> Self {
        Self { name, text: String::new() }
    }

    pub fn section(&mut self, about: &str) {
        self.text += &format!(
            "\n### {about}\n\n| case | right | keel | HAProxy | hyper |\n|---|---|---|---|---|\n"
        );
    }

    /// The cells: what is right, what keel does, and the others.
    pub fn row(&mut self, name: &str, cells: [String; 4]) {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        self.text += &format!("| {name} | {} |\n", cells.join(" | "));
    }

    /// Compares with the file, or writes it.
    pub fn check(self) {
        println!("{}", self.text);
        let path = path();
        let page = fs::read_to_string(&path).unwrap();
        let (begin, end) = (mark(self.name, "begin"), mark(self.name, "end"));
        let found = between(&page, &begin, &end).expect("the page has marks for its parts");
        if std::env::var_os("KEEL_WRITE_DOCS").is_some() {
            let known = between(&page, "HAProxy is ", " of Debian").unwrap();
            let version = Haproxy::version();
            let written = page
                .replace(&format!("{begin}{found}{end}"), &format!("{begin}{}{end}", self.text))
                .replace(&format!("HAProxy is {known} of"), &format!("HAProxy is {version} of"));
            fs::write(&path, written).unwrap();
            return;
        }
        // HAProxy is of another opinion in another version, and in a few cases from one time to the next.
        let rows = |text: &str| text.lines().map(without_haproxy).collect::<Vec<_>>();
        assert_eq!(
            rows(found),
            rows(&self.text),
            "docs/smuggling.md is stale; run: KEEL_WRITE_DOCS=1 cargo test -p keel-proxy smuggling"
        );
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/smuggling.md")
}

fn mark(part: &str, which: &str) -> String {
    format!("<!-- {which}: {part} -->\n")
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let from = text.find(begin)? + begin.len();
    let length = text[from..].find(end)?;
    Some(&text[from..from + length])
}

fn without_haproxy(row: &str) -> String {
    let mut cells: Vec<_> = row.split(" | ").collect();
    if cells.len() == 5 {
        cells.remove(3);
    }
    cells.join(" | ")
}
