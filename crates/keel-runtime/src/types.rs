//! What a runtime can be asked, and what it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use keel_model::{
    Exit, HeldPort, Hook, InstanceId, PortBinding, RevisionId, ServiceName, SharesWith, Spec,
    StackName, StartFailure, Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::once::Once;

/// Everything that is needed to start one attempt of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Its identity.
    pub id: InstanceId,
    /// Its stack.
    pub stack: StackName,
    /// Its service.
    pub service: ServiceName,
    /// Its revision.
    pub revision: RevisionId,
    /// Which attempt this is; told to the workload as `KEEL_ATTEMPT`.
    pub attempt: u32,
    /// What to run.
    pub spec: Spec,
    /// The platform's own variables (`CART_URL`, …), laid under the spec's environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Names that the instance can resolve without DNS, where the runtime can give it an `/etc/hosts` of its own.
    #[serde(default)]
    pub hosts: Vec<(IpAddr, String)>,
    /// The name server to ask first and the domains to search.
    #[serde(default)]
    pub nameserver: Option<(IpAddr, Vec<String>)>,
    /// Networks that its container is attached to, as its stack describes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<keel_model::Network>,
    /// Volumes that it mounts, as its stack describes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<keel_model::Volume>,
    /// Names that its container has on its networks, for those that ask nobody but the engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// An attempt that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Process id of the workload.
    pub pid: u32,
    /// Where it is expected to answer, in the order of the spec's ports.
    pub ports: Vec<PortBinding>,
    /// The address that it has for itself.
    pub address: Option<IpAddr>,
    /// What was asked for but is not enforced here, for people.
    pub not_enforced: Vec<String>,
    /// Whose namespaces it is in.
    pub shares: Vec<SharesWith>,
    /// When.
    pub started_at: Timestamp,
}

/// What a runtime knows of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which instance.
    pub id: InstanceId,
    /// The attempt that the rest speaks of.
    pub attempt: u32,
    /// Process id of the workload, while it runs. Without one and without an exit it has ended, and how is not known yet.
    pub pid: Option<u32>,
    /// Where it answers.
    pub ports: Vec<PortBinding>,
    /// The address that it has for itself.
    pub address: Option<IpAddr>,
    /// When this attempt was started.
    pub started_at: Timestamp,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
    /// What was asked for but is not enforced here, for people.
    pub not_enforced: Vec<String>,
    /// Whose namespaces it is in.
    pub shares: Vec<SharesWith>,
}

/// By what the calls of an instance are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They come from addresses that nobody else has.
    Addresses(Vec<IpAddr>),
    /// Its sockets belong to the (version 2) cgroup with this id.
    Cgroup(u64),
}

/// Whether this machine (and our rights on it) can do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Whether it can.
    pub available: bool,
    /// Why not, or how; for people.
    pub reason: String,
}

impl Capability {
    /// Can be done, in the way that `how` says.
    #[must_use]
    pub fn yes(how: impl Into<String>) -> Self {
        Self { available: true, reason: how.into() }
    }

    /// Can't be done, for the reason that `why` gives.
    #[must_use]
    pub fn no(why: impl Into<String>) -> Self {
        Self { available: false, reason: why.into() }
    }
}

/// What a runtime can do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// CPU, memory and pids limits hold.
    pub limits: Capability,
    /// An instance can have a network stack and address of its own.
    pub network: Capability,
    /// An instance can have mounts (volumes, secrets, configs at their targets) of its own.
    pub mounts: Capability,
    /// An instance resolves the names of [`Launch::hosts`] through the system resolver.
    pub names: Capability,
    /// An instance can run as another user than the platform.
    pub users: Capability,
}

/// Why an instance could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// The kind, for restart policy and status.
    pub failure: StartFailure,
    /// What happened, where, what to do; for people.
    pub message: String,
}

