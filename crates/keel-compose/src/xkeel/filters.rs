//! What is done to requests and answers of a route.

use std::collections::BTreeMap;

use keel_model::{Compress, HeaderEdits, PathRewrite, Redirect, Rewrite};

use super::reader::Reader;
use crate::diagnostic::{Code, Span};
use crate::routes::{Draft, forms};
use crate::value::{Node, Value};

/// Keys of a route that change requests and answers.
pub(crate) const FILTER_KEYS: [&str; 10] = [
    "allow",
    "redirect",
    "cors",
    "basic_auth",
    "rate_limit",
    "max_body",
    "rewrite",
    "request_headers",
    "response_headers",
    "compress",
];
/// Keys of `redirect`.
pub(crate) const REDIRECT_KEYS: [&str; 9] = [
    "scheme",
    "host",
    "port",
    "status",
    "path",
    "strip_prefix",
    "add_prefix",
    "replace_prefix",
    "regex",
];
/// Keys of `rewrite`.
pub(crate) const REWRITE_KEYS: [&str; 6] =
    ["host", "strip_prefix", "replace_prefix", "regex", "replace", "add_prefix"];
/// Keys of what replaces one part of a path by another.
pub(crate) const FROM_TO_KEYS: [&str; 2] = ["from", "to"];
/// Keys of `request_headers` and `response_headers`.
pub(crate) const HEADER_KEYS: [&str; 3] = ["remove", "set", "add"];
/// Keys of `compress`.
pub(crate) const COMPRESS_KEYS: [&str; 3] = ["encodings", "min_size", "types"];

