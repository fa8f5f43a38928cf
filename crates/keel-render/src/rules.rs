//! Rules of routes in the form that both engines can test: alternatives of tests that must all hold.
//!
//! Neither engine nests conditions. A [`Rule`] is brought into disjunctive form, and tests of one and the same part of a
//! request that may replace each other (`Host(a) || Host(b)`) become one [`Atom`], so that usual rules stay one
//! alternative. The number of alternatives has a bound ([`MAX_ALTERNATIVES`]).

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use keel_model::Rule;

use crate::path;
use crate::pattern::{self, Case, Pattern};
use crate::readings;

/// Alternatives of one rule.
pub(crate) const MAX_ALTERNATIVES: usize = 64;
/// Tests of one alternative. A line of HAProxy has at most 64 words.
pub(crate) const MAX_TESTS: usize = 40;

/// Which part of a request is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    /// The host without its port, in lower case.
    Host,
    /// The path, normalized.
    Path,
    /// All readings of the path. Such an atom holds if its tests do not come to the same for all of them.
    Readings,
    Method,
    /// A header, by its name in lower case.
    Header(String),
    Query,
    /// The client's address.
    Client,
    /// The server name of the TLS handshake.
    Sni,
}

/// What the part must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Test {
    /// This text.
    Exact(String),
    /// One more label in front of this (`.example.com`).
    Label(String),
    /// A path of these segments or more; empty for any path.
    Prefix(String),
    /// This expression (in PCRE2's syntax) matches somewhere.
    Regex(String),
    /// It is there.
    Present,
    /// An address in this network.
    Net(IpNet),
}

/// One of these tests holds for the part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Atom {
    pub field: Field,
    pub tests: BTreeSet<Test>,
}

/// An atom that must hold, or must not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Literal {
    pub atom: Atom,
    pub holds: bool,
}

/// All of these; without any it always holds.
pub(crate) type Alternative = Vec<Literal>;

/// Why a rule can't be brought into this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It has too many alternatives, or one of them too many tests.
    TooWide,
    /// This is not a regular expression, or is too long for one.
    NotAnExpression(String),
    /// The name of a header has characters that the engines' variables can't have.
    HeaderName(String),
}

/// Which parts of a request can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// All.
    Http,
    /// Client and server name; what needs a request never holds.
    Connection,
}

/// The alternatives of `rule`; without any it never holds.
pub(crate) fn alternatives(rule: &Rule, layer: Layer) -> Result<Vec<Alternative>, Unfit> {
    expand(rule, layer, true)
}

fn expand(rule: &Rule, layer: Layer, holds: bool) -> Result<Vec<Alternative>, Unfit> {
    match (rule, holds) {
        (Rule::Not(rule), _) => expand(rule, layer, !holds),
        (Rule::All(rules), true) | (Rule::Any(rules), false) => {
            let mut all = vec![Alternative::new()];
            for rule in rules {
                all = both(&all, &expand(rule, layer, holds)?)?;
            }
            Ok(all)
        }
        (Rule::All(rules), false) | (Rule::Any(rules), true) => {
            let mut any = Vec::new();
            for rule in rules {
                any.extend(expand(rule, layer, holds)?);
            }
            bounded(merged(any))
        }
        (single, _) => {
            let atom = atom(single)?;
            let unknown =
                layer == Layer::Connection && !matches!(atom.field, Field::Client | Field::Sni);
            if unknown {
                return Ok(Vec::new());
            }
            Ok(match atom.constant() {
                Some(value) if value == holds => vec![Vec::new()],
                Some(_) => Vec::new(),
                None => vec![vec![Literal { atom, holds }]],
            })
        }
    }
}

/// When a request with a doubtful path is refused before `alternative` is asked: the readings differ for one of its tests
/// of the path, and the others hold.
pub(crate) fn doubts(alternative: &Alternative) -> Vec<Alternative> {
    let of_path = |literal: &&Literal| literal.atom.field == Field::Path;
    let others = alternative.iter().filter(|literal| !of_path(literal));
    let others: Alternative = others.cloned().collect();
    let doubtful = alternative.iter().filter(of_path).filter_map(|literal| {
        readings::differ(literal.atom.tests.iter())?;
        let atom = Atom { field: Field::Readings, tests: literal.atom.tests.clone() };
        let doubt = Literal { atom, holds: true };
        Some(others.iter().cloned().chain([doubt]).collect())
    });
    doubtful.collect()
}

