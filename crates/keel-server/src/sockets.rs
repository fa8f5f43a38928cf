//! Who listens where on this machine, read from the kernel's tables.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";
/// State of a connection in both directions.
const ESTABLISHED: &str = "01";
/// Generations of processes that are looked through for an ancestor.
const MAX_GENERATIONS: usize = 16;

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Where.
    pub address: SocketAddr,
    inode: u64,
}

/// All TCP sockets that listen in this network namespace. Empty where the kernel does not tell.
pub fn listening() -> Vec<ListeningSocket> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| table.lines().filter_map(parse).collect::<Vec<_>>())
        .collect()
}

fn parse(line: &str) -> Option<ListeningSocket> {
    let socket = parse_socket(line).filter(|socket| socket.state == LISTEN)?;
    Some(ListeningSocket { address: socket.local, inode: socket.inode })
}

/// A line of one of the kernel's tables.
struct Socket<'l> {
    local: SocketAddr,
    remote: SocketAddr,
    state: &'l str,
    inode: u64,
}

fn parse_socket(line: &str) -> Option<Socket<'_>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |text: &str| {
        let (address, port) = text.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(SocketAddr::new(parse_address(address)?, port))
    };
    Some(Socket {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        state: fields.get(3)?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// The tables of the network namespace that a process is in.
fn tables(pid: &str) -> impl Iterator<Item = String> {
    let paths = [format!("/proc/{pid}/net/tcp"), format!("/proc/{pid}/net/tcp6")];
    paths.into_iter().filter_map(|path| fs::read_to_string(path).ok())
}

/// The TCP ports at which others reach what listens in the network namespace of a process.
pub fn served_by(pid: u32) -> BTreeSet<u16> {
    let pid = pid.to_string();
    tables(&pid).flat_map(|table| served(&table)).collect()
}

fn served(table: &str) -> BTreeSet<u16> {
    let sockets = table.lines().filter_map(parse).map(|socket| socket.address);
    let reached = sockets.filter(|address| !address.ip().to_canonical().is_loopback());
    reached.map(|address| address.port()).collect()
}

/// Whether anybody but our proxy and our `server`, which probes, is connected to one of these ports in the network namespace
/// of a process.
pub fn has_strangers(pid: u32, ports: &BTreeSet<u16>, own: &Own, server: u32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let pid = pid.to_string();
    let shared = namespace(&pid) == namespace("self");
    let peers = tables(&pid).flat_map(|table| peers(&table, ports));
    // What a container asks itself ends with it.
    let peers: BTreeSet<_> = peers.filter(|peer| shared || !peer.ip().is_loopback()).collect();
    if peers.is_empty() {
        return false;
    }
    // The other ends that are on this machine.
    let mut ends = HashMap::new();
    for table in tables("self") {
        let sockets = table.lines().filter_map(parse_socket);
        ends.extend(sockets.map(|socket| (canonical(socket.local), socket.inode)));
    }
    let inodes = peers.iter().filter_map(|peer| ends.get(peer).copied());
    let owners = owners(&inodes.collect());
    let is_own = |peer: &SocketAddr| {
        let owner = ends.get(peer).and_then(|inode| owners.get(inode));
        owner.is_some_and(|(pid, _)| {
            *pid == server || own.proxy.is_some_and(|proxy| descends(*pid, proxy))
        })
    };
    peers.iter().any(|peer| !is_own(peer))
}

fn peers(table: &str, ports: &BTreeSet<u16>) -> Vec<SocketAddr> {
    let sockets = table.lines().filter_map(parse_socket);
    let connected =
        sockets.filter(|it| it.state == ESTABLISHED && ports.contains(&it.local.port()));
    connected.map(|socket| canonical(socket.remote)).collect()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The kernel writes addresses as 32-bit words in host order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Addresses at which something listens.
pub fn addresses_in_use() -> BTreeSet<IpAddr> {
    listening().into_iter().map(|socket| socket.address.ip()).collect()
}

/// What is known to be our own.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// The proxy. What it started is ours too: an engine that it drives has the sockets in its workers.
    pub proxy: Option<u32>,
    /// Where the proxy says that it listens. An engine outlives its driver, and is then nobody's child.
    pub open: BTreeSet<SocketAddr>,
}

impl Own {
    fn has(&self, socket: &ListeningSocket, owner: Option<u32>) -> bool {
        self.open.contains(&socket.address)
            || self.proxy.is_some_and(|proxy| owner.is_some_and(|pid| descends(pid, proxy)))
    }
}

/// Whether a process is `ancestor`, or was started by it or by what it started.
fn descends(pid: u32, ancestor: u32) -> bool {
    std::iter::successors(Some(pid), |pid| parent(*pid))
        .take(MAX_GENERATIONS)
        .any(|pid| pid == ancestor)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the second field may have spaces and brackets in it.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Who else than ourselves already listens so that `wanted` could not be opened; for people. Virtual addresses that our
/// proxy serves do not count.
pub fn holder(wanted: SocketAddr, own: &Own) -> Option<String> {
    let rivals: Vec<ListeningSocket> = listening()
        .into_iter()
        .filter(|socket| socket.address.port() == wanted.port())
        .filter(|socket| overlap(socket.address.ip(), wanted.ip()))
        .collect();
    if rivals.is_empty() {
        return None;
    }
    let owners = owners(&rivals.iter().map(|socket| socket.inode).collect());
    let owner = |socket: &ListeningSocket| owners.get(&socket.inode);
    let rival =
        rivals.iter().find(|socket| !own.has(socket, owner(socket).map(|(pid, _)| *pid)))?;
    let name = owner(rival).map(|(pid, name)| format!("{name} (process {pid})"));
    let name = name.unwrap_or_else(|| "another process".to_owned());
    Some(format!("{name} at {}", rival.address))
}

fn overlap(held: IpAddr, wanted: IpAddr) -> bool {
    held == wanted || held.is_unspecified() || wanted.is_unspecified()
}

/// Process and program by socket inode, as far as our rights reach.
fn owners(inodes: &BTreeSet<u64>) -> HashMap<u64, (u32, String)> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for link in links.filter_map(|entry| fs::read_link(entry.path()).ok()) {
            let inode = link
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                found.insert(inode, (pid, name.trim().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_is_found_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let holder_text = holder(address, &Own::default()).expect("it listens");
        assert!(holder_text.contains(&std::process::id().to_string()), "{holder_text}");
        let own = Own { proxy: Some(std::process::id()), ..Own::default() };
        assert_eq!(holder(address, &own), None);
        let open = Own { open: BTreeSet::from([address]), ..Own::default() };
        assert_eq!(holder(address, &open), None);
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        assert!(holder(any, &Own::default()).is_some());
        assert!(addresses_in_use().contains(&address.ip()));
    }

    #[test]
    fn tables_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1\n\
            1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12 1\n\
            2: 020012AC:1F40 010012AC:A000 01 00000000:00000000 00:00000000 00000000 0 0 13 1\n\
            3: 020012AC:A001 030012AC:1F40 01 00000000:00000000 00:00000000 00000000 0 0 14 1\n";
        assert_eq!(served(table), BTreeSet::from([8000]));
        let peers = peers(table, &BTreeSet::from([8000]));
        assert_eq!(peers, [SocketAddr::from(([172, 18, 0, 1], 0xA000))]);
    }

    #[test]
    fn a_connection_of_our_own_is_no_strangers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ports = BTreeSet::from([address.port()]);
        let pid = std::process::id();
        assert!(!has_strangers(pid, &ports, &Own::default(), 0));
        let _client = std::net::TcpStream::connect(address).unwrap();
        let _server = listener.accept().unwrap();
        assert!(has_strangers(pid, &ports, &Own::default(), 0));
        let own = Own { proxy: Some(pid), ..Own::default() };
        // The kernel may leave out a line when others open and close connections meanwhile, many of them for seconds.
        let finally =
            |own: &Own, server| (0..200).any(|_| !has_strangers(pid, &ports, own, server));
        assert!(finally(&own, 0));
        assert!(finally(&Own::default(), pid));
    }

    #[test]
    fn what_a_process_started_is_its_own() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descends(own, own) && descends(child.id(), own));
        assert!(!descends(own, child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn six_byte_order_is_that_of_the_kernel() {
        assert_eq!(
            parse_address("00000000000000000000000001000000"),
            Some(IpAddr::V6(Ipv6Addr::LOCALHOST))
        );
        assert_eq!(parse_address("0100007F"), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
