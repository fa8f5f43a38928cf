//! One instance: from its assignment's goal to the runtime, and from the runtime to the board.
//!
//! The worker holds no state of its own between turns: it compares the leader's word with the instance's status
//! on the board and does the next thing. It ends when its instance is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use keel_model::{
    Adoption, Assignment, EventKind, Goal, Health, InstanceId, InstanceStatus, Phase, Service,
    StartFailure,
};
use keel_runtime::{ExecRequest, Launch, Seen, StartError, Started};
use tokio::sync::watch;

use super::Context;
use super::health::{self, Finding};
use crate::clock;

/// Longest run of one `post_start` or `pre_stop` step.
const HOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before wiping an instance's files is tried again.
const REMOVE_RETRY: Duration = Duration::from_secs(1);
/// Pause before an engine that was away is asked again.
pub(super) const AWAY_RETRY: Duration = Duration::from_millis(200);
/// Pause before taking over a container is tried again.
const ADOPT_RETRY: Duration = Duration::from_secs(1);
/// Longest text kept in a status, in bytes.
const MAX_MESSAGE: usize = 4096;

type Word = watch::Receiver<Arc<Assignment>>;

/// Works on one instance until it is gone; returns its id.
pub async fn run(context: Arc<Context>, mut word: Word) -> InstanceId {
    let id = word.borrow().id.clone();
    let worker = Worker { context, id: id.clone() };
    loop {
        let assignment = word.borrow_and_update().clone();
        worker.note(&assignment);
        let ended = match assignment.goal {
            Goal::Remove => {
                worker.remove(&assignment).await;
                return id;
            }
            Goal::Stop => {
                worker.stop(&assignment).await;
                word.changed().await.is_err()
            }
            Goal::Run | Goal::Drain => worker.keep_running(&assignment, &mut word).await,
        };
        if ended {
            return id;
        }
    }
}

/// What became of a container that was to be taken over.
enum Adopted {
    Yes(Started),
    /// Or it was taken over before: what follows is a start like any other.
    Gone,
    Withdrawn,
}

struct Worker {
    context: Arc<Context>,
    id: InstanceId,
}

impl Worker {
    /// Changes the status on the board.
    fn update(&self, change: impl FnOnce(&mut InstanceStatus)) {
        let mut status = match self.context.board.get(&self.id) {
            Some(status) => InstanceStatus::clone(&status),
            None => blank(&self.id),
        };
        let was_ready = status.ready;
        change(&mut status);
        cut(&mut status.message);
        if status.ready != was_ready {
            status.ready_since = Some(clock::now());
        }
        self.context.board.set(status);
    }

    fn status(&self) -> Option<Arc<InstanceStatus>> {
        self.context.board.get(&self.id)
    }

    /// Notes which word of the leader is being acted on.
    fn note(&self, assignment: &Assignment) {
        if self.status().is_some() {
            self.update(|status| status.generation = assignment.generation);
        }
    }

    fn tell(&self, assignment: &Assignment, kind: EventKind, message: impl Into<String>) {
        let (stack, service) = (Some(&assignment.stack), Some(&assignment.service));
        self.context.events.add(kind, stack, service, Some(&self.id), message);
    }

    /// Starts the wanted attempt if it was not started yet, watches it, and returns when there is something else
    /// to do: a new word, or an end. True when the leader is gone.
    async fn keep_running(&self, assignment: &Assignment, word: &mut Word) -> bool {
        let attempt = self.status().map_or(0, |status| status.attempt);
        // One that is to drain is not started any more.
        if attempt < assignment.attempt && assignment.goal == Goal::Run {
            self.start(assignment, word).await;
        }
        let status = self.status();
        match status {
            Some(status) if status.phase == Phase::Running => {
                self.supervise(assignment, &status, word).await
            }
            _ => word.changed().await.is_err(),
        }
    }

