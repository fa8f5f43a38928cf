//! Whether a rule wants a request.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use keel_model::{RouteKind, Rule};
use regex::{Regex, bytes};

use crate::host::NamePattern;
use crate::path;
use crate::pattern::{Anchor, compile, compile_bytes};
use crate::request::{RequestView, any_value, has_parameter};

/// Deepest nesting of `All`, `Any` and `Not`.
const MAX_DEPTH: usize = 32;

/// A rule, ready to be asked.
#[derive(Debug)]
pub(crate) enum Matcher {
    All(Box<[Matcher]>),
    Any(Box<[Matcher]>),
    Not(Box<Matcher>),
    Host(NamePattern),
    HostRegex(Regex),
    Path(Box<str>),
    PathPrefix(Box<str>),
    PathRegex(Regex),
    Method(Box<str>),
    Header(Box<str>, Option<Box<str>>),
    HeaderRegex(Box<str>, bytes::Regex),
    Query(Box<str>, Option<Box<str>>),
    Client(IpNet),
    Sni(NamePattern),
}

/// What rules are asked about.
pub(crate) struct Subject<'a> {
    /// In the form of [`crate::host::with_name`].
    pub host: &'a str,
    /// In the form of [`crate::host::with_name`]; empty if there is none.
    pub sni: &'a str,
    /// In its matched form.
    pub path: &'a str,
    /// In its canonical form.
    pub client: IpAddr,
    /// All else; `None` for connections.
    pub request: Option<&'a RequestView<'a>>,
}

impl Matcher {
    /// A rule for routes of this kind. Adds to `problems` what is wrong with it; what comes back then is of no use.
    pub fn new(rule: &Rule, kind: RouteKind, problems: &mut Vec<String>) -> Self {
        Compiler { kind, problems }.rule(rule, 0)
    }

    /// Whether the rule wants it.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|matcher| matcher.matches(subject)),
            Self::Any(any) => any.iter().any(|matcher| matcher.matches(subject)),
            Self::Not(not) => !not.matches(subject),
            Self::Host(pattern) => pattern.matches(subject.host),
            Self::HostRegex(regex) => regex.is_match(subject.host),
            Self::Path(path) => **path == *subject.path,
            Self::PathPrefix(prefix) => path::has_prefix(subject.path, prefix),
            Self::PathRegex(regex) => regex.is_match(subject.path),
            Self::Client(net) => net.contains(&subject.client),
            Self::Sni(pattern) => pattern.matches(subject.sni),
            Self::Method(_) | Self::Header(..) | Self::HeaderRegex(..) | Self::Query(..) => {
                subject.request.is_some_and(|request| self.matches_request(request))
            }
        }
    }

    fn matches_request(&self, request: &RequestView<'_>) -> bool {
        match self {
            Self::Method(method) => **method == *request.method,
            Self::Header(name, value) => any_value(request.headers, name, &mut |found| {
                value.as_deref().is_none_or(|value| value.as_bytes() == found)
            }),
            Self::HeaderRegex(name, regex) => {
                any_value(request.headers, name, &mut |found| regex.is_match(found))
            }
            Self::Query(name, value) => {
                request.query.is_some_and(|query| has_parameter(query, name, value.as_deref()))
            }
            _ => false,
        }
    }

    /// Names of which a host (or server name) must be one for the rule to want it; `None` if others may do too.
    pub fn names(&self, of: Names) -> Option<Vec<&NamePattern>> {
        match (self, of) {
            (Self::Host(pattern), Names::Host) | (Self::Sni(pattern), Names::Sni) => {
                (*pattern != NamePattern::Any).then(|| vec![pattern])
            }
            (Self::All(all), _) => {
                all.iter().filter_map(|matcher| matcher.names(of)).min_by_key(Vec::len)
            }
            (Self::Any(any), _) => {
                let names: Option<Vec<_>> = any.iter().map(|matcher| matcher.names(of)).collect();
                names.map(|names| names.concat())
            }
            _ => None,
        }
    }
}

/// Which names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Of the request.
    Host,
    /// Of the TLS handshake.
    Sni,
}

struct Compiler<'p> {
    kind: RouteKind,
    problems: &'p mut Vec<String>,
}

