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
use tokio::net::TcpStream;

use super::session::{MAX_HELD, OVERHEAD, RECORD, Records, Session};
use crate::conn;

/// Plain bytes that one write takes at most. Starts with one record and doubles with every write that the system
/// takes whole, so that a slow reader makes us keep one record and a fast one costs few system calls.
const MAX_BURST: usize = 4 * RECORD;
/// Bytes read from the socket at a time, in addition to what is held.
const MAX_READ: usize = MAX_BURST + 4 * OVERHEAD;
/// The least that is read: a whole record, so that it needs not be kept (RFC 5246, 6.2.3).
const MIN_READ: usize = RECORD + 2048 + 5;
/// Reads in one call that may end without plain bytes; then others get their turn.
const READS_PER_CALL: usize = 16;

/// Buffers that the connections of a worker share.
struct Scratch {
    inbound: Vec<u8>,
    outbound: Records,
    gathered: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        inbound: vec![0; MAX_HELD + MAX_READ],
        outbound: Records::new(MAX_READ),
        gathered: Vec::with_capacity(RECORD),
    });
}

/// A TCP connection with TLS on it.
#[derive(Debug)]
pub struct Tls {
    tcp: TcpStream,
    state: RefCell<State>,
    server_name: Option<Box<str>>,
}

#[derive(Debug)]
struct State {
    session: Session,
    /// Bytes from the socket that are no whole record yet.
    held: Vec<u8>,
    /// Plain bytes that were not taken yet, from `plain_at`.
    plain: Vec<u8>,
    plain_at: usize,
    /// Records that the system did not take yet, from `pending_at`.
    pending: Vec<u8>,
    pending_at: usize,
    /// Plain bytes in `pending` that the writer does not know to be taken.
    owed: usize,
    burst: usize,
    peer_closed: bool,
    closing: bool,
    failed: Option<Failure>,
}

/// Why nothing can be read or written any more.
#[derive(Clone, Debug)]
enum Failure {
    Tls(rustls::Error),
    /// The stream ended without the announcement.
    Truncated,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Tls(error) => Self::new(io::ErrorKind::InvalidData, error),
            Failure::Truncated => Self::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended without the end of the TLS session",
            ),
        }
    }
}

impl Tls {
    pub(super) fn new(tcp: TcpStream, session: Session, server_name: Option<Box<str>>) -> Self {
        let state = State {
            session,
            held: Vec::new(),
            plain: Vec::new(),
            plain_at: 0,
            pending: Vec::new(),
            pending_at: 0,
            owed: 0,
            burst: RECORD,
            peer_closed: false,
            closing: false,
            failed: None,
        };
        Self { tcp, state: RefCell::new(state), server_name }
    }

