//! The contract that every store keeps.

use std::time::Duration;

use crate::{Entry, Error, Leadership, LeaseId, Listing, Outcome, Transaction, Watch};

/// The future that a [`Store`] method returns.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, Result<T, Error>>;

/// A watchable key-value space. All reads are linearizable: they see every commit acknowledged before they began.
///
/// Dropping a returned future does not undo what was begun: a commit may still apply.
pub trait Store: Send + Sync + 'static {
    /// The entry under `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Entry>>;

    /// All entries whose keys begin with `prefix` (empty: all), sorted, at one version.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Listing>;

    /// Applies `transaction` if all its conditions hold. It is durable when this returns
    /// [`Outcome::Committed`]. A transaction that changes nothing leaves the version as it is.
    ///
    /// Fails with [`Error::LeaseLost`] when it writes under a lease that is not held.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Outcome>;

    /// A wake-up for changes under `prefix` (empty: all) from now on.
    fn watch(&self, prefix: &str) -> Watch;

    /// A new lease that lives for `ttl` unless kept alive. Time is the store's, monotonic.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, LeaseId>;

    /// Gives `lease` its full ttl from now. Fails with [`Error::LeaseLost`] when it's gone.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, ()>;

    /// Ends `lease` and removes its keys; no error when it is gone already.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, ()>;

    /// Waits until `candidate` leads in the election `name`. Leadership lapses `ttl` after its holder stops
    /// working. A candidate that campaigns again (a restarted server) takes over from itself at once, with a
    /// higher generation.
    fn campaign<'a>(
        &'a self,
        name: &'a str,
        candidate: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Leadership>;
}
