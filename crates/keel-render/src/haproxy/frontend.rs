//! Frontends: where is listened, and which backend takes what comes.

use keel_model::{RouteKind, TlsVersion};
use keel_route::snapshot::Listener;

use super::acl::{Acls, View};
use super::words::{clean, word};
use super::{CERTIFICATES, Mode, Writer};
use crate::endpoints::{FOREVER, millis, policy};
use crate::gaps::Lack;
use crate::plan::{Group, PlannedRoute, Speaks, place_of};

/// The first bytes of a connection are waited for this long, then the server is assumed to speak first.
const DETECT: &str = "200ms";
/// The first bytes of a TLS connection are waited for this long.
const HELLO: &str = "5s";
/// `PRI * HTTP/2.0`, with which HTTP/2 begins.
const PREFACE: &str = "505249202a20485454502f322e30";

/// Tells services about the client, as our own proxy does. What clients outside say of an earlier proxy does not pass, but
/// for the chain of addresses, which ends with ours; nor does what programs could take for it.
pub(super) const FORWARDED: [&str; 10] = [
    "option forwardfor",
    "acl trusted var(sess.trusted) -m bool",
    "http-request del-header ^x-forwarded-([^f]|f[^o]|fo[^r]|for.) -m reg unless trusted",
    "http-request del-header ^x(-forwarded_|_forwarded) -m reg",
    "http-request del-header x-forwarded-client-cert",
    "acl said_host req.fhdr(x-forwarded-host) -m found",
    "acl said_proto req.fhdr(x-forwarded-proto) -m found",
    "http-request set-header X-Forwarded-Host %[req.fhdr(host)] if !said_host",
    "http-request set-header X-Forwarded-Proto https if !said_proto { ssl_fc }",
    "http-request set-header X-Forwarded-Proto http if !said_proto !{ ssl_fc }",
];

impl<'a> Writer<'a> {
    pub(super) fn group(&mut self, group: &Group<'a>) {
        if group.listener.tls.is_some() && !self.has_certificates {
            for bind in &group.binds {
                self.plan.note(Lack::Certificate, place_of(group.listener, *bind));
            }
            return;
        }
        match group.speaks {
            Speaks::Opaque => self.opaque(group),
            Speaks::Http | Speaks::Http2 => {
                self.begin(group, "http");
                self.frontends.lines(FORWARDED);
                self.default_pool(&group.listener.cluster, Mode::Http);
            }
            Speaks::Detected => self.detected(group),
            Speaks::Routed(table) => self.routed(group, table),
        }
    }

    /// The head of a frontend for all addresses of a group.
    fn begin(&mut self, group: &Group<'_>, mode: &str) {
        let tls =
            self.tls_words(group.listener, mode == "http" || group.speaks == Speaks::Detected);
        self.section(group, mode, &tls);
    }

    fn section(&mut self, group: &Group<'_>, mode: &str, tls: &str) {
        self.frontends.section(&format!("frontend {}", group.name));
        self.mode(mode);
        for bind in &group.binds {
            let v6 = if bind.is_ipv6() { " v6only" } else { "" };
            let shards = if self.plan.options.socket_per_thread { " shards by-thread" } else { "" };
            self.frontends.line(format!("bind {bind}{v6}{shards}{tls}"));
        }
        let from = &group.listener.accept_proxy_from;
        if !from.is_empty() {
            let mut acls = Acls::new(View::FirstBytes);
            acls.add_networks("balancer", from);
            self.frontends.lines(acls.lines);
            self.trust(group.listener, " if balancer");
            self.frontends.line("tcp-request connection expect-proxy layer4 if balancer");
        } else if !group.listener.published {
            self.trust(group.listener, "");
        }
    }

    /// Believes what those who connect say of earlier proxies: services, and proxies that are told of on `condition`.
    fn trust(&mut self, listener: &Listener, condition: &str) {
        let condition = if listener.published { condition } else { "" };
        let set = "tcp-request connection set-var(sess.trusted) bool(true)";
        self.frontends.line(format!("{set}{condition}"));
    }

