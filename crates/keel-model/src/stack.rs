//! What a user wants: a stack of services.
//!
//! A [`Service`] has two halves. Its [`Spec`] is everything that a running instance was started with: change it
//! and every instance must be replaced, so its content hash names the revision. The rest (scale, policies,
//! published ports) can change under running instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Acme, ContainerNetwork, ContainerSpec, Content, Entrypoint, EntrypointName, HealthCheck,
    Network, Readiness, RevisionId, Route, ServiceName, StackName, TrafficPolicy,
};

/// One Compose project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// The project name.
    pub name: StackName,
    /// Directory of the first Compose file; where relative paths began.
    pub directory: PathBuf,
    /// The active services.
    pub services: BTreeMap<ServiceName, Service>,
    /// Named volumes by the key that services use.
    pub volumes: BTreeMap<String, Volume>,
    /// Networks of containers by the key that services use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, Network>,
    /// Addresses at which its routes are served (top-level `x-keel.entrypoints`, and the default ones in use).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entrypoints: BTreeMap<EntrypointName, Entrypoint>,
    /// Who issues certificates for routes that want them (top-level `x-keel.acme`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
}

/// A named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The name under which the data is kept (`<stack>_<key>` unless the file names it).
    pub name: String,
    /// Not created and never removed by this stack.
    pub external: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The engine's driver for it, when a container uses it; `local` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Options of that driver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_opts: BTreeMap<String, String>,
}

/// One Compose service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What each instance is started with.
    pub spec: Spec,
    /// How many instances.
    pub scale: Scale,
    /// Ports that clients inside reach at the service's virtual address.
    pub ports: Vec<ServicePort>,
    /// Ports that the load balancer opens on the host.
    pub publish: Vec<PublishedPort>,
    /// Further DNS names (`container_name`, network aliases).
    pub aliases: BTreeSet<String>,
    /// What must be true of other services before an instance starts.
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// What happens when an instance ends.
    pub restart: RestartPolicy,
    /// How instances are moved to a new revision.
    pub rollout: RolloutPolicy,
    /// How a change is taken back; `None` means as `rollout`.
    pub rollback: Option<RolloutPolicy>,
    /// How an instance is ended.
    pub stop: StopPolicy,
    /// When an instance receives traffic.
    pub readiness: Readiness,
    /// `deploy.labels`: about the service, not the instances.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Which requests from outside lead here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// How the load balancer treats its traffic.
    #[serde(default)]
    pub traffic: TrafficPolicy,
    /// What its image runs unless it is told otherwise. It is the image's, so that it is no part of a revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_command: Option<ImageCommand>,
}

/// What an image runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageCommand {
    /// What comes first.
    pub entrypoint: Vec<String>,
    /// The arguments of that, or the command.
    pub command: Vec<String>,
}

/// Everything that an instance was started with. Its hash is the revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Which runtime starts it.
    pub runtime: RuntimeKind,
    /// The image, for containers.
    pub image: Option<String>,
    /// What concerns containers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<ContainerSpec>>,
    /// Program and arguments; for a container those after its entrypoint, and the image's when empty. May contain `${PORT}`, `${PORT_<target>}` and `${KEEL_INSTANCE}`, expanded per instance.
    pub command: Vec<String>,
    /// Environment; values may contain the same placeholders.
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub working_dir: Option<PathBuf>,
    /// `user`, `user:group`, or numbers.
    pub user: Option<String>,
    /// Supplementary groups (`group_add`).
    #[serde(default)]
    pub groups: Vec<String>,
    /// Volumes, binds and tmpfs.
    pub mounts: Vec<Mount>,
    /// Secrets and configs.
    pub files: Vec<FileMount>,
    /// Resource limits.
    pub limits: Limits,
    /// The health check.
    pub health: Option<HealthCheck>,
    /// Own or shared network stack.
    pub network: NetworkMode,
    /// Extra `/etc/hosts` entries (`extra_hosts`).
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<String>>,
    /// Reap orphaned children (`init`).
    pub init: bool,
    /// Steps that run to completion before the first instance of a revision starts.
    pub pre_start: Vec<Hook>,
    /// Run in each instance after it started.
    pub post_start: Vec<Hook>,
    /// Run in each instance before it is asked to stop.
    pub pre_stop: Vec<Hook>,
    /// How its output is kept.
    pub logs: LogPolicy,
    /// Give it a terminal (`tty`).
    #[serde(default)]
    pub tty: bool,
    /// Keep standard input open (`stdin_open`).
    #[serde(default)]
    pub stdin_open: bool,
    /// Labels of the instance.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Target ports in order; the first is `PORT`. Part of the spec because they reach the environment.
    pub ports: Vec<u16>,
}

