//! Changes of a path in the form in which both engines make them: an expression for the whole path, and what its
//! groups become.

use std::collections::BTreeSet;

use keel_model::PathRewrite;

use crate::gaps::Lack;
use crate::path;
use crate::pattern::{self, Case, Pattern, Piece};

/// Groups of an expression that a replacement can name, beside the match and what stands before and after it: both
/// engines know nine.
const MAX_GROUPS: usize = 6;
/// Any bytes.
const ANYTHING: &str = r"[\x00-\xFF]*";

/// A change of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The path becomes this, fit to be sent.
    Whole(String),
    /// This comes in front of the path.
    Prefix(String),
    /// If the path matches the expression, the parts take its place.
    Replace { expression: String, parts: Vec<Part> },
}

/// A part of what takes the place of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Fit to be sent.
    Text(String),
    /// A group of the expression, from 1.
    Group(usize),
}

/// The changes that `rewrite` asks for, one after the other.
pub(crate) fn of(rewrite: &PathRewrite) -> Result<Vec<Change>, Lack> {
    Ok(match rewrite {
        PathRewrite::Replace(to) => vec![Change::Whole(path::fit_whole(to))],
        PathRewrite::AddPrefix(prefix) => {
            let prefix = path::fit_whole(prefix);
            vec![Change::Prefix(prefix.trim_end_matches('/').to_owned())]
        }
        PathRewrite::StripPrefix(prefixes) => {
            let prefixes = prefixes.iter().filter_map(|prefix| path::prefix_of_rule(prefix));
            let prefixes: Vec<String> = prefixes.map(|prefix| segments(&prefix)).collect();
            // The first one that matches is taken, whatever follows: the group is not entered again.
            vec![without_slashes(&format!("(?>{})", prefixes.join("|")))]
        }
        PathRewrite::ReplacePrefix { from, to } => {
            let from = segments(&path::prefix_of_rule(from).ok_or(Lack::Expression)?);
            let to = path::fit_whole(to);
            vec![match to.trim_end_matches('/') {
                "" => without_slashes(&from),
                to => Change::Replace {
                    expression: format!(r"\A{from}({ANYTHING})\z"),
                    parts: vec![Part::Text(to.to_owned()), Part::Group(1)],
                },
            }]
        }
        PathRewrite::Regex { from, to } => vec![
            regex(from, to)?,
            Change::Replace {
                expression: format!(r"\A(?!/)({ANYTHING})\z"),
                parts: vec![Part::Text("/".to_owned()), Part::Group(1)],
            },
        ],
    })
}

/// Prefixes that may be left out, each with an expression for paths that begin with it.
pub(crate) fn prefixes(declared: &[String]) -> Vec<(String, String)> {
    let known = declared.iter().filter_map(|prefix| path::prefix_of_rule(prefix));
    known
        .filter(|prefix| !prefix.is_empty())
        .map(|prefix| {
            let expression = format!(r"\A{}", segments(&prefix));
            (prefix, expression)
        })
        .collect()
}

/// What follows `prefix`, with one slash in front.
fn without_slashes(prefix: &str) -> Change {
    Change::Replace {
        expression: format!(r"\A{prefix}/*({ANYTHING})\z"),
        parts: vec![Part::Text("/".to_owned()), Part::Group(1)],
    }
}

/// A prefix as an expression: its segments, however many slashes are between them, and then no part of a segment.
fn segments(prefix: &str) -> String {
    let segments = prefix.split('/').filter(|segment| !segment.is_empty());
    let segments = segments.map(|segment| format!("/+{}", pattern::literal(segment.as_bytes())));
    format!(r"{}(?=/|\z)", segments.collect::<String>())
}

fn regex(from: &str, to: &str) -> Result<Change, Lack> {
    let pattern = Pattern::parse(from, Case::Sensitive).ok_or(Lack::Expression)?;
    let pieces = pattern::replacement(to);
    let group = |piece: &Piece<'_>| match piece {
        Piece::Group(name) => pattern.group(name),
        Piece::Text(_) => None,
    };
    let named: BTreeSet<u32> = pieces.iter().filter_map(group).filter(|n| *n > 0).collect();
    let groups: Vec<u32> = named.into_iter().collect();
    if groups.len() > MAX_GROUPS {
        return Err(Lack::Groups);
    }
    let expression = pattern.with_groups(&groups).ok_or(Lack::Expression)?;
    // Group 1 is what stands before, 2 the match, then those that are named, and the last what stands after.
    let mut parts = vec![Part::Group(1)];
    for piece in &pieces {
        match (piece, group(piece)) {
            (Piece::Text(text), _) => parts.push(Part::Text(path::fit(text))),
            (Piece::Group(_), Some(0)) => parts.push(Part::Group(2)),
            (Piece::Group(_), Some(number)) => {
                let place = groups.iter().position(|group| *group == number).unwrap_or(0);
                parts.push(Part::Group(place + 3));
            }
            (Piece::Group(_), None) => {}
        }
    }
    parts.push(Part::Group(groups.len() + 3));
    // The shortest beginning is tried first, so this is the first match.
    let expression = format!(r"\A({ANYTHING}?)({expression})({ANYTHING})\z");
    Ok(Change::Replace { expression, parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_counted_with_what_surrounds_them() {
        let rewrite = PathRewrite::Regex {
            from: "/(a)/(?<name>b)".to_owned(),
            to: "/${name}/$0 $2$9".to_owned(),
        };
        let changes = of(&rewrite).unwrap();
        let Change::Replace { expression, parts } = &changes[0] else { panic!("{changes:?}") };
        assert_eq!(expression, r"\A([\x00-\xFF]*?)(/(?:a)/(b))([\x00-\xFF]*)\z");
        let text = |text: &str| Part::Text(text.to_owned());
        let group = Part::Group;
        assert_eq!(
            *parts,
            [group(1), text("/"), group(3), text("/"), group(2), text("%20"), group(3), group(4)]
        );
    }

    #[test]
    fn what_is_no_expression_and_what_has_too_many_groups() {
        let regex = |from: &str, to: &str| {
            of(&PathRewrite::Regex { from: from.to_owned(), to: to.to_owned() })
        };
        assert_eq!(regex("(", ""), Err(Lack::Expression));
        assert_eq!(regex("(a)(b)(c)(d)(e)(f)(g)", "$1$2$3$4$5$6$7"), Err(Lack::Groups));
        assert!(regex("(a)(b)(c)(d)(e)(f)(g)", "$1$2$3$4$5$7").is_ok());
    }
}
