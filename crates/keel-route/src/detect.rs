//! What a client speaks, told from its first bytes.
//!
//! Sure signs only: a request line for HTTP/1, the preface for HTTP/2 (RFC 9113, 3.4), a ClientHello record for
//! TLS (RFC 8446, 5.1). All else is opaque and passed on as it is, which is never wrong, only less clever.
//! How long to wait for more bytes is the caller's business; a client that waits for the server to speak
//! first sends none. A PROXY protocol header, where one is expected, is taken off before
//! ([`crate::proxy_protocol`]).

/// First bytes looked at; who has not shown its protocol by then is opaque.
pub const MAX_LOOK: usize = 8 * 1024;
/// Longest method name that passes for HTTP.
const MAX_METHOD: usize = 24;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 without an upgrade.
    Http2,
    /// TLS.
    Tls,
    /// Anything else.
    Opaque,
}

/// Whether more bytes may still come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// Wait if the bytes so far do not tell.
    MayCome,
    /// Decide on what there is.
    Not,
}

/// What `bytes`, the first of a connection, say. `None`: not yet clear.
#[must_use]
pub fn detect(bytes: &[u8], more: More) -> Option<Wire> {
    // The same bytes get the same verdict whether they came at once or in pieces.
    let (bytes, more) = match bytes.get(..MAX_LOOK) {
        Some(enough) => (enough, More::Not),
        None => (bytes, more),
    };
    let unclear = || (more == More::Not).then_some(Wire::Opaque);
    if bytes.starts_with(HTTP2_PREFACE) {
        return Some(Wire::Http2);
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return unclear();
    }
    if bytes.first() == Some(&0x16) {
        return match tls_client_hello(bytes) {
            Some(true) => Some(Wire::Tls),
            Some(false) => Some(Wire::Opaque),
            None => unclear(),
        };
    }
    http1(without_empty_lines(bytes), more)
}

/// Clients may send empty lines before a request (RFC 9112, 2.2). One that ends badly is for the parser to refuse.
fn without_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    // The next line may be another one.
    if bytes == b"\r" { &[] } else { bytes }
}

/// Record type 22, legacy version 3.0 to 3.4, handshake type 1.
fn tls_client_hello(bytes: &[u8]) -> Option<bool> {
    let expected: [&dyn Fn(u8) -> bool; 6] =
        [&|b| b == 0x16, &|b| b == 3, &|b| b <= 4, &|_| true, &|_| true, &|b| b == 1];
    if bytes.iter().zip(expected).any(|(byte, as_expected)| !as_expected(*byte)) {
        return Some(false);
    }
    (bytes.len() >= 6).then_some(true)
}

