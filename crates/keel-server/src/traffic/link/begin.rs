//! Starting a proxy: where none is, or beside one that is to be replaced.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use keel_model::EventKind;
use keel_route::snapshot::Snapshot;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::held::Held;
use super::{Link, RECONNECT};

/// A proxy that was started gets this long before another is, unless it ends; one that ends again and again is started
/// anew at most this seldom.
pub(super) const START_TIME: Duration = Duration::from_secs(3);
/// What the proxy would otherwise take from the server's environment. How it logs it is told, and can be told anew.
const NOT_INHERITED: &str = "KEEL_ACCESS_LOG";
/// A log of the proxy larger than this, in bytes, is begun anew with the next proxy.
const MAX_LOG: u64 = 10 << 20;

/// Whether a proxy is started where none is, or beside one that is to be replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is none.
    Empty,
    /// There is another one.
    Taken,
}

/// A proxy that was started and is not linked yet.
pub struct Begun {
    /// When.
    pub at: Instant,
    /// Is finished when it has ended.
    pub life: JoinHandle<()>,
}

impl Begun {
    /// Whether it may still be linked.
    pub fn may_come(&self) -> bool {
        !self.life.is_finished() && self.at.elapsed() < START_TIME
    }
}

/// How long nothing is started after so many in a row that ended at once.
pub fn pause(in_vain: u32) -> Duration {
    match in_vain {
        0 => Duration::ZERO,
        _ => START_TIME.min(RECONNECT.saturating_mul(1 << in_vain.min(16))),
    }
}

impl Link {
    pub(super) fn start(&self, place: Place, held: &Held) -> Option<Begun> {
        let path = self.state_dir.join("proxy.log");
        let full = std::fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG);
        if full && let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, "the proxy's log can't be begun anew");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let mut command = tokio::process::Command::new(&self.program);
        command
            .arg("proxy")
            .arg("--control-socket")
            .arg(self.socket())
            .arg("--snapshot-file")
            .arg(self.state_dir.join("proxy.snapshot"))
            .args((place == Place::Taken).then_some("--take-over"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_or_else(|_| Stdio::null(), Stdio::from))
            .kill_on_drop(false);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(NOT_INHERITED) {
                command.env_remove(name);
            }
        }
        if let Some(engine) = &self.engine {
            command.arg("--engine").arg(engine);
        }
        let given = self.inherit(place, held, &mut command);
        match command.spawn() {
            Ok(mut child) => {
                if let Some((stream, snapshot)) = given {
                    held.give(stream, snapshot);
                }
                let what = match &self.engine {
                    Some(engine) => format!("proxy with {engine}"),
                    None => "proxy".to_owned(),
                };
                let how = if place == Place::Taken { " to take over" } else { "" };
                let pid = child.id().unwrap_or_default();
                let message = format!("{what} started{how} (process {pid})");
                self.events.add(EventKind::Platform, None, None, None, message);
                // Waited for so that it leaves no zombie.
                let life = tokio::spawn(async move { drop(child.wait().await) });
                Some(Begun { at: Instant::now(), life })
            }
            Err(error) => {
                let message = format!("the proxy can't be started: {error}");
                tracing::error!("{message}");
                self.events.add(EventKind::Platform, None, None, None, message);
                None
            }
        }
    }

    /// Has a new proxy get what one that died left.
    fn inherit(
        &self,
        place: Place,
        held: &Held,
        command: &mut Command,
    ) -> Option<(UnixStream, Arc<Snapshot>)> {
        if place == Place::Taken || held.is_empty() {
            return None;
        }
        let snapshot = self.state.borrow().snapshot.clone()?;
        let pair = UnixStream::pair();
        let pair = pair.inspect_err(|error| {
            tracing::warn!(%error, "the new proxy opens its sockets itself");
        });
        let (ours, theirs) = pair.ok()?;
        command.arg("--sockets-from-stdin").stdin(Stdio::from(OwnedFd::from(theirs)));
        Some((ours, snapshot))
    }

    /// A proxy outlives its server, and then may not be what this one would start.
    pub(super) fn is_other_engine(&self, version: &str) -> bool {
        let wanted = self.engine.as_deref();
        let driven = version.split_once(" with ").map(|(_, engine)| engine);
        wanted != driven
    }
}

/// Whether process `pid` runs something else than what lies at `program` now. Where that can't be told, it does not.
pub fn is_other_binary(pid: u32, program: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let running = identity(Path::new(&format!("/proc/{pid}/exe")));
    running.is_some_and(|running| identity(program).is_some_and(|wanted| running != wanted))
}
