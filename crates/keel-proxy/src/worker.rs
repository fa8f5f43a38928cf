//! A data-plane thread: a single-threaded runtime with its own sockets, connections and pools.
//!
//! Workers share nothing but atomics ([`crate::shared`]). Changes arrive as [`Command`]s, are applied in one
//! step between two polls of any connection, and are then confirmed to the control thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use keel_model::Protocol;
use keel_route::access_log::AccessLog;
use keel_route::balance::Random;
use keel_route::snapshot::{ClusterId, EdgeStats, TableId};
use keel_route::table::Table;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use crate::accept;
use crate::access::{Feed, Log};
use crate::buffer::{Buffers, Heads};
use crate::callers::{CallerNames, Callers};
use crate::cluster::{ClusterChange, WorkerCluster};
use crate::deadline::Deadlines;
use crate::edge::{EdgeKey, Edges, Record};
use crate::http2::Runners;
use crate::limits::{CLIENT_IDLE_ENDING, SCRATCH, TICK};
use crate::route::WorkerTable;
use crate::shared::{ClusterShared, Shared};
use crate::splice::Pipes;
use crate::tcp;
use crate::tls::ListenerConfig;

/// Control thread → worker.
#[derive(Debug)]
pub enum Command {
    /// Apply, then confirm.
    Apply(Change, oneshot::Sender<()>),
    /// Say what was counted.
    Stats(oneshot::Sender<WorkerStats>),
    /// Give copies of the listening sockets.
    Lend(oneshot::Sender<Vec<(SocketAddr, OwnedFd)>>),
    /// Accept no more.
    Drain {
        /// Who takes new connections.
        ending: Ending,
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

/// How a proxy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nobody takes its place: connections that wait to be accepted are, and idle ones are closed.
    Final,
    /// A successor holds the same sockets: there is no hurry.
    Succeeded,
}

/// What changed.
#[derive(Debug, Default)]
pub struct Change {
    /// Clusters that are new or different.
    pub clusters: Vec<ClusterChange>,
    /// Clusters that are gone.
    pub removed_clusters: Vec<ClusterId>,
    /// Routes that are new or different.
    pub tables: Vec<(TableId, Arc<Table>)>,
    /// Tables that are gone.
    pub removed_tables: Vec<TableId>,
    /// Proofs for certificate authorities, by token, if they changed.
    pub proofs: Option<Arc<BTreeMap<String, String>>>,
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
    pub leads: Leads,
    pub cluster: Arc<ClusterShared>,
    /// This worker's sockets, if the listener is new.
    pub sockets: Vec<std::net::TcpListener>,
}

/// What becomes of connections to a listener, beside their cluster.
#[derive(Clone, Debug)]
pub struct Leads {
    pub protocol: Protocol,
    /// Open for clients outside.
    pub published: bool,
    pub table: Option<TableId>,
    pub tls: Option<ListenerConfig>,
    pub accept_proxy_from: Arc<[IpNet]>,
    /// Callers that are not served, as `stack/service`.
    pub refuses: Arc<BTreeSet<String>>,
}

impl Leads {
    /// Whether it is for the client to speak first, whatever is spoken.
    fn client_begins(&self) -> bool {
        let declared = match self.protocol {
            Protocol::Http | Protocol::Http2 => true,
            Protocol::Auto => self.table.is_some(),
            Protocol::Tcp => false,
        };
        declared || self.tls.is_some()
    }
}

/// Where connections to a listener lead; changes while they are open.
#[derive(Debug)]
pub struct Target {
    bind: SocketAddr,
    leads: RefCell<Leads>,
    cluster: RefCell<Rc<WorkerCluster>>,
    table: RefCell<Option<Rc<WorkerTable>>>,
}

impl Target {
    pub fn protocol(&self) -> Protocol {
        self.leads.borrow().protocol
    }

    /// Where what no route wants goes; with a table perhaps nowhere (its id is empty then).
    pub fn cluster(&self) -> Rc<WorkerCluster> {
        Rc::clone(&self.cluster.borrow())
    }

