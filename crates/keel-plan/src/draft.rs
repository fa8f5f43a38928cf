//! The working copy of one turn: decisions change it, and what changed becomes the actions.
//!
//! Because actions are the difference between what was and what is wanted now, a turn that decides nothing new
//! emits nothing, every changed assignment rises by exactly one generation, and no event repeats by itself.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{
    Assignment, EventKind, Generation, Goal, InstanceId, NodeName, RevisionId, Rollout, Service,
    ServiceName,
};

use crate::clock::Clock;
use crate::{Action, Desired, Instance, Observed, Plan};

/// The working copy of one turn.
pub(crate) struct Draft<'a> {
    /// What is wanted.
    pub(crate) desired: &'a Desired,
    /// What was seen when the turn began.
    pub(crate) observed: &'a Observed,
    /// The time.
    pub(crate) clock: Clock,
    /// Instances as decided so far.
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    /// Rollouts as decided so far.
    pub(crate) rollouts: BTreeMap<ServiceName, Rollout>,
    /// The wanted revision of each service: worth computing once, a spec may hold megabytes.
    wanted: BTreeMap<&'a ServiceName, RevisionId>,
    /// Which instances each service has.
    members: BTreeMap<ServiceName, BTreeSet<InstanceId>>,
    serials: BTreeMap<ServiceName, u64>,
    events: Vec<Action>,
    forget_stack: bool,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(desired: &'a Desired, observed: &'a Observed, clock: Clock) -> Self {
        let services = &desired.record.stack.services;
        let mut draft = Self {
            wanted: services.iter().map(|(name, s)| (name, s.spec.revision())).collect(),
            desired,
            observed,
            clock,
            instances: observed.instances.clone(),
            members: BTreeMap::new(),
            rollouts: observed.rollouts.clone(),
            serials: BTreeMap::new(),
            events: Vec::new(),
            forget_stack: false,
        };
        for instance in observed.instances.values() {
            draft.enlist(&instance.assignment);
        }
        draft.mend_times();
        draft
    }

    fn enlist(&mut self, assignment: &Assignment) {
        let members = self.members.entry(assignment.service.clone()).or_default();
        members.insert(assignment.id.clone());
    }

    /// Times of our own that lie in the future were written before the clock was set back: count from now instead.
    fn mend_times(&mut self) {
        let now = self.clock.now;
        for (id, instance) in &self.observed.instances {
            if instance.assignment.goal_since > now {
                self.assign(id, |a| a.goal_since = now);
            }
        }
        for rollout in self.rollouts.values_mut() {
            rollout.started_at = rollout.started_at.min(now);
            rollout.progressed_at = rollout.progressed_at.min(now);
            rollout.changed_at = rollout.changed_at.min(now);
        }
    }

    /// The revision of a service that the user wants.
    pub(crate) fn wanted(&self, service: &ServiceName) -> Option<&RevisionId> {
        self.wanted.get(service)
    }

    /// The instances of a service, in order of name.
    pub(crate) fn of<'d>(
        &'d self,
        service: &'d ServiceName,
    ) -> impl Iterator<Item = &'d Instance> + 'd {
        let members = self.members.get(service).into_iter().flatten();
        members.filter_map(|id| self.instances.get(id))
    }

    /// The instances that occupy the places of a service.
    pub(crate) fn slots<'d>(
        &'d self,
        service: &'d ServiceName,
    ) -> impl Iterator<Item = &'d Instance> + 'd {
        self.of(service).filter(|instance| instance.is_slot())
    }

    /// The definition that an instance was started from, or the nearest that is known.
    pub(crate) fn definition(&self, assignment: &Assignment) -> Option<&'a Service> {
        let desired = self.desired;
        let key = (assignment.service.clone(), assignment.revision.clone());
        let current = desired.record.stack.services.get(&assignment.service);
        current.or_else(|| desired.revisions.get(&key))
    }

    /// Adds an instance to `service` on `node`.
    pub(crate) fn create(
        &mut self,
        service: &ServiceName,
        revision: &RevisionId,
        node: &NodeName,
        epoch: u64,
        reason: &str,
    ) {
        let stack = &self.desired.record.stack.name;
        let serial = self.next_serial(service);
        let id = InstanceId::numbered(stack, service, serial);
        let assignment = Assignment {
            id: id.clone(),
            stack: stack.clone(),
            service: service.clone(),
            revision: revision.clone(),
            node: node.clone(),
            generation: Generation(1),
            attempt: 1,
            failures: 0,
            restarts: epoch,
            goal: Goal::Run,
            reason: reason.to_owned(),
            created_at: self.clock.now,
            goal_since: self.clock.now,
            after_drain: Goal::Remove,
            adoption: None,
        };
        self.serials.insert(service.clone(), serial + 1);
        self.event(
            EventKind::InstanceCreated,
            Some(service),
            Some(&id),
            format!("{reason} on {node}"),
        );
        self.enlist(&assignment);
        self.instances
            .insert(id, Instance { assignment, status: None, gone: false, drained: false });
    }

    /// Serials only rise, even if the stored counter were lost.
    fn next_serial(&self, service: &ServiceName) -> u64 {
        let used = self.of(service).map(Instance::serial).max().unwrap_or(0);
        let stored = self.serials.get(service).or_else(|| self.observed.next_serial.get(service));
        stored.copied().unwrap_or(1).max(used + 1)
    }

    /// Changes what is wanted of an instance. However often that happens in a turn, its generation rises by one; and
    /// at once, so that nobody takes what the node said of the old generation for an answer to the new one.
    pub(crate) fn assign(&mut self, id: &InstanceId, change: impl FnOnce(&mut Assignment)) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let assignment = &mut instance.assignment;
        change(assignment);
        if let Some(before) = self.observed.instances.get(id).map(|i| &i.assignment) {
            assignment.generation = before.generation;
            if before != assignment {
                assignment.generation = before.generation.next();
            }
        }
    }

    /// Deletes an instance that its node has forgotten.
    pub(crate) fn forget(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.remove(id) {
            let service = &instance.assignment.service;
            if let Some(members) = self.members.get_mut(service) {
                members.remove(id);
            }
            self.event(EventKind::InstanceRemoved, Some(service), Some(id), "removed".to_owned());
        }
    }

    /// Everything is gone: the stack's records can go too.
    pub(crate) fn forget_stack(&mut self) {
        self.forget_stack = true;
    }

    /// Tells people. Only ever together with a change of the draft, or it would be told again every turn.
    pub(crate) fn event(
        &mut self,
        kind: EventKind,
        service: Option<&ServiceName>,
        instance: Option<&InstanceId>,
        message: String,
    ) {
        self.events.push(Action::Event {
            kind,
            service: service.cloned(),
            instance: instance.cloned(),
            message,
        });
    }

    /// What changed, as actions.
    pub(crate) fn finish(self) -> Plan {
        let mut actions = Vec::new();
        for (service, serial) in &self.serials {
            actions.push(Action::SetSerial(service.clone(), *serial));
        }
        for (service, rollout) in &self.rollouts {
            if self.observed.rollouts.get(service) != Some(rollout) {
                actions.push(Action::SetRollout(rollout.clone()));
            }
        }
        for (id, instance) in &self.instances {
            let assignment = instance.assignment.clone();
            match self.observed.instances.get(id).map(|before| &before.assignment) {
                None => actions.push(Action::Create(assignment)),
                Some(before) if *before != assignment => actions.push(Action::Update(assignment)),
                Some(_) => {}
            }
        }
        let gone = self.observed.instances.keys().filter(|id| !self.instances.contains_key(*id));
        actions.extend(gone.cloned().map(Action::Forget));
        actions.extend(self.events);
        if self.forget_stack {
            actions.push(Action::ForgetStack);
        }
        Plan { actions, wake_at: self.clock.wake_at() }
    }
}
