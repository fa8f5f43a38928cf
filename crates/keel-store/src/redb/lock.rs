//! One server per state directory.
//!
//! The lock is the kernel's (`flock`), so a killed process leaves none behind; the process id in the file only makes
//! the refusal helpful.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock(#[expect(dead_code, reason = "held for its lock")] File);

impl DirectoryLock {
    /// Makes `directory` if absent, for this user alone, and locks it.
    pub(crate) fn take(directory: &Path) -> Result<Self, Error> {
        let not_writable = |error: std::io::Error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Error::Full { path: directory.to_owned() }
            }
            _ => Error::NotWritable { path: directory.to_owned(), reason: error.to_string() },
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(not_writable)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("state.lock"))
            .map_err(not_writable)?;
        if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(not_writable(errno.into()));
            }
            let mut pid = String::new();
            // Without a readable id the refusal stands, only less helpful.
            let _ = Read::take(&mut file, 16).read_to_string(&mut pid);
            return Err(Error::InUse { path: directory.to_owned(), pid: pid.trim().parse().ok() });
        }
        // A full disk must not keep the server from starting to read.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self(file))
    }
}