/// A method, a target and `HTTP/1.`: other line protocols (Redis inline commands, SMTP, memcached) also begin with a
/// word, so that the version decides. Methods are in capitals, but no program has to send one of those that are known.
fn http1(bytes: &[u8], more: More) -> Option<Wire> {
    let is_method = |b: &u8| b.is_ascii_alphabetic() || *b == b'-' || *b == b'_';
    let method = bytes.iter().take_while(|b| is_method(b)).count();
    if bytes.is_empty() {
        return (more == More::Not).then_some(Wire::Opaque);
    }
    if method == 0 || method > MAX_METHOD {
        return Some(Wire::Opaque);
    }
    let capitals = !bytes[..method].iter().any(u8::is_ascii_lowercase);
    let Some(rest) = bytes.get(method..).filter(|rest| !rest.is_empty()) else {
        return (more == More::Not).then_some(Wire::Opaque);
    };
    if rest[0] != b' ' {
        return Some(Wire::Opaque);
    }
    let target = &rest[1..];
    match target.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let line = target[..end].strip_suffix(b"\r").unwrap_or(&target[..end]);
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            let http = version.len() < line.len() && version.starts_with(b"HTTP/1.");
            Some(if http { Wire::Http1 } else { Wire::Opaque })
        }
        // A long line, or one that comes slowly: how the target begins has to do.
        None if more == More::Not => {
            let http = [&b"/"[..], b"http://", b"https://"].iter().any(|t| target.starts_with(t));
            Some(if http && capitals { Wire::Http1 } else { Wire::Opaque })
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table() {
        use More::{MayCome, Not};
        let long = [b"GET /".as_slice(), &[b'a'; MAX_LOOK]].concat();
        let absolute = [b"GET http://".as_slice(), &[b'a'; MAX_LOOK]].concat();
        let late = [b"GET *".as_slice(), &[b'a'; MAX_LOOK], b" HTTP/1.1\r\n"].concat();
        for (bytes, more, expected) in [
            (b"".as_slice(), MayCome, None),
            (b"", Not, Some(Wire::Opaque)),
            (b"GET / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"GET / HTTP/1.1\n", MayCome, Some(Wire::Http1)),
            (b"OPTIONS * HTTP/1.0\r\n", MayCome, Some(Wire::Http1)),
            (b"GET http://a/ HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"GET /", MayCome, None),
            (b"GET /", Not, Some(Wire::Http1)),
            (b"GE", MayCome, None),
            (b"GE", Not, Some(Wire::Opaque)),
            (b"GET key\r\n", MayCome, Some(Wire::Opaque)),
            (b"PING\r\n", MayCome, Some(Wire::Opaque)),
            (b"EHLO there\r\n", MayCome, Some(Wire::Opaque)),
            (b"HTTP/1.1\r\n", MayCome, Some(Wire::Opaque)),
            (b"get / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"gEt / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"get /", MayCome, None),
            (b"get /", Not, Some(Wire::Opaque)),
            (b"get key\r\n", MayCome, Some(Wire::Opaque)),
            (b"set key 0 0 1\r\n", MayCome, Some(Wire::Opaque)),
            (b"stats\r\n", MayCome, Some(Wire::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", MayCome, Some(Wire::Opaque)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", MayCome, Some(Wire::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM", MayCome, None),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Not, Some(Wire::Opaque)),
            (b"PROPFIND / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"\x16\x03\x01\x02\x00\x01\x00", MayCome, Some(Wire::Tls)),
            (b"\x16\x03", MayCome, None),
            (b"\x16\x03\x01\x02\x00\x02", MayCome, Some(Wire::Opaque)),
            (b"\x16\x05", MayCome, Some(Wire::Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", MayCome, Some(Wire::Opaque)),
            (b"GET https://a", Not, Some(Wire::Http1)),
            (b"\r\nGET / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"\nGET / HTTP/1.1\r\n", MayCome, Some(Wire::Http1)),
            (b"\r", MayCome, None),
            (b"\r\n", MayCome, None),
            (b"\r\n", Not, Some(Wire::Opaque)),
            (b"\r\nGE", MayCome, None),
            (b"\r\nping\r\n", MayCome, Some(Wire::Opaque)),
            (b"\rGET / HTTP/1.1\r\n", MayCome, Some(Wire::Opaque)),
            (b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MayCome, Some(Wire::Opaque)),
            (b"\r\n\x16\x03\x01\x02\x00\x01\x00", MayCome, Some(Wire::Opaque)),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", MayCome, Some(Wire::Opaque)),
            (b"\x16", Not, Some(Wire::Opaque)),
            (&long, MayCome, Some(Wire::Http1)),
            (&absolute, MayCome, Some(Wire::Http1)),
            (&late, MayCome, Some(Wire::Opaque)),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            assert_eq!(detect(bytes, more), expected, "{shown:?} {more:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_verdict_when_no_more_come(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            prop_assert!(detect(&bytes, More::Not).is_some());
        }

        #[test]
        fn a_verdict_stands_whatever_follows(
            bytes in "(PRI \\* HTTP/2.0\r\n\r\nSM\r\n\r\n|(\r?\n){0,2}[A-Za-z]{1,5} [/a-z]{0,5}( HTTP/1.1)?\r?\n?|\\PC{0,20})",
            rest in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            if let Some(verdict) = detect(bytes.as_bytes(), More::MayCome) {
                let longer = [bytes.as_bytes(), &rest].concat();
                prop_assert_eq!(detect(&longer, More::MayCome), Some(verdict));
            }
        }
    }
}
