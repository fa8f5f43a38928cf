//! The PROXY protocol, versions 1 and 2: who the client of a connection is that a proxy in front of us accepted
//! (HAProxy's `proxy-protocol.txt` of 2020/03/05, the one of 2.x and 3.0).
//!
//! Strict, because what it says decides what a client may do: ports without sign or leading zeros, lines that end in CR
//! LF, no additions that run over the end, and a checksum, if there is one, that is right. Whoever is listened to has to
//! be trusted by its address first; that is the caller's business.
//!
//! Own code, as both crates for it failed when tried. `ppp` 2.3 calls a header broken that was cut after the space before
//! its last port, `proxy-header` 0.1 puts no bound on a complete version 1 line and takes `PROXYxTCP4` and
//! `UNKNOWNx`; both take `+6` for a port, refuse `LOCAL` with a family they do not know, and check no checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};
use keel_model::ProxyVersion;

/// Longest line of version 1, its end included (section 2.1).
pub const MAX_V1: usize = 107;
/// Longest header of version 2 that is taken, additions included. The format allows 64 KiB; what is known to send
/// additions (certificate names, cloud endpoints) stays far below this.
pub const MAX_V2: usize = 4096;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family, length.
const V2_FIXED: usize = 16;
/// Length of two addresses of Unix sockets.
const UNIX_ADDRESSES: usize = 216;
/// Type and length of an addition.
const TLV_FIXED: usize = 3;
/// The addition with the checksum (section 2.2.3).
const TLV_CRC32C: u8 = 0x03;
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header, so far; more has to come. At most [`MAX_V2`] bytes are ever asked for.
    Incomplete,
    /// Not a header: something else is spoken.
    NotProxy,
    /// It begins like a header and is none, for this reason. The connection is to be closed.
    Malformed(&'static str),
    /// A header.
    Header {
        /// Its length; what is spoken begins after it.
        len: usize,
        /// The client. `None`: the sender speaks for itself (a health check) or does not know; the addresses of the
        /// connection hold.
        source: Option<SocketAddr>,
        /// Where the client connected to.
        destination: Option<SocketAddr>,
    },
}

/// Looks for a header at the start of `bytes`, the first of a connection. A verdict other than
/// [`Parsed::Incomplete`] stands whatever follows.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    if is_begun(bytes, V1_PREFIX) {
        return if bytes.len() < V1_PREFIX.len() { Parsed::Incomplete } else { v1(bytes) };
    }
    if is_begun(bytes, V2_SIGNATURE) {
        return if bytes.len() < V2_FIXED { Parsed::Incomplete } else { v2(bytes) };
    }
    Parsed::NotProxy
}

/// Whether `bytes` begin with `prefix`, as far as they go.
fn is_begun(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(a, b)| a == b)
}

/// A line of words (section 2.1).
fn v1(bytes: &[u8]) -> Parsed {
    let within = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = within.iter().position(|b| *b == b'\n') else {
        return if within.len() < MAX_V1 {
            Parsed::Incomplete
        } else {
            Parsed::Malformed("its line is longer than 107 bytes")
        };
    };
    let line = within[..end].strip_suffix(b"\r").filter(|line| !line.contains(&b'\r'));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else {
        return Parsed::Malformed("its line does not end in CR LF, or is not text");
    };
    let addresses = match line[V1_PREFIX.len()..].split_once(' ') {
        // What follows is of no meaning.
        Some(("UNKNOWN", _)) => return without_addresses(end + 1),
        None if line.ends_with("PROXY UNKNOWN") => return without_addresses(end + 1),
        Some(("TCP4", rest)) => v1_addresses::<Ipv4Addr>(rest),
        Some(("TCP6", rest)) => v1_addresses::<Ipv6Addr>(rest),
        _ => return Parsed::Malformed("its family is none of TCP4, TCP6 and UNKNOWN"),
    };
    match addresses {
        Some((source, destination)) => with_addresses(end + 1, source, destination),
        None => Parsed::Malformed("its line is not two addresses and two ports of its family"),
    }
}

fn v1_addresses<T>(words: &str) -> Option<(SocketAddr, SocketAddr)>
where
    T: std::str::FromStr + Into<IpAddr>,
{
    let mut words = words.split(' ');
    let source: T = words.next()?.parse().ok()?;
    let destination: T = words.next()?.parse().ok()?;
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    let addresses = ((source.into(), source_port).into(), (destination.into(), destination_port));
    words.next().is_none().then(|| (addresses.0, addresses.1.into()))
}

/// `u16::from_str` takes a sign and leading zeros; the format has neither.
fn port(word: &str) -> Option<u16> {
    let digits =
        word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| digits)
}