/// Which runtime starts an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// A host process under a shim.
    Process,
    /// A container of an engine.
    Container,
}

/// Own or shared network stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The host's stack; each instance gets ports of its own.
    #[default]
    Shared,
    /// A network namespace and address of its own; ports are the target ports.
    Isolated,
}

/// How many instances a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// This many, wherever they fit.
    Replicated(u32),
    /// One per node.
    Global,
    /// Runs to completion this many times (`deploy.mode: replicated-job`).
    Job(u32),
    /// Runs to completion once per node (`global-job`).
    GlobalJob,
}

/// A port that clients inside reach at the service's virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port that clients name, and that the program was written for.
    pub target: u16,
    /// Its name, for SRV records.
    pub name: Option<String>,
    /// TCP or UDP.
    pub transport: Transport,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// A port that the load balancer opens on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The host address; all addresses when absent.
    pub ip: Option<IpAddr>,
    /// The host port; `None` lets the platform choose one and keep it.
    pub published: Option<u16>,
    /// The service port it leads to.
    pub target: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// What is spoken on a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Told apart from the first bytes.
    #[default]
    Auto,
    /// HTTP.
    Http,
    /// HTTP/2 without TLS (prior knowledge), which gRPC servers speak.
    Http2,
    /// Opaque bytes; needed where the server speaks first.
    Tcp,
}

/// A condition on another service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// What must hold.
    pub condition: Condition,
    /// Whether this service restarts when the other is restarted by the user.
    pub restart: bool,
    /// Whether it is an error that the other service is absent.
    pub required: bool,
}

/// The three conditions of `depends_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// An instance runs.
    Started,
    /// The service's wanted instances are healthy (ready, where it has no health check).
    Healthy,
    /// An instance ended with exit code 0.
    CompletedSuccessfully,
}

/// When an ended instance is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartCondition {
    /// Never (`restart: "no"`).
    Never,
    /// When it failed (exit code, signal, unhealthy). The default, so that one-shot commands end and servers live.
    OnFailure,
    /// Whatever the reason.
    Always,
}

/// What happens when an instance ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub condition: RestartCondition,
    /// Restarts in a row before the platform gives up; unbounded when absent.
    pub max_attempts: Option<u32>,
    /// Fixed delay, when the file gives one; otherwise the backoff below.
    #[serde(with = "crate::millis_opt")]
    pub delay: Option<Duration>,
    /// First delay of the backoff, doubled each time (1 s). The first restart after a quiet time is immediate.
    #[serde(with = "crate::millis")]
    pub backoff_initial: Duration,
    /// Largest delay (60 s).
    #[serde(with = "crate::millis")]
    pub backoff_max: Duration,
    /// An instance that ran this long starts again from the first delay (10 min, or `restart_policy.window`).
    #[serde(with = "crate::millis")]
    pub reset_after: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::OnFailure,
            max_attempts: None,
            delay: None,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            reset_after: Duration::from_secs(600),
        }
    }
}

/// Which comes first when an instance is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The new one starts and is ready before the old one is withdrawn.
    StartFirst,
    /// The old one ends before the new one starts.
    StopFirst,
}

/// What to do when a new revision fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// Return to the revision before.
    Rollback,
    /// Stop where it is and wait for the user.
    Pause,
    /// Go on.
    Continue,
}

