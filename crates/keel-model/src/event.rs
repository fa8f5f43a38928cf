//! What happened, for people and programs.

use serde::{Deserialize, Serialize};

use crate::{InstanceId, ServiceName, StackName, Timestamp};

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A stack was applied, scaled, stopped, removed, …
    StackChanged,
    /// An instance was assigned.
    InstanceCreated,
    /// Its process runs.
    InstanceStarted,
    /// It takes requests.
    InstanceReady,
    /// It takes no requests any more though it runs.
    InstanceNotReady,
    /// Its health check failed.
    InstanceUnhealthy,
    /// It is being withdrawn.
    InstanceDraining,
    /// It ended.
    InstanceExited,
    /// It ended, and no proxy sends requests there any more.
    EndpointWithdrawn,
    /// The proxy leaves it out for what it has seen of it: answers, or its own checks.
    EndpointEjected,
    /// The proxy's own checks have let it in again.
    EndpointReadmitted,
    /// The proxy can't speak with it: the TLS handshake fails. It is not left out for that.
    EndpointFailed,
    /// It calls a service with which it shares no network.
    CallRefused,
    /// It could not be started.
    InstanceFailed,
    /// It is started again.
    InstanceRestarting,
    /// It was forgotten.
    InstanceRemoved,
    /// A rollout began, ended, failed or turned back.
    Rollout,
    /// The engine in the place of our proxy can't do something that is wanted.
    EngineLacks,
    /// The platform itself: proxy restarted, disk full, …
    Platform,
}

/// One thing that happened. Never holds a secret or an environment value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with each event of a server.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What kind.
    pub kind: EventKind,
    /// Which stack.
    pub stack: Option<StackName>,
    /// Which service.
    pub service: Option<ServiceName>,
    /// Which instance.
    pub instance: Option<InstanceId>,
    /// For people; at most 1 KiB.
    pub message: String,
}
