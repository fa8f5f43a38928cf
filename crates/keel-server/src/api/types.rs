//! What goes over the wire between `keel` the command and `keel server`: JSON bodies, stable names.
//!
//! Nothing here holds a secret, a file's content or an environment value on the way out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use keel_container::images::Credentials;
use keel_model::{
    EntrypointName, Generation, Goal, Health, InstanceId, InstanceStatus, NodeName, Phase,
    RevisionId, Rollout, RouteKind, ServiceName, Stack, StackName, Timestamp, ZoneName,
};
use serde::{Deserialize, Serialize};

pub use keel_plan::FieldChange;
pub use keel_route::snapshot::{EdgeStats, Lacking};

/// Answer to `GET /v1/edges`: what was counted since the proxy started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgesView {
    /// When it was counted, at the earliest.
    pub at: Timestamp,
    /// Process id of the proxy; absent when none is linked, and what follows is what the last one said.
    pub proxy: Option<u32>,
    /// Every edge that has had traffic, in order of its cluster, route and caller.
    pub edges: Vec<EdgeStats>,
}

/// Answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Version of the server's binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// The machine's name.
    pub node: NodeName,
    /// The zone that it is in, if it is known.
    #[serde(default)]
    pub zone: Option<ZoneName>,
    /// The network that virtual addresses come from.
    pub network: String,
    /// Where its DNS server listens, if it could.
    pub dns: Option<SocketAddr>,
    /// Where metrics are served over TCP.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// The file that requests are logged in.
    #[serde(default)]
    pub access_log: Option<PathBuf>,
    /// The load balancer in the place of our own: `haproxy` or `nginx`.
    #[serde(default)]
    pub proxy_engine: Option<String>,
    /// What that one lacks of what is wanted.
    #[serde(default)]
    pub lacks: Vec<Lacking>,
    /// What this server cannot do here, and why (no rights, …).
    pub limitations: Vec<String>,
    /// The process that handles traffic.
    #[serde(default)]
    pub proxy: ProxyView,
}

/// The process that handles traffic, as far as the server knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyView {
    /// Its process id, if it answers.
    pub pid: Option<u32>,
    /// What serves: `keel`, `haproxy` or `nginx`; absent without a proxy.
    pub serves: Option<String>,
    /// Since when it runs.
    pub since: Option<Timestamp>,
    /// How often another one came since this server runs.
    pub restarts: u64,
    /// Since when there is none that answers.
    pub down_since: Option<Timestamp>,
    /// Why.
    pub down_because: Option<String>,
    /// Why the engine that is wanted does not serve.
    pub not_taken_over: Option<String>,
}

/// Answer to `GET /v1/stacks/{stack}/lacks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LacksView {
    /// The engine has taken up all that it was told.
    pub settled: bool,
    /// What it lacks of what this stack wants.
    pub lacks: Vec<Lacking>,
}

/// An error, as every endpoint reports it with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs: `no_such_stack`, `no_such_service`, `port_in_use`, `route_taken`, `disk_full`, `conflict`, `invalid`, `internal`;
    /// about projects that are taken over also `no_such_project`, `not_root`, `engine_elsewhere`, `no_detour`;
    /// about images also `image_absent`, `image_not_found`, `image_denied`, `image_platform`, `image_rate_limited`, `image_failed`,
    /// `registry_away`, `registry_untrusted`, `build_failed`, `build_context`, `engine_away`.
    pub code: String,
    /// What happened, and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Body of `PUT /v1/stacks/{stack}` and `POST /v1/stacks/{stack}/diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The definition.
    pub stack: Stack,
    /// Only these services are applied; the others stay as they are. All when absent.
    pub services: Option<Vec<ServiceName>>,
    /// Services that are no longer defined are removed (always so unless `services` is given).
    pub remove_orphans: bool,
    /// Replace every instance of the applied services even if nothing changed.
    pub force_recreate: bool,
    /// For `keel history`.
    pub change: String,
}

/// Answer to every request that changes a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The stack's generation after the change.
    pub generation: Generation,
    /// What differs; empty when nothing did (then the generation is the old one).
    pub changes: Vec<ChangeView>,
}

/// One difference, as `keel diff` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeView {
    /// Which service.
    pub service: ServiceName,
    /// `create`, `replace` (instances are replaced), `update` (settings only), `scale`, `remove`, `retry` (nothing differs, but
    /// the last release failed and is tried again).
    pub kind: String,
    /// How (`start-first, 1 at a time`), for people.
    pub how: String,
    /// The fields that differ; secret values are masked.
    pub fields: Vec<FieldChange>,
}

/// Body of `POST /v1/stacks/{stack}/scale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRequest {
    /// Instances per service.
    pub replicas: BTreeMap<ServiceName, u32>,
}

/// Body of `POST /v1/stacks/{stack}/{stop,start,restart,rm}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesRequest {
    /// Which services; all when empty.
    pub services: Vec<ServiceName>,
    /// With `restart`: each instance ends before it is started again as it is, with the files that were written into it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// Body of `POST /v1/stacks/{stack}/down`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownRequest {
    /// Delete the stack's named volumes too.
    pub volumes: bool,
}

/// Body of `POST /v1/stacks/{stack}/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// The generation to return to; the one before the current definition when absent.
    pub to: Option<Generation>,
    /// What registries are shown if images are gone that came from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credentials>,
}

/// One line of `keel history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The generation that the change made.
    pub generation: Generation,
    /// When.
    pub at: Timestamp,
    /// What (`up`, `scale catalog=6`, `rollback to 4`).
    pub change: String,
    /// Revision and scale of each service after it.
    pub services: BTreeMap<ServiceName, HistoryService>,
    /// Whether it is in force.
    pub current: bool,
}