/// How instances are moved to a new revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// Instances replaced at the same time (1); 0 means all.
    pub parallelism: u32,
    /// Pause between two batches (0 s).
    #[serde(with = "crate::millis")]
    pub delay: Duration,
    /// What comes first; `None` chooses start-first, except stop-first for a single replica with a volume.
    pub order: Option<Order>,
    /// What to do on failure (rollback).
    pub failure_action: FailureAction,
    /// How long after it became ready a failing instance still counts against the new revision (5 s).
    #[serde(with = "crate::millis")]
    pub monitor: Duration,
    /// Share of failed instances that is tolerated (0.0), in parts per million so that equality is exact.
    pub max_failure_ppm: u32,
    /// A new instance counts once it has been ready for this long (10 s).
    #[serde(with = "crate::millis")]
    pub min_healthy_time: Duration,
    /// Without progress for this long the rollout has failed (10 min).
    #[serde(with = "crate::millis")]
    pub progress_deadline: Duration,
    /// In-flight requests get this long to end before an instance is asked to stop (30 s).
    #[serde(with = "crate::millis")]
    pub drain_timeout: Duration,
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            order: None,
            failure_action: FailureAction::Rollback,
            monitor: Duration::from_secs(5),
            max_failure_ppm: 0,
            min_healthy_time: Duration::from_secs(10),
            progress_deadline: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// How an instance is ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// Signal number sent first (15, SIGTERM).
    pub signal: i32,
    /// Time until SIGKILL (10 s).
    #[serde(with = "crate::millis")]
    pub grace: Duration,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { signal: 15, grace: Duration::from_secs(10) }
    }
}

/// A volume, bind or tmpfs of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path inside the instance.
    pub target: PathBuf,
    /// Not writable.
    pub read_only: bool,
    /// What only engines know about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Box<MountOptions>>,
}

/// What engines know about a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountOptions {
    /// A new volume stays empty instead of taking what the image has at its target.
    pub no_copy: bool,
    /// `rprivate`, `rshared`, …
    pub propagation: Option<String>,
    /// Relabel for SELinux: `z` shared or `Z` private.
    pub selinux: Option<String>,
    /// `enabled`, `disabled`, `writable` or `readonly`: what becomes of mounts below a bind.
    pub recursive: Option<String>,
    /// Further options of a memory file system (`noexec`, `uid=1000`), as `mount` has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// Labels of a volume that is made for this mount.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A named volume (its kept name), and a path inside it if any.
    Volume {
        /// The kept name ([`Volume::name`]).
        name: String,
        /// Path inside the volume.
        subpath: Option<PathBuf>,
    },
    /// A volume without a name, one per instance.
    Anonymous,
    /// A path of the host.
    Bind {
        /// Absolute path.
        path: PathBuf,
        /// Create a directory there when nothing is.
        create: bool,
    },
    /// The file system of another image, read-only (containers only).
    Image {
        /// Its name.
        name: String,
        /// Path inside it.
        subpath: Option<PathBuf>,
    },
    /// Memory.
    Tmpfs {
        /// Size limit in bytes.
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
    },
}

/// A secret or config that appears as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMount {
    /// Its name in the Compose file.
    pub name: String,
    /// What it holds; at most 1 MiB.
    pub content: Content,
    /// Absolute path inside the instance (`/run/secrets/<name>`, `/<name>` for configs).
    pub target: PathBuf,
    /// Owner; the instance's user when absent.
    pub uid: Option<u32>,
    /// Group; the instance's group when absent.
    pub gid: Option<u32>,
    /// Permission bits (0400 for secrets, 0444 for configs).
    pub mode: u32,
    /// Whether it must stay hidden.
    pub secret: bool,
}

