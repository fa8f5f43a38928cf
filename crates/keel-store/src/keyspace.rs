//! The key space as a value, and drafts of changes to it.
//!
//! Decides what a transaction does; writes nothing to disk and reads no clock. A [`Draft`] stacks the effects of
//! several requests over an unchanged [`Keyspace`]; its [`Changes`] are written to disk first and applied after.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::{Condition, Entry, Error, LeaseId, Listing, Outcome, Transaction, Version, Write};

/// A value with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) value: Arc<[u8]>,
    pub(crate) version: Version,
    pub(crate) lease: Option<LeaseId>,
}

/// Everything the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keyspace {
    pub(crate) version: Version,
    pub(crate) last_lease: u64,
    pub(crate) entries: BTreeMap<String, Stored>,
    pub(crate) leases: BTreeMap<LeaseId, Duration>,
}

/// What differs from the key space a draft was made over. `None` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) version: Version,
    pub(crate) last_lease: u64,
    pub(crate) entries: BTreeMap<String, Option<Stored>>,
    pub(crate) leases: BTreeMap<LeaseId, Option<Duration>>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.leases.is_empty()
    }
}

impl Keyspace {
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|stored| entry(key, stored))
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let entries = self
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| entry(key, stored))
            .collect();
        Listing { version: self.version, entries }
    }

    pub(crate) fn apply(&mut self, changes: &Changes) {
        self.version = changes.version;
        self.last_lease = changes.last_lease;
        for (key, change) in &changes.entries {
            match change {
                Some(stored) => self.entries.insert(key.clone(), stored.clone()),
                None => self.entries.remove(key),
            };
        }
        for (lease, change) in &changes.leases {
            match change {
                Some(ttl) => self.leases.insert(*lease, *ttl),
                None => self.leases.remove(lease),
            };
        }
    }
}

fn entry(key: &str, stored: &Stored) -> Entry {
    Entry {
        key: key.to_owned(),
        value: Arc::clone(&stored.value),
        version: stored.version,
        lease: stored.lease,
    }
}

/// Changes in the making.
pub(crate) struct Draft<'a> {
    base: &'a Keyspace,
    changes: Changes,
}

impl<'a> Draft<'a> {
    pub(crate) fn over(base: &'a Keyspace) -> Self {
        let changes =
            Changes { version: base.version, last_lease: base.last_lease, ..Changes::default() };
        Self { base, changes }
    }

    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }

    /// The effect of a valid transaction; none at all on a conflict or an error.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, Error> {
        if !transaction.conditions.iter().all(|condition| self.holds(condition)) {
            return Ok(Outcome::Conflict);
        }
        for write in &transaction.writes {
            if let Write::Put { lease: Some(lease), .. } = write
                && !self.is_held(*lease)
            {
                return Err(Error::LeaseLost(*lease));
            }
        }
        let version = self.next_version();
        let mut changed = false;
        for write in &transaction.writes {
            match write {
                Write::Put { key, value, lease } => {
                    let value = Arc::from(value.as_slice());
                    let stored = Stored { value, version, lease: *lease };
                    self.changes.entries.insert(key.clone(), Some(stored));
                    changed = true;
                }
                Write::Delete { key } => changed |= self.remove(key),
                Write::DeletePrefix { prefix } => {
                    for key in self.keys(|key, _| key.starts_with(prefix.as_str())) {
                        changed |= self.remove(&key);
                    }
                }
            }
        }
        if changed {
            self.changes.version = version;
        }
        Ok(Outcome::Committed(self.changes.version))
    }

    /// A new lease.
    pub(crate) fn grant(&mut self, ttl: Duration) -> LeaseId {
        self.changes.last_lease += 1;
        let lease = LeaseId(self.changes.last_lease);
        self.changes.leases.insert(lease, Some(ttl));
        lease
    }

    /// Ends a lease and removes its keys.
    pub(crate) fn end(&mut self, lease: LeaseId) {
        if !self.is_held(lease) {
            return;
        }
        self.changes.leases.insert(lease, None);
        let version = self.next_version();
        for key in self.keys(|_, stored| stored.lease == Some(lease)) {
            self.remove(&key);
            self.changes.version = version;
        }
    }

    fn next_version(&self) -> Version {
        Version(self.changes.version.0 + 1)
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent { key } => self.find(key).is_none(),
            Condition::VersionIs { key, version } => {
                self.find(key).is_some_and(|stored| stored.version == *version)
            }
            Condition::LeaseHeld { lease } => self.is_held(*lease),
        }
    }

    fn is_held(&self, lease: LeaseId) -> bool {
        match self.changes.leases.get(&lease) {
            Some(change) => change.is_some(),
            None => self.base.leases.contains_key(&lease),
        }
    }

    fn find(&self, key: &str) -> Option<&Stored> {
        match self.changes.entries.get(key) {
            Some(change) => change.as_ref(),
            None => self.base.entries.get(key),
        }
    }

    fn remove(&mut self, key: &str) -> bool {
        let exists = self.find(key).is_some();
        if exists {
            self.changes.entries.insert(key.to_owned(), None);
        }
        exists
    }

    /// The existing keys that `wanted` picks.
    fn keys(&self, wanted: impl Fn(&str, &Stored) -> bool) -> Vec<String> {
        let old =
            self.base.entries.iter().filter(|(key, _)| !self.changes.entries.contains_key(*key));
        let new = self.changes.entries.iter().filter_map(|(key, c)| c.as_ref().map(|s| (key, s)));
        old.chain(new).filter(|(key, stored)| wanted(key, stored)).map(|(k, _)| k.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(key: u8, kind: u8, lease: u64) -> Transaction {
        let key = format!("{}/{}", key % 2, key % 5);
        match kind {
            0 => Transaction::new().put(key, "v"),
            1 => Transaction::new().delete(key),
            2 => Transaction::new().delete_prefix(&key[..2]),
            3 => Transaction::new().if_absent(&key).put(key, "w"),
            4 => Transaction::new().if_version(&key, Version(u64::from(kind))).delete(key),
            _ => Transaction::new().put_leased(key, "l", LeaseId(lease)),
        }
    }

    proptest! {
        /// Several requests in one draft do what they do one by one: group commit can't be told apart.
        #[test]
        fn a_draft_of_many_equals_many_drafts_of_one(
            steps in prop::collection::vec((0u8..10, 0u8..8, 1u64..4), 0..40)
        ) {
            let (mut single, group) = (Keyspace::default(), Keyspace::default());
            let mut draft = Draft::over(&group);
            for (key, kind, lease) in steps {
                let mut one = Draft::over(&single);
                match kind {
                    6 => prop_assert_eq!(one.grant(Duration::ZERO), draft.grant(Duration::ZERO)),
                    7 => { one.end(LeaseId(lease)); draft.end(LeaseId(lease)); }
                    _ => {
                        let transaction = write(key, kind, lease);
                        prop_assert_eq!(one.commit(&transaction), draft.commit(&transaction));
                    }
                }
                let changes = one.into_changes();
                prop_assert!(changes.version >= single.version);
                single.apply(&changes);
                for stored in single.entries.values() {
                    prop_assert!(stored.lease.is_none_or(|lease| single.leases.contains_key(&lease)));
                }
            }
            let changes = draft.into_changes();
            let mut group = group.clone();
            group.apply(&changes);
            prop_assert_eq!(single, group);
        }
    }
}
