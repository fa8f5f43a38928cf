//! Copies of the proxy's listening sockets: when it dies, who connects waits for the next one and is not refused.
//!
//! A copy keeps a socket open that the proxy has closed. So a copy is let go of before the proxy hears that nobody listens
//! there any more, and all are when something else takes its place, or nothing does for long.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keel_link::handover::{self, Sockets};
use keel_route::snapshot::Snapshot;
use rustix::process::{Resource, getrlimit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Who connects waits so long for a proxy, and then is refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// The part of this process's descriptors that copies may take.
const SHARE: u64 = 2;

/// Process id of the proxy, and copies.
type Copies = io::Result<Option<(u32, Sockets)>>;

/// The copies.
#[derive(Default)]
pub struct Held {
    sockets: Sockets<Arc<OwnedFd>>,
    /// Where the proxy listens.
    listening: BTreeSet<SocketAddr>,
    /// Is on its way.
    asking: Option<JoinHandle<Copies>>,
    /// Since when there is no proxy.
    alone: Option<Instant>,
}

impl Held {
    /// Has copies fetched, unless there were asked for the same before.
    pub fn ask(&mut self, control_socket: &Path, listening: BTreeSet<SocketAddr>) {
        if listening == self.listening {
            return;
        }
        self.listening = listening;
        let (control_socket, most) = (control_socket.to_owned(), room());
        let ask = move || handover::copies(&control_socket, most);
        // The answer to an earlier question is dropped with it.
        self.asking = Some(tokio::task::spawn_blocking(ask));
    }

    /// Waits for an answer, and takes it if it is from the proxy `pid`.
    pub async fn answered(&mut self, pid: Option<u32>) {
        let Some(asking) = &mut self.asking else { return pending().await };
        let answer = asking.await;
        self.asking = None;
        match answer.map_err(io::Error::other).flatten() {
            Ok(Some((from, sockets))) if pid == Some(from) => {
                let is_wanted = |bind: &SocketAddr| self.listening.contains(bind);
                let wanted = sockets.into_iter().filter(|(bind, _)| is_wanted(bind));
                let shared = |(bind, sockets): (_, Vec<_>)| {
                    (bind, sockets.into_iter().map(Arc::new).collect())
                };
                self.sockets = wanted.map(shared).collect();
            }
            Ok(_) => {}
            Err(error) => {
                // What there is from before may be none of the proxy's by now.
                self.sockets.clear();
                tracing::info!(%error, "no copies of the proxy's sockets: if it dies, connections are refused for a moment");
            }
        }
    }

    /// Lets go of what is not in `listening`: the proxy is about to close it.
    pub fn keep_only(&mut self, listening: &BTreeSet<SocketAddr>) {
        self.sockets.retain(|bind, _| listening.contains(bind));
        self.listening.retain(|bind| listening.contains(bind));
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether there is nothing to give.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// There is a proxy, which was not asked for anything yet.
    pub fn linked(&mut self) {
        (self.alone, self.asking) = (None, None);
        self.listening.clear();
    }

    /// There is none: lets go of everything when that has lasted too long. Whether it has done so.
    pub fn unlinked(&mut self) -> bool {
        if self.alone.get_or_insert_with(Instant::now).elapsed() >= PATIENCE && !self.is_empty() {
            tracing::warn!("no proxy for long: connections are refused from now on");
            self.sockets.clear();
            return true;
        }
        false
    }

    /// Gives them to a proxy that reads from the other end, with the state to begin with. They are kept: it may die too.
    pub fn give(&self, stream: UnixStream, snapshot: Arc<Snapshot>) {
        let sockets = self.sockets.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = handover::give(&stream, &snapshot, &sockets) {
                tracing::warn!(%error, "the new proxy does not take the sockets");
            }
        });
    }
}

/// How many copies there may be.
fn room() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    descriptors.and_then(|most| usize::try_from(most / SHARE).ok()).unwrap_or(usize::MAX)
}
