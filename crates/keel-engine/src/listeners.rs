//! Whether an address can be listened on, before an engine is told to: one that it can't have would make it refuse
//! the whole configuration.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;

use keel_route::snapshot::{ListenerFailure, Snapshot};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

use crate::limits::{LOOK, RELEASE};

/// Leaves out the listeners that can't be opened, as far as an engine that has `open` can find out; they are returned
/// with the reason.
pub fn without_failing(
    snapshot: &Snapshot,
    open: &BTreeSet<SocketAddr>,
) -> (Snapshot, Vec<ListenerFailure>) {
    let mut failed = Vec::new();
    let mut snapshot = snapshot.clone();
    let mut known = BTreeSet::new();
    snapshot.listeners.retain(|listener| {
        let bind = listener.bind;
        let reason = match known.insert(bind) {
            false => Some(format!("{bind} is wanted twice")),
            true if open.contains(&bind) => None,
            true => problem(bind, open),
        };
        let fits = reason.is_none();
        failed.extend(reason.map(|reason| ListenerFailure { bind, reason }));
        fits
    });
    (snapshot, failed)
}

/// Waits until these addresses can be listened on again, at most [`RELEASE`].
pub async fn released(addresses: &BTreeSet<SocketAddr>) {
    let until = Instant::now() + RELEASE;
    let none = BTreeSet::new();
    while Instant::now() < until && addresses.iter().any(|bind| problem(*bind, &none).is_some()) {
        sleep(LOOK).await;
    }
}

/// Why an address can't be listened on.
fn problem(bind: SocketAddr, open: &BTreeSet<SocketAddr>) -> Option<String> {
    // Our own engine may have it by another name: everything at a port, or one address of many.
    let shared = |other: &SocketAddr| {
        other.port() == bind.port()
            && other.is_ipv4() == bind.is_ipv4()
            && (other.ip().is_unspecified() || bind.ip().is_unspecified())
    };
    if open.iter().any(shared) {
        return None;
    }
    let attempt = || -> std::io::Result<()> {
        let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if bind.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&bind.into())?;
        socket.listen(1)
    };
    let error = attempt().err()?;
    Some(match error.kind() {
        ErrorKind::AddrInUse => format!("{bind} is in use by another process"),
        ErrorKind::PermissionDenied => {
            format!("this user may not listen on {bind}; ports below 1024 need root")
        }
        ErrorKind::AddrNotAvailable => format!("{bind} is no address of this machine"),
        _ => format!("cannot listen on {bind}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use keel_route::snapshot::Listener;

    use super::*;

    #[test]
    fn what_is_taken_is_left_out() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_at = taken.local_addr().unwrap();
        let nowhere: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let at = |bind| Listener { bind, ..Listener::default() };
        let free = "127.0.0.1:0".parse().unwrap();
        let listeners = vec![at(taken_at), at(nowhere), at(free), at(free)];
        let snapshot = Snapshot { listeners, ..Snapshot::default() };
        let (left, failed) = without_failing(&snapshot, &BTreeSet::new());
        assert_eq!(left.listeners, [at(free)]);
        let reasons: Vec<&str> = failed.iter().map(|f| f.reason.as_str()).collect();
        assert_eq!(reasons[0], format!("{taken_at} is in use by another process"));
        assert!(reasons[1].contains("no address of this machine"), "{}", reasons[1]);
        assert!(reasons[2].contains("wanted twice"));
        let open = BTreeSet::from([taken_at]);
        let (left, _) = without_failing(&snapshot, &open);
        assert_eq!(left.listeners.len(), 2, "what is open stays");
        let any = SocketAddr::from(([0, 0, 0, 0], taken_at.port()));
        assert_eq!(problem(any, &open), None, "its own engine has it");
    }
}
