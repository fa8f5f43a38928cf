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
//!
//! Whoever keeps a proxy running asks it for copies of its sockets ([`copies`]) and [`give`]s them to the next one if it
//! dies ([`take`]): who connects in between waits and is not refused.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, Snapshot, ToProxy};

use crate::{Incumbent, connect, descriptors};

/// Each step takes at most this long.
pub const HANDOVER: Duration = Duration::from_secs(10);
/// Most listening sockets that are handed over.
const MAX_HANDED_SOCKETS: usize = 1 << 20;
/// Between two tries to take the place of a proxy that died while it was asked.
const PAUSE: Duration = Duration::from_millis(10);
/// Sockets in one message.
const BATCH: usize = 128;
/// Goes with every batch, as descriptors do not travel alone.
const MARK: u8 = b'S';

/// Listening sockets by address, in the order of the workers that have them.
pub type Sockets<S = OwnedFd> = BTreeMap<SocketAddr, Vec<S>>;

/// What a new proxy got from the old one.
#[derive(Debug)]
pub struct TakenOver {
    /// The old one.
    pub incumbent: Incumbent,
    /// Its state.
    pub snapshot: Snapshot,
    /// Its sockets.
    pub sockets: Sockets<TcpListener>,
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
    let (incumbent, snapshot, sockets) = ask_for(&mut stream, &ToProxy::TakeOver)?;
    Ok(Some(TakenOver { incumbent, snapshot, sockets: listeners(sockets), stream }))
}

/// Copies of the sockets of the proxy that serves `control_socket`, and its process id: at most `most` of them, one of each
/// address if not all. `None`: there is no proxy. Blocks.
///
/// # Errors
/// When it does not give them in time, or does not know how.
pub fn copies(control_socket: &Path, most: usize) -> io::Result<Option<(u32, Sockets)>> {
    let Some(mut stream) = connect(control_socket)? else { return Ok(None) };
    let (incumbent, _, sockets) = ask_for(&mut stream, &ToProxy::Lend { most })?;
    Ok(Some((incumbent.pid, sockets)))
}

/// What was given on `stream` with [`give`]. Blocks.
///
/// # Errors
/// When it does not come in time, or is not understood.
pub fn take(stream: &mut UnixStream) -> io::Result<(Snapshot, Sockets<TcpListener>)> {
    stream.set_read_timeout(Some(HANDOVER))?;
    let FromProxy::Place { snapshot, sockets } = read_frame(stream)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok((*snapshot, listeners(receive(stream, sockets)?)))
}

fn listeners(sockets: Sockets) -> Sockets<TcpListener> {
    let listening =
        |(bind, sockets): (_, Vec<_>)| (bind, sockets.into_iter().map(TcpListener::from).collect());
    sockets.into_iter().map(listening).collect()
}

/// Who is there, and the place that it gives when it is asked.
fn ask_for(
    stream: &mut UnixStream,
    question: &ToProxy,
) -> io::Result<(Incumbent, Snapshot, Sockets)> {
    stream.set_read_timeout(Some(HANDOVER))?;
    stream.set_write_timeout(Some(HANDOVER))?;
    let mut greeted = None;
    let (incumbent, snapshot, counts) = loop {
        match (read_frame(stream)?, &mut greeted) {
            (FromProxy::Place { snapshot, sockets }, Some(_)) => {
                break (greeted.take(), *snapshot, sockets);
            }
            (FromProxy::Hello { pid, version }, greeted) => {
                *greeted = Some(Incumbent { pid, version });
                stream.write_all(&encode(question).map_err(io::Error::other)?)?;
            }
            (other, _) => tracing::debug!(?other, "not what was asked for"),
        }
    };
    let Some(incumbent) = incumbent else { return Err(io::ErrorKind::InvalidData.into()) };
    Ok((incumbent, snapshot, receive(stream, counts)?))
}

/// So many sockets of each address.
fn receive(stream: &UnixStream, counts: Vec<(SocketAddr, usize)>) -> io::Result<Sockets> {
    let wanted = counts.iter().try_fold(0usize, |sum, (_, count)| sum.checked_add(*count));
    let Some(wanted) = wanted.filter(|wanted| *wanted <= MAX_HANDED_SOCKETS) else {
        return Err(io::Error::other("more sockets than anybody has"));
    };
    let mut received = Vec::with_capacity(wanted);
    while received.len() < wanted {
        let before = received.len();
        descriptors::receive(stream, &mut [0], &mut received)?;
        if received.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut received = received.into_iter();
    let shared_out = |(bind, count)| (bind, received.by_ref().take(count).collect());
    Ok(counts.into_iter().map(shared_out).collect())
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

/// Gives `sockets` away, after the frame that names them. Blocks, for a bounded time.
///
/// # Errors
/// When the other side does not take them.
pub fn give<S: AsFd>(
    stream: &UnixStream,
    snapshot: &Snapshot,
    sockets: &Sockets<S>,
) -> io::Result<()> {
    stream.set_write_timeout(Some(HANDOVER))?;
    let counts = sockets.iter().map(|(bind, sockets)| (*bind, sockets.len())).collect();
    let place = FromProxy::Place { snapshot: Box::new(snapshot.clone()), sockets: counts };
    (&mut &*stream).write_all(&encode(&place).map_err(io::Error::other)?)?;
    let all: Vec<BorrowedFd<'_>> = sockets.values().flatten().map(AsFd::as_fd).collect();
    for batch in all.chunks(BATCH) {
        descriptors::send(stream, &[MARK], batch)?;
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
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sockets: Sockets = (0..150)
            .map(|_| {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let clone = socket.try_clone().unwrap();
                (socket.local_addr().unwrap(), vec![socket.into(), clone.into()])
            })
            .collect();
        let (named, wanted) = (Snapshot::default(), sockets.keys().copied().collect::<Vec<_>>());
        let giving = std::thread::spawn(move || give(&ours, &named, &sockets));
        let (_, sockets) = take(&mut theirs).unwrap();
        giving.join().unwrap().unwrap();
        assert_eq!(sockets.keys().copied().collect::<Vec<_>>(), wanted);
        for (bind, pair) in sockets {
            let addresses = pair.iter().map(|socket| socket.local_addr().unwrap());
            assert_eq!(addresses.collect::<Vec<_>>(), [bind, bind]);
        }
    }

    #[test]
    fn what_is_promised_and_does_not_come_is_an_error() {
        let bind: SocketAddr = "127.0.0.1:80".parse().unwrap();
        for counts in [vec![(bind, 1)], vec![(bind, usize::MAX), (bind, 2)]] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            let place = FromProxy::Place { snapshot: Box::default(), sockets: counts };
            ours.write_all(&encode(&place).unwrap()).unwrap();
            drop(ours);
            assert!(take(&mut theirs).is_err());
        }
    }
}
