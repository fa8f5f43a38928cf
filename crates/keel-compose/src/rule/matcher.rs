//! Matchers of rules: how many values each takes, and what they become.

use ipnet::IpNet;
use keel_model::Rule;
use regex_syntax::ast::{Assertion, AssertionKind, Ast};

use super::{Protocol, RuleError};
use crate::diagnostic::nearest;

/// The matchers of HTTP rules.
const HTTP: [&str; 11] = [
    "Host",
    "HostRegexp",
    "Path",
    "PathPrefix",
    "PathRegexp",
    "Method",
    "Header",
    "HeaderRegexp",
    "Query",
    "QueryRegexp",
    "ClientIP",
];
/// The matchers of TCP rules.
const TCP: [&str; 4] = ["HostSNI", "HostSNIRegexp", "ALPN", "ClientIP"];
/// Names that version 2 of Traefik had.
const OLD_NAMES: [(&str, &str); 2] = [("Headers", "Header"), ("HeadersRegexp", "HeaderRegexp")];

/// What to write instead of something that is not the name of a header.
pub(crate) const HEADER_HELP: &str = "use letters, digits, `-` and `_`, for example X-Tenant";
/// What to do about something that is not a regular expression.
pub(crate) const PATTERN_HELP: &str =
    r"a character that has a meaning stands for itself behind a backslash: `\.`, `\(`, `\[`";

type Values = Vec<(usize, String)>;

/// The rule of a matcher with its values.
pub(super) fn build(
    name: &str,
    at: usize,
    values: Values,
    protocol: Protocol,
) -> Result<Rule, RuleError> {
    let known: &[&str] = match protocol {
        Protocol::Http => &HTTP,
        Protocol::Tcp => &TCP,
    };
    let current = OLD_NAMES
        .iter()
        .find(|(old, _)| old.eq_ignore_ascii_case(name))
        .map_or(name, |(_, new)| new);
    let Some(name) = known.iter().find(|known| known.eq_ignore_ascii_case(current)) else {
        return Err(unknown(name, at, known, protocol));
    };
    match *name {
        "Host" => each(values, host),
        "HostRegexp" => each(values, |at, value| {
            let value = pattern(at, value)?;
            Ok(Rule::HostRegex(whole(&value)))
        }),
        "Path" => each(values, |at, value| path(at, value).map(Rule::Path)),
        "PathPrefix" => each(values, |at, value| path(at, value).map(Rule::PathPrefix)),
        "PathRegexp" => each(values, |at, value| {
            let value = pattern(at, value)?;
            Ok(Rule::PathRegex(from_start(&value)))
        }),
        "Method" => each(values, |at, value| {
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                return Err(RuleError::new(at, format!("`{value}` is not a method")));
            }
            Ok(Rule::Method(value.to_ascii_uppercase()))
        }),
        "Header" => header(values, at),
        "HeaderRegexp" => {
            let [name, (at, value)] = pair("HeaderRegexp", values, at)?;
            Ok(Rule::HeaderRegex(header_name(name)?, pattern(at, value)?))
        }
        "Query" => query(values, at),
        "ClientIP" => each(values, |at, value| network(at, &value).map(Rule::Client)),
        "HostSNI" => each(values, |at, value| {
            if value == "*" { Ok(Rule::Sni(value)) } else { host_name(at, value).map(Rule::Sni) }
        }),
        other => Err(RuleError::new(at, format!("`{other}` is not supported")).help(match other {
            "QueryRegexp" => "name the values, each with a Query of its own",
            "HostSNIRegexp" => "name the hosts: HostSNI(`a.example.com`), HostSNI(`*.example.com`)",
            _ => "tell connections apart with HostSNI or ClientIP",
        })),
    }
}