    /// It is open for clients outside.
    pub fn is_published(&self) -> bool {
        self.leads.borrow().published
    }

    /// Where it listens, if that is an address of a service.
    pub fn virtual_address(&self) -> Option<SocketAddr> {
        (!self.is_published()).then_some(self.bind)
    }

    pub fn table(&self) -> Option<Rc<WorkerTable>> {
        self.table.borrow().clone()
    }

    /// How TLS is ended here, if it is.
    pub fn tls(&self) -> Option<ListenerConfig> {
        self.leads.borrow().tls.clone()
    }

    /// Whether `peer` is a proxy that says by a header who its client is.
    pub fn believes(&self, peer: IpAddr) -> bool {
        let networks = &self.leads.borrow().accept_proxy_from;
        !networks.is_empty() && networks.iter().any(|net| net.contains(&peer.to_canonical()))
    }

    /// The service that calls from `peer`, if it is not to be served here.
    pub fn refuses(&self, peer: IpAddr, callers: &Callers) -> Option<String> {
        let refused = &self.leads.borrow().refuses;
        if refused.is_empty() {
            return None;
        }
        callers.at(peer).filter(|caller| refused.contains(caller))
    }
}

struct Listening {
    target: Rc<Target>,
    accepting: Vec<Accepting>,
}

/// One socket that is accepted from.
struct Accepting {
    /// A copy for a successor; the listening itself is the task's.
    socket: Rc<tcp::Listening>,
    stop: Rc<Stop>,
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
    /// Memory for heads.
    pub heads: Heads,
    /// For bulk.
    pub pipes: Pipes,
    pub runners: Runners,
    pub random: RefCell<Random>,
    pub edges: Edges,
    pub callers: Callers,
    pub log: Log,
    proofs: RefCell<Arc<BTreeMap<String, String>>>,
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

    /// The proof that belongs to a certificate authority's token.
    pub fn proof(&self, token: &str) -> Option<String> {
        self.proofs.borrow().get(token).cloned()
    }

