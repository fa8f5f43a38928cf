//! The state file: loads a key space, writes changes to it durably.
//!
//! Knows redb and its errors; decides nothing about the content. After a failed write redb refuses all further work,
//! so the file is closed then and opened again by [`StateFile::reload`], which also tells what really got written.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};

use crate::keyspace::{Changes, Keyspace, Stored};
use crate::{Error, LeaseId, Version};

/// Key → (version, lease or 0, value).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// Lease → ttl in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// `format`, `version`, `last_lease`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Of what this release writes.
const FORMAT: u64 = 1;
/// Changes below this are tried without asking whether there is room for them.
const SMALL_BYTES: u64 = 256 << 10;
/// redb's page; values take a power of two of them.
const PAGE_BYTES: usize = 4096;
/// redb's page cache; small, because the whole key space is in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

/// The file, open or (after a failure) closed.
pub(crate) struct StateFile {
    path: Option<PathBuf>,
    database: Option<Database>,
}

/// Whether to read every page and check its sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Everything,
    AsNeeded,
}

impl StateFile {
    pub(crate) fn open(directory: &Path) -> Result<(Self, Keyspace), Error> {
        let path = directory.join("state.redb");
        prepare(directory, &path)?;
        let mut file = Self { path: Some(path), database: None };
        let keyspace = file.load(Check::Everything)?;
        Ok((file, keyspace))
    }

    pub(crate) fn in_memory() -> Result<(Self, Keyspace), Error> {
        let mut file = Self { path: None, database: None };
        let keyspace = file.load(Check::AsNeeded)?;
        Ok((file, keyspace))
    }

    /// How messages call it.
    pub(crate) fn place(&self) -> String {
        self.path.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Closes what is open, opens again, and reads what is there.
    pub(crate) fn reload(&mut self) -> Result<Keyspace, Error> {
        self.load(Check::AsNeeded)
    }

    /// Writes `changes` and waits until they are on disk. After an error other than
    /// [`Error::Full`] found beforehand, the file is closed.
    pub(crate) fn write(&mut self, changes: &Changes) -> Result<(), Error> {
        let Some(database) = &self.database else {
            return Err(Error::Io { place: self.place(), reason: "it is not open".to_owned() });
        };
        if let Some(path) = &self.path
            && !has_room(path, changes)
        {
            return Err(Error::Full { path: path.clone() });
        }
        match write(database, changes) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.database = None;
                Err(self.explain(error))
            }
        }
    }

    fn load(&mut self, check: Check) -> Result<Keyspace, Error> {
        self.database = None;
        // redb promises not to panic on a damaged file when it checks everything; the rest is our reading.
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_BYTES);
            builder.set_check_integrity_on_open(check == Check::Everything);
            let database = match &self.path {
                Some(path) => builder.create(path)?,
                None => builder.create_with_backend(InMemoryBackend::new())?,
            };
            let found = read(&database)?;
            Ok((database, found))
        }));
        match loaded {
            Ok(Ok((_, Found::Newer(found)))) => {
                let path = self.path.clone().unwrap_or_default();
                Err(Error::Newer { path, found, supported: FORMAT })
            }
            Ok(Ok((database, Found::Keyspace(keyspace)))) => {
                self.database = Some(database);
                Ok(keyspace)
            }
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(self.explain(redb::Error::Corrupted("reading it failed".to_owned()))),
        }
    }

    fn explain(&self, error: redb::Error) -> Error {
        let path = self.path.clone().unwrap_or_default();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                let path = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
                Error::InUse { path, pid: None }
            }
            redb::Error::Io(error) => match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    Error::Full { path }
                }
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                    Error::Corrupt { path, detail: error.to_string() }
                }
                _ => Error::Io { place: self.place(), reason: error.to_string() },
            },
            error @ (redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }) => {
                Error::Corrupt { path, detail: error.to_string() }
            }
            error => Error::Io { place: self.place(), reason: error.to_string() },
        }
    }
}

/// Makes the file, for this user alone, and makes its name durable.
fn prepare(directory: &Path, path: &Path) -> Result<(), Error> {
    let create = || -> std::io::Result<()> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        File::open(directory)?.sync_all()
    };
    create().map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Full { path: path.to_owned() },
        _ => Error::NotWritable { path: directory.to_owned(), reason: error.to_string() },
    })
}

/// Whether the disk has room for a large change. Asked beforehand because a large write that fails half-way leaves
/// its pages in the file, and the next small one then finds no block left. Small ones need not ask: what they leave
/// is little, and the next attempt uses it again.
fn has_room(path: &Path, changes: &Changes) -> bool {
    let page_bytes = |stored: &Stored| stored.value.len().next_power_of_two().max(PAGE_BYTES);
    let needed = changes.entries.values().flatten().map(page_bytes).sum::<usize>() as u64;
    if needed <= SMALL_BYTES {
        return true;
    }
    // Not being told is no reason to refuse; the write itself will tell.
    rustix::fs::statvfs(path).map_or(true, |disk| {
        disk.f_bavail.saturating_mul(disk.f_frsize) >= needed.saturating_add(SMALL_BYTES)
    })
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("version", changes.version.0)?;
        meta.insert("last_lease", changes.last_lease)?;
        let mut entries = transaction.open_table(ENTRIES)?;
        for (key, change) in &changes.entries {
            match change {
                Some(stored) => {
                    let lease = stored.lease.map_or(0, |lease| lease.0);
                    entries.insert(key.as_str(), (stored.version.0, lease, &*stored.value))?;
                }
                None => {
                    entries.remove(key.as_str())?;
                }
            }
        }
        let mut leases = transaction.open_table(LEASES)?;
        for (lease, change) in &changes.leases {
            match change {
                Some(ttl) => {
                    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    leases.insert(lease.0, ttl_ms)?;
                }
                None => {
                    leases.remove(lease.0)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

enum Found {
    Keyspace(Keyspace),
    Newer(u64),
}

fn read(database: &Database) -> Result<Found, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Ok(Found::Keyspace(Keyspace::default()));
        }
        Err(error) => return Err(error.into()),
    };
    let number = |name: &str| -> Result<u64, redb::Error> {
        meta.get(name)?
            .map(|guard| guard.value())
            .ok_or_else(|| StorageError::Corrupted(format!("{name} is missing")).into())
    };
    let format = number("format")?;
    if format > FORMAT {
        return Ok(Found::Newer(format));
    }
    let mut keyspace = Keyspace {
        version: Version(number("version")?),
        last_lease: number("last_lease")?,
        ..Keyspace::default()
    };
    for row in transaction.open_table(ENTRIES)?.iter()? {
        let (key, row) = row?;
        let (version, lease, value) = row.value();
        let lease = (lease != 0).then_some(LeaseId(lease));
        let stored = Stored { value: Arc::from(value), version: Version(version), lease };
        keyspace.entries.insert(key.value().to_owned(), stored);
    }
    for row in transaction.open_table(LEASES)?.iter()? {
        let (lease, ttl_ms) = row?;
        keyspace.leases.insert(LeaseId(lease.value()), Duration::from_millis(ttl_ms.value()));
    }
    Ok(Found::Keyspace(keyspace))
}