    fn mode(&mut self, mode: &str) {
        self.frontends.line(format!("mode {mode}"));
        if mode == "http" {
            // Connections that a reload finds idle are closed with the next answer, not under a client's hands.
            self.frontends.line("option idle-close-on-response");
        }
    }

    /// What makes a `bind` speak TLS.
    fn tls_words(&mut self, listener: &Listener, http: bool) -> String {
        let Some(tls) = &listener.tls else { return String::new() };
        let mut words = format!(" ssl crt-list {CERTIFICATES}");
        if http {
            words.push_str(" alpn h2,http/1.1");
        }
        words.push_str(match tls.min {
            TlsVersion::V1_2 => " ssl-min-ver TLSv1.2",
            TlsVersion::V1_3 => " ssl-min-ver TLSv1.3",
        });
        if let Some(auth) = &tls.client_auth {
            let path = auth.ca.to_string_lossy();
            match clean(&path) {
                Some(path) => {
                    let verify = if auth.optional { "optional" } else { "required" };
                    words.push_str(&format!(" ca-file {} verify {verify}", word(path)));
                }
                None => self.plan.note(Lack::FileName, place_of(listener, listener.bind)),
            }
        }
        words
    }

    fn default_pool(&mut self, cluster: &str, mode: Mode) {
        if !cluster.is_empty() {
            let name = self.pool(cluster, mode, None).name.clone();
            self.frontends.line(format!("default_backend {name}"));
        }
    }

    /// The time for which an opaque connection to `cluster` may be silent.
    fn silence(&self, cluster: &str) -> u64 {
        let idle = self.plan.snapshot.clusters.get(cluster).and_then(|c| policy(c).timeouts.idle);
        idle.map_or(FOREVER, millis)
    }

    fn opaque(&mut self, group: &Group<'_>) {
        self.begin(group, "tcp");
        let cluster = &group.listener.cluster;
        let silence = self.silence(cluster);
        self.frontends.line(format!("timeout client {silence}ms"));
        self.default_pool(cluster, Mode::Tcp);
    }

    fn detected(&mut self, group: &Group<'_>) {
        self.begin(group, "tcp");
        let cluster = &group.listener.cluster;
        let silence = self.silence(cluster);
        self.frontends.line(format!("timeout client {silence}ms"));
        self.frontends.line(format!("tcp-request inspect-delay {DETECT}"));
        self.frontends.line(format!("acl http2 req.payload(0,14) -m bin {PREFACE}"));
        self.frontends.line("tcp-request content switch-mode http proto h2 if http2");
        self.frontends.line("tcp-request content switch-mode http if HTTP");
        if !cluster.is_empty() {
            let name = self.pool(cluster, Mode::Upgraded, None).name.clone();
            self.frontends.line(format!("use_backend {name} if HTTP"));
        }
        self.default_pool(cluster, Mode::Tcp);
    }

