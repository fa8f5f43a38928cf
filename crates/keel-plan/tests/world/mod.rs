//! A fake node, proxy and store that act on plans, with seeded faults and a virtual clock.
//!
//! Every applied plan is checked against the planner's promises; see [`World::check`].
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod build;
mod check;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keel_model::{
    EventKind, Generation, InstanceId, RolloutState, Scale, Service, ServiceName, StackRecord,
    Timestamp,
};
use keel_plan::{Action, Desired, Instance, Observed, Plan, plan};

pub use build::{name, record, service};
use node::Process;

/// Plans in a row without news from outside; more means that the planner chases its own tail.
const SETTLES_WITHIN: usize = 12;

/// A small generator; the same seed gives the same run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    /// True once in `sides`.
    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A plan is lost before it is applied, once in so many; 0 is never.
    pub lost_plan: u64,
    /// The node sleeps through a step, once in so many.
    pub lag: u64,
    /// A running process is killed in a step, once in so many.
    pub kill: u64,
    /// A drain is never acknowledged, once in so many.
    pub stuck_drain: u64,
    /// The clock of the leader jumps back by up to a minute, once in so many.
    pub clock: u64,
}

/// Everything outside the planner.
pub struct World {
    pub desired: Desired,
    pub observed: Observed,
    pub processes: BTreeMap<InstanceId, Process>,
    pub now: Timestamp,
    pub dice: Dice,
    pub faults: Faults,
    pub log: Vec<String>,
    pub events: Vec<(EventKind, Option<ServiceName>, String)>,
    pub forgotten: bool,
    /// How far the leader's clock is behind.
    pub behind: Duration,
    pub turns: u64,
    wake_at: Option<Timestamp>,
    used: BTreeSet<InstanceId>,
    /// Services that once wanted no instance: any revision is complete then, without proof.
    pub emptied: BTreeSet<ServiceName>,
}

impl World {
    pub fn new(record: StackRecord) -> Self {
        Self {
            desired: Desired { record, revisions: BTreeMap::new() },
            observed: Observed { nodes: vec![build::node("n1")], ..Observed::default() },
            processes: BTreeMap::new(),
            now: Timestamp(1_000_000_000),
            dice: Dice::new(0),
            faults: Faults::default(),
            log: Vec::new(),
            events: Vec::new(),
            forgotten: false,
            behind: Duration::ZERO,
            turns: 0,
            wake_at: None,
            used: BTreeSet::new(),
            emptied: BTreeSet::new(),
        }
    }

    /// What the leader's clock shows.
    pub fn leader_now(&self) -> Timestamp {
        self.now - self.behind
    }

    pub fn note(&mut self, line: impl Into<String>) {
        self.log.push(format!("{:>8} {}", self.now.0 - 1_000_000_000, line.into()));
    }

