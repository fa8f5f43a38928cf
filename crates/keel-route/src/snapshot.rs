//! What the control plane tells the data plane, and what it hears back.
//!
//! The proxy listens on a Unix socket; the server connects and sends [`ToProxy`] frames, the proxy answers with
//! [`FromProxy`] frames. A frame is a 4-byte big-endian length followed by that many bytes of JSON, at most
//! [`MAX_FRAME`]. The first frame on a connection is always a full [`Snapshot`]; updates of single clusters, of their
//! endpoints and of the callers may follow, each with a higher generation. The proxy keeps the last state when the connection ends, and writes
//! it to a file so that a restarted proxy serves at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use keel_model::{
    ClientAuth, Endpoint, Filters, Generation, InstanceId, Protocol, RouteKind, Rule, TlsVersion,
    TrafficPolicy,
};
use serde::{Deserialize, Serialize};

use crate::access_log::AccessLog;
use crate::histogram::Histogram;

/// Largest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// The instances behind one port of one service, in the form `stack/service:port`.
pub type ClusterId = String;
/// A set of routes that one or more listeners share; the bind address of its entrypoint.
pub type TableId = String;

/// Everything that the data plane needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Rises with every change; acknowledged by the proxy once every worker uses it.
    pub generation: Generation,
    /// The sockets to listen on.
    pub listeners: Vec<Listener>,
    /// Where traffic goes.
    pub clusters: BTreeMap<ClusterId, Cluster>,
    /// Routes of the entrypoints.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<TableId, RouteTable>,
    /// Certificates for TLS that ends here. Shared, as many snapshots follow each other with the same ones: two that are
    /// one are equal without being looked at.
    #[serde(default, skip_serializing_if = "no_certificates")]
    pub certificates: Arc<Vec<Certificate>>,
    /// Proofs that certificate authorities ask for.
    #[serde(default, skip_serializing_if = "Challenges::is_empty")]
    pub challenges: Challenges,
    /// Who calls from an address of its own, as `stack/service`; others call from outside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub callers: BTreeMap<std::net::IpAddr, String>,
    /// Who calls from the host's addresses, as `stack/service`, by the id of the cgroup (version 2) that a process opens
    /// its sockets in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub caller_cgroups: BTreeMap<u64, String>,
    /// The access log that is wanted; without one, that of the proxy's own options, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// The zone of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

fn no_certificates(certificates: &Arc<Vec<Certificate>>) -> bool {
    certificates.is_empty()
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            bind: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
            protocol: Protocol::Auto,
            cluster: ClusterId::new(),
            published: false,
            table: None,
            tls: None,
            accept_proxy_from: Vec::new(),
            refuses: BTreeSet::new(),
        }
    }
}

/// One socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where.
    pub bind: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where its traffic goes; with a table, where traffic goes that no route wants (nowhere if empty).
    pub cluster: ClusterId,
    /// Opened for clients outside (`ports:`) rather than at a virtual address.
    pub published: bool,
    /// Chooses by route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableId>,
    /// TLS ends here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Connections from these networks may begin with a PROXY protocol header; what they say by `X-Forwarded-*` is
    /// believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_proxy_from: Vec<IpNet>,
    /// Callers, as `stack/service`, that are not served here: they share no network with the service.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refuses: BTreeSet<String>,
}

/// How TLS is spoken at a listener. Certificates are chosen by server name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerTls {
    /// The oldest version.
    pub min: TlsVersion,
    /// Certificates of clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,
}

/// The routes of an entrypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// In any order; the one with the highest priority that matches is taken, the first by name among equals.
    pub routes: Vec<RouteEntry>,
    /// Requests that no route wants go to this scheme and port instead of 404 (308).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_https: Option<u16>,
}

/// One route, with its services resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// `stack/route`.
    pub name: String,
    /// Which requests.
    pub rule: Rule,
    /// The highest wins.
    pub priority: i64,
    /// Requests or connections.
    #[serde(default)]
    pub kind: RouteKind,
    /// Where they go, with weights; never empty.
    pub clusters: Vec<(ClusterId, u32)>,
    /// What is done to them.
    #[serde(default)]
    pub filters: Filters,
    /// The whole answer must have come by then, in milliseconds; overrides the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A certificate chain and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Names that it is shown for, exact or `*.example.com`; those in the certificate when empty.
    #[serde(default)]
    pub names: Vec<String>,
    /// PEM: the chain, leaf first.
    pub chain: String,
    /// PEM: the private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: String,
}

