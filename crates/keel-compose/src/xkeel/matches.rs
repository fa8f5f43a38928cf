//! Which requests a route is for: hosts, paths, methods, headers, parameters, clients, server names.

use keel_model::{RouteKind, Rule};

use super::reader::Reader;
use crate::diagnostic::{Code, Span};
use crate::routes::{Draft, Located};
use crate::rule::{self, Protocol, joined};
use crate::value::{Map, Node, Value};

/// Forms of a path.
pub(crate) const PATH_KEYS: [&str; 3] = ["prefix", "exact", "regex"];

impl Reader {
    pub(super) fn host(&mut self, host: &str, span: &Span) -> Option<Rule> {
        match rule::check_host(host) {
            Ok(()) => Some(Rule::Host(host.trim_end_matches('.').to_ascii_lowercase())),
            Err((message, help)) => {
                self.error(Code::InvalidValue, span, message).help = Some(help);
                None
            }
        }
    }

    pub(super) fn rule(&mut self, node: &Node, draft: &Draft) -> Option<Rule> {
        let text = self.text(node, "a rule")?;
        let protocol = match draft.kind {
            RouteKind::Http => Protocol::Http,
            RouteKind::Tcp | RouteKind::Passthrough => Protocol::Tcp,
        };
        match rule::parse(&text, protocol) {
            Ok(rule) => Some(rule),
            Err(error) => {
                let place = node.place_of(error.at);
                self.error(Code::InvalidValue, &place, error.message).help = error.help;
                None
            }
        }
    }

    pub(super) fn condition(&mut self, key: &str, value: &Node) -> Option<Rule> {
        let rules: Vec<Rule> = match key {
            "host" => {
                let hosts = self.texts(value, "a host");
                hosts.iter().filter_map(|host| self.host(&host.value, &host.span)).collect()
            }
            "sni" => {
                let names = self.texts(value, "the name of a server");
                names.iter().filter_map(|name| self.server_name(name)).collect()
            }
            "path" => {
                let items = self.items(value);
                items.iter().filter_map(|item| self.path_rule(item)).collect()
            }
            "method" => {
                let methods = self.texts(value, "a method");
                methods.iter().filter_map(|method| self.method(method)).collect()
            }
            "client" => self.networks(value).into_iter().map(Rule::Client).collect(),
            "headers" => return self.headers(value),
            _ => return self.query(value),
        };
        (!rules.is_empty()).then(|| joined(rules, Rule::Any))
    }

    fn server_name(&mut self, name: &Located<String>) -> Option<Rule> {
        if name.value == "*" {
            return Some(Rule::Sni(name.value.clone()));
        }
        match self.host(&name.value, &name.span)? {
            Rule::Host(host) => Some(Rule::Sni(host)),
            other => Some(other),
        }
    }

    fn method(&mut self, method: &Located<String>) -> Option<Rule> {
        let text = &method.value;
        if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Some(Rule::Method(text.to_ascii_uppercase()));
        }
        let message = format!("`{text}` is not a method");
        self.error(Code::InvalidValue, &method.span, message);
        None
    }

    /// `/api`, or a mapping that says how the path is compared.
    fn path_rule(&mut self, node: &Node) -> Option<Rule> {
        if node.as_map().is_none() {
            return self.path(node).map(Rule::PathPrefix);
        }
        let (form, value) = self.only(node, "x-keel.routes[].path", &PATH_KEYS)?;
        match form {
            "exact" => self.path(value).map(Rule::Path),
            "prefix" => self.path(value).map(Rule::PathPrefix),
            _ => self.pattern(value).map(Rule::PathRegex),
        }
    }

    fn headers(&mut self, node: &Node) -> Option<Rule> {
        let Value::Map(map) = &node.value else {
            self.wrong(node, "a mapping from header to value", "write for example {X-Beta: \"1\"}");
            return None;
        };
        let mut rules = Vec::new();
        self.filled(map, node);
        for (name, value) in map.iter() {
            let span = map.key_span(name).unwrap_or(&node.span);
            let Some(name) = self.header_name(name, span) else { continue };
            rules.extend(match &value.value {
                Value::Null => Some(Rule::Header(name, None)),
                Value::Map(_) => self
                    .only(value, "x-keel.routes[].headers.*", &["regex"])
                    .and_then(|(_, pattern)| self.pattern(pattern))
                    .map(|pattern| Rule::HeaderRegex(name, pattern)),
                _ => {
                    let texts = self.texts(value, "a value");
                    let rule = |text: Located<String>| Rule::Header(name.clone(), Some(text.value));
                    Some(texts)
                        .filter(|texts| !texts.is_empty())
                        .map(|texts| joined(texts.into_iter().map(rule).collect(), Rule::Any))
                }
            });
        }
        (!rules.is_empty()).then(|| joined(rules, Rule::All))
    }

    /// A condition without content would hold for everything.
    fn filled(&mut self, map: &Map, node: &Node) {
        if map.iter().next().is_none() {
            self.error(Code::InvalidValue, &node.span, "this mapping is empty".to_owned()).help =
                Some("write what belongs into it, or leave the key out".to_owned());
        }
    }

    fn query(&mut self, node: &Node) -> Option<Rule> {
        let Value::Map(map) = &node.value else {
            self.wrong(
                node,
                "a mapping from parameter to value",
                "write for example {debug: \"1\"}",
            );
            return None;
        };
        let mut rules = Vec::new();
        self.filled(map, node);
        for (name, value) in map.iter() {
            let wanted = if value.is_null() { None } else { Some(self.text(value, "a value")?) };
            rules.push(Rule::Query(name.to_owned(), wanted));
        }
        (!rules.is_empty()).then(|| joined(rules, Rule::All))
    }
}

/// Host, then path, then the rest.
pub(super) fn order(rule: &Rule) -> u8 {
    match rule {
        Rule::Any(rules) | Rule::All(rules) => rules.first().map_or(9, order),
        Rule::Host(_) | Rule::HostRegex(_) | Rule::Sni(_) => 0,
        Rule::Path(_) | Rule::PathPrefix(_) | Rule::PathRegex(_) => 1,
        Rule::Method(_) => 2,
        Rule::Header(..) | Rule::HeaderRegex(..) => 3,
        Rule::Query(..) => 4,
        Rule::Client(_) => 5,
        Rule::Not(_) => 6,
    }
}
