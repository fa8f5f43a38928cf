//! Other paths: towards the service, and in redirects. The query stays as it is.
//!
//! Prefixes are whole segments and are found as rules find them ([`crate::path`]); what follows stays as the client
//! wrote it. Regular expressions see the matched form. Whatever comes out begins with one slash, has no dot segments
//! and no character that may not stand in a path.

use keel_model::PathRewrite;
use regex::Regex;

use crate::path::{self, Forms};
use crate::pattern::{Anchor, compile};

/// Longest text that stands in the place of a match, in bytes.
const MAX_REPLACEMENT: usize = 1024;
/// Most groups that it may name, so that a long path can't be made many times longer.
const MAX_GROUPS: usize = 16;

/// Changes of a path, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Rewrite(Vec<Step>);

#[derive(Debug)]
enum Step {
    Replace(String),
    StripPrefix(Vec<String>),
    AddPrefix(String),
    ReplacePrefix { from: String, to: String },
    Regex { from: Regex, to: String },
}

/// A path after its changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Fit to be sent.
    pub path: String,
    /// The prefix that was left out, for `X-Forwarded-Prefix`.
    pub stripped: Option<String>,
}

impl Rewrite {
    pub fn new<'m>(
        steps: impl IntoIterator<Item = &'m PathRewrite>,
        problems: &mut Vec<String>,
    ) -> Self {
        let step = |step| Step::new(step).map_err(|problem| problems.push(problem)).ok();
        Self(steps.into_iter().filter_map(step).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path after its changes.
    pub fn apply(&self, forms: &Forms<'_>) -> Rewritten {
        let mut path = forms.forwarded.clone().into_owned();
        let mut stripped = None;
        for step in &self.0 {
            if let Some((changed, prefix)) = step.apply(&path) {
                path = changed;
                stripped = stripped.or(prefix);
            }
        }
        Rewritten { path: path::fit(&path), stripped }
    }
}

impl Step {
    fn new(rewrite: &PathRewrite) -> Result<Self, String> {
        Ok(match rewrite {
            PathRewrite::Replace(path) => Self::Replace(written(path)?),
            PathRewrite::StripPrefix(prefixes) if prefixes.is_empty() => {
                return Err("a rewrite that strips a prefix names none".into());
            }
            PathRewrite::StripPrefix(prefixes) => Self::StripPrefix(
                prefixes
                    .iter()
                    .map(|prefix| path::prefix_of_rule(prefix))
                    .collect::<Result<_, _>>()?,
            ),
            PathRewrite::AddPrefix(prefix) => Self::AddPrefix(written(prefix)?),
            PathRewrite::ReplacePrefix { from, to } => {
                Self::ReplacePrefix { from: path::prefix_of_rule(from)?, to: written(to)? }
            }
            PathRewrite::Regex { from, to } => {
                let from = compile(from, Anchor::Nowhere)?;
                check_replacement(to, &from)?;
                Self::Regex { from, to: to.clone() }
            }
        })
    }

    /// The changed path and the prefix that was left out; `None` if nothing is to be changed.
    fn apply(&self, path: &str) -> Option<(String, Option<String>)> {
        match self {
            Self::Replace(to) => Some((to.clone(), None)),
            Self::StripPrefix(prefixes) => prefixes.iter().find_map(|prefix| {
                let rest = path::after_prefix(path, prefix)?;
                Some((with_slash(rest), (!prefix.is_empty()).then(|| prefix.clone())))
            }),
            Self::AddPrefix(prefix) => Some((joined(prefix, path), None)),
            Self::ReplacePrefix { from, to } => {
                Some((joined(to, path::after_prefix(path, from)?), None))
            }
            Self::Regex { from, to } => {
                let forms = Forms::of(path);
                from.is_match(&forms.matched)
                    .then(|| (with_slash(&from.replace(&forms.matched, to.as_str())), None))
            }
        }
    }
}

/// A path that a filter puts in the place of another: its own spelling is kept.
fn written(path: &str) -> Result<String, String> {
    path::of_rule(path).map(|_| path.to_owned())
}

fn joined(prefix: &str, rest: &str) -> String {
    match prefix.trim_end_matches('/') {
        "" => with_slash(rest),
        prefix if rest.is_empty() => prefix.to_owned(),
        prefix => format!("{prefix}{}", with_slash(rest)),
    }
}

fn with_slash(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Every group that `to` names must be one of `from`: the engine would silently leave out the others.
fn check_replacement(to: &str, from: &Regex) -> Result<(), String> {
    if to.len() > MAX_REPLACEMENT {
        return Err(format!("a replacement is longer than {MAX_REPLACEMENT} bytes"));
    }
    if let Some(sign) = to.chars().find(|c| matches!(c, '?' | '#') || c.is_control()) {
        return Err(format!(
            "the path {to:?} may not have {sign:?} in it; the query stays as it is"
        ));
    }
    let groups = groups(to);
    if groups.len() > MAX_GROUPS {
        return Err(format!("the path {to:?} names more than {MAX_GROUPS} groups"));
    }
    for group in groups {
        let known = match group.parse::<usize>() {
            Ok(number) => number < from.captures_len(),
            Err(_) => from.capture_names().flatten().any(|name| name == group),
        };
        if !known {
            return Err(format!(
                "the path {to:?} names the group {group:?}, which `{from}` does not have; write `${{1}}x` where letters follow"
            ));
        }
    }
    Ok(())
}

/// The groups that a replacement names (`$1`, `${name}`), as the engine reads them.
fn groups(to: &str) -> Vec<&str> {
    let mut groups = Vec::new();
    let mut rest = to;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(literal) = after.strip_prefix('$') {
            rest = literal;
        } else if let Some((name, tail)) = after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            groups.push(name);
            rest = tail;
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, tail) = after.split_at(end.unwrap_or(after.len()));
            groups.extend((!name.is_empty()).then_some(name));
            rest = tail;
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewrite(steps: &[PathRewrite]) -> Rewrite {
        let mut problems = Vec::new();
        let rewrite = Rewrite::new(steps, &mut problems);
        assert_eq!(problems, [""; 0]);
        rewrite
    }

    fn strip(prefixes: &[&str]) -> PathRewrite {
        PathRewrite::StripPrefix(prefixes.iter().map(|p| (*p).to_owned()).collect())
    }

    fn replace(from: &str, to: &str) -> PathRewrite {
        PathRewrite::ReplacePrefix { from: from.into(), to: to.into() }
    }

    fn regex(from: &str, to: &str) -> PathRewrite {
        PathRewrite::Regex { from: from.into(), to: to.into() }
    }

    #[test]
    fn paths() {
        for (step, path, expected) in [
            (PathRewrite::Replace("/new".into()), "/old/x", "/new"),
            (strip(&["/api"]), "/api/users", "/users"),
            (strip(&["/api"]), "/api", "/"),
            (strip(&["/api/"]), "/api/", "/"),
            (strip(&["/api"]), "/apis", "/apis"),
            (strip(&["/v1", "/v2"]), "/v2/x", "/x"),
            (strip(&["/api"]), "//api//x", "/x"),
            (strip(&["/api"]), "/%61pi/%78%2Fy", "/%78%2Fy"),
            (strip(&["/api"]), "/x/../api/y", "/y"),
            (strip(&["/"]), "/x", "/x"),
            (PathRewrite::AddPrefix("/api".into()), "/x", "/api/x"),
            (PathRewrite::AddPrefix("/api/".into()), "/", "/api/"),
            (PathRewrite::AddPrefix("/".into()), "/x", "/x"),
            (replace("/a", "/b"), "/a/x", "/b/x"),
            (replace("/a", "/b/"), "/a", "/b"),
            (replace("/a", "/"), "/a", "/"),
            (replace("/a", "/b"), "/ab", "/ab"),
            (replace("/", "/b"), "/x", "/b/x"),
            (regex("^/u/([0-9]+)", "/user/$1"), "/u/7/x", "/user/7/x"),
            (regex("^/(?P<a>[^/]+)/(.*)", "/${2}x/${a}"), "/1/2", "/2x/1"),
            (regex("/a", "$$"), "/a/a", "/$/a"),
            (regex("^/api(.*)", "$1"), "/api../admin", "/admin"),
            (regex("^/q", "/a b"), "/q", "/a%20b"),
            (regex("^.*$", ""), "/x", "/"),
        ] {
            let found = rewrite(std::slice::from_ref(&step)).apply(&Forms::of(path)).path;
            assert_eq!(found, expected, "{step:?} {path}");
        }
    }

    #[test]
    fn one_after_the_other() {
        let both = rewrite(&[strip(&["/api"]), PathRewrite::AddPrefix("/v2".into())]);
        let found = both.apply(&Forms::of("/api/x"));
        let expected = Rewritten { path: "/v2/x".into(), stripped: Some("/api".into()) };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (step, part) in [
            (PathRewrite::Replace("new".into()), "begin with a slash"),
            (PathRewrite::Replace("/a?b".into()), "may not have '?'"),
            (PathRewrite::AddPrefix("/a/../b".into()), "resolve it"),
            (strip(&[]), "names none"),
            (regex("(", "/"), "not a regular expression"),
            (regex("a", "/$1"), "group \"1\""),
            (regex("(a)", "/$1x"), "group \"1x\""),
            (regex("(a)", "/${b}"), "group \"b\""),
            (regex("a", "/?x"), "may not have '?'"),
            (regex("a", &"$0".repeat(17)), "more than 16"),
            (regex("a", &"b".repeat(2000)), "longer than"),
        ] {
            let mut problems = Vec::new();
            Rewrite::new([&step], &mut problems);
            assert_eq!(problems.len(), 1, "{step:?}");
            assert!(problems[0].contains(part), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn any_path_stays_a_path(
            path in "/[/.%a-c2eé?]{0,20}",
            prefix in "(/[ab]){1,2}",
            to in "(/[cd]){0,2}/",
        ) {
            for step in [strip(&[&prefix]), replace(&prefix, &to), PathRewrite::AddPrefix(to.clone()),
                         regex("^/a(.*)", "$1"), regex("(b|%)", "/${0}..")] {
                let found = rewrite(&[step]).apply(&Forms::of(&path)).path;
                prop_assert!(found.starts_with('/') && !found.starts_with("//"), "{found}");
                prop_assert!(!found.contains('?'));
                prop_assert_eq!(path::fit(&found), found);
            }
        }
    }
}
