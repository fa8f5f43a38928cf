//! The last known state in a file, so that a restarted proxy serves at once.
//!
//! Written some time after a change, one write at a time, on a thread that may block; replaced in one step. A
//! full disk costs the newest state after a restart, nothing else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keel_link::{save, to_json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::limits::{SAVE_DELAY, SAVE_SHARE};
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
}

impl Saver {
    pub fn new(path: PathBuf) -> Self {
        let (begun, took) = (Instant::now(), Duration::ZERO);
        Self { path, due: None, writing: None, stopped: false, begun, took }
    }

    /// Leaves the file to somebody else.
    pub async fn stop(&mut self) {
        (self.stopped, self.due) = (true, None);
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
        let pause = SAVE_DELAY.max(self.took * SAVE_SHARE);
        self.due.get_or_insert_with(|| Instant::now() + pause);
    }

    /// Waits until there is something to write and nothing is being written.
    pub async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            let result = writing.await;
            (self.writing, self.took) = (None, self.begun.elapsed());
            if let Ok(Err(error)) = result {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep the last state");
            }
        }
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
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
            // Its failure would show in the next write as well.
            let _ = writing.await;
        }
        if self.due.take().is_some()
            && let Err(error) = save(&self.path, &to_json(&parts.snapshot()))
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the last state");
        }
    }
}
