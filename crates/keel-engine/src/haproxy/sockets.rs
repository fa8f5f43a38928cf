//! Listening sockets on their way into HAProxy and out of it, so that nobody who is connecting is turned away.
//!
//! HAProxy hands them to its own successor: asked `_getsocks` on a socket with `expose-fd listeners`, it sends how many
//! there are and then the sockets themselves, in batches that are acknowledged. The successor asks at the path of its
//! option `-x`. We do the one to take sockets from it, and are at that path to give it some.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use keel_link::descriptors;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixListener;

use crate::limits::{ANSWER, MAX_SOCKETS};

const QUESTION: &[u8] = b"_getsocks\n";
/// Sockets in one batch: `MAX_SEND_FD`.
const BATCH: usize = 252;
/// What is said of each: no namespace, no interface, and four bytes that mean nothing.
const UNNAMED: [u8; 6] = [0; 6];
/// Most bytes that are said of a batch.
const SAID: usize = BATCH * (1 + 4096 + 1 + 16 + 4);
/// Bytes of a number.
const NUMBER: usize = size_of::<i32>();

/// The sockets on which the HAProxy at `path` listens for connections of TCP. Blocks.
///
/// # Errors
/// When it does not give them, in time or at all.
pub fn ask(path: &Path) -> io::Result<BTreeMap<SocketAddr, Vec<OwnedFd>>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(QUESTION)?;
    let mut number = [0; NUMBER];
    stream.read_exact(&mut number)?;
    let wanted = usize::try_from(i32::from_ne_bytes(number)).unwrap_or(usize::MAX);
    if wanted > MAX_SOCKETS {
        return Err(io::Error::other(format!("{wanted} sockets are too many")));
    }
    let mut received: Vec<OwnedFd> = Vec::new();
    let mut said = vec![0; SAID];
    while received.len() < wanted {
        let before = received.len();
        descriptors::receive(&stream, &mut said, &mut received)?;
        if received.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Any number acknowledges. After the last batch HAProxy may not wait for it.
        let acknowledged = stream.write_all(&number);
        if received.len() < wanted {
            acknowledged?;
        }
    }
    let mut sockets = BTreeMap::<_, Vec<_>>::new();
    for socket in received {
        // There are sockets of Unix among them.
        let address = SockRef::from(&socket).local_addr()?.as_socket();
        if let Some(address) = address {
            sockets.entry(address).or_default().push(socket);
        }
    }
    Ok(sockets)
}

/// Sockets for a HAProxy that starts, at a path for its option `-x`. Those that it has no use for are closed with this.
pub struct Offer {
    listener: UnixListener,
    path: PathBuf,
    sockets: Vec<TcpListener>,
}

impl Offer {
    /// # Errors
    /// When there can be no socket at `path`.
    pub fn new(path: PathBuf, sockets: Vec<TcpListener>) -> io::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for socket in &sockets {
            // HAProxy takes one that is free to be elsewhere for something that it did not ask for. It is bound already.
            let socket = SockRef::from(socket);
            if socket.local_addr()?.is_ipv6() {
                socket.set_freebind_v6(false)?;
            } else {
                socket.set_freebind_v4(false)?;
            }
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self { listener, path, sockets })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives them to whoever asks, until this is dropped.
    pub async fn serve(&self) {
        loop {
            if let Err(error) = self.serve_once().await {
                tracing::warn!(%error, "haproxy did not take the listening sockets");
            }
        }
    }

    async fn serve_once(&self) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut question = [0; QUESTION.len()];
        stream.read_exact(&mut question).await?;
        if question != QUESTION {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let total = i32::try_from(self.sockets.len()).map_err(io::Error::other)?;
        stream.write_all(&total.to_ne_bytes()).await?;
        for batch in self.sockets.chunks(BATCH) {
            let sockets: Vec<BorrowedFd<'_>> = batch.iter().map(|socket| socket.as_fd()).collect();
            let said = UNNAMED.repeat(sockets.len());
            let send = || descriptors::send(&stream, &said, &sockets);
            // What is said of a batch fits into the socket's buffer: it is sent whole or not at all.
            if stream.async_io(Interest::WRITABLE, send).await? != said.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
            stream.read_exact(&mut [0; NUMBER]).await?;
        }
        Ok(())
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_offered_can_be_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let sockets: Vec<_> = (0..300).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut wanted: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        wanted.sort();
        let offer = Offer::new(directory.path().join("offer"), sockets).unwrap();
        let path = offer.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&path));
        let got = tokio::select! {
            () = offer.serve() => unreachable!("it serves until it is dropped"),
            got = asking => got.unwrap().unwrap(),
        };
        assert_eq!(got.keys().copied().collect::<Vec<_>>(), wanted);
        let path = offer.path().to_owned();
        drop(offer);
        assert!(ask(&path).is_err());
    }

    #[test]
    fn one_that_gives_nothing_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        for answer in
            [&b""[..], b"\x01\0\0\0", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"Unknown command"]
        {
            let _ = std::fs::remove_file(&path);
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let answering = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; QUESTION.len()]).unwrap();
                stream.write_all(answer).unwrap();
            });
            assert!(ask(&path).is_err(), "{answer:?}");
            answering.join().unwrap();
        }
    }
}