    /// The connection under it. Reading from or writing to it breaks the session.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Waits until [`Tls::try_read`] is worth a try. Sends what is left to be sent meanwhile.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (readable, pending) = {
            let state = self.state.borrow();
            (state.has_news(), !state.pending.is_empty())
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
        let mut state = self.state.borrow_mut();
        let taken = state.take_plain(room);
        if taken > 0 {
            return Ok(taken);
        }
        state.receive(&self.tcp, room)
    }

    /// Waits until [`Tls::try_write_vectored`] is worth a try.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.state.borrow().pending.is_empty() {
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
        let mut state = self.state.borrow_mut();
        state.send_pending(&self.tcp)?;
        let asked: usize = slices.iter().map(|slice| slice.len()).sum();
        if state.owed == 0 {
            state.owed = state.write(&self.tcp, slices)?;
            if !state.pending.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let taken = state.owed.min(asked);
        state.owed -= taken;
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
        let mut state = self.state.borrow_mut();
        Poll::Ready(state.write(&self.tcp, slices))
    }

    /// Sends everything that is left to be sent.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.state.borrow_mut().send_pending(&self.tcp) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.tcp.poll_write_ready(cx))?;
        }
    }

    /// Announces the end of what we send and ends it. What the peer sends can still be read.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.borrow_mut().close();
        ready!(self.poll_flush(cx))?;
        Poll::Ready(match rustix::net::shutdown(self.tcp.as_fd(), Shutdown::Write) {
            // It has closed already.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// Announces our end without waiting, so far as the system takes it: for connections that are dropped next.
    pub fn close_now(&self) {
        let mut state = self.state.borrow_mut();
        state.close();
        // The peer sees a cut-off stream if this does not fit, and nothing was on its way.
        let _ = state.send_pending(&self.tcp);
    }

    /// Whether the peer has announced its end.
    #[must_use]
    pub fn saw_close_notify(&self) -> bool {
        self.state.borrow().peer_closed
    }

    /// The protocol that was agreed (`h2`, `http/1.1`).
    #[must_use]
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.state.borrow().session.common().alpn_protocol().map(<[u8]>::to_vec)
    }

    /// The name that the client asked for, in lower case.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The certificates that the peer has shown, its own first; they have been verified.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.state.borrow().session.common().peer_certificates().map(<[_]>::to_vec)
    }

    /// The version that was agreed.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.state.borrow().session.common().protocol_version()
    }

    /// Whether an earlier session was resumed.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.state.borrow().session.common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.state.borrow().session.common().is_handshaking()
    }

    /// Takes in bytes that were read from the socket before.
    pub(super) fn feed(&self, bytes: &[u8]) -> Result<(), rustls::Error> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut state = self.state.borrow_mut();
            scratch.outbound.clear();
            let mut bytes = bytes.to_vec();
            state.digest(&self.tcp, &mut bytes, &mut [], &mut scratch.outbound);
            match &state.failed {
                Some(Failure::Tls(error)) => Err(error.clone()),
                _ => Ok(()),
            }
        })
    }

    /// Reads from the socket while the handshake lasts.
    pub(super) fn advance(&self) -> io::Result<()> {
        self.state.borrow_mut().receive(&self.tcp, &mut []).map(|_| ())
    }

    /// Bytes that are kept in buffers.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let state = self.state.borrow();
        state.held.capacity() + state.plain.capacity() + state.pending.capacity()
    }

    /// The error of TLS that this session has failed with.
    pub(super) fn failure(&self) -> Option<rustls::Error> {
        match &self.state.borrow().failed {
            Some(Failure::Tls(error)) => Some(error.clone()),
            _ => None,
        }
    }
}

impl State {
    /// Whether a read would not wait.
    fn has_news(&self) -> bool {
        !self.plain.is_empty() || self.peer_closed || self.failed.is_some()
    }

    fn take_plain(&mut self, room: &mut [u8]) -> usize {
        let taken = room.len().min(self.plain.len() - self.plain_at);
        room[..taken].copy_from_slice(&self.plain[self.plain_at..self.plain_at + taken]);
        self.plain_at += taken;
        if self.plain_at == self.plain.len() {
            (self.plain, self.plain_at) = (Vec::new(), 0);
        }
        taken
    }

