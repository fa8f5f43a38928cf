//! What this node knows of its instances right now.
//!
//! The board is memory: it is ahead of the store by the time that a write takes, so that an exit leaves the load
//! balancer without waiting for a disk. A writer persists what changed; after a restart the stored statuses
//! only carry over what the runtime can't tell (readiness, health).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use keel_model::{InstanceId, InstanceStatus};
use keel_store::{Store, Transaction};
use tokio::sync::watch;

use crate::{Error, keys};

/// Status writes in one transaction.
const WRITE_BATCH: usize = 200;

/// The statuses of this node's instances, and which of them were drained or forgotten.
pub struct Board {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    statuses: BTreeMap<InstanceId, Arc<InstanceStatus>>,
    gone: BTreeSet<InstanceId>,
    drained: BTreeSet<InstanceId>,
    quiet: BTreeSet<InstanceId>,
    unsaved: BTreeSet<InstanceId>,
}

/// One look at the board.
#[derive(Clone, Debug, Default)]
pub struct BoardView {
    /// Statuses by instance.
    pub statuses: BTreeMap<InstanceId, Arc<InstanceStatus>>,
    /// Instances whose files are wiped; their records can go.
    pub gone: BTreeSet<InstanceId>,
    /// Instances that every proxy has acknowledged to spare, and that have nothing in flight.
    pub drained: BTreeSet<InstanceId>,
    /// Draining instances that were taken over and that nobody is connected to past the proxy.
    pub quiet: BTreeSet<InstanceId>,
}

impl Board {
    /// A board with the statuses that were stored before.
    ///
    /// # Errors
    /// When the store can't be read. A status of an unknown form is dropped: its node will report again.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let mut state = State::default();
        for entry in store.list(keys::STATUS).await?.entries {
            if let Ok(status) = serde_json::from_slice::<InstanceStatus>(&entry.value) {
                state.statuses.insert(status.id.clone(), Arc::new(status));
            }
        }
        Ok(Self { state: Mutex::new(state), changed: watch::channel(0).0 })
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        let changed = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The status of one instance.
    pub fn get(&self, id: &InstanceId) -> Option<Arc<InstanceStatus>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).statuses.get(id).cloned()
    }

    /// A look at everything.
    pub fn view(&self) -> BoardView {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        BoardView {
            statuses: state.statuses.clone(),
            gone: state.gone.clone(),
            drained: state.drained.clone(),
            quiet: state.quiet.clone(),
        }
    }

    /// Replaces the status of one instance; wakes only when it differs.
    pub fn set(&self, status: InstanceStatus) {
        self.change(|state| {
            let id = status.id.clone();
            if state.statuses.get(&id).is_some_and(|old| **old == status) {
                return false;
            }
            state.unsaved.insert(id.clone());
            state.statuses.insert(id, Arc::new(status));
            true
        });
    }

    /// The instance's files are wiped.
    pub fn set_gone(&self, id: &InstanceId) {
        self.change(|state| state.gone.insert(id.clone()));
    }

    /// Replaces the set of drained instances.
    pub fn set_drained(&self, drained: BTreeSet<InstanceId>) {
        self.change(|state| {
            let differs = state.drained != drained;
            state.drained = drained;
            differs
        });
    }

    /// Replaces the set of instances that nobody is connected to past the proxy.
    pub fn set_quiet(&self, quiet: BTreeSet<InstanceId>) {
        self.change(|state| {
            let differs = state.quiet != quiet;
            state.quiet = quiet;
            differs
        });
    }

    /// Forgets instances that are no longer assigned.
    pub fn retain(&self, assigned: impl Fn(&InstanceId) -> bool) {
        self.change(|state| {
            let lost: Vec<InstanceId> =
                state.statuses.keys().filter(|id| !assigned(id)).cloned().collect();
            for id in &lost {
                state.statuses.remove(id);
                state.unsaved.insert(id.clone());
            }
            state.gone.retain(|id| assigned(id));
            !lost.is_empty()
        });
    }

    /// Wakes with every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes changed statuses to the store until the board is dropped. A failed write is tried again with the
    /// next change: statuses are never the only copy of anything.
    pub async fn persist(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut changed = self.subscribe();
        while changed.changed().await.is_ok() {
            loop {
                let (batch, transaction) = self.take_batch();
                if batch.is_empty() {
                    break;
                }
                if let Err(error) = store.commit(transaction).await {
                    tracing::warn!(%error, "statuses could not be saved");
                    self.state.lock().unwrap_or_else(PoisonError::into_inner).unsaved.extend(batch);
                    break;
                }
            }
        }
    }

    fn take_batch(&self) -> (Vec<InstanceId>, Transaction) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<InstanceId> = state.unsaved.iter().take(WRITE_BATCH).cloned().collect();
        let mut transaction = Transaction::new();
        for id in &batch {
            state.unsaved.remove(id);
            transaction = match state.statuses.get(id) {
                Some(status) => transaction.put(
                    keys::status(id),
                    serde_json::to_vec(&**status).expect("a status has only string keys"),
                ),
                None => transaction.delete(keys::status(id)),
            };
        }
        (batch, transaction)
    }
}
