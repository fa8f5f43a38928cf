//! Rules as text, in the syntax of Traefik 3, and the priority that follows from it.

use keel_model::Rule;

/// The priority of a route that states none: the length of its rule as text, as in Traefik, so that the more specific
/// rule wins. A rule that wants everything has 0, so that it comes last.
#[must_use]
pub fn default_priority(rule: &Rule) -> i64 {
    match rule {
        Rule::All(all) if all.is_empty() => 0,
        rule => i64::try_from(rule_text(rule).len()).unwrap_or(i64::MAX),
    }
}

/// A rule in the syntax of Traefik 3: ``Host(`a.example`) && PathPrefix(`/x`)``.
///
/// What Traefik has no words for is said with what comes nearest: every request is ``PathPrefix(`/`)``, the mere presence
/// of a header a `HeaderRegexp` that any value matches.
#[must_use]
pub fn rule_text(rule: &Rule) -> String {
    let mut out = String::new();
    write(rule, Around::Nothing, &mut out);
    out
}

/// What a rule stands in, which decides whether it needs brackets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    Nothing,
    All,
    Any,
    Not,
}

fn write(rule: &Rule, around: Around, out: &mut String) {
    match rule {
        Rule::All(rules) => match rules.as_slice() {
            [] => out.push_str("PathPrefix(`/`)"),
            [only] => write(only, around, out),
            rules => join(rules, " && ", Around::All, around == Around::Not, out),
        },
        Rule::Any(rules) => match rules.as_slice() {
            [] => out.push_str("!PathPrefix(`/`)"),
            [only] => write(only, around, out),
            rules => {
                let brackets = matches!(around, Around::Not | Around::All);
                join(rules, " || ", Around::Any, brackets, out);
            }
        },
        Rule::Not(_) if around == Around::Not => {
            out.push('(');
            write(rule, Around::Nothing, out);
            out.push(')');
        }
        Rule::Not(not) => {
            out.push('!');
            write(not, Around::Not, out);
        }
        Rule::Host(host) => call("Host", &[host], out),
        Rule::HostRegex(pattern) => call("HostRegexp", &[pattern], out),
        Rule::Path(path) => call("Path", &[path], out),
        Rule::PathPrefix(path) => call("PathPrefix", &[path], out),
        Rule::PathRegex(pattern) => call("PathRegexp", &[pattern], out),
        Rule::Method(method) => call("Method", &[method], out),
        Rule::Header(name, Some(value)) => call("Header", &[name, value], out),
        Rule::Header(name, None) => call("HeaderRegexp", &[name, ".*"], out),
        Rule::HeaderRegex(name, pattern) => call("HeaderRegexp", &[name, pattern], out),
        Rule::Query(name, Some(value)) => call("Query", &[name, value], out),
        Rule::Query(name, None) => call("Query", &[name], out),
        Rule::Client(net) => call("ClientIP", &[&net.to_string()], out),
        Rule::Sni(name) => call("HostSNI", &[name], out),
    }
}

fn join(rules: &[Rule], sign: &str, around: Around, brackets: bool, out: &mut String) {
    out.push_str(if brackets { "(" } else { "" });
    for (at, rule) in rules.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { sign });
        write(rule, around, out);
    }
    out.push_str(if brackets { ")" } else { "" });
}

fn call(name: &str, arguments: &[&str], out: &mut String) {
    out.push_str(name);
    out.push('(');
    for (at, argument) in arguments.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { ", " });
        // Go's two kinds of string literal: raw ones have no escapes and no backtick.
        if argument.contains('`') {
            out.push_str(&format!("{argument:?}"));
        } else {
            out.push('`');
            out.push_str(argument);
            out.push('`');
        }
    }
    out.push(')');
}

/// The hosts that a rule names (in `Host` and `Sni`, wildcards included), for certificates. Sorted, each once.
#[must_use]
pub fn rule_hosts(rule: &Rule) -> Vec<&str> {
    let mut hosts = Vec::new();
    collect(rule, &mut hosts);
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn collect<'r>(rule: &'r Rule, hosts: &mut Vec<&'r str>) {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().for_each(|rule| collect(rule, hosts)),
        Rule::Host(host) => hosts.push(host),
        Rule::Sni(name) if name != "*" => hosts.push(name),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Rule {
        Rule::Host(name.to_owned())
    }

    #[test]
    fn texts() {
        let path = || Rule::PathPrefix("/x".into());
        let not = |rule| Rule::Not(Box::new(rule));
        for (rule, expected) in [
            (Rule::All(vec![host("a"), path()]), "Host(`a`) && PathPrefix(`/x`)"),
            (
                Rule::All(vec![Rule::Any(vec![host("a"), host("b")]), path()]),
                "(Host(`a`) || Host(`b`)) && PathPrefix(`/x`)",
            ),
            (
                Rule::Any(vec![Rule::All(vec![host("a"), path()]), host("b")]),
                "Host(`a`) && PathPrefix(`/x`) || Host(`b`)",
            ),
            (not(host("a")), "!Host(`a`)"),
            (not(Rule::All(vec![host("a"), path()])), "!(Host(`a`) && PathPrefix(`/x`))"),
            (not(not(host("a"))), "!(!Host(`a`))"),
            (Rule::All(vec![]), "PathPrefix(`/`)"),
            (not(Rule::Any(vec![host("a")])), "!Host(`a`)"),
            (Rule::Header("X".into(), Some("1".into())), "Header(`X`, `1`)"),
            (Rule::Header("X".into(), None), "HeaderRegexp(`X`, `.*`)"),
            (Rule::Query("a".into(), None), "Query(`a`)"),
            (Rule::Client("10.0.0.0/8".parse().unwrap()), "ClientIP(`10.0.0.0/8`)"),
            (Rule::Sni("*".into()), "HostSNI(`*`)"),
            (Rule::Method("GET".into()), "Method(`GET`)"),
            (Rule::PathRegex("^/`\\d".into()), "PathRegexp(\"^/`\\\\d\")"),
        ] {
            assert_eq!(rule_text(&rule), expected);
        }
    }

    #[test]
    fn the_longer_rule_wins_and_everything_comes_last() {
        let all = Rule::All(vec![]);
        let long = Rule::All(vec![host("a"), Rule::Path("/".into())]);
        assert_eq!(default_priority(&all), 0);
        assert_eq!(default_priority(&host("a")), 9);
        assert!(default_priority(&host("a")) < default_priority(&long));
    }

    #[test]
    fn hosts() {
        let rule = Rule::All(vec![
            Rule::Any(vec![host("b"), host("*.a"), host("b")]),
            Rule::Not(Box::new(host("c"))),
            Rule::Sni("*".into()),
            Rule::Sni("d".into()),
        ]);
        assert_eq!(rule_hosts(&rule), ["*.a", "b", "d"]);
    }
}
