//! The location of a route and a cluster: its filters, and what passes the request on.

use std::collections::BTreeMap;

use keel_model::{
    BasicAuth, ClientKey, Compress, Filters, HeaderEdits, PathRewrite, RateLimit, Redirect,
};

use super::Writer;
use super::atoms::{header_variable, networks};
use super::locations::Direct;
use super::words::{Directive, clean, in_value, matching, quoted, value};
use crate::endpoints::millis;
use crate::gaps::Lack;
use crate::lacks::REDIRECTS;
use crate::plan::PlannedRoute;
use crate::rules::{is_host, is_plain_name};
use crate::{change, pattern, users};

/// Memory for the clients that a rate limit keeps in mind.
const LIMIT_MEMORY: &str = "10m";
/// Fields that say how a message is framed, or are for one hop only: not for users to set.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Whole media types for `text/*`.
const TEXT: &[&str] = &[
    "text/plain",
    "text/css",
    "text/csv",
    "text/javascript",
    "text/markdown",
    "text/xml",
    "text/calendar",
];

/// The fields of requests that change, by name in lower case: as they are written, and their value as an argument.
type Changed = BTreeMap<String, (String, String)>;

impl<'a> Writer<'a> {
    /// The directives of the location for a route and one of its clusters.
    pub(super) fn location(&mut self, route: &PlannedRoute<'a>, index: usize) -> Vec<Directive> {
        let place = format!("route {}", route.entry.name);
        let filters = &route.entry.filters;
        let mut lines: Vec<Directive> = Vec::new();
        if !filters.allow.is_empty() {
            let variable = self.variable("allow");
            let nets = networks(filters.allow.iter().copied());
            self.maps.block(format!("geo {variable}"), &nets);
            let refuse = vec!["return 403".to_owned()];
            lines.push(Directive::Block(format!("if ({variable} = 0)"), refuse));
        }
        if let Some(redirect) = &filters.redirect {
            lines.push(self.redirect(redirect, &place));
        }
        if let Some(cors) = &filters.cors {
            self.cors(cors, &place, &mut lines);
        }
        let mut changed = Changed::new();
        if let Some(auth) = &filters.basic_auth {
            self.basic_auth(route, auth, &mut changed, &mut lines);
        }
        for (number, limit) in filters.rate_limits.iter().enumerate() {
            self.rate_limit(route, number, limit, &mut lines);
        }
        if let Some(most) = filters.max_body {
            // 0 would mean any size.
            lines.push(format!("client_max_body_size {}", most.clamp(1, 1 << 60)).into());
        }
        self.request_headers(&filters.request_headers, &mut changed, &place);
        self.response_headers(&filters.response_headers, &mut lines, &place);
        if let Some(compress) = &filters.compress {
            lines.extend(compression(compress).into_iter().map(Directive::Line));
        }
        self.stripped_prefix(filters, &mut changed);
        let (path, host) = self.rewrite(filters, &place);
        let cluster = route.entry.clusters.get(index).map_or("", |(cluster, _)| cluster);
        let to = Direct { cluster, route: Some(route.entry) };
        lines.extend(self.passing_with(&to, changed, &path, host.as_deref()));
        lines
    }

    /// Tells services which prefix will be left out: of the first change that leaves one out.
    fn stripped_prefix(&mut self, filters: &Filters, changed: &mut Changed) {
        let mut rewrites = filters.rewrite.iter().flat_map(|rewrite| &rewrite.path);
        let strip = rewrites.find_map(|rewrite| match rewrite {
            PathRewrite::StripPrefix(prefixes) => Some(prefixes),
            _ => None,
        });
        let Some(prefixes) = strip else { return };
        let variable = self.variable("prefix");
        let mut entries = vec!["default $http_x_forwarded_prefix".to_owned()];
        let known = change::prefixes(prefixes).into_iter();
        entries.extend(
            known.map(|(prefix, begins)| format!("{} {}", matching(&begins), value(&prefix))),
        );
        self.maps.block(format!("map $keel_path {variable}"), &entries);
        let field = ("X-Forwarded-Prefix".to_owned(), variable);
        changed.entry("x-forwarded-prefix".to_owned()).or_insert(field);
    }

    fn rewrite(&mut self, filters: &Filters, place: &str) -> (String, Option<String>) {
        let Some(rewrite) = &filters.rewrite else { return ("$keel_path".to_owned(), None) };
        let path = self.rewritten(&rewrite.path, place);
        let host = match &rewrite.host {
            Some(host) if clean(host).is_some() => Some(in_value(host)),
            Some(_) => {
                self.plan.note(Lack::ControlCharacter, place);
                None
            }
            None => None,
        };
        (path, host)
    }

