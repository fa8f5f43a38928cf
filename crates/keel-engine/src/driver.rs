//! Keeps an engine in step with the server, in the place of our own data plane: the same control socket, the same frames.
//!
//! One loop, one change at a time. Frames that came while the engine was told of a change are one change together. A
//! generation is acknowledged when the engine has it; what the engine does not accept is reported as listeners that
//! can't be opened, and the last configuration that it did accept stays, with the endpoints of now.

mod driven;
mod in_flight;
mod succession;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keel_link::{ControlSocket, Elder, LOCK_PATIENCE, SUCCESSION_PATIENCE};
use keel_model::{Generation, InstanceId};
use keel_render::Engine;
use keel_route::part::Part;
use keel_route::snapshot::{
    FromProxy, Lacking, ListenerFailure, Notices, Snapshot, Stats, ToProxy,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::driven::{Driven, ended};
use crate::control::{self, Server};
use crate::files;
use crate::limits::{
    ACCEPT_PAUSE, DRAIN, IN_FLIGHT_LOOK, MAX_NOTICES, RELOAD_PAUSE, RESTART, RESTART_MOST, RETRY,
    SAVE_DELAY, SETTLED,
};
use crate::listeners;
use crate::place::Place;
use crate::program::Error;

/// How to run a driver.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// What is driven.
    pub engine: Engine,
    /// Unix socket to be created for the server; a file with `.lock` added to its name is kept beside it.
    pub control_socket: PathBuf,
    /// Where the last state is kept.
    pub snapshot_file: PathBuf,
    /// Directory of the engine's configuration, sockets and log; made if it is not there.
    pub directory: PathBuf,
    /// Threads or processes that handle traffic; one per core if absent.
    pub workers: Option<usize>,
    /// Told to the server.
    pub version: String,
    /// Take the place of the driver that serves the control socket, if there is one. The engine runs on meanwhile.
    pub take_over: bool,
}

/// Runs a driver until it is told to end by SIGTERM or SIGINT; then the engine is told to end when all connections have,
/// and is waited for, at most 30 s. Told twice, it ends at once. SIGUSR2 ends the driver alone.
///
/// # Errors
/// When the engine is not installed, another proxy serves the control socket, or the directory can't be used.
pub fn run(options: &DriverOptions) -> Result<(), Error> {
    let place = Place::new(options.engine, &options.directory, options.workers)?;
    let path = &options.control_socket;
    let failed = |source| Error::ControlSocket { path: path.clone(), source };
    let note = options.directory.join("driver.pid");
    let other = succession::other_kind(options).map_err(failed)?;
    let patience = if options.take_over { Duration::ZERO } else { LOCK_PATIENCE };
    let mut lock = keel_link::lock(path, patience).map_err(failed)?;
    if lock.is_none() && options.take_over && other.is_none() {
        replace(&note);
        lock = keel_link::lock(path, SUCCESSION_PATIENCE).map_err(failed)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(async {
        let signals = Signals::new().map_err(failed)?;
        let mut driver = Driver::new(options, place);
        let mut snapshot = keel_link::load(&options.snapshot_file);
        if let Some(other) = other {
            snapshot = driver.take_from(&other, snapshot).await?;
            lock = keel_link::lock(path, SUCCESSION_PATIENCE).map_err(failed)?;
        }
        let lock = lock.ok_or_else(|| Error::AlreadyServed { path: path.clone() })?;
        let own = std::process::id().to_string();
        files::put(&note, own.as_bytes(), files::PLAIN).map_err(failed)?;
        let socket = ControlSocket::create(path, lock).map_err(failed)?;
        driver.run(socket, signals, snapshot, &note).await;
        Ok(())
    })
}

/// Tells the driver that is noted there to leave its place.
fn replace(note: &Path) {
    let pid = std::fs::read_to_string(note).ok().and_then(|pid| pid.trim().parse().ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::USR2);
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    leave: Signal,
    /// Caught so that the end of a terminal does not end the driver.
    _hangup: Signal,
}

enum Told {
    End,
    Leave,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            leave: signal(SignalKind::user_defined2())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.leave.recv() => Told::Leave,
        }
    }
}

struct Driver {
    options: DriverOptions,
    driven: Driven,
    server: Server,
    /// What the server wants.
    wanted: Option<Snapshot>,
    /// What the engine has.
    applied: Option<Snapshot>,
    /// When the engine is told next, and when it was told last.
    due: Option<Instant>,
    told: Option<Instant>,
    /// Pause before the engine is started again.
    pause: Duration,
    save: Option<Instant>,
    /// Last numbers in flight that were reported, and when all were.
    reported: BTreeMap<InstanceId, u64>,
    reported_at: Instant,
    /// What was last said to be lacking on this connection.
    lacks: Option<Vec<Lacking>>,
    /// Since when instances drain, at the latest.
    draining_since: BTreeMap<InstanceId, Generation>,
    /// The proxy whose place this one took, until it has ended.
    elder: Option<Elder>,
    /// A successor was given the place and does not accept yet. It is given up at this time.
    handing_over: Option<Instant>,
    /// A successor accepts; to be acted on.
    retires: bool,
    /// What people are to be told, until the server asks.
    notices: Vec<String>,
}

