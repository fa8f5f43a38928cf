//! The files of an instance's directory, through which server and shim tell each other what is.
//!
//! `launch.json` is written by the server before a start, `running.json` and `exit.json` by the shim. Each is
//! replaced atomically and carries its attempt, so that a reader can't mix two attempts. The exit file is reserved
//! at the start: a full disk can't prevent an exit from being recorded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keel_model::{Exit, LogPolicy, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cgroup::Group;

/// What the server wants to know of an attempt for as long as the instance exists.
pub(crate) const LAUNCH: &str = "launch.json";
/// What an attempt that did not start (or a step before the first) made, to be taken away later.
pub(crate) const FAILED: &str = "failed.json";
/// What runs.
pub(crate) const RUNNING: &str = "running.json";
/// How it ended.
pub(crate) const EXIT: &str = "exit.json";
/// Held by a living shim.
pub(crate) const LOCK: &str = "lock";
/// How often an ended process is looked at that does not show it yet.
const WAIT_STATUS_LOOKS: usize = 200;
/// Room kept for the exit record.
const EXIT_ROOM: usize = 512;
const EXIT_RESERVED: &str = "exit.reserved";

/// A workload that runs (or ran).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub attempt: u32,
    pub pid: i32,
    pub start_ticks: u64,
    pub boot_id: String,
    pub started_at: Timestamp,
    pub shim_pid: i32,
    pub logs: LogPolicy,
    pub group: Group,
    pub oom_before: u64,
    /// Where shims go, so that a replacement goes there too.
    pub shim_group: Group,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub attempt: u32,
    pub exit: Exit,
}

/// Reads a record; `None` when there is none or it can't be understood.
#[must_use]
pub fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

/// Replaces a record, readable by its owner alone.
///
/// # Errors
/// When it can't be written; the one before is still there then.
pub fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let json = serde_json::to_vec(value).map_err(io::Error::other)?;
    let new = dir.join(format!("{name}.new"));
    let result = create_private(&new)
        .and_then(|mut file| file.write_all(&json))
        .and_then(|()| fs::rename(&new, dir.join(name)));
    if result.is_err() {
        let _ = fs::remove_file(&new);
    }
    result
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The room for an exit record.
pub(crate) struct Reserved {
    dir: PathBuf,
    file: File,
}

impl Reserved {
    /// Takes the room now, while there is some.
    pub(crate) fn take(dir: &Path) -> io::Result<Self> {
        // What is there already is written over: on a full disk its blocks are all there are.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(dir.join(EXIT_RESERVED))?;
        file.write_all_at(&[b' '; EXIT_ROOM], 0)?;
        Ok(Self { dir: dir.to_owned(), file })
    }

    /// Makes the exit visible. It is durable only after [`Self::sync`], which may take long.
    pub(crate) fn publish(&self, ended: &Ended) -> io::Result<()> {
        let mut json = serde_json::to_vec(ended).map_err(io::Error::other)?;
        json.resize(json.len().max(EXIT_ROOM), b' ');
        self.file.write_all_at(&json, 0)?;
        fs::rename(self.dir.join(EXIT_RESERVED), self.dir.join(EXIT))
    }

    /// Waits until the exit is on the disk.
    pub(crate) fn sync(&self) {
        let _ = self.file.sync_all();
        if let Ok(dir) = File::open(&self.dir) {
            let _ = dir.sync_all();
        }
    }
}

/// Takes the lock that only one shim of an instance may hold. `None` when another one lives.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// This boot of this machine.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// One line of `/proc/<pid>/stat`, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub zombie: bool,
    pub parent: i32,
    pub session: i32,
    pub start_ticks: u64,
    pub cpu_ticks: u64,
    pub threads: u64,
    pub rss_pages: u64,
    /// The raw wait status of a zombie.
    pub exit_code: i32,
}

/// Reads the state of a process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold spaces and parentheses; the fields begin after the last one.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: i32::try_from(number(1)?).ok()?,
        session: i32::try_from(number(3)?).ok()?,
        cpu_ticks: number(11)? + number(12)?,
        threads: number(17)?,
        start_ticks: number(19)?,
        rss_pages: number(21)?,
        exit_code: fields.get(49).and_then(|code| code.parse().ok()).unwrap_or(0),
    })
}

impl Running {
    /// The raw wait status of the ended workload behind `process`, when it is not our child: from the zombie while its
    /// parent has not reaped it, from the kernel's memory of it afterwards.
    pub(crate) fn wait_status(&self, process: BorrowedFd<'_>) -> Option<i32> {
        for _ in 0..WAIT_STATUS_LOOKS {
            match stat(self.pid) {
                Some(stat) if stat.start_ticks == self.start_ticks && stat.zombie => {
                    return Some(stat.exit_code);
                }
                Some(stat) if stat.start_ticks == self.start_ticks => {}
                _ => return crate::sys::pidfd_exit_info(process).ok().flatten(),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Whether the workload lives: the same process, in the same boot, not a zombie.
    pub(crate) fn alive(&self) -> bool {
        self.boot_id == boot_id()
            && stat(self.pid).is_some_and(|s| s.start_ticks == self.start_ticks && !s.zombie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_is_no_trap() {
        let tail = "S 1 2 3 0 -1 0 0 0 0 0 7 8 0 0 20 0 4 0 999 0 55 0";
        let stat = parse_stat(&format!("42 (a) b (c) {tail}")).unwrap();
        assert_eq!((stat.parent, stat.session, stat.start_ticks), (1, 3, 999));
        assert_eq!((stat.cpu_ticks, stat.threads, stat.rss_pages), (15, 4, 55));
        assert!(!stat.zombie);
    }

    #[test]
    fn somebody_else_with_the_same_pid_is_not_the_workload() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let ticks = stat(pid).unwrap().start_ticks;
        let mut running = Running {
            attempt: 1,
            pid,
            start_ticks: ticks,
            boot_id: boot_id(),
            started_at: Timestamp(0),
            shim_pid: 1,
            logs: LogPolicy::default(),
            group: Group::default(),
            oom_before: 0,
            shim_group: Group::default(),
        };
        assert!(running.alive());
        running.start_ticks += 1;
        assert!(!running.alive());
        running.start_ticks -= 1;
        running.boot_id = "another".into();
        assert!(!running.alive());
    }

    #[test]
    fn an_exit_is_published_into_its_reserved_room() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = Reserved::take(dir.path()).unwrap();
        let exit = Exit { code: Some(3), signal: None, oom: false, at: Timestamp(7) };
        let ended = Ended { attempt: 2, exit };
        reserved.publish(&ended).unwrap();
        reserved.sync();
        assert_eq!(read::<Ended>(dir.path(), EXIT), Some(ended));
    }
}