/// The tests of paths of each atom in these alternatives.
pub(crate) fn of_paths(alternatives: &[Alternative]) -> impl Iterator<Item = &BTreeSet<Test>> {
    let literals = alternatives.iter().flatten().filter(|l| l.atom.field == Field::Path);
    literals.map(|literal| &literal.atom.tests)
}

fn both(left: &[Alternative], right: &[Alternative]) -> Result<Vec<Alternative>, Unfit> {
    let mut all = Vec::new();
    for a in left {
        for b in right {
            let joined: BTreeSet<Literal> = a.iter().chain(b).cloned().collect();
            if joined.len() > MAX_TESTS {
                return Err(Unfit::TooWide);
            }
            all.push(joined.into_iter().collect());
        }
        if all.len() > MAX_ALTERNATIVES * 2 {
            return Err(Unfit::TooWide);
        }
    }
    bounded(all)
}

fn bounded(mut alternatives: Vec<Alternative>) -> Result<Vec<Alternative>, Unfit> {
    if alternatives.iter().any(Vec::is_empty) {
        return Ok(vec![Vec::new()]);
    }
    let mut seen = BTreeSet::new();
    alternatives.retain(|alternative| seen.insert(alternative.clone()));
    if alternatives.len() > MAX_ALTERNATIVES { Err(Unfit::TooWide) } else { Ok(alternatives) }
}

/// Puts alternatives together that test the same part and nothing else.
fn merged(alternatives: Vec<Alternative>) -> Vec<Alternative> {
    let mut out: Vec<Alternative> = Vec::new();
    for alternative in alternatives {
        let same = |other: &&mut Alternative| match (&alternative[..], &other[..]) {
            ([a], [b]) => a.holds && b.holds && a.atom.field == b.atom.field,
            _ => false,
        };
        match out.iter_mut().find(same) {
            Some(other) => other[0].atom.tests.extend(alternative[0].atom.tests.clone()),
            None => out.push(alternative),
        }
    }
    out
}

impl Atom {
    /// What it always is, if that does not depend on the request.
    fn constant(&self) -> Option<bool> {
        let any_name = self.field == Field::Sni && self.tests.contains(&Test::Present);
        if self.tests.is_empty() { Some(false) } else { any_name.then_some(true) }
    }
}

fn atom(rule: &Rule) -> Result<Atom, Unfit> {
    let regex = |expression: &str, case| expression_of(expression, case);
    let (field, test) = match rule {
        Rule::Host(host) => (Field::Host, name_test(host)),
        Rule::HostRegex(text) => {
            (Field::Host, Some(Test::Regex(format!(r"\A{}\z", regex(text, Case::Ignored)?))))
        }
        Rule::Path(text) => (Field::Path, path::of_rule(text).map(Test::Exact)),
        Rule::PathPrefix(text) => (Field::Path, path::prefix_of_rule(text).map(Test::Prefix)),
        Rule::PathRegex(text) => {
            (Field::Path, Some(Test::Regex(format!(r"\A{}", regex(text, Case::Sensitive)?))))
        }
        Rule::Method(method) => (Field::Method, sendable(method).map(Test::Exact)),
        Rule::Header(name, value) => {
            let test = match value {
                None => Some(Test::Present),
                Some(value) => sendable(value).map(Test::Exact),
            };
            (header(name)?, test)
        }
        Rule::HeaderRegex(name, text) => {
            (header(name)?, Some(Test::Regex(regex(text, Case::Sensitive)?)))
        }
        Rule::Query(name, value) => {
            let name = pattern::decoded(name);
            let end = match value {
                None => "(?:=|&|\\z)".to_owned(),
                Some(value) if value.is_empty() => "=?(?:&|\\z)".to_owned(),
                Some(value) => format!("={}(?:&|\\z)", pattern::decoded(value)),
            };
            (Field::Query, Some(Test::Regex(format!(r"(?:\A|&){name}{end}"))))
        }
        Rule::Client(net) => (Field::Client, Some(Test::Net(canonical(*net)))),
        Rule::Sni(name) if name == "*" => (Field::Sni, Some(Test::Present)),
        Rule::Sni(name) => (Field::Sni, name_test(name)),
        Rule::All(_) | Rule::Any(_) | Rule::Not(_) => (Field::Host, None),
    };
    Ok(Atom { field, tests: test.into_iter().collect() })
}

fn expression_of(expression: &str, case: Case) -> Result<String, Unfit> {
    let text = Pattern::parse(expression, case).and_then(|pattern| pattern.plain());
    text.map(|text| format!("(?:{text})"))
        .ok_or_else(|| Unfit::NotAnExpression(expression.to_owned()))
}