    /// A request that is already where it would be sent to goes on.
    fn redirect(&mut self, redirect: &Redirect, place: &str) -> Directive {
        let scheme = redirect.scheme.as_deref().filter(|s| ["http", "https"].contains(s));
        let named = redirect.host.as_deref().filter(|host| is_host(host));
        let port = match (redirect.port, scheme) {
            (None, _) | (Some(443), Some("https")) | (Some(80), Some("http")) => String::new(),
            (Some(port @ (80 | 443)), None) => {
                let variable = self.variable("port");
                let usual = if port == 80 { "http" } else { "https" };
                let entries = [format!("default :{port}"), format!("{usual} \"\"")];
                self.maps.block(format!("map $scheme {variable}"), &entries);
                variable
            }
            (Some(port), _) => format!(":{port}"),
        };
        let host = match named {
            Some(host) => host,
            None if scheme.is_some() || redirect.port.is_some() => "$host",
            None => "$http_host",
        };
        let rewritten =
            redirect.path.as_ref().map(|p| self.rewritten(std::slice::from_ref(p), place));
        let path = match &rewritten {
            Some(path) => format!("{path}$is_args$args"),
            None => "$keel_sent".to_owned(),
        };
        let status = if REDIRECTS.contains(&redirect.status) { redirect.status } else { 302 };
        let to = quoted(&format!("{}://{host}{port}{path}", scheme.unwrap_or("$scheme")));
        let moved = self.variable("moved");
        let from =
            format!("\"$scheme|$http_host|$keel_path|{}\"", rewritten.as_deref().unwrap_or(""));
        let entries = ["default 1".to_owned(), matching(&settled(redirect, scheme, named)) + " 0"];
        self.maps.block(format!("map {from} {moved}"), &entries);
        Directive::Block(format!("if ({moved})"), vec![format!("return {status} {to}")])
    }

    fn basic_auth(
        &mut self,
        route: &PlannedRoute<'a>,
        auth: &BasicAuth,
        changed: &mut Changed,
        lines: &mut Vec<Directive>,
    ) {
        let file = format!("htpasswd/{}", route.name);
        let mut users = String::new();
        for (index, line) in users::lines(auth) {
            match users::parse(line) {
                Some((user, hash)) => users.push_str(&format!("{user}:{hash}\n")),
                None => {
                    let place = format!("route {}, user {}", route.entry.name, index + 1);
                    self.plan.note(Lack::UserLine, place);
                }
            }
        }
        self.secret(file.clone(), users);
        self.plan.out.read_by_workers.insert(file.clone());
        // The realm comes out between double quotes, in which these two have to be escaped (RFC 9110, 5.6.4). The
        // word `off` would switch the password off.
        let realm: String = auth.realm.chars().filter(|c| !c.is_control()).collect();
        let realm = realm.replace('\\', r"\\").replace('"', "\\\"");
        let realm = if realm == "off" { "off ".to_owned() } else { realm };
        lines.push(format!("auth_basic {}", value(&realm)).into());
        lines.push(format!("auth_basic_user_file {file}").into());
        match &auth.user_header {
            Some(name) if is_plain_name(name) => {
                changed.insert(name.to_lowercase(), (name.clone(), "$remote_user".to_owned()));
            }
            Some(_) => self.plan.note(Lack::HeaderName, format!("route {}", route.entry.name)),
            None => {}
        }
        if auth.remove_header {
            let empty = ("Authorization".to_owned(), "\"\"".to_owned());
            changed.insert("authorization".to_owned(), empty);
        }
    }

    fn rate_limit(
        &mut self,
        route: &PlannedRoute<'a>,
        number: usize,
        limit: &RateLimit,
        lines: &mut Vec<Directive>,
    ) {
        let key = match &limit.key {
            ClientKey::All => "all".to_owned(),
            ClientKey::Source => "$keel_client".to_owned(),
            ClientKey::Path => "$keel_uri".to_owned(),
            ClientKey::Header(name) if is_plain_name(name) => header_variable(name),
            ClientKey::Cookie(name) if is_plain_name(name) => self.cookie_variable(name),
            ClientKey::Header(_) | ClientKey::Cookie(_) => {
                return self.plan.note(Lack::HeaderName, format!("route {}", route.entry.name));
            }
        };
        let zone = format!("limit{number}_{}", route.name);
        let burst = limit.burst.max(1) - 1;
        let burst = if burst == 0 { String::new() } else { format!(" burst={burst} nodelay") };
        lines.push(format!("limit_req zone={zone}{burst}").into());
        if !self.zones.insert(zone.clone()) {
            return;
        }
        let key = match limit.key {
            ClientKey::Header(_) | ClientKey::Cookie(_) => self.never_empty(&key),
            ClientKey::All | ClientKey::Source | ClientKey::Path => key,
        };
        let per = millis(limit.per);
        let requests = u64::from(limit.requests.max(1));
        let rate = match (requests * 1000).is_multiple_of(per) {
            true => format!("{}r/s", requests * 1000 / per),
            false => format!("{}r/m", (requests * 60_000).div_ceil(per)),
        };
        self.maps.line(format!("limit_req_zone {key} zone={zone}:{LIMIT_MEMORY} rate={rate}"));
    }

