//! Drives HAProxy: a master with workers, which is told of endpoints through its command line, and reads a new
//! configuration when anything else changes.
//!
//! A reload leaves the workers that there were ending what they have. They still take requests on connections that
//! clients keep open, so endpoints that drain are closed there too, before a generation is acknowledged. Nothing is
//! remembered of workers but what they say: a driver that takes over finds everything again.

mod held;
mod report;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use keel_model::EndpointState;
use keel_render::Engine;
use keel_route::snapshot::{Cluster, ClusterId, ClusterStats, Lacking, Snapshot};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use self::held::Held;
use self::report::{Report, Worker, workers};
use self::sockets::Offer;
use crate::limits::{ANSWER, LOOK, MAX_ANSWER, START};
use crate::listeners;
use crate::place::{ADMIN_SOCKET, Place};
use crate::process::Process;
use crate::program::Error;

/// HAProxy under our control.
#[derive(Debug)]
pub struct Haproxy {
    place: Place,
    master: Option<Process>,
    /// The configuration in force without its endpoints.
    structure: Option<Snapshot>,
    /// Addresses that are listened on.
    open: BTreeSet<SocketAddr>,
    /// Backends of each cluster in that configuration.
    backends: BTreeMap<ClusterId, Vec<String>>,
    known: BTreeMap<u32, Known>,
    /// Numbers of workers that have ended.
    past: BTreeMap<ClusterId, ClusterStats>,
    /// Listening sockets to start with, instead of new ones.
    adopted: Vec<TcpListener>,
    /// Copies of its listening sockets, for the next one if it dies.
    held: Held,
    /// The master's command line.
    command_line: PathBuf,
}

/// What is kept of a worker for when it has ended.
#[derive(Debug)]
struct Known {
    backends: BTreeMap<String, ClusterId>,
    numbers: BTreeMap<String, ClusterStats>,
}

/// Server slots for so many endpoints: room for a rollout that doubles them, so that a reload is rare.
fn slots(endpoints: usize) -> usize {
    endpoints * 2 + 4
}

impl Haproxy {
    /// Takes over what an earlier driver left running, if there is something.
    pub fn new(place: Place) -> Self {
        let master = place.files.find();
        if let Some(master) = &master {
            tracing::info!(pid = master.pid().as_raw_nonzero(), "haproxy runs already");
        }
        let open = master.as_ref().map(|_| place.noted_open()).unwrap_or_default();
        Self {
            open,
            command_line: place.path("master.sock"),
            place,
            master,
            structure: None,
            backends: BTreeMap::new(),
            known: BTreeMap::new(),
            past: BTreeMap::new(),
            adopted: Vec::new(),
            held: Held::default(),
        }
    }

    /// Listening sockets that it is to start with, instead of new ones.
    pub fn adopt(&mut self, sockets: Vec<TcpListener>) {
        self.adopted = sockets;
    }

    /// The sockets on which it listens, to be used by another one.
    pub async fn sockets(&self) -> io::Result<BTreeMap<SocketAddr, Vec<OwnedFd>>> {
        let path = self.place.path(ADMIN_SOCKET);
        tokio::task::spawn_blocking(move || sockets::ask(&path)).await?
    }

    /// The process to be watched.
    pub fn process(&self) -> Option<&Process> {
        self.master.as_ref()
    }

    /// What it can't do of what is wanted.
    pub fn lacks(&self) -> Vec<Lacking> {
        self.place.lacks()
    }

    /// Addresses that are listened on.
    pub fn open(&self) -> &BTreeSet<SocketAddr> {
        &self.open
    }

