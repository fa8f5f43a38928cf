//! The last known state in a file, so that a restarted proxy serves at once.
//!
//! Written some time after a change, one write at a time, on a thread that may block; replaced in one step. A
//! full disk costs the newest state after a restart, nothing else; writing is tried again until it succeeds.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keel_route::snapshot::{MAX_FRAME, Snapshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::again::Again;
use crate::limits::{SAVE_DELAY, SAVE_SHARE};
use crate::registry::Parts;

/// Reads the state; `None` if there is none or it cannot be used, which is logged.
pub fn load(path: &Path) -> Option<Snapshot> {
    let mut json = Vec::new();
    let most = MAX_FRAME as u64;
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut json));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the last state");
            return None;
        }
    }
    serde_json::from_slice(&json)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "the last state is damaged"),
        )
        .ok()
}

/// Replaces the file in one step. It holds private keys: nobody else may read it.
fn save(path: &Path, json: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // One that was left over keeps the rights that it has.
    let _ = fs::remove_file(&beside);
    let created = File::options().write(true).create_new(true).mode(0o600).open(&beside);
    let written = created.and_then(|mut file| {
        file.write_all(json)?;
        file.sync_data()
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // Half a file on a full disk is of no use to anybody.
        let _ = fs::remove_file(&beside);
    })
}

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
        let pause = SAVE_DELAY.max(self.took * SAVE_SHARE);
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

fn to_json(snapshot: &Snapshot) -> Vec<u8> {
    serde_json::to_vec(snapshot).expect("a snapshot has string keys only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.json");
        assert_eq!(load(&path), None);
        let snapshot = Snapshot { generation: keel_model::Generation(7), ..Snapshot::default() };
        save(&path, &to_json(&snapshot)).unwrap();
        assert_eq!(load(&path), Some(snapshot));
        let rights =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(rights & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert_eq!(load(&path), None);
        assert!(save(&dir.path().join("no/such/dir"), b"x").is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
