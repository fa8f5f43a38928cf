//! How TLS is begun towards endpoints.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keel_model::UpstreamTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::files::{ConfigError, PemFile};

/// Configurations that are kept; the oldest is made anew when it is needed again.
const MAX_CONFIGS: usize = 1024;

/// What a configuration was made from.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    server_name: Option<String>,
    insecure: bool,
    ca: Option<PemFile>,
    identity: Option<(PemFile, PemFile)>,
    protocols: Vec<Vec<u8>>,
}

/// Configurations towards endpoints; shared by all workers.
#[derive(Debug)]
pub struct Upstreams {
    provider: Arc<CryptoProvider>,
    system: OnceLock<Arc<RootCertStore>>,
    known: Mutex<Vec<(Source, Arc<ClientConfig>)>>,
}

impl Default for Upstreams {
    fn default() -> Self {
        let mut provider = aws_lc_rs::default_provider();
        // The post-quantum exchange makes the first message larger than a packet, and old servers stumble over
        // that. It is offered last, for servers that insist.
        provider.kx_groups = vec![
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
            kx_group::X25519MLKEM768,
        ];
        Self { provider: Arc::new(provider), system: OnceLock::new(), known: Mutex::default() }
    }
}

impl Upstreams {
    /// The configuration for `tls` with these protocols on offer (ALPN, in order of preference). Reads the files that are
    /// named; the same configuration as before, with its sessions, unless something has changed.
    ///
    /// # Errors
    /// When a file is not what it should be.
    pub fn config(
        &self,
        tls: &UpstreamTls,
        protocols: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, ConfigError> {
        let source = Source {
            server_name: tls.server_name.clone(),
            insecure: tls.insecure,
            ca: tls.ca.as_deref().map(PemFile::read).transpose()?,
            identity: match &tls.identity {
                Some((chain, key)) => Some((PemFile::read(chain)?, PemFile::read(key)?)),
                None => None,
            },
            protocols: protocols.iter().map(|protocol| protocol.to_vec()).collect(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = known.iter().find(|(known, _)| *known == source) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.make(&source)?);
        if known.len() == MAX_CONFIGS {
            known.remove(0);
        }
        known.push((source, config.clone()));
        Ok(config)
    }

    fn make(&self, source: &Source) -> Result<ClientConfig, ConfigError> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = if source.insecure {
            let any = Arc::new(AnyCertificate(self.provider.clone()));
            builder.dangerous().with_custom_certificate_verifier(any)
        } else {
            let roots = match &source.ca {
                Some(file) => Arc::new(file.authorities()?),
                None => self.system.get_or_init(|| Arc::new(system_roots())).clone(),
            };
            builder.with_root_certificates(roots)
        };
        let mut config = match &source.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.chain()?, key.key()?)
                .map_err(|error| key.problem(error))?,
        };
        config.alpn_protocols.clone_from(&source.protocols);
        Ok(config)
    }
}

/// The name under which an endpoint is asked for: that of the policy, else the host of the request.
///
/// # Errors
/// When it is neither a DNS name nor an address.
pub fn server_name(tls: &UpstreamTls, host: &str) -> Result<ServerName<'static>, Error> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned())
        .map_err(|_| Error::General(format!("{name:?} is no name that a certificate can be for")))
}

/// The authorities that this system trusts; where it has none (a container with nothing in it), Mozilla's.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "some authorities of the system can't be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Takes any certificate, but not a handshake by somebody else than its owner.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