    /// A variable with the value of another, or with the client's address: nginx does not count what has an empty key,
    /// and leaving a header out would be a way around.
    fn never_empty(&mut self, variable: &str) -> String {
        let key = self.variable("key");
        let entries = ["\"\" $keel_client".to_owned(), format!("default {variable}")];
        self.maps.block(format!("map {variable} {key}"), &entries);
        key
    }

    /// Whether this field can be written; if not, that is noted.
    fn fit(&mut self, name: &str, text: &str, place: &str) -> bool {
        let framing = FRAMING.contains(&name.to_lowercase().as_str());
        let lack = match clean(text) {
            _ if framing || !is_plain_name(name) => Lack::HeaderName,
            None => Lack::ControlCharacter,
            Some(_) => return true,
        };
        self.plan.note(lack, format!("{place}, header {name}"));
        false
    }

    fn request_headers(&mut self, edits: &HeaderEdits, changed: &mut Changed, place: &str) {
        for name in &edits.remove {
            if self.fit(name, "", place) {
                changed.insert(name.to_lowercase(), (name.clone(), "\"\"".to_owned()));
            }
        }
        for (name, text) in &edits.set {
            if self.fit(name, text, place) {
                changed.insert(name.to_lowercase(), (name.clone(), value(text)));
            }
        }
        for (name, text) in &edits.add {
            if !self.fit(name, text, place) {
                continue;
            }
            // A second field of one name can't be sent; a list in one field means the same (RFC 9110, 5.3).
            let text = in_value(text);
            let before = changed.get(&name.to_lowercase()).map(|(_, value)| value.clone());
            let all = match before.as_deref() {
                Some("\"\"") => quoted(&text),
                Some(before) => {
                    let before = before.trim_matches('"');
                    format!("\"{before}, {}", &quoted(&text)[1..])
                }
                None => {
                    let sent = header_variable(name);
                    let variable = self.variable("add");
                    let entries = [
                        format!("\"\" {}", quoted(&text)),
                        format!("default {}", quoted(&format!("{sent}, {text}"))),
                    ];
                    self.maps.block(format!("map {sent} {variable}"), &entries);
                    variable
                }
            };
            changed.insert(name.to_lowercase(), (name.clone(), all));
        }
    }

    fn response_headers(&mut self, edits: &HeaderEdits, lines: &mut Vec<Directive>, place: &str) {
        for name in edits.remove.iter().chain(edits.set.keys()) {
            if self.fit(name, "", place) {
                lines.push(format!("proxy_hide_header {name}").into());
                lines.push(format!("grpc_hide_header {name}").into());
            }
        }
        for (name, text) in edits.set.iter().chain(&edits.add) {
            if self.fit(name, text, place) {
                lines.push(format!("add_header {name} {} always", value(text)).into());
            }
        }
    }
}

fn compression(compress: &Compress) -> Vec<String> {
    let mut types: Vec<String> = Vec::new();
    for kind in compress.types.iter().filter(|kind| clean(kind).is_some()) {
        match kind.as_str() {
            "*" | "*/*" => types.push("*".to_owned()),
            "text/*" => types.extend(TEXT.iter().map(|kind| (*kind).to_owned())),
            // nginx always has this one, and warns if it is named again.
            "text/html" => {}
            kind if kind.contains('*') => {}
            kind => types.push(quoted(kind)),
        }
    }
    types.sort();
    types.dedup();
    let mut lines = vec!["gzip on".to_owned(), format!("gzip_min_length {}", compress.min_size)];
    if !types.is_empty() {
        lines.push(format!("gzip_types {}", types.join(" ")));
    }
    lines
}

/// An expression for scheme, host and path (as sent and as it is to be) of a request that is where it is to be.
fn settled(redirect: &Redirect, scheme: Option<&str>, host: Option<&str>) -> String {
    let host = match host {
        Some(host) => format!("(?i:{})", pattern::literal(host.as_bytes())),
        None => r"(?:\[[^\]\x7C]*\]|[^:\x7C]*)".to_owned(),
    };
    let schemes =
        ["http", "https"].into_iter().filter(|s| scheme.is_none_or(|wanted| wanted == *s));
    let places = schemes.map(|scheme| {
        let port = match (redirect.port, scheme) {
            (None, _) => "(?::[0-9]*)?".to_owned(),
            (Some(port @ 80), "http") | (Some(port @ 443), "https") => format!("(?::{port}|:)?"),
            (Some(port), _) => format!(":{port}"),
        };
        format!(r"{scheme}\x7C{host}\.?{port}")
    });
    let places: Vec<String> = places.collect();
    let path = match redirect.path.is_some() {
        true => r"([^\x7C]*)\x7C\1\z",
        false => "",
    };
    format!(r"\A(?:{})\x7C{path}", places.join("|"))
}