/// Fields of a message that belong to the connection or the framing: changing them breaks it (RFC 9110, 7.6.1).
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Reader {
    pub(super) fn filter(&mut self, key: &str, value: &Node, draft: &mut Draft) {
        let filters = &mut draft.filters;
        match key {
            "allow" => filters.allow = self.networks(value),
            "redirect" => filters.redirect = self.redirect(value),
            "cors" => filters.cors = self.cors(value),
            "basic_auth" => draft.auth = self.basic_auth(value),
            "rate_limit" => {
                let items = self.items(value);
                filters.rate_limits =
                    items.iter().filter_map(|item| self.rate_limit(item)).collect();
            }
            "max_body" => filters.max_body = self.bytes(value),
            "rewrite" => filters.rewrite = self.rewrite(value),
            "request_headers" => filters.request_headers = self.header_edits(value, key),
            "response_headers" => filters.response_headers = self.header_edits(value, key),
            _ => filters.compress = self.compress(value),
        }
    }

    fn redirect(&mut self, node: &Node) -> Option<Redirect> {
        let mistakes = self.errors.len();
        const PLACE: &str = "x-keel.routes[].redirect";
        if let Some(text) = node.as_str() {
            let redirect = forms::redirect(text);
            if redirect.is_none() {
                self.wrong(
                    node,
                    "a scheme, an address or a path",
                    "write for example `https`, `https://www.example.com` or `/login`",
                );
            }
            return redirect;
        }
        let mut redirect =
            Redirect { scheme: None, host: None, port: None, path: None, status: 308 };
        let mut changes: Vec<(&str, PathRewrite)> = Vec::new();
        for (key, value) in self.keys(node, PLACE, &REDIRECT_KEYS) {
            match key {
                "scheme" => {
                    redirect.scheme = self
                        .word(value, &[("http", "http"), ("https", "https")])
                        .map(str::to_owned);
                }
                "host" => redirect.host = self.plain_host(value),
                "port" => redirect.port = self.port(value),
                "status" => {
                    redirect.status = self.redirect_status(value).unwrap_or(redirect.status);
                }
                "path" => {
                    changes.extend(self.path(value).map(|path| (key, PathRewrite::Replace(path))))
                }
                _ => {
                    changes.extend(self.path_change(PLACE, key, value).map(|change| (key, change)))
                }
            }
        }
        if let [(first, _), (second, _), ..] = changes[..] {
            let message = format!("`{first}` and `{second}` both change the path");
            self.error(Code::Conflict, &node.span, message).help =
                Some("keep one of them".to_owned());
        }
        redirect.path = changes.into_iter().next().map(|(_, change)| change);
        let changes_something = redirect.scheme.is_some()
            || redirect.host.is_some()
            || redirect.port.is_some()
            || redirect.path.is_some();
        if !changes_something && self.errors.len() == mistakes {
            self.error(
                Code::MissingKey,
                &node.span,
                "the redirect leads nowhere else".to_owned(),
            )
            .help = Some("give it a `scheme`, `host`, `port` or `path`".to_owned());
        }
        Some(redirect)
    }

    fn redirect_status(&mut self, node: &Node) -> Option<u16> {
        let text = node.display().and_then(|text| text.parse::<u16>().ok());
        let status = text.filter(|status| forms::REDIRECT_STATUSES.contains(status));
        if status.is_none() {
            self.wrong(
                node,
                "301, 302, 303, 307 or 308",
                "without `status` it is 308, for good; 307 is for now",
            );
        }
        status
    }

    /// A host without `*`.
    pub(super) fn plain_host(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node, "a host")?;
        if text.starts_with('*') || crate::rule::check_host(&text).is_err() {
            self.wrong(node, "a host", "write for example www.example.com");
            return None;
        }
        Some(text)
    }

    /// A change of a path that is no plain path.
    fn path_change(&mut self, place: &str, key: &str, node: &Node) -> Option<PathRewrite> {
        let mistakes = self.errors.len();
        Some(match key {
            "replace" => PathRewrite::Replace(self.path(node)?),
            "add_prefix" => PathRewrite::AddPrefix(self.path(node)?),
            "strip_prefix" => {
                let items = self.items(node);
                let prefixes: Vec<String> =
                    items.iter().filter_map(|item| self.path(item)).collect();
                return (!prefixes.is_empty()).then_some(PathRewrite::StripPrefix(prefixes));
            }
            _ => {
                let (mut from, mut to) = (None, None);
                for (name, value) in self.keys(node, &format!("{place}.{key}"), &FROM_TO_KEYS) {
                    match name {
                        "from" if key == "regex" => from = self.pattern(value),
                        "from" => from = self.path(value),
                        _ if key == "regex" => to = self.text(value, "a path"),
                        _ => to = self.path(value),
                    }
                }
                let (Some(from), Some(to)) = (from, to) else {
                    if self.errors.len() == mistakes {
                        let message = format!("`{key}` needs both `from` and `to`");
                        self.error(Code::MissingKey, &node.span, message);
                    }
                    return None;
                };
                if key == "regex" {
                    PathRewrite::Regex { from, to }
                } else {
                    PathRewrite::ReplacePrefix { from, to }
                }
            }
        })
    }

    /// The changes are made in the order of [`REWRITE_KEYS`], not of the file: mappings have no order.
    fn rewrite(&mut self, node: &Node) -> Option<Rewrite> {
        let mut rewrite = Rewrite::default();
        let entries: BTreeMap<&str, &Node> =
            self.keys(node, "x-keel.routes[].rewrite", &REWRITE_KEYS).into_iter().collect();
        for key in REWRITE_KEYS {
            let Some(value) = entries.get(key) else { continue };
            if key == "host" {
                rewrite.host = self.plain_host(value);
            } else {
                rewrite.path.extend(self.path_change("x-keel.routes[].rewrite", key, value));
            }
        }
        (rewrite != Rewrite::default()).then_some(rewrite)
    }

    fn header_edits(&mut self, node: &Node, key: &str) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        for (name, value) in self.keys(node, &format!("x-keel.routes[].{key}"), &HEADER_KEYS) {
            match name {
                "remove" => {
                    for header in self.texts(value, "the name of a header") {
                        edits.remove.extend(self.edited(&header.value, &header.span));
                    }
                }
                "set" => edits.set = self.header_values(value),
                _ => edits.add = self.header_values(value),
            }
        }
        edits
    }

    fn header_values(&mut self, node: &Node) -> BTreeMap<String, String> {
        let Value::Map(map) = &node.value else {
            self.wrong(
                node,
                "a mapping from header to value",
                "write for example {X-Frame-Options: DENY}",
            );
            return BTreeMap::new();
        };
        let mut headers = BTreeMap::new();
        for (name, value) in map.iter() {
            let span = map.key_span(name).unwrap_or(&node.span);
            let name = self.edited(name, span);
            let text = if value.is_null() { None } else { value.display() };
            match text.filter(|text| is_header_value(text)) {
                Some(text) => headers.extend(name.map(|name| (name, text))),
                None if value.is_null() => self.wrong(
                    value,
                    "the value of a header",
                    "to take a header away, name it under `remove`",
                ),
                None => self.wrong(
                    value,
                    "the value of a header",
                    "write one line without control characters, and without spaces around it",
                ),
            }
        }
        headers
    }

    /// The name of a header that may be changed.
    pub(crate) fn edited(&mut self, name: &str, span: &Span) -> Option<String> {
        let name = self.header_name(name, span)?;
        if is_framing(&name) {
            let message = format!("`{name}` belongs to the connection and cannot be changed");
            self.error(Code::InvalidValue, span, message).help =
                Some("remove it: the proxy sets it as each connection needs it".to_owned());
            return None;
        }
        Some(name)
    }

    fn compress(&mut self, node: &Node) -> Option<Compress> {
        match node.value {
            Value::Bool(true) => return Some(Compress::default()),
            Value::Bool(false) | Value::Null => return None,
            _ => {}
        }
        let mut compress = Compress::default();
        for (key, value) in self.keys(node, "x-keel.routes[].compress", &COMPRESS_KEYS) {
            match key {
                "encodings" => {
                    compress.encodings.clear();
                    for name in self.texts(value, "an encoding") {
                        match forms::encoding(&name.value) {
                            Some(encoding) if !compress.encodings.contains(&encoding) => {
                                compress.encodings.push(encoding)
                            }
                            Some(_) => {}
                            None => {
                                let message = format!("`{}` is not an encoding", name.value);
                                self.error(Code::InvalidValue, &name.span, message).help =
                                    Some("the encodings are zstd, br and gzip".to_owned());
                            }
                        }
                    }
                }
                "min_size" => compress.min_size = self.bytes(value).unwrap_or(compress.min_size),
                _ => compress.types = self.strings(value, "a media type"),
            }
        }
        Some(compress)
    }
}

/// Whether a header's value fits into a message (RFC 9110, 5.5).
pub(crate) fn is_header_value(text: &str) -> bool {
    text.trim() == text && text.chars().all(|c| c == '\t' || !c.is_control())
}

/// Whether a header belongs to the connection.
pub(crate) fn is_framing(name: &str) -> bool {
    FRAMING.iter().any(|known| known.eq_ignore_ascii_case(name))
}
