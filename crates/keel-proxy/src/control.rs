//! The control thread: listens to the server, brings its state to the workers, and reports back.
//!
//! One connection at a time; a new one replaces the old one. Without any, the last state stays in force. A change
//! is acknowledged when every worker has confirmed it; until then nothing else is read.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;

use keel_model::InstanceId;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, ListenerFailure, Snapshot, Stats, ToProxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::SocketAddr;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::access::Switch;
use crate::limits::{CONTROL_WRITE, DRAIN, IN_FLIGHT_REPORT};
use crate::persist::{self, Saver};
use crate::registry::Registry;
use crate::shared::Shared;
use crate::worker::{Change, Command};
use crate::{ControlSocket, Error, edge};

/// Bytes read from the server at once.
const READ: usize = 64 * 1024;

/// What the control thread works with.
pub struct Control {
    pub version: String,
    pub socket: ControlSocket,
    pub workers: Vec<mpsc::Sender<Command>>,
    /// Says that a worker has ended, which none should.
    pub died: mpsc::Receiver<usize>,
    pub refused: mpsc::Receiver<InstanceId>,
    pub shared: std::sync::Arc<Shared>,
    pub snapshot_file: std::path::PathBuf,
    pub log: Switch,
}

struct Server {
    stream: UnixStream,
    decoder: Decoder,
}

struct Running {
    registry: Registry,
    workers: Vec<mpsc::Sender<Command>>,
    server: Option<Server>,
    version: String,
    /// Last numbers in flight that were reported.
    reported: BTreeMap<InstanceId, u64>,
    log: Switch,
    shared: std::sync::Arc<Shared>,
}

/// Runs until told to end, and then until the workers have drained.
pub async fn run(control: Control) -> Result<(), Error> {
    let Control { version, socket, workers, mut died, mut refused, shared, snapshot_file, log } =
        control;
    let mut signals = Signals::new().map_err(Error::Start)?;
    let mut running = Running {
        registry: Registry::new(workers.len()),
        workers,
        server: None,
        version,
        reported: BTreeMap::new(),
        log,
        shared: std::sync::Arc::clone(&shared),
    };
    if let Some(snapshot) = persist::load(&snapshot_file) {
        running.replace(snapshot).await?;
    }
    let mut saver = Saver::new(snapshot_file);
    let mut report = tokio::time::interval(IN_FLIGHT_REPORT);
    report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut drained: Option<JoinHandle<()>> = None;
    let mut socket = Some(socket);
    let mut buffer = vec![0; READ];
    loop {
        tokio::select! {
            biased;
            Some(worker) = died.recv() => return Err(Error::WorkerDied(worker)),
            () = signals.terminate() => match drained {
                // Asked twice: at once.
                Some(_) => break,
                None => {
                    drained = Some(running.drain().await?);
                    // A successor may take over at once, with the last state.
                    saver.flush(running.registry.snapshot()).await;
                    (socket, running.server) = (None, None);
                }
            },
            () = ended(&mut drained) => break,
            accepted = accept(socket.as_ref()) => match accepted {
                Ok((stream, _)) => running.greet(stream).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the server's connection");
                    tokio::time::sleep(crate::limits::ACCEPT_PAUSE).await;
                }
            },
            read = read(&mut running.server, &mut buffer) => {
                if running.received(read, &buffer).await? {
                    saver.changed();
                }
            }
            () = shared.drained.notified() => running.report_in_flight(Report::Ended).await,
            _ = report.tick() => running.report_in_flight(Report::Regular).await,
            Some(instance) = refused.recv() => running.send(&FromProxy::Refused { instance }).await,
            () = saver.due() => saver.begin(running.registry.snapshot()),
        }
    }
    Ok(())
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

