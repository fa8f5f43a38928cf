//! What the first bytes of a connection say: a verdict stands whatever follows.

use keel_proxy::fuzz::RequestHead;
use keel_route::detect::{More, Wire, detect};
use keel_route::proxy_protocol::{MAX_V1, MAX_V2, Parsed, parse, write};
use proxy_header::ProxyHeader;

/// `proxy_protocol`.
pub fn proxy_protocol(bytes: &[u8]) {
    let whole = parse(bytes);
    for cut in crate::cuts(bytes, 4) {
        let part = parse(&bytes[..cut]);
        assert!(part == whole || part == Parsed::Incomplete, "{part:?}, then {whole:?}");
        if let (Parsed::Header { len, .. }, Parsed::Incomplete) = (whole, part) {
            assert!(cut < len, "more was asked for than there is");
        }
    }
    let Parsed::Header { len, source, destination } = whole else {
        assert!(whole != Parsed::Incomplete || bytes.len() < MAX_V2, "it never ends");
        return;
    };
    let most = if bytes[0] == b'P' { MAX_V1 } else { MAX_V2 };
    assert!(len <= bytes.len().min(most));
    assert_eq!(source.is_some(), destination.is_some());
    let (Some(source), Some(destination)) = (source, destination) else { return };
    // Others, who take more, take it too, and read the same.
    let (theirs, their_len) = ProxyHeader::parse(bytes, Default::default()).expect("a header");
    let theirs = theirs.proxied_address().expect("addresses");
    let plain = |a: std::net::SocketAddr| (a.ip().to_canonical(), a.port());
    assert_eq!(
        (plain(theirs.source), plain(theirs.destination)),
        (plain(source), plain(destination))
    );
    assert_eq!(their_len, len);
    for version in [keel_model::ProxyVersion::V1, keel_model::ProxyVersion::V2] {
        let written = write(version, source, destination);
        let read = Parsed::Header {
            len: written.len(),
            source: Some(source),
            destination: Some(destination),
        };
        assert_eq!(parse(&written), read);
    }
}

/// `detect`.
pub fn detection(bytes: &[u8]) {
    let whole = detect(bytes, More::MayCome);
    for cut in crate::cuts(bytes, 4) {
        let part = detect(&bytes[..cut], More::MayCome);
        assert!(part.is_none() || part == whole, "{part:?}, then {whole:?}");
    }
    let last = detect(bytes, More::Not);
    assert!(last.is_some(), "no verdict when no more comes");
    assert!(whole.is_none() || whole == last, "{whole:?}, then {last:?}");
    // What can be served as HTTP/1 is told to be.
    let is_method = |b: &&u8| b.is_ascii_uppercase();
    let method = bytes.iter().take_while(is_method).count();
    let usual = (1..=24).contains(&method) && bytes.get(method) == Some(&b' ');
    if usual && matches!(RequestHead::read(bytes), Ok(Some(_))) {
        assert_eq!(whole, Some(Wire::Http1));
    }
}
