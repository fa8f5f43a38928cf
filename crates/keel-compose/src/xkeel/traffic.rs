//! `traffic` of a service: how the load balancer treats it.

use std::path::PathBuf;
use std::time::Duration;

use keel_model::{
    ActiveCheck, AdaptiveConcurrency, Balance, ClientKey, Outlier, ProxyVersion, Retry,
    StickyCookie, Timeouts, TrafficLimits, TrafficPolicy, UpstreamTls,
};

use super::reader::Reader;
use crate::diagnostic::Code;
use crate::value::{Node, Value};

/// Keys of `traffic`.
pub(crate) const TRAFFIC_KEYS: [&str; 12] = [
    "balance",
    "sticky",
    "slow_start",
    "prefer_zone",
    "outlier",
    "check",
    "retry",
    "timeouts",
    "limits",
    "adaptive_concurrency",
    "tls",
    "send_proxy_protocol",
];
/// Keys of `sticky`.
pub(crate) const STICKY_KEYS: [&str; 4] = ["cookie", "ttl", "secure", "same_site"];
/// Keys of `outlier`.
pub(crate) const OUTLIER_KEYS: [&str; 4] = ["consecutive_errors", "base", "max", "max_percent"];
/// Keys of `check`.
pub(crate) const CHECK_KEYS: [&str; 5] = ["path", "interval", "timeout", "failures", "successes"];
/// Keys of `retry`.
pub(crate) const RETRY_KEYS: [&str; 4] = ["attempts", "budget", "per_try_timeout", "on_status"];
/// Keys of `timeouts`.
pub(crate) const TIMEOUT_KEYS: [&str; 5] = ["connect", "response", "request", "idle", "hold"];
/// Keys of `limits`.
pub(crate) const LIMIT_KEYS: [&str; 3] = ["max_connections", "max_pending", "max_requests"];
/// Keys of `adaptive_concurrency`.
pub(crate) const ADAPTIVE_KEYS: [&str; 2] = ["min", "max"];
/// Keys of `tls`.
pub(crate) const UPSTREAM_TLS_KEYS: [&str; 5] = ["server_name", "ca", "cert", "key", "insecure"];

/// A cookie's name, unless the file gives one. One for each service, so that two services of a host can both stick.
pub(crate) fn default_cookie(service: &str) -> String {
    format!("keel_{}", service.replace('.', "_"))
}

/// Of an active check, unless the file says otherwise: as HAProxy falls (3) and rises (2), and asks (2 s).
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const CHECK_FAILURES: u32 = 3;
const CHECK_SUCCESSES: u32 = 2;
/// What to do about a limit that would let nothing through.
const NO_LIMIT: &str = "leave it out for no limit";
/// Bounds of `adaptive_concurrency: true`.
const ADAPTIVE: AdaptiveConcurrency = AdaptiveConcurrency { min: 4, max: 1000 };

