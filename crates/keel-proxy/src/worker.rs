//! A data-plane thread: a single-threaded runtime with its own sockets, connections and pools.
//!
//! Workers share nothing but atomics ([`crate::shared`]). Changes arrive as [`Command`]s, are applied in one
//! step between two polls of any connection, and are then confirmed to the control thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use keel_model::Protocol;
use keel_route::access_log::AccessLog;
use keel_route::balance::Random;
use keel_route::snapshot::{ClusterId, EdgeStats};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use crate::accept;
use crate::access::{Feed, Log};
use crate::buffer::Buffers;
use crate::callers::{CallerNames, Callers};
use crate::cluster::{ClusterChange, WorkerCluster};
use crate::deadline::Deadlines;
use crate::edge::Edges;
use crate::limits::{CLIENT_IDLE_ENDING, SCRATCH, TICK};
use crate::shared::{ClusterShared, Shared};
use crate::splice::Pipes;

/// Control thread → worker.
#[derive(Debug)]
pub enum Command {
    /// Apply, then confirm.
    Apply(Change, oneshot::Sender<()>),
    /// Say what was counted.
    Stats(oneshot::Sender<WorkerStats>),
    /// Accept no more and end idle connections.
    Drain {
        /// To be told when nothing listens any more.
        closed: oneshot::Sender<()>,
        /// To be told when the last connection has ended.
        ended: oneshot::Sender<()>,
    },
}

/// What a worker has counted.
#[derive(Debug)]
pub struct WorkerStats {
    pub edges: Vec<EdgeStats>,
    /// Open connections of clients.
    pub connections: u64,
}

/// What changed.
#[derive(Debug, Default)]
pub struct Change {
    /// Clusters that are new or different.
    pub clusters: Vec<ClusterChange>,
    /// Clusters that are gone.
    pub removed_clusters: Vec<ClusterId>,
    /// Listeners that are new or lead elsewhere now.
    pub listeners: Vec<ListenerChange>,
    /// Listeners that are gone.
    pub removed_listeners: Vec<SocketAddr>,
    /// Who calls from where, if that changed.
    pub callers: Option<Arc<CallerNames>>,
    /// The access log, if that changed.
    pub access_log: Option<Option<Arc<AccessLog>>>,
}

/// A listener that is new or leads elsewhere now.
#[derive(Debug)]
pub struct ListenerChange {
    pub bind: SocketAddr,
    pub protocol: Protocol,
    pub cluster: Arc<ClusterShared>,
    /// Open for clients outside.
    pub published: bool,
    /// This worker's socket, if the listener is new.
    pub socket: Option<std::net::TcpListener>,
}

/// Where connections to a listener lead; changes while they are open.
#[derive(Debug)]
pub struct Target {
    bind: SocketAddr,
    published: Cell<bool>,
    protocol: Cell<Protocol>,
    cluster: RefCell<Rc<WorkerCluster>>,
}

impl Target {
    pub fn protocol(&self) -> Protocol {
        self.protocol.get()
    }

    pub fn cluster(&self) -> Rc<WorkerCluster> {
        Rc::clone(&self.cluster.borrow())
    }

    /// It is open for clients outside.
    pub fn is_published(&self) -> bool {
        self.published.get()
    }

    /// Where it listens, if that is an address of a service.
    pub fn virtual_address(&self) -> Option<SocketAddr> {
        (!self.published.get()).then_some(self.bind)
    }
}

struct Listening {
    target: Rc<Target>,
    stop: Rc<Notify>,
    task: JoinHandle<()>,
}

/// What the tasks of a worker share.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub deadlines: Rc<Deadlines>,
    pub buffers: Buffers,
    /// Bytes on their way through; never in use across an `await`.
    pub scratch: RefCell<Vec<u8>>,
    /// For bulk.
    pub pipes: Pipes,
    pub random: RefCell<Random>,
    pub edges: Edges,
    pub callers: Callers,
    pub log: Log,
    /// Open client connections.
    pub connections: Cell<usize>,
    /// Woken when a client connection ends.
    pub ended: Notify,
    /// The proxy is about to end.
    pub ending: Cell<bool>,
    /// Woken when it is.
    pub draining: Notify,
}

impl Worker {
    fn stats(&self) -> WorkerStats {
        WorkerStats { edges: self.edges.stats(), connections: self.connections.get() as u64 }
    }
}

