//! Starting a proxy: where none is, or beside one that is to be replaced.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keel_model::EventKind;
use keel_route::snapshot::Snapshot;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::held::Held;
use super::{Link, ProxyState, RECONNECT};
use crate::clock;
use crate::events::EventLog;

/// A proxy that was started gets this long before another is, unless it ends; one that ends again and again is started
/// anew at most this seldom.
pub(super) const START_TIME: Duration = Duration::from_secs(3);
/// One that is to take another's place gets this long, and then is killed. Each step of it has a shorter bound of its own.
const SUCCESSION_TIME: Duration = Duration::from_secs(60);
/// After one that could not, the next tries at most this much later: while one tries, changes have to wait.
const SUCCESSION_PAUSE: Duration = Duration::from_secs(60);
/// What the proxy would otherwise take from the server's environment. How it logs it is told, and can be told anew.
const NOT_INHERITED: &str = "KEEL_ACCESS_LOG";
/// A log of the proxy larger than this, in bytes, is begun anew with the next proxy.
const MAX_LOG: u64 = 10 << 20;

/// The last line of a proxy's log is at most so many bytes long.
const MAX_LINE: u64 = 512;
/// Proxies that are remembered as started by this server.
const MAX_CHILDREN: usize = 16;

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
    /// Its process id.
    pub pid: u32,
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

    /// Waits until it has ended; one that takes too long is killed.
    async fn ended(&mut self) {
        let Err(_) = timeout_at(self.at + SUCCESSION_TIME, &mut self.life).await else { return };
        tracing::warn!(pid = self.pid, "a proxy that was to take over hangs and is killed");
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// How long nothing is started after so many in a row that ended at once.
pub fn pause(in_vain: u32, most: Duration) -> Duration {
    match in_vain {
        0 => Duration::ZERO,
        _ => most.min(RECONNECT.saturating_mul(1 << in_vain.min(16))),
    }
}

/// A proxy is to be replaced by another that takes its place.
#[derive(Default)]
pub struct Succession {
    /// Was started last.
    pub begun: Option<Begun>,
    in_vain: u32,
    /// None is started before.
    next: Option<Instant>,
}

impl Succession {
    /// One was begun, or could not even be.
    pub fn begin(&mut self, begun: Option<Begun>) {
        self.begun = begun;
        self.in_vain = self.in_vain.saturating_add(1);
        self.next = Some(Instant::now() + pause(self.in_vain, SUCCESSION_PAUSE));
    }

    /// Waits until another one is to be started.
    pub async fn due(&mut self) {
        if let Some(begun) = &mut self.begun {
            begun.ended().await;
            self.begun = None;
        }
        if let Some(next) = self.next {
            sleep_until(next).await;
        }
    }
}

/// A proxy that this server has started.
struct Life {
    /// What it is, for people.
    what: String,
    pid: u32,
    place: Place,
    log: PathBuf,
    /// How long its log was before.
    logged: u64,
}

impl Life {
    /// Waits for its end, so that it leaves no zombie, and tells how that was unless it was told to end.
    async fn lived(
        self,
        mut child: Child,
        state: watch::Sender<ProxyState>,
        events: Arc<EventLog>,
    ) {
        let Self { what, pid, place, log, logged } = self;
        let ended = child.wait().await;
        state.send_if_modified(|state| state.started.take_if(|it| *it == pid).is_some());
        let Some(status) = ended.ok().filter(|status| !status.success()) else { return };
        let why = how_it_ended(status, &log, logged);
        let was_linked = state.borrow().known == Some(pid);
        let message = match place {
            Place::Taken if !was_linked => {
                format!(
                    "the {what} (process {pid}) did not take over: {why}; the one before goes on"
                )
            }
            _ => format!("the {what} (process {pid}) ended {why}"),
        };
        state.send_if_modified(|state| {
            if place == Place::Taken && !was_linked {
                state.not_taken_over = Some(why.clone());
            } else if state.pid.is_none() {
                state.lack(clock::now(), format!("process {pid} ended {why}"));
            }
            false
        });
        events.add(EventKind::Platform, None, None, None, message);
    }
}

impl Link {
    pub(super) fn start(&self, place: Place, held: &Held) -> Option<Begun> {
        let path = self.state_dir.join("proxy.log");
        let full = std::fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG);
        if full && let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, "the proxy's log can't be begun anew");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
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
        let logged = std::fs::metadata(&path).map_or(0, |log| log.len());
        match command.spawn() {
            Ok(child) => {
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
                self.state.send_modify(|state| {
                    state.started = child.id();
                    state.children.truncate(MAX_CHILDREN - 1);
                    state.children.push_front(pid);
                });
                let life = Life { what, pid, place, log: path, logged };
                let (state, events) = (self.state.clone(), Arc::clone(&self.events));
                let life = tokio::spawn(life.lived(child, state, events));
                Some(Begun { pid, at: Instant::now(), life })
            }
            Err(error) => {
                self.not_started(place, &error);
                None
            }
        }
    }

    fn not_started(&self, place: Place, error: &std::io::Error) {
        let message = format!("the proxy can't be started: {}: {error}", self.program.display());
        tracing::error!("{message}");
        if place == Place::Taken {
            self.state.send_modify(|state| state.not_taken_over = Some(message.clone()));
        } else {
            // Each try fails alike.
            let known = self.state.borrow().down.as_ref().is_some_and(|(_, why)| *why == message);
            self.state.send_modify(|state| state.lack(clock::now(), message.clone()));
            if known {
                return;
            }
        }
        self.events.add(EventKind::Platform, None, None, None, message);
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

/// How a proxy ended, with the last line that it has logged since its log was `logged` bytes long.
fn how_it_ended(status: ExitStatus, log: &Path, logged: u64) -> String {
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("by signal {signal}"),
        (None, code) => format!("with code {}", code.unwrap_or_default()),
    };
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(logged.max(length.saturating_sub(MAX_LINE))))?;
        let mut bytes = Vec::new();
        file.take(MAX_LINE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // A proxy that is killed says nothing; what it said long before is not the reason.
    match text.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) if status.code().is_some() => format!("{how}: {line}"),
        _ => how,
    }
}

/// Whether process `pid` runs something else than what lies at `program` now. Where that can't be told, it does not.
pub fn is_other_binary(pid: u32, program: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let running = identity(Path::new(&format!("/proc/{pid}/exe")));
    running.is_some_and(|running| identity(program).is_some_and(|wanted| running != wanted))
}
