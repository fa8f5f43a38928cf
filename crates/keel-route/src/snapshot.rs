//! What the control plane tells the data plane, and what it hears back.
//!
//! The proxy listens on a Unix socket; the server connects and sends [`ToProxy`] frames, the proxy answers with
//! [`FromProxy`] frames. A frame is a 4-byte big-endian length followed by that many bytes of JSON, at most
//! [`MAX_FRAME`]. The first frame on a connection is always a full [`Snapshot`]; updates of single clusters may
//! follow, each with a higher generation. The proxy keeps the last state when the connection ends, and writes
//! it to a file so that a restarted proxy serves at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keel_model::{Endpoint, Generation, InstanceId, Protocol};
use serde::{Deserialize, Serialize};

/// Largest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// The instances behind one port of one service, in the form `stack/service:port`.
pub type ClusterId = String;

/// Everything that the data plane needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Rises with every change; acknowledged by the proxy once every worker uses it.
    pub generation: Generation,
    /// The sockets to listen on.
    pub listeners: Vec<Listener>,
    /// Where traffic goes.
    pub clusters: BTreeMap<ClusterId, Cluster>,
}

/// One socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where.
    pub bind: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where its traffic goes.
    pub cluster: ClusterId,
    /// Opened for clients outside (`ports:`) rather than at a virtual address.
    pub published: bool,
}

/// The endpoints of one port of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// In order of instance.
    pub endpoints: Vec<Endpoint>,
    /// With no ready endpoint, requests are held for a while because one is expected soon; otherwise they
    /// are refused at once.
    pub expected: bool,
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
    /// Asks for [`FromProxy::Stats`].
    Stats,
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
    },
    /// Requests (and TCP connections) still in flight at a draining endpoint. Sent after the `Ack` that made it
    /// draining, whenever the number reaches zero, and at least every 500 ms while it is not zero.
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
}

/// A listener that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerFailure {
    /// Where it should have listened.
    pub bind: SocketAddr,
    /// The system's reason.
    pub reason: String,
}

/// Counters since the proxy started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Per cluster.
    pub clusters: BTreeMap<ClusterId, ClusterStats>,
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
}
