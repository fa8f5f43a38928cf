//! Knows when instances end, and finds again what an earlier server started.
//!
//! Each running instance has one task here. It waits on two process descriptors: the workload's, because its end is
//! news, and the shim's, because a shim that was killed must be replaced. Truth is always read from the records.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_model::{Exit, InstanceId};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use super::{Entry, Inner, Kept, blocking, recorded_exit};
use crate::record::{self, Ended, Reserved, Running};
use crate::stamp;
use crate::types::Error;

/// How long the shim may take from the workload's end to its record before we look ourselves.
const RECORD_WAIT: Duration = Duration::from_secs(5);
/// How often we look meanwhile; normally the first look finds it.
const RECORD_POLL: Duration = Duration::from_micros(500);
/// How long a shim may take from the record to its own end (it empties pipes and waits for the disk).
const SHIM_WAIT: Duration = Duration::from_secs(5);
/// Pause before looking again at a shim that is neither dead nor on record.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Pause between two replacements of a shim that is killed again and again.
const ADOPT_PAUSE: Duration = Duration::from_millis(500);

/// A descriptor of the workload that can't come to mean another process.
pub(super) fn pinned(running: &Running) -> std::io::Result<OwnedFd> {
    let gone = || std::io::Error::from_raw_os_error(libc::ESRCH);
    let pid = Pid::from_raw(running.pid).ok_or_else(gone)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    if running.alive() { Ok(process) } else { Err(gone()) }
}

/// Whether a shim lives for the instance of `dir`.
fn shim_lives(dir: &Path) -> bool {
    matches!(record::lock(dir), Ok(None))
}

