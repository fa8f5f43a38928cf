//! Asking the kernel in which cgroup a local process opened its end of a connection (sock_diag(7)).
//!
//! One fixed question and one fixed answer: libraries for this protocol know neither the attribute that is wanted nor
//! how to ask without decoding all others. The kernel answers before the question's system call returns, so nobody
//! ever waits. Formats: linux/netlink.h, linux/inet_diag.h.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// `struct inet_diag_msg`, before the attributes.
const MESSAGE: usize = 72;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const IS_REQUEST: u16 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `INET_DIAG_CGROUP_ID`, since Linux 5.9.
const CGROUP_ID: u16 = 21;
/// Longer than any answer about one socket.
const ANSWER: usize = 2048;
/// Answers to earlier questions that are passed over.
const STALE: usize = 4;

/// A socket for questions.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl SockDiag {
    /// Needs no rights.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self { socket, sequence: Cell::default() })
    }

    /// The id of the cgroup (version 2) of the process that opened the socket at `own`, which is connected to `peer`.
    /// `None` when there is no such socket in this network, or the kernel is too old to say.
    pub fn cgroup(&self, own: SocketAddr, peer: SocketAddr) -> Option<u64> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let question = question(own, peer, sequence)?;
        rustix::net::send(&self.socket, &question, SendFlags::empty()).ok()?;
        for _ in 0..STALE {
            let mut answer = [0; ANSWER];
            let (_, n) =
                rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT).ok()?;
            if let Some(found) = cgroup_in(answer.get(..n)?, sequence) {
                return found;
            }
        }
        None
    }
}

/// `None` for addresses of two families.
fn question(own: SocketAddr, peer: SocketAddr, sequence: u32) -> Option<[u8; REQUEST]> {
    let (family, addresses) = match (own.ip().to_canonical(), peer.ip().to_canonical()) {
        (IpAddr::V4(own), IpAddr::V4(peer)) => {
            let wide = |ip: [u8; 4]| {
                let mut wide = [0; 16];
                wide[..4].copy_from_slice(&ip);
                wide
            };
            (AF_INET, [wide(own.octets()), wide(peer.octets())])
        }
        (IpAddr::V6(own), IpAddr::V6(peer)) => (AF_INET6, [own.octets(), peer.octets()]),
        _ => return None,
    };
    let mut question = [0; REQUEST];
    let mut rest = &mut question[..];
    let mut put = |bytes: &[u8]| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        rest = tail;
    };
    put(&u32::try_from(REQUEST).ok()?.to_ne_bytes());
    put(&BY_FAMILY.to_ne_bytes());
    put(&IS_REQUEST.to_ne_bytes());
    put(&sequence.to_ne_bytes());
    put(&[0; 4]);
    put(&[family, TCP, 0, 0]);
    // Every state.
    put(&u32::MAX.to_ne_bytes());
    put(&own.port().to_be_bytes());
    put(&peer.port().to_be_bytes());
    addresses.iter().for_each(|address| put(address));
    // Any interface, any cookie.
    put(&[0; 4]);
    put(&[0xFF; 8]);
    Some(question)
}

/// What an answer says; `None` if it is to another question.
fn cgroup_in(answer: &[u8], sequence: u32) -> Option<Option<u64>> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if word(8)? != sequence {
        return None;
    }
    // Anything else is a refusal: there is no such socket.
    if half(4)? != BY_FAMILY {
        return Some(None);
    }
    let end = answer.len().min(usize::try_from(word(0)?).ok()?);
    let mut at = HEADER + MESSAGE;
    while at + 4 <= end {
        let length = usize::from(half(at)?);
        if half(at + 2)? == CGROUP_ID && length == 12 {
            let id = answer.get(at + 4..at + 12)?;
            return Some(id.try_into().ok().map(u64::from_ne_bytes));
        }
        at += length.max(4).next_multiple_of(4);
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    /// The id of the cgroup that this process is in, as the file system tells it.
    fn own_cgroup() -> Option<u64> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let path = std::path::Path::new(mount).join(group);
        std::fs::metadata(path).ok().map(|metadata| metadata.ino())
    }

    fn connected(bind: SocketAddr) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn the_kernel_tells_whose_a_connection_is() {
        let Some(own) = own_cgroup() else { return };
        let diag = SockDiag::open().unwrap();
        for ip in [IpAddr::from([127, 77, 0, 9]), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let (client, _server) = connected((ip, 0).into());
            let addresses = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert_eq!(diag.cgroup(addresses.0, addresses.1), Some(own), "{ip}");
            // There is nobody the other way round but the listener's end of it: the same process here.
            assert_eq!(diag.cgroup(addresses.1, addresses.0), Some(own), "{ip}");
            drop(client);
            let nobody = SocketAddr::new(ip, 1);
            assert_eq!(diag.cgroup(nobody, addresses.1), None, "{ip}");
        }
        let mixed = ("[::1]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        assert_eq!(diag.cgroup(mixed.0, mixed.1), None);
    }

    #[test]
    fn answers_to_other_questions_are_passed_over() {
        let mut answer = vec![0; HEADER + MESSAGE];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[8..12].copy_from_slice(&7u32.to_ne_bytes());
        answer.extend([5, 0, 8, 0, 1, 0, 0, 0]);
        answer.extend([12, 0, 21, 0, 42, 0, 0, 0, 0, 0, 0, 0]);
        let length = u32::try_from(answer.len()).unwrap();
        answer[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(cgroup_in(&answer, 7), Some(Some(42)));
        assert_eq!(cgroup_in(&answer, 8), None);
        assert_eq!(cgroup_in(&answer[..answer.len() - 1], 7), None, "cut off");
        answer[4] = 2;
        assert_eq!(cgroup_in(&answer, 7), Some(None), "an error");
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(answer in prop::collection::vec(any::<u8>(), 0..300), length in any::<u32>()) {
            let mut answer = answer;
            if answer.len() >= HEADER {
                answer[..4].copy_from_slice(&length.to_ne_bytes());
                answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
                answer[8..12].copy_from_slice(&1u32.to_ne_bytes());
            }
            cgroup_in(&answer, 1);
        }
    }
}