/// Resource limits; absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time in thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Relative CPU weight (`cpu_shares`, 1024 is normal).
    pub cpu_shares: Option<u64>,
    /// CPUs it may run on, in the kernel's list form (`0-1,3`).
    pub cpuset: Option<String>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory plus swap in bytes; the largest number for a container whose swap has no limit.
    pub memory_swap: Option<u64>,
    /// Number of processes and threads; the largest number for a container without a limit.
    pub pids: Option<u64>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// `ulimits`: name (`nofile`, …) → (soft, hard).
    #[serde(default)]
    pub ulimits: BTreeMap<String, (u64, u64)>,
}

/// A lifecycle step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment on top of the instance's.
    pub environment: BTreeMap<String, String>,
    /// Where it runs, when not in the instance's directory.
    pub working_dir: Option<PathBuf>,
    /// As whom it runs, when not as the instance's user.
    pub user: Option<String>,
    /// `pre_start` only: before every instance instead of once for all replicas.
    #[serde(default)]
    pub per_replica: bool,
    /// `pre_start` of containers only: the image that it runs in, when it is not that of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// With all rights of the host (containers only).
    #[serde(default, skip_serializing_if = "is_false")]
    pub privileged: bool,
}

/// How output is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// Whether output is kept at all (`logging.driver: none`).
    pub keep: bool,
    /// Size of one file in bytes (10 MiB).
    pub max_size: u64,
    /// Number of files (3).
    pub max_files: u32,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { keep: true, max_size: 10 << 20, max_files: 3 }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

impl Spec {
    /// The revision that this spec is: the first 12 hexadecimal digits of the SHA-256 of its JSON form.
    #[must_use]
    pub fn revision(&self) -> RevisionId {
        let json = serde_json::to_vec(self).expect("a spec has only string keys");
        let digest = Sha256::digest(&json);
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        RevisionId::new(hex).expect("six bytes are twelve hexadecimal digits")
    }
}

impl Service {
    /// Program and arguments, for people: as the file says, and where it does not, as the image does.
    #[must_use]
    pub fn runs(&self) -> Vec<&str> {
        let of_image = self.image_command.as_ref();
        let entrypoint = self.spec.container.as_ref().and_then(|it| it.entrypoint.as_ref());
        // Another entrypoint makes nothing of the arguments of the image's own.
        let own = entrypoint.is_none();
        let entrypoint = entrypoint.or(of_image.map(|it| &it.entrypoint)).into_iter().flatten();
        let command = match self.spec.command.is_empty() && own {
            true => of_image.map(|it| &it.command),
            false => Some(&self.spec.command),
        };
        entrypoint.chain(command.into_iter().flatten()).map(String::as_str).collect()
    }

    /// Why no two of its instances can run on one machine, if they can't.
    #[must_use]
    pub fn is_alone_because(&self) -> Option<String> {
        let container = self.spec.container.as_deref()?;
        match &container.network {
            ContainerNetwork::Host if !self.spec.ports.is_empty() => {
                let ports: Vec<_> = self.spec.ports.iter().map(u16::to_string).collect();
                Some(format!("each would have port {} of the host", ports.join(" and ")))
            }
            ContainerNetwork::Attached(all) => {
                let fixed = all.iter().find_map(|to| {
                    let address = to.ipv4.or(to.ipv6).map(|address| address.to_string());
                    address.or_else(|| to.mac_address.clone())
                });
                let fixed = fixed.or_else(|| container.mac_address.clone())?;
                Some(format!("each would have the address {fixed}"))
            }
            _ => None,
        }
    }

    /// What comes first when one of its instances is replaced.
    ///
    /// Start-first loses no request, but two copies of a program that owns data corrupt it: a single replica with
    /// a writable volume or bind is stopped first unless the file says otherwise.
    #[must_use]
    pub fn order(&self) -> Order {
        self.rollout.order.unwrap_or_else(|| {
            let owns_data = self.spec.mounts.iter().any(|mount| {
                !mount.read_only && !matches!(mount.source, MountSource::Tmpfs { .. })
            });
            if owns_data && self.scale == Scale::Replicated(1) {
                Order::StopFirst
            } else {
                Order::StartFirst
            }
        })
    }
}
