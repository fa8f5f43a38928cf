//! `routes` of a service: which requests, where, with what TLS, and shares for other services.

use keel_model::{RouteKind, RouteTls, Rule, ServiceName, Split};

use super::filters::FILTER_KEYS;
use super::matches::order;
use super::reader::{Reader, given};
use crate::diagnostic::{Code, Span};
use crate::routes::{Draft, Located, MAX_ROUTES, forms};
use crate::rule::joined;
use crate::value::{Map, Node, Value};

/// Keys of an item of `routes`, besides [`FILTER_KEYS`].
pub(crate) const ROUTE_KEYS: [&str; 16] = [
    "name",
    "host",
    "path",
    "method",
    "headers",
    "query",
    "client",
    "sni",
    "rule",
    "priority",
    "port",
    "entrypoints",
    "tls",
    "kind",
    "split",
    "timeout",
];
/// Keys that only requests have.
const HTTP_KEYS: [&str; 6] = ["host", "path", "method", "headers", "query", "timeout"];
/// Keys that say which requests; `rule` stands instead of them.
const MATCH_KEYS: [&str; 7] = ["host", "path", "method", "headers", "query", "client", "sni"];
/// Keys of `tls`.
pub(crate) const TLS_KEYS: [&str; 2] = ["cert", "key"];
/// Keys of an entry of `split`.
pub(crate) const SPLIT_KEYS: [&str; 2] = ["share", "port"];

const KINDS: [(&str, RouteKind); 3] =
    [("http", RouteKind::Http), ("tcp", RouteKind::Tcp), ("passthrough", RouteKind::Passthrough)];

/// All keys of an item of `routes`.
pub(crate) fn route_keys() -> Vec<&'static str> {
    ROUTE_KEYS.into_iter().chain(FILTER_KEYS).collect()
}

impl Reader {
    pub(super) fn routes(&mut self, node: &Node) -> Vec<Draft> {
        let items = match &node.value {
            Value::Null => return Vec::new(),
            Value::Seq(items) => items.as_slice(),
            // One route needs no list.
            Value::String(_) | Value::Map(_) => std::slice::from_ref(node),
            _ => {
                self.wrong(node, "a list of routes", "write for example [shop.example.com]");
                return Vec::new();
            }
        };
        if items.len() > MAX_ROUTES {
            let message = format!("a service can have at most {MAX_ROUTES} routes");
            self.error(Code::Budget, &node.span, message);
            return Vec::new();
        }
        items.iter().filter_map(|item| self.route(item)).collect()
    }

    fn route(&mut self, node: &Node) -> Option<Draft> {
        match &node.value {
            Value::String(text) => self.short_route(text, node),
            Value::Map(map) => Some(self.long_route(map, node)),
            _ => {
                self.wrong(
                    node,
                    "a route",
                    "write for example shop.example.com/api, or a mapping with `host`, `path`, …",
                );
                None
            }
        }
    }

    /// `shop.example.com`, `shop.example.com/api`, `/api`, `https://shop.example.com`.
    fn short_route(&mut self, text: &str, node: &Node) -> Option<Draft> {
        let mut draft = Draft::new(&node.span);
        let rest = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest,
            Some(("https", rest)) => {
                draft.tls = Some(Located::new(RouteTls::Any, &node.span));
                rest
            }
            Some(_) => {
                self.wrong(
                    node,
                    "a host with a path if need be",
                    "write for example shop.example.com/api",
                );
                return None;
            }
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mut rules = Vec::new();
        if !host.is_empty() {
            rules.push(self.host(host, &node.span)?);
        }
        if !path.is_empty() && (path != "/" || host.is_empty()) {
            rules.push(Rule::PathPrefix(path.to_owned()));
        }
        if rules.is_empty() {
            self.wrong(
                node,
                "a host with a path if need be",
                "write for example shop.example.com/api",
            );
            return None;
        }
        draft.rule = joined(rules, Rule::All);
        Some(draft)
    }

    fn long_route(&mut self, map: &Map, node: &Node) -> Draft {
        let mut draft = Draft::new(&node.span);
        // Keys come in their own order; what the others mean depends on the kind.
        if let Some(kind) = map.get("kind") {
            draft.kind = self.word(kind, &KINDS).unwrap_or_default();
        }
        let mistakes = self.errors.len();
        let mut rules = Vec::new();
        for (key, value) in self.keys(node, "x-keel.routes[]", &route_keys()) {
            let at = map.key_span(key).unwrap_or(&value.span);
            if !self.fits(key, at, &draft) {
                continue;
            }
            match key {
                "name" => draft.name = self.name(value),
                "priority" => {
                    draft.priority = self.number(value, i64::from(i32::MIN), i64::from(i32::MAX));
                }
                "port" => draft.port = self.port(value).map(|port| Located::new(port, &value.span)),
                "entrypoints" => draft.entrypoints = self.texts(value, "the name of an entrypoint"),
                "tls" => draft.tls = self.tls(value).map(|tls| Located::new(tls, &value.span)),
                "kind" => {}
                "split" => draft.split = self.split(value),
                "timeout" => draft.timeout = self.time(value),
                "rule" => rules.extend(self.rule(value, &draft)),
                key if MATCH_KEYS.contains(&key) => rules.extend(self.condition(key, value)),
                key => self.filter(key, value, &mut draft),
            }
        }
        if self.errors.len() == mistakes {
            self.check_matches(map, node, &draft);
        }
        // What narrows most stands first, so that the text reads as people say it.
        rules.sort_by_key(order);
        draft.rule = joined(rules, Rule::All);
        if draft.kind != RouteKind::Http && draft.rule == Rule::default() {
            draft.rule = Rule::Sni("*".to_owned());
        }
        draft.allow_by_rule();
        draft
    }