/// A binary block (section 2.2). `bytes` begin with its fixed part.
fn v2(bytes: &[u8]) -> Parsed {
    let announced = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let len = V2_FIXED + announced;
    if len > MAX_V2 {
        return Parsed::Malformed("it is longer than 4096 bytes");
    }
    let (version, command) = (bytes[12] >> 4, bytes[12] & 0xf);
    let (family, transport) = (bytes[13] >> 4, bytes[13] & 0xf);
    if version != 2 || command > 1 {
        return Parsed::Malformed("its version is not 2, or its command not known");
    }
    let is_local = command == 0;
    if !is_local && (family > 3 || transport > 2) {
        return Parsed::Malformed("its family or transport is not known");
    }
    let Some(header) = bytes.get(..len) else { return Parsed::Incomplete };
    // The sender speaks for itself, or about something without addresses: the rest is of no meaning.
    if is_local || family == 0 {
        return without_addresses(len);
    }
    let block = &header[V2_FIXED..];
    let (addresses, used) = match family {
        1 => (addresses(block, 4), 12),
        2 => (addresses(block, 16), 36),
        _ => (None, UNIX_ADDRESSES),
    };
    if block.len() < used {
        return Parsed::Malformed("it is too short for its addresses");
    }
    if let Err(why) = check_additions(header, V2_FIXED + used) {
        return Parsed::Malformed(why);
    }
    // Only TCP is spoken here: datagrams are somebody else's, though not an error (HAProxy does the same).
    match addresses.filter(|_| transport == 1) {
        Some((source, destination)) => with_addresses(len, source, destination),
        None => without_addresses(len),
    }
}

/// Two addresses of `size` bytes, then two ports.
fn addresses(block: &[u8], size: usize) -> Option<(SocketAddr, SocketAddr)> {
    let ip = |at: usize| -> Option<IpAddr> {
        let octets = block.get(at..at + size)?;
        <[u8; 4]>::try_from(octets)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
            .ok()
    };
    let port = |at: usize| Some(u16::from_be_bytes([*block.get(at)?, *block.get(at + 1)?]));
    Some(((ip(0)?, port(2 * size)?).into(), (ip(size)?, port(2 * size + 2)?).into()))
}

/// Walks the additions, which begin at `at`, and checks the checksum if one is there.
fn check_additions(header: &[u8], mut at: usize) -> Result<(), &'static str> {
    let mut checked = false;
    while at < header.len() {
        let Some([kind, high, low]) = header.get(at..).and_then(|rest| rest.first_chunk()) else {
            return Err("an addition is cut off");
        };
        let value = at + TLV_FIXED;
        let end = value + usize::from(u16::from_be_bytes([*high, *low]));
        let Some(content) = header.get(value..end) else {
            return Err("an addition is longer than the header");
        };
        if *kind == TLV_CRC32C {
            let Ok(claimed) = <[u8; 4]>::try_from(content) else {
                return Err("its checksum is not of 4 bytes");
            };
            if checked || u32::from_be_bytes(claimed) != checksum(header, value) {
                return Err("its checksum is wrong");
            }
            checked = true;
        }
        at = end;
    }
    Ok(())
}

/// CRC-32C of the header with its own field, at `field`, taken for zeros.
fn checksum(header: &[u8], field: usize) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&header[..field]);
    digest.update(&[0; 4]);
    digest.update(&header[field + 4..]);
    digest.finalize()
}

fn without_addresses(len: usize) -> Parsed {
    Parsed::Header { len, source: None, destination: None }
}

/// An IPv4 address in the clothes of IPv6 is undressed: lists of addresses name the former.
fn with_addresses(len: usize, source: SocketAddr, destination: SocketAddr) -> Parsed {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    Parsed::Header { len, source: Some(plain(source)), destination: Some(plain(destination)) }
}

