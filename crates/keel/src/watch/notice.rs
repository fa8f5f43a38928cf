//! Notices of the kernel: where something has happened.
//!
//! They are taken in on a thread of their own, into a set with a bound: a burst can be as large as it likes, and nothing
//! is lost by not being looked at soon. One directory is watched at a time, so that those that nobody wants cost nothing.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{
    Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
};
use tokio::sync::Notify;
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

#[derive(Default)]
struct Shared {
    dirty: Mutex<Dirty>,
    wake: Notify,
}

impl Shared {
    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: notify::Result<Event>) {
        let mut dirty = self.dirty();
        match heard {
            Ok(event) if event.need_rescan() => dirty.all = true,
            Ok(event) if changes(&event.kind) => dirty.paths.extend(event.paths),
            Ok(_) => return,
            // Whatever was to be told is lost.
            Err(_) => dirty.all = true,
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

/// Whether something may be different after it.
fn changes(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => *kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Takes in notices.
pub struct Notices {
    shared: Arc<Shared>,
}

/// Asks for notices.
pub struct Asking(RecommendedWatcher);

/// Both ends.
///
/// # Errors
/// When the kernel gives no more of them.
pub fn begin() -> io::Result<(Notices, Asking)> {
    let shared = Arc::new(Shared::default());
    let ear = shared.clone();
    let watcher = RecommendedWatcher::new(move |heard| ear.hear(heard), Config::default());
    Ok((Notices { shared }, Asking(watcher.map_err(|error| refused(error, None))?)))
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
        let watched = self.0.watch(directory, RecursiveMode::NonRecursive);
        watched.map_err(|error| refused(error, Some(directory)))
    }

    fn leave(&mut self, directory: &Path) {
        // The kernel may have been faster.
        let _ = self.0.unwatch(directory);
    }
}

/// Why there are no notices, and what to do about it.
fn refused(error: notify::Error, directory: Option<&Path>) -> io::Error {
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
    let error = match error.kind {
        ErrorKind::MaxFilesWatch => return limit(MAX_WATCHES, "directories"),
        ErrorKind::Io(error) => error,
        ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
        other => io::Error::other(format!("{other:?}")),
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

    use notify::event::{CreateKind, Flag};

    use super::*;

    fn shared() -> (Notices, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        (Notices { shared: shared.clone() }, shared)
    }

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(path.into())
    }

    #[tokio::test]
    async fn notices_are_gathered_until_it_is_quiet() {
        let (notices, shared) = shared();
        let create = EventKind::Create(CreateKind::File);
        shared.hear(Ok(event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/read")));
        shared.hear(Ok(event(create, "/a")));
        let later = async {
            tokio::time::sleep(QUIET / 4).await;
            shared.hear(Ok(event(create, "/b")));
        };
        let (dirty, ()) = tokio::join!(notices.settled(), later);
        assert_eq!(dirty.paths, ["/a", "/b"].map(Into::into).into());
        assert!(!dirty.all);
    }

    #[tokio::test]
    async fn what_was_lost_makes_everything_suspect() {
        let (notices, shared) = shared();
        shared.hear(Ok(event(EventKind::Create(CreateKind::File), "/a")));
        shared.hear(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
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
        asking.leave(dir.path());
        let error = asking.enter(&dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_limit_of_the_kernel_is_named() {
        let full = notify::Error::new(ErrorKind::MaxFilesWatch);
        let text = refused(full, Some(Path::new("/x"))).to_string();
        assert!(text.contains("sysctl -w fs.inotify.max_user_watches="), "{text}");
        let many = notify::Error::io(io::Error::from_raw_os_error(24));
        let text = refused(many, None).to_string();
        assert!(text.contains("fs.inotify.max_user_instances="), "{text}");
    }
}