    /// Brings HAProxy in step with `snapshot`; when it returns, no new request goes to an endpoint that is not ready.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let structure = structure(snapshot);
        if self.master.is_some() && self.structure.as_ref() == Some(&structure) {
            match self.adjust(snapshot).await {
                Ok(true) => return self.close_leaving(snapshot).await,
                Ok(false) => tracing::info!("more endpoints than servers: reloading"),
                Err(error) => tracing::warn!(%error, "haproxy's command line: reloading instead"),
            }
        }
        let rendered = self.place.prepare(snapshot, Some(slots)).await?;
        self.place.tell_gaps(&rendered.gaps);
        self.backends =
            rendered.pools.iter().map(|(id, pool)| (id.clone(), pool.backends.clone())).collect();
        self.structure = None;
        let listening = structure.listeners.iter().map(|listener| listener.bind).collect();
        self.held.keep_only(&listening);
        match self.master {
            Some(_) => {
                // One that an earlier driver started has them already.
                self.adopted.clear();
                self.reload().await?;
            }
            None => self.start().await?,
        }
        self.open = listening;
        self.place.note_open(&self.open);
        self.held.ask(&self.place.path(ADMIN_SOCKET), &self.open).await;
        self.structure = Some(structure);
        self.close_leaving(snapshot).await
    }

    /// Changes endpoints without a reload; false if there are not enough servers for them.
    async fn adjust(&mut self, snapshot: &Snapshot) -> io::Result<bool> {
        let Some(worker) = self.workers().await?.into_iter().find(|worker| !worker.leaving) else {
            return Err(io::Error::other("there is no worker"));
        };
        let report = self.ask_report(worker).await?;
        let mut commands = Vec::new();
        let mut all = Vec::new();
        for (id, backends) in &self.backends {
            let wanted = snapshot.clusters.get(id).map(wanted).unwrap_or_default();
            for backend in backends {
                let Some(changes) = report.changes(backend, &wanted) else { return Ok(false) };
                if !changes.is_empty() {
                    all.push((backend.clone(), wanted.clone()));
                }
                commands.extend(changes);
            }
        }
        if commands.is_empty() {
            return Ok(true);
        }
        for command in commands {
            self.ask(&format!("@!{} {command}", worker.pid)).await?;
        }
        // Some of the answers to commands are news and some are errors; what counts is what came of them.
        let report = self.ask_report(worker).await?;
        match all.iter().all(|(backend, wanted)| report.agrees(backend, wanted)) {
            true => Ok(true),
            false => Err(io::Error::other("it did not do what it was told")),
        }
    }

    /// Keeps workers that are leaving from sending anything new to endpoints that are not ready.
    pub async fn close_leaving(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let ready = ready(snapshot);
        let closed = async {
            for worker in self.workers().await?.into_iter().filter(|worker| worker.leaving) {
                // One that ends meanwhile sends nothing to anybody.
                let Ok(report) = self.ask_report(worker).await else { continue };
                for command in report.closings(&ready) {
                    self.ask(&format!("@!{} {command}", worker.pid)).await?;
                }
            }
            io::Result::Ok(())
        };
        closed.await.map_err(|error| self.not_taken(&error.to_string()))
    }

    async fn start(&mut self) -> Result<(), Error> {
        let from = self.place.files.log_length();
        let socket = format!("unix@{},mode,600,level,admin", self.command_line.display());
        let mut arguments = vec!["-W".into(), "-S".into(), socket.into()];
        let failed = |source| Error::NotRun { engine: Engine::Haproxy, source };
        let mut offered = std::mem::take(&mut self.adopted);
        offered.extend(self.held.copies());
        let mut offer = None;
        if !offered.is_empty() {
            let made = Offer::new(self.place.path("offer.sock"), offered).map_err(failed)?;
            arguments.extend(["-x".into(), made.path().into()]);
            offer = Some(made);
        }
        arguments.extend(self.place.arguments());
        let master = self.place.files.start(&self.place.program, &arguments);
        self.master = Some(master.map_err(failed)?);
        let nobody = BTreeSet::new();
        let begun = tokio::select! {
            begun = self.await_worker(&nobody) => begun,
            () = serve(offer.as_ref()) => Ok(()),
        };
        if begun.is_err() {
            return Err(self.not_taken(&self.place.files.logged_since(from)));
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), Error> {
        let from = self.place.files.log_length();
        let before = async {
            let before = self.workers().await?;
            self.ask("reload").await?;
            io::Result::Ok(before.into_iter().map(|worker| worker.pid).collect())
        };
        let done = match before.await {
            Ok(before) => self.await_worker(&before).await,
            Err(error) => Err(error),
        };
        done.map_err(|_| self.not_taken(&self.place.files.logged_since(from)))
    }

    /// Waits until there is a worker that is none of these.
    async fn await_worker(&mut self, before: &BTreeSet<u32>) -> io::Result<()> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            // While the master reads its configuration nobody answers.
            let new = |worker: &Worker| !worker.leaving && !before.contains(&worker.pid);
            if let Ok(workers) = self.workers().await
                && let Some(worker) = workers.iter().copied().find(new)
                && self.ask_report(worker).await.is_ok()
            {
                return Ok(());
            }
            if let Some(master) = &self.master
                && timeout(LOOK, master.ended()).await.is_ok()
            {
                break;
            }
        }
        Err(io::Error::other("no new worker"))
    }

    fn not_taken(&self, said: &str) -> Error {
        let lines = said.lines().filter(|line| line.contains("[ALERT]"));
        let alerts = lines.collect::<Vec<_>>().join("\n");
        let said = if alerts.is_empty() { said.trim() } else { alerts.as_str() };
        Error::NotTaken { engine: Engine::Haproxy, said: said.to_owned() }
    }

    /// One command on the master's command line, and its answer.
    async fn ask(&self, command: &str) -> io::Result<String> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.command_line).await?;
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(ANSWER, exchange).await?
    }

    async fn workers(&self) -> io::Result<Vec<Worker>> {
        Ok(workers(&self.ask("show proc").await?))
    }

    /// What a worker says, which is also kept for when it has ended.
    async fn ask_report(&mut self, worker: Worker) -> io::Result<Report> {
        let answer = self.ask(&format!("@!{} show stat -1 6 -1", worker.pid)).await?;
        let report = Report::parse(&answer).ok_or_else(|| io::Error::other("no report"))?;
        let backends = &self.backends;
        let known = self
            .known
            .entry(worker.pid)
            .or_insert_with(|| Known { backends: owners(backends), numbers: BTreeMap::new() });
        known.numbers = report.numbers.clone();
        Ok(report)
    }

    /// Reports of all workers. The numbers of those that have ended are kept.
    async fn reports(&mut self) -> io::Result<Vec<Report>> {
        let workers = self.workers().await?;
        let mut reports = Vec::new();
        for worker in &workers {
            reports.extend(self.ask_report(*worker).await.ok());
        }
        let here = |pid: &u32| workers.iter().any(|worker| worker.pid == *pid);
        let (here, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.known).into_iter().partition(|(pid, _)| here(pid));
        self.known = here;
        for ended in ended.into_values() {
            for (backend, numbers) in ended.numbers {
                if let Some(id) = ended.backends.get(&backend) {
                    add(self.past.entry(id.clone()).or_default(), &numbers);
                }
            }
        }
        Ok(reports)
    }

    /// What is in flight at each of these addresses, over all workers.
    pub async fn in_flight(&mut self, addresses: &[SocketAddr]) -> Option<Vec<u64>> {
        if self.master.is_none() {
            return Some(vec![0; addresses.len()]);
        }
        let reports = self.reports().await.ok()?;
        let count = |address: &SocketAddr| reports.iter().map(|r| r.in_flight(*address)).sum();
        Some(addresses.iter().map(count).collect())
    }

    /// Counters since the driver started.
    pub async fn stats(&mut self) -> BTreeMap<ClusterId, ClusterStats> {
        let _ = self.reports().await;
        let mut all = self.past.clone();
        all.values_mut().for_each(|numbers| numbers.in_flight = 0);
        for known in self.known.values() {
            for (backend, numbers) in &known.numbers {
                if let Some(id) = known.backends.get(backend) {
                    add(all.entry(id.clone()).or_default(), numbers);
                }
            }
        }
        all
    }

    /// The process has ended. Workers that outlive it would serve what nobody can change any more: they are told to end
    /// what they have.
    pub async fn ended(&mut self) {
        if let Some(master) = self.master.take() {
            master.signal_group(Signal::USR1);
        }
        self.structure = None;
        let open = std::mem::take(&mut self.open);
        let (held, free) = open.into_iter().partition(|bind| self.held.has(bind));
        listeners::released(&free).await;
        self.open = held;
    }

    /// No other one can be started: to be refused is better than to wait for it.
    pub fn give_up(&mut self) {
        self.held.clear();
        self.open.clear();
    }

    /// Tells it to end when all connections have, and takes it out of the way of the next one: that is not to adopt it,
    /// and needs the name of its command line.
    pub fn retire(&mut self) {
        self.place.files.forget();
        let aside = self.place.path("retired.sock");
        match std::fs::rename(&self.command_line, &aside) {
            Ok(()) => self.command_line = aside,
            Err(error) => tracing::warn!(%error, "cannot rename haproxy's command line"),
        }
        self.stop();
    }

    /// Tells it to end when all connections have.
    pub fn stop(&mut self) {
        self.held.clear();
        if let Some(master) = &self.master {
            master.signal(Signal::USR1);
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.held.clear();
        if let Some(master) = &self.master {
            master.signal(Signal::TERM);
        }
    }
}

