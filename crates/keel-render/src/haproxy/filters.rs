//! Frontends for requests: the route is found, then its filters are applied in their order.

use keel_model::{
    BasicAuth, ClientKey, Compress, Cors, HeaderEdits, PathRewrite, RateLimit, Redirect,
};

use super::acl::{Acls, View};
use super::frontend::{FORWARDED, draw_below, draw_range};
use super::rewrite;
use super::words::{clean, format, in_format, word};
use super::{Mode, Writer};
use crate::endpoints::millis;
use crate::gaps::Lack;
use crate::lacks::{MAX_LIMITS, REDIRECTS};
use crate::plan::{Group, PlannedRoute};
use crate::rules::{is_host, is_plain_name};
use crate::{change, pattern};

/// The path as rules see it, in a variable; the service gets it as it was sent, with dot segments resolved.
const NORMALIZE: [&str; 10] = [
    "http-request set-var(txn.sent) path",
    r"acl dotted var(txn.sent) -m reg '/(?:\.|%2[eE]){1,2}(?:/|\z)'",
    "http-request normalize-uri percent-decode-unreserved",
    "http-request normalize-uri percent-to-uppercase",
    "http-request normalize-uri path-strip-dot",
    "http-request normalize-uri path-strip-dotdot full",
    "http-request set-var(txn.sent) path if dotted",
    "http-request normalize-uri path-merge-slashes",
    "http-request set-var(txn.path) path",
    "http-request set-path %[var(txn.sent)] if { var(txn.sent) -m found }",
];
/// Clients that a rate limit keeps in mind.
const LIMIT_CLIENTS: &str = "100k";
/// Longest time that a rate limit looks back, in milliseconds (20 days).
const LIMIT_PAST: u64 = 20 * 86_400_000;
/// How much of the answer to a request that no route wants.
const NOT_FOUND: &str =
    "http-request return status 404 content-type text/plain string 'no route' if !routed";

/// The lines of a frontend, in the order in which they have to stand.
#[derive(Default)]
struct Rules {
    acls: Vec<String>,
    request: Vec<String>,
    response: Vec<String>,
    uses: Vec<String>,
}

/// One route while its rules are written.
struct Current<'r, 'a> {
    route: &'r PlannedRoute<'a>,
    /// Words that make a line hold for this route only.
    only: String,
    rules: &'r mut Rules,
}

impl Current<'_, '_> {
    fn acl(&mut self, kind: &str) -> String {
        format!("{kind}_{}", self.route.name)
    }

    fn request(&mut self, action: &str, more: &str) {
        self.rules.request.push(format!("{action} if {} {more}", self.only).trim_end().to_owned());
    }

    fn response(&mut self, action: &str, more: &str) {
        self.rules.response.push(format!("{action} if {} {more}", self.only).trim_end().to_owned());
    }

    fn place(&self) -> String {
        format!("route {}", self.route.entry.name)
    }
}

impl<'a> Writer<'a> {
    /// The rules of a frontend for requests.
    pub(super) fn requests(&mut self, group: &Group<'a>, table: &str) {
        let (routes, redirect_https) = match self.plan.tables.get(table) {
            Some(table) => (table.http.clone(), table.redirect_https),
            None => (Vec::new(), None),
        };
        let mut acls = Acls::new(View::Request);
        let mut chosen = Vec::new();
        for route in &routes {
            for alternative in &route.alternatives {
                let condition = acls.condition(alternative);
                let name = &route.name;
                let line =
                    format!("http-request set-var(txn.route) str({name}) if !routed {condition}");
                chosen.push(line.trim_end().to_owned());
            }
        }
        let mut rules = Rules::default();
        let tls = group.listener.tls.is_some();
        for route in &routes {
            self.route(route, &mut rules, tls);
        }
        self.frontends.lines(FORWARDED);
        self.frontends.line("acl routed var(txn.route) -m found");
        self.frontends.line("http-request set-var(txn.host) req.fhdr(host),host_only,lower");
        if !tls {
            self.challenges();
        }
        if acls.look_at_path() {
            self.frontends.lines(NORMALIZE);
        }
        self.frontends.lines(acls.lines);
        self.frontends.lines(rules.acls);
        self.frontends.lines(chosen);
        self.unrouted(redirect_https, &group.listener.cluster);
        self.frontends.lines(rules.request);
        self.frontends.lines(rules.response);
        self.frontends.lines(rules.uses);
        self.default_of_table(redirect_https, &group.listener.cluster);
    }

