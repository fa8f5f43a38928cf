//! Regular expressions of rules and filters, bounded: they run in linear time (the `regex` crate), and none may take more
//! than its share of memory.

use regex::{Regex, RegexBuilder, bytes};

/// Longest expression in bytes.
const MAX_PATTERN: usize = 4096;
/// Most memory that a compiled expression takes, in bytes.
const MAX_COMPILED: usize = 256 << 10;
/// Most memory that one thread keeps to run it, in bytes.
const MAX_CACHE: usize = 512 << 10;
/// Deepest nesting of groups.
const MAX_NESTING: u32 = 64;

/// How much of the text an expression has to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// All of it.
    Whole,
    /// Its start.
    Start,
    /// Any part.
    Nowhere,
}

/// Compiles an expression for text.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn compile(pattern: &str, anchor: Anchor) -> Result<Regex, String> {
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(MAX_COMPILED)
            .dfa_size_limit(MAX_CACHE)
            .nest_limit(MAX_NESTING)
            .build()
    };
    if pattern.len() > MAX_PATTERN {
        return Err(format!("a regular expression is longer than {MAX_PATTERN} bytes"));
    }
    // Alone first: `a)|(b` is not valid, but would be between our brackets.
    let alone = build(pattern).map_err(|error| explain(pattern, &error))?;
    let anchored = match anchor {
        Anchor::Nowhere => return Ok(alone),
        Anchor::Start => format!("^(?:{pattern})"),
        Anchor::Whole => format!("^(?:{pattern})$"),
    };
    build(&anchored).map_err(|error| explain(pattern, &error))
}

/// Compiles an expression for bytes, which matches any part.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn compile_bytes(pattern: &str) -> Result<bytes::Regex, String> {
    compile(pattern, Anchor::Nowhere)?;
    bytes::RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_CACHE)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|error| explain(pattern, &error))
}

fn explain(pattern: &str, error: &regex::Error) -> String {
    let shown: String = pattern.chars().take(80).collect();
    match error {
        regex::Error::CompiledTooBig(_) => {
            format!("the regular expression `{shown}` needs too much memory; use fewer repetitions")
        }
        error => {
            // The whole message draws the place in several lines; its last line says what is wrong.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let why = last.trim().trim_start_matches("error: ");
            format!("`{shown}` is not a regular expression: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors() {
        for (pattern, anchor, text, expected) in [
            ("a|ab", Anchor::Whole, "ab", true),
            ("a|b", Anchor::Whole, "ab", false),
            ("a|b", Anchor::Start, "bc", true),
            ("b", Anchor::Start, "ab", false),
            ("b", Anchor::Nowhere, "ab", true),
        ] {
            let found = compile(pattern, anchor).unwrap().is_match(text);
            assert_eq!(found, expected, "{pattern} {anchor:?} {text}");
        }
    }

    #[test]
    fn bad_ones_say_why_in_one_line() {
        for (pattern, part) in [
            ("(", "unclosed group"),
            ("a)|(b", "unopened group"),
            ("\\w{1000}{1000}", "too much memory"),
            ("(?=a)", "look-around"),
            (&"a".repeat(5000), "longer than"),
            (&"(".repeat(200), "unclosed"),
            (&format!("{}{}", "(".repeat(100), ")".repeat(100)), "nest"),
        ] {
            let error = compile(pattern, Anchor::Start).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
            assert!(compile_bytes(pattern).is_err());
        }
    }
}
