//! The server's end of the link to the proxy: keeps a proxy running, tells it what changed, hears what it says.
//!
//! The proxy outlives the server. A link therefore first tries the socket that is there, and starts a proxy only
//! when nothing answers. While there is no proxy nothing can be in flight, but nothing may be taken for drained
//! either: a new proxy starts with the last snapshot of the old one.

mod begin;
mod hear;
mod held;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use keel_model::{
    EventKind, Generation, Goal, InstanceId, InstanceStatus, NodeName, Phase, ZoneName,
};
use keel_route::access_log::AccessLog;
use keel_route::codec::{Decoder, encode};
use keel_route::part;
use keel_route::snapshot::{Cluster, ClusterId, FromProxy, Snapshot, ToProxy};
use keel_runtime::Runtime;
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::begin::{Begun, Place, START_TIME, Succession, pause};
use self::held::Held;
pub use self::state::ProxyState;
use super::snapshot::{Sources, drained, snapshot};
use super::{Credentials, callers};
use crate::board::Board;
use crate::events::EventLog;
use crate::network::Network;
use crate::world::WorldReader;
use crate::{clock, detour};

/// Pause between two tries to reach the proxy.
const RECONNECT: Duration = Duration::from_millis(10);
/// One that was linked for this long did not fail at its start.
const HEALTHY: Duration = Duration::from_secs(1);
/// A proxy that takes no frame for this long hangs; the link is made anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often counters are asked for.
const STATS_INTERVAL: Duration = Duration::from_secs(5);
/// Questions for counters that wait for their answer; a proxy that leaves so many open is not asked again.
const MAX_QUESTIONS: usize = 8;
/// A proxy that has not answered after this is late; one that is still when the counters are asked for the next time
/// hangs, and is killed.
const HANGS: Duration = Duration::from_secs(10);
/// The same for one that drives an engine, which serves on meanwhile and may take its time for a change.
const DRIVER_HANGS: Duration = Duration::from_secs(55);
/// How often is looked whether a proxy of an earlier server has ended, and the pause between two looks.
const GONE_LOOKS: u32 = 20;
const GONE_PAUSE: Duration = Duration::from_millis(50);
/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;

/// Where a proxy is spoken to.
fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("proxy.sock")
}

/// The link.
pub struct Link {
    /// The binary that has `proxy` as a subcommand.
    pub program: PathBuf,
    /// The load balancer that the proxy drives, if not its own.
    pub engine: Option<String>,
    /// Where sockets, the last snapshot and the log of the proxy lie.
    pub state_dir: PathBuf,
    /// Where its news come from.
    pub worlds: Arc<WorldReader>,
    /// Where its news come from, and where drained instances are noted.
    pub board: Arc<Board>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// This machine.
    pub node: NodeName,
    /// The zone that it is in.
    pub zone: Option<ZoneName>,
    /// Virtual addresses.
    pub network: Arc<Network>,
    /// Who calls from where.
    pub runtime: Arc<dyn Runtime>,
    /// How requests are to be logged.
    pub access_log: Option<AccessLog>,
    /// Has the proxy asked for its counters.
    pub ask: Arc<Notify>,
    /// Certificates and proofs.
    pub credentials: Arc<Credentials>,
    /// What the rest of the server may know of the proxy.
    pub state: watch::Sender<ProxyState>,
    /// Which revision of what authorities issued the proxy shows.
    pub shown: watch::Sender<u64>,
}

/// What one connection knows.
#[derive(Default)]
struct Session {
    sent: Arc<Snapshot>,
    /// Instances that drain, and since which generation the proxy knows it of all their endpoints.
    spared: BTreeMap<InstanceId, Generation>,
    /// The last generation that was a whole snapshot, which alone brings listeners and what is issued, and those that were
    /// a change of one cluster since.
    whole: Generation,
    clusters: BTreeMap<ClusterId, Generation>,
    acknowledged: Generation,
    in_flight: BTreeMap<InstanceId, (Generation, u64)>,
    /// Instances that ended, and since which generation they are no endpoints.
    withdrawn: Vec<(InstanceId, Generation)>,
    /// When the questions for counters were asked that are not answered yet.
    questions: VecDeque<Instant>,
    /// The oldest of them was late when it was looked at last.
    is_late: bool,
    /// The revision of what is issued in `sent`.
    issued: u64,
    /// The proxy that is linked is not what it should be.
    is_other: bool,
    succession: Succession,
    /// Copies of the proxy's sockets, if it is our own and stays.
    held: Held,
    /// The listeners are in force, and were looked at.
    is_settled: bool,
}

impl Session {
    /// Notes which instances drain, as the proxy was told with all until `generation`.
    fn spare(&mut self, draining: &BTreeSet<&InstanceId>, generation: Generation) {
        self.spared.retain(|id, _| draining.contains(id));
        self.in_flight.retain(|id, _| draining.contains(id));
        for id in draining.iter().copied() {
            if self.spared.contains_key(id) && self.in_flight.contains_key(id) {
                continue;
            }
            let told = self.told_of(id);
            // What no cluster names (a service without ports) can't have anything in flight.
            if told.is_none() {
                self.in_flight.entry(id.clone()).or_insert((generation, 0));
            }
            self.spared.entry(id.clone()).or_insert(told.unwrap_or(generation));
        }
    }