impl Driver {
    fn new(options: &DriverOptions, place: Place) -> Self {
        Self {
            options: options.clone(),
            driven: Driven::new(options.engine, place),
            server: Server::default(),
            wanted: None,
            applied: None,
            due: None,
            told: None,
            pause: RESTART,
            save: None,
            reported: BTreeMap::new(),
            reported_at: Instant::now(),
            lacks: None,
            draining_since: BTreeMap::new(),
            elder: None,
            handing_over: None,
            retires: false,
            notices: Vec::new(),
        }
    }

    async fn run(
        mut self,
        socket: ControlSocket,
        mut signals: Signals,
        snapshot: Option<Snapshot>,
        note: &Path,
    ) {
        self.wanted = snapshot;
        if self.wanted.is_some() {
            self.apply().await;
        }
        let mut look = tokio::time::interval(IN_FLIGHT_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                told = signals.next() => match told {
                    Told::End => break,
                    Told::Leave => {
                        return self.keep();
                    }
                },
                () = ended(&self.driven) => self.restart().await,
                accepted = socket.accept(), if self.handing_over.is_none() => match accepted {
                    Ok(stream) => self.greet(stream).await,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept the server's connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                news = self.server.receive() => {
                    if news.is_new {
                        self.reported.clear();
                        self.lacks = None;
                    }
                    for message in news.messages {
                        self.obey(message).await;
                    }
                    if !self.server.is_there() {
                        self.handing_over = None;
                    }
                    if self.retires {
                        return self.retire(socket, &mut signals, note).await;
                    }
                }
                () = at(self.handing_over) => {
                    tracing::warn!("a successor did not begin to accept in time and is given up");
                    self.handing_over = None;
                    self.server.close();
                }
                () = Self::hear_elder(&mut self.elder) => self.report(false).await,
                () = at(self.due), if self.handing_over.is_none() => self.apply().await,
                () = at(self.save) => self.keep(),
                _ = look.tick() => self.report(false).await,
            }
        }
        self.end(socket, &mut signals).await;
    }

    /// Writes the state to its file, unless it is there.
    fn keep(&mut self) {
        if self.save.take().is_some() {
            self.wanted.iter().for_each(|s| control::save(&self.options.snapshot_file, s));
        }
    }

    async fn greet(&mut self, stream: tokio::net::UnixStream) {
        // It may be one that takes this place and begins with what is in the file.
        self.keep();
        let version = format!("{} with {}", self.options.version, self.options.engine.command());
        self.server.greet(stream, &FromProxy::Hello { pid: std::process::id(), version }).await;
    }

    async fn obey(&mut self, message: ToProxy) {
        match message {
            ToProxy::Stats => {
                let clusters = match &mut self.driven {
                    Driven::Haproxy(haproxy) => haproxy.stats().await,
                    Driven::Nginx(_) => BTreeMap::new(),
                };
                let engine = std::mem::take(&mut self.notices);
                let notices = Notices { engine, ..Notices::default() };
                let stats = Stats { clusters, notices, ..Stats::default() };
                return self.server.send(&FromProxy::Stats(stats)).await;
            }
            ToProxy::TakeOver => return self.hand_over().await,
            ToProxy::Retire => {
                self.retires = self.handing_over.take().is_some();
                return;
            }
            // The engine has them, and is started again by this driver.
            ToProxy::Lend { .. } => return self.server.close(),
            ToProxy::Snapshot(_)
            | ToProxy::Cluster { .. }
            | ToProxy::Endpoints { .. }
            | ToProxy::Callers { .. } => {}
        }
        let for_elder = self.elder.is_some().then(|| message.clone());
        if !self.note_change(message) {
            return;
        }
        if let (Some(change), Some(elder)) = (for_elder, &mut self.elder)
            && let Some(wanted) = &self.wanted
            && let Err(error) = elder.tell(&[change], wanted.generation).await
        {
            tracing::warn!(%error, "the proxy before this one does not follow any more");
            self.elder = None;
        }
        let now = Instant::now();
        let due = match (&self.driven, self.told) {
            (Driven::Nginx(_), Some(told)) => now.max(told + RELOAD_PAUSE),
            _ => now,
        };
        self.due = Some(due);
    }

    /// Notes what is wanted from now on; whether that is news.
    fn note_change(&mut self, message: ToProxy) -> bool {
        let outdated = |generation| {
            tracing::warn!(%generation, "an outdated change is not applied");
            false
        };
        match message {
            ToProxy::Snapshot(snapshot) => self.wanted = Some(snapshot),
            ToProxy::Cluster { generation, id, cluster } => {
                let wanted = self.wanted.get_or_insert_default();
                if generation <= wanted.generation {
                    return outdated(generation);
                }
                wanted.generation = generation;
                wanted.clusters.insert(id, cluster);
            }
            ToProxy::Endpoints { generation, id, set, gone } => {
                let wanted = self.wanted.get_or_insert_default();
                if generation <= wanted.generation {
                    return outdated(generation);
                }
                wanted.generation = generation;
                Part { set, gone }.apply(wanted.clusters.entry(id).or_default());
            }
            ToProxy::Callers { generation, callers, caller_cgroups } => {
                let wanted = self.wanted.get_or_insert_default();
                if generation <= wanted.generation {
                    return outdated(generation);
                }
                wanted.generation = generation;
                (wanted.callers, wanted.caller_cgroups) = (callers, caller_cgroups);
            }
            ToProxy::Stats | ToProxy::TakeOver | ToProxy::Retire | ToProxy::Lend { .. } => {
                return false;
            }
        }
        self.save.get_or_insert_with(|| Instant::now() + SAVE_DELAY);
        true
    }

    /// Brings the engine in step with what is wanted, and acknowledges it.
    async fn apply(&mut self) {
        self.due = None;
        let Some(wanted) = self.wanted.clone() else { return };
        let (fit, mut failed) = listeners::without_failing(&wanted, self.driven.open());
        let result = self.driven.apply(&fit).await;
        self.told = Some(Instant::now());
        match result {
            Ok(()) => self.applied = Some(fit),
            Err(error) => {
                let engine = self.options.engine.command();
                tracing::error!("{engine}: {error}");
                self.due = Some(Instant::now() + RETRY);
                let reason = first_line(&error);
                if !self.keep_serving(&wanted).await {
                    if !self.driven.is_gone() {
                        // It may go on as it was, and nobody knows how that is.
                        return;
                    }
                    self.driven.give_up();
                }
                failed.extend(not_in_force(&fit, self.applied.as_ref(), &reason));
            }
        }
        let generation = wanted.generation;
        let lacks = self.driven.lacks();
        let lacks = (self.lacks.as_ref() != Some(&lacks)).then(|| self.lacks.insert(lacks).clone());
        self.server.send(&FromProxy::Ack { generation, failed, lacks }).await;
        self.report(true).await;
    }

    /// The last configuration that the engine accepted, with the endpoints of now. Whether the engine has it.
    async fn keep_serving(&mut self, wanted: &Snapshot) -> bool {
        let Some(mut kept) = self.applied.clone() else { return false };
        for (id, cluster) in &mut kept.clusters {
            // A cluster that is gone has no endpoints, as nothing may be sent there.
            let now = wanted.clusters.get(id).cloned().unwrap_or_default();
            cluster.endpoints = now.endpoints;
            cluster.zones = now.zones;
        }
        match self.driven.apply(&kept).await {
            Ok(()) => {
                self.applied = Some(kept);
                true
            }
            Err(error) => {
                tracing::error!("the last good configuration: {error}");
                false
            }
        }
    }

    /// The engine has ended by itself: it is started again with the last configuration, at once the first time.
    async fn restart(&mut self) {
        let engine = self.options.engine.command();
        let (pid, how) = match self.driven.process() {
            Some(process) => (process.pid().as_raw_nonzero().get(), process.how().await),
            None => (0, None),
        };
        let how = how.unwrap_or_default();
        let message = format!("{engine} (process {pid}) ended{how}; it is started again");
        tracing::error!("{message}");
        if self.notices.len() < MAX_NOTICES {
            self.notices.push(message);
        }
        self.driven.forget().await;
        if self.told.is_some_and(|told| told.elapsed() > SETTLED) {
            self.pause = RESTART;
        } else {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(RESTART_MOST);
        }
        self.apply().await;
    }

    async fn end(&mut self, socket: ControlSocket, signals: &mut Signals) {
        tracing::info!("ending: no new connections, at most {DRAIN:?} for the open ones");
        self.keep();
        self.server.close();
        self.driven.stop();
        // A successor may take over at once, with the last state.
        drop(socket);
        if self.driven.is_gone() {
            return;
        }
        tokio::select! {
            _ = timeout(DRAIN, ended(&self.driven)) => {}
            _ = signals.next() => {}
        }
        self.driven.kill();
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The listeners that are wanted but not as the engine has them; all, if that can't be told.
fn not_in_force(
    wanted: &Snapshot,
    applied: Option<&Snapshot>,
    reason: &str,
) -> Vec<ListenerFailure> {
    let same = |listener| applied.is_some_and(|applied| applied.listeners.contains(listener));
    let all = wanted.listeners.iter();
    let mut failed: Vec<_> = all.clone().filter(|listener| !same(listener)).collect();
    if failed.is_empty() {
        failed = all.collect();
    }
    let failure = |bind| ListenerFailure {
        bind,
        reason: format!("an earlier configuration stays: {reason}"),
    };
    failed.into_iter().map(|listener| failure(listener.bind)).collect()
}

/// What an error says, in one line.
fn first_line(error: &Error) -> String {
    error.to_string().lines().take(2).map(str::trim).collect::<Vec<_>>().join(" ")
}