async fn accept(socket: Option<&ControlSocket>) -> io::Result<(UnixStream, SocketAddr)> {
    match socket {
        Some(socket) => socket.listener.accept().await,
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

async fn read(server: &mut Option<Server>, buffer: &mut [u8]) -> io::Result<usize> {
    match server {
        Some(server) => server.stream.read(buffer).await,
        None => pending().await,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    /// After an acknowledgement: every draining instance.
    All,
    /// From time to time: those with something in flight.
    Regular,
    /// Something has reached zero.
    Ended,
}

impl Running {
    async fn greet(&mut self, stream: UnixStream) {
        if self.server.replace(Server { stream, decoder: Decoder::default() }).is_some() {
            tracing::info!("a new connection of the server replaces the old one");
        }
        self.reported.clear();
        let hello = FromProxy::Hello { pid: std::process::id(), version: self.version.clone() };
        self.send(&hello).await;
    }

    /// Sends a frame to the server, if there is one. One that does not take it in time is dropped.
    async fn send(&mut self, message: &FromProxy) {
        let Some(server) = &mut self.server else { return };
        let frame = match encode(message) {
            Ok(frame) => frame,
            Err(error) => return tracing::error!(%error, "a message is not sent"),
        };
        let sent = timeout(CONTROL_WRITE, server.stream.write_all(&frame)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::info!("the server is gone");
            self.server = None;
        }
    }

    /// Handles what was read from the server; true if the state has changed.
    async fn received(&mut self, read: io::Result<usize>, buffer: &[u8]) -> Result<bool, Error> {
        let (Ok(n @ 1..), Some(server)) = (read, &mut self.server) else {
            tracing::info!("the server is gone; the last state stays in force");
            self.server = None;
            return Ok(false);
        };
        server.decoder.push(&buffer[..n]);
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
        Ok(changed)
    }

    async fn obey(&mut self, message: ToProxy) -> Result<bool, Error> {
        let failed = match message {
            ToProxy::Stats => {
                let stats = self.stats().await?;
                self.send(&FromProxy::Stats(stats)).await;
                return Ok(false);
            }
            ToProxy::Snapshot(snapshot) => self.replace(snapshot).await?,
            ToProxy::Cluster { generation, .. } | ToProxy::Callers { generation, .. }
                if generation <= self.registry.generation() =>
            {
                tracing::warn!(%generation, "an outdated change is not applied");
                return Ok(false);
            }
            ToProxy::Cluster { generation, id, cluster } => {
                let changes = self.registry.replace_cluster(generation, id, cluster);
                self.apply(changes).await?;
                Vec::new()
            }
            ToProxy::Callers { generation, callers, caller_cgroups } => {
                let changes = self.registry.replace_callers(generation, callers, caller_cgroups);
                self.apply(changes).await?;
                Vec::new()
            }
        };
        let generation = self.registry.generation();
        self.send(&FromProxy::Ack { generation, failed }).await;
        self.report_in_flight(Report::All).await;
        Ok(true)
    }

    async fn replace(&mut self, snapshot: Snapshot) -> Result<Vec<ListenerFailure>, Error> {
        let (mut changes, failed) = self.registry.replace(snapshot);
        if let Some(log) = self.log.turn(self.registry.snapshot()) {
            changes.iter_mut().for_each(|change| change.access_log = Some(log.clone()));
        }
        for failure in &failed {
            tracing::warn!(bind = %failure.bind, reason = failure.reason, "cannot listen");
        }
        self.apply(changes).await?;
        self.log.turned();
        Ok(failed)
    }

    /// What the workers have counted, added up.
    async fn stats(&self) -> Result<Stats, Error> {
        let mut stats = self.registry.stats(self.shared.now_ms());
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
        Ok(stats)
    }

    /// Brings a change to every worker and waits until all use it.
    async fn apply(&self, changes: Vec<Change>) -> Result<(), Error> {
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
    async fn drain(&self) -> Result<JoinHandle<()>, Error> {
        tracing::info!("ending: no new connections, at most {DRAIN:?} for the open ones");
        let (mut all_closed, mut all_ended) = (Vec::new(), Vec::new());
        for (index, worker) in self.workers.iter().enumerate() {
            let (closed, is_closed) = oneshot::channel();
            let (ended, has_ended) = oneshot::channel();
            let sent = worker.send(Command::Drain { closed, ended }).await;
            sent.map_err(|_| Error::WorkerDied(index))?;
            all_closed.push(is_closed);
            all_ended.push(has_ended);
        }
        for (index, closed) in all_closed.into_iter().enumerate() {
            closed.await.map_err(|_| Error::WorkerDied(index))?;
        }
        let until = Instant::now() + DRAIN;
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

    async fn report_in_flight(&mut self, report: Report) {
        if self.server.is_none() {
            return;
        }
        let counts = self.registry.draining();
        self.reported.retain(|instance, _| counts.contains_key(instance));
        let generation = self.registry.generation();
        for (instance, count) in counts {
            let before = self.reported.insert(instance.clone(), count);
            let news = match report {
                Report::All => true,
                Report::Regular => count > 0 || before != Some(0),
                Report::Ended => count == 0 && before != Some(0),
            };
            if news {
                self.send(&FromProxy::InFlight { generation, instance, count }).await;
            }
        }
    }
}
