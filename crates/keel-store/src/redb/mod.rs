//! The embedded store: one redb file, one writer thread, and the whole key space in memory.
//!
//! Reads come from memory and never wait for the disk, so they go on when it is full or slow. Writes go through one
//! thread that puts all waiting requests into one fsync'd transaction. Memory changes after the disk, and the
//! requester hears of it last.

mod file;
mod lock;
mod writer;

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use crate::keyspace::Keyspace;
use crate::lease::Deadlines;
use crate::transaction::check_ttl;
use crate::watch::Watchers;
use crate::{
    BoxFuture, Entry, Error, Leadership, LeaseId, Listing, Outcome, Store, Transaction, Watch,
    election,
};
use file::StateFile;
use lock::DirectoryLock;
use writer::{Answer, Job, Request, Writer};

/// Requests waiting for the writer; further ones wait for room.
const MAX_WAITING: usize = 1024;

/// A store in one file, or in memory for tests. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct RedbStore(Arc<Inner>);

/// What readers and the writer share.
#[derive(Debug, Default)]
struct Shared {
    keyspace: RwLock<Keyspace>,
    deadlines: Mutex<Deadlines>,
    watchers: Watchers,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    room: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
    _lock: Option<DirectoryLock>,
}

impl RedbStore {
    /// Opens the store in `directory`, which is made if absent. Blocks while the file is checked and read.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotWritable`], [`Error::Corrupt`], [`Error::Newer`], [`Error::Full`],
    /// [`Error::Io`].
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let lock = DirectoryLock::take(directory)?;
        let (file, keyspace) = StateFile::open(directory)?;
        Self::start(file, keyspace, Some(lock))
    }

    /// An empty store that keeps nothing over a restart.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be started.
    pub fn in_memory() -> Result<Self, Error> {
        let (file, keyspace) = StateFile::in_memory()?;
        Self::start(file, keyspace, None)
    }

    fn start(
        file: StateFile,
        keyspace: Keyspace,
        lock: Option<DirectoryLock>,
    ) -> Result<Self, Error> {
        let mut deadlines = Deadlines::default();
        let now = Instant::now();
        // How much of its time a lease had used before the restart is unknown; its holder gets the benefit.
        for (lease, ttl) in &keyspace.leases {
            deadlines.start(*lease, *ttl, now);
        }
        let shared = Arc::new(Shared {
            keyspace: RwLock::new(keyspace),
            deadlines: Mutex::new(deadlines),
            watchers: Watchers::default(),
        });
        let (jobs, queue) = sync_channel(MAX_WAITING);
        let place = file.place();
        let writer = Writer::new(queue, file, Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Io { place, reason: error.to_string() })?;
        Ok(Self(Arc::new(Inner {
            shared,
            jobs: Some(jobs),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            writer: Some(writer),
            _lock: lock,
        })))
    }

    async fn ask(&self, request: Request) -> Result<Answer, Error> {
        let room = Arc::clone(&self.0.room).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        let jobs = self.0.jobs.as_ref().ok_or(Error::Closed)?;
        // Never blocks: there are as many permits as places.
        jobs.send(Job { request, reply, _room: room }).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    fn read<T>(&self, look: impl FnOnce(&Keyspace) -> T) -> T {
        look(&self.0.shared.keyspace.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.read(|keyspace| keyspace.get(key))) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Listing> {
        Box::pin(async move { Ok(self.read(|keyspace| keyspace.list(prefix))) })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            transaction.validate()?;
            match self.ask(Request::Commit(transaction)).await? {
                Answer::Outcome(outcome) => Ok(outcome),
                Answer::Granted(_) | Answer::Ended => unreachable!("a commit has an outcome"),
            }
        })
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.0.shared.watchers.add(prefix)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, LeaseId> {
        Box::pin(async move {
            check_ttl(ttl)?;
            match self.ask(Request::Grant(ttl)).await? {
                Answer::Granted(lease) => Ok(lease),
                Answer::Outcome(_) | Answer::Ended => unreachable!("a grant has a lease"),
            }
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut deadlines =
                self.0.shared.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
            deadlines.renew(lease, Instant::now())
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.ask(Request::End(lease)).await.map(|_| ()) })
    }

    fn campaign<'a>(
        &'a self,
        name: &'a str,
        candidate: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Leadership> {
        Box::pin(election::campaign(self.clone(), name, candidate, ttl))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends when its queue does; the lock goes only after it, with the remaining fields.
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // It has nothing to report; a panic has been printed already.
            let _ = writer.join();
        }
    }
}