impl Compiler<'_> {
    fn rule(&mut self, rule: &Rule, depth: usize) -> Matcher {
        if depth > MAX_DEPTH {
            return self.never(format!("a rule is nested more than {MAX_DEPTH} deep"));
        }
        let http = self.kind == RouteKind::Http;
        match rule {
            Rule::All(all) => {
                Matcher::All(all.iter().map(|rule| self.rule(rule, depth + 1)).collect())
            }
            Rule::Any(any) => {
                Matcher::Any(any.iter().map(|rule| self.rule(rule, depth + 1)).collect())
            }
            Rule::Not(not) => Matcher::Not(Box::new(self.rule(not, depth + 1))),
            Rule::Client(net) => Matcher::Client(canonical_net(*net)),
            Rule::Sni(name) if name == "*" => Matcher::Sni(NamePattern::Any),
            Rule::Sni(name) => self.either(NamePattern::new(name), Matcher::Sni),
            rule if http => self.request_rule(rule),
            _ => self.never(
                "a rule for connections can only look at server name and client (`Sni`, `Client`)"
                    .into(),
            ),
        }
    }

    fn request_rule(&mut self, rule: &Rule) -> Matcher {
        let value = |value: &Option<String>| value.as_deref().map(Box::from);
        match rule {
            Rule::Host(host) => self.either(NamePattern::new(host), Matcher::Host),
            Rule::HostRegex(pattern) => {
                self.either(compile(&format!("(?i){pattern}"), Anchor::Whole), Matcher::HostRegex)
            }
            Rule::Path(path) => self.either(path::of_rule(path), |path| Matcher::Path(path.into())),
            Rule::PathPrefix(path) => {
                self.either(path::prefix_of_rule(path), |path| Matcher::PathPrefix(path.into()))
            }
            Rule::PathRegex(pattern) => {
                self.either(compile(pattern, Anchor::Start), Matcher::PathRegex)
            }
            Rule::Method(method) if is_token(method) => Matcher::Method(method.as_str().into()),
            Rule::Method(method) => self.never(format!("{method:?} is not a method")),
            Rule::Header(name, expected) => {
                self.field(name, |name| Matcher::Header(name, value(expected)))
            }
            Rule::HeaderRegex(name, pattern) => match compile_bytes(pattern) {
                Ok(regex) => self.field(name, |name| Matcher::HeaderRegex(name, regex)),
                Err(problem) => self.never(problem),
            },
            Rule::Query(name, expected) => Matcher::Query(name.as_str().into(), value(expected)),
            // The others are the same for requests and connections.
            Rule::All(_) | Rule::Any(_) | Rule::Not(_) | Rule::Client(_) | Rule::Sni(_) => {
                Matcher::Any(Box::default())
            }
        }
    }

    fn field(&mut self, name: &str, then: impl FnOnce(Box<str>) -> Matcher) -> Matcher {
        if is_token(name) {
            return then(name.to_ascii_lowercase().into());
        }
        self.never(format!("{name:?} is not the name of a header field"))
    }

    fn either<T>(&mut self, found: Result<T, String>, then: impl FnOnce(T) -> Matcher) -> Matcher {
        match found {
            Ok(found) => then(found),
            Err(problem) => self.never(problem),
        }
    }

    fn never(&mut self, problem: String) -> Matcher {
        self.problems.push(problem);
        Matcher::Any(Box::default())
    }
}

/// Whether `text` is a token (RFC 9110, 5.6.2), as methods and names of header fields are.
pub(crate) fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

/// A network of IPv4 addresses written as IPv6 ones, as what it is. Clients come in that form ([`IpAddr::to_canonical`]).
pub(crate) fn canonical_net(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(v4);
    }
    net
}

/// Whether a rule looks at paths.
pub(crate) fn looks_at_paths(rule: &Rule) -> bool {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().any(looks_at_paths),
        Rule::Not(rule) => looks_at_paths(rule),
        Rule::Path(_) | Rule::PathPrefix(_) | Rule::PathRegex(_) => true,
        _ => false,
    }
}