    /// Since when the proxy has been told all of what it knows of an instance; `None` if it knows none.
    fn told_of(&self, id: &InstanceId) -> Option<Generation> {
        let names = |cluster: &Cluster| cluster.endpoints.iter().any(|e| e.instance == *id);
        let known = self.sent.clusters.iter().filter(|(_, cluster)| names(cluster));
        known.map(|(cluster, _)| self.clusters.get(cluster).copied().unwrap_or(self.whole)).max()
    }
}

impl Link {
    fn socket(&self) -> PathBuf {
        socket(&self.state_dir)
    }

    /// Runs until cancelled.
    pub async fn run(self) {
        // Above every generation that an earlier server gave, unless the clock was set back; then the proxy
        // takes the first snapshot of a connection all the same.
        let mut generation = Generation(clock::now().0 << 10);
        let (mut succession, mut held) = (Succession::default(), Held::default());
        let mut in_vain = 0;
        loop {
            match UnixStream::connect(self.socket()).await {
                Ok(stream) => {
                    let linked = Instant::now();
                    held.linked();
                    let mut session = Session { succession, held, ..Session::default() };
                    let reason = self.session(&mut session, stream, &mut generation).await;
                    self.lost(&reason);
                    self.board.set_drained(BTreeSet::new());
                    (succession, held) = (session.succession, session.held);
                    if linked.elapsed() >= HEALTHY {
                        in_vain = 0;
                    }
                    tracing::warn!(reason, "the link to the proxy ended");
                }
                Err(_) if succession.begun.as_ref().is_some_and(Begun::may_come) => {}
                Err(_) => {
                    tokio::time::sleep(pause(in_vain, START_TIME)).await;
                    in_vain += 1;
                    succession.begun = self.start(Place::Empty, &held);
                }
            }
            if held.unlinked() {
                let message = "no proxy for 10 s: its sockets are closed, connections are refused";
                self.events.add(EventKind::Platform, None, None, None, message.to_owned());
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// The link has ended. One that was started by this server is waited for, and told of where that is done.
    fn lost(&self, reason: &str) {
        let pid = self.state.borrow().pid;
        self.state.send_modify(|state| state.lack(clock::now(), reason.to_owned()));
        let Some(pid) = pid.filter(|pid| !self.state.borrow().children.contains(pid)) else {
            return;
        };
        let events = Arc::clone(&self.events);
        // It may be about to end, but this is not its parent.
        tokio::spawn(async move {
            for _ in 0..GONE_LOOKS {
                if !Path::new(&format!("/proc/{pid}")).exists() {
                    let message = format!("the proxy (process {pid}) ended");
                    events.add(EventKind::Platform, None, None, None, message);
                    return;
                }
                tokio::time::sleep(GONE_PAUSE).await;
            }
        });
    }

    /// Serves one connection; why it ended.
    async fn session(
        &self,
        session: &mut Session,
        stream: UnixStream,
        generation: &mut Generation,
    ) -> String {
        // It may hang before it has said who it is.
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (mut reader, mut writer) = stream.into_split();
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        let mut worlds = self.worlds.subscribe();
        let mut board = self.board.subscribe();
        let mut credentials = self.credentials.subscribe();
        let mut stats = tokio::time::interval(STATS_INTERVAL);
        stats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            worlds.borrow_and_update();
            board.borrow_and_update();
            credentials.seen();
            let frames = self.news(session, generation, first);
            first = false;
            if let Err(reason) = send(&mut writer, frames).await {
                return reason;
            }
            self.board.set_drained(drained(
                &session.spared,
                session.acknowledged,
                &session.in_flight,
            ));
            tokio::select! {
                read = read(&mut reader, &mut buffer) => {
                    let frames = match read.and_then(|()| decode(&mut decoder, &mut buffer)) {
                        Ok(frames) => frames,
                        Err(reason) => return reason,
                    };
                    for frame in frames {
                        self.hear(session, frame);
                    }
                }
                changed = worlds.changed() => if changed.is_err() { return "shutdown".to_owned() },
                changed = board.changed() => if changed.is_err() { return "shutdown".to_owned() },
                changed = credentials.changed() => if !changed { return "shutdown".to_owned() },
                _ = stats.tick() => {
                    // The proxy tries a listener that failed again with the next whole snapshot.
                    first = !self.state.borrow().failed.is_empty();
                    if self.hangs(session) {
                        self.kill(peer);
                        return "the proxy hangs".to_owned();
                    }
                    if let Err(reason) = ask(session, &mut writer).await {
                        return reason;
                    }
                }
                () = session.succession.due(), if session.is_other => {
                    let begun = self.start(Place::Taken, &session.held);
                    session.succession.begin(begun);
                }
                () = session.held.answered(self.state.borrow().pid) => {}
                () = self.ask.notified() => {
                    if let Err(reason) = ask(session, &mut writer).await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Looked at twice: if it was this server that stood still, the answers are there and only not read yet.
    fn hangs(&self, session: &mut Session) -> bool {
        let patience = if self.engine.is_some() { DRIVER_HANGS } else { HANGS };
        let is_late = session.questions.front().is_some_and(|asked| asked.elapsed() >= patience);
        std::mem::replace(&mut session.is_late, is_late) && is_late
    }

    /// Ends a proxy that hangs: as long as it has the sockets, who connects waits in vain.
    fn kill(&self, pid: Option<i32>) {
        let other = pid.and_then(Pid::from_raw).filter(|pid| *pid != getpid());
        let Some(pid) = other else { return };
        let number = pid.as_raw_nonzero();
        let message = format!("the proxy (process {number}) answers nothing and is killed");
        tracing::error!("{message}");
        self.events.add(EventKind::Platform, None, None, None, message);
        // That it has ended meanwhile is no error.
        let _ = kill_process(pid, Signal::KILL);
    }

    /// What the proxy does not know yet.
    fn news(
        &self,
        session: &mut Session,
        generation: &mut Generation,
        first: bool,
    ) -> Vec<ToProxy> {
        let world = self.worlds.current();
        let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
        let next = generation.next();
        let view = self.board.view();
        let ways = detour::ways(&world, &*self.runtime);
        let sources = Sources {
            world: &world,
            board: &view,
            node: &self.node,
            zone: self.zone.as_ref(),
            network: &self.network,
            credentials: &self.credentials,
            ipv6,
            ways: &ways,
        };
        let mut wanted = snapshot(&sources, next);
        callers::add(&mut wanted, &world, &view, &*self.runtime);
        wanted.access_log.clone_from(&self.access_log);
        let revision = self.credentials.issued_revision();
        let mut frames = Vec::new();
        let parts = callers::sent_by_parts(&wanted, &session.sent);
        if first || revision != session.issued || !parts {
            *generation = next;
            (session.whole, session.issued) = (next, revision);
            session.is_settled = false;
            session.clusters.clear();
            session.held.keep_only(&wanted.listeners.iter().map(|l| l.bind).collect());
            frames.push(ToProxy::Snapshot(wanted.clone()));
        } else {
            for (id, cluster) in &wanted.clusters {
                if session.sent.clusters.get(id) != Some(cluster) {
                    *generation = generation.next();
                    session.clusters.insert(id.clone(), *generation);
                    let sent = session.sent.clusters.get(id);
                    frames.push(part::news(*generation, id.clone(), sent, cluster));
                }
            }
            frames.extend(callers::news(&wanted, &session.sent, generation));
        }
        wanted.generation = *generation;
        let (before, after) = (instances(&session.sent), instances(&wanted));
        session.withdrawn.extend(
            before
                .difference(&after)
                .filter(|id| view.statuses.get(**id).is_some_and(|status| has_ended(status)))
                .map(|id| (InstanceId::clone(id), *generation)),
        );
        session.sent = Arc::new(wanted);
        // Nobody waits for this: it is for those who ask.
        self.state.send_if_modified(|state| {
            state.snapshot = Some(Arc::clone(&session.sent));
            false
        });
        let draining: BTreeSet<&InstanceId> = world
            .stacks
            .values()
            .flat_map(|stack| stack.assignments.values())
            .filter(|assignment| assignment.value.goal == Goal::Drain)
            .map(|assignment| &assignment.value.id)
            .collect();
        session.spare(&draining, *generation);
        frames
    }
}

/// Whether its process is gone, however that came.
fn has_ended(status: &InstanceStatus) -> bool {
    status.pid.is_none() && matches!(status.phase, Phase::Running | Phase::Exited)
}

fn instances(snapshot: &Snapshot) -> BTreeSet<&InstanceId> {
    let endpoints = snapshot.clusters.values().flat_map(|cluster| &cluster.endpoints);
    endpoints.map(|endpoint| &endpoint.instance).collect()
}

/// Asks for counters. Answers come in the order of the questions.
async fn ask(session: &mut Session, writer: &mut OwnedWriteHalf) -> Result<(), String> {
    if session.questions.len() >= MAX_QUESTIONS {
        return Ok(());
    }
    session.questions.push_back(Instant::now());
    send(writer, vec![ToProxy::Stats]).await
}

async fn send(writer: &mut OwnedWriteHalf, frames: Vec<ToProxy>) -> Result<(), String> {
    for frame in frames {
        let bytes = encode(&frame).map_err(|e| e.to_string())?;
        tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&bytes))
            .await
            .map_err(|_| "the proxy takes no frames".to_owned())?
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn read(reader: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Result<(), String> {
    buffer.reserve(READ_SIZE);
    match reader.read_buf(buffer).await {
        Ok(0) => Err("the proxy closed the link".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn decode(decoder: &mut Decoder, buffer: &mut BytesMut) -> Result<Vec<FromProxy>, String> {
    decoder.push(&buffer.split());
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode().map_err(|e| e.to_string())? {
        frames.push(frame);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests;
