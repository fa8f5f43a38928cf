//! TLS of the data plane: ended at listeners, begun towards endpoints, looked at where it passes through.
//!
//! rustls does the cryptography. Here is what joins it to the worker: a connection that is used like a TCP
//! connection ([`Tls`]), which certificate is shown to whom ([`Certificates`]), how listeners and endpoints are
//! configured ([`Listeners`], [`Upstreams`]), and what a ClientHello and a client's certificate say.

mod async_io;
mod certificates;
mod client_certificate;
mod files;
mod flow;
mod handshake;
mod hello;
mod listeners;
mod session;
mod stream;
mod upstreams;

pub use certificates::{CertificateProblem, Certificates};
pub use client_certificate::{
    AlternativeName, CLIENT_CERTIFICATE_HEADER, ClientCertificate, Detail,
};
pub use files::ConfigError;
pub use handshake::{HandshakeError, accept, connect};
pub use hello::{ACME_TLS, ClientHello, MAX_HELLO, Peeked, peek_client_hello};
pub use listeners::{ListenerConfig, Listeners};
pub use stream::Tls;
pub use upstreams::{Upstreams, server_name};

#[cfg(test)]
mod tests;
