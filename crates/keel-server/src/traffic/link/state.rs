//! What is known of the proxy.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use keel_model::{Generation, Timestamp};
use keel_route::snapshot::{Lacking, ListenerFailure, Snapshot, Stats};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::api::types::ProxyView;
use crate::sockets::Own;
use crate::traffic::notices::LeftOut;

/// What is known of the proxy.
#[derive(Clone, Debug, Default)]
pub struct ProxyState {
    /// Those that this server started last.
    pub children: VecDeque<u32>,
    /// Its process id while it is linked.
    pub pid: Option<u32>,
    /// The last one that was linked.
    pub known: Option<u32>,
    /// That of the last one that this server started, while it runs.
    pub started: Option<u32>,
    /// Since when it is linked, and how often one was started since this server knows of any.
    pub since: Option<Timestamp>,
    /// How often one was started where another had ended.
    pub restarts: u64,
    /// Since when there is none that answers, and why, for people.
    pub down: Option<(Timestamp, String)>,
    /// Endpoints that it leaves out, as far as it has told.
    pub left_out: LeftOut,
    /// Why the one that is wanted did not take the place of the one that serves.
    pub not_taken_over: Option<String>,
    /// The generation that it uses.
    pub acknowledged: Generation,
    /// Listeners that it could not open.
    pub failed: Vec<ListenerFailure>,
    /// What it lacks of what is wanted, if it drives an engine; until it has said so, what the one before lacked.
    pub lacks: Vec<Lacking>,
    /// Its version.
    pub version: String,
    /// Its last counters.
    pub stats: Arc<Stats>,
    /// When it was asked for them; they are not older.
    pub asked: Option<Instant>,
    /// What it was told last.
    pub snapshot: Option<Arc<Snapshot>>,
}

impl ProxyState {
    /// A proxy is there.
    pub(super) fn begin(&mut self, pid: u32, now: Timestamp) {
        if self.known != Some(pid) {
            self.since = Some(crate::metrics::started(pid).unwrap_or(now));
            self.restarts += u64::from(self.known.is_some());
            self.left_out.clear();
        }
        (self.pid, self.known, self.down) = (Some(pid), Some(pid), None);
    }

    /// There is none; the first reason is the one that matters, unless a later one says more.
    pub(super) fn lack(&mut self, now: Timestamp, why: String) {
        self.pid = None;
        let since = self.down.take().map_or(now, |(since, _)| since);
        self.down = Some((since, why));
    }

    /// What people are told of it.
    pub fn view(&self) -> ProxyView {
        let driven = self.version.split_once(" with ").map_or("keel", |(_, engine)| engine);
        ProxyView {
            pid: self.pid,
            serves: self.pid.map(|_| driven.to_owned()),
            since: self.since.filter(|_| self.pid.is_some()),
            restarts: self.restarts,
            down_since: self.down.as_ref().map(|(since, _)| *since),
            down_because: self.down.as_ref().map(|(_, why)| why.clone()),
            not_taken_over: self.not_taken_over.clone(),
        }
    }

    /// Which sockets of this machine are the proxy's.
    pub fn own(&self) -> Own {
        let told = self.snapshot.iter().flat_map(|snapshot| &snapshot.listeners);
        let mut open: BTreeSet<_> = told.map(|listener| listener.bind).collect();
        self.failed.iter().for_each(|failure| _ = open.remove(&failure.bind));
        Own { proxy: self.pid, open }
    }

    /// Tells every proxy to end: the one that is linked, one that is still to take its place, and one that serves the
    /// socket but is not linked, as it is about to give its place to another.
    pub fn end(&self, state_dir: &Path) {
        let serves = UnixStream::connect(super::socket(state_dir)).ok();
        let serves = serves.and_then(|stream| socket_peercred(stream).ok()).map(|peer| peer.pid);
        let known = [self.pid, self.started].into_iter().flatten();
        let known = known.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        for pid in known.chain(serves).collect::<HashSet<_>>() {
            // That it has ended meanwhile is no error.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}
