//! A connection to a client or an endpoint: plain TCP, or TLS on it.
//!
//! Everything takes `&self`, so that the two directions of a connection can be waited for by two futures of one
//! task. Reading and writing never wait; readiness is polled. What was taken has gone to the system.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::deadline::Deadline;
use crate::limits::{SEGMENT, TICK};
use crate::tcp::Tcp;
use crate::tls::Tls;
use crate::waiting::Place;

/// A connection.
#[derive(Debug)]
pub struct Conn {
    io: Io,
    /// Its place among the connections that there may be.
    _place: Option<Place>,
}

#[derive(Debug)]
enum Io {
    Tcp(Tcp),
    Tls(Box<Tls>),
}

impl Conn {
    /// Whether nobody has had to wait for it yet: what it may have to say is to be asked for.
    pub fn is_fresh(&self) -> bool {
        self.tcp().is_fresh()
    }

    /// Gives the connection a place that is given back when it ends.
    pub fn with_place(self, place: Place) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// The socket underneath.
    pub fn tcp(&self) -> &Tcp {
        match &self.io {
            Io::Tcp(tcp) => tcp,
            Io::Tls(tls) => tls.tcp(),
        }
    }

    /// The socket, if bytes pass as the program sent them, so that the system can move them by itself.
    pub fn plain(&self) -> Option<&Tcp> {
        match &self.io {
            Io::Tcp(tcp) => Some(tcp),
            Io::Tls(_) => None,
        }
    }

    /// The socket of a connection in clear, to begin TLS on it.
    pub fn into_plain(self) -> Option<Tcp> {
        match self.io {
            Io::Tcp(tcp) => Some(tcp),
            Io::Tls(_) => None,
        }
    }

    /// Ready when a read would find something, or the end.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.io {
            Io::Tcp(tcp) => tcp.poll_read_ready(cx),
            Io::Tls(tls) => tls.poll_read_ready(cx),
        }
    }

    /// Ready when a write would take something.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.io {
            Io::Tcp(tcp) => tcp.poll_write_ready(cx),
            Io::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// Reads what there is. `WouldBlock`, mostly without a system call, if there is nothing.
    pub fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        match &self.io {
            Io::Tcp(tcp) => tcp.read(room),
            Io::Tls(tls) => tls.try_read(room),
        }
    }

    /// Writes what the connection takes of `first`, then `second`. `WouldBlock` if it takes nothing; then the same
    /// bytes must be written again.
    pub fn try_write(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        match &self.io {
            Io::Tcp(tcp) => tcp.write(first, second),
            Io::Tls(tls) => tls.try_write(first, second),
        }
    }

    /// Tells the peer that nothing more comes, which with TLS may have to wait until it takes what came before. A peer
    /// that is gone is no error.
    pub async fn end(&self, deadline: &Deadline) -> io::Result<()> {
        match &self.io {
            Io::Tcp(tcp) => tcp.shutdown(),
            Io::Tls(tls) => deadline.until(|cx| tls.poll_shutdown(cx)).await,
        }
    }

    /// Waits until the peer has broken the connection. Neither what it sends nor that it sends nothing more is that. No
    /// system call: the system says so by itself.
    pub async fn broken(&self) {
        // Failing means that the worker ends.
        let _ = self.tcp().ready(Interest::ERROR).await;
    }

    /// Waits until the peer sends nothing more: it has ended its side, or broken the connection.
    pub async fn ended(&self) {
        loop {
            let ready = self.tcp().ready(Interest::READABLE).await;
            if ready.is_ok_and(|ready| ready.is_read_closed()) {
                return;
            }
            // What it has sent is for later, and until that is read there is no news of more.
            tokio::time::sleep(TICK).await;
        }
    }

    /// A part of a message has come, `bytes` long: acknowledges it at once if its sender may wait for that. The system
    /// would do it 40 ms later, hoping for something to send along; it has to be told each time.
    pub fn got_part(&self, bytes: usize) {
        if (1..SEGMENT).contains(&bytes) {
            // Without it the rest comes later.
            let _ = sockopt::set_tcp_quickack(self.tcp().as_fd(), true);
        }
    }

    /// Makes the coming close a reset, so that the peer does not take a cut-off stream for a whole one.
    pub fn reset_on_close(&self) {
        // Failing means that the connection is gone already.
        let _ = sockopt::set_socket_linger(self.tcp().as_fd(), Some(Duration::ZERO));
    }

    /// Ends the connection in order: with TLS the peer is told that nothing is missing. False if it has to take something
    /// before that, and [`Conn::end`] is to be waited for.
    pub fn close(&self) -> bool {
        match &self.io {
            Io::Tcp(_) => true,
            Io::Tls(tls) => tls.close_now(),
        }
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

impl From<Tcp> for Conn {
    fn from(tcp: Tcp) -> Self {
        Self { io: Io::Tcp(tcp), _place: None }
    }
}

impl From<Tls> for Conn {
    fn from(tls: Tls) -> Self {
        Self { io: Io::Tls(Box::new(tls)), _place: None }
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
                    ready!(self.poll_read_ready(cx))?;
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
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tcp = match &mut self.io {
            Io::Tcp(tcp) => tcp,
            Io::Tls(tls) => return Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
        };
        let mut filled = bufs.iter().filter(|b| !b.is_empty());
        let first = filled.next().map_or(&[][..], |b| b);
        let second = filled.next().map_or(&[][..], |b| b);
        loop {
            match tcp.write(first, second) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(tcp.poll_write_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(_) => Poll::Ready(Ok(())),
            Io::Tls(tls) => AsyncWrite::poll_flush(Pin::new(&mut **tls), cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(tcp) => Poll::Ready(tcp.shutdown()),
            Io::Tls(tls) => AsyncWrite::poll_shutdown(Pin::new(&mut **tls), cx),
        }
    }
}
