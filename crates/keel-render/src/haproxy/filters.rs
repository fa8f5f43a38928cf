//! Frontends for requests: the route is found, then its filters are applied in their order.

use keel_model::{ClientKey, Compress, HeaderEdits, PathRewrite, Redirect};

use super::acl::{Acls, View};
use super::frontend::{FORWARDED, draw_below, draw_range};
use super::rewrite;
use super::words::{clean, format, word};
use super::{Mode, Writer};
use crate::change;
use crate::gaps::Lack;
use crate::lacks::{MAX_LIMITS, REDIRECTS};
use crate::plan::{Group, PlannedRoute};
use crate::readings::{DOUBTFUL, HARD, REFUSAL, UNREADABLE};
use crate::rules::{self, is_host, is_plain_name};

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
/// The answer to a request whose path leads to different places.
const REFUSE: &str = "http-request return status 400 content-type text/plain string";
/// How much of the answer to a request that no route wants.
const NOT_FOUND: &str =
    "http-request return status 404 content-type text/plain string 'no route' if !routed";

/// The lines of a frontend, in the order in which they have to stand.
#[derive(Default)]
pub(super) struct Rules {
    pub acls: Vec<String>,
    request: Vec<String>,
    response: Vec<String>,
    uses: Vec<String>,
}

/// One route while its rules are written.
pub(super) struct Current<'r, 'a> {
    pub route: &'r PlannedRoute<'a>,
    /// Words that make a line hold for this route only.
    only: String,
    pub rules: &'r mut Rules,
}

impl Current<'_, '_> {
    pub fn acl(&mut self, kind: &str) -> String {
        format!("{kind}_{}", self.route.name)
    }

    pub fn request(&mut self, action: &str, more: &str) {
        self.rules.request.push(format!("{action} if {} {more}", self.only).trim_end().to_owned());
    }

    pub fn response(&mut self, action: &str, more: &str) {
        self.rules.response.push(format!("{action} if {} {more}", self.only).trim_end().to_owned());
    }

    pub fn place(&self) -> String {
        format!("route {}", self.route.entry.name)
    }
}

