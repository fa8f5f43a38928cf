//! The conformance suite on the embedded store, on disk and in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

mod suite;

use std::sync::Arc;

use keel_store::RedbStore;

mod memory {
    use super::{Arc, RedbStore, suite};

    crate::conformance!(Arc::new(RedbStore::in_memory().unwrap()));
}

mod disk {
    use super::{Arc, RedbStore, suite};

    // The directory's name goes while the store still has the file open, which is all it needs.
    crate::conformance!({
        let directory = tempfile::tempdir().unwrap();
        Arc::new(RedbStore::open(directory.path()).unwrap())
    });
}