fn unknown(name: &str, at: usize, known: &[&'static str], protocol: Protocol) -> RuleError {
    let error = RuleError::new(at, format!("there is no matcher `{name}`"));
    let (here, others, kind) = match protocol {
        Protocol::Http => ("an HTTP", &TCP[..], "TCP"),
        Protocol::Tcp => ("a TCP", &HTTP[..], "HTTP"),
    };
    if let Some(other) = others.iter().find(|other| other.eq_ignore_ascii_case(name)) {
        return RuleError::new(
            at,
            format!("`{other}` is a matcher of {kind} rules, and this is {here} rule"),
        );
    }
    let lower = name.to_lowercase();
    let folded: Vec<(String, &str)> = known.iter().map(|k| (k.to_lowercase(), *k)).collect();
    let near = nearest(&lower, folded.iter().map(|(lower, _)| lower.as_str()))
        .and_then(|near| folded.iter().find(|(lower, _)| lower == near));
    error.help(match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None => format!("the matchers are: {}", known.join(", ")),
    })
}

/// Several values are alternatives, as version 2 has it.
fn each(
    values: Values,
    rule: impl Fn(usize, String) -> Result<Rule, RuleError>,
) -> Result<Rule, RuleError> {
    let rules = values.into_iter().map(|(at, value)| rule(at, value));
    Ok(super::joined(rules.collect::<Result<_, _>>()?, Rule::Any))
}

fn pair(name: &str, values: Values, at: usize) -> Result<[(usize, String); 2], RuleError> {
    <[(usize, String); 2]>::try_from(values).map_err(|values| {
        RuleError::new(at, format!("`{name}` takes two values, not {}", values.len()))
            .help(format!("write {name}(`name`, `value`)"))
    })
}

fn header(mut values: Values, at: usize) -> Result<Rule, RuleError> {
    if values.len() == 1 {
        return Ok(Rule::Header(header_name(values.remove(0))?, None));
    }
    let [name, (_, value)] = pair("Header", values, at)?;
    Ok(Rule::Header(header_name(name)?, Some(value)))
}

/// ``Query(`name`, `value`)``, ``Query(`name`)``, and `name=value` as version 2 has it, where all must match.
fn query(mut values: Values, at: usize) -> Result<Rule, RuleError> {
    if values.iter().all(|(_, value)| value.contains('=')) {
        let parameters = values.into_iter().map(|(_, value)| {
            let (name, value) = value.split_once('=').unwrap_or((&value, ""));
            Rule::Query(name.to_owned(), Some(value.to_owned()))
        });
        return Ok(super::joined(parameters.collect(), Rule::All));
    }
    if values.len() == 1 {
        return Ok(Rule::Query(values.remove(0).1, None));
    }
    let [(_, name), (_, value)] = pair("Query", values, at)?;
    Ok(Rule::Query(name, Some(value)))
}

/// A name of a host: exact, or with `*.` for one label.
fn host(at: usize, value: String) -> Result<Rule, RuleError> {
    host_name(at, value).map(Rule::Host)
}

fn host_name(at: usize, value: String) -> Result<String, RuleError> {
    if let Some(help) = old_template(&value) {
        return Err(RuleError::new(at, format!("`{value}` is not a host")).help(help));
    }
    check_host(&value).map_err(|(message, help)| RuleError::new(at, message).help(help))?;
    Ok(value.trim_end_matches('.').to_ascii_lowercase())
}

