//! The stored wish of the user about a whole stack.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stack::is_false;
use crate::{Generation, ServiceName, Stack, Timestamp};

/// What the user asked of one service beyond its definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// `keel stop`: instances are stopped but kept.
    pub stopped: bool,
    /// `keel restart` raises it; instances created or restarted under a lower number are restarted, one by one.
    pub restarts: u64,
    /// The last restart was to be in place: the same instances again, with the files that were written into them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_place: bool,
}

/// A stack as the user last wanted it. Stored under its name; the generation rises with every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRecord {
    /// Rises with every change.
    pub generation: Generation,
    /// The generation of the last `up` or `rollback`. A revision that failed is tried again only under a newer one:
    /// scaling another service is no wish to see it fail again.
    #[serde(default)]
    pub applied: Generation,
    /// The definition.
    pub stack: Stack,
    /// Per service, what else was asked.
    #[serde(default)]
    pub intents: BTreeMap<ServiceName, Intent>,
    /// `keel down` was asked: everything is stopped in reverse order and forgotten.
    pub removing: bool,
    /// With `removing`: volumes go too.
    pub remove_volumes: bool,
    /// When.
    pub changed_at: Timestamp,
    /// What the change was, for `keel history` (`up`, `scale catalog=6`, `rollback to 4`).
    pub change: String,
}