    fn challenges(&mut self) {
        for (token, answer) in &self.plan.snapshot.challenges.http {
            let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            // Both are base64url by RFC 8555; what is not never comes.
            if token.chars().all(ok) && answer.chars().all(ok) {
                self.frontends.line(format!(
                    "http-request return status 200 content-type text/plain string {} if {{ path /.well-known/acme-challenge/{token} }}",
                    word(answer)
                ));
            }
        }
    }

    fn unrouted(&mut self, redirect_https: Option<u16>, cluster: &str) {
        match redirect_https {
            Some(port) => {
                let port = if port == 443 { String::new() } else { format!(":{port}") };
                self.frontends.line(format!(
                    "http-request redirect location https://%[var(txn.host)]{port}%[pathq] code 308 if !routed"
                ));
            }
            None if cluster.is_empty() => self.frontends.line(NOT_FOUND),
            None => {}
        }
    }

    fn default_of_table(&mut self, redirect_https: Option<u16>, cluster: &str) {
        if redirect_https.is_none() && !cluster.is_empty() {
            let name = self.pool(cluster, Mode::Http, None).name.clone();
            self.frontends.line(format!("default_backend {name}"));
        }
    }

    fn route(&mut self, route: &PlannedRoute<'a>, rules: &mut Rules, tls: bool) {
        let only = format!("is_{}", route.name);
        rules.acls.push(format!("acl {only} var(txn.route) -m str {}", route.name));
        let mut current = Current { route, only, rules };
        let filters = &route.entry.filters;
        if !filters.allow.is_empty() {
            let mut acls = Acls::new(View::Request);
            let name = current.acl("allow");
            acls.add_networks(&name, &filters.allow);
            current.rules.acls.extend(acls.lines);
            current.request("http-request deny deny_status 403", &format!("!{name}"));
        }
        if let Some(redirect) = &filters.redirect {
            // The service is not asked: no other filter can matter.
            return self.redirect(&mut current, redirect, tls);
        }
        if let Some(cors) = &filters.cors {
            self.cors(&mut current, cors);
        }
        if let Some(auth) = &filters.basic_auth {
            self.basic_auth(&mut current, auth);
        }
        for (index, limit) in filters.rate_limits.iter().take(MAX_LIMITS).enumerate() {
            self.rate_limit(&mut current, index, limit);
        }
        if let Some(most) = filters.max_body {
            let most = most.min(1 << 60);
            let test = format!("{{ req.body_size gt {most} }}");
            current.request("http-request deny deny_status 413", &test);
        }
        if let Some(rewrite) = &filters.rewrite {
            self.rewrite_path(&mut current, &rewrite.path);
            match &rewrite.host {
                Some(host) if clean(host).is_some() => {
                    current.request(&format!("http-request set-header Host {}", format(host)), "");
                }
                Some(_) => self.plan.note(Lack::ControlCharacter, current.place()),
                None => {}
            }
        }
        self.edits(&mut current, &filters.request_headers, "http-request");
        self.edits(&mut current, &filters.response_headers, "http-response");
        self.uses(&mut current);
    }

    fn redirect(&mut self, current: &mut Current<'_, '_>, redirect: &Redirect, tls: bool) {
        if let Some(path) = &redirect.path {
            self.rewrite_path(current, std::slice::from_ref(path));
        }
        let own = if tls { "https" } else { "http" };
        let scheme = redirect.scheme.as_deref().unwrap_or(own);
        let scheme = if ["http", "https"].contains(&scheme) { scheme } else { own };
        let moves = redirect.scheme.is_some() || redirect.host.is_some() || redirect.port.is_some();
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = match redirect.port {
            Some(port) if port != usual => format!(":{port}"),
            _ => String::new(),
        };
        let host = match &redirect.host {
            Some(host) if is_host(host) => in_format(host),
            _ if moves => "%[var(txn.host)]".to_owned(),
            _ => "%[req.fhdr(host)]".to_owned(),
        };
        let location = word(&format!("{scheme}://{host}{port}%[pathq]"));
        let status = if REDIRECTS.contains(&redirect.status) { redirect.status } else { 302 };
        current.request(&format!("http-request redirect location {location} code {status}"), "");
    }

    fn rewrite_path(&mut self, current: &mut Current<'_, '_>, rewrites: &[PathRewrite]) {
        for rewrite in rewrites {
            match change::of(rewrite) {
                Ok(changes) => {
                    for change in &changes {
                        current.request(&rewrite::action(change), "");
                    }
                }
                Err(lack) => self.plan.note(lack, current.place()),
            }
        }
    }

