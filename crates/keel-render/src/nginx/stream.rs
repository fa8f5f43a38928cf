//! Opaque connections, through the stream module.
//!
//! Where routes of connections and requests share a listener, a first server looks at the server name and passes the
//! connection to one of several inner ones through Unix sockets, always with a PROXY protocol header: whether one
//! is sent is a property of a server, not of where it sends to.

use keel_model::RouteKind;

use super::Writer;
use super::servers::shares;
use super::upstream::Traffic;
use super::words::Blocks;
use crate::StreamModule;
use crate::endpoints::{FOREVER, millis, policy};
use crate::gaps::Lack;
use crate::plan::{Group, PlannedRoute, place_of};
use crate::rules::{Alternative, Field, Test, canonical};

/// The first bytes of a connection are waited for this long.
const HELLO: &str = "5s";

impl<'a> Writer<'a> {
    /// Whether the module is there; if not, that is noted.
    fn has_stream(&mut self, group: &Group<'_>) -> bool {
        let there = self.plan.options.stream != StreamModule::Absent;
        if !there {
            for bind in &group.binds {
                self.plan.note(Lack::Opaque, place_of(group.listener, *bind));
            }
        }
        there
    }

    /// A server for a listener without routes.
    pub(super) fn opaque(&mut self, group: &Group<'a>) {
        if !self.has_stream(group) {
            return;
        }
        if group.listener.tls.is_some() && self.certificates.is_empty() {
            return self
                .plan
                .note(Lack::Certificate, place_of(group.listener, group.listener.bind));
        }
        let mut block = Blocks::at_depth(1);
        block.open("server");
        self.listen(&mut block, group, group.listener.tls.is_some());
        if group.listener.tls.is_some() {
            self.tls(&mut block, group.listener, "");
        }
        self.pass(&mut block, &group.listener.cluster);
        block.close();
        self.stream_servers.append(block);
    }

    fn listen(&mut self, block: &mut Blocks, group: &Group<'_>, tls: bool) {
        let from = &group.listener.accept_proxy_from;
        let tls = if tls { " ssl" } else { "" };
        let proxied = if from.is_empty() { "" } else { " proxy_protocol" };
        block.lines(group.binds.iter().map(|bind| format!("listen {bind}{tls}{proxied}")));
        block.lines(from.iter().map(|net| format!("set_real_ip_from {net}")));
    }

    /// The directives that pass a connection to a cluster.
    fn pass(&mut self, block: &mut Blocks, id: &str) {
        let cluster = self.plan.snapshot.clusters.get(id).cloned().unwrap_or_default();
        let policy = policy(&cluster);
        let silence = policy.timeouts.idle.map_or(FOREVER, millis);
        block.line(format!("proxy_timeout {silence}ms"));
        block.line(format!("proxy_connect_timeout {}ms", millis(policy.timeouts.connect)));
        if policy.send_proxy.is_some() {
            block.line("proxy_protocol on");
        }
        match self.upstream(id, Traffic::Connections) {
            Some(upstream) => block.line(format!("proxy_pass {upstream}")),
            None => block.line("return \"\""),
        }
    }

    /// Servers for routes of connections; the socket to which everything else is passed. `None` without the module.
    pub(super) fn connections(
        &mut self,
        group: &Group<'a>,
        routes: &[PlannedRoute<'a>],
    ) -> Option<String> {
        if !self.has_stream(group) {
            return None;
        }
        let requests = self.next_loop();
        let otherwise = self.inner(&requests);
        let mut candidates: Vec<(Alternative, String)> = Vec::new();
        for route in routes {
            let ends_tls = group.listener.tls.is_some() && route.entry.kind == RouteKind::Tcp;
            if ends_tls && self.certificates.is_empty() {
                self.plan.note(Lack::Certificate, format!("route {}", route.entry.name));
                continue;
            }
            let target = self.shared(group, route, ends_tls);
            let each = route.alternatives.iter().cloned();
            candidates.extend(each.map(|alternative| (alternative, target.clone())));
        }
        let name = self.variable("way");
        let way = self.stream_atoms.choice(&name[1..], &candidates, &otherwise);
        let mut block = Blocks::at_depth(1);
        block.open("server");
        self.listen(&mut block, group, false);
        block.line("ssl_preread on");
        block.line(format!("preread_timeout {HELLO}"));
        block.line(format!("proxy_timeout {FOREVER}ms"));
        block.line("proxy_protocol on");
        block.line(format!("proxy_pass {way}"));
        block.close();
        self.stream_servers.append(block);
        Some(requests)
    }

    /// A name for a socket of ours.
    fn inner(&mut self, socket: &str) -> String {
        let name = format!("keel_inner{}", self.loops);
        self.stream_upstreams.block(format!("upstream {name}"), &[format!("server {socket}")]);
        name
    }

    /// The way to the clusters of a route, by their shares.
    fn shared(&mut self, group: &Group<'a>, route: &PlannedRoute<'a>, ends_tls: bool) -> String {
        let clusters = &route.entry.clusters;
        let mut ways = Vec::new();
        for (cluster, _) in clusters {
            let socket = self.next_loop();
            ways.push(self.inner(&socket));
            let mut block = Blocks::at_depth(1);
            block.open("server");
            let tls = if ends_tls { " ssl" } else { "" };
            block.line(format!("listen {socket}{tls} proxy_protocol"));
            block.line("set_real_ip_from unix:");
            if ends_tls {
                self.tls(&mut block, group.listener, &server_name(route));
            }
            let allow = &route.entry.filters.allow;
            if !allow.is_empty() {
                block.lines(allow.iter().map(|net| format!("allow {}", canonical(*net))));
                block.line("deny all");
            }
            self.pass(&mut block, cluster);
            block.close();
            self.stream_servers.append(block);
        }
        let weights: Vec<u32> = clusters.iter().map(|(_, weight)| *weight).collect();
        if ways.len() < 2 || weights.iter().all(|weight| *weight == 0) {
            return ways.first().cloned().unwrap_or_default();
        }
        let variable = self.variable("split");
        let lines = shares(&weights, &|index| ways[index].clone());
        self.stream_maps.block(format!("split_clients $connection$msec {variable}"), &lines);
        variable
    }
}

/// A server name for which the route is taken, to choose a certificate by.
fn server_name(route: &PlannedRoute<'_>) -> String {
    let literals = route.alternatives.iter().flatten().filter(|l| l.atom.field == Field::Sni);
    let mut tests = literals.flat_map(|literal| &literal.atom.tests);
    let name = tests.find_map(|test| match test {
        Test::Exact(name) => Some(name.clone()),
        Test::Label(parent) => Some(format!("*{parent}")),
        _ => None,
    });
    name.unwrap_or_default()
}