/// Whether a path rule names a character that services read in different ways (see [`crate::path`]).
pub(crate) fn names_doubtful_characters(rule: &Rule) -> bool {
    let encoded = |text: &str| {
        let text = text.to_ascii_lowercase();
        [";", "%3b", "%2f", "%5c"].iter().any(|sign| text.contains(sign))
    };
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().any(names_doubtful_characters),
        Rule::Not(rule) => names_doubtful_characters(rule),
        Rule::Path(path) | Rule::PathPrefix(path) => encoded(path) || path.contains('\\'),
        Rule::PathRegex(pattern) => encoded(pattern),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Forms;
    use crate::request::tests::{Fields, get};

    fn wants(rule: Rule, change: impl FnOnce(&mut RequestView<'_>)) -> bool {
        let headers: Fields<'_> =
            &[("X-Tier", "gold"), ("x-tier", "blue"), ("Accept", "text/html, */*")];
        let mut view =
            RequestView { path: "/api/users", query: Some("page=2&all"), ..get(&headers) };
        change(&mut view);
        let mut problems = Vec::new();
        let matcher = Matcher::new(&rule, RouteKind::Http, &mut problems);
        assert_eq!(problems, [""; 0]);
        let forms = Forms::of(view.path);
        matcher.matches(&Subject {
            host: view.host,
            sni: view.sni.unwrap_or_default(),
            path: &forms.matched,
            client: view.client,
            request: Some(&view),
        })
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn each_rule() {
        for (rule, expected) in [
            (Rule::All(vec![]), true),
            (Rule::Any(vec![]), false),
            (Rule::Not(Box::new(Rule::Any(vec![]))), true),
            (Rule::Host(text("Shop.example")), true),
            (Rule::Host(text("*.example")), true),
            (Rule::HostRegex(text("SHOP\\.[a-z]+")), true),
            (Rule::HostRegex(text("hop")), false),
            (Rule::Path(text("/api/users")), true),
            (Rule::Path(text("/api/users/")), false),
            (Rule::PathPrefix(text("/api")), true),
            (Rule::PathPrefix(text("/ap")), false),
            (Rule::PathRegex(text("/api/[^/]+")), true),
            (Rule::PathRegex(text("/users")), false),
            (Rule::Method(text("GET")), true),
            (Rule::Method(text("get")), false),
            (Rule::Header(text("x-TIER"), Some(text("blue"))), true),
            (Rule::Header(text("x-tier"), Some(text("Blue"))), false),
            (Rule::Header(text("accept"), None), true),
            (Rule::Header(text("cookie"), None), false),
            (Rule::HeaderRegex(text("accept"), text("html")), true),
            (Rule::HeaderRegex(text("accept"), text("^html")), false),
            (Rule::Query(text("page"), Some(text("2"))), true),
            (Rule::Query(text("all"), None), true),
            (Rule::Query(text("none"), None), false),
            (Rule::Client("10.0.0.0/8".parse().unwrap()), true),
            (Rule::Client("::ffff:10.0.0.0/104".parse().unwrap()), true),
            (Rule::Client("fd00::/8".parse().unwrap()), false),
            (Rule::Sni(text("*")), true),
            (Rule::Sni(text("shop.example")), false),
        ] {
            assert_eq!(wants(rule.clone(), |_| ()), expected, "{rule:?}");
        }
        assert!(wants(Rule::Sni(text("*.example")), |view| view.sni = Some("a.example")));
        assert!(!wants(Rule::Query(text("page"), None), |view| view.query = None));
        assert!(wants(Rule::Path(text("/a%7e")), |view| view.path = "/%61~"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let deep = (0..100).fold(Rule::All(vec![]), |rule, _| Rule::Not(Box::new(rule)));
        let http = RouteKind::Http;
        for (rule, kind, part) in [
            (Rule::HostRegex(text("(")), http, "not a regular expression"),
            (Rule::Path(text("api")), http, "begin with a slash"),
            (Rule::Method(text("G T")), http, "not a method"),
            (Rule::Header(text("a b"), None), http, "not the name of a header"),
            (Rule::HeaderRegex(text("a"), text("[")), http, "not a regular expression"),
            (Rule::Host(text("a.example:80")), http, "without a port"),
            (Rule::Host(text("a")), RouteKind::Tcp, "only look at server name"),
            (deep, http, "nested"),
        ] {
            let mut problems = Vec::new();
            Matcher::new(&Rule::Any(vec![rule]), kind, &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(part), "{problems:?}");
        }
    }

    #[test]
    fn names_narrow_a_rule_only_where_they_must_be_met() {
        let host = |name| Rule::Host(text(name));
        let path = || Rule::PathPrefix(text("/x"));
        for (rule, expected) in [
            (host("a"), Some(1)),
            (path(), None),
            (Rule::All(vec![path(), host("a")]), Some(1)),
            (Rule::All(vec![Rule::Any(vec![host("a"), host("b")]), host("c")]), Some(1)),
            (Rule::Any(vec![host("a"), host("*.b")]), Some(2)),
            (Rule::Any(vec![host("a"), path()]), None),
            (Rule::Any(vec![]), Some(0)),
            (Rule::Not(Box::new(host("a"))), None),
            (Rule::HostRegex(text("a")), None),
        ] {
            let matcher = Matcher::new(&rule, RouteKind::Http, &mut Vec::new());
            let found = matcher.names(Names::Host).map(|names| names.len());
            assert_eq!(found, expected, "{rule:?}");
        }
    }
}
