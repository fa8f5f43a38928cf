//! A command that runs once beside the instances of a service.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::Launch;

/// What is needed to make it. Nobody watches it, nothing leads requests to it, and nothing starts it again.
#[derive(Clone, Debug)]
pub struct Once {
    /// As for an instance. Its id is by which it is removed again.
    pub launch: Launch,
    /// Name of the container, when it is not the id.
    pub name: Option<String>,
    /// Ports that the engine opens on the host.
    pub publish: Vec<OncePort>,
    /// The engine takes it away when it ends.
    pub auto_remove: bool,
}

/// A port of the host that leads to such a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OncePort {
    /// Address of the host.
    pub ip: IpAddr,
    /// Port of the host; one that is free when absent.
    pub published: Option<u16>,
    /// Port of the container.
    pub target: u16,
    /// UDP instead of TCP.
    #[serde(default)]
    pub udp: bool,
}