    /// Reads until there are plain bytes. With an empty `room` (in a handshake) what comes is kept, and one read is all.
    fn receive(&mut self, tcp: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
        for _ in 0..READS_PER_CALL {
            if let Some(failure) = &self.failed {
                return Err(failure.clone().into());
            }
            if self.peer_closed {
                return Ok(0);
            }
            let got = SCRATCH.with_borrow_mut(|scratch| self.read_once(tcp, room, scratch))?;
            if got > 0 || room.is_empty() {
                return Ok(got);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn read_once(
        &mut self,
        tcp: &TcpStream,
        room: &mut [u8],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        let held = self.held.len();
        let want = (room.len() + room.len() / RECORD * OVERHEAD).clamp(MIN_READ, MAX_READ);
        let read = conn::read_tcp(tcp, &mut scratch.inbound[held..held + want])?;
        if read == 0 {
            self.failed = Some(Failure::Truncated);
            return Ok(0);
        }
        if read < missing(&self.held) {
            self.held.extend_from_slice(&scratch.inbound[held..held + read]);
            return Ok(0);
        }
        scratch.inbound[..held].copy_from_slice(&self.held);
        self.held.clear();
        scratch.outbound.clear();
        let bytes = &mut scratch.inbound[..held + read];
        Ok(self.digest(tcp, bytes, room, &mut scratch.outbound))
    }

    /// Takes in what was read; how many plain bytes are in `room` now. The rest of them is kept.
    fn digest(
        &mut self,
        tcp: &TcpStream,
        bytes: &mut [u8],
        room: &mut [u8],
        outbound: &mut Records,
    ) -> usize {
        let Self { session, plain, .. } = self;
        let mut got = 0;
        let mut take = |record: &[u8]| {
            let (now, later) = record.split_at(record.len().min(room.len() - got));
            room[got..got + now.len()].copy_from_slice(now);
            got += now.len();
            plain.extend_from_slice(later);
        };
        let (used, result) = session.receive(bytes, &mut take, outbound);
        match result {
            Ok(ended) => self.peer_closed |= ended,
            Err(error) => self.failed = Some(Failure::Tls(error)),
        }
        let rest = &bytes[used.min(bytes.len())..];
        if self.peer_closed || self.failed.is_some() || rest.is_empty() {
            self.held = Vec::new();
        } else if rest.len() > MAX_HELD {
            let reason = "a handshake message is longer than 64 KiB".to_owned();
            self.failed = Some(Failure::Tls(rustls::Error::General(reason)));
        } else {
            self.held.extend_from_slice(rest);
        }
        // Answers of the protocol. What the system does not take now goes with the next write or wait.
        if let Err(error) = self.send(tcp, outbound) {
            tracing::debug!(%error, "an answer of the TLS session could not be sent");
        }
        got
    }

    /// Encrypts as much of `slices` as one burst takes, and sends what the system takes; the rest is pending.
    fn write(&mut self, tcp: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(failure @ Failure::Tls(_)) = &self.failed {
            return Err(failure.clone().into());
        }
        if self.closing {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.outbound.clear();
            let encrypted = self.encrypt(slices, scratch);
            let taken = encrypted.map_err(|error| {
                self.failed = Some(Failure::Tls(error.clone()));
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            self.send(tcp, &scratch.outbound)?;
            self.burst =
                if self.pending.is_empty() { (self.burst * 2).min(MAX_BURST) } else { RECORD };
            Ok(taken)
        })
    }

    /// Fills records to their full size, whatever pieces the bytes come in.
    fn encrypt(
        &mut self,
        slices: &[IoSlice<'_>],
        scratch: &mut Scratch,
    ) -> Result<usize, rustls::Error> {
        let (mut left, mut taken) = (self.burst, 0);
        let Scratch { outbound, gathered, .. } = scratch;
        gathered.clear();
        for slice in slices {
            let mut piece = &slice[..slice.len().min(left)];
            left -= piece.len();
            taken += piece.len();
            while !piece.is_empty() {
                let whole = piece.len() - piece.len() % RECORD;
                if gathered.is_empty() && whole > 0 {
                    self.session.encrypt(&mut self.held, &piece[..whole], outbound)?;
                    piece = &piece[whole..];
                } else {
                    let (now, later) = piece.split_at(piece.len().min(RECORD - gathered.len()));
                    gathered.extend_from_slice(now);
                    piece = later;
                }
                if gathered.len() == RECORD {
                    self.session.encrypt(&mut self.held, gathered, outbound)?;
                    gathered.clear();
                }
            }
        }
        if !gathered.is_empty() {
            self.session.encrypt(&mut self.held, gathered, outbound)?;
        }
        Ok(taken)
    }

    /// Sends records after those that are pending; keeps what the system does not take.
    fn send(&mut self, tcp: &TcpStream, records: &Records) -> io::Result<()> {
        let mut bytes = records.bytes();
        if self.pending.is_empty() && !bytes.is_empty() {
            match conn::write_tcp(tcp, bytes, &[]) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn send_pending(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while !self.pending.is_empty() {
            match conn::write_tcp(tcp, &self.pending[self.pending_at..], &[]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.pending_at += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.pending_at == self.pending.len() {
                (self.pending, self.pending_at) = (Vec::new(), 0);
            }
        }
        Ok(())
    }

    /// Adds the announcement of our end to what is pending, once.
    fn close(&mut self) {
        if self.closing || matches!(self.failed, Some(Failure::Tls(_))) {
            return;
        }
        self.closing = true;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.outbound.clear();
            // Fails in a handshake only, where there is nothing to be cut off.
            if self.session.close(&mut self.held, &mut scratch.outbound).is_ok() {
                self.pending.extend_from_slice(scratch.outbound.bytes());
            }
        });
    }
}

/// How many bytes the record at the start of `held` lacks; 0 if that is not known.
fn missing(held: &[u8]) -> usize {
    /// Application data, or anything else under encryption (RFC 8446, 5.2).
    const APPLICATION_DATA: u8 = 23;
    match held {
        [APPLICATION_DATA, 3, 3, high, low, body @ ..] => {
            usize::from(u16::from_be_bytes([*high, *low])).saturating_sub(body.len())
        }
        _ => 0,
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
