//! What passes a request on to the endpoints of a cluster.

use std::collections::BTreeMap;

use keel_model::{Protocol, Retry, StickyCookie, TrafficPolicy, UpstreamTls};
use keel_route::snapshot::RouteEntry;

use super::servers::file_name;
use super::upstream::Traffic;
use super::words::{Blocks, Directive, quoted};
use super::{SAID, Writer};
use crate::endpoints::{FOREVER, millis, policy, same_site};
use crate::gaps::Lack;
use crate::rules::{is_host, is_plain_name};

/// Statuses that nginx can retry on.
const RETRIABLE: &[u16] = &[403, 404, 429, 500, 502, 503, 504];

/// Where requests are passed on to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct<'r> {
    pub cluster: &'r str,
    /// By which route.
    pub route: Option<&'r RouteEntry>,
}

/// Writes locations that only our own rewrites lead to.
pub(super) fn write(block: &mut Blocks, locations: &BTreeMap<String, Vec<Directive>>) {
    for (path, directives) in locations {
        block.open(format!("location = {path}"));
        block.line("internal");
        block.directives(directives);
        block.close();
    }
}

impl Writer<'_> {
    /// The directives that pass requests on as they are.
    pub(super) fn passing(&mut self, to: &Direct<'_>) -> Vec<Directive> {
        self.passing_with(to, BTreeMap::new(), "$keel_path", None)
    }

    /// The directives that pass requests on with these header fields changed, to this path and host.
    pub(super) fn passing_with(
        &mut self,
        to: &Direct<'_>,
        changed: BTreeMap<String, (String, String)>,
        path: &str,
        host: Option<&str>,
    ) -> Vec<Directive> {
        let cluster = self.plan.snapshot.clusters.get(to.cluster).cloned().unwrap_or_default();
        let policy = policy(&cluster).into_owned();
        let mut lines: Vec<Directive> = Vec::new();
        self.limit(to.cluster, &policy, &mut lines);
        let Some(upstream) = self.upstream(to.cluster, Traffic::Requests) else {
            lines.push("add_header Retry-After 1 always".into());
            lines.push("return 503".into());
            return lines;
        };
        let http2 = cluster.protocol == Protocol::Http2;
        let kind = if http2 { "grpc" } else { "proxy" };
        headers(kind, changed, host, &mut lines);
        self.waits(kind, to, &policy, &mut lines);
        if let Some(tls) = &policy.tls {
            self.upstream_tls(kind, to.cluster, tls, &mut lines);
        }
        if let Some(sticky) = &policy.sticky {
            self.sticky_cookie(sticky, &mut lines);
        }
        let secure = if policy.tls.is_some() { "s" } else { "" };
        if http2 {
            // It takes the path from nginx, which decoded it and encodes it again.
            let path = if path == "$keel_path" { "$keel_uri" } else { path };
            lines.push(format!("rewrite ^ {} break", quoted(path)).into());
            lines.push(format!("grpc_pass grpc{secure}://{upstream}").into());
        } else {
            let target = match path {
                "$keel_path" => "$keel_sent".to_owned(),
                path => format!("{path}$is_args$args"),
            };
            let target = quoted(&format!("http{secure}://{upstream}{target}"));
            lines.push(format!("proxy_pass {target}").into());
        }
        lines
    }

    fn limit(&mut self, cluster: &str, policy: &TrafficPolicy, lines: &mut Vec<Directive>) {
        let Some(most) = policy.limits.max_requests else { return };
        if most == 0 {
            return lines.push("return 503".into());
        }
        let zone = format!("conn_{}", self.plan.names.of(cluster));
        if self.zones.insert(zone.clone()) {
            self.maps.line(format!("limit_conn_zone all zone={zone}:32k"));
        }
        lines.push(format!("limit_conn {zone} {most}").into());
    }

    fn waits(
        &mut self,
        kind: &str,
        to: &Direct<'_>,
        policy: &TrafficPolicy,
        lines: &mut Vec<Directive>,
    ) {
        let times = &policy.timeouts;
        let own = to.route.and_then(|route| route.timeout_ms);
        let read = own.unwrap_or_else(|| millis(times.response)).clamp(1, FOREVER);
        lines.push(format!("{kind}_connect_timeout {}ms", millis(times.connect)).into());
        lines.push(format!("{kind}_read_timeout {read}ms").into());
        let Retry { attempts, on_status, .. } = &policy.retry;
        let mut on = "error".to_owned();
        if *attempts > 0 {
            on.push_str(" timeout");
            for status in on_status {
                match RETRIABLE.contains(status) {
                    true => on.push_str(&format!(" http_{status}")),
                    false => {
                        let place = format!("cluster {}, {status}", to.cluster);
                        self.plan.note(Lack::RetryStatus, place);
                    }
                }
            }
        }
        lines.push(format!("{kind}_next_upstream {on}").into());
    }

    fn upstream_tls(
        &mut self,
        kind: &str,
        cluster: &str,
        tls: &UpstreamTls,
        lines: &mut Vec<Directive>,
    ) {
        let system = self.plan.options.system_authorities.clone();
        let mut file = |directive: &str, path: &str| match file_name(path) {
            Some(path) => lines.push(format!("{kind}_ssl_{directive} {path}").into()),
            None => self.plan.note(Lack::FileName, format!("cluster {cluster}")),
        };
        if !tls.insecure {
            let ca = tls.ca.as_ref().map(|ca| ca.to_string_lossy().into_owned());
            file("trusted_certificate", &ca.unwrap_or(system));
        }
        if let Some((chain, key)) = &tls.identity {
            file("certificate", &chain.to_string_lossy());
            file("certificate_key", &key.to_string_lossy());
        }
        let name = tls.server_name.as_deref().filter(|name| is_host(name)).unwrap_or("$host");
        lines.push(format!("{kind}_ssl_server_name on").into());
        lines.push(format!("{kind}_ssl_name {name}").into());
        if !tls.insecure {
            lines.push(format!("{kind}_ssl_verify on").into());
            lines.push(format!("{kind}_ssl_verify_depth 5").into());
        }
    }

    fn sticky_cookie(&mut self, sticky: &StickyCookie, lines: &mut Vec<Directive>) {
        if !is_plain_name(&sticky.name) {
            return;
        }
        let (_, new) = self.sticky_variables(&sticky.name);
        let mut attributes = "; Path=/; HttpOnly".to_owned();
        let known = same_site(sticky);
        // Browsers take `SameSite=None` only together with `Secure`.
        if sticky.secure || known == Some("None") {
            attributes.push_str("; Secure");
        }
        if let Some(ttl) = sticky.ttl {
            attributes.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
        }
        if let Some(known) = known {
            attributes.push_str(&format!("; SameSite={known}"));
        }
        let field = self.variable("set_cookie");
        let value = quoted(&format!("{}={new}{attributes}", sticky.name));
        let entries = ["\"\" \"\"".to_owned(), format!("default {value}")];
        self.maps.block(format!("map {new} {field}"), &entries);
        lines.push(format!("add_header Set-Cookie {field} always").into());
    }
}

