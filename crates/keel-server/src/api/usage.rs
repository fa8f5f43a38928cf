//! What goes over the wire about what a stack uses: volumes, CPU, memory.

use std::path::PathBuf;

use keel_model::{InstanceId, ServiceName};
pub use keel_runtime::Transfer;
use serde::{Deserialize, Serialize};

/// One line of `GET /v1/stacks/{stack}/volumes`: a volume that exists, or an external one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Its key in the file.
    pub key: String,
    /// The name under which its data is kept.
    pub name: String,
    /// Who keeps it: `local`, or a driver of the engine.
    pub driver: String,
    /// Where its files are; absent when the platform does not keep it.
    pub path: Option<PathBuf>,
    /// It was there before the stack and outlives it.
    pub external: bool,
    /// The services that mount it.
    pub used_by: Vec<ServiceName>,
}

/// One line of `GET /v1/stacks/{stack}/stats`: what a running instance has used so far and uses now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageView {
    /// Which instance.
    pub instance: InstanceId,
    /// Of which service.
    pub service: ServiceName,
    /// When it was measured, in microseconds on a clock that tells only differences.
    pub at_usec: u64,
    /// CPU time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The most memory that it may use, in bytes: its limit, or all that the machine has.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received and sent since its start, where it has a network of its own.
    #[serde(default)]
    pub network: Option<Transfer>,
    /// Bytes read from and written to disks since its start, where they are counted.
    #[serde(default)]
    pub block: Option<Transfer>,
}
