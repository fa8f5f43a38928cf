//! The part of the store where certificates are. Writes are fenced, so that only the leader's count.

use std::sync::Arc;

use keel_store::{Condition, Outcome, Store, Transaction};
use serde::Serialize;

use crate::order::Failure;
use crate::records::Records;

/// The part of the store where certificates are.
pub struct Vault {
    /// Where.
    pub store: Arc<dyn Store>,
    /// What all keys begin with.
    pub prefix: String,
    /// Nothing is written unless this holds.
    pub fence: Option<Condition>,
}

impl Vault {
    /// The whole key.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Failure> {
        let entry = self.store.get(&self.key(key)).await.map_err(stuck)?;
        Ok(entry.map(|entry| entry.value))
    }

    pub async fn put(&self, key: &str, record: &impl Serialize) -> Result<(), Failure> {
        let transaction = Transaction::new().put(self.key(key), encode(record));
        self.commit(transaction).await
    }

    /// Applies `transaction` if the fence holds.
    pub async fn commit(&self, mut transaction: Transaction) -> Result<(), Failure> {
        transaction.conditions.extend(self.fence.clone());
        match self.store.commit(transaction).await.map_err(stuck)? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(Failure::new("another server leads now")),
        }
    }

    /// Everything that is kept.
    pub async fn load(&self) -> Result<Records, keel_store::Error> {
        let mut records = Records::default();
        for entry in self.store.list(&self.prefix).await?.entries {
            if let Some(key) = entry.key.strip_prefix(&self.prefix) {
                records.put(key, &entry.value);
            }
        }
        Ok(records)
    }
}

/// A record as it is kept.
pub fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have only string keys")
}

fn stuck(error: keel_store::Error) -> Failure {
    Failure::new(format!("the store fails: {error}"))
}
