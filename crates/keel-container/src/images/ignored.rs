//! Which files of a build's context are left out: `.dockerignore`, by the rules of the engine (`moby/patternmatcher`).
//! `develop.watch` has the same patterns.
//!
//! Patterns begin at the root of the context; the last one that matches a path or a directory above it decides, and
//! `!` takes a path in again.

use globset::{Glob, GlobBuilder, GlobMatcher};

/// Most patterns that are read.
const MAX_PATTERNS: usize = 10_000;

/// The patterns of one file, or of a key that has the same syntax.
#[derive(Clone, Debug, Default)]
pub struct Ignored {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    matcher: GlobMatcher,
    text: String,
    takes_in: bool,
}

impl Ignored {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// The line that is no pattern, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')).map(str::trim) {
            let (takes_in, line) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let clean = clean(line);
            if clean.is_empty() {
                continue;
            }
            if patterns.len() == MAX_PATTERNS {
                return Err(format!("more than {MAX_PATTERNS} patterns"));
            }
            let matcher = glob(&clean).map_err(|error| error.to_string())?.compile_matcher();
            patterns.push(Pattern { matcher, text: clean, takes_in });
        }
        Ok(Self { patterns })
    }

    /// Whether a path of the context (without a slash at its beginning) is left out.
    #[must_use]
    pub fn leaves_out(&self, path: &str) -> bool {
        let mut out = false;
        for pattern in &self.patterns {
            // One that would change nothing need not be looked at.
            if pattern.takes_in == out && prefixes(path).any(|part| pattern.matcher.is_match(part))
            {
                out = !out;
            }
        }
        out
    }

    /// Whether nothing below a directory that is left out can be taken in again.
    #[must_use]
    pub fn leaves_out_all_of(&self, directory: &str) -> bool {
        let inside = format!("{directory}/");
        let may_reach = |pattern: &Pattern| {
            let wild = pattern.text.find(['*', '?', '[', '\\']);
            let fixed = &pattern.text[..wild.unwrap_or(pattern.text.len())];
            fixed.starts_with(&inside) || (wild.is_some() && inside.starts_with(fixed))
        };
        !self.patterns.iter().any(|pattern| pattern.takes_in && may_reach(pattern))
    }
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

/// As Go's `filepath.Clean`, without a slash at the beginning.
fn clean(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    // What Go's patterns do not know.
    let literal = pattern.replace('{', "[{]").replace('}', "[}]");
    GlobBuilder::new(&literal).literal_separator(true).backslash_escape(true).build()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_left_out_as_by_the_engine() {
        let ignored = Ignored::parse(
            "# a comment\n*.log\n/target\n**/*.tmp\nnode_modules/\n!keep.log\ndocs\n!docs/README.md\na?c\n{x}\n\n",
        )
        .unwrap();
        for (path, out) in [
            ("a.log", true),
            ("sub/a.log", false),
            ("keep.log", false),
            ("target/debug/x", true),
            ("src/target", false),
            ("x.tmp", true),
            ("deep/er/x.tmp", true),
            ("node_modules/left-pad/index.js", true),
            ("docs/a.md", true),
            ("docs/README.md", false),
            ("abc", true),
            ("a/c", false),
            ("{x}", true),
            ("x", false),
            ("src/main.rs", false),
        ] {
            assert_eq!(ignored.leaves_out(path), out, "{path}");
        }
        assert!(ignored.leaves_out_all_of("target"));
        assert!(!ignored.leaves_out_all_of("docs"));
    }

    #[test]
    fn everything_but_a_little_can_be_left_out() {
        let ignored = Ignored::parse("*\n!src\n!**/*.toml\nsrc/secret").unwrap();
        for (path, out) in [
            ("a", true),
            ("src/a/b", false),
            ("src/secret", true),
            ("x/Cargo.toml", false),
            ("x", true),
        ] {
            assert_eq!(ignored.leaves_out(path), out, "{path}");
        }
        assert!(!ignored.leaves_out_all_of("x"));
    }

    #[test]
    fn what_is_no_pattern_is_an_error() {
        assert!(Ignored::parse("[a").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_patterns_or_an_error(text in "[a-c*?!#/.{}\\[\\]\\\\ \n-]{0,40}", path in "[a-c/.]{1,12}") {
            if let Ok(ignored) = Ignored::parse(&text) {
                let _ = ignored.leaves_out(&path);
                let _ = ignored.leaves_out_all_of(&path);
            }
        }
    }
}
