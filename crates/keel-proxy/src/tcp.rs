//! A connection of TCP of which the runtime hears only when it has to be waited for.
//!
//! To be told when a socket is ready costs two system calls for each connection, and memory. A client that connects for
//! one request has mostly sent it when it is accepted, and takes the answer at once: such a connection needs no waiting.

use std::cell::OnceCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, acceptfrom_with,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// A client that says nothing is accepted after this, in seconds: what HAProxy's `defer-accept` takes.
const SILENCE: libc::c_int = 1;

/// A connection.
#[derive(Debug)]
pub struct Tcp {
    /// How it is waited for, once it has been. Fields are dropped in their order: this one before the socket.
    waiter: OnceCell<AsyncFd<RawFd>>,
    socket: TcpStream,
}

impl Tcp {
    /// Connects to `address`.
    ///
    /// # Errors
    /// The system's.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(error);
            }
            _ => {}
        }
        let tcp = Self { waiter: OnceCell::new(), socket: socket.into() };
        poll_fn(|cx| tcp.poll_write_ready(cx)).await?;
        match tcp.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(tcp),
        }
    }

    /// Whether nobody has had to wait for it yet.
    pub fn is_fresh(&self) -> bool {
        self.waiter.get().is_none()
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn waiter(&self) -> io::Result<&AsyncFd<RawFd>> {
        if let Some(waiter) = self.waiter.get() {
            return Ok(waiter);
        }
        // SAFETY: the socket is open for as long as it is waited for: it is closed after the waiter is gone.
        #[allow(unsafe_code, reason = "the runtime cannot know that the descriptor stays open")]
        let waiter = unsafe { AsyncFd::register(self.socket.as_raw_fd()) }?;
        Ok(self.waiter.get_or_init(|| waiter))
    }

    /// Ready when a read would find something, or the end.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = ready!(self.waiter()?.poll_read_ready(cx));
        Poll::Ready(ready.map(|_| ()))
    }

    /// Ready when a write would take something.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = ready!(self.waiter()?.poll_write_ready(cx));
        Poll::Ready(ready.map(|_| ()))
    }

    /// Waits for one of these to hold; which do.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.waiter()?.ready(interest).await.map(|guard| guard.ready())
    }

    /// Does something that may say `WouldBlock`, unless it is known that it would.
    ///
    /// # Errors
    /// Those of `act`, and `WouldBlock`.
    pub fn try_io<T>(
        &self,
        interest: Interest,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self.waiter.get() {
            Some(waiter) => waiter.try_io(interest, |_| act()),
            None => act(),
        }
    }

    /// Reads what there is.
    ///
    /// A short read tells that there is no more for now: readiness is then forgotten without asking the system
    /// again, so that a request costs one read and one write per side. This is safe because readiness is
    /// edge-triggered and only noted between two polls: whatever arrives later makes a new event.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing.
    pub fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut short = None;
        let read = self.try_io(Interest::READABLE, || {
            // Not `read`: the way through the file system's layer costs more.
            let (n, _) = rustix::net::recv(&self.socket, &mut *room, RecvFlags::empty())?;
            if n > 0 && n < room.len() {
                short = Some(n);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(n)
        });
        short.map_or(read, Ok)
    }

    /// Writes what it takes of `first`, then `second`. As [`Tcp::read`], the other way.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing.
    pub fn write(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        let mut short = None;
        let flags = SendFlags::NOSIGNAL;
        let written = self.try_io(Interest::WRITABLE, || {
            let n = if first.is_empty() || second.is_empty() {
                let one = if first.is_empty() { second } else { first };
                rustix::net::send(&self.socket, one, flags)?
            } else {
                let both = [IoSlice::new(first), IoSlice::new(second)];
                let mut nothing = SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.socket, &both, &mut nothing, flags)?
            };
            if n > 0 && n < first.len() + second.len() {
                short = Some(n);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(n)
        });
        short.map_or(written, Ok)
    }

    /// Tells the peer that nothing more comes. One that is gone is no error.
    ///
    /// # Errors
    /// The system's.
    pub fn shutdown(&self) -> io::Result<()> {
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            // It has closed already.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listening(AsyncFd<TcpListener>);

impl Listening {
    /// Listens on a socket that does not block.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        // SAFETY: it owns the socket, which is open until it is dropped.
        #[allow(unsafe_code, reason = "the runtime cannot know that the descriptor stays open")]
        let waiter = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self(waiter))
    }

    /// Whether a connection waits in the system until its client has said something, at most [`SILENCE`]. Where clients
    /// speak first that saves to look, in vain, at one that has just come. Failing means that none waits.
    pub fn defer(&self, defers: bool) {
        let seconds: libc::c_int = if defers { SILENCE } else { 0 };
        let value = std::ptr::from_ref(&seconds).cast();
        let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap_or_default();
        let fd = self.0.as_raw_fd();
        // SAFETY: the socket is open, and the system reads the `size` bytes at `value`.
        #[allow(unsafe_code, reason = "no library has this option")]
        let _ =
            unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, size) };
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's: descriptors may have run out, or the connection may be gone already.
    pub async fn accept(&self) -> io::Result<(Tcp, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn accept(listener: &TcpListener) -> io::Result<(Tcp, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let peer = peer.ok_or_else(|| io::Error::other("a client without an address"))?;
    Ok((Tcp { waiter: OnceCell::new(), socket: socket.into() }, peer))
}

#[cfg(test)]
impl From<tokio::net::TcpStream> for Tcp {
    fn from(stream: tokio::net::TcpStream) -> Self {
        Self { waiter: OnceCell::new(), socket: stream.into_std().unwrap() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;

    use super::*;

    /// A client, and its connection as it was accepted.
    async fn accepted() -> (TcpStream, Tcp) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let (tcp, peer) = Listening::new(socket).unwrap().accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        (client, tcp)
    }

    #[tokio::test]
    async fn what_is_there_is_read_and_answered_without_waiting() {
        let (mut client, tcp) = accepted().await;
        let mut room = [0; 10];
        assert_eq!(tcp.read(&mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"question").unwrap();
        assert_eq!(tcp.read(&mut room).unwrap(), 8);
        assert_eq!(tcp.write(b"ans", b"wer").unwrap(), 6);
        assert!(tcp.is_fresh());
        drop(tcp);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn what_came_before_anybody_waited_is_not_missed() {
        let (mut client, tcp) = accepted().await;
        client.write_all(b"question").unwrap();
        poll_fn(|cx| tcp.poll_read_ready(cx)).await.unwrap();
        assert!(!tcp.is_fresh());
        let mut room = [0; 10];
        assert_eq!(tcp.read(&mut room).unwrap(), 8);
        client.shutdown(Shutdown::Write).unwrap();
        poll_fn(|cx| tcp.poll_read_ready(cx)).await.unwrap();
        assert_eq!(tcp.read(&mut room).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_says_so() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Tcp::connect(nobody).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
