//! What tells clients apart, as numbers.

use std::hash::Hasher as _;
use std::net::IpAddr;

use keel_model::ClientKey;
use siphasher::sip::SipHasher13;

use crate::path::Forms;
use crate::request::{RequestView, cookie_value};

/// Says which form of hash this is; a new form gets a new text, as every client then moves to another endpoint.
const RING: &[u8; 16] = b"keel client key1";

/// A number for the client's key, the same in every proxy and every version: SipHash-1-3 with a fixed key. `None` if the
/// request has no such key (no such header or cookie).
///
/// For ring hash, Maglev and the choice between weighted clusters, where nothing is gained by a collision.
#[must_use]
pub fn client_key_hash(key: &ClientKey, view: &RequestView<'_>) -> Option<u64> {
    hash(key, view, RING)
}

/// The same with another key: with one that is random, nobody can aim at the number of another client.
pub(crate) fn hash(key: &ClientKey, view: &RequestView<'_>, secret: &[u8; 16]) -> Option<u64> {
    let mut hasher = SipHasher13::new_with_key(secret);
    match key {
        ClientKey::All => hasher.write(b"a"),
        ClientKey::Source => match view.client.to_canonical() {
            IpAddr::V4(address) => {
                hasher.write(b"4");
                hasher.write(&address.octets());
            }
            IpAddr::V6(address) => {
                // A /64 is what one household or machine is given (RFC 6177); within it addresses change at will.
                hasher.write(b"6");
                hasher.write(&address.octets()[..8]);
            }
        },
        ClientKey::Header(name) => {
            hasher.write(b"h");
            hasher.write(view.headers.get(name)?);
        }
        ClientKey::Cookie(name) => {
            hasher.write(b"c");
            hasher.write(cookie_value(view.headers, name)?.as_bytes());
        }
        ClientKey::Path => {
            hasher.write(b"p");
            hasher.write(Forms::of(view.path).matched.as_bytes());
        }
    }
    Some(hasher.finish())
}

/// Adds to `problems` what is wrong with a key.
pub(crate) fn check(key: &ClientKey, what: &str, problems: &mut Vec<String>) {
    match key {
        ClientKey::Header(name) if !crate::rule::is_token(name) => {
            problems.push(format!("{what}: {name:?} is not the name of a header field"));
        }
        ClientKey::Cookie(name) if !crate::rule::is_token(name) => {
            problems.push(format!("{what}: {name:?} is not the name of a cookie"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::{Fields, get};

    #[test]
    fn numbers_never_change() {
        // By another implementation of SipHash; a change would send every client to another endpoint.
        let headers: Fields<'_> = &[("X-User", "ann"), ("Cookie", "sid=7")];
        let view = RequestView { path: "/a", ..get(&headers) };
        let header = ClientKey::Header("x-user".into());
        let cookie = ClientKey::Cookie("sid".into());
        for (key, expected) in [
            (&ClientKey::All, 0x3d73_8e20_51ba_50c6),
            (&ClientKey::Source, 0x160f_c557_3aa7_efa3),
            (&header, 0xadce_2378_f695_c515),
            (&cookie, 0x5200_8e4c_32d3_6bfd),
            (&ClientKey::Path, 0x9d70_f391_6940_144e),
        ] {
            assert_eq!(client_key_hash(key, &view), Some(expected), "{key:?}");
        }
        assert_eq!(client_key_hash(&ClientKey::Cookie("x".into()), &view), None);
        assert_eq!(client_key_hash(&ClientKey::Header("x".into()), &view), None);
    }

    #[test]
    fn one_network_or_path_is_one_client_however_it_is_written() {
        let headers: Fields<'_> = &[];
        let of = |client: &str, path| {
            let client = client.parse().unwrap();
            let view = RequestView { client, path, ..get(&headers) };
            [&ClientKey::Source, &ClientKey::Path].map(|key| client_key_hash(key, &view))
        };
        assert_eq!(of("fd00::1", "/a//b"), of("fd00::ffff:2", "/a/%62"));
        assert_eq!(of("::ffff:10.0.0.1", "/"), of("10.0.0.1", "//"));
        assert_ne!(of("fd00::1", "/")[0], of("fd00:0:0:1::1", "/")[0]);
        assert_ne!(of("10.0.0.1", "/a")[1], of("10.0.0.1", "/b")[1]);
    }
}
