//! Notices of the kernel: where something has happened.
//!
//! They are taken in by a task of their own, into a set with a bound: a burst can be as large as it likes, and nothing
//! is lost by not being looked at soon. One directory is watched at a time, so that those that nobody wants cost nothing.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::tree::{Directories, Dirty};

/// A batch has ended when nothing happens for this long.
const QUIET: Duration = Duration::from_millis(200);
/// And if it does not end, it is taken as it is after this time.
const LONGEST: Duration = Duration::from_secs(3);
/// Paths that are kept apart; with more, everything is looked at.
const MAX_PATHS: usize = 100_000;

/// Most directories that one user may watch.
const MAX_WATCHES: &str = "fs.inotify.max_user_watches";
/// Most programs of one user that may watch.
const MAX_INSTANCES: &str = "fs.inotify.max_user_instances";

/// Bytes that are read at once: some hundred notices.
const BUFFER: usize = 16 << 10;

#[derive(Default)]
struct Shared {
    dirty: Mutex<Dirty>,
    watched: Mutex<HashMap<WatchDescriptor, PathBuf>>,
    wake: Notify,
}

impl Shared {
    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, PathBuf>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: io::Result<EventOwned>) {
        let path = match heard {
            Ok(event) if event.mask.contains(EventMask::IGNORED) => {
                self.watched().remove(&event.wd);
                return;
            }
            Ok(event) if !event.mask.contains(EventMask::Q_OVERFLOW) => {
                let Some(directory) = self.watched().get(&event.wd).cloned() else { return };
                Some(event.name.map_or(directory.clone(), |name| directory.join(name)))
            }
            // Whatever was to be told is lost.
            Ok(_) | Err(_) => None,
        };
        self.note(path);
    }

    /// Notes where to look; everywhere if that is not known.
    fn note(&self, path: Option<PathBuf>) {
        let mut dirty = self.dirty();
        match path {
            Some(path) if !dirty.all => {
                dirty.paths.insert(path);
            }
            Some(_) => {}
            None => dirty.all = true,
        }
        if dirty.paths.len() > MAX_PATHS {
            dirty.all = true;
        }
        if dirty.all {
            dirty.paths.clear();
        }
        drop(dirty);
        self.wake.notify_one();
    }
}

/// Whatever may leave something different than it was.
fn changes() -> WatchMask {
    WatchMask::ATTRIB
        | WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MODIFY
        | WatchMask::MOVE
        | WatchMask::MOVE_SELF
}

/// Takes in notices.
pub struct Notices {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Asks for notices.
pub struct Asking {
    watches: Watches,
    known: HashMap<PathBuf, WatchDescriptor>,
    shared: Arc<Shared>,
}

/// Both ends.
///
/// # Errors
/// When the kernel gives no more of them.
pub fn begin() -> io::Result<(Notices, Asking)> {
    let shared = Arc::new(Shared::default());
    let mut events = Inotify::init()
        .and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER]))
        .map_err(|error| refused(error, None))?;
    let (watches, ear) = (events.watches(), shared.clone());
    let reader = tokio::spawn(async move {
        while let Some(heard) = events.next().await {
            ear.hear(heard);
        }
    });
    let asking = Asking { watches, known: HashMap::new(), shared: shared.clone() };
    Ok((Notices { shared, reader }, asking))
}

impl Notices {
    /// Where to look, once it has become quiet there. Nothing is lost by not waiting for it to the end.
    pub async fn settled(&self) -> Dirty {
        while *self.shared.dirty() == Dirty::default() {
            self.shared.wake.notified().await;
        }
        let began = Instant::now();
        while let Some(left) = LONGEST.checked_sub(began.elapsed()) {
            if timeout(QUIET.min(left), self.shared.wake.notified()).await.is_err() {
                break;
            }
        }
        std::mem::take(&mut *self.shared.dirty())
    }
}

impl Directories for Asking {
    fn enter(&mut self, directory: &Path) -> io::Result<()> {
        // Locked over both: what happens there at once must find its name.
        let mut watched = self.shared.watched();
        let watch = self.watches.add(directory, changes());
        let watch = watch.map_err(|error| refused(error, Some(directory)))?;
        watched.insert(watch.clone(), directory.to_owned());
        self.known.insert(directory.to_owned(), watch);
        Ok(())
    }

    fn leave(&mut self, directory: &Path) {
        if let Some(watch) = self.known.remove(directory) {
            // The kernel may have been faster.
            let _ = self.watches.remove(watch);
        }
    }
}

/// Why there are no notices, and what to do about it.
fn refused(error: io::Error, directory: Option<&Path>) -> io::Error {
    let limit = |name: &str, what: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let now = std::fs::read_to_string(path).unwrap_or_default();
        let now = now.trim().parse::<u64>().ok();
        let (shown, more) = match now {
            Some(now) => (format!(" ({now})"), now.saturating_mul(4).max(8192)),
            None => (String::new(), 524_288),
        };
        io::Error::other(format!(
            "this user may watch no more {what}{shown}; raise the limit: `sysctl -w {name}={more}`"
        ))
    };
    let number = error.raw_os_error();
    let is = |errno: rustix::io::Errno| number == Some(errno.raw_os_error());
    if is(rustix::io::Errno::NOSPC) {
        limit(MAX_WATCHES, "directories")
    } else if is(rustix::io::Errno::MFILE) && directory.is_none() {
        limit(MAX_INSTANCES, "sets of files at the same time")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn notices_are_gathered_until_it_is_quiet() {
        let (notices, _) = begin().unwrap();
        notices.shared.note(Some("/a".into()));
        let later = async {
            tokio::time::sleep(QUIET / 4).await;
            notices.shared.note(Some("/b".into()));
        };
        let (dirty, ()) = tokio::join!(notices.settled(), later);
        assert_eq!(dirty.paths, ["/a", "/b"].map(Into::into).into());
        assert!(!dirty.all);
    }

    #[tokio::test]
    async fn what_was_lost_makes_everything_suspect() {
        let (notices, _) = begin().unwrap();
        notices.shared.note(Some("/a".into()));
        notices.shared.hear(Err(io::Error::other("lost")));
        notices.shared.note(Some("/b".into()));
        let dirty = notices.settled().await;
        assert_eq!(dirty, Dirty { all: true, ..Dirty::default() });
    }

    #[tokio::test]
    async fn the_kernel_tells_of_what_happens_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (notices, mut asking) = begin().unwrap();
        asking.enter(dir.path()).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(notices.settled().await.paths.contains(&file));
        // Reading changes nothing.
        fs::read(&file).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(notices.settled().await.paths, [dir.path().to_owned()].into());
        asking.leave(dir.path());
        let error = asking.enter(&dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_limit_of_the_kernel_is_named() {
        let full = io::Error::from_raw_os_error(28);
        let text = refused(full, Some(Path::new("/x"))).to_string();
        assert!(text.contains("sysctl -w fs.inotify.max_user_watches="), "{text}");
        let many = io::Error::from_raw_os_error(24);
        let text = refused(many, None).to_string();
        assert!(text.contains("fs.inotify.max_user_instances="), "{text}");
    }
}
