//! The control loop: plan each stack, write what the plan says, until there is nothing left to do.
//!
//! A wake-up carries nothing. Each turn takes the whole world and the whole board, and every write is conditional
//! on what the plan was made from, so that a turn that raced with a user's change is thrown away and done again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{InstanceId, NodeName, StackName, Timestamp};
use keel_plan::{Action, Desired, Instance, Observed, Plan};
use keel_runtime::Runtime;
use keel_store::{Outcome, Store, Transaction};

use crate::board::{Board, BoardView};
use crate::events::EventLog;
use crate::world::{StackState, World, WorldReader};
use crate::{Error, clock, keys, volumes};

/// Actions written in one transaction. A plan is level-triggered, so that a crash between two parts of it is
/// only a turn that was cut short.
const ACTIONS_PER_TRANSACTION: usize = 100;
/// Plans for one stack in one turn; a plan that never ends would starve the others.
const PLANS_PER_TURN: usize = 64;
/// The safety net: a turn at least this often.
const RESCAN: Duration = Duration::from_secs(5);
/// Pause after a turn that failed.
const RETRY: Duration = Duration::from_millis(250);

/// Everything that the loop works on.
pub struct Controller {
    /// This machine.
    pub node: NodeName,
    /// Where decisions are written.
    pub store: Arc<dyn Store>,
    /// Where the world comes from.
    pub worlds: Arc<WorldReader>,
    /// What the node knows.
    pub board: Arc<Board>,
    /// Where decisions are told.
    pub events: Arc<EventLog>,
    /// Keeps the volumes that a removed stack may take with it.
    pub runtime: Arc<dyn Runtime>,
}

