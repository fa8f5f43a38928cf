//! Services that labels define: the port of a Compose service, and how traffic is spread over its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keel_model::{
    ActiveCheck, Balance, ClientKey, Protocol, ProxyVersion, StickyCookie, UpstreamTls,
};

use super::entry::Entry;
use super::{Labels, Section};
use crate::routes::{Located, forms};

/// Of a health check, unless the labels say otherwise (Traefik's values).
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a service of labels leads.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The Compose service whose labels define it.
    pub service: String,
    pub port: Option<Located<u16>>,
}

impl<'p> Labels<'p> {
    /// The services of a protocol by name. What they say about traffic is noted on the way.
    pub(super) fn targets(
        &mut self,
        section: &Section<'p>,
        active: &BTreeSet<&'p str>,
    ) -> BTreeMap<String, Target> {
        let mut targets = BTreeMap::new();
        for (name, named) in section {
            let mistakes = self.reader.errors.len();
            let options: BTreeMap<String, &Entry> =
                named.entries.iter().map(|entry| (entry.option(), entry)).collect();
            let port = options.get("loadbalancer.server.port").and_then(|entry| {
                Some(Located::new(self.reader.port(&entry.value)?, &entry.value.place_of(0)))
            });
            let number = port.as_ref().map(|port| port.value);
            self.spread(named.owner, &options, number);
            if !active.contains(named.owner) {
                self.reader.errors.truncate(mistakes);
            }
            targets.insert(name.clone(), Target { service: named.owner.to_owned(), port });
        }
        targets
    }

    fn spread(&mut self, owner: &str, options: &BTreeMap<String, &Entry>, port: Option<u16>) {
        let get = |name: &str| options.get(&format!("loadbalancer.{name}")).copied();
        if let Some(entry) = get("server.scheme") {
            match entry.text() {
                "http" => {}
                "https" => self.of(owner).traffic.tls = Some(UpstreamTls::default()),
                "h2c" => match port {
                    Some(port) => {
                        self.of(owner).protocols.insert(port, Protocol::Http2);
                    }
                    None => self.of(owner).protocol = Some(Protocol::Http2),
                },
                _ => self.reader.wrong(&entry.value, "`http`, `https` or `h2c`", ""),
            }
        }
        if let Some(entry) = get("server.tls")
            && self.bool_of(entry) == Some(true)
        {
            self.of(owner).traffic.tls = Some(UpstreamTls::default());
        }
        if let Some(entry) = get("strategy") {
            let balance = match entry.text() {
                "wrr" => Some(Balance::RoundRobin),
                "p2c" | "leasttime" => Some(Balance::LeastRequest),
                "hrw" => Some(Balance::RingHash(ClientKey::Source)),
                _ => {
                    self.reader.wrong(&entry.value, "`wrr`, `p2c`, `hrw` or `leasttime`", "");
                    None
                }
            };
            self.of(owner).traffic.balance = balance;
        }
        if let Some(entry) = get("passhostheader")
            && self.bool_of(entry) == Some(false)
        {
            let message = format!(
                "`{}=false` has no effect: the host of the request is passed on; `x-keel.routes[].rewrite.host` gives another",
                entry.key
            );
            self.warn(entry, message);
        }
        let version =
            get("proxyprotocol.version").map(|entry| (entry, forms::proxy_version(entry.text())));
        match version {
            Some((_, Some(version))) => self.of(owner).traffic.send_proxy = Some(version),
            Some((entry, None)) => self.reader.wrong(&entry.value, "`1` or `2`", ""),
            None if get("proxyprotocol").is_some_and(|entry| self.bool_of(entry) == Some(true)) => {
                self.of(owner).traffic.send_proxy = Some(ProxyVersion::V2);
            }
            None => {}
        }
        self.sticky(owner, options);
        self.check(owner, options);
    }

    fn sticky(&mut self, owner: &str, options: &BTreeMap<String, &Entry>) {
        let get = |name: &str| options.get(&format!("loadbalancer.sticky{name}")).copied();
        let on =
            ["", ".cookie"].into_iter().filter_map(get).map(|entry| self.bool_of(entry)).next();
        let any = [".cookie.name", ".cookie.secure", ".cookie.samesite", ".cookie.maxage"]
            .iter()
            .any(|option| get(option).is_some());
        if on == Some(Some(false)) || (on.is_none() && !any) {
            return;
        }
        let mut cookie =
            StickyCookie { name: String::new(), ttl: None, secure: false, same_site: None };
        if let Some(entry) = get(".cookie.name") {
            let name = self.reader.header_name(entry.text(), &entry.value.place_of(0));
            cookie.name = name.unwrap_or_default();
        }
        if let Some(entry) = get(".cookie.secure") {
            cookie.secure = self.bool_of(entry).unwrap_or_default();
        }
        if let Some(entry) = get(".cookie.samesite") {
            let words = ["none", "lax", "strict"].map(|word| (word, word));
            cookie.same_site = self.reader.word(&entry.value, &words).map(str::to_owned);
        }
        if let Some(entry) = get(".cookie.maxage") {
            let seconds = self.reader.number(&entry.value, 0, i64::from(u32::MAX));
            // 0 is Traefik's word for the session.
            cookie.ttl = seconds
                .and_then(|s| u64::try_from(s).ok())
                .filter(|s| *s > 0)
                .map(Duration::from_secs);
        }
        self.of(owner).traffic.sticky = Some(cookie);
    }

    fn check(&mut self, owner: &str, options: &BTreeMap<String, &Entry>) {
        let get = |name: &str| options.get(&format!("loadbalancer.healthcheck.{name}")).copied();
        let Some(path) = get("path") else {
            if let Some(entry) = get("interval").or_else(|| get("timeout")) {
                let message = format!("`{}` has no effect without a `healthcheck.path`", entry.key);
                self.warn(entry, message);
            }
            return;
        };
        let Some(path) = self.reader.path(&path.value) else { return };
        let mut time = |name: &str, default| match get(name) {
            Some(entry) => self.duration(entry).unwrap_or(default),
            None => default,
        };
        let check = ActiveCheck {
            path,
            interval: time("interval", CHECK_INTERVAL),
            timeout: time("timeout", CHECK_TIMEOUT),
            // One answer decides, as in Traefik.
            failures: 1,
            successes: 1,
        };
        self.of(owner).traffic.check = Some(check);
    }
}
