//! What a ClientHello says, read without a session: for choosing a configuration, and for connections that are
//! passed through by their server name.
//!
//! Reads what it needs and nothing else (RFC 8446, 4.1.2; RFC 6066, 3; RFC 7301), and is lenient beyond that, because a
//! hello that rustls refuses may be right for the service behind. Where rustls accepts a hello, both
//! see the same names (a test compares them), so that a connection can't be routed by one name and served by another.

use rustls::pki_types::ServerName;

/// Bytes within which a ClientHello must be complete.
pub const MAX_HELLO: usize = 16 * 1024;
/// Most protocols of one offer that are kept.
const MAX_PROTOCOLS: usize = 32;
/// The protocol of certificate authorities that prove a name (RFC 8737).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server that is asked for, in lower case; `None` if it is not named or not by a valid DNS name.
    pub server_name: Option<Box<str>>,
    /// The protocols that are offered, in order of preference.
    pub protocols: Vec<Box<[u8]>>,
}

impl ClientHello {
    /// Whether a certificate authority wants to see a proof.
    #[must_use]
    pub fn is_acme_challenge(&self) -> bool {
        self.protocols.iter().any(|protocol| **protocol == *ACME_TLS)
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// More bytes are needed; never with [`MAX_HELLO`] bytes or more.
    Incomplete,
    /// A whole ClientHello.
    Hello(ClientHello),
    /// No ClientHello, or one that is too long.
    NotTls,
}

/// Looks for a ClientHello at the start of `bytes`.
#[must_use]
pub fn peek_client_hello(bytes: &[u8]) -> Peeked {
    let Some(message) = handshake_bytes(bytes) else { return Peeked::NotTls };
    match message.get(..4) {
        None => incomplete(bytes),
        Some([1, a, b, c]) => {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_HELLO {
                return Peeked::NotTls;
            }
            match message.get(4..4 + length) {
                None => incomplete(bytes),
                Some(body) => read(body).map_or(Peeked::NotTls, Peeked::Hello),
            }
        }
        Some(_) => Peeked::NotTls,
    }
}

fn incomplete(bytes: &[u8]) -> Peeked {
    if bytes.len() < MAX_HELLO { Peeked::Incomplete } else { Peeked::NotTls }
}

/// The content of the handshake records that `bytes` begin with. A message may be split over several
/// (RFC 8446, 5.1). `None` if something else comes first.
fn handshake_bytes(bytes: &[u8]) -> Option<Vec<u8>> {
    const HANDSHAKE: u8 = 22;
    let mut rest = &bytes[..bytes.len().min(MAX_HELLO)];
    let mut content = Vec::new();
    while let [kind, header @ ..] = rest {
        if *kind != HANDSHAKE {
            // What follows a whole message is none of ours.
            return (!content.is_empty()).then_some(content);
        }
        let [major, minor, high, low, body @ ..] = header else {
            let version_fits = [3, 4].iter().zip(header).all(|(most, byte)| byte <= most);
            return version_fits.then_some(content);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *major != 3 || *minor > 4 || length == 0 || length > 16 * 1024 {
            return None;
        }
        content.extend_from_slice(&body[..body.len().min(length)]);
        rest = body.get(length..).unwrap_or_default();
    }
    Some(content)
}

/// A place in a message.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<usize> {
        let bytes = self.take(2)?;
        Some(usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
    }

    /// A vector whose length is told in one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(*self.take(1)?.first()?);
        self.take(length)
    }

    /// A vector whose length is told in two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length)
    }
}

fn read(body: &[u8]) -> Option<ClientHello> {
    const SERVER_NAME: usize = 0;
    const PROTOCOLS: usize = 16;
    let mut cursor = Cursor(body);
    cursor.take(2 + 32)?;
    let (_session, _suites, _compressions) = (cursor.short()?, cursor.long()?, cursor.short()?);
    let mut hello = ClientHello::default();
    if cursor.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Cursor(cursor.long()?);
    let (mut named, mut offered) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.long()?;
        match kind {
            // A second one is against the protocol; two readers could take different ones.
            SERVER_NAME if named => return None,
            PROTOCOLS if offered => return None,
            SERVER_NAME => {
                named = true;
                hello.server_name = server_name(content)?;
            }
            PROTOCOLS => {
                offered = true;
                hello.protocols = protocols(content)?;
            }
            _ => {}
        }
    }
    Some(hello)
}

/// The host name. The outer `None` is a malformed extension: RFC 6066 allows no second name.
fn server_name(content: &[u8]) -> Option<Option<Box<str>>> {
    const HOST_NAME: u8 = 0;
    let mut names = Cursor(Cursor(content).long()?);
    if *names.take(1)?.first()? != HOST_NAME {
        return Some(None);
    }
    let name = names.long()?;
    if names.0.first() == Some(&HOST_NAME) {
        return None;
    }
    Some(match ServerName::try_from(name) {
        Ok(ServerName::DnsName(name)) => Some(name.as_ref().to_ascii_lowercase().into()),
        _ => None,
    })
}

fn protocols(content: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut list = Cursor(Cursor(content).long()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.short()?;
        if protocol.is_empty() {
            return None;
        }
        if protocols.len() < MAX_PROTOCOLS {
            protocols.push(protocol.into());
        }
    }
    Some(protocols)
}
