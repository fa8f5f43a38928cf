//! One watchable key-value space with transactions, leases and elections.
//!
//! [`Store`] is the contract; [`RedbStore`] keeps it in one file of the state directory. Every implementation
//! passes the same conformance suite (`tests/suite`). This crate does not know what is stored in it: keys are
//! text with `/` between the parts by convention, values are bytes.
//!
//! Invariants:
//! - A transaction applies as a whole or not at all, and is on disk when [`Store::commit`] says so.
//! - The store's version rises with every commit that changes something, and never falls, not even over restarts.
//! - A [`Watch`] wakes at least once after every change under its prefix that follows its creation.
//! - A key written under a lease is gone after the lease; a restart does not prolong a lease by more than its ttl.

mod election;
mod error;
mod keyspace;
mod lease;
mod redb;
mod store;
mod transaction;
mod watch;

pub use self::redb::RedbStore;
pub use election::Leadership;
pub use error::Error;
pub use store::{BoxFuture, Store};
pub use transaction::{
    Condition, Entry, LeaseId, Listing, MAX_KEY_BYTES, MAX_LEASE_TTL, MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, Outcome, Transaction, Version, Write,
};
pub use watch::{Watch, WatchSender};
