//! Server blocks: one per listener and host.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::TlsVersion;
use keel_route::snapshot::Listener;

use super::atoms::{Host, known_host};
use super::locations::{self, Direct};
use super::words::{Blocks, Directive, clean, quoted};
use super::{Writer, files_of};
use crate::gaps::Lack;
use crate::plan::{Group, PlannedRoute, Speaks, place_of};
use crate::readings::REFUSAL;
use crate::rules::{self, Alternative, Atom, Field, Literal, Test};
use crate::tls;

/// Where internal locations are. No request gets there by its own path: every path is replaced first.
const INTERNAL: &str = "/keel";

/// Where connections from a socket of ours come from.
const INNER: &str = "unix:";

/// Where a server block listens.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Addresses as nginx writes them.
    addresses: Vec<String>,
    /// Connections begin with a PROXY protocol header, believed if it comes from one of these.
    proxied_by: Vec<String>,
    http2: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn group(&mut self, group: &Group<'a>) {
        match group.speaks {
            Speaks::Opaque | Speaks::Detected => self.opaque(group),
            Speaks::Http | Speaks::Http2 => {
                let places = self.places(group);
                self.unrouted(group, &places);
            }
            Speaks::Routed(table) => {
                let connections =
                    self.plan.tables.get(table).map(|table| table.connections.clone());
                let places = match connections.filter(|routes| !routes.is_empty()) {
                    Some(routes) => match self.connections(group, &routes) {
                        Some(socket) => Places {
                            addresses: vec![socket],
                            proxied_by: vec![INNER.to_owned()],
                            http2: group.listener.tls.is_some(),
                        },
                        None => return,
                    },
                    None => self.places(group),
                };
                self.routed(group, table, &places);
            }
        }
    }

    fn places(&self, group: &Group<'_>) -> Places {
        Places {
            addresses: group.binds.iter().map(ToString::to_string).collect(),
            proxied_by: group.listener.accept_proxy_from.iter().map(|n| n.to_string()).collect(),
            http2: group.listener.tls.is_some() || group.speaks == Speaks::Http2,
        }
    }

    /// A server block without routes: all goes to the listener's cluster.
    fn unrouted(&mut self, group: &Group<'a>, places: &Places) {
        let mut block = Blocks::at_depth(1);
        block.open("server");
        self.head(&mut block, group.listener, places, &Host::Other);
        let lines = self.passing(&Direct { cluster: &group.listener.cluster, route: None });
        block.line("set $keel_uri $uri");
        block.open("location /");
        block.directives(&lines);
        block.close();
        block.close();
        self.servers.append(block);
    }

    /// Where a server block listens, what it is called, and how it speaks TLS.
    fn head(&mut self, block: &mut Blocks, listener: &Listener, places: &Places, host: &Host) {
        let mut words = String::new();
        if listener.tls.is_some() {
            words.push_str(" ssl");
        }
        if places.http2 {
            words.push_str(" http2");
        }
        if !places.proxied_by.is_empty() {
            words.push_str(" proxy_protocol");
        }
        if *host == Host::Other {
            words.push_str(" default_server");
        }
        block.lines(places.addresses.iter().map(|address| format!("listen {address}{words}")));
        let name = match host {
            Host::Other => "_".to_owned(),
            Host::Exact(name) => name.clone(),
            Host::Below(parent) => format!("*{parent}"),
        };
        block.line(format!("server_name {name}"));
        if !places.proxied_by.is_empty() {
            block.lines(places.proxied_by.iter().map(|net| format!("set_real_ip_from {net}")));
            block.line("real_ip_header proxy_protocol");
        }
        let trusted = self.trusted(listener, places);
        block.line(format!("set $keel_trusted {trusted}"));
        self.tls(block, listener, &name);
    }

    /// Whether those who connect are believed what they say of earlier proxies: services are, and proxies that are told of.
    fn trusted(&mut self, listener: &Listener, places: &Places) -> String {
        let from = &listener.accept_proxy_from;
        match listener.published {
            false => "1".to_owned(),
            // Who is behind a socket of ours nobody knows here.
            true if from.is_empty() || places.proxied_by == [INNER] => "0".to_owned(),
            true => {
                let trusted = self.variable("balancer");
                let networks = from.iter().map(|network| format!("{network} 1"));
                let entries: Vec<_> =
                    std::iter::once("default 0".to_owned()).chain(networks).collect();
                self.maps.block(format!("geo $realip_remote_addr {trusted}"), &entries);
                trusted
            }
        }
    }

    pub(super) fn tls(&mut self, block: &mut Blocks, listener: &Listener, name: &str) {
        let Some(tls) = &listener.tls else { return };
        match tls::for_name(&self.certificates, name) {
            Some(certificate) => {
                let (chain, key) = files_of(certificate);
                block.line(format!("ssl_certificate {chain}"));
                block.line(format!("ssl_certificate_key {key}"));
            }
            None => {
                block.line("ssl_reject_handshake on");
                self.plan.note(Lack::Certificate, place_of(listener, listener.bind));
            }
        }
        block.line(match tls.min {
            TlsVersion::V1_2 => "ssl_protocols TLSv1.2 TLSv1.3",
            TlsVersion::V1_3 => "ssl_protocols TLSv1.3",
        });
        let Some(auth) = &tls.client_auth else { return };
        match file_name(&auth.ca.to_string_lossy()) {
            Some(file) => {
                block.line(format!("ssl_client_certificate {file}"));
                block.line(if auth.optional {
                    "ssl_verify_client optional"
                } else {
                    "ssl_verify_client on"
                });
                block.line("ssl_verify_depth 5");
            }
            None => self.plan.note(Lack::FileName, place_of(listener, listener.bind)),
        }
    }

    /// Server blocks for the hosts that rules and certificates name, and one for all others.
    fn routed(&mut self, group: &Group<'a>, table: &str, places: &Places) {
        let (routes, redirect_https) = match self.plan.tables.get(table) {
            Some(table) => {
                let plain = group.listener.tls.is_none();
                (table.http.clone(), table.redirect_https.filter(|_| plain))
            }
            None => (Vec::new(), None),
        };
        let mut hosts = hosts_of(&routes);
        if group.listener.tls.is_some() {
            let names = self.certificates.iter().flat_map(|certificate| certificate.names.clone());
            hosts.extend(names.map(|name| match name.strip_prefix('*') {
                Some(parent) => Host::Below(parent.to_owned()),
                None => Host::Exact(name),
            }));
        }
        for host in &hosts {
            let mut block = Blocks::at_depth(1);
            block.open("server");
            self.head(&mut block, group.listener, places, host);
            self.body(&mut block, group, &routes, redirect_https, host);
            block.close();
            self.servers.append(block);
        }
    }

    fn body(
        &mut self,
        block: &mut Blocks,
        group: &Group<'a>,
        routes: &[PlannedRoute<'a>],
        redirect_https: Option<u16>,
        host: &Host,
    ) {
        let cluster = &group.listener.cluster;
        let mut candidates: Vec<(Alternative, String)> = Vec::new();
        let mut locations: BTreeMap<String, Vec<Directive>> = BTreeMap::new();
        if group.listener.tls.is_none() {
            for (alternative, path, lines) in self.challenges() {
                candidates.push((alternative, path.clone()));
                locations.insert(path, lines);
            }
        }
        let refused = format!("{INTERNAL}/refused");
        for route in routes {
            let left: BTreeSet<Alternative> =
                route.alternatives.iter().filter_map(|all| known_host(all, host)).collect();
            if left.is_empty() {
                continue;
            }
            let (target, of_route) = self.route(route);
            locations.extend(of_route);
            let always = left.contains(&Alternative::new());
            for alternative in left {
                let doubts = rules::doubts(&alternative).into_iter();
                candidates.extend(doubts.map(|doubt| (doubt, refused.clone())));
                candidates.push((alternative, target.clone()));
            }
            if always {
                break;
            }
        }
        if candidates.iter().any(|(_, target)| *target == refused) {
            locations.insert(refused, vec![format!("return 400 \"{REFUSAL}\"").into()]);
        }
        let otherwise = format!("{INTERNAL}/otherwise");
        let lines = match redirect_https {
            Some(port) => {
                let port = if port == 443 { String::new() } else { format!(":{port}") };
                vec![format!("return 308 \"https://$host{port}$keel_sent\"").into()]
            }
            None if cluster.is_empty() => vec!["return 404 \"no route\"".into()],
            None => self.passing(&Direct { cluster, route: None }),
        };
        locations.insert(otherwise.clone(), lines);
        let name = self.variable("go");
        let go = self.atoms.choice(&name[1..], &candidates, &otherwise);
        block.line("set $keel_uri $uri");
        let by_path =
            |route: &PlannedRoute<'_>| rules::of_paths(&route.alternatives).next().is_some();
        let unreadable = routes.iter().any(by_path).then_some("if ($keel_doubt = 3)");
        for doubt in std::iter::once("if ($keel_unfit)").chain(unreadable) {
            block.open(doubt);
            block.line("return 400");
            block.close();
        }
        block.line(format!("rewrite ^ {go} last"));
        locations::write(block, &locations);
    }

    /// Answers to certificate authorities.
    fn challenges(&self) -> Vec<(Alternative, String, Vec<Directive>)> {
        let ok = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let known = self.plan.snapshot.challenges.http.iter();
        // Both are base64url by RFC 8555; what is not never comes.
        let known = known.filter(|(token, answer)| ok(token) && ok(answer));
        known
            .map(|(token, answer)| {
                let path = format!("/.well-known/acme-challenge/{token}");
                let tests = BTreeSet::from([Test::Exact(path)]);
                let atom = Atom { field: Field::Path, tests };
                let target = format!("{INTERNAL}/challenge/{token}");
                let answer = format!("return 200 \"{answer}\"").into();
                (vec![Literal { atom, holds: true }], target, vec![answer])
            })
            .collect()
    }

    /// The location (or the variable that holds it) for requests of a route, and its locations.
    fn route(&mut self, route: &PlannedRoute<'a>) -> (String, Vec<(String, Vec<Directive>)>) {
        let path = |index: usize| format!("{INTERNAL}/{}/{index}", route.name);
        let count = route.entry.clusters.len();
        let mut locations = Vec::new();
        for index in 0..count {
            let path = path(index);
            if !self.locations.contains_key(&path) {
                let lines = self.location(route, index);
                self.locations.insert(path.clone(), lines);
            }
            locations.push((path.clone(), self.locations[&path].clone()));
        }
        let weights: Vec<u32> = route.entry.clusters.iter().map(|(_, weight)| *weight).collect();
        if count < 2 || weights.iter().all(|weight| *weight == 0) {
            return (path(0), locations);
        }
        let known = &route.name;
        if let Some(variable) = self.splits.get(known) {
            return (variable.clone(), locations);
        }
        let variable = self.variable("split");
        let lines = shares(&weights, &path);
        self.maps.block(format!("split_clients $request_id {variable}"), &lines);
        self.splits.insert(known.clone(), variable.clone());
        (variable, locations)
    }
}

