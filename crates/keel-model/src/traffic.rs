//! Where traffic may go.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::InstanceId;

/// Whether an endpoint takes new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Takes requests.
    Ready,
    /// Ends what it has and takes no more.
    Draining,
}

/// Address of an instance, with its readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which instance answers there.
    pub instance: InstanceId,
    /// Where.
    pub address: SocketAddr,
    /// Whether it takes new requests.
    pub state: EndpointState,
}
