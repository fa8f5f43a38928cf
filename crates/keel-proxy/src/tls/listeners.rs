//! How TLS is ended at listeners: one configuration for each way in which a listener wants it.
//!
//! What may be resumed: a session that began at a listener with the same demands on clients. Listeners that
//! differ in that do not share the keys of tickets, because a resumed session brings the client's certificate along and
//! nobody would verify it against the other listener's authorities.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use keel_model::{ClientAuth, TlsVersion};
use keel_route::snapshot::{Certificate, Challenges, ListenerTls};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    NoClientAuth, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use super::certificates::{
    CertificateProblem, Certificates, ChallengeResolver, Fallback, Resolver,
};
use super::files::{ConfigError, PemFile};
use super::hello::{ACME_TLS, ClientHello};

/// Sessions that are remembered for clients without tickets, for each demand on clients. About 0.3 KB each.
const SESSIONS: usize = 4096;
/// Demands on clients that are kept; the oldest is made anew when it is needed again.
const MAX_DEMANDS: usize = 64;
/// Protocols that are offered, in order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Versions, newest first.
const VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// How TLS is ended at one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    normal: Arc<ServerConfig>,
    challenge: Arc<ServerConfig>,
}

impl ListenerConfig {
    /// The configuration for a client that says `hello`. After a handshake with [`ACME_TLS`] the connection is
    /// to be closed.
    #[must_use]
    pub fn for_hello(&self, hello: &ClientHello) -> Arc<ServerConfig> {
        if hello.is_acme_challenge() { self.challenge.clone() } else { self.normal.clone() }
    }
}

/// What listeners may demand of clients, with the configurations that do.
#[derive(Debug)]
struct Demand {
    /// Who is let in, with the file of authorities as it was.
    auth: Option<(ClientAuth, PemFile)>,
    from_1_2: ListenerConfig,
    from_1_3: ListenerConfig,
}

/// Everything of the process that ends TLS; shared by all workers.
#[derive(Debug)]
pub struct Listeners {
    provider: Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
    default: Fallback,
    demands: Mutex<Vec<Demand>>,
}

impl Default for Listeners {
    /// Without certificates but the one that we make ourselves.
    fn default() -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let default: Fallback = Arc::new(LazyLock::new(|| {
            let made = self_signed(&aws_lc_rs::default_provider());
            made.inspect_err(|error| tracing::error!(%error, "no certificate of our own")).ok()
        }));
        let (resolver, demands) = (Arc::new(Resolver::default()), Mutex::default());
        let listeners = Self { provider, resolver, default, demands };
        listeners.set_certificates(&[], &Challenges::default());
        listeners
    }
}

impl Listeners {
    /// Makes our own certificate on a thread. The library gathers randomness for tens of milliseconds before its first
    /// key, and who speaks plain HTTP to a proxy that was just started, perhaps after another one died, should not wait
    /// for that.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn prepare(&self) -> std::io::Result<()> {
        let default = Arc::clone(&self.default);
        let thread = std::thread::Builder::new().name("keel-certificate".to_owned());
        thread.spawn(move || drop(LazyLock::force(&default).clone())).map(drop)
    }

    /// Shows these from now on. Open connections are not touched. What is broken is left out and told.
    pub fn set_certificates(
        &self,
        certificates: &[Certificate],
        challenges: &Challenges,
    ) -> Vec<CertificateProblem> {
        let (table, problems) = Certificates::new(
            certificates,
            &challenges.tls_alpn,
            Some(self.default.clone()),
            Some(&self.resolver.current()),
            &self.provider,
        );
        self.resolver.replace(table);
        problems
    }

    /// How TLS is ended at a listener. Reads the file of client authorities; made anew only when that has changed.
    ///
    /// # Errors
    /// When that file is no such thing.
    pub fn config(&self, tls: &ListenerTls) -> Result<ListenerConfig, ConfigError> {
        let auth = match &tls.client_auth {
            None => None,
            Some(auth) => Some((auth.clone(), PemFile::read(&auth.ca)?)),
        };
        let mut demands = self.demands.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match demands.iter().position(|demand| demand.auth == auth) {
            Some(index) => index,
            None => {
                if demands.len() == MAX_DEMANDS {
                    demands.remove(0);
                }
                demands.push(self.demand(auth)?);
                demands.len() - 1
            }
        };
        Ok(match tls.min {
            TlsVersion::V1_2 => demands[index].from_1_2.clone(),
            TlsVersion::V1_3 => demands[index].from_1_3.clone(),
        })
    }

    fn demand(&self, auth: Option<(ClientAuth, PemFile)>) -> Result<Demand, ConfigError> {
        let verifier: Arc<dyn ClientCertVerifier> = match &auth {
            None => Arc::new(NoClientAuth),
            Some((auth, file)) => self.verifier(auth, file)?,
        };
        let tickets = aws_lc_rs::Ticketer::new()?;
        let sessions = ServerSessionMemoryCache::new(SESSIONS);
        let config = |versions| -> Result<ListenerConfig, ConfigError> {
            let mut normal = self.base(versions, verifier.clone(), self.resolver.clone())?;
            normal.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
            normal.ticketer = tickets.clone();
            normal.session_storage = sessions.clone();
            // No authority that proves a name has a certificate to show.
            let proofs = Arc::new(ChallengeResolver(self.resolver.clone()));
            let mut challenge = self.base(versions, Arc::new(NoClientAuth), proofs)?;
            challenge.alpn_protocols = vec![ACME_TLS.to_vec()];
            challenge.send_tls13_tickets = 0;
            Ok(ListenerConfig { normal: Arc::new(normal), challenge: Arc::new(challenge) })
        };
        Ok(Demand { auth, from_1_2: config(VERSIONS)?, from_1_3: config(&VERSIONS[..1])? })
    }

    fn base(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        verifier: Arc<dyn ClientCertVerifier>,
        resolver: Arc<dyn ResolvesServerCert>,
    ) -> Result<ServerConfig, ConfigError> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_protocol_versions(versions)?;
        Ok(builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver))
    }

    fn verifier(
        &self,
        auth: &ClientAuth,
        file: &PemFile,
    ) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
        let (roots, provider) = (Arc::new(file.authorities()?), self.provider.clone());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let verifier = if auth.optional { verifier.allow_unauthenticated() } else { verifier };
        verifier.build().map_err(|error| file.problem(error))
    }
}

/// What is shown to clients that ask for a name without a certificate. Nobody trusts it; it tells a person with a
/// browser more than a handshake that fails.
fn self_signed(provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ConfigError> {
    let failed = |error: rcgen::Error| rustls::Error::General(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let names = ["default.keel.invalid".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    let name = "keel: no certificate for this name";
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Arc::new(CertifiedKey::from_der(vec![certificate.der().clone()], key, provider)?))
}
