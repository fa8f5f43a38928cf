//! How a new proxy takes the place of a running one without a connection being refused or cut.
//!
//! The new one connects to the control socket of the old one and says [`ToProxy::TakeOver`]. It gets the state in
//! force and the listening sockets themselves (`SCM_RIGHTS`), so that connections waiting in them are lost to
//! nobody. From that moment the old one acknowledges nothing to the server. When the new one accepts, it says
//! [`ToProxy::Retire`]: the old one accepts no more, gives the control socket up and ends when its connections
//! have. Until then the new one is its server: changes go to both, and what is in flight is added up, so that no
//! instance is stopped under a request of the old proxy.
//!
//! If either dies on the way, the other goes on: the old one as before, the new one by what it has, or by the state in
//! the file. The same if the new one hangs. An old one that hangs when it has given the sockets away is killed: it could
//! come back as a second proxy, and as long as it has the control socket nobody can tell the new one anything.
//!
//! One that drives an engine gives the engine's sockets. Those of an engine that gives none are missing, and free only
//! when it has retired.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, Snapshot, ToProxy};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::{Incumbent, connect};

/// Each step takes at most this long.
pub const HANDOVER: Duration = Duration::from_secs(10);
/// Most listening sockets that are handed over.
const MAX_HANDED_SOCKETS: usize = 1 << 20;
/// Between two tries to take the place of a proxy that died while it was asked.
const PAUSE: Duration = Duration::from_millis(10);
/// Descriptors in one message; the system allows 253.
const BATCH: usize = 128;
/// Goes with every batch, as descriptors do not travel alone.
const MARK: u8 = b'S';

/// What a new proxy got from the old one.
#[derive(Debug)]
pub struct TakenOver {
    /// The old one.
    pub incumbent: Incumbent,
    /// Its state.
    pub snapshot: Snapshot,
    /// By address, in the order of the old one's workers.
    pub sockets: BTreeMap<SocketAddr, Vec<TcpListener>>,
    /// To the old one.
    pub stream: UnixStream,
}

/// Asks the proxy that serves `control_socket` for its place. `None`: there is none, or it ended on the way. Blocks.
///
/// # Errors
/// When it does not give it in time, or not in the form that is understood.
pub fn take_over(control_socket: &Path) -> io::Result<Option<TakenOver>> {
    let until = Instant::now() + HANDOVER;
    loop {
        match ask(control_socket) {
            // It died, or another one is about to be in its place.
            Err(error) if is_end(&error) && Instant::now() < until => {
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Asks once.
fn ask(control_socket: &Path) -> io::Result<Option<TakenOver>> {
    let Some(mut stream) = connect(control_socket)? else { return Ok(None) };
    stream.set_read_timeout(Some(HANDOVER))?;
    stream.set_write_timeout(Some(HANDOVER))?;
    let mut greeted = None;
    let (incumbent, snapshot, counts) = loop {
        match (read_frame(&mut stream)?, &mut greeted) {
            (FromProxy::Place { snapshot, sockets }, Some(_)) => {
                break (greeted.take(), *snapshot, sockets);
            }
            (FromProxy::Hello { pid, version }, greeted) => {
                *greeted = Some(Incumbent { pid, version });
                stream.write_all(&encode(&ToProxy::TakeOver).map_err(io::Error::other)?)?;
            }
            (other, _) => tracing::debug!(?other, "not what was asked for"),
        }
    };
    let Some(incumbent) = incumbent else { return Err(io::ErrorKind::InvalidData.into()) };
    let wanted: usize = counts.iter().map(|(_, count)| count).sum();
    if wanted > MAX_HANDED_SOCKETS {
        return Err(io::Error::other(format!("{wanted} sockets are too many")));
    }
    let mut received = Vec::with_capacity(wanted);
    while received.len() < wanted {
        let before = received.len();
        receive(&stream, &mut received)?;
        if received.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut received = received.into_iter();
    let sockets = counts
        .into_iter()
        .map(|(bind, count)| (bind, received.by_ref().take(count).map(TcpListener::from).collect()))
        .collect();
    Ok(Some(TakenOver { incumbent, snapshot, sockets, stream }))
}

/// Whether the other side is gone.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Reads exactly one frame: descriptors that come behind it must not be read as bytes.
fn read_frame(stream: &mut UnixStream) -> io::Result<FromProxy> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut decoder = Decoder::default();
    decoder.push(&header);
    // Judges the length before anything of it is stored.
    decoder.decode::<FromProxy>().map_err(io::Error::other)?;
    let length = usize::try_from(u32::from_be_bytes(header)).map_err(io::Error::other)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    decoder.push(&body);
    decoder.decode().map_err(io::Error::other)?.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn receive(stream: &UnixStream, received: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut mark = [0];
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut mark)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "not all sockets arrived; are there too few file descriptors?",
        ));
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            received.extend(sockets);
        }
    }
    Ok(())
}

