//! A connection to a client or an endpoint: plain TCP, or TLS on it.
//!
//! Everything takes `&self`, so that the two directions of a connection can be waited for by two futures of one
//! task. Reading and writing never wait; readiness is polled. What was written may still have to be flushed
//! (TLS keeps what the socket did not take): nobody waits for the peer before [`Conn::flushed`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection.
#[derive(Debug)]
pub enum Conn {
    /// In clear.
    Tcp(TcpStream),
}

impl Conn {
    /// The socket underneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
        }
    }

    /// The socket, if bytes pass as the program sent them, so that the system can move them by itself.
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
        }
    }

    /// Our own address.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    /// Ready when a read would find something, or the end.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
        }
    }

    /// Ready when a write would take something.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write_ready(cx),
        }
    }

    /// Reads what there is. `WouldBlock`, mostly without a system call, if there is nothing.
    pub fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => read_tcp(tcp, room),
        }
    }

    /// Writes what the connection takes of `first`, then `second`. `WouldBlock` if it takes nothing.
    pub fn try_write(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => write_tcp(tcp, first, second),
        }
    }

    /// Whether everything that was taken has gone to the system.
    pub fn flushed(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
        }
    }

    /// Ready when [`Conn::flushed`].
    pub fn poll_flush(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
        }
    }

    /// Tells the peer that nothing more comes. A peer that is gone is no error.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => shutdown_tcp(tcp),
        }
    }

    /// Makes the coming close a reset, so that the peer does not take a cut-off stream for a whole one.
    pub fn reset_on_close(&self) {
        // Failing means that the connection is gone already.
        let _ = sockopt::set_socket_linger(self.tcp().as_fd(), Some(Duration::ZERO));
    }

    /// Whether a connection that should be silent still is: neither closed nor sending. Costs no system call
    /// unless something is known to have happened.
    pub fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// As [`Conn::is_quiet`], asking the system.
    pub fn is_quiet_now(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(self.tcp().as_fd(), &mut [0u8; 1][..], flags);
        self.is_quiet() && matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

impl From<TcpStream> for Conn {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

/// A short read tells that there is no more for now: readiness is then forgotten without asking the system
/// again, so that a request costs one read and one write per side. This is safe because readiness is
/// edge-triggered and only noted between two polls: whatever arrives later makes a new event.
pub fn read_tcp(tcp: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let read = tcp.try_io(Interest::READABLE, || {
        let n = rustix::io::read(tcp, &mut *room)?;
        if n > 0 && n < room.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(read, Ok)
}

/// As [`read_tcp`], the other way.
pub fn write_tcp(tcp: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let mut short = None;
    let flags = SendFlags::NOSIGNAL;
    let written = tcp.try_io(Interest::WRITABLE, || {
        let n = if first.is_empty() || second.is_empty() {
            let one = if first.is_empty() { second } else { first };
            rustix::net::send(tcp, one, flags)?
        } else {
            let both = [IoSlice::new(first), IoSlice::new(second)];
            rustix::net::sendmsg(tcp, &both, &mut SendAncillaryBuffer::default(), flags)?
        };
        if n > 0 && n < first.len() + second.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(written, Ok)
}

fn shutdown_tcp(tcp: &TcpStream) -> io::Result<()> {
    match rustix::net::shutdown(tcp.as_fd(), Shutdown::Write) {
        // It has closed already.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// For libraries that want a stream of their own (HTTP/2).
impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(self.poll_read_ready(cx))?;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_two(cx, buf, &[])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = bufs.iter().filter(|b| !b.is_empty());
        let first = filled.next().map_or(&[][..], |b| b);
        let second = filled.next().map_or(&[][..], |b| b);
        self.poll_write_two(cx, first, second)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(&self, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Self::poll_flush(&self, cx))?;
        Poll::Ready(self.shutdown_write())
    }
}

impl Conn {
    fn poll_write_two(
        &self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(first, second) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(self.poll_write_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }
}