/// The test for a name of a host; none for a name that no host has.
fn name_test(name: &str) -> Option<Test> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let host = name.strip_prefix("*.").unwrap_or(&name);
    if !is_host(host) {
        return None;
    }
    Some(match name.strip_prefix('*') {
        Some(suffix) => Test::Label(suffix.to_owned()),
        None => Test::Exact(name),
    })
}

/// Whether this can stand in a `Host` field, without a port.
pub(crate) fn is_host(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !name.is_empty() && name.len() <= 253 && name.chars().all(ok)
        }
    }
}

/// A network of IPv4 addresses written as IPv6 ones, as what it is; without bits beyond its length.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(v4.trunc());
    }
    net.trunc()
}

/// Text that can stand in a field of a request; what has other control characters never comes.
fn sendable(text: &str) -> Option<String> {
    let clean = !text.chars().any(|c| c.is_ascii_control() && c != '\t');
    (clean && text.trim_matches([' ', '\t']) == text).then(|| text.to_owned())
}

fn header(name: &str) -> Result<Field, Unfit> {
    if is_plain_name(name) {
        Ok(Field::Header(name.to_ascii_lowercase()))
    } else {
        Err(Unfit::HeaderName(name.to_owned()))
    }
}

/// Whether a header name can be part of the engines' own names: letters, digits, `-` and `_`.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !name.is_empty() && name.len() <= 128 && name.chars().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Rule {
        Rule::Host(name.to_owned())
    }

    fn prefix(path: &str) -> Rule {
        Rule::PathPrefix(path.to_owned())
    }

    fn of(rule: &Rule) -> Vec<Alternative> {
        alternatives(rule, Layer::Http).unwrap()
    }

    #[test]
    fn usual_rules_are_one_alternative() {
        let hosts = Rule::Any(vec![host("a.example"), host("B.example")]);
        let rule = Rule::All(vec![hosts, prefix("/api")]);
        let alternatives = of(&rule);
        assert_eq!(alternatives.len(), 1);
        assert_eq!(alternatives[0].len(), 2);
        let tests: Vec<_> = alternatives[0][0].atom.tests.iter().cloned().collect();
        assert_eq!(tests, [Test::Exact("a.example".into()), Test::Exact("b.example".into())]);
    }

    #[test]
    fn what_always_and_what_never_holds() {
        assert_eq!(of(&Rule::default()), [Alternative::new()]);
        assert!(of(&Rule::Any(Vec::new())).is_empty());
        assert!(of(&Rule::Not(Box::default())).is_empty());
        assert_eq!(of(&Rule::Sni("*".into())), [Alternative::new()]);
        assert!(of(&host("a b")).is_empty(), "no host has a space");
        assert!(of(&Rule::Header("x".into(), Some("a\nb".into()))).is_empty());
        let never = Rule::Not(Box::new(host("a b")));
        assert_eq!(of(&never), [Alternative::new()]);
        let rule = Rule::Any(vec![Rule::default(), host("a")]);
        assert_eq!(of(&rule), [Alternative::new()]);
    }

    #[test]
    fn negation_goes_inwards() {
        let rule = Rule::Not(Box::new(Rule::All(vec![host("a"), prefix("/x")])));
        let alternatives = of(&rule);
        assert_eq!(alternatives.len(), 2);
        assert!(alternatives.iter().flatten().all(|literal| !literal.holds));
        let rule = Rule::Not(Box::new(Rule::Any(vec![host("a"), prefix("/x")])));
        assert_eq!(of(&rule).len(), 1);
    }

    #[test]
    fn connections_have_no_requests() {
        let rule = Rule::Any(vec![prefix("/x"), Rule::Sni("a".into())]);
        assert_eq!(alternatives(&rule, Layer::Connection).unwrap().len(), 1);
        let rule = Rule::Not(Box::new(prefix("/x")));
        assert!(alternatives(&rule, Layer::Connection).unwrap().is_empty());
    }

    #[test]
    fn there_are_bounds() {
        let wide = |n: usize| {
            let pairs = (0..n).map(|i| Rule::All(vec![host(&format!("h{i}")), prefix("/x")]));
            Rule::Any(pairs.collect())
        };
        assert_eq!(of(&wide(64)).len(), 64);
        assert_eq!(alternatives(&wide(65), Layer::Http), Err(Unfit::TooWide));
        let product = Rule::All(vec![wide(20), wide(20)]);
        assert_eq!(alternatives(&product, Layer::Http), Err(Unfit::TooWide));
        let hosts = Rule::Any((0..1000).map(|i| host(&format!("h{i}"))).collect());
        assert_eq!(of(&hosts).len(), 1);
    }
}
