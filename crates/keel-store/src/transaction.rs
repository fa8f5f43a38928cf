//! The words of the store: versions, entries, and transactions with their bounds.
//!
//! Says what a valid transaction is; applies none.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 8 << 20;
/// The most conditions and writes in one transaction.
pub const MAX_OPERATIONS: usize = 512;
/// The most bytes of keys and values in one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 32 << 20;

/// The longest time a lease may live without being kept alive.
pub const MAX_LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A point in the store's history; rises with every commit that changes something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The name of a lease; never used twice by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One key with its value. Cheap to clone apart from the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Arc<[u8]>,
    /// The commit that wrote this value.
    pub version: Version,
    /// The lease the key dies with.
    pub lease: Option<LeaseId>,
}

/// All keys under a prefix at one point in the store's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The store's version when the listing was taken.
    pub version: Version,
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
}

/// What must hold for a transaction to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent {
        /// The key.
        key: String,
    },
    /// The key exists and was last written by this commit.
    VersionIs {
        /// The key.
        key: String,
        /// The version seen when it was read.
        version: Version,
    },
    /// The lease has neither expired nor been revoked.
    LeaseHeld {
        /// The lease.
        lease: LeaseId,
    },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key, creating it if need be.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The lease it shall die with; a key written before under another lease changes over.
        lease: Option<LeaseId>,
    },
    /// Removes a key; no error when it is absent.
    Delete {
        /// The key.
        key: String,
    },
    /// Removes all keys that begin with the prefix.
    DeletePrefix {
        /// The prefix, not empty.
        prefix: String,
    },
}

/// Conditions and writes that apply together. No key is written twice in one transaction (etcd has the same rule).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Applied when they do.
    pub writes: Vec<Write>,
}

/// What became of a valid transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a conflict means that nothing was written"]
pub enum Outcome {
    /// Applied and durable; the version is the store's after it.
    Committed(Version),
    /// A condition did not hold; nothing was written.
    Conflict,
}

impl Outcome {
    /// The version, when committed.
    #[must_use]
    pub fn committed(self) -> Option<Version> {
        match self {
            Self::Committed(version) => Some(version),
            Self::Conflict => None,
        }
    }
}

impl Transaction {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that `key` does not exist.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Self {
        self.conditions.push(Condition::Absent { key: key.into() });
        self
    }

    /// Requires that `key` was last written at `version`.
    #[must_use]
    pub fn if_version(mut self, key: impl Into<String>, version: Version) -> Self {
        self.conditions.push(Condition::VersionIs { key: key.into(), version });
        self
    }

    /// Requires that `lease` is held.
    #[must_use]
    pub fn if_lease_held(mut self, lease: LeaseId) -> Self {
        self.conditions.push(Condition::LeaseHeld { lease });
        self
    }

    /// Sets `key` for good.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Sets `key` for as long as `lease` lives.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Vec<u8>>,
        lease: LeaseId,
    ) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Removes everything under `prefix`.
    #[must_use]
    pub fn delete_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.writes.push(Write::DeletePrefix { prefix: prefix.into() });
        self
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> usize {
        let conditions = self.conditions.iter().map(|condition| match condition {
            Condition::Absent { key } | Condition::VersionIs { key, .. } => key.len(),
            Condition::LeaseHeld { .. } => 0,
        });
        let writes = self.writes.iter().map(|write| match write {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
            Write::DeletePrefix { prefix } => prefix.len(),
        });
        conditions.chain(writes).sum()
    }

    /// Checks the bounds and that no key is written twice.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Invalid`].
    pub fn validate(&self) -> Result<(), Error> {
        limit("transaction operations", self.conditions.len() + self.writes.len(), MAX_OPERATIONS)?;
        limit("transaction bytes", self.bytes(), MAX_TRANSACTION_BYTES)?;
        for condition in &self.conditions {
            match condition {
                Condition::Absent { key } | Condition::VersionIs { key, .. } => check_key(key)?,
                Condition::LeaseHeld { .. } => {}
            }
        }
        let mut keys = BTreeSet::new();
        let mut prefixes = Vec::new();
        for write in &self.writes {
            let key = match write {
                Write::Put { key, value, .. } => {
                    limit("value bytes", value.len(), MAX_VALUE_BYTES)?;
                    key
                }
                Write::Delete { key } => key,
                Write::DeletePrefix { prefix } => {
                    check_key(prefix)?;
                    prefixes.push(prefix.as_str());
                    continue;
                }
            };
            check_key(key)?;
            if !keys.insert(key.as_str()) {
                return Err(Error::Invalid(format!("the key {key:?} is written twice")));
            }
        }
        for prefix in prefixes {
            let first = keys.range(prefix..).next();
            if let Some(key) = first.filter(|key| key.starts_with(prefix)) {
                return Err(Error::Invalid(format!(
                    "the key {key:?} is written twice, once through the prefix {prefix:?}"
                )));
            }
        }
        Ok(())
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::Invalid("a key or prefix is empty".to_owned()));
    }
    limit("key bytes", key.len(), MAX_KEY_BYTES)
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<(), Error> {
    if ttl.is_zero() || ttl > MAX_LEASE_TTL {
        return Err(Error::Invalid(format!(
            "a lease of {ttl:?}; it must be more than zero and at most {MAX_LEASE_TTL:?}"
        )));
    }
    Ok(())
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold() {
        let key = "k".repeat(MAX_KEY_BYTES);
        assert!(Transaction::new().put(&key, "v").validate().is_ok());
        let long = format!("{key}k");
        for bad in [
            Transaction::new().put(&long, "v"),
            Transaction::new().delete(&long),
            Transaction::new().if_absent(&long),
            Transaction::new().put("k", vec![0; MAX_VALUE_BYTES + 1]),
            (0..=MAX_OPERATIONS).fold(Transaction::new(), |t, n| t.delete(format!("k{n}"))),
            (0..5).fold(Transaction::new(), |t, n| t.put(format!("k{n}"), vec![0; 8 << 20])),
        ] {
            assert!(matches!(bad.validate(), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn a_key_is_written_once() {
        for bad in [
            Transaction::new().put("a/b", "1").put("a/b", "2"),
            Transaction::new().put("a/b", "1").delete("a/b"),
            Transaction::new().delete_prefix("a/").put("a/b", "1"),
            Transaction::new().delete_prefix(""),
            Transaction::new().put("", "1"),
        ] {
            assert!(matches!(bad.validate(), Err(Error::Invalid(_))), "{bad:?}");
        }
        assert!(Transaction::new().delete_prefix("a/").put("b", "1").validate().is_ok());
    }
}
