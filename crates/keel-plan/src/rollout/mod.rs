//! The move of a service from one revision to another.
//!
//! Each service has one rollout record from its first deployment on; it is also what is remembered of the service
//! between turns. `begin` opens or supersedes it, `judge` decides how it stands, and `Course` says what it
//! means for the instances. The stepping itself is in [`crate::scale`]: a steady service is a finished rollout.

pub(crate) mod begin;
pub(crate) mod judge;

use std::time::Duration;

use keel_model::{
    Assignment, EventKind, InstanceId, RevisionId, Rollout, RolloutState, ServiceName, Timestamp,
};

use crate::draft::Draft;

/// How long the instance that made a rollout fail is kept, stopped, so that its output can be read.
const EVIDENCE_KEPT: Duration = Duration::from_secs(600);

/// What a rollout means for the instances of its service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Course {
    /// The revision that new instances get.
    pub(crate) revision: RevisionId,
    /// The restart epoch that new instances get.
    pub(crate) epoch: u64,
    /// Which instances are to be replaced.
    pub(crate) replace: Replace,
    /// Where it goes.
    pub(crate) direction: Direction,
}

/// Which instances are to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    /// Those of another revision or of an older restart epoch.
    Older,
    /// Those of another revision.
    OtherRevisions,
    /// None: it waits for the user.
    Nothing,
}

/// Where a rollout goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the first revision that ever ran: nothing to protect.
    First,
    /// To a new revision.
    Forward,
    /// To the same revision, restarted.
    Restart,
    /// Back to the old revision.
    Back,
}

impl Course {
    /// What `rollout` means for the instances.
    pub(crate) fn of(draft: &Draft<'_>, rollout: &Rollout) -> Self {
        let direction = match (&rollout.from, rollout.state) {
            (Some(_), RolloutState::RollingBack | RolloutState::RolledBack) => Direction::Back,
            (None, _) => Direction::First,
            (Some(from), _) if *from == rollout.to => Direction::Restart,
            (Some(_), _) => Direction::Forward,
        };
        let known = |from: &&RevisionId| draft.knows(&rollout.service, from);
        let back = rollout.from.as_ref().filter(known);
        let (revision, replace) = match (rollout.state, direction) {
            (_, Direction::Back) => (rollout.from.as_ref(), Replace::OtherRevisions),
            (_, Direction::First) => (None, Replace::Older),
            (RolloutState::Paused | RolloutState::Failed, _) => (back, Replace::Nothing),
            _ => (None, Replace::Older),
        };
        Self {
            revision: revision.unwrap_or(&rollout.to).clone(),
            epoch: rollout.epoch,
            replace,
            direction,
        }
    }

    /// As long as a new revision may not start yet: the one in force is kept at its number.
    pub(crate) fn held(draft: &Draft<'_>, rollout: &Rollout) -> Self {
        let course = Self::of(draft, rollout);
        let from = rollout.from.as_ref().filter(|from| draft.knows(&rollout.service, from));
        let revision = from.unwrap_or(&course.revision).clone();
        Self { revision, replace: Replace::Nothing, ..course }
    }

    /// Whether an instance is as it should be.
    pub(crate) fn fits(&self, assignment: &Assignment) -> bool {
        let revision = assignment.revision == self.revision;
        match self.replace {
            Replace::Older => revision && assignment.restarts >= self.epoch,
            Replace::OtherRevisions => revision,
            Replace::Nothing => true,
        }
    }
}

impl Draft<'_> {
    /// Whether the definition of a revision is at hand, so that instances of it can be created.
    pub(crate) fn knows(&self, service: &ServiceName, revision: &RevisionId) -> bool {
        self.wanted(service) == Some(revision)
            || self.desired.revisions.contains_key(&(service.clone(), revision.clone()))
    }

    /// The instance whose output shows why the rollout of `service` failed, while it is worth keeping.
    pub(crate) fn evidence(&self, service: &ServiceName) -> Option<InstanceId> {
        let rollout = self.rollouts.get(service)?;
        let failed = matches!(
            rollout.state,
            RolloutState::RollingBack
                | RolloutState::RolledBack
                | RolloutState::Paused
                | RolloutState::Failed
        );
        let first = rollout.from.is_none();
        if !failed || first || self.clock.passed(rollout.changed_at, EVIDENCE_KEPT) {
            return None;
        }
        rollout.failed_instance.clone()
    }

    /// Gives the rollout of `service` a new state and tells people.
    pub(crate) fn turn_rollout(
        &mut self,
        service: &ServiceName,
        state: RolloutState,
        reason: String,
    ) {
        let now = self.clock.now;
        let Some(rollout) = self.rollouts.get_mut(service) else { return };
        rollout.state = state;
        rollout.changed_at = now;
        rollout.progressed_at = now;
        rollout.reason.clone_from(&reason);
        let message = match state {
            RolloutState::Progressing => reason,
            RolloutState::Complete => format!("revision {} is complete: {reason}", rollout.to),
            RolloutState::RollingBack => {
                format!("revision {} is rolled back: {reason}", rollout.to)
            }
            RolloutState::RolledBack => {
                format!("revision {} was rolled back: {reason}", rollout.to)
            }
            RolloutState::Paused => format!("revision {} is paused: {reason}", rollout.to),
            RolloutState::Failed => format!("revision {} failed: {reason}", rollout.to),
        };
        self.event(EventKind::Rollout, Some(service), None, message);
    }

    /// The rollout of `service` moves: its progress deadline counts from now.
    pub(crate) fn progress(&mut self, service: &ServiceName) {
        let now: Timestamp = self.clock.now;
        if let Some(rollout) = self.rollouts.get_mut(service)
            && !rollout.state.is_final()
        {
            rollout.progressed_at = now;
        }
    }
}