    /// The ACL that holds for origins that may.
    fn origins(&mut self, current: &mut Current<'_, '_>, cors: &Cors, any: bool) -> String {
        let allowed = current.acl("origin");
        let mut tests = Vec::new();
        for origin in cors.origins.iter().filter_map(|origin| clean(origin)) {
            tests.push(if any {
                "req.fhdr(origin) -m found".to_owned()
            } else if origin.contains('*') {
                let parts = origin.split('*').map(|part| pattern::literal(part.as_bytes()));
                let parts: Vec<String> = parts.collect();
                let whole = format!(r"\A{}\z", parts.join("[^./:]+"));
                format!("req.fhdr(origin) -m reg -- {}", word(&whole))
            } else {
                format!("req.fhdr(origin) -m str -- {}", word(origin))
            });
        }
        if tests.is_empty() {
            tests.push("always_false".to_owned());
        }
        current.rules.acls.extend(tests.iter().map(|test| format!("acl {allowed} {test}")));
        allowed
    }

    fn cors(&mut self, current: &mut Current<'_, '_>, cors: &Cors) {
        let any = cors.origins.iter().any(|origin| origin == "*");
        let allowed = self.origins(current, cors, any);
        let list = |items: &[String]| {
            let items: Vec<&str> =
                items.iter().map(|i| i.trim()).filter(|i| !i.is_empty()).collect();
            in_format(&items.join(", "))
        };
        let fields = [&cors.methods, &cors.headers, &cors.expose];
        if fields.into_iter().flatten().any(|item| clean(item).is_none()) {
            return self.plan.note(Lack::ControlCharacter, current.place());
        }
        let origin = match any && !cors.credentials {
            true => "*",
            false => "%[var(txn.origin)]",
        };
        let methods = match list(&cors.methods) {
            none if none.is_empty() => "GET, HEAD, POST".to_owned(),
            methods => methods,
        };
        let headers = match cors.headers.iter().any(|header| header == "*") {
            true => "%[req.fhdr(access-control-request-headers)]".to_owned(),
            false => list(&cors.headers),
        };
        let mut preflight = "http-request return status 204".to_owned();
        let mut add = |name: &str, value: &str| {
            preflight.push_str(&format!(" hdr {name} {}", word(value)));
        };
        add("Access-Control-Allow-Origin", origin);
        add("Access-Control-Allow-Methods", &methods);
        if !headers.is_empty() {
            add("Access-Control-Allow-Headers", &headers);
        }
        if let Some(age) = cors.max_age {
            add("Access-Control-Max-Age", &age.as_secs().to_string());
        }
        if cors.credentials {
            add("Access-Control-Allow-Credentials", "true");
        }
        add("Vary", "Origin");
        let asks = "METH_OPTIONS { req.fhdr(access-control-request-method) -m found }";
        current.request("http-request set-var(txn.origin) req.fhdr(origin)", &allowed);
        current.request(&preflight, &format!("{asks} {allowed}"));
        // One from elsewhere is told nothing, which is a no.
        let elsewhere = format!("{asks} {{ req.fhdr(origin) -m found }} !{allowed}");
        current.request("http-request return status 204 hdr Vary Origin", &elsewhere);
        let known = "{ var(txn.origin) -m found }";
        let set =
            |name: &str, value: &str| format!("http-response set-header {name} {}", word(value));
        current.response(&set("Access-Control-Allow-Origin", origin), known);
        if cors.credentials {
            current.response(&set("Access-Control-Allow-Credentials", "true"), known);
        }
        let expose = list(&cors.expose);
        if !expose.is_empty() {
            current.response(&set("Access-Control-Expose-Headers", &expose), known);
        }
        current.response("http-response add-header Vary Origin", "");
    }

    fn basic_auth(&mut self, current: &mut Current<'_, '_>, auth: &BasicAuth) {
        let users = self.user_list(&current.route.name, auth);
        // The realm comes out between double quotes, in which these two have to be escaped (RFC 9110, 5.6.4).
        let realm: String = auth.realm.chars().filter(|c| !c.is_control()).collect();
        let realm = realm.replace('\\', r"\\").replace('"', "\\\"");
        let action = format!("http-request auth realm {}", format(&realm));
        current.request(&action, &format!("!{{ http_auth({users}) }}"));
        match &auth.user_header {
            Some(name) if is_plain_name(name) => {
                current.request(&format!("http-request set-header {name} %[http_auth_user]"), "");
            }
            Some(_) => self.plan.note(Lack::HeaderName, current.place()),
            None => {}
        }
        if auth.remove_header {
            current.request("http-request del-header Authorization", "");
        }
    }