    /// Counts an answer of the proxy itself.
    pub fn count_own(&self, caller: Rc<str>, route: Option<&Rc<str>>, record: Record) {
        let route = route.cloned().unwrap_or_default();
        self.edges.get(EdgeKey { route, caller, cluster: ClusterId::new() }).add(record);
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
        heads: Heads::default(),
        pipes: Pipes::default(),
        runners: Runners::default(),
        random: RefCell::new(Random::new(u64::from(std::process::id()) << 16 | index as u64)),
        edges: Edges::default(),
        callers: Callers::default(),
        log: Log::new(log),
        proofs: RefCell::default(),
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
    let mut state = State {
        worker: Rc::clone(&worker),
        clusters: HashMap::new(),
        tables: HashMap::new(),
        listeners: HashMap::new(),
        nowhere: Rc::new(WorkerCluster::new(
            Arc::new(ClusterShared::new(ClusterId::new(), worker.shared.workers)),
            &worker.shared,
            worker.index,
        )),
    };
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
                Some(Command::Lend(answer)) => {
                    // As above.
                    let _ = answer.send(state.lend());
                }
                Some(Command::Drain { ending, closed, ended }) => {
                    state.drain(ending).await;
                    let _ = closed.send(());
                    tokio::task::spawn_local(all_ended(Rc::clone(&worker), ended));
                }
                None => return,
            },
            _ = ticks.tick() => {
                let now = worker.shared.now_ms();
                worker.deadlines.tick(now);
                worker.runners.tick();
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
    tables: HashMap<TableId, Rc<WorkerTable>>,
    listeners: HashMap<SocketAddr, Listening>,
    /// A cluster without endpoints.
    nowhere: Rc<WorkerCluster>,
}

impl State {
    async fn apply(&mut self, change: Change) {
        // Clusters first: a new listener must find its endpoints.
        for cluster in &change.clusters {
            self.cluster(&cluster.shared).apply(cluster);
        }
        self.tables(change.tables);
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
        change.removed_tables.iter().for_each(|id| drop(self.tables.remove(id)));
        if let Some(proofs) = change.proofs {
            self.worker.proofs.replace(proofs);
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

    /// Takes over routes, under open connections too.
    fn tables(&mut self, changed: Vec<(TableId, Arc<Table>)>) {
        for (id, table) in changed {
            let clusters = &self.clusters;
            let missing = Rc::clone(&self.nowhere);
            let table = Rc::new(WorkerTable::new(table, |id| {
                // The control thread sends every cluster that a route names.
                clusters.get(id).map_or_else(|| Rc::clone(&missing), Rc::clone)
            }));
            for listening in self.listeners.values() {
                if listening.target.leads.borrow().table.as_ref() == Some(&id) {
                    listening.target.table.replace(Some(Rc::clone(&table)));
                }
            }
            self.tables.insert(id, table);
        }
    }

    fn listener(&mut self, change: ListenerChange) {
        let cluster = self.cluster(&change.cluster);
        let table = change.leads.table.as_ref().and_then(|id| self.tables.get(id)).cloned();
        let defers = change.leads.client_begins();
        if change.sockets.is_empty() {
            if let Some(listening) = self.listeners.get(&change.bind) {
                listening.accepting.iter().for_each(|accepting| accepting.socket.defer(defers));
                listening.target.leads.replace(change.leads);
                listening.target.cluster.replace(cluster);
                listening.target.table.replace(table);
            }
            return;
        }
        let target = Rc::new(Target {
            bind: change.bind,
            leads: RefCell::new(change.leads),
            cluster: RefCell::new(cluster),
            table: RefCell::new(table),
        });
        let mut accepting = Vec::with_capacity(change.sockets.len());
        for socket in change.sockets {
            let socket = match tcp::Listening::new(socket) {
                Ok(socket) => Rc::new(socket),
                Err(error) => {
                    tracing::error!(bind = %change.bind, %error, "a worker cannot listen");
                    continue;
                }
            };
            socket.defer(defers);
            let stop = Rc::new(Stop::default());
            let task = tokio::task::spawn_local(accept::run(
                Rc::clone(&self.worker),
                Rc::clone(&socket),
                change.bind,
                Rc::clone(&target),
                Rc::clone(&stop),
            ));
            accepting.push(Accepting { socket, stop, task });
        }
        self.listeners.insert(change.bind, Listening { target, accepting });
    }

    /// Copies of the listening sockets.
    fn lend(&self) -> Vec<(SocketAddr, OwnedFd)> {
        let sockets = self
            .listeners
            .iter()
            .flat_map(|(bind, listening)| listening.accepting.iter().map(|a| (*bind, &a.socket)));
        let copy = |(bind, socket): (SocketAddr, &Rc<tcp::Listening>)| {
            // A successor opens its own where there are too few descriptors for a copy.
            Some((bind, rustix::io::fcntl_dupfd_cloexec(socket, 0).ok()?))
        };
        sockets.filter_map(copy).collect()
    }

    async fn drain(&mut self, ending: Ending) {
        self.worker.ending.set(true);
        self.worker.draining.notify_waiters();
        if ending == Ending::Final {
            self.worker.deadlines.shorten_idle(CLIENT_IDLE_ENDING);
        }
        for (_, listening) in self.listeners.drain() {
            close(listening).await;
        }
    }
}

/// Stops accepting, after those that wait in the socket's queue.
async fn close(listening: Listening) {
    for accepting in listening.accepting {
        accepting.stop.now();
        drop(accepting.socket);
        // The task ends by itself; a panic in it would have ended the accepting as well.
        let _ = accepting.task.await;
    }
}

/// Tells the accepting task to stop.
#[derive(Debug, Default)]
pub struct Stop(Notify);

impl Stop {
    fn now(&self) {
        self.0.notify_one();
    }

    /// Waits to be told, which is done once.
    pub async fn told(&self) {
        self.0.notified().await;
    }
}
