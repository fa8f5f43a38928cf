//! Groups of endpoints, for requests and for opaque connections.

use keel_model::{Balance, ClientKey};
use keel_route::snapshot::Cluster;

use super::Writer;
use super::atoms::header_variable;
use super::words::{Blocks, matching};
use crate::endpoints::{placed, policy};
use crate::pattern;
use crate::rules::is_plain_name;

/// Idle connections that each worker keeps to the endpoints of a cluster.
const KEPT: usize = 256;
/// Idle connections are closed after this: before common servers close them (Node.js 5 s).
const KEPT_FOR: &str = "4s";

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    Requests,
    Connections,
}

impl Writer<'_> {
    /// The group for a cluster; `None` if it has no ready endpoint, for which nginx has no group.
    pub(super) fn upstream(&mut self, id: &str, traffic: Traffic) -> Option<String> {
        let cluster = self.plan.snapshot.clusters.get(id)?.clone();
        let zone = self.plan.snapshot.zone.clone();
        if !placed(&cluster, None).iter().any(|place| place.ready) {
            return None;
        }
        let name = self.plan.names.of(id);
        let known = match traffic {
            Traffic::Requests => &mut self.upstreams_known,
            Traffic::Connections => &mut self.stream_upstreams_known,
        };
        if !known.insert(name.clone()) {
            return Some(name);
        }
        let mut block = Blocks::at_depth(1);
        block.open(format!("upstream {name}"));
        let zone_name = match traffic {
            Traffic::Requests => name.clone(),
            Traffic::Connections => format!("stream_{name}"),
        };
        block.line(format!("zone {zone_name} {}k", 64 + 2 * cluster.endpoints.len()));
        let hashed = self.balance(&mut block, &cluster, traffic);
        servers(&mut block, &cluster, zone.as_deref().filter(|_| !hashed));
        if traffic == Traffic::Requests {
            block.line(format!("keepalive {KEPT}"));
            block.line(format!("keepalive_timeout {KEPT_FOR}"));
        }
        block.close();
        match traffic {
            Traffic::Requests => self.upstreams.append(block),
            Traffic::Connections => self.stream_upstreams.append(block),
        }
        Some(name)
    }

    /// How an endpoint is chosen; whether the choice knows no reserve.
    fn balance(&mut self, block: &mut Blocks, cluster: &Cluster, traffic: Traffic) -> bool {
        let policy = policy(cluster);
        let requests = traffic == Traffic::Requests;
        if requests
            && let Some(sticky) = &policy.sticky
            && is_plain_name(&sticky.name)
        {
            let (key, _) = self.sticky_variables(&sticky.name);
            block.line(format!("hash {key} consistent"));
            return true;
        }
        let key = match &policy.balance {
            Balance::LeastRequest => {
                block.line("least_conn");
                return false;
            }
            Balance::RoundRobin => return false,
            Balance::Random => {
                block.line("random");
                return true;
            }
            Balance::RingHash(key) | Balance::Maglev(key) => key,
        };
        let key = match key {
            ClientKey::Path if requests => "$keel_path".to_owned(),
            ClientKey::Header(name) if requests && is_plain_name(name) => header_variable(name),
            ClientKey::Cookie(name) if requests && is_plain_name(name) => {
                self.cookie_variable(name)
            }
            _ => "$remote_addr".to_owned(),
        };
        block.line(format!("hash {key} consistent"));
        true
    }

    /// A variable with the value of a cookie.
    pub(super) fn cookie_variable(&mut self, name: &str) -> String {
        if let Some(known) = self.cookies.get(name) {
            return known.clone();
        }
        let variable = self.variable("cookie");
        let text = pattern::literal(name.as_bytes());
        let key = matching(&format!(r"(?:\A|[;,])\x20*{text}\x20*=\x20*([^;]*)"));
        let lines = ["default \"\"".to_owned(), format!("{key} $1")];
        self.maps.block(format!("map $http_cookie {variable}"), &lines);
        self.cookies.insert(name.to_owned(), variable.clone());
        variable
    }

    /// Variables for a cookie that keeps a client at its endpoint: the key that is hashed, and the cookie's value if
    /// the client has none yet.
    pub(super) fn sticky_variables(&mut self, cookie: &str) -> (String, String) {
        if let Some(known) = self.sticky.get(cookie) {
            return known.clone();
        }
        let has = self.cookie_variable(cookie);
        let (key, new) = (self.variable("stick"), self.variable("new"));
        let lines = ["default $request_id".to_owned(), format!("{} {has}", matching("."))];
        self.maps.block(format!("map {has} {key}"), &lines);
        let lines = ["default $request_id".to_owned(), format!("{} \"\"", matching("."))];
        self.maps.block(format!("map {has} {new}"), &lines);
        self.sticky.insert(cookie.to_owned(), (key.clone(), new.clone()));
        (key, new)
    }
}

fn servers(block: &mut Blocks, cluster: &Cluster, zone: Option<&str>) {
    let policy = policy(cluster);
    let outlier = &policy.outlier;
    let seconds = outlier.base.as_secs().max(1);
    for place in placed(cluster, zone) {
        let mut line = format!(
            "server {} max_fails={} fail_timeout={seconds}s",
            place.endpoint.address, outlier.consecutive_errors
        );
        if let Some(most) = policy.limits.max_connections {
            line.push_str(&format!(" max_conns={most}"));
        }
        if place.reserve {
            line.push_str(" backup");
        }
        if !place.ready {
            line.push_str(" down");
        }
        block.line(line);
    }
}
