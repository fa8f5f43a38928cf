//! Opening listening sockets: one per worker, sharing the address by `SO_REUSEPORT`.
//!
//! All sockets are opened here, on the control thread, so that a failure is known before anything changes.
//! With `SO_REUSEADDR` and `SO_REUSEPORT` on all of them, `0.0.0.0:P` and `10.77.0.1:P` live side by side
//! and the system gives a connection to the more specific one. The price: another process of the same
//! user that does the same would silently share an address, so that listening elsewhere is looked for first.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use keel_route::snapshot::Listener;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::limits::BACKLOG;

/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";
/// A silent peer is asked for signs of life after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Sockets for each of `count` workers: those of the proxy before shared out, or new ones.
///
/// # Errors
/// The system's reason, in words for the user.
pub fn open(
    listener: &Listener,
    adopted: Vec<TcpListener>,
    taken: &Taken,
    count: usize,
) -> Result<Vec<Vec<TcpListener>>, String> {
    let bind = listener.bind;
    let mut shares: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
    if !adopted.is_empty() {
        for (n, socket) in adopted.into_iter().enumerate() {
            settle(&socket).map_err(|e| format!("cannot listen on {bind}: {e}"))?;
            shares[n % count].push(socket);
        }
        for share in shares.iter_mut().filter(|share| share.is_empty()) {
            share.push(socket(listener).map_err(|e| format!("cannot listen on {bind}: {e}"))?);
        }
        return Ok(shares);
    }
    if bind.port() == 0 {
        return Err("port 0 is not a port to listen on".into());
    }
    if taken.has(bind) {
        return Err(format!("{bind} is in use by another process"));
    }
    let opened = (0..count).map(|_| Ok(vec![socket(listener)?])).collect::<io::Result<_>>();
    opened.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => format!("{bind} is in use by another process"),
        io::ErrorKind::PermissionDenied => {
            format!("listening on {bind} is not permitted (ports below 1024 need root): {e}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is not an address of this machine", bind.ip())
        }
        _ => format!("cannot listen on {bind}: {e}"),
    })
}

/// Options that accepted connections inherit, and how many may wait: an engine before may have had it otherwise.
fn settle(adopted: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(adopted);
    inherited(&socket)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)
}

fn inherited(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))
}

fn socket(listener: &Listener) -> io::Result<TcpListener> {
    let bind = listener.bind;
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    inherited(&socket)?;
    if bind.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A virtual address may be listened on before it is made local to the machine.
    match bind {
        SocketAddr::V4(_) if !listener.published => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) if !listener.published => socket.set_freebind_v6(true)?,
        SocketAddr::V4(_) | SocketAddr::V6(_) => {}
    }
    socket.bind(&bind.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where somebody listened at one moment. Read once for many listeners.
#[derive(Debug, Default)]
pub struct Taken(OnceCell<HashSet<String>>);

impl Taken {
    /// Nobody listens, or nobody whom it matters to.
    pub fn by_nobody() -> Self {
        Self(OnceCell::from(HashSet::new()))
    }

    /// Whether somebody listens on exactly this address. Where that cannot be told, nobody does.
    fn has(&self, bind: SocketAddr) -> bool {
        let listed = self.0.get_or_init(|| {
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(File::open);
            tables.into_iter().flatten().flat_map(|file| listed(BufReader::new(file))).collect()
        });
        listed.contains(&as_listed(bind))
    }
}

/// The addresses that are listened on. The table begins with them; the rest, which may be long, is not read.
fn listed(table: impl BufRead) -> Vec<String> {
    let lines = table.lines().skip(1).map_while(Result::ok);
    lines
        .map_while(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, state) = (fields.next()?.to_owned(), fields.nth(1)?.to_owned());
            (state == LISTENING).then_some(local)
        })
        .collect()
}

/// Addresses are listed as 32-bit numbers in the machine's byte order, ports as plain numbers.
fn as_listed(bind: SocketAddr) -> String {
    let words = |octets: &[u8]| -> String {
        octets
            .chunks_exact(4)
            .map(|o| format!("{:08X}", u32::from_ne_bytes([o[0], o[1], o[2], o[3]])))
            .collect()
    };
    let address = match bind.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{address}:{:04X}", bind.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
            1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
            2: 0100007F:0051 0100007F:C0DE 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
        let all = listed(table.as_bytes());
        let listed = |bind: &str| all.contains(&as_listed(bind.parse().unwrap()));
        if cfg!(target_endian = "little") {
            assert!(listed("127.0.0.1:8080"));
        }
        assert!(listed("0.0.0.0:80"));
        assert!(!listed("127.0.0.1:80"), "another address");
        assert!(!listed("127.0.0.1:81"), "connected, not listening");
    }

    #[test]
    fn an_address_in_use_is_told_apart_from_our_own_kind_of_sharing() {
        let port =
            std::net::TcpListener::bind("127.41.0.1:0").unwrap().local_addr().unwrap().port();
        let listener = |bind: &str| Listener {
            bind: format!("{bind}:{port}").parse().unwrap(),
            protocol: keel_model::Protocol::Auto,
            cluster: "a/b:1".into(),
            published: true,
            ..Listener::default()
        };
        let first = open(&listener("127.41.0.1"), Vec::new(), &Taken::default(), 2).unwrap();
        assert_eq!(first.len(), 2);
        let again = open(&listener("127.41.0.1"), Vec::new(), &Taken::default(), 2).unwrap_err();
        assert!(again.ends_with("is in use by another process"), "{again}");
        let beside = open(&listener("0.0.0.0"), Vec::new(), &Taken::default(), 2).unwrap();
        drop(beside);
        let elsewhere = open(&listener("192.0.2.1"), Vec::new(), &Taken::default(), 1).unwrap_err();
        assert_eq!(elsewhere, "192.0.2.1 is not an address of this machine");
    }
}
