//! Handshakes, bounded in time.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::hello::ClientHello;
use super::session::Session;
use super::stream::Tls;
use crate::deadline::Deadline;
use crate::tcp::Tcp;

/// Why there is no TLS on a connection. The peer has been told, if it is still there.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer was too slow.
    #[error("the TLS handshake was not done in time")]
    TimedOut,
    /// The connection broke.
    #[error("the connection broke during the TLS handshake: {0}")]
    Broken(#[source] io::Error),
    /// One side does not accept what the other says: no common version, an unknown certificate, garbage, …
    #[error("the TLS handshake failed: {0}")]
    Refused(#[from] rustls::Error),
}

/// Ends TLS that a client begins. `first` are the bytes read from `tcp` so far, `hello` is what they say
/// ([`super::peek_client_hello`]).
///
/// # Errors
/// [`HandshakeError`]. The whole handshake has to be over by the `deadline`, which the caller has set.
pub async fn accept(
    tcp: Tcp,
    hello: &ClientHello,
    first: &[u8],
    config: Arc<ServerConfig>,
    deadline: &Deadline,
) -> Result<Tls, HandshakeError> {
    let tls = Tls::new(tcp, Session::server(config)?, hello.server_name.clone());
    shake(tls, first, deadline).await
}

/// Begins TLS with a server whose certificate must be for `name`.
///
/// # Errors
/// As [`accept`].
pub async fn connect(
    tcp: Tcp,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    deadline: &Deadline,
) -> Result<Tls, HandshakeError> {
    let server_name = match &name {
        ServerName::DnsName(name) => Some(name.as_ref().into()),
        _ => None,
    };
    let tls = Tls::new(tcp, Session::client(config, name)?, server_name);
    shake(tls, &[], deadline).await
}

async fn shake(tls: Tls, first: &[u8], deadline: &Deadline) -> Result<Tls, HandshakeError> {
    tls.feed(first);
    if let Some(error) = tls.failure() {
        return Err(told(&tls, error, deadline).await);
    }
    loop {
        deadline.until(|cx| tls.poll_flush(cx)).await.map_err(broken)?;
        if !tls.is_handshaking() {
            return Ok(tls);
        }
        deadline.until(|cx| tls.tcp().poll_read_ready(cx)).await.map_err(broken)?;
        let advanced = tls.advance();
        if let Some(error) = tls.failure() {
            return Err(told(&tls, error, deadline).await);
        }
        match advanced {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(HandshakeError::Broken(error)),
        }
    }
}

/// Sends the alert that says why.
async fn told(tls: &Tls, error: rustls::Error, deadline: &Deadline) -> HandshakeError {
    // The peer may be gone; that it failed for this reason is what counts.
    let _ = deadline.until(|cx| tls.poll_flush(cx)).await;
    HandshakeError::Refused(error)
}

fn broken(error: io::Error) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::TimedOut => HandshakeError::TimedOut,
        _ => HandshakeError::Broken(error),
    }
}