/// Why a request to a runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime knows no such instance.
    #[error("there is no instance {0} on this node")]
    NoSuchInstance(InstanceId),
    /// The instance does not run, and the request needs it to.
    #[error("instance {0} is not running; see `keel ps` and start it first")]
    NotRunning(InstanceId),
    /// A command did not end in time and was killed.
    #[error("the command did not end within {} ms and was killed", .0.as_millis())]
    TimedOut(Duration),
    /// A volume is in use or has a name that can't be a directory.
    #[error("volume {name}: {reason}")]
    Volume {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted, with its path or process.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody knows: the container engine is away or hangs.
    #[error("{0}")]
    Away(String),
    /// The instance's environment can't be made.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Error {
    /// The system refused `what`.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// A command to run inside an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; placeholders are expanded as in [`Spec::command`].
    pub command: Vec<String>,
    /// On top of the instance's environment.
    pub environment: BTreeMap<String, String>,
    /// Where, when not in the instance's directory.
    pub working_dir: Option<PathBuf>,
    /// As whom, when not as the instance's user.
    pub user: Option<String>,
    /// With all rights of the host (containers only).
    pub privileged: bool,
    /// After this it is killed; `None` is 30 s.
    pub timeout: Option<Duration>,
    /// How much output is kept (the last bytes); 0 is 4 KiB.
    pub max_output: usize,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The last bytes of its standard output and standard error, in the order they came.
    pub output: String,
}

/// A user as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Its name, or its number as text.
    pub name: String,
    /// Its home directory.
    pub home: PathBuf,
    /// Whether becoming this user needs a change of ids.
    pub switch: bool,
}

/// Which namespaces an instance has for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// User ids.
    pub user: bool,
    /// Mounts.
    pub mount: bool,
    /// Network.
    pub network: bool,
}

/// How to run a command inside an instance from another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecSpec {
    /// A host process: see [`crate::exec_into`].
    Process(Box<ProcessExec>),
    /// A container: by its engine.
    Container(ContainerExec),
}

/// How to run a command inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExec {
    /// Which instance, for messages.
    pub instance: InstanceId,
    /// The engine's id of the container.
    pub container: String,
    /// Where the engine is: `unix:///…` or `tcp://host:port`.
    pub engine: String,
    /// Directory of the certificates for it.
    pub tls: Option<PathBuf>,
}

/// How to run a command inside a host process's surroundings; see [`crate::exec_into`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExec {
    /// Which instance, for messages.
    pub instance: InstanceId,
    /// Its main process.
    pub pid: u32,
    /// When that process began, in clock ticks after boot; tells it from a later one with the same id.
    pub start_ticks: u64,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Where it was started.
    pub working_dir: PathBuf,
    /// As whom; see [`ProcessExec::become_user`].
    pub user: Identity,
    /// Groups that its service adds to those of whatever user (`group_add`).
    #[serde(default)]
    pub groups: Vec<String>,
    /// Which namespaces to enter.
    pub namespaces: Namespaces,
    /// The `cgroup.procs` files to join.
    pub cgroups: Vec<PathBuf>,
    /// The program that holds the shim (`argv[1]` = `shim`).
    pub shim_program: PathBuf,
}

/// Which lines of an instance's output are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// Not younger than this.
    pub until: Option<Timestamp>,
    /// Only this many of the last lines that there are already.
    pub tail: Option<usize>,
    /// Go on with new lines until the receiver is dropped or the instance is removed.
    pub follow: bool,
}

/// Where a line was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read from the workload.
    pub at: Timestamp,
    /// Where it was written.
    pub stream: LogStream,
    /// Without its newline; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// The line goes on with the next one of this stream (it is longer than 16 KiB).
    pub partial: bool,
}

/// What an instance uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Memory in bytes, without what the kernel holds of files and would give up.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received and sent over the network since its start, where it has one of its own.
    #[serde(default)]
    pub network: Option<Transfer>,
    /// Bytes read from and written to disks since its start, where they are counted.
    #[serde(default)]
    pub block: Option<Transfer>,
}

/// Bytes that went in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Received, or read.
    pub inward: u64,
    /// Sent, or written.
    pub outward: u64,
}

impl std::iter::Sum for Transfer {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            inward: sum.inward.saturating_add(one.inward),
            outward: sum.outward.saturating_add(one.outward),
        })
    }
}

/// A named volume that exists on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The kept name.
    pub name: String,
    /// Where its files are.
    pub path: PathBuf,
    /// The stack that it was made for, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackName>,
}

