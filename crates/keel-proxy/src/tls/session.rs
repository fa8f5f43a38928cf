//! One TLS session without a socket: records in, plain bytes out, and the other way round.
//!
//! Both sides of rustls' unbuffered interface behind one type. It is used instead of the buffered one because an
//! idle connection then holds no buffer (2.1 KB of heap instead of 6.4 KB), and reading 64 KiB takes 8.5 µs
//! instead of 12.5 µs; writing costs the same.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

/// Most plain bytes of one record (RFC 8446, 5.1).
pub const RECORD: usize = 16 * 1024;
/// More than any cipher adds to a record: header, explicit nonce, content type and tag (RFC 5246, 6.2.3.3).
pub const OVERHEAD: usize = 64;
/// Most bytes that are kept while a handshake message is incomplete, as in rustls' buffered interface.
pub const MAX_HELD: usize = 64 * 1024;

/// Records on their way out. The memory is initialised once.
#[derive(Debug)]
pub struct Records {
    memory: Vec<u8>,
    filled: usize,
}

impl Records {
    /// Room for `size` bytes; grows if a handshake needs more.
    pub fn new(size: usize) -> Self {
        Self { memory: vec![0; size], filled: 0 }
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Adds what `write` writes. It is called a second time if it says how much room it needs.
    fn add(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Refused>,
    ) -> Result<(), Error> {
        for _ in 0..2 {
            match write(&mut self.memory[self.filled..]) {
                Ok(n) => {
                    self.filled += n;
                    return Ok(());
                }
                Err(Refused::Room(needed)) => self.memory.resize(self.filled + needed, 0),
                Err(Refused::Exhausted) => return Err(Error::EncryptError),
            }
        }
        Err(Error::General("a record needed more room than it had asked for".to_owned()))
    }
}

enum Refused {
    Room(usize),
    Exhausted,
}

impl From<EncryptError> for Refused {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::Room(size.required_size),
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}

/// What a session is to do once it has dealt with the records that are there.
enum Wish<'a> {
    Receive,
    Encrypt(&'a [u8]),
    Close,
}

/// What came of one step.
enum Step {
    More,
    PeerClosed,
    Idle,
    Done,
}

/// A session of either side.
pub enum Session {
    /// We are the server.
    Server(UnbufferedServerConnection),
    /// We are the client.
    Client(UnbufferedClientConnection),
}

impl std::fmt::Debug for Session {
    /// Which side; never a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Session::Server",
            Self::Client(_) => "Session::Client",
        })
    }
}

impl Session {
    /// A session with a client that has said nothing yet.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::Server(UnbufferedServerConnection::new(config)?))
    }

    /// A session with the server `name`.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::Client(UnbufferedClientConnection::new(config, name)?))
    }

    /// What was agreed.
    pub fn common(&self) -> &CommonState {
        match self {
            Self::Server(session) => session,
            Self::Client(session) => session,
        }
    }

    /// Takes in the whole records at the start of `bytes`, hands their content to `plain` and adds answers to `out`.
    /// How many bytes were used up, and whether the peer has said that it ends.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        plain: &mut dyn FnMut(&[u8]),
        out: &mut Records,
    ) -> (usize, Result<bool, Error>) {
        let (mut used, mut ended) = (0, false);
        loop {
            match self.step(&mut bytes[used..], &mut used, &Wish::Receive, plain, out) {
                Ok(Step::More) => {}
                Ok(Step::PeerClosed) => ended = true,
                Ok(Step::Idle | Step::Done) => return (used, Ok(ended)),
                Err(error) => {
                    // The alert that tells the peer why. The session must not be used after that: rustls
                    // would look at the same bytes and fail once more.
                    while self.common().wants_write() {
                        let rest = &mut bytes[used..];
                        let step = self.step(rest, &mut used, &Wish::Receive, plain, out);
                        if !matches!(step, Ok(Step::More)) {
                            break;
                        }
                    }
                    return (used, Err(error));
                }
            }
        }
    }

    /// Adds `plain` to `out` in records. `held` are the bytes that [`Session::receive`] has not used up.
    pub fn encrypt(
        &mut self,
        held: &mut Vec<u8>,
        plain: &[u8],
        out: &mut Records,
    ) -> Result<(), Error> {
        self.carry_out(held, &Wish::Encrypt(plain), out)
    }

    /// Adds the announcement of our end to `out`.
    pub fn close(&mut self, held: &mut Vec<u8>, out: &mut Records) -> Result<(), Error> {
        self.carry_out(held, &Wish::Close, out)
    }

    fn carry_out(
        &mut self,
        held: &mut Vec<u8>,
        wish: &Wish<'_>,
        out: &mut Records,
    ) -> Result<(), Error> {
        loop {
            let mut used = 0;
            // rustls remembers how far it has looked into what is held, so it has to see it again.
            let step = self.step(held, &mut used, wish, &mut |_| {}, out);
            held.drain(..used);
            match step? {
                Step::More | Step::PeerClosed => {}
                Step::Done => return Ok(()),
                Step::Idle => return Err(Error::HandshakeNotComplete),
            }
        }
    }

    fn step(
        &mut self,
        bytes: &mut [u8],
        used: &mut usize,
        wish: &Wish<'_>,
        plain: &mut dyn FnMut(&[u8]),
        out: &mut Records,
    ) -> Result<Step, Error> {
        match self {
            Self::Server(session) => {
                act(session.process_tls_records(bytes), used, wish, plain, out)
            }
            Self::Client(session) => {
                act(session.process_tls_records(bytes), used, wish, plain, out)
            }
        }
    }
}

fn act<D>(
    status: UnbufferedStatus<'_, '_, D>,
    used: &mut usize,
    wish: &Wish<'_>,
    plain: &mut dyn FnMut(&[u8]),
    out: &mut Records,
) -> Result<Step, Error> {
    *used += status.discard;
    match status.state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plain(record?.payload);
            }
        }
        ConnectionState::EncodeTlsData(mut data) => out.add(|room| {
            data.encode(room).map_err(|error| match error {
                EncodeError::InsufficientSize(size) => Refused::Room(size.required_size),
                EncodeError::AlreadyEncoded => Refused::Exhausted,
            })
        })?,
        // Sent in order with everything else.
        ConnectionState::TransmitTlsData(data) => data.done(),
        ConnectionState::PeerClosed => return Ok(Step::PeerClosed),
        ConnectionState::WriteTraffic(traffic) => return write(traffic, wish, out),
        // Early data is never offered nor accepted.
        _ => return Ok(Step::Idle),
    }
    Ok(Step::More)
}

fn write<D>(
    mut traffic: WriteTraffic<'_, D>,
    wish: &Wish<'_>,
    out: &mut Records,
) -> Result<Step, Error> {
    match wish {
        Wish::Receive => return Ok(Step::Idle),
        Wish::Encrypt(plain) => out.add(|room| Ok(traffic.encrypt(plain, room)?))?,
        Wish::Close => out.add(|room| Ok(traffic.queue_close_notify(room)?))?,
    }
    Ok(Step::Done)
}
