//! What people were told that an engine lacks, kept over the server's end: the next one tells only what is news.

use std::sync::Arc;

use keel_route::snapshot::Lacking;
use keel_store::{Store, Transaction};
use tokio::sync::watch;

use super::ProxyState;
use crate::{Error, keys};

/// What is kept.
pub struct Told {
    store: Arc<dyn Store>,
    lacks: Vec<Lacking>,
}

impl Told {
    /// Reads it. A record of an unknown form counts as none: then things are told once more.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, Error> {
        let stored = store.get(keys::LACKS).await?;
        let lacks = stored.and_then(|stored| serde_json::from_slice(&stored.value).ok());
        Ok(Self { store, lacks: lacks.unwrap_or_default() })
    }

    /// What was lacking when it was kept last.
    pub fn lacks(&self) -> &[Lacking] {
        &self.lacks
    }

    /// Keeps what the proxy lacks until that is no more to be known. What can't be written is tried again with the next
    /// change.
    pub async fn follow(mut self, mut proxy: watch::Receiver<ProxyState>) {
        loop {
            let news =
                Some(&proxy.borrow_and_update().lacks).filter(|now| **now != self.lacks).cloned();
            if let Some(lacks) = news {
                let json = serde_json::to_vec(&lacks).expect("it has only strings");
                match self.store.commit(Transaction::new().put(keys::LACKS, json)).await {
                    Ok(_) => self.lacks = lacks,
                    Err(error) => {
                        tracing::warn!(%error, "what the engine lacks is not kept for the next server");
                    }
                }
            }
            if proxy.changed().await.is_err() {
                return;
            }
        }
    }
}
