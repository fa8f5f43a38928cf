//! What a connection keeps, and how bytes pass between its socket and its session.
//!
//! Records go through buffers of the worker, made once per thread. What is kept for one connection is bounded: one
//! incomplete record (or handshake message), what one read decrypted and nobody took yet, and one burst that the
//! system did not take yet.

use std::cell::RefCell;
use std::io::{self, IoSlice};

use super::session::{MAX_HELD, OVERHEAD, RECORD, Records, Session};
use crate::tcp::Tcp;

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

/// What one connection keeps.
#[derive(Debug)]
pub struct Flow {
    /// What was agreed, and the keys.
    pub session: Session,
    /// Bytes from the socket that are no whole record yet.
    held: Vec<u8>,
    /// Plain bytes that were not taken yet, from `plain_at`.
    plain: Vec<u8>,
    plain_at: usize,
    /// Records that the system did not take yet, from `pending_at`.
    pub pending: Vec<u8>,
    pending_at: usize,
    /// Plain bytes in `pending` that the writer does not know to be taken.
    pub owed: usize,
    burst: usize,
    /// The peer has announced its end.
    pub peer_closed: bool,
    closing: bool,
    /// Nothing can be read or written any more.
    pub failed: Option<Failure>,
}

/// Why nothing can be read or written any more.
#[derive(Clone, Debug)]
pub enum Failure {
    /// One side has broken the rules.
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

impl Flow {
    /// A connection on which nothing has passed yet.
    pub fn new(session: Session) -> Self {
        Self {
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
        }
    }

    /// Takes in bytes that were read from the socket before.
    pub fn feed(&mut self, tcp: &Tcp, bytes: &[u8]) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.outbound.clear();
            self.digest(tcp, &mut bytes.to_vec(), &mut [], &mut scratch.outbound);
        });
    }

    /// Bytes that are kept in buffers.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.held.capacity() + self.plain.capacity() + self.pending.capacity()
    }

    /// Whether a read would not wait.
    pub fn has_news(&self) -> bool {
        !self.plain.is_empty() || self.peer_closed || self.failed.is_some()
    }

    /// Takes plain bytes that are there already.
    pub fn take_plain(&mut self, room: &mut [u8]) -> usize {
        let taken = room.len().min(self.plain.len() - self.plain_at);
        room[..taken].copy_from_slice(&self.plain[self.plain_at..self.plain_at + taken]);
        self.plain_at += taken;
        if self.plain_at == self.plain.len() {
            (self.plain, self.plain_at) = (Vec::new(), 0);
        }
        taken
    }

    /// Reads until there are plain bytes. With an empty `room` (in a handshake) what comes is kept, and one read is all.
    pub fn receive(&mut self, tcp: &Tcp, room: &mut [u8]) -> io::Result<usize> {
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
        tcp: &Tcp,
        room: &mut [u8],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        let held = self.held.len();
        let want = (room.len() + room.len() / RECORD * OVERHEAD).clamp(MIN_READ, MAX_READ);
        let read = tcp.read(&mut scratch.inbound[held..held + want])?;
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
        tcp: &Tcp,
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
    pub fn write(&mut self, tcp: &Tcp, slices: &[IoSlice<'_>]) -> io::Result<usize> {
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
    fn send(&mut self, tcp: &Tcp, records: &Records) -> io::Result<()> {
        let mut bytes = records.bytes();
        if self.pending.is_empty() && !bytes.is_empty() {
            match tcp.write(bytes, &[]) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what is pending.
    pub fn send_pending(&mut self, tcp: &Tcp) -> io::Result<()> {
        while !self.pending.is_empty() {
            match tcp.write(&self.pending[self.pending_at..], &[]) {
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
    pub fn close(&mut self) {
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
