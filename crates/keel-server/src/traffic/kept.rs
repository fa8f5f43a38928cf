//! The last good certificates from files, kept over the server's end: a file that is broken when the next server starts
//! takes nothing out of use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use keel_route::snapshot::Certificate;
use keel_store::{Store, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, keys};

/// Certificate chain and key.
pub type Pair = (PathBuf, PathBuf);

/// What is kept.
pub struct Kept {
    store: Arc<dyn Store>,
    known: BTreeMap<Pair, Certificate>,
}

/// One record.
#[derive(Serialize, Deserialize)]
struct Record {
    pair: Pair,
    certificate: Certificate,
}

impl Kept {
    /// Reads it. A record of an unknown form is left out: the files will be read anyway.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, Error> {
        let entries = store.list(keys::CERTIFICATES).await?.entries;
        let records = entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok());
        let known = records.map(|record: Record| (record.pair, record.certificate)).collect();
        Ok(Self { store, known })
    }

    /// The last good certificate of each pair.
    pub fn known(&self) -> &BTreeMap<Pair, Certificate> {
        &self.known
    }

    /// Keeps these, and no others. What can't be written is tried again with the next call.
    pub async fn keep(&mut self, good: BTreeMap<Pair, Certificate>) {
        let gone: Vec<Pair> =
            self.known.keys().filter(|p| !good.contains_key(*p)).cloned().collect();
        for pair in gone {
            if self.write(Transaction::new().delete(key(&pair))).await {
                self.known.remove(&pair);
            }
        }
        for (pair, certificate) in good {
            if self.known.get(&pair) == Some(&certificate) {
                continue;
            }
            let record = Record { pair, certificate };
            // A path that is not UTF-8 has no JSON.
            let Ok(json) = serde_json::to_vec(&record) else { continue };
            if self.write(Transaction::new().put(key(&record.pair), json)).await {
                self.known.insert(record.pair, record.certificate);
            }
        }
    }

    async fn write(&self, transaction: Transaction) -> bool {
        let written = self.store.commit(transaction).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "a certificate is not kept for the next server");
        }
        written.is_ok()
    }
}

/// Paths may be longer than a key.
fn key((cert, key): &Pair) -> String {
    let mut hash = Sha256::new();
    for path in [cert, key] {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}{hash}", keys::CERTIFICATES)
}

#[cfg(test)]
mod tests {
    use keel_store::RedbStore;

    use super::*;

    #[tokio::test]
    async fn what_is_in_use_is_kept_and_nothing_else() {
        let store: Arc<dyn Store> = Arc::new(RedbStore::in_memory().unwrap());
        let pair = |name: &str| (PathBuf::from(name), PathBuf::from("key"));
        let certificate = |chain: &str| Certificate {
            names: Vec::new(),
            chain: chain.to_owned(),
            key: "secret".to_owned(),
        };
        let mut kept = Kept::load(store.clone()).await.unwrap();
        assert!(kept.known().is_empty());
        let both = BTreeMap::from([(pair("a"), certificate("1")), (pair("b"), certificate("2"))]);
        kept.keep(both.clone()).await;
        assert_eq!(Kept::load(store.clone()).await.unwrap().known(), &both);
        let one = BTreeMap::from([(pair("a"), certificate("3"))]);
        kept.keep(one.clone()).await;
        let again = Kept::load(store.clone()).await.unwrap();
        assert_eq!(again.known(), &one);
        let version = store.list("").await.unwrap().version;
        kept.keep(one).await;
        assert_eq!(store.list("").await.unwrap().version, version, "nothing is written twice");
    }
}