impl<'a> Writer<'a> {
    /// The rules of a frontend for requests.
    pub(super) fn requests(&mut self, group: &Group<'a>, table: &str) {
        let (routes, redirect_https) = match self.plan.tables.get(table) {
            Some(table) => {
                let plain = group.listener.tls.is_none();
                (table.http.clone(), table.redirect_https.filter(|_| plain))
            }
            None => (Vec::new(), None),
        };
        let mut acls = Acls::new(View::Request);
        let mut chosen = Vec::new();
        for route in &routes {
            for alternative in &route.alternatives {
                for doubt in rules::doubts(alternative) {
                    let condition = acls.condition(&doubt);
                    chosen.push(format!("{REFUSE} '{REFUSAL}' if doubtful !routed {condition}"));
                }
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
        self.frontends
            .line("http-request set-var(txn.host) req.fhdr(host),host_only,lower,rtrim(.)");
        if !tls {
            self.challenges();
        }
        if acls.look_at_path() || routes.iter().any(looks_at_path) {
            self.frontends.lines(NORMALIZE);
        }
        if acls.look_at_path() {
            self.doubts();
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

    /// Finds paths that services read in different ways.
    fn doubts(&mut self) {
        for (state, expression) in [("soft", DOUBTFUL), ("hard", HARD)] {
            let test = format!("var(txn.path) -m reg {}", word(expression));
            let action = format!("http-request set-var(txn.doubt) str({state})");
            self.frontends.line(format!("{action} if {{ {test} }}"));
        }
        self.frontends.line("acl doubtful var(txn.doubt) -m found");
        let test = format!("var(txn.path) -m reg {}", word(UNREADABLE));
        self.frontends.line(format!("{REFUSE} '{REFUSAL}' if doubtful {{ {test} }}"));
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
            self.redirect(&mut current, redirect, tls);
        }
        if let Some(cors) = &filters.cors {
            self.cors(&mut current, cors);
        }
        if let Some(auth) = &filters.basic_auth {
            self.basic_auth(&mut current, auth);
        }
        let limits = filters.rate_limits.iter().take(MAX_LIMITS).enumerate();
        let known = limits.filter(|(index, limit)| self.rate_limit(&mut current, *index, limit));
        let known: Vec<usize> = known.map(|(index, _)| index).collect();
        // Only what all limits let through is counted.
        for index in known {
            current.request(&format!("http-request sc-inc-gpc0({index})"), "");
        }
        if let Some(most) = filters.max_body {
            let most = most.min(1 << 60);
            let test = format!("{{ req.body_size gt {most} }}");
            current.request("http-request deny deny_status 413", &test);
        }
        if let Some(rewrite) = &filters.rewrite {
            self.stripped_prefix(&mut current, &rewrite.path);
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

    /// A request that is already where it would be sent to goes on.
    fn redirect(&mut self, current: &mut Current<'_, '_>, redirect: &Redirect, tls: bool) {
        let own = if tls { "https" } else { "http" };
        let scheme = redirect.scheme.as_deref().unwrap_or(own);
        let scheme = if ["http", "https"].contains(&scheme) { scheme } else { own };
        let named = redirect.host.as_deref().filter(|host| is_host(host));
        let usual = if scheme == "https" { 443 } else { 80 };
        let mut differs = Vec::new();
        if scheme != own {
            differs.push(String::new());
        }
        if let Some(host) = named {
            differs.push(format!("!{{ var(txn.host) -m str -- {host} }}"));
        }
        if let Some(port) = redirect.port {
            let name = current.acl("port");
            let unsaid = if port == usual { " 0" } else { "" };
            let test = format!("req.fhdr(host),port_only -m int {port}{unsaid}");
            current.rules.acls.push(format!("acl {name} {test}"));
            differs.push(format!("!{name}"));
        }
        if let Some(path) = &redirect.path {
            current.request("http-request set-var(txn.before) path", "");
            self.rewrite_path(current, std::slice::from_ref(path));
            current.request("http-request set-var(txn.after) path", "");
            differs.push("!{ var(txn.before),strcmp(txn.after) eq 0 }".to_owned());
        }
        let port = match redirect.port {
            Some(port) if port != usual => format!(":{port}"),
            _ => String::new(),
        };
        let host = match named {
            Some(host) => host.to_owned(),
            None if scheme != own || redirect.port.is_some() => "%[var(txn.host)]".to_owned(),
            None => "%[req.fhdr(host)]".to_owned(),
        };
        let location = word(&format!("{scheme}://{host}{port}%[pathq]"));
        let status = if REDIRECTS.contains(&redirect.status) { redirect.status } else { 302 };
        for difference in differs {
            let action = format!("http-request redirect location {location} code {status}");
            current.request(&action, &difference);
        }
    }

    fn rewrite_path(&mut self, current: &mut Current<'_, '_>, rewrites: &[PathRewrite]) {
        for (index, rewrite) in rewrites.iter().enumerate() {
            match change::of(rewrite) {
                Ok(changes) => {
                    if index == 0 && matches!(rewrite, PathRewrite::Regex { .. }) {
                        current.request("http-request set-path %[var(txn.path)]", "");
                    }
                    for change in &changes {
                        current.request(&rewrite::action(change), "");
                    }
                }
                Err(lack) => self.plan.note(lack, current.place()),
            }
        }
    }

    /// Tells services which prefix will be left out: of the first change that leaves one out.
    fn stripped_prefix(&mut self, current: &mut Current<'_, '_>, rewrites: &[PathRewrite]) {
        let strip = rewrites.iter().find_map(|rewrite| match rewrite {
            PathRewrite::StripPrefix(prefixes) => Some(prefixes),
            _ => None,
        });
        for (prefix, expression) in strip.iter().flat_map(|all| change::prefixes(all)) {
            let prefix = format(&prefix);
            let begins = format!(
                "!{{ var(txn.stripped) -m found }} {{ path -m reg {} }}",
                word(&expression)
            );
            current.request(&format!("http-request set-var-fmt(txn.stripped) {prefix}"), &begins);
        }
        if strip.is_some() {
            let action = "http-request set-header X-Forwarded-Prefix %[var(txn.stripped)]";
            current.request(action, "{ var(txn.stripped) -m found }");
        }
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

/// Whether filters of the route look at the path as rules see it.
fn looks_at_path(route: &PlannedRoute<'_>) -> bool {
    let filters = &route.entry.filters;
    let rewrites = filters.rewrite.iter().any(|rewrite| !rewrite.path.is_empty());
    let moves = filters.redirect.iter().any(|redirect| redirect.path.is_some());
    rewrites || moves || filters.rate_limits.iter().any(|limit| limit.key == ClientKey::Path)
}
