//! One running copy of a revision: what the leader wants of it, and what its node reports.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{Generation, InstanceId, NodeName, RevisionId, ServiceName, StackName, Timestamp};

/// What the leader wants of an instance. Only ever moves towards the end of the list, except that a stopped
/// instance of a stopped service runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Run, and be sent traffic when ready.
    Run,
    /// Run, but receive no new requests; in-flight ones end.
    Drain,
    /// Be stopped (signal, grace, kill) and stay visible.
    Stop,
    /// Be stopped if need be, and forgotten with all its files.
    Remove,
}

impl Goal {
    /// What an assignment that names no goal after its drain means.
    fn remove() -> Self {
        Self::Remove
    }
}

/// The leader's word on one instance. Stored; fenced by its generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its identity.
    pub id: InstanceId,
    /// Its stack.
    pub stack: StackName,
    /// Its service.
    pub service: ServiceName,
    /// What it was started with.
    pub revision: RevisionId,
    /// Where.
    pub node: NodeName,
    /// Bumped with every change; a node refuses an older one.
    pub generation: Generation,
    /// How often it was started; a higher number than the node has seen means: start (again).
    pub attempt: u32,
    /// Restarts in a row that failed soon; drives the backoff and is reset after a quiet time.
    pub failures: u32,
    /// The [`crate::Rollout::epoch`] that it was created or restarted under.
    pub restarts: u64,
    /// What is wanted.
    pub goal: Goal,
    /// Why the goal is what it is, for people.
    pub reason: String,
    /// When it was assigned.
    pub created_at: Timestamp,
    /// When the goal last changed, or with [`Goal::Run`] when it was last told to start; timeouts count from here.
    pub goal_since: Timestamp,
    /// With [`Goal::Drain`]: the goal that follows once it is drained ([`Goal::Run`] means: start it again).
    #[serde(default = "Goal::remove")]
    pub after_drain: Goal,
    /// The container that it begins with, in the place of one that is made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<Box<Adoption>>,
}

/// A container that something else has started, and that becomes an instance as it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The engine's id of it.
    pub container: String,
    /// Since when it had been running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Ports of the host that the engine holds for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<HeldPort>,
    /// Ports that it listens at and that its service does not name: who calls it there must not be led to the service's
    /// virtual address, where nobody listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undeclared: Vec<u16>,
}

/// A TCP port of the host that a container engine leads to one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldPort {
    /// The host address; unspecified for all of its family.
    pub ip: IpAddr,
    /// The host port.
    pub port: u16,
    /// The port in the container.
    pub target: u16,
}

/// Where in its life an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Files, volumes, cgroup and `pre_start` steps are being prepared.
    Preparing,
    /// The process runs.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It ended.
    Exited,
    /// It could not be started at all.
    Failed,
}

/// What the health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// There is no health check.
    None,
    /// Not yet known.
    Starting,
    /// Passed.
    Healthy,
    /// Failed `retries` times in a row.
    Unhealthy,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; `None` when a signal ended it or nobody knows.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed it for want of memory.
    pub oom: bool,
    /// When.
    pub at: Timestamp,
}

impl Exit {
    /// Ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.oom
    }
}

/// Why an instance could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailure {
    /// The program does not exist.
    NotFound,
    /// The program may not be executed.
    NotExecutable,
    /// A `pre_start` step failed.
    Hook,
    /// The disk is full, a file is missing, rights are lacking, …
    Environment,
    /// The container engine is away: it is tried again when that is back.
    Away,
}

/// An address under which an instance answers for one target port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// The port that the program was written for.
    pub target: u16,
    /// Where it really listens.
    pub address: SocketAddr,
}

/// An attempt of another instance in whose namespaces a container runs; they end with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharesWith {
    /// The service of the other.
    pub service: ServiceName,
    /// The other.
    pub id: InstanceId,
    /// Its attempt.
    pub attempt: u32,
}

/// What the node reports of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Which instance.
    pub id: InstanceId,
    /// The generation that the node acted on last.
    pub generation: Generation,
    /// The attempt that the rest speaks of.
    pub attempt: u32,
    /// Where in its life it is.
    pub phase: Phase,
    /// Process id of the workload, while it runs.
    pub pid: Option<u32>,
    /// Where it answers.
    pub ports: Vec<PortBinding>,
    /// The address that it has for itself (`network: isolated`); its calls come from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Whether it can take requests.
    pub ready: bool,
    /// Since when `ready` has its value; absent until this attempt has been ready once.
    pub ready_since: Option<Timestamp>,
    /// What the health check says.
    pub health: Health,
    /// When this attempt was started.
    pub started_at: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why it could not be started.
    pub failure: Option<StartFailure>,
    /// The last thing worth telling a person (error text, last health output); at most 4 KiB.
    pub message: String,
    /// What is asked for but not enforced here (limits without rights, …).
    #[serde(default)]
    pub not_enforced: Vec<String>,
    /// Whose namespaces it is in (`network_mode`, `ipc` and `pid` of another service).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<SharesWith>,
}
