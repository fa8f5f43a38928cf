//! The fake node and proxy: they act on assignments, late and imperfectly.
//!
//! A program behaves as the variable `MODE` of its spec says: `good` is ready after 200 ms; `slow` after 3 s; `crash`
//! exits with 1 after 100 ms; `late` exits with 1 after having been ready for 500 ms; `never` is never ready;
//! `missing` can't be started; `sick` becomes unhealthy 3 s after it was ready; `done` and `fail` end with 0 and 1.

use std::time::Duration;

use keel_model::{
    Assignment, Exit, Goal, Health, InstanceId, InstanceStatus, Phase, StartFailure, Timestamp,
};

use super::World;

const STEP: Duration = Duration::from_millis(40);

/// What the node holds of one instance.
pub struct Process {
    pub status: InstanceStatus,
    mode: String,
    /// When a requested stop will be through.
    stopping: Option<Timestamp>,
    /// When the proxies will have acknowledged, and the last request will be through.
    drained_at: Option<Timestamp>,
    never_drains: bool,
}

impl Process {
    pub fn runs(&self) -> bool {
        matches!(self.status.phase, Phase::Running | Phase::Stopping)
    }

    fn end(&mut self, at: Timestamp, code: Option<i32>, signal: Option<i32>) {
        let status = &mut self.status;
        status.phase = Phase::Exited;
        status.pid = None;
        status.health = Health::None;
        if status.ready {
            status.ready = false;
            status.ready_since = Some(at);
        }
        status.exit = Some(Exit { code, signal, oom: false, at });
        self.stopping = None;
    }

    fn live(&mut self, now: Timestamp) {
        let Some(started) = self.status.started_at.filter(|_| self.status.phase == Phase::Running)
        else {
            return;
        };
        let age = now.since(started).as_millis();
        let ready_at = match self.mode.as_str() {
            "slow" => Some(3_000),
            "never" | "crash" | "done" | "fail" => None,
            _ => Some(200),
        };
        if ready_at.is_some_and(|at| age >= at) && !self.status.ready && age < 3_000_000_000 {
            let sick = self.status.health == Health::Unhealthy;
            if !sick {
                self.status.ready = true;
                self.status.ready_since = Some(now);
            }
        }
        match self.mode.as_str() {
            "crash" | "fail" if age >= 100 => self.end(now, Some(1), None),
            "late" if age >= 700 => self.end(now, Some(1), None),
            "done" if age >= 300 => self.end(now, Some(0), None),
            "sick" if age >= 3_200 && self.status.health != Health::Unhealthy => {
                self.status.health = Health::Unhealthy;
                self.status.ready = false;
                self.status.ready_since = Some(now);
            }
            _ => {}
        }
    }

    /// When it will next do something by itself.
    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let started = self.status.started_at.filter(|_| self.status.phase == Phase::Running);
        let ages = match self.mode.as_str() {
            "slow" => [3_000, 0],
            "crash" | "fail" => [100, 0],
            "late" => [200, 700],
            "done" => [300, 0],
            "sick" => [200, 3_200],
            _ => [200, 0],
        };
        let lives = ages.into_iter().filter_map(|age| Some(started? + Duration::from_millis(age)));
        let others = [self.stopping, self.drained_at.filter(|_| !self.never_drains)];
        lives.chain(others.into_iter().flatten()).filter(|at| *at > now).min()
    }
}

impl World {
    /// The node and the proxies do what is due.
    pub fn work(&mut self) {
        let assignments: Vec<Assignment> =
            self.observed.instances.values().map(|i| i.assignment.clone()).collect();
        let asleep = self.faults.lag > 0 && self.dice.one_in(self.faults.lag);
        for assignment in assignments {
            if !asleep {
                self.obey(&assignment);
            }
            let now = self.now;
            let Some(process) = self.processes.get_mut(&assignment.id) else { continue };
            process.live(now);
            if process.stopping.is_some_and(|at| at <= now) {
                process.end(now, Some(0), None);
            }
            let ended = matches!(process.status.phase, Phase::Exited | Phase::Failed);
            let drained = !process.never_drains && process.drained_at.is_some_and(|at| at <= now);
            let (status, seen) = (process.status.clone(), process.status.generation);
            let instance = self.observed.instances.get_mut(&assignment.id).expect("assigned");
            instance.gone =
                assignment.goal == Goal::Remove && ended && seen == assignment.generation;
            instance.drained = assignment.goal == Goal::Drain && drained && !asleep;
            if !asleep {
                instance.status = Some(status);
            }
        }
    }

