//! What a ClientHello says, read without a session: for choosing a configuration, and for connections that are
//! passed through by their server name.
//!
//! Reads what it needs and nothing else (RFC 8446, 4.1.2; RFC 6066, 3; RFC 7301), and is lenient beyond that, because a
//! hello that rustls refuses may be right for the service behind. Where rustls accepts a hello, both
//! see the same names (a test compares them), so that a connection can't be routed by one name and served by another.

use rustls::pki_types::ServerName;

/// Bytes within which a ClientHello must be complete.
pub const MAX_HELLO: usize = 16 * 1024;
/// Longest record; rustls allows as much in plain ones.
const MAX_RECORD: usize = 16 * 1024 + 2048;
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
    let Some(message) = first_message(bytes) else { return Peeked::NotTls };
    match message.get(..4) {
        None => incomplete(bytes),
        Some([1, ..]) => match end(&message) {
            Some(end) if end > 4 + MAX_HELLO => Peeked::NotTls,
            Some(end) if end <= message.len() => {
                read(&message[4..end]).map_or(Peeked::NotTls, Peeked::Hello)
            }
            _ => incomplete(bytes),
        },
        Some(_) => Peeked::NotTls,
    }
}

/// Where a handshake message ends that `content` begins with, once its length is known (RFC 8446, 4).
fn end(content: &[u8]) -> Option<usize> {
    let [_, a, b, c, ..] = content else { return None };
    Some(4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)))
}

fn incomplete(bytes: &[u8]) -> Peeked {
    if bytes.len() < MAX_HELLO { Peeked::Incomplete } else { Peeked::NotTls }
}

/// The content of the handshake records that `bytes` begin with, up to the one that makes the first message whole. A
/// message may be split over several (RFC 8446, 5.1). `None` if something else comes before its end.
fn first_message(bytes: &[u8]) -> Option<Vec<u8>> {
    const HANDSHAKE: u8 = 22;
    let mut rest = &bytes[..bytes.len().min(MAX_HELLO)];
    let mut content = Vec::new();
    // What follows a whole message is none of ours, and may not change what was said of it.
    while end(&content).is_none_or(|end| content.len() < end)
        && let [kind, header @ ..] = rest
    {
        if *kind != HANDSHAKE {
            return None;
        }
        // The minor version says nothing (RFC 8446, 5.1).
        let [major, _, high, low, body @ ..] = header else {
            return header.first().is_none_or(|major| *major == 3).then_some(content);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *major != 3 || length == 0 || length > MAX_RECORD {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::crypto::aws_lc_rs;
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// The same message in records of `size` bytes.
    fn split(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for part in bytes[5..].chunks(size) {
            records.extend_from_slice(&bytes[..3]);
            records.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
            records.extend_from_slice(part);
        }
        records
    }

    /// What rustls makes of it.
    fn reference(bytes: &[u8]) -> Option<ClientHello> {
        let mut acceptor = Acceptor::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest).ok()? == 0 {
                return None;
            }
            if let Some(accepted) = acceptor.accept().ok()? {
                let hello = accepted.client_hello();
                let protocols = hello.alpn().into_iter().flatten();
                return Some(ClientHello {
                    server_name: hello.server_name().map(Into::into),
                    protocols: protocols.map(Into::into).collect(),
                });
            }
        }
        None
    }

    #[test]
    fn reads_name_and_protocols_whole_or_split() {
        let expected = ClientHello {
            server_name: Some("shop.example.com".into()),
            protocols: vec![b"h2"[..].into(), b"http/1.1"[..].into()],
        };
        let bytes = hello("Shop.Example.COM", &[b"h2", b"http/1.1"]);
        for size in [1, 3, 100, 16_000] {
            assert_eq!(peek_client_hello(&split(&bytes, size)), Peeked::Hello(expected.clone()));
        }
        // Neither a record of another kind nor one with a bad head changes what was said.
        for more in [&b"more"[..], &[22, 2], &[22, 3, 1, 0, 0], &[22, 3, 3, 0xff, 0xff]] {
            let followed = [&bytes[..], more].concat();
            assert_eq!(peek_client_hello(&followed), Peeked::Hello(expected.clone()), "{more:?}");
        }
        let broken_off = [&split(&bytes, 50)[..55], &[21, 3, 3, 0, 2, 1, 0]].concat();
        assert_eq!(peek_client_hello(&broken_off), Peeked::NotTls);
        let nameless = peek_client_hello(&hello("127.0.0.1", &[]));
        assert_eq!(nameless, Peeked::Hello(ClientHello::default()));
        let proof = hello("a.test", &[ACME_TLS]);
        let Peeked::Hello(proof) = peek_client_hello(&proof) else { panic!("no hello") };
        assert!(proof.is_acme_challenge());
    }

    #[test]
    fn waits_for_the_end_and_not_for_ever() {
        let bytes = split(&hello("a.test", &[b"h2"]), 50);
        for end in 0..bytes.len() {
            assert_eq!(peek_client_hello(&bytes[..end]), Peeked::Incomplete, "{end} bytes");
        }
        let endless = [&[22, 3, 1, 0x40, 0, 1, 0, 0x40, 0][..], &[0; MAX_HELLO]].concat();
        assert_eq!(peek_client_hello(&endless[..MAX_HELLO - 1]), Peeked::Incomplete);
        assert_eq!(peek_client_hello(&endless[..MAX_HELLO]), Peeked::NotTls);
        let too_long = [22, 3, 1, 0x40, 0, 1, 1, 0, 0];
        assert_eq!(peek_client_hello(&too_long), Peeked::NotTls);
    }

    #[test]
    fn what_is_something_else_is_told_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[22, 2],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0xff, 0xff],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[23, 3, 3, 0, 4],
        ] {
            assert_eq!(peek_client_hello(bytes), Peeked::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn two_names_are_refused() {
        let bytes = hello("aaaa.test", &[]);
        let at = bytes.windows(9).position(|w| w == b"aaaa.test").unwrap();
        let mut twice = bytes.clone();
        // The one name becomes two: "aa" and "t" plus what is left over.
        twice[at - 2..at].copy_from_slice(&[0, 2]);
        twice[at + 2..at + 5].copy_from_slice(&[0, 0, 4]);
        assert_eq!(peek_client_hello(&twice), Peeked::NotTls);
        assert_eq!(reference(&twice), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2000 } else { 20_000 }))]

        #[test]
        fn where_rustls_accepts_both_see_the_same(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            size in 1_usize..2000,
        ) {
            let mut bytes = split(&hello("shop.example.com", &[b"h2", b"http/1.1"]), size);
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            let peeked = peek_client_hello(&bytes);
            if let Some(hello) = reference(&bytes) {
                prop_assert_eq!(peeked, Peeked::Hello(hello));
            }
        }

        #[test]
        fn what_is_decided_stays_so(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            end in any::<prop::sample::Index>(),
            begins_well in any::<bool>(),
        ) {
            let start: &[u8] =
                if begins_well { &[22, 3, 1, 0, 200, 1, 0, 0, 190, 3, 3] } else { &[] };
            let bytes = [start, &bytes].concat();
            let early = peek_client_hello(&bytes[..end.index(bytes.len() + 1)]);
            if early != Peeked::Incomplete {
                prop_assert_eq!(peek_client_hello(&bytes), early);
            }
        }
    }
}