/// Whether a text names a host, exactly or with `*.` for one label; what is wrong with it, and what to do.
pub(crate) fn check_host(value: &str) -> Result<(), (String, String)> {
    let name = value.strip_prefix("*.").unwrap_or(value);
    let name = name.strip_suffix('.').unwrap_or(name);
    let form = |message: String| {
        (message, "write for example shop.example.com or *.example.com".to_owned())
    };
    if value.contains("://") || value.contains('/') {
        return Err(form(format!("`{value}` is not a host: leave out scheme and path")));
    }
    // Addresses in their own form are hosts too; only IPv6 ones have colons.
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if !address && let Some((_, port)) = name.rsplit_once(':') {
        return Err((
            format!("`{value}` is not a host: a rule knows no port (`:{port}`)"),
            "leave out the port; the entrypoint has one".to_owned(),
        ));
    }
    if !value.is_ascii() {
        return Err((
            format!("`{value}` is not a host in the form that is sent"),
            "write names with other letters in their ASCII form (xn--…)".to_owned(),
        ));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if address || (name.len() <= 253 && name.split('.').all(label)) {
        Ok(())
    } else {
        Err(form(format!("`{value}` is not a host")))
    }
}

fn path(at: usize, value: String) -> Result<String, RuleError> {
    if let Some(help) = old_template(&value) {
        return Err(RuleError::new(at, format!("`{value}` is not a path")).help(help));
    }
    if value.starts_with('/') {
        Ok(value)
    } else {
        Err(RuleError::new(at, format!("the path `{value}` must begin with `/`"))
            .help(format!("write `/{value}`")))
    }
}

fn header_name((at, name): (usize, String)) -> Result<String, RuleError> {
    if is_header_name(&name) {
        Ok(name)
    } else {
        Err(RuleError::new(at, format!("`{name}` is not the name of a header")).help(HEADER_HELP))
    }
}

/// RFC 9110, 5.1: a token.
pub(crate) fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn network(at: usize, value: &str) -> Result<IpNet, RuleError> {
    parse_network(value).ok_or_else(|| {
        RuleError::new(at, format!("`{value}` is not a network"))
            .help("write for example 10.0.0.0/8 or 192.0.2.7")
    })
}

/// A network, or an address as a network of one.
pub(crate) fn parse_network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn pattern(at: usize, value: String) -> Result<String, RuleError> {
    match check_pattern(&value) {
        Ok(()) => Ok(value),
        Err(message) => {
            let error =
                RuleError::new(at, format!("`{value}` is not a regular expression: {message}"));
            Err(error.help(old_template(&value).unwrap_or_else(|| PATTERN_HELP.to_owned())))
        }
    }
}

/// Whether the proxy can use a regular expression; why not.
pub(crate) fn check_pattern(value: &str) -> Result<(), String> {
    if old_template(value).is_some() {
        return Err("`{name:pattern}` is the form of Traefik's version 2".to_owned());
    }
    regex::Regex::new(value).map(|_| ()).map_err(|error| match error {
        regex::Error::Syntax(text) => {
            // The last line says what; the lines before draw a picture that the diagnostic has no room for.
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
        other => other.to_string(),
    })
}

/// What to write instead of `{name:pattern}`, which version 2 of Traefik had.
fn old_template(value: &str) -> Option<String> {
    let (_, rest) = value.split_once('{')?;
    let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let old = name > 0
        && rest.as_bytes()[0].is_ascii_alphabetic()
        && matches!(rest.as_bytes()[name], b':' | b'}');
    old.then(|| {
        "`{name:pattern}` is the form of Traefik's version 2: use HostRegexp or PathRegexp with a plain regular \
         expression"
            .to_owned()
    })
}

/// Traefik looks for a match anywhere; the rule's match takes in the whole.
fn whole(pattern: &str) -> String {
    let (start, end) = anchors(pattern);
    match (start, end) {
        (true, true) => pattern.to_owned(),
        (true, false) => format!("(?:{pattern}).*"),
        (false, true) => format!(".*(?:{pattern})"),
        (false, false) => format!(".*(?:{pattern}).*"),
    }
}

/// Traefik looks for a match anywhere; the rule's match begins at the start.
fn from_start(pattern: &str) -> String {
    if anchors(pattern).0 { pattern.to_owned() } else { format!(".*(?:{pattern})") }
}

/// Whether a match can only be at the start, and whether it can only be at the end.
fn anchors(pattern: &str) -> (bool, bool) {
    let Ok(ast) = regex_syntax::ast::parse::Parser::new().parse(pattern) else {
        return (false, false);
    };
    let is = |ast: Option<&Ast>, kinds: [AssertionKind; 2]| match ast {
        Some(Ast::Assertion(assertion)) => {
            let Assertion { kind, .. } = &**assertion;
            kinds.contains(kind)
        }
        _ => false,
    };
    let (first, last) = match &ast {
        Ast::Concat(concat) => (concat.asts.first(), concat.asts.last()),
        other => (Some(other), Some(other)),
    };
    (
        is(first, [AssertionKind::StartLine, AssertionKind::StartText]),
        is(last, [AssertionKind::EndLine, AssertionKind::EndText]),
    )
}
