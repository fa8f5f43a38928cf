//! The one thread that writes: gathers waiting requests, writes their changes together, publishes, answers.
//!
//! Requests that fail together are tried again one by one, so that a large one that does not fit on the disk fails
//! alone. The thread ends when the last handle of the store is gone.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Shared;
use super::file::StateFile;
use crate::keyspace::{Changes, Draft, Keyspace};
use crate::{Error, LeaseId, MAX_TRANSACTION_BYTES, Outcome, Transaction};

/// Requests written in one disk transaction.
const MAX_BATCH: usize = 256;
/// Pause between attempts to remove the keys of ended leases while the disk refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Something to write, already valid.
pub(crate) enum Request {
    Commit(Transaction),
    Grant(Duration),
    End(LeaseId),
}

/// What became of it.
pub(crate) enum Answer {
    Outcome(Outcome),
    Granted(LeaseId),
    Ended,
}

/// A request and whom to tell.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Result<Answer, Error>>,
    /// A place in the queue, free again when the job is done.
    pub(crate) _room: OwnedSemaphorePermit,
}

impl Job {
    fn bytes(&self) -> usize {
        match &self.request {
            Request::Commit(transaction) => transaction.bytes(),
            Request::Grant(_) | Request::End(_) => 0,
        }
    }
}

pub(crate) struct Writer {
    queue: Receiver<Job>,
    file: StateFile,
    shared: Arc<Shared>,
    /// Leases that have run out and whose keys are not removed yet.
    expired: BTreeSet<LeaseId>,
}

impl Writer {
    pub(crate) fn new(queue: Receiver<Job>, file: StateFile, shared: Arc<Shared>) -> Self {
        Self { queue, file, shared, expired: BTreeSet::new() }
    }

    pub(crate) fn run(mut self) {
        while let Some(jobs) = self.wait() {
            self.expire();
            if let Err((error, jobs)) = self.write(jobs) {
                self.write_singly(error, jobs);
            }
        }
    }

    /// Waits for requests or for a lease to run out; none when the store is closed.
    fn wait(&self) -> Option<Vec<Job>> {
        let retry = (!self.expired.is_empty()).then(|| Instant::now() + RETRY);
        let deadline = self.with_deadlines(|deadlines| deadlines.earliest());
        let first = match retry.into_iter().chain(deadline).min() {
            None => self.queue.recv().ok()?,
            Some(at) => {
                match self.queue.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
        };
        let mut bytes = first.bytes();
        let mut jobs = vec![first];
        while jobs.len() < MAX_BATCH && bytes < MAX_TRANSACTION_BYTES {
            let Ok(job) = self.queue.try_recv() else { break };
            bytes += job.bytes();
            jobs.push(job);
        }
        Some(jobs)
    }

    /// Removes the keys of leases that have run out, before anything else sees them.
    fn expire(&mut self) {
        let expired = self.with_deadlines(|deadlines| deadlines.take_expired(Instant::now()));
        self.expired.extend(expired);
        if self.expired.is_empty() {
            return;
        }
        let leases = self.expired.clone();
        let drafted = self.draft(|draft| leases.iter().for_each(|lease| draft.end(*lease)));
        match drafted.and_then(|(changes, ())| self.publish(&changes)) {
            Ok(()) => self.expired.clear(),
            Err(error) => {
                tracing::warn!(%error, "keys of ended leases could not be removed, trying again");
            }
        }
    }

    /// Writes all jobs in one go; gives them back when the disk refuses.
    fn write(&mut self, jobs: Vec<Job>) -> Result<(), (Error, Vec<Job>)> {
        if jobs.is_empty() {
            return Ok(());
        }
        let drafted = self
            .draft(|draft| jobs.iter().map(|job| perform(draft, &job.request)).collect::<Vec<_>>());
        let answers = match drafted {
            Ok((changes, answers)) => self.publish(&changes).map(|()| answers),
            Err(error) => Err(error),
        };
        match answers {
            Ok(answers) => {
                for (job, answer) in jobs.into_iter().zip(answers) {
                    self.finish(job, answer);
                }
                Ok(())
            }
            Err(error) => Err((error, jobs)),
        }
    }

    fn write_singly(&mut self, error: Error, mut jobs: Vec<Job>) {
        if jobs.len() == 1 {
            jobs.drain(..).for_each(|job| self.finish(job, Err(error.clone())));
        }
        for job in jobs {
            if let Err((error, jobs)) = self.write(vec![job]) {
                jobs.into_iter().for_each(|job| self.finish(job, Err(error.clone())));
            }
        }
    }

    /// Tells the requester, who may have left.
    fn finish(&self, job: Job, answer: Result<Answer, Error>) {
        match (&job.request, &answer) {
            (Request::Grant(ttl), Ok(Answer::Granted(lease))) => {
                self.with_deadlines(|deadlines| deadlines.start(*lease, *ttl, Instant::now()));
            }
            (Request::End(lease), Ok(_)) => {
                self.with_deadlines(|deadlines| deadlines.forget(*lease));
            }
            _ => {}
        }
        let _ = job.reply.send(answer);
    }

    /// The changes that `make` wants, over what is known to be on disk.
    fn draft<T>(&mut self, make: impl FnOnce(&mut Draft<'_>) -> T) -> Result<(Changes, T), Error> {
        if !self.file.is_open() {
            let found = self.file.reload()?;
            self.replace(found);
        }
        let keyspace = self.shared.keyspace.read().unwrap_or_else(PoisonError::into_inner);
        let mut draft = Draft::over(&keyspace);
        let made = make(&mut draft);
        Ok((draft.into_changes(), made))
    }

    /// Makes changes durable, then visible, then wakes the watchers.
    fn publish(&mut self, changes: &Changes) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.write(changes) {
            if self.file.is_open() {
                return Err(error);
            }
            // What the disk holds now is the truth: the last write may have got through in spite of the error.
            let found = self.file.reload().map_err(|_| error.clone())?;
            let mut wanted =
                self.shared.keyspace.read().unwrap_or_else(PoisonError::into_inner).clone();
            wanted.apply(changes);
            let written = found == wanted;
            self.replace(found);
            return if written { Ok(()) } else { Err(error) };
        }
        self.shared.keyspace.write().unwrap_or_else(PoisonError::into_inner).apply(changes);
        self.shared.watchers.wake(changes.entries.keys());
        Ok(())
    }

    fn replace(&self, found: Keyspace) {
        self.with_deadlines(|deadlines| {
            let now = Instant::now();
            for (lease, ttl) in &found.leases {
                // One that nobody was told of may have been written by a commit that reported an error.
                if !self.expired.contains(lease) {
                    deadlines.ensure(*lease, *ttl, now);
                }
            }
        });
        let mut keyspace = self.shared.keyspace.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *keyspace != found;
        *keyspace = found;
        drop(keyspace);
        if changed {
            self.shared.watchers.wake_all();
        }
    }

    fn with_deadlines<T>(&self, act: impl FnOnce(&mut crate::lease::Deadlines) -> T) -> T {
        act(&mut self.shared.deadlines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn perform(draft: &mut Draft<'_>, request: &Request) -> Result<Answer, Error> {
    match request {
        Request::Commit(transaction) => draft.commit(transaction).map(Answer::Outcome),
        Request::Grant(ttl) => Ok(Answer::Granted(draft.grant(*ttl))),
        Request::End(lease) => {
            draft.end(*lease);
            Ok(Answer::Ended)
        }
    }
}
