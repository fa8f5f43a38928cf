//! Server names: what is read from a ClientHello is what rustls would read, however it arrives.

use keel_proxy::tls::{ClientHello, Peeked, peek_client_hello};
use rustls::server::Acceptor;

/// `client_hello`.
pub fn client_hello(bytes: &[u8]) {
    let whole = peek_client_hello(bytes);
    for cut in crate::cuts(bytes, 4) {
        let part = peek_client_hello(&bytes[..cut]);
        assert!(part == whole || part == Peeked::Incomplete, "{part:?}, then {whole:?}");
    }
    // A connection must not be routed by one name and served by another.
    if let Some(theirs) = rustls_reads(bytes) {
        assert_eq!(whole, Peeked::Hello(theirs));
    }
}

fn rustls_reads(mut bytes: &[u8]) -> Option<ClientHello> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some(ClientHello {
                server_name: hello.server_name().map(Into::into),
                protocols: hello.alpn().into_iter().flatten().map(Into::into).collect(),
            });
        }
    }
    None
}
