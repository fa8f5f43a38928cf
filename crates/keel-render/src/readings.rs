//! Paths that services read in different ways, as the engines are told to find them.
//!
//! Services differ on whether `%2F`, `%5C` and `\` part segments, and on whether `;x` belongs to its segment (see
//! `keel_route`'s module on paths). Our own proxy looks such a path up under every reading and refuses it if the routes
//! differ. Engines can't read a path twice, so that the expressions here ask of one test at a time whether any reading
//! holds while the plain one does not. As segments only ever fall apart or lose their parameters, what holds for the
//! plain reading holds for all. Not so where this makes new dot segments, and where there are too many of these signs to
//! be looked at in a bounded time: there the answer is yes for every test ([`HARD`]).
//!
//! Every expression takes a path with or without a query.

use std::fmt::Write as _;

use crate::pattern::{literal, triplet};
use crate::rules::Test;

/// What parts segments to some.
const PARTS: &str = r"(?:%2[Ff]|%5[Cc]|\x5C)";
/// What begins parameters of a segment.
const BEGINS: &str = r"(?:\x3B|%3[Bb])";
/// The end of the path.
const END: &str = r"(?:[?]|\z)";
/// What holds for every path: of what it stands for the readings can't be told apart.
const VAGUE: &str = "/";
/// Longest expression, in bytes. An argument of nginx has at most 4096.
const MAX_LENGTH: usize = 3800;

/// There is something in the path that is not read alike by all.
pub(crate) const DOUBTFUL: &str = r"\A[^?]*(?:%2[Ff]|%5[Cc]|%3[Bb]|%00|[\x3B\x5C\x23])";
/// There is a reading for which there is no use, or it is too long to be looked at.
pub(crate) const UNREADABLE: &str =
    r"\A(?:[^?]*(?:%00|\x23)|(?=[^?]*(?:%2[Ff]|%5[Cc]|%3[Bb]|[\x3B\x5C]))[^?]{4097})";
/// For a doubtful path: no test can tell. It has dot segments, or encoded what need not be encoded, or more than 20 of
/// what makes a path doubtful, or more than 3 segments of nothing but parameters. An expression tries these against each
/// other, and the engines take one that takes too long for one that does not match.
pub(crate) const HARD: &str = concat!(
    r"\A(?=[^?]*(?:%2[Ff]|%5[Cc]|%3[Bb]|[\x3B\x5C]))[^?]*(?:",
    r"(?:/|%2[Ff]|%5[Cc]|\x5C)(?:\.|%2[Ee]){1,2}(?:/|%2[Ff]|%5[Cc]|%3[Bb]|[\x3B\x5C?]|\z)",
    r"|%(?:2[DEde]|3[0-9]|4[1-9A-Fa-f]|5[0-9AFaf]|6[1-9A-Fa-f]|7[0-9AEae])",
    r"|(?:(?:%2[Ff]|%5[Cc]|%3[Bb]|[\x3B\x5C])[^?]*?){21}",
    r"|(?:(?:/|%2[Ff]|%5[Cc]|\x5C)(?:\x3B|%3[Bb])[^?]*?){4})"
);
/// What is said to those who are refused.
pub(crate) const REFUSAL: &str =
    "The path can be read in several ways, which lead to different places.";

/// The expression, without an anchor, that holds for a doubtful path if `tests` (one of which must hold) do not come to the
/// same for all of its readings. `None` if they always do.
pub(crate) fn differ<'t>(tests: impl Iterator<Item = &'t Test>) -> Option<String> {
    let (mut plain, mut any) = (Vec::new(), Vec::new());
    let mut vague = false;
    for test in tests {
        match test {
            Test::Prefix(prefix) if prefix.is_empty() => return None,
            Test::Prefix(prefix) => {
                plain.push(format!("{}(?:/|{END})", spelled(prefix, "/+")));
                let end = format!("(?:/|{PARTS}|{BEGINS}|{END})");
                any.push(format!("{}{end}", spelled(prefix, &loose_slash())));
            }
            Test::Exact(path) => {
                plain.push(format!("{}{END}", spelled(path, "/+")));
                let end = format!("(?:{BEGINS}[^/?]*)?{END}");
                any.push(format!("{}{end}", spelled(path, &loose_slash())));
            }
            // What an expression makes of another reading can't be told from it.
            _ => vague = true,
        }
    }
    if any.is_empty() && !vague {
        return None;
    }
    let text = format!("(?!{})(?:{})", plain.join("|"), any.join("|"));
    Some(if vague || text.len() > MAX_LENGTH { VAGUE.to_owned() } else { text })
}

/// Whether every doubtful path counts as one that `tests` do not take alike in all readings.
pub(crate) fn is_vague<'t>(tests: impl Iterator<Item = &'t Test>) -> bool {
    differ(tests).as_deref() == Some(VAGUE)
}

/// What can stand between two segments, or in front of the first: what parts them, and segments that are empty but for
/// parameters. Parameters end where a part follows.
fn loose_slash() -> String {
    format!("(?:/|{PARTS}|{BEGINS}[^/?]*?(?=/|{PARTS}))+")
}

/// A path of a rule with `slash` for its slashes.
fn spelled(path: &str, slash: &str) -> String {
    let segments: Vec<String> = path.split('/').skip(1).map(segment).collect();
    format!("{slash}{}", segments.join(slash))
}

/// One segment of a rule. What need not be encoded is not.
fn segment(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let encoded = crate::path::triplet(&bytes[at..]);
        let decoded = encoded.unwrap_or(*byte);
        let raw = literal(&[decoded]);
        let _ = match encoded {
            _ if decoded == b';' => write!(out, "{BEGINS}"),
            None => write!(out, "{raw}"),
            Some(b'%') => write!(out, "{}", triplet(decoded)),
            Some(_) if crate::path::is_plain(decoded) => write!(out, "{}", triplet(decoded)),
            Some(_) => write!(out, "(?:{}|{raw})", triplet(decoded)),
        };
        at += if encoded.is_some() { 3 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_an_expression_is_vague() {
        let prefix = |count: usize| Test::Prefix("/abc".repeat(count));
        assert_eq!(differ([Test::Prefix(String::new())].iter()), None);
        for (test, vague) in [
            (prefix(1), false),
            (prefix(20), false),
            (prefix(500), true),
            (Test::Regex(r"\A/v[0-9]".to_owned()), true),
        ] {
            assert_eq!(is_vague([test.clone()].iter()), vague, "{test:?}");
        }
    }
}
