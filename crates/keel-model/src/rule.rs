//! A [`Rule`] as text, in the syntax that Traefik's users know: ``Host(`a`) && PathPrefix(`/b`)``.
//!
//! The text means to Traefik what the rule means here, except that a prefix of a path ends at a segment. Its length is
//! the default priority of a route.

use std::fmt;

use crate::Rule;

/// What holds a rule together, from loose to tight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Any,
    All,
    One,
}

impl Rule {
    /// The priority of a route that states none: the length of its rule as text, as in Traefik, so that the more specific
    /// rule wins. A rule that wants everything has 0, so that it comes last.
    #[must_use]
    pub fn default_priority(&self) -> i64 {
        match self {
            Self::All(all) if all.is_empty() => 0,
            rule => i64::try_from(rule.to_string().len()).unwrap_or(i64::MAX),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What matches everything has no matcher of its own.
            Self::All(rules) if rules.is_empty() => f.write_str("PathPrefix(`/`)"),
            Self::Any(rules) if rules.is_empty() => f.write_str("!PathPrefix(`/`)"),
            Self::All(rules) => joined(f, rules, " && ", Binding::All),
            Self::Any(rules) => joined(f, rules, " || ", Binding::Any),
            Self::Not(rule) => {
                f.write_str("!")?;
                within(f, rule, Binding::One)
            }
            Self::Host(host) => call(f, "Host", &[host]),
            Self::HostRegex(pattern) => call(f, "HostRegexp", &[&whole(pattern)]),
            Self::Path(path) => call(f, "Path", &[path]),
            Self::PathPrefix(path) => call(f, "PathPrefix", &[path]),
            Self::PathRegex(pattern) => call(f, "PathRegexp", &[&from_start(pattern)]),
            Self::Method(method) => call(f, "Method", &[method]),
            Self::Header(name, None) => call(f, "Header", &[name]),
            Self::Header(name, Some(value)) => call(f, "Header", &[name, value]),
            Self::HeaderRegex(name, pattern) => call(f, "HeaderRegexp", &[name, pattern]),
            Self::Query(name, None) => call(f, "Query", &[name]),
            Self::Query(name, Some(value)) => call(f, "Query", &[name, value]),
            Self::Client(network) => call(f, "ClientIP", &[&network.to_string()]),
            Self::Sni(name) => call(f, "HostSNI", &[name]),
        }
    }
}

fn binding(rule: &Rule) -> Binding {
    match rule {
        Rule::All(rules) | Rule::Any(rules) if rules.len() == 1 => binding(&rules[0]),
        Rule::All(rules) if !rules.is_empty() => Binding::All,
        Rule::Any(rules) if !rules.is_empty() => Binding::Any,
        _ => Binding::One,
    }
}

/// A rule inside something that binds like `around`: in parentheses if it would fall apart.
fn within(f: &mut fmt::Formatter<'_>, rule: &Rule, around: Binding) -> fmt::Result {
    if binding(rule) < around { write!(f, "({rule})") } else { write!(f, "{rule}") }
}

fn joined(
    f: &mut fmt::Formatter<'_>,
    rules: &[Rule],
    operator: &str,
    around: Binding,
) -> fmt::Result {
    if let [only] = rules {
        return write!(f, "{only}");
    }
    for (index, rule) in rules.iter().enumerate() {
        if index > 0 {
            f.write_str(operator)?;
        }
        within(f, rule, around)?;
    }
    Ok(())
}

fn call(f: &mut fmt::Formatter<'_>, name: &str, arguments: &[&str]) -> fmt::Result {
    write!(f, "{name}(")?;
    for (index, argument) in arguments.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        if argument.contains('`') {
            let escaped = argument.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "\"{escaped}\"")?;
        } else {
            write!(f, "`{argument}`")?;
        }
    }
    f.write_str(")")
}

/// The same for Traefik, which looks for a match anywhere.
fn whole(pattern: &str) -> String {
    let anchored = pattern.starts_with('^') && pattern.ends_with('$') && !pattern.contains('|');
    if anchored { pattern.to_owned() } else { format!("^(?:{pattern})$") }
}

fn from_start(pattern: &str) -> String {
    if pattern.starts_with('^') && !pattern.contains('|') {
        pattern.to_owned()
    } else if pattern.contains('|') {
        format!("^(?:{pattern})")
    } else {
        format!("^{pattern}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Rule {
        Rule::Host(name.to_owned())
    }

    #[test]
    fn rules_read_as_in_traefik() {
        let path = || Rule::PathPrefix("/api".to_owned());
        let hosts = || Rule::Any(vec![host("a"), host("b")]);
        for (rule, text) in [
            (Rule::default(), "PathPrefix(`/`)"),
            (Rule::All(vec![hosts(), path()]), "(Host(`a`) || Host(`b`)) && PathPrefix(`/api`)"),
            (
                Rule::Any(vec![Rule::All(vec![host("a"), path()]), host("b")]),
                "Host(`a`) && PathPrefix(`/api`) || Host(`b`)",
            ),
            (Rule::Not(Box::new(hosts())), "!(Host(`a`) || Host(`b`))"),
            (
                Rule::Not(Box::new(Rule::All(vec![host("a"), path()]))),
                "!(Host(`a`) && PathPrefix(`/api`))",
            ),
            (Rule::Sni("*".to_owned()), "HostSNI(`*`)"),
            (Rule::Method("GET".to_owned()), "Method(`GET`)"),
            (
                Rule::All(vec![Rule::Any(vec![host("a")]), path()]),
                "Host(`a`) && PathPrefix(`/api`)",
            ),
            (Rule::Header("X-A".to_owned(), Some("a`\"".to_owned())), "Header(`X-A`, \"a`\\\"\")"),
            (Rule::Query("debug".to_owned(), None), "Query(`debug`)"),
            (Rule::Client("10.0.0.0/8".parse().unwrap()), "ClientIP(`10.0.0.0/8`)"),
            (Rule::PathRegex("/v[0-9]+".to_owned()), "PathRegexp(`^/v[0-9]+`)"),
            (Rule::HostRegex("a|b".to_owned()), "HostRegexp(`^(?:a|b)$`)"),
        ] {
            assert_eq!(rule.to_string(), text);
        }
    }
}