/// Hundredths of a percent for each weight, the last one taking what is left.
pub(super) fn shares(weights: &[u32], target: &dyn Fn(usize) -> String) -> Vec<String> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut lines = Vec::new();
    let last = weights.iter().rposition(|weight| *weight > 0).unwrap_or(0);
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
        let part = (u64::from(*weight) * 10_000 / total.max(1)).max(1);
        let share = match index == last {
            true => "*".to_owned(),
            false => format!("{}.{:02}%", part / 100, part % 100),
        };
        lines.push(format!("{share} {}", target(index)));
    }
    lines
}

/// The hosts that get a block of their own, and the rest.
fn hosts_of(routes: &[PlannedRoute<'_>]) -> BTreeSet<Host> {
    let mut hosts = BTreeSet::from([Host::Other]);
    let literals = routes.iter().flat_map(|route| route.alternatives.iter().flatten());
    for test in literals.filter(|l| l.atom.field == Field::Host).flat_map(|l| &l.atom.tests) {
        match test {
            Test::Exact(name) => hosts.insert(Host::Exact(name.clone())),
            Test::Label(parent) => hosts.insert(Host::Below(parent.clone())),
            _ => false,
        };
    }
    hosts
}

/// A file name as an argument; `None` if nginx would read it as something else.
pub(super) fn file_name(path: &str) -> Option<String> {
    clean(path).filter(|path| !path.contains('$') && !path.is_empty()).map(quoted)
}
