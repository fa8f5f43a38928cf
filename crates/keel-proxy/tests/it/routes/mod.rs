//! Routes, from what a request says to the endpoint that answers it, in both versions of HTTP.

mod affinity;
mod choice;
mod compression;
mod filters;
mod logged;
mod refusals;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keel_model::{EndpointState, Filters, Protocol, RouteKind, Rule, TrafficPolicy};
use keel_route::snapshot::{
    Cluster, EdgeStats, FromProxy, RouteEntry, RouteTable, Snapshot, ToProxy,
};

use crate::http2::either::{ALL, Answer, Caller, Content, Endpoint, Got, Message, Version};
use crate::proxy::{CART, Proxy, cluster, listener};

/// A proxy with one listener, at which routes choose.
pub struct Site {
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub state: Snapshot,
}

impl Site {
    pub fn new(routes: Vec<RouteEntry>, clusters: BTreeMap<String, Cluster>) -> Self {
        let proxy = Proxy::start();
        let address = proxy.address();
        let mut listener = listener(address, Protocol::Auto);
        (listener.cluster, listener.table) = (String::new(), Some("web".into()));
        let state = Snapshot { listeners: vec![listener], clusters, ..Snapshot::default() };
        let mut site = Self { proxy, address, state };
        site.route(routes);
        site
    }

    /// All requests go to [`CART`], by one route with these filters.
    pub fn filtered(endpoint: &Endpoint, filters: Filters) -> Self {
        let route = RouteEntry { filters, ..route("all", Rule::default(), CART) };
        Self::new(vec![route], clusters([(CART, endpoint)]))
    }

    /// Without routes: all requests go to [`CART`].
    pub fn bare(cluster: Cluster) -> Self {
        let mut proxy = Proxy::start();
        let address = proxy.address();
        let listeners = vec![listener(address, Protocol::Auto)];
        let clusters = [(CART.to_owned(), cluster)].into();
        let state = Snapshot { listeners, clusters, ..Snapshot::default() };
        assert_eq!(proxy.server.apply(state.clone()), []);
        Self { proxy, address, state }
    }

    /// Other routes.
    pub fn route(&mut self, routes: Vec<RouteEntry>) {
        let table = RouteTable { routes, ..RouteTable::default() };
        self.state.tables.insert("web".into(), table);
        self.apply();
    }

    /// Tells the proxy what is in `state`.
    pub fn apply(&mut self) {
        assert_eq!(self.proxy.server.apply(self.state.clone()), []);
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, version: Version, method: &str, url: &str, sent: &Message) -> Answer {
        ask(&mut Caller::connect(version, self.address).await, method, url, sent).await
    }

    /// What was counted of a route.
    pub fn edges(&mut self, route: &str) -> Vec<EdgeStats> {
        self.proxy.server.send(&ToProxy::Stats);
        self.proxy.server.until("statistics", |message| match message {
            FromProxy::Stats(stats) => {
                Some(stats.edges.iter().filter(|edge| edge.route == route).cloned().collect())
            }
            _ => None,
        })
    }
}

/// One request; `url` is host and path.
pub async fn ask(caller: &mut Caller, method: &str, url: &str, sent: &Message) -> Answer {
    let (host, path) = url.split_once('/').unwrap();
    caller.ask_host(host, method, &format!("/{path}"), sent).await
}

/// Nothing is done to what it leads to `cluster`.
pub fn route(name: &str, rule: Rule, cluster: &str) -> RouteEntry {
    RouteEntry {
        name: format!("shop/{name}"),
        rule,
        priority: 1,
        kind: RouteKind::Http,
        clusters: vec![(cluster.to_owned(), 1)],
        filters: Filters::default(),
        timeout_ms: None,
    }
}

/// Clusters of one endpoint each.
pub fn clusters<'a>(
    endpoints: impl IntoIterator<Item = (&'a str, &'a Endpoint)>,
) -> BTreeMap<String, Cluster> {
    let cluster = |endpoint: &Endpoint| Cluster {
        protocol: endpoint.protocol(),
        ..cluster(&[(endpoint.address(), EndpointState::Ready)], true)
    };
    endpoints.into_iter().map(|(id, endpoint)| (id.to_owned(), cluster(endpoint))).collect()
}

/// A cluster of several endpoints of one version, all ready.
pub fn several(endpoints: &[&Endpoint]) -> Cluster {
    let ready: Vec<_> = endpoints.iter().map(|e| (e.address(), EndpointState::Ready)).collect();
    let protocol = endpoints.first().map_or(Protocol::Http, |endpoint| endpoint.protocol());
    Cluster { protocol, ..cluster(&ready, true) }
}

pub fn with_policy(cluster: Cluster, policy: TrafficPolicy) -> Cluster {
    Cluster { policy: Some(Box::new(policy)), ..cluster }
}

/// Answers with its name.
pub fn named(version: Version, name: &'static str) -> Endpoint {
    Endpoint::new(version, move |_| answer(200, name))
}

/// Answers with what it got: its first line, its host, its fields, its body.
pub fn mirror(version: Version) -> Endpoint {
    Endpoint::new(version, |got: Got| {
        let fields = got.message.fields.iter();
        let fields: String =
            fields.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
        let body = String::from_utf8(got.message.content.bytes().to_vec()).unwrap();
        let text = format!("{} {}\nhost: {}\n{fields}\n{body}", got.method, got.target, got.host);
        answer(200, &text)
    })
}

pub fn answer(status: u16, body: &str) -> Answer {
    Answer { status, message: with_body(body) }
}

pub fn nothing() -> Message {
    Message::default()
}

pub fn with_body(body: &str) -> Message {
    Message::new(Content::Known(body.to_owned().into()))
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.message.content.bytes().to_vec()).unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.message.field(name)
    }
}

/// Calls `test` for clients and endpoints of both versions.
pub async fn all<F: Future<Output = ()>>(test: impl Fn(Version, Version) -> F) {
    for (client, endpoint) in ALL {
        test(client, endpoint).await;
    }
}
