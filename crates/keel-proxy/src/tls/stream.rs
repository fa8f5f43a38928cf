//! A TCP connection with TLS on it, used like the TCP connection itself.
//!
//! Methods take `&self` so that two futures of one task can read and write. Records pass through buffers of the
//! worker; a connection only keeps what is incomplete, not yet taken or not yet sent, and an idle one keeps
//! nothing.
//!
//! - A write is taken when its records are with the system, not before. Whoever gets `WouldBlock` tries again with
//!   the same bytes, which every caller does anyway (as with OpenSSL). So nothing has to be flushed at the end.
//! - The end of the stream is an error unless the peer has announced it (`close_notify`), so that a cut-off stream is
//!   never taken for a whole one.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use rustix::net::Shutdown;
use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion};

use super::flow::{Failure, Flow};
use super::session::Session;
use crate::tcp::Tcp;

/// A TCP connection with TLS on it.
#[derive(Debug)]
pub struct Tls {
    tcp: Tcp,
    flow: RefCell<Flow>,
    server_name: Option<Box<str>>,
}

impl Tls {
    pub(super) fn new(tcp: Tcp, session: Session, server_name: Option<Box<str>>) -> Self {
        Self { tcp, flow: RefCell::new(Flow::new(session)), server_name }
    }

    /// The connection under it. Reading from or writing to it breaks the session.
    #[must_use]
    pub fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    /// Waits until [`Tls::try_read`] is worth a try. Sends what is left to be sent meanwhile.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (readable, pending) = {
            let flow = self.flow.borrow();
            (flow.has_news(), !flow.pending.is_empty())
        };
        if readable {
            return Poll::Ready(Ok(()));
        }
        if pending {
            // A failure is told to the writer, or by the next read.
            let _ = self.poll_flush(cx);
        }
        self.tcp.poll_read_ready(cx)
    }

    /// Reads plain bytes. `Ok(0)` if the peer has announced its end (or `room` is empty).
    ///
    /// # Errors
    /// `WouldBlock`; `UnexpectedEof` if the stream is cut off; `InvalidData` for what is no TLS; those of the system.
    pub fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        if room.is_empty() {
            return Ok(0);
        }
        let mut flow = self.flow.borrow_mut();
        let taken = flow.take_plain(room);
        if taken > 0 {
            return Ok(taken);
        }
        flow.receive(&self.tcp, room)
    }

    /// Waits until [`Tls::try_write_vectored`] is worth a try.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flow.borrow().pending.is_empty() {
            return self.poll_flush(cx);
        }
        self.tcp.poll_write_ready(cx)
    }

    /// Writes plain bytes; the system has taken as many as this says. After `WouldBlock` the same bytes must be written
    /// again.
    ///
    /// # Errors
    /// `WouldBlock`; those of the system; `InvalidData` after the session has failed.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut flow = self.flow.borrow_mut();
        flow.send_pending(&self.tcp)?;
        let asked: usize = slices.iter().map(|slice| slice.len()).sum();
        if flow.owed == 0 {
            flow.owed = flow.write(&self.tcp, slices)?;
            if !flow.pending.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let taken = flow.owed.min(asked);
        flow.owed -= taken;
        Ok(taken)
    }

    /// As [`Tls::try_write_vectored`], for two pieces.
    ///
    /// # Errors
    /// As there.
    pub fn try_write(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
    }

    /// Takes plain bytes and sends as much as the system takes; the rest is kept for [`Tls::poll_flush`].
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let mut flow = self.flow.borrow_mut();
        Poll::Ready(flow.write(&self.tcp, slices))
    }

    /// Sends everything that is left to be sent.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.flow.borrow_mut().send_pending(&self.tcp) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.tcp.poll_write_ready(cx))?;
        }
    }

    /// Announces the end of what we send and ends it. What the peer sends can still be read.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.borrow_mut().close();
        ready!(self.poll_flush(cx))?;
        Poll::Ready(match rustix::net::shutdown(self.tcp.as_fd(), Shutdown::Write) {
            // It has closed already.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// Announces our end without waiting, so far as the system takes it: for connections that are dropped next. False if
    /// it did not fit; the peer sees a cut-off stream then.
    pub fn close_now(&self) -> bool {
        let mut flow = self.flow.borrow_mut();
        flow.close();
        !matches!(flow.send_pending(&self.tcp), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the peer has announced its end.
    #[must_use]
    pub fn saw_close_notify(&self) -> bool {
        self.flow.borrow().peer_closed
    }

    /// The protocol that was agreed (`h2`, `http/1.1`).
    #[must_use]
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.flow.borrow().session.common().alpn_protocol().map(<[u8]>::to_vec)
    }

    /// The name that the client asked for, in lower case.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The certificates that the peer has shown, its own first; they have been verified.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.flow.borrow().session.common().peer_certificates().map(<[_]>::to_vec)
    }

    /// The version that was agreed.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.flow.borrow().session.common().protocol_version()
    }

    /// Whether an earlier session was resumed.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.flow.borrow().session.common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.flow.borrow().session.common().is_handshaking()
    }

    /// Takes in bytes that were read from the socket before.
    pub(super) fn feed(&self, bytes: &[u8]) {
        self.flow.borrow_mut().feed(&self.tcp, bytes);
    }

    /// Reads from the socket while the handshake lasts.
    pub(super) fn advance(&self) -> io::Result<()> {
        self.flow.borrow_mut().receive(&self.tcp, &mut []).map(|_| ())
    }

    /// Bytes that are kept in buffers.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.flow.borrow().kept()
    }

    /// The error of TLS that this session has failed with.
    pub(super) fn failure(&self) -> Option<rustls::Error> {
        match &self.flow.borrow().failed {
            Some(Failure::Tls(error)) => Some(error.clone()),
            _ => None,
        }
    }
}