/// Starts, watches, stops and describes instances on one machine.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// What can be done here, and why the rest can't.
    fn capabilities(&self) -> Capabilities;

    /// Starts an attempt. Replaces an earlier, ended attempt of the same instance: keeps its ports and logs.
    /// Does nothing when this very attempt runs already.
    ///
    /// # Errors
    /// When it can't be started; nothing of it is left running then.
    async fn start(&self, launch: Launch) -> Result<Started, StartError>;

    /// Sends `signal` to the main process, waits for at most `grace`, then kills everything that the instance
    /// started. Returns the recorded exit, also when it ended long ago.
    ///
    /// # Errors
    /// When there is no such instance or its end can't be brought about.
    async fn stop(&self, id: &InstanceId, signal: i32, grace: Duration) -> Result<Exit, Error>;

    /// Sends `signal` to the main process.
    ///
    /// # Errors
    /// When it does not run or the signal does not exist.
    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error>;

    /// Looks at everything that is there, adopts what an earlier server started, and finds what ended meanwhile.
    /// Restarts nothing.
    ///
    /// # Errors
    /// When the state can't be read at all; a single unreadable instance is reported as ended instead.
    async fn list(&self) -> Result<Vec<Seen>, Error>;

    /// What is known of one instance, without looking.
    fn seen(&self, id: &InstanceId) -> Option<Seen>;

    /// By what the calls of a running instance can be told from those of others; `None` where they can't.
    fn origin(&self, _id: &InstanceId) -> Option<Origin> {
        None
    }

    /// Fires within a few milliseconds whenever any instance started or ended. Carries no data.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Forgets an instance with its files, anonymous volumes, cgroup, network and ports. Kills it if it runs.
    ///
    /// # Errors
    /// When something can't be taken away. Removing what is not there succeeds.
    async fn remove(&self, id: &InstanceId) -> Result<(), Error>;

    /// Runs a command inside a running instance: in its namespaces, cgroup, environment.
    ///
    /// # Errors
    /// When the instance does not run, or the command can't be run or does not end in time.
    async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<ExecOutput, Error>;

    /// Runs a `pre_start` step before any process of the instance exists, with the same environment and mounts,
    /// in the host's network.
    ///
    /// # Errors
    /// When it can't be run or does not end within `timeout`.
    async fn run_hook(
        &self,
        launch: &Launch,
        hook: &Hook,
        timeout: Duration,
    ) -> Result<ExecOutput, Error>;

    /// What another process needs to run a command inside the instance with its own terminal.
    ///
    /// # Errors
    /// When the instance does not run.
    async fn exec_spec(&self, id: &InstanceId) -> Result<ExecSpec, Error>;

    /// The instance's output. The channel is bounded: a slow reader slows only itself.
    ///
    /// # Errors
    /// When there is no such instance.
    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Error>;

    /// What the instance uses now.
    ///
    /// # Errors
    /// When it does not run.
    async fn resources(&self, id: &InstanceId) -> Result<Resources, Error>;

    /// The named volumes on this node.
    ///
    /// # Errors
    /// When they can't be listed.
    async fn volumes(&self) -> Result<Vec<VolumeInfo>, Error>;

    /// Deletes a named volume with its data. Deleting what is not there succeeds.
    ///
    /// # Errors
    /// When an instance uses it or it can't be deleted.
    async fn remove_volume(&self, name: &str) -> Result<(), Error>;

    /// Takes over a container that something else has started as the attempt of `launch`, without touching what runs in
    /// it. `None` when there is no such container. Doing it again changes nothing.
    ///
    /// # Errors
    /// When it can't be; the container is as it was then.
    async fn adopt(
        &self,
        _launch: Launch,
        _container: &str,
    ) -> Result<Option<Started>, StartError> {
        Ok(None)
    }

    /// The ports of the host that the engine holds for an instance which is still the container that was taken over,
    /// whether or not it runs; `None` for every other.
    fn adopted(&self, _id: &InstanceId) -> Option<Vec<HeldPort>> {
        None
    }

    /// Has an instance that was taken over resolve these names, in the place of those that it was told before. Does
    /// nothing (`false`) where it could not reach the addresses.
    ///
    /// # Errors
    /// When it does not run, or can't be told.
    async fn tell_hosts(
        &self,
        _id: &InstanceId,
        _hosts: &[(IpAddr, String)],
    ) -> Result<bool, Error> {
        Ok(false)
    }

    /// Makes a container for a command that runs once beside the instances, and does not start it.
    ///
    /// # Errors
    /// When it can't be made, or this runtime has no containers; nothing is left of it then.
    async fn make_once(&self, once: Once) -> Result<ExecSpec, StartError> {
        Err(StartError {
            failure: StartFailure::Environment,
            message: format!("{} can't be made: there are no containers here", once.launch.id),
        })
    }

    /// Takes away one that was made so, or all of a stack, with what only they had. One that is not there is no error.
    ///
    /// # Errors
    /// When something can't be taken away.
    async fn remove_once(&self, _stack: &StackName, _id: Option<&InstanceId>) -> Result<(), Error> {
        Ok(())
    }
}
