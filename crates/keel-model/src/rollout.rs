//! The move of a service from one revision to another.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Generation, InstanceId, RevisionId, ServiceName, Timestamp};

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Instances are being moved.
    Progressing,
    /// All instances have the new revision and were healthy for long enough.
    Complete,
    /// The new revision failed; instances are being moved back.
    RollingBack,
    /// All instances have the old revision again.
    RolledBack,
    /// The new revision failed and waits for the user.
    Paused,
    /// The new revision failed and there is nothing to return to.
    Failed,
}

impl RolloutState {
    /// Whether the new revision has failed, whatever is done about it.
    #[must_use]
    pub fn has_failed(self) -> bool {
        matches!(self, Self::RollingBack | Self::RolledBack | Self::Paused | Self::Failed)
    }

    /// Whether nothing more will happen by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Progressing | Self::RollingBack)
    }
}

/// What a rollout has learnt of one instance of the new revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It has been ready at least once.
    Ready,
    /// It was healthy for long enough: what happens to it now no longer counts against the revision.
    Settled,
    /// It failed before it was settled.
    Failed,
}

/// The move of a service from one revision to another. Stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Which service.
    pub service: ServiceName,
    /// Where it came from; absent at the first deployment.
    pub from: Option<RevisionId>,
    /// Where it goes.
    pub to: RevisionId,
    /// How far it is.
    pub state: RolloutState,
    /// When it began.
    pub started_at: Timestamp,
    /// When an instance last became ready or was replaced; the progress deadline counts from here.
    pub progressed_at: Timestamp,
    /// When the state last changed.
    pub changed_at: Timestamp,
    /// Instances of the new revision that failed.
    pub failures: u32,
    /// Why it is in this state, for people; names the instance that failed.
    pub reason: String,
    /// The [`crate::StackRecord`] generation it was last tried under; a failed one is tried again under a newer one.
    #[serde(default)]
    pub generation: Generation,
    /// How many restarts the user had asked for (of this service and those it restarts with) when it was begun.
    #[serde(default)]
    pub restarts: u64,
    /// Raised by each restart: instances whose [`crate::Assignment::restarts`] is lower are replaced.
    #[serde(default)]
    pub epoch: u64,
    /// What is known of the instances of the new revision.
    #[serde(default)]
    pub marks: BTreeMap<InstanceId, Mark>,
    /// The instance that made it fail; kept, stopped, for a while so that its output can be read.
    #[serde(default)]
    pub failed_instance: Option<InstanceId>,
    /// Other revisions that failed when they were tried last.
    #[serde(default)]
    pub failed_before: BTreeSet<RevisionId>,
}

impl Rollout {
    /// Whether `revision` failed when it was tried last.
    #[must_use]
    pub fn saw_failing(&self, revision: &RevisionId) -> bool {
        self.failed_before.contains(revision) || (self.state.has_failed() && self.to == *revision)
    }
}
