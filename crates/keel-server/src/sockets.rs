//! Who listens where on this machine, read from the kernel's tables.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";
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
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(3) != Some(&LISTEN) {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = fields.get(9)?.parse().ok()?;
    Some(ListeningSocket { address: SocketAddr::new(parse_address(address)?, port), inode })
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
