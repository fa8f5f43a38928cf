//! Backends: the endpoints of a cluster and how its traffic is treated.

use keel_model::{
    ActiveCheck, Balance, ClientKey, Protocol, ProxyVersion, Retry, StickyCookie, TrafficPolicy,
    UpstreamTls,
};
use keel_route::snapshot::Cluster;

use super::frontend::FORWARDED;
use super::words::{clean, format, word};
use super::{Mode, PoolKey, PoolUse, Writer};
use crate::endpoints::{FOREVER, millis, placed, policy, same_site};
use crate::gaps::Lack;
use crate::rules::{is_host, is_plain_name};
use crate::{Pool, path};

/// Statuses that HAProxy can retry on.
const RETRIABLE: &[u16] = &[401, 403, 404, 408, 425, 500, 501, 502, 503, 504];
/// Tries beyond the first: one for each of some endpoints that are gone and not yet known to be.
const RETRIES: u32 = 3;
/// Where a slot leads that has no endpoint.
const NOWHERE: &str = "127.0.0.1:1";

impl Writer<'_> {
    pub(super) fn all_backends(&mut self) {
        for (key, used) in std::mem::take(&mut self.pools) {
            let cluster = self.plan.snapshot.clusters.get(&key.cluster);
            self.backend(&key, &used, &cluster.cloned().unwrap_or_default());
        }
    }

    fn backend(&mut self, key: &PoolKey, used: &PoolUse, cluster: &Cluster) {
        let policy = policy(cluster);
        self.backends.section(&format!("backend {}", used.name));
        match key.mode {
            Mode::Tcp => self.opaque_rules(&policy),
            Mode::Http | Mode::Upgraded => self.request_rules(key, used, &policy),
        }
        if let Some(types) = &key.compress {
            self.backends.line("compression algo gzip");
            if !types.is_empty() {
                self.backends.line(format!("compression type {types}"));
            }
        }
        if let Some(check) = &policy.check {
            self.check(check);
        }
        let defaults = self.server_words(key, cluster, &policy);
        if !defaults.is_empty() {
            self.backends.line(format!("default-server {defaults}"));
        }
        self.servers(key, used, cluster);
    }

    fn opaque_rules(&mut self, policy: &TrafficPolicy) {
        self.backends.line("mode tcp");
        self.balance(&policy.balance, Mode::Tcp);
        self.backends.line(format!("timeout connect {}ms", millis(policy.timeouts.connect)));
        let silence = policy.timeouts.idle.map_or(FOREVER, millis);
        self.backends.line(format!("timeout server {silence}ms"));
        self.backends.line(format!("retries {}", policy.retry.attempts.max(RETRIES)));
    }

    fn request_rules(&mut self, key: &PoolKey, used: &PoolUse, policy: &TrafficPolicy) {
        self.backends.line("mode http");
        self.balance(&policy.balance, key.mode);
        let times = &policy.timeouts;
        self.backends.line(format!("timeout connect {}ms", millis(times.connect)));
        self.backends.line(format!("timeout server {}ms", millis(times.response)));
        let silence = times.idle.map_or(FOREVER, millis);
        self.backends.line(format!("timeout tunnel {silence}ms"));
        if key.mode == Mode::Upgraded {
            self.backends.lines(FORWARDED);
        }
        for (route, ms) in &used.timeouts {
            let ms = (*ms).clamp(1, FOREVER);
            self.backends.line(format!(
                "http-request set-timeout server {ms}ms if {{ var(txn.route) -m str {route} }}"
            ));
        }
        if let Some(most) = policy.limits.max_requests {
            // The one that asks is counted too.
            self.backends.line(format!(
                "http-request return status 503 hdr Retry-After 1 if {{ be_conn gt {most} }}"
            ));
        }
        self.retries(key, &policy.retry);
        if let Some(sticky) = &policy.sticky {
            self.sticky(key, sticky);
        }
    }

    fn balance(&mut self, balance: &Balance, mode: Mode) {
        let key = match balance {
            Balance::LeastRequest => return self.backends.line("balance random(2)"),
            Balance::RoundRobin => return self.backends.line("balance roundrobin"),
            Balance::Random => return self.backends.line("balance random(1)"),
            Balance::RingHash(key) | Balance::Maglev(key) => key,
        };
        let source = "src,ipmask(32,64)".to_owned();
        let expression = match key {
            _ if mode == Mode::Tcp => source,
            ClientKey::Header(name) if is_plain_name(name) => {
                format!("req.fhdr({})", name.to_lowercase())
            }
            ClientKey::Cookie(name) if is_plain_name(name) => format!("req.cook({name})"),
            ClientKey::Path => "path".to_owned(),
            ClientKey::All | ClientKey::Source | ClientKey::Header(_) | ClientKey::Cookie(_) => {
                source
            }
        };
        self.backends.line(format!("balance hash {expression}"));
        self.backends.line("hash-type consistent");
    }

    fn retries(&mut self, key: &PoolKey, retry: &Retry) {
        self.backends.line(format!("retries {}", retry.attempts.max(RETRIES)));
        let mut on = "conn-failure".to_owned();
        if retry.attempts > 0 {
            on.push_str(" empty-response");
            for status in &retry.on_status {
                match RETRIABLE.contains(status) {
                    true => on.push_str(&format!(" {status}")),
                    false => self
                        .plan
                        .note(Lack::RetryStatus, format!("cluster {}, {status}", key.cluster)),
                }
            }
            self.backends.lines([
                "acl repeatable method -- GET HEAD PUT DELETE OPTIONS TRACE",
                "acl repeatable req.fhdr(idempotency-key) -m found",
                "http-request disable-l7-retry if !repeatable",
            ]);
        }
        self.backends.line(format!("retry-on {on}"));
    }

    fn sticky(&mut self, key: &PoolKey, sticky: &StickyCookie) {
        if !is_plain_name(&sticky.name) {
            return self.plan.note(Lack::HeaderName, format!("cluster {}", key.cluster));
        }
        let mut line = format!("cookie {} insert indirect nocache httponly dynamic", sticky.name);
        let known = same_site(sticky);
        // Browsers take `SameSite=None` only together with `Secure`.
        if sticky.secure || known == Some("None") {
            line.push_str(" secure");
        }
        if let Some(ttl) = sticky.ttl {
            line.push_str(&format!(" attr Max-Age={}", ttl.as_secs().max(1)));
        }
        if let Some(known) = known {
            line.push_str(&format!(" attr SameSite={known}"));
        }
        self.backends.line(line);
        // The value is made from the address, so that it follows an endpoint from slot to slot. No secret: whoever
        // guesses it gets an endpoint that is meant to be reached.
        self.backends
            .line(format!("dynamic-cookie-key {}", word(&format!("keel {}", safe(&key.cluster)))));
    }

    fn check(&mut self, check: &ActiveCheck) {
        let path = path::fit_whole(check.path.split('?').next().unwrap_or_default());
        self.backends.line("option httpchk");
        self.backends.line(format!(
            "http-check send meth GET uri-lf {} ver HTTP/1.1 hdr Host check",
            format(&path)
        ));
        self.backends.line("http-check expect status 200-399");
    }

    /// What holds for every server of the backend.
    fn server_words(&mut self, key: &PoolKey, cluster: &Cluster, policy: &TrafficPolicy) -> String {
        let mut words: Vec<String> = Vec::new();
        if let Some(most) = policy.limits.max_connections {
            words.push(format!("maxconn {most}"));
        }
        if let Some(most) = policy.limits.max_pending {
            words.push(format!("maxqueue {most}"));
        }
        if let Some(check) = &policy.check {
            words.push(format!(
                "check inter {}ms fall {} rise {}",
                millis(check.interval),
                check.failures.max(1),
                check.successes.max(1)
            ));
        }
        if let Some(time) = policy.slow_start {
            words.push(format!("slowstart {}ms", millis(time)));
        }
        let http2 = key.mode != Mode::Tcp && cluster.protocol == Protocol::Http2;
        if let Some(tls) = &policy.tls {
            words.extend(self.tls_words_of(key, tls));
            match (key.mode, http2) {
                (Mode::Tcp, _) => {}
                (_, true) => words.push("alpn h2".to_owned()),
                (_, false) => words.push("alpn http/1.1".to_owned()),
            }
        } else if http2 {
            words.push("proto h2".to_owned());
        }
        match policy.send_proxy {
            Some(ProxyVersion::V1) => words.push("send-proxy".to_owned()),
            Some(ProxyVersion::V2) => words.push("send-proxy-v2".to_owned()),
            None => {}
        }
        words.join(" ")
    }

    fn tls_words_of(&mut self, key: &PoolKey, tls: &UpstreamTls) -> Vec<String> {
        let mut words = vec!["ssl".to_owned()];
        let name = tls.server_name.as_deref().filter(|name| is_host(name));
        if let Some(name) = name {
            words.push(format!("sni str({name}) check-sni {name}"));
        } else if key.mode != Mode::Tcp {
            words.push("sni req.fhdr(host),host_only".to_owned());
        }
        if tls.insecure {
            words.push("verify none".to_owned());
        } else {
            let ca = tls.ca.as_ref().map(|path| path.to_string_lossy().into_owned());
            let ca = ca.unwrap_or_else(|| self.plan.options.system_authorities.clone());
            let ca = clean(&ca).map(word).unwrap_or_default();
            words.push(format!("verify required ca-file {ca}"));
            if let Some(name) = name {
                words.push(format!("verifyhost {name}"));
            }
        }
        if let Some((chain, private)) = &tls.identity {
            let file = format!("certs/to_{}.pem", self.plan.names.of(&key.cluster));
            words.push(format!("crt {file}"));
            self.plan.out.joined.insert(file, vec![chain.clone(), private.clone()]);
        }
        words
    }

    fn servers(&mut self, key: &PoolKey, used: &PoolUse, cluster: &Cluster) {
        let zone = self.plan.snapshot.zone.clone();
        let placed = placed(cluster, zone.as_deref());
        let slots = self.plan.options.slots.map(|slots| slots(placed.len()));
        let mut servers = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for (index, place) in placed.iter().enumerate() {
            let number = index + 1;
            let own = place.endpoint.instance.as_str();
            let name = match slots {
                None if names.insert(own) => own.to_owned(),
                None => format!("{own}.{number}"),
                Some(_) => format!("s{number}"),
            };
            let mut line = format!("server {name} {}", place.endpoint.address);
            if !place.ready {
                line.push_str(" disabled");
            }
            if place.reserve {
                line.push_str(" backup");
            }
            self.backends.line(line);
            servers.push((name, Some(place.endpoint.instance.clone())));
        }
        for number in placed.len() + 1..=slots.unwrap_or_default() {
            self.backends.line(format!("server s{number} {NOWHERE} disabled"));
            servers.push((format!("s{number}"), None));
        }
        let pool = self.plan.out.pools.entry(key.cluster.clone()).or_default();
        let Pool { backends, servers: known } = pool;
        backends.push(used.name.clone());
        *known = servers;
    }
}

/// `text` without control characters.
fn safe(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