impl std::fmt::Debug for Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Proofs that certificate authorities ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Challenges {
    /// Token → key authorization (RFC 8555, 8.3), answered on every plain listener with a table.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub http: BTreeMap<String, String>,
    /// Certificates shown to handshakes that offer `acme-tls/1` (RFC 8737).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_alpn: Vec<Certificate>,
}

impl Challenges {
    /// Nothing is to be proved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.tls_alpn.is_empty()
    }
}

/// The endpoints of one port of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// In order of instance.
    pub endpoints: Vec<Endpoint>,
    /// With no ready endpoint, requests are held for a while because one is expected soon; otherwise they
    /// are refused at once.
    pub expected: bool,
    /// What the endpoints speak, where that is declared.
    #[serde(default, skip_serializing_if = "is_auto")]
    pub protocol: Protocol,
    /// How traffic is treated; `None` is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Box<TrafficPolicy>>,
    /// Zones of the endpoints that are in one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<InstanceId, String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The form that serde wants.
fn is_auto(protocol: &Protocol) -> bool {
    *protocol == Protocol::Auto
}

/// Server → proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToProxy {
    /// Replaces everything.
    Snapshot(Snapshot),
    /// Replaces one cluster.
    Cluster {
        /// The generation after this change.
        generation: Generation,
        /// Which cluster.
        id: ClusterId,
        /// Its new state.
        cluster: Cluster,
    },
    /// Replaces some endpoints of a cluster, whose endpoints are in order; see [`crate::part`].
    Endpoints {
        /// The generation after this change.
        generation: Generation,
        /// Which cluster.
        id: ClusterId,
        /// Those that are new or have changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        set: Vec<Endpoint>,
        /// Those that are not there any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<InstanceId>,
    },
    /// Replaces what callers are known by: instances come and go more often than anything else does.
    Callers {
        /// The generation after this change.
        generation: Generation,
        /// See [`Snapshot::callers`].
        callers: BTreeMap<std::net::IpAddr, String>,
        /// See [`Snapshot::caller_cgroups`].
        caller_cgroups: BTreeMap<u64, String>,
    },
    /// Asks for [`FromProxy::Stats`].
    Stats,
    /// A new proxy asks the running one for its place: [`FromProxy::Place`] is the answer, the listening sockets
    /// follow it. Until [`ToProxy::Retire`] nothing changes; if the connection ends before, nothing has happened.
    TakeOver,
    /// The new proxy accepts connections: accept no more, and end when the open ones have.
    Retire,
    /// The one that keeps the proxy running asks, on a connection of its own, for copies of the listening sockets:
    /// [`FromProxy::Place`] without a state is the answer, the sockets follow it.
    Lend {
        /// At most so many; if there are more, one of each address.
        most: usize,
    },
}

/// Proxy → server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromProxy {
    /// First frame on each connection.
    Hello {
        /// Process id of the proxy.
        pid: u32,
        /// Its version.
        version: String,
    },
    /// Every worker uses this generation (and every listener of it that could be opened is open).
    Ack {
        /// The generation.
        generation: Generation,
        /// Listeners that could not be opened, with the reason.
        failed: Vec<ListenerFailure>,
        /// What is wanted and not done: all of it, or nothing where that is what was said last on this connection. Our own
        /// proxy lacks nothing, and never says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lacks: Option<Vec<Lacking>>,
    },
    /// Requests (and TCP connections) still in flight at a draining endpoint. Sent after the `Ack` of each change of one
    /// of its clusters and of a whole snapshot, whenever the number reaches zero, and at least every 500 ms while it is
    /// not zero.
    InFlight {
        /// The generation in force when it was counted.
        generation: Generation,
        /// Which instance (summed over its clusters).
        instance: InstanceId,
        /// How many.
        count: u64,
    },
    /// An endpoint refused a connection; the server should look at it now.
    Refused {
        /// Which instance.
        instance: InstanceId,
    },
    /// Counters since the proxy started.
    Stats(Stats),
    /// The place of the proxy, for its successor or to be kept for one.
    Place {
        /// The state in force.
        snapshot: Box<Snapshot>,
        /// How many sockets of each address follow, as ancillary data of one-byte messages.
        sockets: Vec<(SocketAddr, usize)>,
    },
    /// It accepts no more and has given the control socket up.
    Retired,
}

/// A listener that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerFailure {
    /// Where it should have listened.
    pub bind: SocketAddr,
    /// The system's reason.
    pub reason: String,
}