impl Controller {
    /// Runs until cancelled.
    pub async fn run(self) {
        let mut stored = self.store.watch(keys::STACKS);
        let mut board = self.board.subscribe();
        loop {
            board.borrow_and_update();
            let pause = match self.turn().await {
                Ok(Some(wake)) => wake.since(clock::now()).min(RESCAN),
                Ok(None) => RESCAN,
                Err(error) => {
                    tracing::warn!(%error, "a control turn failed");
                    RETRY
                }
            };
            tokio::select! {
                () = stored.changed() => {}
                changed = board.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One turn over all stacks; the earliest time at which a deadline passes.
    async fn turn(&self) -> Result<Option<Timestamp>, Error> {
        let world = self.worlds.refresh().await?;
        let mut wake: Option<Timestamp> = None;
        for name in world.stacks.keys() {
            if let Some(at) = self.settle(name, &world).await? {
                wake = Some(wake.map_or(at, |wake| wake.min(at)));
            }
        }
        let world = self.worlds.current();
        self.board.retain(|id| world.stacks.values().any(|s| s.assignments.contains_key(id)));
        Ok(wake)
    }

    async fn settle(
        &self,
        name: &StackName,
        world: &Arc<World>,
    ) -> Result<Option<Timestamp>, Error> {
        let mut world = world.clone();
        for _ in 0..PLANS_PER_TURN {
            let Some(stack) = world.stacks.get(name) else { return Ok(None) };
            let Some((desired, observed)) = inputs(stack, &self.board.view(), &self.node) else {
                return Ok(None);
            };
            let Plan { actions, wake_at } = keel_plan::plan(&desired, &observed, clock::now());
            if actions.is_empty() {
                return Ok(wake_at);
            }
            self.execute(name, stack, &actions).await?;
            world = self.worlds.refresh().await?;
        }
        tracing::warn!(stack = %name, "the plan did not settle in {PLANS_PER_TURN} steps");
        Ok(Some(clock::now() + RETRY))
    }

    async fn execute(
        &self,
        name: &StackName,
        stack: &StackState,
        actions: &[Action],
    ) -> Result<(), Error> {
        if actions.contains(&Action::ForgetStack) {
            self.remove_volumes(stack).await;
        }
        for part in actions.chunks(ACTIONS_PER_TRANSACTION) {
            let transaction = transaction(name, stack, part);
            if !transaction.writes.is_empty()
                && self.store.commit(transaction).await? == Outcome::Conflict
            {
                return Ok(());
            }
            for action in part {
                self.tell(name, action);
            }
        }
        Ok(())
    }

    /// `keel down -v`: done before the stack is forgotten, so that a crash in between only does it again.
    async fn remove_volumes(&self, stack: &StackState) {
        let Some(record) = stack.record.as_ref().filter(|r| r.value.remove_volumes) else { return };
        let name = &record.value.stack.name;
        let mut names = volumes::defined(&record.value.stack);
        // Those too that only an earlier file named.
        let all = self.runtime.volumes().await.unwrap_or_default();
        names.extend(volumes::made_for(name, &all));
        let external = record.value.stack.volumes.values().filter(|volume| volume.external);
        external.for_each(|volume| {
            names.remove(&volume.name);
        });
        let world = self.worlds.current();
        for message in volumes::delete(&*self.runtime, &world, name, names).await {
            self.events.add(keel_model::EventKind::Platform, Some(name), None, None, message);
        }
    }

    fn tell(&self, stack: &StackName, action: &Action) {
        if let Action::Event { kind, service, instance, message } = action {
            let (service, instance) = (service.as_ref(), instance.as_ref());
            self.events.add(*kind, Some(stack), service, instance, message.clone());
        }
    }
}

/// What the planner is given for one stack; `None` when its record is gone.
pub fn inputs(
    stack: &StackState,
    board: &BoardView,
    node: &NodeName,
) -> Option<(Desired, Observed)> {
    let record = stack.record.as_ref()?;
    let desired = Desired {
        record: keel_model::StackRecord::clone(&record.value),
        revisions: stack
            .revisions
            .iter()
            .map(|(key, service)| (key.clone(), keel_model::Service::clone(service)))
            .collect(),
    };
    let instances: BTreeMap<InstanceId, Instance> = stack
        .assignments
        .iter()
        .map(|(id, assignment)| {
            let instance = Instance {
                assignment: keel_model::Assignment::clone(&assignment.value),
                status: board.statuses.get(id).map(|s| keel_model::InstanceStatus::clone(s)),
                gone: board.gone.contains(id),
                drained: board.drained.contains(id)
                    && (assignment.value.adoption.is_none() || board.quiet.contains(id)),
            };
            (id.clone(), instance)
        })
        .collect();
    let observed = Observed {
        nodes: vec![node.clone()],
        instances,
        rollouts: stack
            .rollouts
            .iter()
            .map(|(name, rollout)| (name.clone(), keel_model::Rollout::clone(&rollout.value)))
            .collect(),
        next_serial: stack.serials.clone(),
    };
    Some((desired, observed))
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have only string keys")
}

/// The writes of `actions`, under the condition that nothing they were decided from has changed.
fn transaction(name: &StackName, stack: &StackState, actions: &[Action]) -> Transaction {
    let mut transaction = Transaction::new();
    if let Some(record) = &stack.record {
        transaction = transaction.if_version(keys::record(name), record.version);
    }
    // A plan may speak twice of the same rollout or serial; the last word counts.
    let mut serials = BTreeMap::new();
    let mut rollouts = BTreeMap::new();
    let mut assignments = BTreeMap::new();
    for action in actions {
        match action {
            Action::Create(assignment) | Action::Update(assignment) => {
                assignments.insert(assignment.id.clone(), Some(assignment));
            }
            Action::Forget(id) => {
                assignments.insert(id.clone(), None);
            }
            Action::SetRollout(rollout) => {
                rollouts.insert(rollout.service.clone(), rollout);
            }
            Action::SetSerial(service, next) => {
                serials.insert(service.clone(), *next);
            }
            Action::ForgetStack => {
                return transaction.delete_prefix(keys::stack(name));
            }
            Action::Event { .. } => {}
        }
    }
    for (id, assignment) in assignments {
        let key = keys::assignment(name, &id);
        transaction = match stack.assignments.get(&id) {
            Some(old) => transaction.if_version(&key, old.version),
            None => transaction.if_absent(&key),
        };
        transaction = match assignment {
            Some(assignment) => transaction.put(key, encode(assignment)),
            None => transaction.delete(key).delete(keys::status(&id)),
        };
    }
    for (service, rollout) in rollouts {
        transaction = transaction.put(keys::rollout(name, &service), encode(rollout));
    }
    for (service, next) in serials {
        transaction = transaction.put(keys::serial(name, &service), encode(&next));
    }
    transaction
}
