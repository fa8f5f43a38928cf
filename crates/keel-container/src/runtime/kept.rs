//! What is kept of an instance for as long as it exists.
//!
//! The engine knows what a container does; which attempt of which instance that was, only this record says. It is
//! written before the engine is asked for anything, so that whoever finds the two after a crash can tell how far it came.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use keel_model::{Content, Exit, HeldPort, InstanceId, PortBinding, SharesWith, Timestamp};
use keel_runtime::{ForeignProcess, Launch, Seen, stamp};
use serde::{Deserialize, Serialize};

/// Name of the record's file in the directory of an instance.
pub(super) const FILE: &str = "container.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Of the newest attempt, without the content of secrets and configs.
    pub launch: Launch,
    /// The engine's id of the container.
    pub container: String,
    /// When the engine had started it last before the newest attempt; tells whether that attempt was begun.
    pub before: String,
    /// Its main process, where the engine runs on this machine.
    pub process: Option<ForeignProcess>,
    /// The same as the engine numbers it.
    pub pid: u32,
    pub ports: Vec<PortBinding>,
    pub address: Option<IpAddr>,
    /// All addresses that it has: on each network one.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    pub started_at: Timestamp,
    pub exit: Option<Exit>,
    /// Volumes that it has without the file naming them, by target.
    #[serde(default)]
    pub unnamed: BTreeMap<PathBuf, String>,
    pub not_enforced: Vec<String>,
    /// Whose namespaces it is in.
    #[serde(default)]
    pub shares: Vec<SharesWith>,
    /// It is the container that was taken over, with the ports of the host that the engine holds for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Vec<HeldPort>>,
}

impl Kept {
    /// Of an attempt that begins now, before anything is known of it.
    pub(super) fn begins(launch: &Launch, container: String, before: String) -> Self {
        Self {
            launch: without_content(launch),
            container,
            before,
            process: None,
            pid: 0,
            ports: Vec::new(),
            address: None,
            addresses: Vec::new(),
            started_at: stamp::now(),
            exit: None,
            unnamed: BTreeMap::new(),
            not_enforced: Vec::new(),
            shares: Vec::new(),
            adopted: None,
        }
    }

    pub(super) fn seen(&self, id: &InstanceId) -> Seen {
        Seen {
            id: id.clone(),
            attempt: self.launch.attempt,
            pid: self.exit.is_none().then_some(self.pid),
            ports: self.ports.clone(),
            address: self.address,
            started_at: self.started_at,
            exit: self.exit.clone(),
            not_enforced: self.not_enforced.clone(),
            shares: self.shares.clone(),
        }
    }
}

/// A launch as it is kept: secrets are not in it.
fn without_content(launch: &Launch) -> Launch {
    let mut launch = launch.clone();
    for file in &mut launch.spec.files {
        file.content = Content::new(Vec::new());
    }
    launch
}