/// Something that is wanted and that the engine in the place of our own proxy does not do, or does differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// `haproxy` or `nginx`.
    pub engine: String,
    /// What is lacking, in a few words.
    pub what: String,
    /// Why, and what happens instead.
    pub why: String,
    /// Where it is wanted: `route stack/route`, `cluster stack/service:port`, `listener address`, each with details after
    /// a comma or a space; or in other words.
    pub places: Vec<String>,
}

impl Lacking {
    /// The first `most` of its places, and how many more there are.
    #[must_use]
    pub fn named(&self, most: usize) -> String {
        let mut named = self.places.iter().take(most).cloned().collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = self.places.len().checked_sub(most) {
            named.push_str(&format!("; {more} more"));
        }
        named
    }
}

/// Counters since the proxy started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Per cluster.
    pub clusters: BTreeMap<ClusterId, ClusterStats>,
    /// Per route, caller and cluster.
    #[serde(default)]
    pub edges: Vec<EdgeStats>,
    /// Of the process.
    #[serde(default)]
    pub proxy: ProxyStats,
    /// What happened since the last such answer.
    #[serde(default, skip_serializing_if = "Notices::is_empty")]
    pub notices: Notices,
}

/// What people are to be told of endpoints. Each thing is told once; who asks too seldom, or loses an answer, misses some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notices {
    /// The first ones, in order.
    pub endpoints: Vec<EndpointNotice>,
    /// How many more there were.
    pub lost: u64,
    /// What happened to the engine in the proxy's place, for people.
    pub engine: Vec<String>,
    /// Who was refused; each pair once in a while.
    pub refused: Vec<Refused>,
}

/// A caller was refused, as it shares no network with the service that it called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Who, as `stack/service`.
    pub caller: String,
    /// What was called.
    pub cluster: ClusterId,
}

impl Notices {
    /// Nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An endpoint is left out, or let in again, for what the proxy has seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointNotice {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Which instance.
    pub instance: InstanceId,
    /// It is left out; else it is let in again.
    pub is_out: bool,
    /// Why, for people.
    pub reason: String,
    /// For how many milliseconds at most; absent where it is left out until something happens.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// How many milliseconds ago that was.
    pub ago_ms: u64,
    /// It is neither: no TLS handshake with it succeeds.
    #[serde(default)]
    pub no_tls: bool,
}

/// What a proxy counts that belongs to no cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyStats {
    /// Connections of clients that are open now.
    pub connections: u64,
    /// Lines of the access log that were written.
    pub log_lines: u64,
    /// Lines that were not: the file could not be written, or not fast enough.
    pub log_dropped: u64,
}

/// Counters of the traffic from one caller over one route to one cluster, since the proxy started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStats {
    /// The route's name; empty for traffic at a virtual address or a published port.
    #[serde(default)]
    pub route: String,
    /// `stack/service` of the caller; empty for callers outside.
    #[serde(default)]
    pub caller: String,
    /// Where it went; empty if the proxy answered by itself.
    #[serde(default)]
    pub cluster: ClusterId,
    /// Answers by status (0: none could be sent, or an opaque connection).
    pub statuses: BTreeMap<u16, u64>,
    /// Of these, calls of gRPC by their status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grpc_statuses: BTreeMap<u16, u64>,
    /// Tries beyond the first.
    pub retries: u64,
    /// Bytes of bodies from callers.
    pub bytes_in: u64,
    /// Bytes of bodies to callers.
    pub bytes_out: u64,
    /// Microseconds to the end of the answer; of a request that is upgraded, to its answer.
    pub latency: Histogram,
}

/// Counters of one cluster since the proxy started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStats {
    /// Requests (TCP: connections) begun.
    pub requests: u64,
    /// Of these, failed by the platform or without an answer: 502, 503, 504 of our own, resets.
    pub failed: u64,
    /// Of these, answered by the service with a status of 500 or more.
    pub server_errors: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Requests that waited because no endpoint was ready.
    pub held: u64,
    /// In flight now.
    pub in_flight: u64,
    /// Sum of the time to the end of the answer, in microseconds.
    pub total_us: u64,
    /// Its endpoints by what they are good for.
    #[serde(default)]
    pub endpoints: EndpointCounts,
}

/// Endpoints of one cluster by what they are good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointCounts {
    /// Take new requests.
    pub ready: u64,
    /// Would, but are left out for a while because they failed.
    pub ejected: u64,
    /// Finish what they have.
    pub draining: u64,
}
