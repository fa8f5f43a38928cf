//! The last known state in a file, so that a restarted proxy serves at once.
//!
//! Written some time after a change, one write at a time, on a thread that may block; replaced in one step. A
//! full disk costs the newest state after a restart, nothing else; writing is tried again until it succeeds.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keel_link::{save, to_json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::again::Again;
use crate::limits::{SAVE_DELAY, SAVE_MOST, SAVE_SHARE};
use crate::registry::Parts;

/// Writes changes to the file, some time after the first of them.
#[derive(Debug)]
pub struct Saver {
    path: PathBuf,
    due: Option<Instant>,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Somebody else writes the file now.
    stopped: bool,
    begun: Instant,
    /// How long the last write took: a large state is written less often.
    took: Duration,
    /// After a write that failed.
    again: Again,
}

impl Saver {
    pub fn new(path: PathBuf) -> Self {
        let (begun, took) = (Instant::now(), Duration::ZERO);
        let again = Again::default();
        Self { path, due: None, writing: None, stopped: false, begun, took, again }
    }

    /// Leaves the file to somebody else.
    pub async fn stop(&mut self) {
        (self.stopped, self.due) = (true, None);
        self.again.done();
        if let Some(writing) = self.writing.take() {
            // Its failure does not matter any more.
            let _ = writing.await;
        }
    }

    /// The state has changed.
    pub fn changed(&mut self) {
        if self.stopped {
            return;
        }
        let pause = (self.took * SAVE_SHARE).clamp(SAVE_DELAY, SAVE_MOST);
        self.due.get_or_insert_with(|| Instant::now() + pause);
    }

    /// Waits until there is something to write and nothing is being written.
    pub async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            let result = writing.await;
            (self.writing, self.took) = (None, self.begun.elapsed());
            self.written(&result.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
        match self.due.into_iter().chain(self.again.at()).min() {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn written(&mut self, result: &io::Result<()>) {
        match result {
            Ok(()) => self.again.done(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep the last state");
                self.again.failed();
            }
        }
    }

    /// Begins to write a state.
    pub fn begin(&mut self, parts: Parts) {
        self.due = None;
        let path = self.path.clone();
        self.begun = Instant::now();
        self.writing =
            Some(tokio::task::spawn_blocking(move || save(&path, &to_json(&parts.snapshot()))));
    }

    /// Writes a state now if it was about to be written.
    pub async fn flush(&mut self, parts: Parts) {
        if let Some(writing) = self.writing.take() {
            self.written(&writing.await.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
        if self.due.take().is_some() || self.again.at().is_some() {
            self.written(&save(&self.path, &to_json(&parts.snapshot())));
        }
    }
}
