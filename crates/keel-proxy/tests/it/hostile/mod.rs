//! Peers that behave badly, by mistake or on purpose, and a machine that runs out of things.

mod clients;
mod endpoints;
mod leaving;
mod machine;

use keel_model::Protocol;

use crate::backend::Backend;
use crate::client::{Client, get};
use crate::proxy::Proxy;

/// A proxy in front of one endpoint, and its address.
fn before(backend: &Backend) -> (Proxy, std::net::SocketAddr) {
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    (proxy, address)
}

/// Everything that comes until the end, and whether that was a proper end.
fn rest(client: &mut Client) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let ended = std::io::Read::read_to_end(&mut client.reader, &mut bytes);
    if let Err(error) = &ended {
        let kind = error.kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "the proxy never hangs");
    }
    (bytes, ended.is_ok())
}

/// Others are served as if nothing had happened.
fn serves(address: std::net::SocketAddr) {
    // More than there are workers.
    for _ in 0..4 {
        assert_eq!(get(address, "/decent").status, 200);
    }
}
