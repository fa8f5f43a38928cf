//! Copies of HAProxy's listening sockets: when it dies, who connects waits for the next one and is not refused.
//!
//! A copy keeps a socket open that HAProxy has closed, and then connections would wait for nobody. So copies are let go of
//! before HAProxy is told that nothing listens there any more, and all of them when it is to end or can't be started.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;

use keel_link::handover::Sockets;
use rustix::process::{Resource, getrlimit};
use tokio::time::sleep;

use super::sockets;
use crate::limits::{HELD_SHARE, HELD_TRIES, LOOK};

/// The copies.
#[derive(Debug, Default)]
pub struct Held(Sockets);

impl Held {
    /// Has copies of what HAProxy listens on at `open` now, instead of those from before. It answers at `path`.
    pub async fn ask(&mut self, path: &Path, open: &BTreeSet<SocketAddr>) {
        // What there is from before may be none of its sockets by now.
        self.clear();
        for tries in 1.. {
            let path = path.to_owned();
            let asked = tokio::task::spawn_blocking(move || sockets::ask(&path)).await;
            match asked.map_err(std::io::Error::other).flatten() {
                // After a reload it may be a worker that is leaving who answers. But what can't be rendered is missing, too.
                Ok(sockets)
                    if tries < HELD_TRIES
                        && open.iter().any(|bind| !sockets.contains_key(bind)) =>
                {
                    sleep(LOOK).await;
                }
                Ok(sockets) => {
                    let wanted = sockets.into_iter().filter(|(bind, _)| open.contains(bind));
                    self.0 = bounded(wanted.collect(), room());
                    return;
                }
                Err(error) => {
                    return tracing::info!(%error, "no copies of haproxy's sockets: if it dies, connections are refused");
                }
            }
        }
    }

    /// Lets go of what is not in `listening`.
    pub fn keep_only(&mut self, listening: &BTreeSet<SocketAddr>) {
        self.0.retain(|bind, _| listening.contains(bind));
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether there is a copy of what listens at `bind`.
    pub fn has(&self, bind: &SocketAddr) -> bool {
        self.0.contains_key(bind)
    }

    /// For a HAProxy that starts. These are kept: it may die too.
    pub fn copies(&self) -> Vec<TcpListener> {
        let copies = self.0.values().flatten().map(OwnedFd::try_clone);
        copies.flatten().map(TcpListener::from).collect()
    }
}

/// All of the sockets if there are at most `most`, else one of each address.
fn bounded(mut sockets: Sockets, most: usize) -> Sockets {
    if sockets.values().map(Vec::len).sum::<usize>() > most {
        sockets.values_mut().for_each(|sockets| sockets.truncate(1));
    }
    sockets.into_iter().take(most).collect()
}

/// How many copies there may be.
fn room() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    descriptors.and_then(|most| usize::try_from(most / HELD_SHARE).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_too_many_each_address_has_one() {
        let sockets = || -> Sockets {
            let each = (0..3).map(|_| {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let copy = socket.try_clone().unwrap();
                (socket.local_addr().unwrap(), vec![socket.into(), copy.into()])
            });
            each.collect()
        };
        let counts = |most| bounded(sockets(), most).values().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(6), [2, 2, 2]);
        assert_eq!(counts(5), [1, 1, 1]);
        assert_eq!(counts(2), [1, 1]);
    }
}