    async fn start(&self, assignment: &Assignment, word: &mut Word) {
        if self.status().is_some_and(|status| status.phase == Phase::Running) {
            self.stop(assignment).await;
        }
        let Some(service) = self.context.definition(assignment) else {
            return self.failed(
                assignment,
                StartFailure::Environment,
                "its definition is not in the store",
            );
        };
        self.update(|status| {
            *status = InstanceStatus {
                generation: assignment.generation,
                attempt: assignment.attempt,
                phase: Phase::Preparing,
                ..blank(&self.id)
            };
        });
        let launch = self.context.launch(assignment, &service);
        if let Some(adoption) = &assignment.adoption {
            match self.adopt(launch.clone(), adoption, word).await {
                Adopted::Yes(started) => return self.adopted(assignment, &service, started),
                Adopted::Gone => {}
                Adopted::Withdrawn => return,
            }
        }
        let waits = |why: &str| self.update(|status| why.clone_into(&mut status.message));
        let prepared = tokio::select! {
            prepared = self.context.prepare(assignment, &service, &launch, &waits) => prepared,
            () = withdrawn(word) => Err("it was withdrawn before it could start".to_owned()),
        };
        if let Err(reason) = prepared {
            return self.failed(assignment, StartFailure::Hook, &reason);
        }
        match self.start_when_possible(launch, word).await {
            Ok(started) => self.started(assignment, &service, started).await,
            Err(error) => self.failed(assignment, error.failure, &error.message),
        }
    }

    /// An engine that is away is waited for: that is no fault of the instance, and it is to run as soon as it can.
    async fn start_when_possible(
        &self,
        launch: Launch,
        word: &mut Word,
    ) -> Result<Started, StartError> {
        loop {
            let error = match self.context.runtime.start(launch.clone()).await {
                Err(error) if error.failure == StartFailure::Away => error,
                started => return started,
            };
            self.update(|status| status.message.clone_from(&error.message));
            tokio::select! {
                () = tokio::time::sleep(AWAY_RETRY) => {}
                () = withdrawn(word) => return Err(error),
            }
        }
    }

    /// Takes over the container that it begins with, if it has not been taken over before. An engine that is away is waited
    /// for: starting another container beside one that runs would be worse.
    async fn adopt(&self, launch: Launch, adoption: &Adoption, word: &mut Word) -> Adopted {
        if self.context.runtime.seen(&self.id).is_some() {
            return Adopted::Gone;
        }
        loop {
            match self.context.runtime.adopt(launch.clone(), &adoption.container).await {
                Ok(Some(started)) => return Adopted::Yes(started),
                Ok(None) => return Adopted::Gone,
                Err(error) => self.update(|status| status.message = error.message),
            }
            tokio::select! {
                () = tokio::time::sleep(ADOPT_RETRY) => {}
                () = withdrawn(word) => return Adopted::Withdrawn,
            }
        }
    }

    /// It runs, or had ended, before the platform knew of it: no step is run for it.
    fn adopted(&self, assignment: &Assignment, service: &Service, started: Started) {
        let message = match started.pid {
            0 => "taken over; it had ended".to_owned(),
            pid => format!("taken over as it runs (process {pid})"),
        };
        self.note_started(service, started);
        self.tell(assignment, EventKind::InstanceStarted, message);
    }

    fn note_started(&self, service: &Service, started: Started) {
        let health = if service.spec.health.is_some() { Health::Starting } else { Health::None };
        self.update(|status| {
            status.phase = Phase::Running;
            status.pid = Some(started.pid);
            status.ports = started.ports;
            status.address = started.address;
            status.health = health;
            status.started_at = Some(started.started_at);
            status.not_enforced = started.not_enforced;
            status.shares = started.shares;
            status.message.clear();
        });
    }