    /// The user changes the record; old definitions stay known.
    pub fn change(&mut self, what: &str, edit: impl FnOnce(&mut StackRecord)) {
        let before = self.desired.record.clone();
        edit(&mut self.desired.record);
        let record = &mut self.desired.record;
        record.generation = Generation(record.generation.0 + 1);
        record.applied = record.generation;
        for (name, service) in &before.stack.services {
            let key = (name.clone(), service.spec.revision());
            self.desired.revisions.insert(key, service.clone());
        }
        self.note(format!("user: {what}"));
    }

    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Service)) {
        let key = build::name(name);
        self.change(&format!("edit {name}"), |record| {
            edit(record.stack.services.get_mut(&key).expect("a service of the record"));
        });
    }

    pub fn scale(&mut self, name: &str, scale: u32) {
        self.edit(name, |service| service.scale = Scale::Replicated(scale));
    }

    /// `keel up` with a program that behaves differently: a new revision.
    pub fn deploy(&mut self, name: &str, mode: &str, version: u32) {
        self.edit(name, |service| {
            let env = &mut service.spec.environment;
            env.insert("MODE".to_owned(), mode.to_owned());
            env.insert("VERSION".to_owned(), version.to_string());
        });
    }

    pub fn stop(&mut self, name: &str, stopped: bool) {
        let key = build::name(name);
        self.change(if stopped { "stop" } else { "start" }, |record| {
            record.intents.entry(key).or_default().stopped = stopped;
        });
    }

    pub fn restart(&mut self, name: &str) {
        let key = build::name(name);
        self.change("restart", |record| {
            let intent = record.intents.entry(key).or_default();
            intent.restarts += 1;
            intent.in_place = false;
        });
    }

    /// The same without new instances.
    pub fn restart_in_place(&mut self, name: &str) {
        let key = build::name(name);
        self.change("restart", |record| {
            let intent = record.intents.entry(key).or_default();
            intent.restarts += 1;
            intent.in_place = true;
        });
    }

    pub fn down(&mut self) {
        self.change("down", |record| record.removing = true);
    }

    /// One turn of the leader: plans until nothing is left to do.
    pub fn settle(&mut self) {
        for (name, service) in &self.desired.record.stack.services {
            if matches!(service.scale, Scale::Replicated(0) | Scale::Job(0)) {
                self.emptied.insert(name.clone());
            }
        }
        for _ in 0..SETTLES_WITHIN {
            let now = self.leader_now();
            let next = plan(&self.desired, &self.observed, now);
            assert_eq!(next, plan(&self.desired, &self.observed, now), "not deterministic");
            self.wake_at = next.wake_at;
            assert!(next.wake_at.is_none_or(|at| at > now), "wakes in the past");
            if next.actions.is_empty() {
                return;
            }
            if self.faults.lost_plan > 0 && self.dice.one_in(self.faults.lost_plan) {
                self.note("leader dies before its plan is stored");
                self.wake_at = Some(now + Duration::from_millis(50));
                return;
            }
            self.apply(next);
            if self.forgotten {
                return;
            }
        }
        panic!("the planner does not come to rest\n{}", self.story());
    }

    fn apply(&mut self, plan: Plan) {
        let before = self.observed.clone();
        for action in plan.actions {
            self.note(describe(&action));
            self.apply_one(action);
        }
        self.check(&before);
    }

    fn apply_one(&mut self, action: Action) {
        match action {
            Action::Create(assignment) => {
                let id = assignment.id.clone();
                assert!(self.used.insert(id.clone()), "{id} is used twice\n{}", self.story());
                let instance = Instance { assignment, status: None, gone: false, drained: false };
                self.observed.instances.insert(id, instance);
            }
            Action::Update(assignment) => {
                let instance = self.observed.instances.get_mut(&assignment.id).expect("known");
                let before = instance.assignment.generation;
                assert_eq!(assignment.generation, before.next(), "{}", assignment.id);
                instance.drained = false;
                instance.assignment = assignment;
            }
            Action::Forget(id) => {
                let gone = self.observed.instances.remove(&id).expect("known").gone;
                assert!(gone, "{id} is forgotten before its node has");
                self.processes.remove(&id);
            }
            Action::SetRollout(rollout) => {
                self.observed.rollouts.insert(rollout.service.clone(), rollout);
            }
            Action::SetSerial(service, serial) => {
                let before = self.observed.next_serial.insert(service, serial);
                assert!(before.is_none_or(|before| before < serial), "serials only rise");
            }
            Action::ForgetStack => {
                assert!(self.observed.instances.is_empty());
                self.forgotten = true;
            }
            Action::Event { kind, service, message, .. } => {
                self.events.push((kind, service, message));
            }
        }
    }

    /// Lets `time` pass, from one thing that happens to the next.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while !self.forgotten {
            self.upset();
            self.work();
            self.settle();
            let wake = self.wake_at.map(|at| at + self.behind);
            let next = [wake, self.next_work()].into_iter().flatten().min();
            let next = next.unwrap_or(end).max(self.now + Duration::from_millis(1));
            if next >= end {
                break;
            }
            self.now = next;
            self.turns += 1;
        }
        if !self.forgotten {
            self.now = end;
            self.work();
            self.settle();
        }
    }

    /// Faults that are not the planner's or the node's doing.
    fn upset(&mut self) {
        if self.faults.clock > 0 && self.dice.one_in(self.faults.clock) {
            self.behind = Duration::from_millis(self.dice.roll(60_000));
            self.note(format!("the leader's clock is now {:?} behind", self.behind));
        }
        if self.faults.kill > 0 && self.dice.one_in(self.faults.kill) {
            let running: Vec<InstanceId> = self.running();
            if !running.is_empty() {
                let count = u64::try_from(running.len()).expect("few");
                let chosen = usize::try_from(self.dice.roll(count)).expect("few");
                self.kill(&running[chosen].clone());
            }
        }
    }

    pub fn running(&self) -> Vec<InstanceId> {
        self.processes.iter().filter(|(_, p)| p.runs()).map(|(id, _)| id.clone()).collect()
    }

    /// Instances of a service that are wanted.
    pub fn slots(&self, name: &str) -> Vec<&Instance> {
        self.observed
            .instances
            .values()
            .filter(|i| i.assignment.service.as_str() == name)
            .filter(|i| i.assignment.goal == keel_model::Goal::Run)
            .collect()
    }

    /// Instances of a service that are wanted and ready.
    pub fn ready(&self, name: &str) -> usize {
        self.slots(name).into_iter().filter(|i| check::ready(i)).count()
    }

    pub fn state(&self, name: &str) -> RolloutState {
        self.observed.rollouts[&build::name(name)].state
    }

    pub fn story(&self) -> String {
        self.log.join("\n")
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Create(a) => format!("  create {} {} ({})", a.id, a.revision, a.reason),
        Action::Update(a) => format!(
            "  update {} {:?}>{:?} attempt {} failures {} ({})",
            a.id, a.goal, a.after_drain, a.attempt, a.failures, a.reason
        ),
        Action::Forget(id) => format!("  forget {id}"),
        Action::SetRollout(r) => {
            format!(
                "  rollout {} {:?} to {} ({}) {:?}",
                r.service, r.state, r.to, r.reason, r.marks
            )
        }
        Action::SetSerial(service, serial) => format!("  serial {service} {serial}"),
        Action::ForgetStack => "  forget stack".to_owned(),
        Action::Event { kind, instance, message, .. } => {
            format!("  event {kind:?} {instance:?} {message}")
        }
    }
}
