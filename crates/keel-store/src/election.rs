//! Elections over the plain store contract, the same for every implementation.
//!
//! The leader of an election is named by one key that it holds under a lease. The version at which it wrote that key
//! is its generation: every later leader has a higher one. A leader whose renewals fail gives up before its
//! lease can have run out, so that two never believe to lead at once as long as clocks run at about the same rate.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::transaction::check_key;
use crate::{Condition, Error, LeaseId, Outcome, Store, Transaction, Version};

/// Renewals per ttl.
const RENEWALS: u32 = 3;

/// The lead in one election; given up when dropped.
#[derive(Debug)]
pub struct Leadership {
    key: String,
    generation: Version,
    lost: watch::Receiver<bool>,
    resign: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Leadership {
    /// Fences: higher than that of every earlier leader of this election.
    #[must_use]
    pub fn generation(&self) -> Version {
        self.generation
    }

    /// Holds in the store as long as this leads. A transaction with this condition can't be applied by a leader
    /// that has been replaced without noticing.
    #[must_use]
    pub fn fence(&self) -> Condition {
        Condition::VersionIs { key: self.key.clone(), version: self.generation }
    }

    /// Whether the lead is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Returns when the lead is gone. Cancel-safe.
    pub async fn lost(&self) {
        // An error means that the renewing task has ended, which it does only after the lead is gone.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Gives the lead up and returns once others may take it.
    pub async fn resign(mut self) {
        drop(self.resign.take());
        if let Some(task) = self.task.take() {
            // A join error means that the runtime is going down; the lease then runs out by itself.
            let _ = task.await;
        }
    }
}

/// Waits for the lead. `store` is a cheap handle, kept while leading.
pub(crate) async fn campaign<S: Store + Clone>(
    store: S,
    name: &str,
    candidate: &str,
    ttl: Duration,
) -> Result<Leadership, Error> {
    let key = format!("election/{name}");
    check_key(&key)?;
    loop {
        let mut watch = store.watch(&key);
        let current = store.get(&key).await?;
        let attempt = Transaction::new();
        let attempt = match &current {
            None => attempt.if_absent(&key),
            Some(entry) if &*entry.value == candidate.as_bytes() => {
                attempt.if_version(&key, entry.version)
            }
            Some(_) => {
                watch.changed().await;
                continue;
            }
        };
        let started = Instant::now();
        let lease = store.grant(ttl).await?;
        match store.commit(attempt.put_leased(&key, candidate, lease)).await {
            Ok(Outcome::Committed(generation)) => {
                return Ok(hold(store, key, generation, lease, ttl, started));
            }
            Ok(Outcome::Conflict) | Err(Error::LeaseLost(_)) => store.revoke(lease).await?,
            Err(error) => {
                // The lease runs out by itself if it can't be revoked either.
                let _ = store.revoke(lease).await;
                return Err(error);
            }
        }
    }
}

fn hold<S: Store>(
    store: S,
    key: String,
    generation: Version,
    lease: LeaseId,
    ttl: Duration,
    started: Instant,
) -> Leadership {
    let (lost_sender, lost) = watch::channel(false);
    let (resign, resigned) = oneshot::channel();
    let watched = key.clone();
    let task = tokio::spawn(async move {
        tokio::select! {
            () = renew(&store, lease, ttl, started) => {}
            () = replaced(&store, &watched, generation) => {}
            _ = resigned => {}
        }
        lost_sender.send_replace(true);
        // Best effort: the lease runs out by itself.
        let _ = store.revoke(lease).await;
    });
    Leadership { key, generation, lost, resign: Some(resign), task: Some(task) }
}

/// Keeps the lease until that fails for so long that the lease may run out.
async fn renew<S: Store>(store: &S, lease: LeaseId, ttl: Duration, started: Instant) {
    let margin = ttl / 10;
    let mut safe_until = started + ttl - margin;
    let mut next = started + ttl / RENEWALS;
    loop {
        sleep_until(next.min(safe_until)).await;
        let started = Instant::now();
        next = started + ttl / RENEWALS;
        match timeout_at(safe_until, store.keep_alive(lease)).await {
            Ok(Ok(())) => safe_until = started + ttl - margin,
            Ok(Err(Error::LeaseLost(_))) => return,
            Ok(Err(error)) => {
                tracing::warn!(%lease, %error, "the leader's lease was not renewed, trying again");
            }
            Err(_) => {}
        }
        if Instant::now() >= safe_until {
            return;
        }
    }
}

/// Returns when the election's key is no longer the one written by this leader.
async fn replaced<S: Store>(store: &S, key: &str, generation: Version) {
    let mut watch = store.watch(key);
    loop {
        // Errors are left to the renewal, which knows how long they may last.
        if let Ok(entry) = store.get(key).await
            && entry.is_none_or(|entry| entry.version != generation)
        {
            return;
        }
        watch.changed().await;
    }
}