/// A service in a line of `keel history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryService {
    /// Its revision.
    pub revision: RevisionId,
    /// How many instances (`3`, `global`, `job`).
    pub scale: String,
}

/// One line of `GET /v1/stacks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSummary {
    /// Its name.
    pub name: StackName,
    /// Its generation.
    pub generation: Generation,
    /// Where its Compose file lies.
    pub directory: PathBuf,
    /// `running(12)`, `starting(3/12)`, `stopped`, `removing`, as `docker compose ls` has it.
    pub status: String,
    /// When it was last changed.
    pub changed_at: Timestamp,
}

/// Answer to `GET /v1/stacks/{stack}`, and each line of `GET /v1/stacks/{stack}/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackView {
    /// Its name.
    pub name: StackName,
    /// Its generation.
    pub generation: Generation,
    /// Its services.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// Addresses at which its routes are served.
    #[serde(default)]
    pub entrypoints: Vec<EntrypointView>,
    /// It is being removed.
    pub removing: bool,
    /// Nothing is left to do: every service is ready, completed, stopped, or has failed for good.
    pub converged: bool,
    /// Some service has failed (rolled back, gave up, crash loop at first deployment).
    pub failed: bool,
}

/// An address at which routes are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrypointView {
    /// Its name in its stack.
    pub name: EntrypointName,
    /// Where the host listens.
    pub address: SocketAddr,
    /// Connections are TLS.
    pub tls: bool,
    /// Why it is not open, if it is not.
    pub error: Option<String>,
}

/// One line of `GET /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Of which stack.
    pub stack: StackName,
    /// Its name, unique in the stack.
    pub name: String,
    /// Which requests, in Traefik's syntax.
    pub rule: String,
    /// Among routes that match the highest wins.
    pub priority: i64,
    /// Requests or connections.
    pub kind: RouteKind,
    /// Where it is served.
    pub entrypoints: Vec<EntrypointView>,
    /// `none`, `any`, `acme`, `files` or `passthrough`.
    pub tls: String,
    /// The service that it leads to.
    pub service: ServiceName,
    /// The port of the service.
    pub port: Option<u16>,
    /// Shares of other services in parts per thousand.
    pub split: BTreeMap<ServiceName, u16>,
    /// What is done to requests and answers, by the names of the settings.
    pub filters: Vec<String>,
}

/// One service of a [`StackView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its virtual address.
    pub address: Option<IpAddr>,
    /// Ports that it answers at under that address.
    pub ports: Vec<u16>,
    /// Ports that are open on the host: `0.0.0.0:8080->80/tcp`.
    pub published: Vec<PublishedView>,
    /// Wanted revision.
    pub revision: RevisionId,
    /// Wanted instances.
    pub desired: u32,
    /// Instances whose process runs.
    pub running: u32,
    /// Instances that take requests.
    pub ready: u32,
    /// `starting`, `running`, `degraded`, `updating`, `completed`, `stopped`, `failed`, `rolling back`, `rolled back`,
    /// `paused`, `removing`.
    pub state: String,
    /// Why, for people.
    pub reason: String,
    /// Nothing is left to do for it.
    pub converged: bool,
    /// It has failed.
    pub failed: bool,
    /// The instance whose output shows what went wrong.
    pub failed_instance: Option<InstanceId>,
    /// Its last rollout.
    pub rollout: Option<Rollout>,
    /// Its instances, by serial.
    pub instances: Vec<InstanceView>,
}

/// A port that is open on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedView {
    /// Where the host listens.
    pub address: SocketAddr,
    /// The service port behind it.
    pub target: u16,
    /// Why it is not open, if it is not.
    pub error: Option<String>,
}

/// One instance of a [`ServiceView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its identity.
    pub id: InstanceId,
    /// Its revision.
    pub revision: RevisionId,
    /// Where it runs.
    pub node: NodeName,
    /// What is wanted of it.
    pub goal: Goal,
    /// Why.
    pub reason: String,
    /// Where in its life it is; absent before its node's first word.
    pub phase: Option<Phase>,
    /// Whether it takes requests.
    pub ready: bool,
    /// The proxy leaves it out, for answers or checks that failed.
    #[serde(default)]
    pub left_out: bool,
    /// What its health check says.
    pub health: Health,
    /// Times it was started.
    pub attempts: u32,
    /// When it was assigned.
    pub created_at: Timestamp,
    /// Program and arguments, cut to 200 characters.
    pub command: String,
    /// The image, for containers.
    #[serde(default)]
    pub image: String,
    /// What its node says.
    pub status: Option<InstanceStatus>,
}

/// One line of `GET /v1/stacks/{stack}/logs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Whose.
    pub instance: InstanceId,
    /// Of which service.
    pub service: ServiceName,
    /// When it was written.
    pub at: Timestamp,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end; invalid UTF-8 replaced.
    pub text: String,
}

/// Query of `GET /v1/stacks/{stack}/logs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogsQuery {
    /// Comma-separated services or instances; all when empty.
    pub services: String,
    /// Go on with new lines.
    pub follow: bool,
    /// Lines from this time on (milliseconds since the epoch).
    pub since: Option<u64>,
    /// Lines up to this time (milliseconds since the epoch).
    pub until: Option<u64>,
    /// Only so many of the last lines of each instance.
    pub tail: Option<usize>,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventsQuery {
    /// Only of this stack.
    pub stack: Option<String>,
    /// Go on with new events.
    pub follow: bool,
    /// Events from this time on (milliseconds since the epoch).
    pub since: Option<u64>,
    /// Events up to this time (milliseconds since the epoch).
    pub until: Option<u64>,
}