impl Reader {
    pub(super) fn traffic(&mut self, node: &Node) -> TrafficPolicy {
        let mut policy = TrafficPolicy::default();
        for (key, value) in self.keys(node, "x-keel.traffic", &TRAFFIC_KEYS) {
            match key {
                "balance" => policy.balance = self.balance(value).unwrap_or_default(),
                "sticky" => policy.sticky = self.sticky(value),
                "slow_start" => policy.slow_start = self.time(value),
                "prefer_zone" => policy.prefer_zone = self.flag(value).unwrap_or_default(),
                "outlier" => policy.outlier = self.outlier(value),
                "check" => policy.check = self.check(value),
                "retry" => policy.retry = self.retry(value),
                "timeouts" => policy.timeouts = self.timeouts(value),
                "limits" => policy.limits = self.limits(value),
                "adaptive_concurrency" => policy.adaptive = self.adaptive(value),
                "tls" => policy.tls = self.upstream_tls(value),
                _ => {
                    let versions = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];
                    policy.send_proxy = self.word(value, &versions);
                }
            }
        }
        policy
    }

    fn balance(&mut self, node: &Node) -> Option<Balance> {
        if node.as_map().is_none() {
            if let Some(hash @ ("ring_hash" | "maglev")) = node.as_str() {
                let help = format!(
                    "write `{{{hash}: source}}`, or in place of `source` one of `path`, `header:NAME`, `cookie:NAME`"
                );
                self.wrong(node, &format!("a mapping that says by what `{hash}` goes"), &help);
                return None;
            }
            return self.word(
                node,
                &[
                    ("least_request", Balance::LeastRequest),
                    ("round_robin", Balance::RoundRobin),
                    ("random", Balance::Random),
                ],
            );
        }
        let (kind, value) = self.only(node, "x-keel.traffic.balance", &["ring_hash", "maglev"])?;
        let key = if value.as_map().is_some() {
            self.only(value, &format!("x-keel.traffic.balance.{kind}"), &["by"])?.1
        } else {
            value
        };
        let key = self.client_key(key, &[ClientKey::Path])?;
        Some(if kind == "maglev" { Balance::Maglev(key) } else { Balance::RingHash(key) })
    }

    /// The name of the cookie stays empty where the file gives none; see [`default_cookie`].
    fn sticky(&mut self, node: &Node) -> Option<StickyCookie> {
        let mut cookie =
            StickyCookie { name: String::new(), ttl: None, secure: false, same_site: None };
        match &node.value {
            Value::Bool(false) | Value::Null => return None,
            Value::Bool(true) => {}
            Value::String(_) => cookie.name = self.cookie_name(node)?,
            _ => {
                for (key, value) in self.keys(node, "x-keel.traffic.sticky", &STICKY_KEYS) {
                    match key {
                        "cookie" => cookie.name = self.cookie_name(value).unwrap_or_default(),
                        "ttl" => cookie.ttl = self.time(value),
                        "secure" => cookie.secure = self.flag(value).unwrap_or_default(),
                        _ => {
                            let words = ["strict", "lax", "none"].map(|word| (word, word));
                            cookie.same_site = self.word(value, &words).map(str::to_owned);
                        }
                    }
                }
                if cookie.same_site.as_deref() == Some("none") && !cookie.secure {
                    let message =
                        "browsers refuse a cookie with `same_site: none` that is not `secure`";
                    self.error(Code::Conflict, &node.span, message.to_owned()).help =
                        Some("add `secure: true`".to_owned());
                }
            }
        }
        Some(cookie)
    }

    fn cookie_name(&mut self, node: &Node) -> Option<String> {
        let name = node.as_str().filter(|name| crate::rule::is_header_name(name));
        if name.is_none() {
            self.wrong(node, "the name of a cookie", "use letters, digits, `-` and `_`");
        }
        name.map(str::to_owned)
    }

    fn outlier(&mut self, node: &Node) -> Outlier {
        let mut outlier = Outlier::default();
        if node.value == Value::Bool(false) {
            outlier.consecutive_errors = 0;
            return outlier;
        }
        if node.value == Value::Bool(true) {
            let help = "leave it out: it is on unless it is `false`";
            self.wrong(node, "`false`, or a mapping with what is to be otherwise", help);
            return outlier;
        }
        for (key, value) in self.keys(node, "x-keel.traffic.outlier", &OUTLIER_KEYS) {
            match key {
                "consecutive_errors" => {
                    let count = self.number_or(value, 0, 1000, "`outlier: false` switches it off");
                    let count = count.and_then(|n| u32::try_from(n).ok());
                    outlier.consecutive_errors = count.unwrap_or(outlier.consecutive_errors);
                }
                "base" => outlier.base = self.time(value).unwrap_or(outlier.base),
                "max" => outlier.max = self.time(value).unwrap_or(outlier.max),
                _ => outlier.max_percent = self.percent(value).unwrap_or(outlier.max_percent),
            }
        }
        if outlier.max < outlier.base {
            self.error(Code::Conflict, &node.span, "`max` is less than `base`".to_owned());
        }
        outlier
    }

    fn check(&mut self, node: &Node) -> Option<ActiveCheck> {
        let mut check = ActiveCheck {
            path: String::new(),
            interval: CHECK_INTERVAL,
            timeout: CHECK_TIMEOUT,
            failures: CHECK_FAILURES,
            successes: CHECK_SUCCESSES,
        };
        match &node.value {
            Value::Bool(false) | Value::Null => return None,
            Value::String(_) => check.path = self.target(node)?,
            Value::Bool(true) => {
                let help = "write for example `check: /healthz`";
                self.wrong(node, "the path that is asked for, or a mapping with it", help);
                return None;
            }
            _ => {
                for (key, value) in self.keys(node, "x-keel.traffic.check", &CHECK_KEYS) {
                    match key {
                        "path" => check.path = self.target(value).unwrap_or_else(|| "/".to_owned()),
                        "interval" => check.interval = self.time(value).unwrap_or(check.interval),
                        "timeout" => check.timeout = self.time(value).unwrap_or(check.timeout),
                        "failures" => check.failures = self.count(value).unwrap_or(check.failures),
                        _ => check.successes = self.count(value).unwrap_or(check.successes),
                    }
                }
                if check.path.is_empty() {
                    let message = "the check has no `path`".to_owned();
                    self.error(Code::MissingKey, &node.span, message).help =
                        Some("write for example `check: /healthz`".to_owned());
                }
            }
        }
        Some(check)
    }

    fn retry(&mut self, node: &Node) -> Retry {
        let mut retry = Retry::default();
        match node.value {
            Value::Bool(false) => {
                retry.attempts = 0;
                return retry;
            }
            Value::Int(_) => {
                retry.attempts = self.attempts(node).unwrap_or(retry.attempts);
                return retry;
            }
            _ => {}
        }
        for (key, value) in self.keys(node, "x-keel.traffic.retry", &RETRY_KEYS) {
            match key {
                "attempts" => retry.attempts = self.attempts(value).unwrap_or(retry.attempts),
                "budget" => {
                    retry.budget_percent = self.percent(value).unwrap_or(retry.budget_percent)
                }
                "per_try_timeout" => retry.per_try_timeout = self.time(value),
                _ => {
                    let items = value.as_seq().unwrap_or(std::slice::from_ref(value));
                    let help =
                        "write the statuses of answers that are tried again, for example [503]";
                    let statuses =
                        items.iter().filter_map(|item| self.number_or(item, 400, 599, help));
                    retry.on_status = statuses.filter_map(|n| u16::try_from(n).ok()).collect();
                }
            }
        }
        retry
    }

    fn attempts(&mut self, node: &Node) -> Option<u32> {
        let help = "it counts the tries beyond the first; `retry: false` is for none";
        self.number_or(node, 0, 10, help).and_then(|number| u32::try_from(number).ok())
    }

    fn timeouts(&mut self, node: &Node) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for (key, value) in self.keys(node, "x-keel.traffic.timeouts", &TIMEOUT_KEYS) {
            match key {
                "connect" => timeouts.connect = self.time(value).unwrap_or(timeouts.connect),
                "response" => timeouts.response = self.time(value).unwrap_or(timeouts.response),
                "request" => timeouts.request = self.time(value),
                "idle" => timeouts.idle = self.time(value),
                // 0 means: refuse at once.
                _ => timeouts.hold = self.duration(value),
            }
        }
        timeouts
    }

    fn limits(&mut self, node: &Node) -> TrafficLimits {
        let mut limits = TrafficLimits::default();
        for (key, value) in self.keys(node, "x-keel.traffic.limits", &LIMIT_KEYS) {
            match key {
                "max_connections" => limits.max_connections = self.amount_or(value, 1, NO_LIMIT),
                "max_pending" => {
                    let help = "leave it out for 1024; 0 refuses whatever would have to wait";
                    limits.max_pending = self.amount_or(value, 0, help);
                }
                _ => limits.max_requests = self.amount_or(value, 1, NO_LIMIT),
            }
        }
        limits
    }

    fn adaptive(&mut self, node: &Node) -> Option<AdaptiveConcurrency> {
        match node.value {
            Value::Bool(false) | Value::Null => return None,
            Value::Bool(true) => return Some(ADAPTIVE),
            _ => {}
        }
        let mut adaptive = ADAPTIVE;
        for (key, value) in self.keys(node, "x-keel.traffic.adaptive_concurrency", &ADAPTIVE_KEYS) {
            match key {
                "min" => adaptive.min = self.amount(value, 1).unwrap_or(adaptive.min),
                _ => adaptive.max = self.amount(value, 1).unwrap_or(adaptive.max),
            }
        }
        if adaptive.max < adaptive.min {
            self.error(Code::Conflict, &node.span, "`max` is less than `min`".to_owned());
        }
        Some(adaptive)
    }

    fn upstream_tls(&mut self, node: &Node) -> Option<UpstreamTls> {
        match node.value {
            Value::Bool(false) | Value::Null => return None,
            Value::Bool(true) => return Some(UpstreamTls::default()),
            _ => {}
        }
        let mut tls = UpstreamTls::default();
        let (mut cert, mut key): (Option<PathBuf>, Option<PathBuf>) = (None, None);
        for (name, value) in self.keys(node, "x-keel.traffic.tls", &UPSTREAM_TLS_KEYS) {
            match name {
                "server_name" => tls.server_name = self.plain_host(value),
                "insecure" => tls.insecure = self.flag(value).unwrap_or_default(),
                _ => {
                    let path = self.text(value, "the path of a PEM file").map(Into::into);
                    match name {
                        "ca" => tls.ca = path,
                        "cert" => cert = path,
                        _ => key = path,
                    }
                }
            }
        }
        match (cert, key) {
            (Some(cert), Some(key)) => tls.identity = Some((cert, key)),
            (None, None) => {}
            _ => {
                let message = "`cert` and `key` of `tls` belong together".to_owned();
                self.error(Code::MissingKey, &node.span, message);
            }
        }
        if tls.insecure && tls.ca.is_some() {
            self.error(Code::Conflict, &node.span, "`insecure` makes `ca` useless".to_owned())
                .help = Some("keep one of them".to_owned());
        }
        Some(tls)
    }
}
