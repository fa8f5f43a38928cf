//! The control thread: listens to the server, brings its state to the workers, and reports back.
//!
//! One connection at a time; a new one replaces the old one. Without any, the last state stays in force. A change
//! is acknowledged when every worker has confirmed it; until then nothing else is read.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod changes;
mod lend;
mod report;
mod server;

use keel_link::handover::{self, Sockets, TakenOver};
use keel_link::{ControlSocket, Elder, LOCK_PATIENCE, Lock, Unpublished, load};
use keel_model::{Generation, InstanceId};
use keel_route::codec::{Decoder, encode};
use keel_route::part::Part;
use keel_route::snapshot::{FromProxy, ListenerFailure, Snapshot, Stats, ToProxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use self::changes::Pending;
use self::report::Report;
use self::server::Server;
use crate::access::Switch;
use crate::again::Again;
use crate::check::Checks;
use crate::limits::{CONTROL_WRITE, DRAIN, IN_FLIGHT_REPORT, RELEASE, RELEASE_LOOK, RETIRED_DRAIN};
use crate::persist::Saver;
use crate::pressure::Watch;
use crate::registry::Registry;
use crate::shared::Shared;
use crate::worker::{Change, Command, Ending};
use crate::{Error, edge};

/// Bytes read from the server at once: about all that a socket holds.
const READ: usize = 256 * 1024;
/// Connections whose first word waits to be looked at.
const NEWCOMERS: usize = 8;
/// Whoever connects says something within this time.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// What the control thread works with.
pub struct Control {
    pub version: String,
    pub workers: Vec<mpsc::Sender<Command>>,
    /// Says that a worker has ended, which none should.
    pub died: mpsc::Receiver<usize>,
    pub refused: mpsc::Receiver<InstanceId>,
    pub shared: std::sync::Arc<Shared>,
    pub control_socket: std::path::PathBuf,
    pub snapshot_file: std::path::PathBuf,
    pub log: Switch,
    pub predecessor: Predecessor,
}

/// Whose place is taken.
pub enum Predecessor {
    /// Nobody's: this is the right to the control socket.
    None(Lock),
    /// That of a proxy that died; the right, and what it left.
    Dead(Lock, Box<Left>),
    /// That of a proxy that gave it.
    Proxy(Box<TakenOver>),
}

/// What a proxy that died left with the one that keeps it running: what it did last, and its sockets.
pub type Left = (Snapshot, Sockets<std::net::TcpListener>);

/// A connection and the first that came on it.
type Newcomer = (Server, ToProxy);

struct Running {
    registry: Registry,
    workers: Vec<mpsc::Sender<Command>>,
    server: Option<Server>,
    version: String,
    /// Last numbers in flight that were reported.
    reported: BTreeMap<InstanceId, u64>,
    log: Switch,
    /// Since when instances drain, at the latest.
    draining_since: BTreeMap<InstanceId, Generation>,
    /// The proxy whose place this one took, until it has ended.
    elder: Option<Elder>,
    checks: Checks,
    /// Changes that the workers do not know yet.
    pending: Pending,
    /// Listeners that could not be opened, and when that is tried again.
    failed: (Vec<ListenerFailure>, Again),
    /// A successor was given the sockets and does not accept yet. It is given up at this time.
    handing_over: Option<Instant>,
    /// A successor accepts; to be acted on.
    retire: bool,
}

/// Runs until told to end, and then until the workers have drained.
pub async fn run(control: Control) -> Result<(), Error> {
    let Control { version, workers, mut died, mut refused, shared, log, .. } = control;
    let mut signals = Signals::new().map_err(Error::Start)?;
    let mut running = Running::new(&shared, workers, version, log);
    let mut saver = Saver::new(control.snapshot_file.clone());
    if !matches!(control.predecessor, Predecessor::None(_)) {
        // The one before may have had it still to write.
        saver.changed();
    }
    let begun = running.begin(control.predecessor, control.control_socket, &control.snapshot_file);
    let mut socket = Some(begun.await?);
    shared.tls.prepare().map_err(Error::Start)?;
    let (arrived, mut newcomers) = mpsc::channel(NEWCOMERS);
    let mut report = tokio::time::interval(IN_FLIGHT_REPORT);
    report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut drained, mut pressure) = (None::<JoinHandle<()>>, Watch::new());
    let mut buffer = vec![0; READ];
    loop {
        let accepts = socket.as_ref().filter(|_| running.handing_over.is_none());
        tokio::select! {
            biased;
            Some(worker) = died.recv() => return Err(Error::WorkerDied(worker)),
            () = signals.terminate() => match drained {
                // Asked twice: at once.
                Some(_) => break,
                None => {
                    drained = Some(running.drain(Ending::Final).await?);
                    // A successor may take over at once, with the last state.
                    saver.flush(running.registry.parts()).await;
                    (socket, running.server) = (None, None);
                }
            },
            () = ended(&mut drained) => break,
            accepted = accept(accepts) => match accepted {
                Ok(stream) => running.greet(&mut saver, stream, arrived.clone()).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the server's connection");
                    tokio::time::sleep(crate::limits::ACCEPT_PAUSE).await;
                }
            },
            Some(newcomer) = newcomers.recv() => {
                if running.welcome(newcomer).await? {
                    saver.changed();
                }
            }
            read = read(&mut running.server, &mut buffer), if running.pending.rests().is_none() => {
                if running.received(read, &buffer).await? {
                    saver.changed();
                }
                if std::mem::take(&mut running.retire) {
                    drained = Some(running.drain(Ending::Succeeded).await?);
                    saver.stop().await;
                    socket = None;
                    running.send(&[FromProxy::Retired]).await;
                }
            }
            () = passed(running.pending.rests()) => running.rested(&mut saver).await?,
            () = passed(running.handing_over) => running.give_up_successor(),
            () = hear_elder(&mut running.elder) => running.report_in_flight(Report::Regular).await,
            () = shared.drained.notified() => running.report_in_flight(Report::Ended).await,
            _ = report.tick() => {
                pressure.look(&shared);
                running.report_in_flight(Report::Regular).await;
            }
            Some(instance) = refused.recv() => running.send(&[FromProxy::Refused { instance }]).await,
            () = running.failed.1.due() => running.listen_again().await?,
            () = saver.due() => saver.begin(running.registry.parts()),
        }
    }
    Ok(())
}

