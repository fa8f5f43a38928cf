//! TLS on either side of the proxy, and what it says of the client.

#[path = "../../../src/tls/tests/authority.rs"]
mod authority;
mod clients;
mod connections;
mod endpoints;
mod introduced;
mod listeners;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use keel_model::{Protocol, Rule};
use keel_route::snapshot::{Certificate, ListenerTls, RouteEntry};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use self::authority::Authority;
use crate::http2::background::spawn;
use crate::http2::either::{Endpoint, Version};
use crate::proxy::CART;
use crate::routes::{Site, clusters, route};

const BOTH: [Version; 2] = [Version::One, Version::Two];

/// A proxy with one listener where TLS ends; all requests go to `endpoint`.
fn door(endpoint: &Endpoint, tls: ListenerTls, certificates: Vec<Certificate>) -> Site {
    door_with(vec![route("all", Rule::default(), CART)], endpoint, tls, certificates)
}

fn door_with(
    routes: Vec<RouteEntry>,
    endpoint: &Endpoint,
    tls: ListenerTls,
    certificates: Vec<Certificate>,
) -> Site {
    let mut site = Site::new(routes, clusters([(CART, endpoint)]));
    site.state.listeners[0].tls = Some(tls);
    site.state.listeners[0].protocol = Protocol::Http;
    site.state.certificates = certificates.into();
    site.apply();
    site
}

/// What a client of TLS brings along.
#[derive(Clone)]
struct Visitor {
    ca: PathBuf,
    name: &'static str,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Visitor {
    fn new(authority: &Authority, name: &'static str) -> Self {
        Self { ca: authority.file(), name, identity: None }
    }

    fn with(self, identity: (PathBuf, PathBuf)) -> Self {
        Self { identity: Some(identity), ..self }
    }

    fn config(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(&self.ca));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                builder.with_client_auth_cert(chain_in(chain), key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Shakes hands.
    async fn greet(
        &self,
        address: SocketAddr,
        protocols: &[&str],
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.name).unwrap();
        TlsConnector::from(self.config(protocols)).connect(name, tcp).await
    }

    /// The certificate that is shown to it, and what is agreed to be spoken.
    async fn shown(&self, address: SocketAddr, protocols: &[&str]) -> (Vec<u8>, Option<Vec<u8>>) {
        let tls = self.greet(address, protocols).await.unwrap();
        let (_, session) = tls.get_ref();
        let leaf = session.peer_certificates().unwrap()[0].to_vec();
        (leaf, session.alpn_protocol().map(<[u8]>::to_vec))
    }

    /// An address where what is said in clear reaches `address` by TLS.
    async fn way_to(&self, address: SocketAddr, protocols: &'static [&'static str]) -> SocketAddr {
        let (listener, here) = listen().await;
        let visitor = self.clone();
        spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let visitor = visitor.clone();
                spawn(async move {
                    if let Ok(mut tls) = visitor.greet(address, protocols).await {
                        let _ = copy_bidirectional(&mut plain, &mut tls).await;
                    }
                });
            }
        });
        here
    }

    /// As [`Visitor::way_to`], for clients of this version.
    async fn speaks(&self, version: Version, address: SocketAddr) -> SocketAddr {
        self.way_to(address, offered(version)).await
    }
}

fn offered(version: Version) -> &'static [&'static str] {
    match version {
        Version::One => &["http/1.1"],
        Version::Two => &["h2"],
    }
}

/// What an endpoint saw of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Handshake {
    name: Option<String>,
    protocol: Option<Vec<u8>>,
    identified: bool,
}

/// TLS before an endpoint that speaks in clear.
struct Front {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Handshake>>>,
}

impl Front {
    /// With `clients`, they must have certificates of this authority.
    async fn new(
        endpoint: &Endpoint,
        certificate: &Certificate,
        protocols: &[&str],
        clients: Option<&Authority>,
    ) -> Self {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let roots = roots(&authority.file()).into();
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(chain(certificate), key).unwrap();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let (listener, address) = listen().await;
        let seen = Arc::<Mutex<Vec<Handshake>>>::default();
        let (notes, behind) = (Arc::clone(&seen), endpoint.address());
        spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, notes) = (acceptor.clone(), Arc::clone(&notes));
                spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let session = tls.get_ref().1;
                    notes.lock().unwrap().push(Handshake {
                        name: session.server_name().map(str::to_owned),
                        protocol: session.alpn_protocol().map(<[u8]>::to_vec),
                        identified: session.peer_certificates().is_some(),
                    });
                    let mut plain = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut tls, &mut plain).await;
                });
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Handshake> {
        self.seen.lock().unwrap().clone()
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca: &std::path::Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    chain_in(ca).into_iter().for_each(|certificate| roots.add(certificate).unwrap());
    roots
}

fn chain_in(file: &std::path::Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect()
}

fn chain(certificate: &Certificate) -> Vec<CertificateDer<'static>> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    chain.map(Result::unwrap).collect()
}

fn leaf(certificate: &Certificate) -> Vec<u8> {
    chain(certificate)[0].to_vec()
}