    async fn started(&self, assignment: &Assignment, service: &Service, started: Started) {
        let message = match started.pid {
            0 => "it had ended before its process was seen".to_owned(),
            pid => format!("process {pid}"),
        };
        self.note_started(service, started);
        self.tell(assignment, EventKind::InstanceStarted, message);
        for step in &service.spec.post_start {
            if let Err(reason) = self.step(step).await {
                self.stop(assignment).await;
                let reason = format!("a post_start step failed: {reason}");
                return self.failed(assignment, StartFailure::Hook, &reason);
            }
        }
    }

    async fn step(&self, step: &keel_model::Hook) -> Result<(), String> {
        let request = ExecRequest {
            command: step.command.clone(),
            environment: step.environment.clone(),
            working_dir: step.working_dir.clone(),
            user: step.user.clone(),
            privileged: step.privileged,
            timeout: Some(HOOK_TIMEOUT),
            ..ExecRequest::default()
        };
        match self.context.runtime.exec(&self.id, request).await {
            Ok(output) if output.code == 0 => Ok(()),
            Ok(output) => Err(health::last_words(&output.output).to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn failed(&self, assignment: &Assignment, failure: StartFailure, message: &str) {
        self.update(|status| {
            status.generation = assignment.generation;
            status.attempt = assignment.attempt;
            status.phase = Phase::Failed;
            status.ready = false;
            status.pid = None;
            status.failure = Some(failure);
            status.started_at.get_or_insert_with(clock::now);
            message.clone_into(&mut status.message);
        });
        self.tell(assignment, EventKind::InstanceFailed, message);
    }

    /// Watches a running instance. True when the leader is gone.
    async fn supervise(
        &self,
        assignment: &Assignment,
        status: &InstanceStatus,
        word: &mut Word,
    ) -> bool {
        let Some(service) = self.context.definition(assignment) else {
            return word.changed().await.is_err();
        };
        let runtime = &*self.context.runtime;
        // A server that died before it noted the start did not say whether there is a check.
        let known = match (&service.spec.health, status.health) {
            (None, _) => Health::None,
            (Some(_), Health::None) => Health::Starting,
            (Some(_), known) => known,
        };
        if known != status.health {
            self.update(|status| status.health = known);
        }
        let answering = AtomicBool::new(status.ready);
        let report = |finding| self.report(assignment, finding, &answering);
        let readiness = health::watch_readiness(
            service.readiness.clone(),
            service.spec.health.is_some(),
            status.ports.clone(),
            self.id.clone(),
            runtime,
            status.ready,
            &report,
        );
        let check = async {
            match &service.spec.health {
                Some(check) => {
                    let started = status.started_at.unwrap_or_else(clock::now);
                    let id = self.id.clone();
                    health::watch_health(check.clone(), id, runtime, started, known, &report).await;
                }
                None => std::future::pending().await,
            }
        };
        let mut ended = runtime.changed();
        let mut gone = false;
        tokio::pin!(readiness, check);
        loop {
            if self.has_ended(assignment, &mut gone) {
                return false;
            }
            tokio::select! {
                () = &mut readiness => {}
                () = &mut check => {}
                changed = ended.changed() => if changed.is_err() { return true },
                changed = word.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    let next = word.borrow_and_update().clone();
                    self.note(&next);
                    let same = next.attempt == assignment.attempt && next.goal <= Goal::Drain;
                    if !same {
                        word.mark_changed();
                        return false;
                    }
                }
            }
        }
    }

    /// Whether the process that was watched is no more, or another runs in its place. One that is gone gets no requests even
    /// before it is known how it ended.
    fn has_ended(&self, assignment: &Assignment, gone: &mut bool) -> bool {
        match self.context.runtime.seen(&self.id) {
            Some(Seen { exit: Some(exit), .. }) => {
                self.exited(assignment, exit);
                true
            }
            Some(Seen { pid: None, .. }) if !*gone => {
                *gone = true;
                self.update(|status| {
                    (status.ready, status.pid) = (false, None);
                    "its process has ended".clone_into(&mut status.message);
                });
                false
            }
            // Somebody else has started it again: what was known of it is about another process.
            Some(Seen { pid: Some(pid), .. }) if *gone => {
                self.update(|status| status.pid = Some(pid));
                true
            }
            _ => false,
        }
    }

    fn report(&self, assignment: &Assignment, finding: Finding, answering: &AtomicBool) {
        let before = self.status();
        self.update(|status| {
            let message = match finding {
                Finding::Answering(now, message) => {
                    answering.store(now, Relaxed);
                    message
                }
                Finding::Health(health, message) => {
                    status.health = health;
                    message
                }
            };
            status.message = message;
            // What was asked before its process ended may be answered after.
            status.ready = status.pid.is_some()
                && answering.load(Relaxed)
                && matches!(status.health, Health::None | Health::Healthy);
        });
        let (Some(before), Some(after)) = (before, self.status()) else { return };
        if after.health == Health::Unhealthy && before.health != Health::Unhealthy {
            self.tell(assignment, EventKind::InstanceUnhealthy, after.message.clone());
        } else if after.ready && !before.ready {
            self.tell(assignment, EventKind::InstanceReady, "ready");
        } else if before.ready && !after.ready {
            self.tell(assignment, EventKind::InstanceNotReady, after.message.clone());
        }
    }

    fn exited(&self, assignment: &Assignment, exit: keel_model::Exit) {
        let message = describe(&exit);
        self.update(|status| {
            status.phase = Phase::Exited;
            status.ready = false;
            status.pid = None;
            status.exit = Some(exit);
            status.message.clear();
        });
        self.tell(assignment, EventKind::InstanceExited, message);
    }

    /// Ends the process if it runs; `pre_stop` steps first.
    async fn stop(&self, assignment: &Assignment) {
        let running = self.context.runtime.seen(&self.id).is_some_and(|seen| seen.exit.is_none());
        if !running {
            return;
        }
        self.update(|status| {
            status.phase = Phase::Stopping;
            status.ready = false;
        });
        let service = self.context.definition(assignment);
        for step in service.iter().flat_map(|service| &service.spec.pre_stop) {
            if let Err(reason) = self.step(step).await {
                let message = format!("a pre_stop step failed: {reason}");
                self.tell(assignment, EventKind::Platform, message);
            }
        }
        let policy = service.map(|service| service.stop).unwrap_or_default();
        match self.context.runtime.stop(&self.id, policy.signal, policy.grace).await {
            Ok(exit) => self.exited(assignment, exit),
            Err(error) => {
                let message = format!("it could not be stopped: {error}");
                self.tell(assignment, EventKind::Platform, message.clone());
                self.update(|status| status.message = message);
            }
        }
    }

    async fn remove(&self, assignment: &Assignment) {
        self.stop(assignment).await;
        // A busy mount or a full disk passes; until then the instance stays visible.
        while let Err(error) = self.context.runtime.remove(&self.id).await {
            self.update(|status| status.message = format!("its files can't be removed: {error}"));
            tokio::time::sleep(REMOVE_RETRY).await;
        }
        self.context.board.set_gone(&self.id);
    }
}

/// Returns when the instance is no longer wanted to run.
async fn withdrawn(word: &mut Word) {
    loop {
        let goal = word.borrow_and_update().goal;
        if goal > Goal::Drain {
            word.mark_changed();
            return;
        }
        if word.changed().await.is_err() {
            return;
        }
    }
}

fn blank(id: &InstanceId) -> InstanceStatus {
    InstanceStatus {
        id: id.clone(),
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
    }
}

fn describe(exit: &keel_model::Exit) -> String {
    match (exit.oom, exit.signal, exit.code) {
        (true, _, _) => "killed by the kernel: out of memory".to_owned(),
        (_, Some(signal), _) => format!("ended by signal {signal}"),
        (_, _, Some(code)) => format!("exited with code {code}"),
        _ => "ended; nobody saw how".to_owned(),
    }
}

fn cut(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        let at = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(at);
    }
}
