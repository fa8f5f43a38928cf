//! The brain: from what is wanted and what is seen to what is to be done next.
//!
//! [`plan`] is a pure function. It performs nothing, reads no clock and keeps no memory: everything that must
//! survive until the next turn is in the values it is given or in the actions it returns.

mod clock;
mod depend;
mod diff;
mod draft;
mod mask;
mod remove;
mod restart;
mod rollout;
mod scale;
mod service;
mod share;
mod summary;
mod view;
mod withdraw;

use std::collections::BTreeMap;

use clock::Clock;
pub use diff::{Change, ChangeKind, FieldChange, diff};
use draft::Draft;
use keel_model::{
    Assignment, EventKind, InstanceId, InstanceStatus, NodeName, RevisionId, Rollout, Service,
    ServiceName, StackRecord, Timestamp,
};

pub use summary::{Outcome, ServiceState, ServiceSummary, summary};

/// What is wanted of one stack.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The user's wish.
    pub record: StackRecord,
    /// Definitions of revisions that are not in `record` but still have instances or may be returned to.
    pub revisions: BTreeMap<(ServiceName, RevisionId), Service>,
}

/// What is seen of one stack.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Machines that can take work, in order of name.
    pub nodes: Vec<NodeName>,
    /// Every assigned instance.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The last rollout of each service.
    pub rollouts: BTreeMap<ServiceName, Rollout>,
    /// The serial that the next instance of each service gets (1 when absent).
    pub next_serial: BTreeMap<ServiceName, u64>,
}

/// One assigned instance with what its node and the proxies say.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What the leader said.
    pub assignment: Assignment,
    /// What the node said last; absent before its first word.
    pub status: Option<InstanceStatus>,
    /// The node has forgotten it (only with [`keel_model::Goal::Remove`]): its record can go.
    pub gone: bool,
    /// Every proxy has acknowledged that it takes no new requests, and none is in flight.
    pub drained: bool,
}

/// One thing to do. All actions of a plan are applied in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a new assignment.
    Create(Assignment),
    /// Replace an assignment (its generation is already raised).
    Update(Assignment),
    /// Delete the records of an instance.
    Forget(InstanceId),
    /// Write a rollout.
    SetRollout(Rollout),
    /// Remember the next serial of a service.
    SetSerial(ServiceName, u64),
    /// The stack was removed and nothing is left: delete all its records.
    ForgetStack,
    /// Tell people.
    Event {
        /// What kind.
        kind: EventKind,
        /// Which service.
        service: Option<ServiceName>,
        /// Which instance.
        instance: Option<InstanceId>,
        /// For people.
        message: String,
    },
}

/// The outcome of one turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do now, in order.
    pub actions: Vec<Action>,
    /// When to look again even if nothing changes (a backoff or deadline that passes).
    pub wake_at: Option<Timestamp>,
}

/// Decides the next steps for one stack.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    let services = &desired.record.stack.services;
    let order = depend::start_order(services);
    let mut draft = Draft::new(desired, observed, Clock::new(now));
    remove::forget_gone(&mut draft);
    if desired.record.removing {
        remove::stack(&mut draft, &order);
        return draft.finish();
    }
    remove::orphans(&mut draft);
    for (rank, name) in order.iter().enumerate() {
        service::turn(&mut draft, name, &services[name], &order[..rank], &order[rank + 1..]);
    }
    draft.finish()
}
