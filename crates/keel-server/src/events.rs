//! What happened: a bounded log in memory, saved behind the scenes.
//!
//! Events inform, they decide nothing: losing the newest few in a crash is allowed, blocking on them is not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use keel_model::{Event, EventKind, InstanceId, ServiceName, StackName};
use keel_store::{Store, Transaction};
use tokio::sync::watch;

use crate::{Error, clock, keys};

/// Events that are kept.
const KEPT: usize = 10_000;
/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Events saved in one transaction (each may also delete an old one).
const SAVE_BATCH: usize = 200;

/// The log of events.
pub struct EventLog {
    state: Mutex<State>,
    newest: watch::Sender<u64>,
}

struct State {
    events: VecDeque<Event>,
    next: u64,
    saved: u64,
}

impl EventLog {
    /// The log with what was saved before.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let listing = store.list(keys::EVENTS).await?;
        let events: VecDeque<Event> = listing
            .entries
            .iter()
            .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
            .collect();
        let next = events.back().map_or(1, |event| event.seq + 1);
        let state = State { events, next, saved: next - 1 };
        Ok(Self { state: Mutex::new(state), newest: watch::channel(next - 1).0 })
    }

    /// Adds an event.
    pub fn add(
        &self,
        kind: EventKind,
        stack: Option<&StackName>,
        service: Option<&ServiceName>,
        instance: Option<&InstanceId>,
        message: impl Into<String>,
    ) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let cut = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = state.next;
        state.next += 1;
        state.events.push_back(Event {
            seq,
            at: clock::now(),
            kind,
            stack: stack.cloned(),
            service: service.cloned(),
            instance: instance.cloned(),
            message,
        });
        if state.events.len() > KEPT {
            state.events.pop_front();
        }
        drop(state);
        self.newest.send_replace(seq);
    }

    /// Events after `seq`, oldest first.
    pub fn after(&self, seq: u64) -> Vec<Event> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = state.events.partition_point(|event| event.seq <= seq);
        state.events.range(first..).cloned().collect()
    }

    /// The newest event of this kind.
    pub fn newest(&self, is_it: impl Fn(&Event) -> bool) -> Option<Event> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.events.iter().rev().find(|event| is_it(event)).cloned()
    }

    /// Wakes with every event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Saves new events until the log is dropped. What can't be saved now is saved with the next event.
    pub async fn persist(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut newest = self.subscribe();
        while newest.changed().await.is_ok() {
            loop {
                let saved = self.state.lock().unwrap_or_else(PoisonError::into_inner).saved;
                let batch: Vec<Event> = self.after(saved).into_iter().take(SAVE_BATCH).collect();
                let Some(last) = batch.last().map(|event| event.seq) else { break };
                let mut transaction = Transaction::new();
                for event in &batch {
                    let value = serde_json::to_vec(event).expect("an event has only string keys");
                    transaction = transaction.put(keys::event(event.seq), value);
                    if let Some(old) = event.seq.checked_sub(KEPT as u64) {
                        transaction = transaction.delete(keys::event(old));
                    }
                }
                if let Err(error) = store.commit(transaction).await {
                    tracing::warn!(%error, "events could not be saved");
                    break;
                }
                self.state.lock().unwrap_or_else(PoisonError::into_inner).saved = last;
            }
        }
    }
}