    fn obey(&mut self, assignment: &Assignment) {
        let now = self.now;
        if !self.processes.contains_key(&assignment.id) {
            let process = self.admit(assignment);
            self.processes.insert(assignment.id.clone(), process);
        }
        let flight = Duration::from_millis(10 + self.dice.roll(400));
        let stuck = self.faults.stuck_drain > 0 && self.dice.one_in(self.faults.stuck_drain);
        let process = self.processes.get_mut(&assignment.id).expect("admitted above");
        if process.status.generation >= assignment.generation {
            return;
        }
        process.status.generation = assignment.generation;
        process.drained_at = None;
        match assignment.goal {
            Goal::Run if assignment.attempt > process.status.attempt => {
                start(process, assignment, now)
            }
            Goal::Run => {}
            Goal::Drain => {
                process.drained_at = Some(now + flight);
                process.never_drains = stuck;
            }
            Goal::Stop | Goal::Remove if process.status.phase == Phase::Running => {
                process.status.phase = Phase::Stopping;
                process.status.ready = false;
                process.status.ready_since = Some(now);
                process.stopping = Some(now + Duration::from_millis(150));
            }
            Goal::Stop | Goal::Remove if process.status.phase == Phase::Preparing => {
                process.end(now, None, None);
            }
            Goal::Stop | Goal::Remove => {}
        }
    }

    fn admit(&self, assignment: &Assignment) -> Process {
        let key = (assignment.service.clone(), assignment.revision.clone());
        let current = self.desired.record.stack.services.get(&assignment.service);
        let spec = current
            .filter(|service| service.spec.revision() == assignment.revision)
            .or_else(|| self.desired.revisions.get(&key))
            .map(|service| &service.spec)
            .expect("the planner creates only what is defined");
        Process {
            status: InstanceStatus {
                id: assignment.id.clone(),
                generation: keel_model::Generation(0),
                attempt: 0,
                phase: Phase::Preparing,
                pid: None,
                ports: Vec::new(),
                address: None,
                ready: false,
                ready_since: None,
                health: Health::None,
                started_at: None,
                exit: None,
                failure: None,
                message: String::new(),
                not_enforced: Vec::new(),
                shares: Vec::new(),
            },
            mode: spec.environment["MODE"].clone(),
            stopping: None,
            drained_at: None,
            never_drains: false,
        }
    }

    /// Kills a process as a fault.
    pub fn kill(&mut self, id: &InstanceId) {
        let now = self.now;
        self.note(format!("kill -9 {id}"));
        let process = self.processes.get_mut(id).expect("a process");
        process.end(now, None, Some(9));
        if let Some(instance) = self.observed.instances.get_mut(id) {
            instance.status = Some(process.status.clone());
        }
    }

    /// When the node has something to do.
    pub fn next_work(&self) -> Option<Timestamp> {
        let late = self.observed.instances.values().any(|i| {
            let seen = self.processes.get(&i.assignment.id).map(|p| &p.status);
            seen.is_none_or(|s| s.generation < i.assignment.generation) || i.status.as_ref() != seen
        });
        let soon = late.then(|| self.now + STEP);
        self.processes.values().filter_map(|p| p.next(self.now)).chain(soon).min()
    }
}

fn start(process: &mut Process, assignment: &Assignment, now: Timestamp) {
    let status = &mut process.status;
    status.attempt = assignment.attempt;
    status.shares.clear();
    status.exit = None;
    status.failure = None;
    status.ready = false;
    status.ready_since = None;
    status.health = Health::None;
    process.stopping = None;
    if process.mode == "missing" {
        status.phase = Phase::Failed;
        status.failure = Some(StartFailure::NotFound);
        status.started_at = None;
    } else {
        status.phase = Phase::Running;
        status.started_at = Some(now);
    }
}
