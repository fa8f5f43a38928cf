//! Fuzz targets for every reader of bytes that strangers send.
//!
//! A target is an ordinary function that panics when something does not hold that should. `cargo xtask fuzz` runs it
//! under libFuzzer; the tests run it over the committed corpus, which has an input for every branch that was ever
//! reached, and every input that ever broke something (named after what it broke).

mod body;
mod first_bytes;
mod head;
mod hyper_agrees;
mod names;
mod paths;
mod plain;
mod snapshot;
mod upgrade;

use keel_proxy::fuzz::Refused;

/// Something to feed bytes to.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its directory below `corpus/`.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "request_head", run: head::request },
    Target { name: "response_head", run: head::response },
    Target { name: "chunked_body", run: body::chunked },
    Target { name: "hyper_agrees", run: hyper_agrees::run },
    Target { name: "proxy_protocol", run: first_bytes::proxy_protocol },
    Target { name: "detect", run: first_bytes::detection },
    Target { name: "client_hello", run: names::client_hello },
    Target { name: "paths", run: paths::run },
    Target { name: "upgrade", run: upgrade::run },
    Target { name: "frames", run: snapshot::frames },
    Target { name: "state", run: snapshot::state },
];

/// What reading the head of a message came to; `None` if it is not complete.
type Read<T> = Result<Option<T>, Refused>;

/// A verdict stands whatever follows: reading `cut` bytes came to `part`, reading them and more to `whole`.
fn stands<T>(whole: &Read<T>, part: &Read<T>, length: impl Fn(&T) -> usize, cut: usize) {
    match (whole, part) {
        (Ok(Some(whole)), Ok(Some(part))) => assert_eq!(length(part), length(whole)),
        (Ok(Some(whole)), Ok(None)) => assert!(cut < length(whole), "more was asked for"),
        (Ok(Some(_)), Err(_)) => panic!("refused before it was complete"),
        (Ok(None) | Err(_), Ok(None)) | (Err(_), Err(_)) => {}
        (Ok(None) | Err(_), Ok(Some(_))) => panic!("complete, and then not"),
        (Ok(None), Err(_)) => panic!("refused, and then not"),
    }
}

/// Up to `count` places to cut `bytes` at, different for different bytes and the same for the same.
fn cuts(bytes: &[u8], count: usize) -> impl Iterator<Item = usize> {
    // FNV-1a: chance enough, and repeatable.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let length = bytes.len() as u64 + 1;
    (0..count as u32).map(move |turn| (hash.rotate_left(turn * 16) % length) as usize)
}
