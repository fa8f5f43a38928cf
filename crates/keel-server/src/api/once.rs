//! What goes over the wire about commands that run once beside the instances of a service (`keel run`).

use keel_model::{InstanceId, ServiceName, Stack};
use keel_runtime::{ContainerExec, OncePort};
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/stacks/{stack}/once`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRequest {
    /// The definition, with what the command line changes about the service.
    pub stack: Stack,
    /// Of which service.
    pub service: ServiceName,
    /// Name of the container, in the place of one that is made up.
    pub name: Option<String>,
    /// Ports that the engine opens on the host.
    pub publish: Vec<OncePort>,
    /// The engine takes the container away when it ends; nobody else will.
    pub auto_remove: bool,
}

/// Answer to `POST /v1/stacks/{stack}/once`: a container that is made and not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceView {
    /// By which it is removed again.
    pub id: InstanceId,
    /// Where it is.
    pub container: ContainerExec,
}

/// Body of `POST /v1/stacks/{stack}/once/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveOnceRequest {
    /// Which.
    pub id: InstanceId,
}