    fn routed(&mut self, group: &Group<'a>, table: &str) {
        let connections =
            self.plan.tables.get(table).map_or_else(Vec::new, |table| table.connections.clone());
        if connections.is_empty() {
            self.begin(group, "http");
            self.requests(group, table);
            return;
        }
        // Routes of connections are chosen in front of TLS; what they leave goes on to a frontend for requests.
        let mut inner = Vec::new();
        self.section(group, "tcp", "");
        self.frontends.line(format!("timeout client {FOREVER}ms"));
        let delay = if group.listener.tls.is_some() { HELLO } else { DETECT };
        self.frontends.line(format!("tcp-request inspect-delay {delay}"));
        let mut acls = Acls::new(View::FirstBytes);
        let (mut draws, mut uses) = (Vec::new(), Vec::new());
        for route in &connections {
            let ends_tls = group.listener.tls.is_some() && route.entry.kind == RouteKind::Tcp;
            let targets = if ends_tls {
                let socket = self.next_loop();
                let name = format!("{}.{}", group.name, route.name);
                inner.push((route, name.clone(), socket));
                vec![(format!("{name}.loop"), String::new())]
            } else {
                self.shares(route, &mut draws)
            };
            let allow = &route.entry.filters.allow;
            let let_in = format!("allow_{}", route.name);
            if !allow.is_empty() {
                acls.add_networks(&let_in, allow);
            }
            for alternative in &route.alternatives {
                let condition = acls.condition(alternative);
                if !allow.is_empty() {
                    let refused = self.refused();
                    uses.push(format!("use_backend {refused} if {condition} !{let_in}"));
                }
                for (backend, share) in &targets {
                    let all = format!("{condition} {share}");
                    let all = all.trim();
                    uses.push(match all.is_empty() {
                        true => format!("use_backend {backend}"),
                        false => format!("use_backend {backend} if {all}"),
                    });
                }
            }
        }
        self.frontends.lines(acls.lines);
        self.frontends.lines(draws);
        self.frontends.line("tcp-request content accept if { req.ssl_hello_type 1 }");
        self.frontends.lines(uses);
        let requests = format!("{}.requests", group.name);
        self.frontends.line(format!("default_backend {requests}.loop"));
        let socket = self.next_loop();
        self.loop_frontend(group, &requests, &socket, "http");
        self.requests(group, table);
        for (route, name, socket) in inner {
            self.loop_frontend(group, &name, &socket, "tcp");
            self.frontends.line(format!("timeout client {FOREVER}ms"));
            let mut lines = Vec::new();
            for (backend, share) in self.shares(route, &mut lines) {
                lines.push(match share.is_empty() {
                    true => format!("use_backend {backend}"),
                    false => format!("use_backend {backend} if {share}"),
                });
            }
            self.frontends.lines(lines);
        }
    }

    /// A frontend behind a socket of ours, and the backend that leads there.
    fn loop_frontend(&mut self, group: &Group<'_>, name: &str, socket: &str, mode: &str) {
        let tls = self.tls_words(group.listener, mode == "http");
        let owner = match &self.plan.options.user {
            Some((user, group)) => format!(" user {} group {}", word(user), word(group)),
            None => String::new(),
        };
        let socket = word(socket);
        self.frontends.section(&format!("frontend {name}"));
        self.mode(mode);
        self.frontends.line(format!("bind {socket} mode 600{owner} accept-proxy{tls}"));
        if mode == "http" && !group.listener.published {
            self.trust(group.listener, "");
        }
        self.backends.section(&format!("backend {name}.loop"));
        self.backends.line("mode tcp");
        self.backends.line(format!("timeout server {FOREVER}ms"));
        self.backends.line(format!("server inside {socket} send-proxy-v2"));
    }

    /// The backend that closes connections.
    fn refused(&mut self) -> &'static str {
        let name = "keel.refused";
        if self.written.insert(name.to_owned()) {
            self.backends.section(&format!("backend {name}"));
            self.backends.lines(["mode tcp", "timeout server 1s", "tcp-request content reject"]);
        }
        name
    }

    /// The backends of a route of connections, each with the condition that is its share. `lines` gets what draws.
    fn shares(
        &mut self,
        route: &PlannedRoute<'_>,
        lines: &mut Vec<String>,
    ) -> Vec<(String, String)> {
        let clusters = &route.entry.clusters;
        let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut below = 0;
        let drawn = clusters.len() > 1 && total > 0;
        self.draws += usize::from(drawn);
        let draw = format!("sess.draw{}", self.draws);
        if drawn {
            let range = draw_range(total);
            lines.push(format!("tcp-request content set-var({draw}) rand({range})"));
        }
        let mut out = Vec::new();
        for (cluster, weight) in clusters {
            if drawn && *weight == 0 {
                continue;
            }
            let backend = self.pool(cluster, Mode::Tcp, None).name.clone();
            below += u64::from(*weight);
            let condition = match drawn && below < total {
                true => format!("{{ var({draw}) -m int lt {} }}", draw_below(below, total)),
                false => String::new(),
            };
            out.push((backend, condition));
            if !drawn {
                break;
            }
        }
        out
    }
}

/// Into how many parts all weights together are parted: `rand` has 32 bits.
pub(super) fn draw_range(total: u64) -> u64 {
    total.min(1 << 30)
}

/// The part below which a draw falls to those with `below` of all weights.
pub(super) fn draw_below(below: u64, total: u64) -> u64 {
    let scaled = u128::from(below) * u128::from(draw_range(total)) / u128::from(total);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