/// The header that says that `source` connected to `destination`, over TCP. If one is of IPv4 and the other of IPv6,
/// both are written as IPv6.
#[must_use]
pub fn write(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = (source.port(), destination.port());
    let ips = (source.ip().to_canonical(), destination.ip().to_canonical());
    match (version, ips) {
        (ProxyVersion::V1, (IpAddr::V4(from), IpAddr::V4(to))) => {
            format!("PROXY TCP4 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        (ProxyVersion::V1, (from, to)) => {
            let (from, to) = (as_v6(from), as_v6(to));
            format!("PROXY TCP6 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        (ProxyVersion::V2, (IpAddr::V4(from), IpAddr::V4(to))) => {
            binary(0x11, &from.octets(), &to.octets(), ports)
        }
        (ProxyVersion::V2, (from, to)) => {
            binary(0x21, &as_v6(from).octets(), &as_v6(to).octets(), ports)
        }
    }
}

/// The header of a connection that the proxy makes for itself, such as a health check.
#[must_use]
pub fn write_local(version: ProxyVersion) -> Vec<u8> {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyVersion::V2 => [V2_SIGNATURE, &[0x20, 0, 0, 0]].concat(),
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn binary(family: u8, from: &[u8], to: &[u8], ports: (u16, u16)) -> Vec<u8> {
    let length = u16::try_from(from.len() + to.len() + 4).expect("two addresses are short");
    let mut out = [V2_SIGNATURE, &[0x21, family], &length.to_be_bytes(), from, to].concat();
    out.extend_from_slice(&ports.0.to_be_bytes());
    out.extend_from_slice(&ports.1.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: &[u8]) -> (usize, Option<String>, Option<String>) {
        match parse(bytes) {
            Parsed::Header { len, source, destination } => {
                (len, source.map(|a| a.to_string()), destination.map(|a| a.to_string()))
            }
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
        }
    }

    /// A header of version 2 with this command, family and content.
    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, content].concat()
    }

    const IPV4: &[u8] = &[10, 0, 0, 9, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];

    /// `content` with an addition that holds the right checksum.
    fn checked(content: &[u8]) -> Vec<u8> {
        let mut bytes = binary(0x21, 0x11, &[content, &[TLV_CRC32C, 0, 4, 0, 0, 0, 0]].concat());
        let field = bytes.len() - 4;
        let sum = checksum(&bytes, field).to_be_bytes();
        bytes[field..].copy_from_slice(&sum);
        bytes
    }

    #[test]
    fn good_ones() {
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), MAX_V1);
        let some = |a: &str| Some(a.to_owned());
        for (bytes, source, destination) in [
            (
                &b"PROXY TCP4 10.0.0.9 10.0.0.1 8080 80\r\n"[..],
                some("10.0.0.9:8080"),
                some("10.0.0.1:80"),
            ),
            (
                b"PROXY TCP4 10.0.0.9 10.0.0.1 0 65535\r\n",
                some("10.0.0.9:0"),
                some("10.0.0.1:65535"),
            ),
            (
                b"PROXY TCP6 2001:db8::9 ::1 8080 80\r\n",
                some("[2001:db8::9]:8080"),
                some("[::1]:80"),
            ),
            (b"PROXY TCP6 ::ffff:10.0.0.9 ::1 1 2\r\n", some("10.0.0.9:1"), some("[::1]:2")),
            (b"PROXY UNKNOWN\r\n", None, None),
            (b"PROXY UNKNOWN \r\n", None, None),
            (b"PROXY UNKNOWN what ever\r\n", None, None),
            (longest.as_bytes(), None, None),
            (&binary(0x21, 0x11, IPV4), some("10.0.0.9:8080"), some("10.0.0.1:80")),
            // A health check of HAProxy; LOCAL with a family of the future.
            (&binary(0x20, 0, &[]), None, None),
            (&binary(0x20, 0xff, &[1, 2, 3]), None, None),
            // Not told, datagrams, Unix sockets.
            (&binary(0x21, 0, &[1]), None, None),
            (&binary(0x21, 0x12, IPV4), None, None),
            (&binary(0x21, 0x31, &[0; UNIX_ADDRESSES]), None, None),
            // Additions: none of our business, of no length, with a checksum.
            (
                &binary(0x21, 0x11, &[IPV4, &[0x04, 0, 2, 9, 9, 0xE0, 0, 0]].concat()),
                some("10.0.0.9:8080"),
                some("10.0.0.1:80"),
            ),
            (&checked(IPV4), some("10.0.0.9:8080"), some("10.0.0.1:80")),
            (
                &checked(&[IPV4, &[0x02, 0, 1, b'a']].concat()),
                some("10.0.0.9:8080"),
                some("10.0.0.1:80"),
            ),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete, "{cut} of {bytes:?}");
            }
            let followed = [bytes, b"GET /"].concat();
            assert_eq!(header(&followed), (bytes.len(), source, destination));
        }
    }

    /// Written by HAProxy 2.6 (`send-proxy-v2 proxy-v2-options crc32c`), so that the checksum is not only our own.
    #[test]
    fn a_checksum_of_haproxy_is_right() {
        let mut bytes =
            *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x7f\0\0\x01\x7f\0\0\x01\x8c\x88\x42\x69\
            \x03\0\x04\xb1\xd5\x09\xfc";
        assert_eq!(
            header(&bytes),
            (35, Some("127.0.0.1:35976".into()), Some("127.0.0.1:17001".into()))
        );
        bytes[16] ^= 1;
        assert_eq!(parse(&bytes), Parsed::Malformed("its checksum is wrong"));
    }

    #[test]
    fn bad_ones() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 15));
        let twice = {
            let mut bytes = checked(IPV4);
            bytes.extend_from_within(bytes.len() - 7..);
            bytes[15] += 7;
            bytes
        };
        for bytes in [
            &b"PROXY TCP4 10.0.0.9 10.0.0.1 8080 80\n"[..],
            b"PROXY TCP4 10.0.0.9 10.0.0.1 8080 80\r\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 8080\r80\r\n",
            b"PROXY UNKNOWN a\rb\r\n",
            b"PROXY UNKNOWN\n",
            b"PROXY UNKNOWNx\r\n",
            b"PROXY UNKNOWN \xff\r\n",
            b"PROXY  UNKNOWN\r\n",
            b"PROXY \r\n",
            b"PROXY TCP5 10.0.0.9 10.0.0.1 1 2\r\n",
            b"PROXY tcp4 10.0.0.9 10.0.0.1 1 2\r\n",
            b"PROXY TCP4\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 1\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 1 2 3\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 1 2 \r\n",
            b"PROXY TCP4 10.0.0.9  10.0.0.1 1 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 +1 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 01 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 -1 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 65536 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1  2\r\n",
            b"PROXY TCP4 10.0.0 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 010.0.0.9 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 10.0.0.256 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 10.0.0.9 10.0.0.1 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY TCP6 [::1] ::1 1 2\r\n",
            too_long.as_bytes(),
            &[b'P', b'R', b'O', b'X', b'Y', b' '].repeat(20),
            &binary(0x11, 0x11, IPV4),
            &binary(0x22, 0x11, IPV4),
            &binary(0x21, 0x41, IPV4),
            &binary(0x21, 0x13, IPV4),
            &binary(0x21, 0x11, &IPV4[..11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x21, 0x31, &[0; UNIX_ADDRESSES - 1]),
            &binary(0x21, 0x11, &[IPV4, &[4]].concat()),
            &binary(0x21, 0x11, &[IPV4, &[4, 0]].concat()),
            &binary(0x21, 0x11, &[IPV4, &[4, 0, 1]].concat()),
            &binary(0x21, 0x11, &[IPV4, &[4, 0xff, 0xff, 0]].concat()),
            &binary(0x21, 0x11, &[IPV4, &[TLV_CRC32C, 0, 3, 0, 0, 0]].concat()),
            &binary(0x21, 0x11, &[IPV4, &[TLV_CRC32C, 0, 4, 0, 0, 0, 0]].concat()),
            &twice,
            // Refused before any of it is read.
            &binary(0x21, 0x11, &[0; MAX_V2 - V2_FIXED + 1])[..V2_FIXED],
        ] {
            let shown = String::from_utf8_lossy(bytes).into_owned();
            assert!(matches!(parse(bytes), Parsed::Malformed(_)), "{shown:?}: {:?}", parse(bytes));
        }
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXX",
            b"P ",
            b"\r\nGET",
            b"\0",
            b"\r\n\r\n\0\r\nQUIT\r",
        ] {
            assert_eq!(parse(bytes), Parsed::NotProxy, "{bytes:?}");
        }
    }

    #[test]
    fn ours_speak_for_themselves() {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let bytes = write_local(version);
            assert_eq!(header(&bytes), (bytes.len(), None, None));
        }
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
            (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from),
            (any::<[u8; 4]>(), any::<u16>())
                .prop_map(|(ip, port)| { (Ipv4Addr::from(ip).to_ipv6_mapped(), port).into() }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            source in address(),
            destination in address(),
            text: bool,
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let version = if text { ProxyVersion::V1 } else { ProxyVersion::V2 };
            let bytes = write(version, source, destination);
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete);
            }
            let expected = with_addresses(bytes.len(), source, destination);
            prop_assert_eq!(parse(&[bytes, rest].concat()), expected);
        }

        #[test]
        fn a_verdict_stands_whatever_follows(
            start in prop_oneof![
                Just(Vec::new()),
                Just(b"PROXY TCP4 ".to_vec()),
                Just(V2_SIGNATURE.to_vec()),
                Just(binary(0x21, 0x11, IPV4)[..15].to_vec()),
            ],
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..150),
        ) {
            let bytes = [start, bytes].concat();
            let whole = parse(&bytes);
            for cut in 0..bytes.len() {
                let part = parse(&bytes[..cut]);
                prop_assert!(part == whole || part == Parsed::Incomplete, "{:?} {:?}", part, whole);
            }
        }
    }
}
