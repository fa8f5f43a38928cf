//! The node agent: brings the instances assigned to this node to their goals.
//!
//! One worker task per assigned instance; this module only makes sure that every assignment has its worker and that
//! the worker knows the latest word of the leader. What the runtime still runs after a restart of the server is
//! taken over, never started again.

mod direct;
mod health;
mod hosts;
mod launch;
mod prepare;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;

use keel_model::{
    Assignment, Exit, Generation, Health, InstanceId, InstanceStatus, NodeName, Phase,
};
use keel_runtime::{Runtime, Seen};
use keel_store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::board::Board;
use crate::events::EventLog;
use crate::network::Network;
use crate::world::{World, WorldReader};
use crate::{Error, clock};

pub use direct::Direct;
pub use hosts::Hosts;
pub use launch::beside;
pub use prepare::Preparations;

/// What every worker uses.
pub struct Context {
    /// This machine.
    pub node: NodeName,
    /// Runs instances.
    pub runtime: Arc<dyn Runtime>,
    /// Where statuses are shown.
    pub board: Arc<Board>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// Where assignments and definitions come from.
    pub worlds: Arc<WorldReader>,
    /// Remembers which `pre_start` steps ran.
    pub store: Arc<dyn Store>,
    /// Names and addresses.
    pub network: Arc<Network>,
    /// `pre_start` steps under way.
    pub preparations: Preparations,
}

impl Context {
    /// Takes over what the runtime still runs, and marks what ended while no server watched.
    ///
    /// # Errors
    /// When the runtime can't tell.
    pub async fn adopt(&self) -> Result<(), Error> {
        let seen = self.runtime.list().await.map_err(|e| Error::Runtime(e.to_string()))?;
        let mut seen: BTreeMap<InstanceId, Seen> =
            seen.into_iter().map(|seen| (seen.id.clone(), seen)).collect();
        for (id, status) in self.board.view().statuses {
            match seen.remove(&id) {
                Some(seen) => self.board.set(merge(&status, &seen)),
                None if matches!(status.phase, Phase::Running | Phase::Stopping) => {
                    self.board.set(lost(&status));
                }
                None => {}
            }
        }
        // Started, but the server died before it could note so.
        for seen in seen.into_values() {
            self.board.set(fresh(&seen));
        }
        Ok(())
    }

    /// Runs until cancelled.
    pub async fn run(self: Arc<Self>) {
        let mut worlds = self.worlds.subscribe();
        let mut workers: BTreeMap<InstanceId, watch::Sender<Arc<Assignment>>> = BTreeMap::new();
        let mut tasks: JoinSet<InstanceId> = JoinSet::new();
        loop {
            let world = worlds.borrow_and_update().clone();
            self.assign(&world, &mut workers, &mut tasks);
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() { return },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(id) => { workers.remove(&id); }
                    Err(error) => tracing::error!(%error, "an instance's worker failed"),
                },
            }
        }
    }

    fn assign(
        self: &Arc<Self>,
        world: &World,
        workers: &mut BTreeMap<InstanceId, watch::Sender<Arc<Assignment>>>,
        tasks: &mut JoinSet<InstanceId>,
    ) {
        let board = self.board.view();
        for stack in world.stacks.values() {
            for (id, stored) in &stack.assignments {
                if stored.value.node != self.node || board.gone.contains(id) {
                    continue;
                }
                // A worker that panicked is replaced; its instance is taken over from the board.
                match workers.get(id).filter(|worker| !worker.is_closed()) {
                    Some(worker) => {
                        worker.send_if_modified(|held| newer(held, &stored.value));
                    }
                    None => {
                        let (sender, receiver) = watch::channel(stored.value.clone());
                        workers.insert(id.clone(), sender);
                        tasks.spawn(worker::run(self.clone(), receiver));
                    }
                }
            }
        }
    }
}

/// Takes `word` only if it is newer than what is held: an older generation is refused.
fn newer(held: &mut Arc<Assignment>, word: &Arc<Assignment>) -> bool {
    let newer = word.generation > held.generation;
    if newer {
        *held = word.clone();
    }
    newer
}

/// What was stored, corrected by what the runtime sees.
fn merge(stored: &InstanceStatus, seen: &Seen) -> InstanceStatus {
    if seen.attempt != stored.attempt {
        return InstanceStatus { generation: stored.generation, ..fresh(seen) };
    }
    let ended = seen.exit.is_some();
    InstanceStatus {
        phase: if ended { Phase::Exited } else { Phase::Running },
        pid: if ended { None } else { seen.pid },
        ports: seen.ports.clone(),
        address: seen.address,
        ready: stored.ready && !ended,
        exit: seen.exit.clone(),
        started_at: Some(seen.started_at),
        shares: seen.shares.clone(),
        ..stored.clone()
    }
}

/// All that is known of an instance that nobody wrote about.
fn fresh(seen: &Seen) -> InstanceStatus {
    InstanceStatus {
        id: seen.id.clone(),
        generation: Generation(0),
        attempt: seen.attempt,
        phase: if seen.exit.is_some() { Phase::Exited } else { Phase::Running },
        pid: seen.pid,
        ports: seen.ports.clone(),
        address: seen.address,
        ready: false,
        ready_since: None,
        health: Health::Starting,
        started_at: Some(seen.started_at),
        exit: seen.exit.clone(),
        failure: None,
        message: String::new(),
        not_enforced: seen.not_enforced.clone(),
        shares: seen.shares.clone(),
    }
}

/// It ran, and nothing is left of it.
fn lost(stored: &InstanceStatus) -> InstanceStatus {
    InstanceStatus {
        phase: Phase::Exited,
        pid: None,
        ready: false,
        exit: Some(Exit { code: None, signal: None, oom: false, at: clock::now() }),
        message: "it was gone when the server came back; its exit code is not known".to_owned(),
        ..stored.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keel_model::{Goal, ServiceName, StackName, Timestamp};

    fn word(generation: u64, goal: Goal) -> Arc<Assignment> {
        let (stack, service) = (StackName::new("s").unwrap(), ServiceName::new("x").unwrap());
        Arc::new(Assignment {
            id: InstanceId::numbered(&stack, &service, 1),
            stack,
            service,
            revision: keel_model::RevisionId::new("0123456789ab").unwrap(),
            node: NodeName::new("here").unwrap(),
            generation: Generation(generation),
            attempt: 1,
            failures: 0,
            restarts: 0,
            goal,
            reason: String::new(),
            created_at: Timestamp(0),
            goal_since: Timestamp(0),
            after_drain: Goal::Remove,
            adoption: None,
        })
    }

    #[test]
    fn an_older_word_of_the_leader_is_refused() {
        let mut held = word(5, Goal::Drain);
        assert!(!newer(&mut held, &word(4, Goal::Run)));
        assert!(!newer(&mut held, &word(5, Goal::Run)));
        assert_eq!(held.goal, Goal::Drain);
        assert!(newer(&mut held, &word(6, Goal::Remove)));
        assert_eq!(held.goal, Goal::Remove);
    }
}