/// Gives what is offered to whoever asks, for as long as this is polled.
async fn serve(offer: Option<&Offer>) {
    match offer {
        Some(offer) => offer.serve().await,
        None => std::future::pending().await,
    }
}

/// A snapshot without what can be changed without a reload.
fn structure(snapshot: &Snapshot) -> Snapshot {
    let mut structure = crate::place::rendered_part(snapshot);
    for cluster in structure.clusters.values_mut() {
        // Whether an endpoint is a reserve is a property of its server.
        if !cluster.policy.as_ref().is_some_and(|policy| policy.prefer_zone) {
            cluster.endpoints.clear();
            cluster.zones.clear();
        }
    }
    structure
}

fn wanted(cluster: &Cluster) -> Vec<(SocketAddr, bool)> {
    let each = cluster.endpoints.iter();
    each.map(|endpoint| (endpoint.address, endpoint.state == EndpointState::Ready)).collect()
}

/// The addresses of all ready endpoints.
fn ready(snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
    let all = snapshot.clusters.values().flat_map(wanted);
    all.filter(|(_, ready)| *ready).map(|(address, _)| address).collect()
}

fn owners(backends: &BTreeMap<ClusterId, Vec<String>>) -> BTreeMap<String, ClusterId> {
    let pairs = backends.iter().flat_map(|(id, names)| names.iter().map(move |name| (name, id)));
    pairs.map(|(name, id)| (name.clone(), id.clone())).collect()
}

fn add(to: &mut ClusterStats, more: &ClusterStats) {
    to.requests += more.requests;
    to.failed += more.failed;
    to.server_errors += more.server_errors;
    to.retries += more.retries;
    to.held += more.held;
    to.in_flight += more.in_flight;
    to.total_us += more.total_us;
}