    /// A limit counts what it let through, over the time in which its burst comes back: in the long run that is the
    /// rate, and at once no more than the burst.
    fn rate_limit(&mut self, current: &mut Current<'_, '_>, index: usize, limit: &RateLimit) {
        let burst = u64::from(limit.burst.max(1));
        let window = millis(limit.per).saturating_mul(burst) / u64::from(limit.requests.max(1));
        let window = window.clamp(1, LIMIT_PAST);
        let (kind, key) = match &limit.key {
            ClientKey::All => ("integer size 1", "int(1)".to_owned()),
            ClientKey::Source => ("ipv6 size", "src,ipmask(32,64)".to_owned()),
            ClientKey::Header(name) if is_plain_name(name) => {
                ("binary len 20 size", format!("req.fhdr({}),sha1", name.to_lowercase()))
            }
            ClientKey::Cookie(name) if is_plain_name(name) => {
                ("binary len 20 size", format!("req.cook({name}),sha1"))
            }
            ClientKey::Header(_) | ClientKey::Cookie(_) => {
                return self.plan.note(Lack::HeaderName, current.place());
            }
            ClientKey::Path => ("binary len 20 size", "path,sha1".to_owned()),
        };
        let size = if kind.ends_with(" 1") { "" } else { LIMIT_CLIENTS };
        let table = format!("limit{index}_{}", current.route.name);
        if self.written.insert(table.clone()) {
            self.backends.section(&format!("backend {table}"));
            self.backends.line(format!(
                "stick-table type {kind} {size} expire {window}ms store gpc0_rate({window}ms)"
            ));
        }
        current.request(&format!("http-request track-sc{index} {key} table {table}"), "");
        if key.starts_with("req.") {
            // Those without the header or cookie share one allowance; otherwise leaving it out would be a way around.
            let action = format!("http-request track-sc{index} str(-),sha1 table {table}");
            current.request(&action, &format!("!{{ {key} -m found }}"));
        }
        let full = format!("{{ sc_gpc0_rate({index},{table}) ge {burst} }}");
        current.request("http-request deny deny_status 429", &full);
        current.request(&format!("http-request sc-inc-gpc0({index})"), "");
    }

    fn edits(&mut self, current: &mut Current<'_, '_>, edits: &HeaderEdits, when: &str) {
        let mut actions = Vec::new();
        let mut put = |verb: &str, name: &str, value: Option<&str>| {
            let lack = match value {
                _ if !is_plain_name(name) => Lack::HeaderName,
                Some(value) if clean(value).is_none() => Lack::ControlCharacter,
                _ => {
                    let value = value.map(format).unwrap_or_default();
                    actions
                        .push(format!("{when} {verb}-header {name} {value}").trim_end().to_owned());
                    return;
                }
            };
            self.plan.note(lack, format!("{}, header {name}", current.place()));
        };
        edits.remove.iter().for_each(|name| put("del", name, None));
        edits.set.iter().for_each(|(name, value)| put("set", name, Some(value)));
        edits.add.iter().for_each(|(name, value)| put("add", name, Some(value)));
        for action in actions {
            match when {
                "http-request" => current.request(&action, ""),
                _ => current.response(&action, ""),
            }
        }
    }

    /// Which backends take the requests of the route.
    fn uses(&mut self, current: &mut Current<'_, '_>) {
        let entry = current.route.entry;
        let types = entry.filters.compress.as_ref().and_then(compressed);
        let total: u64 = entry.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let drawn = entry.clusters.len() > 1 && total > 0;
        if drawn {
            let range = draw_range(total);
            current.request(&format!("http-request set-var(txn.draw) rand({range})"), "");
        }
        let mut below = 0;
        for (cluster, weight) in entry.clusters.iter().filter(|(_, weight)| !drawn || *weight > 0) {
            below += u64::from(*weight);
            let pool = self.pool(cluster, Mode::Http, types.clone());
            pool.timeouts.extend(entry.timeout_ms.map(|ms| (current.route.name.clone(), ms)));
            let last = !drawn || below == total;
            let share = match last {
                true => String::new(),
                false => format!(" {{ var(txn.draw) -m int lt {} }}", draw_below(below, total)),
            };
            let line = format!("use_backend {} if {}{share}", pool.name, current.only);
            current.rules.uses.push(line);
            if last {
                break;
            }
        }
    }
}

/// The media types that are compressed, as words, of which HAProxy compares the beginning; none for all. `None` if
/// nothing is compressed.
fn compressed(compress: &Compress) -> Option<String> {
    let beginning = |kind: &String| kind.split('*').next().unwrap_or_default().to_owned();
    let types = compress.types.iter().filter(|kind| clean(kind).is_some());
    let types: Vec<String> = types.map(beginning).collect();
    if types.is_empty() {
        return None;
    }
    let all = types.iter().any(String::is_empty);
    let words: Vec<String> = types.iter().filter(|_| !all).map(|kind| word(kind)).collect();
    Some(words.join(" "))
}