/// Gives `sockets` away, after the frame that names them. Blocks, for a bounded time.
///
/// # Errors
/// When the other side does not take them.
pub fn give(
    stream: &UnixStream,
    snapshot: &Snapshot,
    sockets: &BTreeMap<SocketAddr, Vec<OwnedFd>>,
) -> io::Result<()> {
    stream.set_write_timeout(Some(HANDOVER))?;
    let counts = sockets.iter().map(|(bind, sockets)| (*bind, sockets.len())).collect();
    let place = FromProxy::Place { snapshot: Box::new(snapshot.clone()), sockets: counts };
    (&mut &*stream).write_all(&encode(&place).map_err(io::Error::other)?)?;
    let all: Vec<BorrowedFd<'_>> = sockets.values().flatten().map(AsFd::as_fd).collect();
    for batch in all.chunks(BATCH) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(batch));
        sendmsg(stream, &[IoSlice::new(&[MARK])], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Tells the old proxy to retire and waits until it has given the control socket up. One that does not in time hangs,
/// and is killed.
///
/// # Errors
/// When it is dead, or not understood.
pub fn retire(stream: &mut UnixStream) -> io::Result<()> {
    let retired = told_to_retire(stream);
    if let Err(error) = &retired
        && matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
        && let Some(elder) = peer(stream)
    {
        tracing::warn!(%error, "the proxy before this one hangs and is killed");
        rustix::process::kill_process(elder, rustix::process::Signal::KILL)?;
    }
    retired
}

fn told_to_retire(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&encode(&ToProxy::Retire).map_err(io::Error::other)?)?;
    let until = Instant::now() + HANDOVER;
    while Instant::now() < until {
        if matches!(read_frame(stream)?, FromProxy::Retired) {
            stream.set_read_timeout(None)?;
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// The process at the other end, if it is another one.
fn peer(stream: &UnixStream) -> Option<rustix::process::Pid> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?.pid;
    (peer != rustix::process::getpid()).then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_arrive_in_order_however_many_there_are() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sockets: BTreeMap<_, Vec<_>> = (0..150)
            .map(|_| {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let clone = socket.try_clone().unwrap();
                (socket.local_addr().unwrap(), vec![socket.into(), clone.into()])
            })
            .collect();
        let (named, wanted) = (Snapshot::default(), sockets.keys().copied().collect::<Vec<_>>());
        let giving = std::thread::spawn(move || give(&ours, &named, &sockets));
        let mut theirs = theirs;
        let FromProxy::Place { sockets, .. } = read_frame(&mut theirs).unwrap() else {
            panic!("not a place")
        };
        assert_eq!(sockets.iter().map(|(bind, _)| *bind).collect::<Vec<_>>(), wanted);
        let mut received = Vec::new();
        while received.len() < 300 {
            receive(&theirs, &mut received).unwrap();
        }
        giving.join().unwrap().unwrap();
        for (pair, bind) in received.chunks(2).zip(wanted) {
            let socket = TcpListener::from(pair[1].try_clone().unwrap());
            assert_eq!(socket.local_addr().unwrap(), bind);
        }
    }
}