/// Waits for news of the elder; forgets it when it has ended.
async fn hear_elder(elder: &mut Option<Elder>) {
    match elder {
        Some(heard) => {
            if heard.hear().await.is_err() {
                tracing::info!("the proxy before this one has ended");
                *elder = None;
            }
        }
        None => pending().await,
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Caught so that the end of a terminal does not end the proxy.
    _hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn terminate(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn accept(socket: Option<&ControlSocket>) -> io::Result<UnixStream> {
    match socket {
        Some(socket) => socket.accept().await,
        None => pending().await,
    }
}

async fn ended(drained: &mut Option<JoinHandle<()>>) {
    match drained {
        // It can only fail by a panic, and then there is nothing left to wait for.
        Some(task) => drop(task.await),
        None => pending().await,
    }
}

async fn passed(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

async fn read(server: &mut Option<Server>, buffer: &mut [u8]) -> io::Result<usize> {
    match server {
        Some(server) => server.read(buffer).await,
        None => pending().await,
    }
}

/// Whether a change comes after all that is known.
fn is_new(generation: Generation, newest: Generation) -> bool {
    if generation <= newest {
        tracing::warn!(%generation, "an outdated change is not applied");
    }
    generation > newest
}

fn warn_failed(failed: &[ListenerFailure]) {
    for ListenerFailure { bind, reason } in failed {
        tracing::warn!(%bind, reason, "cannot listen");
    }
}

impl Running {
    /// Nothing is known yet.
    fn new(
        shared: &std::sync::Arc<Shared>,
        workers: Vec<mpsc::Sender<Command>>,
        version: String,
        log: Switch,
    ) -> Self {
        Self {
            registry: Registry::new(std::sync::Arc::clone(shared)),
            workers,
            server: None,
            version,
            reported: BTreeMap::new(),
            log,
            draining_since: BTreeMap::new(),
            elder: None,
            checks: Checks::default(),
            pending: Pending::default(),
            failed: Default::default(),
            handing_over: None,
            retire: false,
        }
    }

    /// Brings the last known state into force: that of the proxy before, which then retires or is dead, or that of the file.
    /// The right to the control socket is ours then.
    async fn begin(
        &mut self,
        predecessor: Predecessor,
        path: PathBuf,
        snapshot_file: &Path,
    ) -> Result<ControlSocket, Error> {
        let socket = Unpublished::create(&path);
        let socket = socket.map_err(|source| Error::ControlSocket { path, source })?;
        let lock = match predecessor {
            Predecessor::Proxy(taken_over) => {
                self.succeed(*taken_over).await?;
                None
            }
            Predecessor::Dead(lock, left) => {
                self.registry.adopt(left.1);
                self.replace(left.0).await?;
                Some(lock)
            }
            Predecessor::None(lock) => {
                if let Some(snapshot) = load(snapshot_file) {
                    self.replace(snapshot).await?;
                }
                Some(lock)
            }
        };
        self.publish(socket, lock).await
    }

    /// Takes over from a proxy that gave its place.
    async fn succeed(&mut self, before: TakenOver) -> Result<(), Error> {
        let TakenOver { incumbent, snapshot, sockets, stream } = before;
        self.registry.adopt(sockets);
        // What an engine did not give is opened beside it, if it shares.
        self.registry.open_beside(incumbent.engine().is_some());
        self.replace(snapshot).await?;
        self.retire_elder(stream).await?;
        let until = Instant::now() + RELEASE;
        // nginx shares its addresses with nobody: they are free only now.
        while incumbent.engine().is_some() && !self.failed.0.is_empty() && Instant::now() < until {
            tokio::time::sleep(RELEASE_LOOK).await;
            self.listen_again().await?;
        }
        self.registry.open_beside(false);
        warn_failed(&self.failed.0);
        Ok(())
    }

    async fn retire_elder(
        &mut self,
        mut stream: std::os::unix::net::UnixStream,
    ) -> Result<(), Error> {
        let retired =
            tokio::task::spawn_blocking(move || handover::retire(&mut stream).map(|()| stream));
        match retired.await.map_err(|error| Error::Start(io::Error::other(error)))? {
            Ok(stream) => self.elder = Some(Elder::new(stream).map_err(Error::Start)?),
            // It is dead, or will notice that it has lost its place.
            Err(error) => tracing::warn!(%error, "the proxy before this one did not retire"),
        }
        Ok(())
    }

    /// Serves the control socket from here on. Without the right to it, the one before is about to give it up.
    async fn publish(
        &self,
        socket: Unpublished,
        lock: Option<Lock>,
    ) -> Result<ControlSocket, Error> {
        let path = socket.path().to_owned();
        let lock = lock.map_or_else(|| crate::lock(&path, LOCK_PATIENCE), Ok);
        let failed = |source| Error::ControlSocket { path, source };
        match lock.and_then(|lock| socket.publish(lock).map_err(failed)) {
            Err(error) => {
                // What was accepted meanwhile is served to its end.
                ended(&mut Some(self.drain(Ending::Final).await?)).await;
                Err(error)
            }
            published => published,
        }
    }

    /// Greets whoever has connected and waits for its first word beside everything else: until then it is not
    /// clear who it is, and the server must not lose its place to a successor that is still to ask for it.
    async fn greet(
        &self,
        saver: &mut Saver,
        mut stream: UnixStream,
        arrived: mpsc::Sender<Newcomer>,
    ) {
        // It may be one that takes this place and begins with what is in the file.
        saver.flush(self.registry.parts()).await;
        let hello = FromProxy::Hello { pid: std::process::id(), version: self.version.clone() };
        tokio::spawn(async move {
            let mut decoder = Decoder::default();
            let first = async {
                let frame = encode(&hello).map_err(io::Error::other)?;
                stream.write_all(&frame).await?;
                let mut buffer = vec![0; READ];
                loop {
                    let n = stream.read(&mut buffer).await?;
                    if n == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    decoder.push(&buffer[..n]);
                    if let Some(first) = decoder.decode().map_err(io::Error::other)? {
                        return Ok::<_, io::Error>(first);
                    }
                }
            };
            match timeout(FIRST_WORD, first).await {
                // The control thread is gone only with the process.
                Ok(Ok(first)) => drop(arrived.send((Server::new(stream, decoder), first)).await),
                Ok(Err(error)) => tracing::info!(%error, "a connection ended without a word"),
                Err(_) => tracing::info!("a connection that says nothing is closed"),
            }
        });
    }

    /// Takes a newcomer for the server, or for a successor, and does what it says; true if the state has changed.
    async fn welcome(&mut self, (server, first): Newcomer) -> Result<bool, Error> {
        if self.handing_over.is_some() || self.registry.is_retired() {
            // It will find the successor.
            return Ok(false);
        }
        if let ToProxy::Lend { most } = first {
            self.lend(server, most).await?;
            return Ok(false);
        }
        // Whoever said it hears that it is done.
        let mut changed = self.flush().await?;
        if self.server.replace(server).is_some() {
            tracing::info!("a new connection of the server replaces the old one");
        }
        self.reported.clear();
        changed |= self.obey(first).await?;
        // More may have come together with the first.
        Ok(self.obey_all().await? || changed)
    }

    /// Sends frames to the server, if there is one. One that does not take them in time is dropped.
    async fn send(&mut self, messages: &[FromProxy]) {
        let Some(server) = &mut self.server else { return };
        let frames: Result<Vec<_>, _> = messages.iter().map(encode).collect();
        let frames = match frames {
            Ok(frames) => frames.concat(),
            Err(error) => return tracing::error!(%error, "a message is not sent"),
        };
        let sent = timeout(CONTROL_WRITE, server.write(&frames)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::info!("the server is gone");
            self.server = None;
        }
    }

    /// Handles what was read from the server; true if the state has changed.
    async fn received(&mut self, read: io::Result<usize>, buffer: &[u8]) -> Result<bool, Error> {
        let (Ok(n @ 1..), Some(server)) = (read, &mut self.server) else {
            tracing::info!("the server is gone; the last state stays in force");
            (self.server, self.handing_over) = (None, None);
            return Ok(false);
        };
        server.decoder.push(&buffer[..n]);
        self.obey_all().await
    }

    /// Does what has been received completely; true if the state has changed.
    async fn obey_all(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        while let Some(server) = &mut self.server {
            match server.decoder.decode::<ToProxy>() {
                Ok(Some(message)) => changed |= self.obey(message).await?,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the server is not understood; its connection is closed");
                    self.server = None;
                }
            }
        }
        if self.pending.rests().is_none() {
            changed |= self.flush().await?;
        }
        Ok(changed)
    }

    async fn obey(&mut self, message: ToProxy) -> Result<bool, Error> {
        let newest = self.pending.newest().unwrap_or(self.registry.generation());
        let message = match message {
            ToProxy::Cluster { generation, id, cluster } => {
                if is_new(generation, newest) {
                    self.pending.add(generation, id, cluster);
                }
                return Ok(false);
            }
            ToProxy::Endpoints { generation, id, set, gone } => {
                if is_new(generation, newest) {
                    let known = || self.registry.cluster(&id).unwrap_or_default();
                    self.pending.add_part(generation, id.clone(), Part { set, gone }, known);
                }
                return Ok(false);
            }
            message => message,
        };
        // Each word is understood as if what was said before it had been done already.
        let changed = self.flush().await?;
        let for_elder = self.elder.as_ref().map(|_| message.clone());
        match message {
            ToProxy::TakeOver => {
                self.hand_over().await?;
                return Ok(changed);
            }
            ToProxy::Retire => {
                self.registry.retire();
                (self.retire, self.handing_over) = (true, None);
                return Ok(changed);
            }
            ToProxy::Stats => {
                let stats = self.stats().await?;
                self.send(&[FromProxy::Stats(stats)]).await;
                return Ok(changed);
            }
            ToProxy::Lend { .. } => {
                tracing::warn!("sockets are lent on a connection of its own only");
                return Ok(changed);
            }
            ToProxy::Snapshot(snapshot) => self.replace(snapshot).await?,
            ToProxy::Callers { generation, callers, caller_cgroups } => {
                if !is_new(generation, self.registry.generation()) {
                    return Ok(changed);
                }
                let changes = self.registry.replace_callers(generation, callers, caller_cgroups);
                self.apply(changes).await?;
            }
            ToProxy::Cluster { .. } | ToProxy::Endpoints { .. } => {}
        }
        let mut frames = vec![self.acknowledgement(for_elder.as_slice()).await];
        frames.extend(self.in_flight(Report::All));
        self.send(&frames).await;
        Ok(true)
    }

    /// That everything so far is in force, here and at the elder, which is told what has changed.
    async fn acknowledgement(&mut self, for_elder: &[ToProxy]) -> FromProxy {
        let generation = self.registry.generation();
        if let Some(elder) = &mut self.elder
            && let Err(error) = elder.tell(for_elder, generation).await
        {
            tracing::warn!(%error, "the proxy before this one does not follow any more");
            self.elder = None;
        }
        FromProxy::Ack { generation, failed: self.failed.0.clone(), lacks: None }
    }

    async fn replace(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let (mut changes, failed) = self.registry.replace(snapshot);
        if let Some(log) = self.log.turn(self.registry.access_log()) {
            changes.iter_mut().for_each(|change| change.access_log = Some(log.clone()));
        }
        if self.registry.opens_beside() {
            for failure in &failed {
                let ListenerFailure { bind, reason } = failure;
                tracing::info!(%bind, reason, "cannot listen yet, an engine is about to end there");
            }
        } else {
            warn_failed(&failed);
        }
        self.failed.1.done();
        self.note_failed(failed);
        self.apply(changes).await?;
        self.log.turned();
        Ok(())
    }

    fn note_failed(&mut self, failed: Vec<ListenerFailure>) {
        if failed.is_empty() {
            self.failed.1.done()
        } else {
            self.failed.1.failed()
        }
        self.failed.0 = failed;
    }

    /// Tries once more to listen where that failed: there may be a descriptor now, or the address be free. The server
    /// hears of it if anything is different.
    async fn listen_again(&mut self) -> Result<(), Error> {
        if self.handing_over.is_some() {
            // The successor will try it by itself; if none comes, there is another time.
            self.failed.1.failed();
            return Ok(());
        }
        let (changes, failed) = self.registry.listen_again();
        let news = failed != self.failed.0;
        self.note_failed(failed.clone());
        self.apply(changes).await?;
        if news {
            let generation = self.registry.generation();
            self.send(&[FromProxy::Ack { generation, failed, lacks: None }]).await;
        }
        Ok(())
    }

    /// What the workers have counted, added up.
    async fn stats(&self) -> Result<Stats, Error> {
        let mut stats = self.registry.stats();
        (stats.proxy.log_lines, stats.proxy.log_dropped) = self.log.counts();
        let mut parts = Vec::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let (answer, answered) = oneshot::channel();
            let sent = worker.send(Command::Stats(answer)).await;
            sent.map_err(|_| Error::WorkerDied(index))?;
            let counted = answered.await.map_err(|_| Error::WorkerDied(index))?;
            stats.proxy.connections += counted.connections;
            parts.extend(counted.edges);
        }
        stats.edges = edge::merge(parts);
        stats.notices = self.registry.notices();
        Ok(stats)
    }

    /// Brings a change to every worker and waits until all use it.
    async fn apply(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let mut changed = changes.iter().flat_map(|change| &change.clusters);
        // There may be thousands of clusters, and most of them want none.
        if self.checks.are_running() || changed.any(|cluster| cluster.policy.check.is_some()) {
            self.checks.update(self.registry.clusters(), self.registry.shared());
        }
        let mut done = Vec::with_capacity(changes.len());
        for (index, (worker, change)) in self.workers.iter().zip(changes).enumerate() {
            let (confirm, confirmed) = oneshot::channel();
            let sent = worker.send(Command::Apply(change, confirm)).await;
            sent.map_err(|_| Error::WorkerDied(index))?;
            done.push(confirmed);
        }
        for (index, confirmed) in done.into_iter().enumerate() {
            confirmed.await.map_err(|_| Error::WorkerDied(index))?;
        }
        Ok(())
    }

    /// Stops listening. The task ends when all connections have, or the time is over.
    async fn drain(&self, ending: Ending) -> Result<JoinHandle<()>, Error> {
        let most = match ending {
            Ending::Final => DRAIN,
            Ending::Succeeded => RETIRED_DRAIN,
        };
        tracing::info!("ending: no new connections, at most {most:?} for the open ones");
        let (mut all_closed, mut all_ended) = (Vec::new(), Vec::new());
        for (index, worker) in self.workers.iter().enumerate() {
            let (closed, is_closed) = oneshot::channel();
            let (ended, has_ended) = oneshot::channel();
            let sent = worker.send(Command::Drain { ending, closed, ended }).await;
            sent.map_err(|_| Error::WorkerDied(index))?;
            all_closed.push(is_closed);
            all_ended.push(has_ended);
        }
        for (index, closed) in all_closed.into_iter().enumerate() {
            closed.await.map_err(|_| Error::WorkerDied(index))?;
        }
        let until = Instant::now() + most;
        Ok(tokio::spawn(async move {
            for ended in all_ended {
                // Whether it drained or died: it serves nobody any more.
                if tokio::time::timeout_at(until, ended).await.is_err() {
                    tracing::warn!("connections are cut that did not end in time");
                    return;
                }
            }
        }))
    }
}