/// Runs a worker until the control thread is gone.
///
/// # Errors
/// When its runtime cannot be made.
pub fn run(
    index: usize,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    log: Feed,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Rc::new(Worker {
        index,
        deadlines: Rc::default(),
        buffers: Buffers::default(),
        scratch: RefCell::new(vec![0; SCRATCH]),
        pipes: Pipes::default(),
        random: RefCell::new(Random::new(u64::from(std::process::id()) << 16 | index as u64)),
        edges: Edges::default(),
        callers: Callers::default(),
        log: Log::new(log),
        connections: Cell::new(0),
        ended: Notify::new(),
        ending: Cell::new(false),
        draining: Notify::new(),
        shared,
    });
    LocalSet::new().block_on(&runtime, serve(worker, commands));
    Ok(())
}

async fn serve(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut state =
        State { worker: Rc::clone(&worker), clusters: HashMap::new(), listeners: HashMap::new() };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Apply(change, done)) => {
                    state.apply(change).await;
                    // Nobody waits any more if the proxy is about to end.
                    let _ = done.send(());
                }
                Some(Command::Stats(answer)) => {
                    // Nobody waits any more if the server is gone.
                    let _ = answer.send(worker.stats());
                }
                Some(Command::Drain { closed, ended }) => {
                    state.drain().await;
                    let _ = closed.send(());
                    tokio::task::spawn_local(all_ended(Rc::clone(&worker), ended));
                }
                None => return,
            },
            _ = ticks.tick() => {
                let now = worker.shared.now_ms();
                worker.deadlines.tick(now);
                worker.log.flush();
                state.clusters.values().for_each(|c| c.close_idle(now));
            }
        }
    }
}

async fn all_ended(worker: Rc<Worker>, done: oneshot::Sender<()>) {
    loop {
        let ended = worker.ended.notified();
        if worker.connections.get() == 0 {
            let _ = done.send(());
            return;
        }
        ended.await;
    }
}

struct State {
    worker: Rc<Worker>,
    clusters: HashMap<ClusterId, Rc<WorkerCluster>>,
    listeners: HashMap<SocketAddr, Listening>,
}

impl State {
    async fn apply(&mut self, change: Change) {
        // Clusters first: a new listener must find its endpoints.
        for cluster in &change.clusters {
            self.cluster(&cluster.shared).apply(cluster);
        }
        for listener in change.listeners {
            self.listener(listener);
        }
        for bind in change.removed_listeners {
            if let Some(listening) = self.listeners.remove(&bind) {
                close(listening).await;
            }
        }
        for id in change.removed_clusters {
            if let Some(cluster) = self.clusters.remove(&id) {
                cluster.clear();
            }
            self.worker.edges.forget(&id);
        }
        if let Some(callers) = change.callers {
            self.worker.callers.set(callers);
        }
        if let Some(log) = change.access_log {
            self.worker.log.set(log.as_ref());
        }
    }

    fn cluster(&mut self, shared: &Arc<ClusterShared>) -> Rc<WorkerCluster> {
        let worker = &self.worker;
        let new = || Rc::new(WorkerCluster::new(Arc::clone(shared), &worker.shared, worker.index));
        Rc::clone(self.clusters.entry(shared.id.clone()).or_insert_with(new))
    }

    fn listener(&mut self, change: ListenerChange) {
        let cluster = self.cluster(&change.cluster);
        let Some(socket) = change.socket else {
            if let Some(listening) = self.listeners.get(&change.bind) {
                listening.target.protocol.set(change.protocol);
                listening.target.cluster.replace(cluster);
                listening.target.published.set(change.published);
            }
            return;
        };
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(bind = %change.bind, %error, "a worker cannot listen");
                return;
            }
        };
        let target = Rc::new(Target {
            bind: change.bind,
            published: Cell::new(change.published),
            protocol: Cell::new(change.protocol),
            cluster: RefCell::new(cluster),
        });
        let stop = Rc::new(Notify::new());
        let accepting =
            accept::run(Rc::clone(&self.worker), socket, Rc::clone(&target), Rc::clone(&stop));
        let task = tokio::task::spawn_local(accepting);
        self.listeners.insert(change.bind, Listening { target, stop, task });
    }

    async fn drain(&mut self) {
        self.worker.ending.set(true);
        self.worker.draining.notify_waiters();
        self.worker.deadlines.shorten_idle(CLIENT_IDLE_ENDING);
        for (_, listening) in self.listeners.drain() {
            close(listening).await;
        }
    }
}

/// Stops accepting, after those that wait in the socket's queue.
async fn close(listening: Listening) {
    listening.stop.notify_one();
    // The task ends by itself; a panic in it would have ended the accepting as well.
    let _ = listening.task.await;
}