/// Waits (bounded) until no shim lives for the instance of `dir`.
pub(super) async fn shim_gone(dir: &Path) {
    let deadline = Instant::now() + SHIM_WAIT;
    while dir.exists() && shim_lives(dir) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ends whatever an earlier server's unfinished start may have left running for the instance of `dir`.
pub(super) async fn clear(dir: &Path) {
    if shim_lives(dir)
        && let Some(running) = record::read::<Running>(dir, record::RUNNING)
        && recorded_exit(dir, running.attempt).is_none()
        && let Ok(process) = pinned(&running)
    {
        let _ = crate::sys::pidfd_signal(process.as_fd(), libc::SIGKILL);
    }
    shim_gone(dir).await;
}

/// Starts the watcher of a running instance.
pub(super) fn spawn(inner: &Arc<Inner>, id: &InstanceId) {
    let task = tokio::spawn(watch(inner.clone(), id.clone()));
    if let Some(entry) = inner.entries().get_mut(id)
        && let Some(old) = entry.watcher.replace(task)
    {
        old.abort();
    }
}

async fn watch(inner: Arc<Inner>, id: InstanceId) {
    let mut adopted_at: Option<Instant> = None;
    loop {
        let Ok((_, running)) = inner.running(&id) else { return };
        let dir = inner.dir(&id);
        let workload = pinned(&running).and_then(crate::sys::watchable);
        let Ok(workload) = workload else {
            // It ended before we could look.
            let exit = exit_of(&inner, &id, &running, None).await;
            return finish(&inner, &id, running.attempt, exit);
        };
        if !shim_lives(&dir) && recorded_exit(&dir, running.attempt).is_none() {
            if adopted_at.is_some_and(|at| at.elapsed() < ADOPT_PAUSE) {
                tokio::time::sleep(ADOPT_PAUSE).await;
            }
            adopted_at = Some(Instant::now());
            replace_shim(&inner, &id).await;
            continue;
        }
        let shim = Pid::from_raw(running.shim_pid)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .and_then(|fd| crate::sys::watchable(fd).ok());
        let Some(shim) = shim.filter(|_| shim_lives(&dir)) else {
            // It died while we looked, or its successor has not put itself on record yet.
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Some(now) = record::read::<Running>(&dir, record::RUNNING)
                && now.attempt == running.attempt
                && let Some(entry) = inner.entries().get_mut(&id)
            {
                entry.running = Some(now);
            }
            continue;
        };
        tokio::select! {
            biased;
            _ = workload.readable() => {
                let exit = exit_of(&inner, &id, &running, Some(&workload)).await;
                return finish(&inner, &id, running.attempt, exit);
            }
            _ = shim.readable() => {}
        }
    }
}

/// The recorded exit of a workload that has ended; recorded here if its shim can't do it any more.
async fn exit_of(
    inner: &Inner,
    id: &InstanceId,
    running: &Running,
    workload: Option<&AsyncFd<OwnedFd>>,
) -> Exit {
    let dir = inner.dir(id);
    let deadline = Instant::now() + RECORD_WAIT;
    loop {
        if let Some(exit) = recorded_exit(&dir, running.attempt) {
            return exit;
        }
        if !shim_lives(&dir) || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(RECORD_POLL).await;
    }
    // Looked at once more after the shim was seen dead: it may have recorded the exit last thing.
    if let Some(exit) = recorded_exit(&dir, running.attempt) {
        return exit;
    }
    let status = workload.and_then(|fd| running.wait_status(fd.get_ref().as_fd()));
    let oom = running.group.oom_kills() > running.oom_before;
    let exit = crate::shim::exit_of(status, oom);
    record_exit(&dir, running, exit.clone());
    exit
}

/// Writes the end of a workload that has no shim.
fn record_exit(dir: &Path, running: &Running, exit: Exit) {
    running.group.kill();
    let ended = Ended { attempt: running.attempt, exit };
    let written = Reserved::take(dir).and_then(|reserved| {
        reserved.publish(&ended)?;
        reserved.sync();
        Ok(())
    });
    if let Err(error) = written {
        tracing::warn!(dir = %dir.display(), %error, "an exit could not be recorded");
    }
}

fn finish(inner: &Inner, id: &InstanceId, attempt: u32, exit: Exit) {
    if let Some(entry) = inner.entries().get_mut(id)
        && entry.kept.launch.attempt == attempt
        && entry.exit.is_none()
    {
        entry.exit = Some(exit);
    }
    inner.bump();
}

/// Puts a new shim in the place of one that was killed.
async fn replace_shim(inner: &Arc<Inner>, id: &InstanceId) {
    let (dir, program) = (inner.dir(id), inner.options.shim_program.clone());
    let record_dir = dir.clone();
    let status = blocking(move || {
        Command::new(program)
            .args(["shim", "adopt"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .status()
    })
    .await;
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        tracing::warn!(instance = %id, ?status, "no shim could be started");
    }
    let before = inner.running(id).map(|(_, running)| running.shim_pid).ok();
    let deadline = Instant::now() + SHIM_WAIT;
    while Instant::now() < deadline {
        if let Some(now) = record::read::<Running>(&record_dir, record::RUNNING)
            && Some(now.shim_pid) != before
        {
            if let Some(entry) = inner.entries().get_mut(id) {
                entry.running = Some(now);
            }
            return;
        }
        if recorded_exit(&record_dir, inner.attempt(id)).is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Inner {
    fn attempt(&self, id: &InstanceId) -> u32 {
        self.entries().get(id).map_or(0, |entry| entry.kept.launch.attempt)
    }
}

/// Reads all instance directories and makes the entries agree with them.
pub(super) async fn rescan(inner: &Arc<Inner>) -> Result<(), Error> {
    let dir = inner.instances_dir.clone();
    let listed = blocking(move || -> std::io::Result<Vec<InstanceId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(id) = InstanceId::new(entry?.file_name().to_string_lossy()) {
                ids.push(id);
            }
        }
        Ok(ids)
    });
    let failed = Error::system(format!("can't list {}", inner.instances_dir.display()));
    for id in listed.await.map_err(failed)? {
        if let Some(entry) = inner.entries().get(&id) {
            let blind = entry.exit.is_none()
                && entry.watcher.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
            if !blind {
                continue;
            }
        }
        let gate = inner.gate(&id);
        // Somebody starts or removes it right now and will say so.
        let Ok(_turn) = gate.try_lock() else { continue };
        let (shared, owned) = (inner.clone(), id.clone());
        let Some(entry) = blocking(move || load(&shared, &owned)).await else { continue };
        let watched = entry.exit.is_none();
        inner.entries().insert(id.clone(), entry);
        if watched {
            spawn(inner, &id);
        }
        inner.bump();
    }
    Ok(())
}

/// What the records of one instance say. Blocking.
fn load(inner: &Inner, id: &InstanceId) -> Option<Entry> {
    let dir = inner.dir(id);
    let kept = record::read::<Kept>(&dir, record::LAUNCH)?;
    let attempt = kept.launch.attempt;
    if kept.network.is_none() {
        inner.ports.keep(id, kept.port);
        for binding in &kept.ports {
            inner.ports.keep(id, binding.address.port());
        }
    } else if let Some(network) = &kept.network {
        inner.networks.keep(id, network);
    }
    let running = record::read::<Running>(&dir, record::RUNNING).filter(|r| r.attempt == attempt);
    let mut exit = recorded_exit(&dir, attempt);
    if exit.is_none() {
        match &running {
            Some(running) if running.alive() => {}
            // Its shim is at work on the record; the watcher will find it.
            Some(_) if shim_lives(&dir) => {}
            Some(running) => {
                let oom = running.group.oom_kills() > running.oom_before;
                let ended = crate::shim::exit_of(None, oom);
                record_exit(&dir, running, ended.clone());
                exit = Some(ended);
            }
            None => {
                // The server died in the middle of a start. What there is of it is ended before the next one.
                kept.group.kill();
                exit = Some(Exit { code: None, signal: None, oom: false, at: stamp::now() });
            }
        }
    }
    Some(Entry { kept, running, exit, watcher: None })
}
