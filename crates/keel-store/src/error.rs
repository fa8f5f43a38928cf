//! What can go wrong at the store's boundary, named by what the caller can do about it.

use std::path::PathBuf;

use crate::LeaseId;

/// A failed store operation. Nothing was written, except where a variant says that this is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another process has the state directory.
    #[error(
        "the state directory {} is in use by {}\n  hint: stop that server first (keel server stop), or give this one a state directory of its own",
        path.display(), owner(*pid)
    )]
    InUse {
        /// The state directory.
        path: PathBuf,
        /// The process that holds it, as far as known.
        pid: Option<u32>,
    },
    /// The state directory can't be made or written.
    #[error(
        "the state directory {} is not writable: {reason}\n  hint: make it writable for this user, or choose another one",
        path.display()
    )]
    NotWritable {
        /// The state directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// No room left; the transaction was not applied. Works again once there is room.
    #[error(
        "no space left to write {}: the change was not made\n  hint: free space on that file system and try again; reading goes on meanwhile",
        path.display()
    )]
    Full {
        /// The state file.
        path: PathBuf,
    },
    /// The state file is damaged or is not one.
    #[error(
        "the state file {} is damaged: {detail}\n  hint: restore it from a backup, or move it away to start empty (running instances are then no longer known)",
        path.display()
    )]
    Corrupt {
        /// The state file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The state file was written by a later release.
    #[error(
        "the state file {} has format {found}, this release reads up to {supported}\n  hint: run the newer keel that wrote it",
        path.display()
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format this release reads.
        supported: u64,
    },
    /// The storage failed. Whether the transaction was applied is unknown until the next successful read.
    #[error("the state in {place} can't be read or written: {reason}\n  hint: check that disk")]
    Io {
        /// File or address.
        place: String,
        /// What the system said.
        reason: String,
    },
    /// The lease has expired, was revoked, or never existed.
    #[error("lease {0} is no longer held")]
    LeaseLost(LeaseId),
    /// A key, value or transaction is beyond its bound.
    #[error("{what}: {size} is more than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// The transaction makes no sense.
    #[error("not a valid transaction: {0}")]
    Invalid(String),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