/// The header fields that services get.
fn headers(
    kind: &str,
    changed: BTreeMap<String, (String, String)>,
    host: Option<&str>,
    lines: &mut Vec<Directive>,
) {
    let usual = [
        ("Host", host.map_or_else(|| "$http_host".to_owned(), quoted)),
        ("X-Forwarded-For", "$proxy_add_x_forwarded_for".to_owned()),
        ("X-Forwarded-Host", "$keel_forwarded_host".to_owned()),
        ("X-Forwarded-Proto", "$keel_forwarded_proto".to_owned()),
    ];
    let mut all: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, value) in usual {
        all.insert(name.to_lowercase(), (name.to_owned(), value));
    }
    for said in SAID {
        let name = format!("X-Forwarded-{}{}", said[..1].to_uppercase(), &said[1..]);
        all.insert(name.to_lowercase(), (name, format!("$keel_forwarded_{said}")));
    }
    // Only the one that checks certificates says this.
    let name = "X-Forwarded-Client-Cert";
    all.insert(name.to_lowercase(), (name.to_owned(), "\"\"".to_owned()));
    // Programs may take these for the others.
    for said in ["For", "Host", "Proto"] {
        for alias in ["X_Forwarded_", "X-Forwarded_", "X_Forwarded-"] {
            let name = format!("{alias}{said}");
            all.insert(name.to_lowercase(), (name, "\"\"".to_owned()));
        }
    }
    if kind == "proxy" {
        let upgrade = [("Connection", "$keel_connection"), ("Upgrade", "$http_upgrade")];
        for (name, value) in upgrade {
            all.insert(name.to_lowercase(), (name.to_owned(), value.to_owned()));
        }
    }
    all.extend(changed);
    let all = all.into_values().map(|(name, value)| format!("{kind}_set_header {name} {value}"));
    lines.extend(all.map(Directive::Line));
}
