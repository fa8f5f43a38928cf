//! What goes over the wire when a project of `docker compose` is taken over.

use keel_model::{InstanceId, ServiceName, Stack};
use serde::{Deserialize, Serialize};

use super::types::Applied;

/// Body of `POST /v1/stacks/{stack}/adopt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptRequest {
    /// The definition, as the Compose files have it.
    pub stack: Stack,
    /// Only these services; all when absent.
    pub services: Option<Vec<ServiceName>>,
    /// The ids of the containers that were shown: nothing is done if others would be taken over by now. Absent to be shown
    /// them, and change nothing.
    pub containers: Option<Vec<String>>,
    /// For `keel history`.
    pub change: String,
}

/// Answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptView {
    /// The containers of the project.
    pub containers: Vec<AdoptRow>,
    /// What differs between the file and what runs, and what else is worth knowing.
    pub notes: Vec<String>,
    /// What a firewall may be in the way of.
    pub warnings: Vec<String>,
    /// What was done, if anything was.
    pub applied: Option<Applied>,
}

/// One container of the project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptRow {
    /// The service that it was started for.
    pub service: String,
    /// The name of the container.
    pub container: String,
    /// The engine's id of it.
    pub id: String,
    /// What it does: `running`, `exited (0)`, …
    pub state: String,
    /// The instance that it becomes; absent when it is left alone.
    pub instance: Option<InstanceId>,
    /// What happens, or why nothing does.
    pub what: String,
}

impl AdoptView {
    /// The ids of the containers that are taken over.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let taken = self.containers.iter().filter(|row| row.instance.is_some());
        taken.map(|row| row.id.clone()).collect()
    }
}