    /// Whether a key has a meaning for this kind of route.
    fn fits(&mut self, key: &str, at: &Span, draft: &Draft) -> bool {
        let wanted = match draft.kind {
            RouteKind::Http => key != "sni",
            RouteKind::Tcp | RouteKind::Passthrough => {
                !HTTP_KEYS.contains(&key) && (key == "allow" || !FILTER_KEYS.contains(&key))
            }
        };
        if !wanted {
            let (message, help) = if key == "sni" {
                (
                    "`sni` is for connections".to_owned(),
                    "write `host`, or `kind: tcp` or `kind: passthrough`",
                )
            } else {
                (
                    format!("`{key}` is for requests, and this route is for whole connections"),
                    "leave it out, or write `kind: http`",
                )
            };
            self.error(Code::Conflict, at, message).help = Some(help.to_owned());
        }
        wanted
    }

    fn check_matches(&mut self, map: &Map, node: &Node, draft: &Draft) {
        let given: Vec<&str> = MATCH_KEYS.into_iter().filter(|key| map.contains(key)).collect();
        if map.contains("rule") {
            if let Some(first) = given.first() {
                let at = map.key_span(first).unwrap_or(&node.span).clone();
                let message = format!("`{first}` and `rule` both say which requests");
                self.error(Code::Conflict, &at, message).help =
                    Some("write all of it into the rule, or leave the rule out".to_owned());
            }
        } else if given.is_empty() && draft.kind == RouteKind::Http {
            self.error(
                Code::MissingKey,
                &node.span,
                "the route does not say which requests".to_owned(),
            )
            .help = Some(
                "give it a `host`, a `path` or a `rule`; `path: /` takes every request".to_owned(),
            );
        }
        if draft.kind == RouteKind::Passthrough && draft.tls.is_some() {
            let at = map.key_span("tls").unwrap_or(&node.span).clone();
            let message = "a route that passes TLS through has no TLS of its own".to_owned();
            self.error(Code::Conflict, &at, message).help =
                Some("leave out `tls`; or write `kind: tcp` to end TLS here".to_owned());
        }
    }

    fn name(&mut self, node: &Node) -> Option<Located<String>> {
        let name = node.as_str().filter(|name| {
            (1..=63).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        });
        if name.is_none() {
            self.wrong(node, "a name of letters, digits, `-`, `_` and `.`, at most 63", "");
        }
        name.map(|name| Located::new(name.to_owned(), &node.span))
    }

    fn tls(&mut self, node: &Node) -> Option<RouteTls> {
        match &node.value {
            Value::Bool(true) => Some(RouteTls::Any),
            Value::Bool(false) | Value::Null => None,
            Value::String(word) if word == "acme" => Some(RouteTls::Acme),
            Value::Map(_) => {
                let (mut cert, mut key) = (None, None);
                for (name, value) in self.keys(node, "x-keel.routes[].tls", &TLS_KEYS) {
                    let path = self.text(value, "the path of a PEM file").map(Into::into);
                    if name == "cert" { cert = path } else { key = path }
                }
                if let (Some(cert), Some(key)) = (cert, key) {
                    return Some(RouteTls::Files { cert, key });
                }
                let message = "`tls` needs both `cert` and `key`".to_owned();
                self.error(Code::MissingKey, &node.span, message);
                None
            }
            _ => {
                self.wrong(node, "`true`, `acme` or a mapping with `cert` and `key`", "");
                None
            }
        }
    }

    fn split(&mut self, node: &Node) -> Vec<Located<Split>> {
        let Value::Map(map) = &node.value else {
            self.wrong(node, "a mapping from service to share", "write for example {shop-v2: 10%}");
            return Vec::new();
        };
        let mut parts: Vec<Located<Split>> = Vec::new();
        for (name, value) in map.iter() {
            let span = map.key_span(name).unwrap_or(&node.span);
            let Ok(service) = ServiceName::new(name) else {
                let message = format!("`{name}` is not the name of a service");
                self.error(Code::InvalidValue, span, message);
                continue;
            };
            if let Some((per_mille, port)) = self.share(value) {
                parts.push(Located::new(Split { service, port, per_mille }, span));
            }
        }
        if parts.iter().map(|part| u32::from(part.value.per_mille)).sum::<u32>() > 1000 {
            self.error(
                Code::InvalidValue,
                &node.span,
                "the shares are more than 100% together".to_owned(),
            );
        }
        parts
    }

    fn share(&mut self, node: &Node) -> Option<(u16, Option<u16>)> {
        let mistakes = self.errors.len();
        if node.as_map().is_none() {
            let share = node.as_str().and_then(forms::share);
            if share.is_none() {
                let message = format!(
                    "this must be a share from 0% to 100% with one digit after the point at most, not {}",
                    given(node)
                );
                self.error(Code::InvalidValue, &node.span, message).help =
                    Some("write for example `10%` or `2.5%`".to_owned());
            }
            return share.map(|share| (share, None));
        }
        let (mut share, mut port) = (None, None);
        for (key, value) in self.keys(node, "x-keel.routes[].split.*", &SPLIT_KEYS) {
            match key {
                "share" => share = self.share(value),
                _ => port = self.port(value),
            }
        }
        if share.is_none() && self.errors.len() == mistakes {
            self.error(Code::MissingKey, &node.span, "the split has no `share`".to_owned());
        }
        share.map(|(share, _)| (share, port))
    }
}
