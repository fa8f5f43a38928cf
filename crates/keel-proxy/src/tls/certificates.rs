//! Which certificate is shown to whom.
//!
//! One table for all workers, replaced as a whole; open connections keep what they have. A lookup costs two hash
//! look-ups however many names there are. A certificate that can't be used is reported and left out.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use keel_route::snapshot::Certificate;
use rustls::SignatureAlgorithm;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{MAX_CHAIN, certificates};
use super::hello::ACME_TLS;

/// Why a certificate of the snapshot can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate for {name} can't be used: {reason}")]
pub struct CertificateProblem {
    /// Its first name, or which one it is.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A certificate that is ready to be shown.
#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// Names in the certificate, in lower case.
    names: Vec<String>,
    /// In seconds since 1970.
    not_after: i64,
}

/// What tells that a certificate was loaded before.
type Fingerprint = [u8; 32];

/// A certificate that is made when it is first wanted; `None` if it can't be made.
pub type Fallback = Arc<LazyLock<Option<Arc<CertifiedKey>>>>;

/// Certificates by name.
#[derive(Debug, Default)]
pub struct Certificates {
    loaded: HashMap<Fingerprint, Arc<Loaded>>,
    exact: HashMap<Box<str>, Vec<Arc<Loaded>>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<Arc<Loaded>>>,
    challenges: HashMap<Box<str>, Arc<CertifiedKey>>,
    default: Option<Fallback>,
}

impl Certificates {
    /// A table of `certificates`, of proofs for certificate authorities (`challenges`), and of what is shown where
    /// neither fits. What `before` has loaded is not loaded again.
    pub fn new(
        certificates: &[Certificate],
        challenges: &[Certificate],
        default: Option<Fallback>,
        before: Option<&Self>,
        provider: &CryptoProvider,
    ) -> (Self, Vec<CertificateProblem>) {
        let mut table = Self { default, ..Self::default() };
        let mut problems = Vec::new();
        for (index, certificate) in certificates.iter().enumerate() {
            match table.load(certificate, before, provider) {
                Ok(loaded) => table.add(certificate, &loaded),
                Err(reason) => problems.push(problem(certificate, index, reason)),
            }
        }
        for list in table.exact.values_mut().chain(table.wildcard.values_mut()) {
            list.sort_by_key(|loaded| preference(loaded));
        }
        for (index, certificate) in challenges.iter().enumerate() {
            match table.load(certificate, before, provider) {
                Ok(loaded) => {
                    for name in names(certificate, &loaded) {
                        table.challenges.insert(name.into(), loaded.key.clone());
                    }
                }
                Err(reason) => problems.push(problem(certificate, index, reason)),
            }
        }
        (table, problems)
    }

    fn load(
        &mut self,
        certificate: &Certificate,
        before: Option<&Self>,
        provider: &CryptoProvider,
    ) -> Result<Arc<Loaded>, String> {
        let fingerprint = fingerprint(certificate);
        let known = self.loaded.get(&fingerprint);
        let known = known.or_else(|| before.and_then(|before| before.loaded.get(&fingerprint)));
        let loaded = match known {
            Some(known) => known.clone(),
            None => Arc::new(load(certificate, provider)?),
        };
        self.loaded.insert(fingerprint, loaded.clone());
        Ok(loaded)
    }

    fn add(&mut self, certificate: &Certificate, loaded: &Arc<Loaded>) {
        for name in names(certificate, loaded) {
            match name.strip_prefix("*.") {
                Some(parent) => self.wildcard.entry(parent.into()).or_default(),
                None => self.exact.entry(name.into()).or_default(),
            }
            .push(loaded.clone());
        }
    }

    /// The certificate for `name` that `accepts` accepts: an exact name before a wildcard, ECDSA before others,
    /// what lasts longer first; a certificate that is not accepted rather than none.
    pub(super) fn find(
        &self,
        name: Option<&str>,
        accepts: impl Fn(&CertifiedKey) -> bool,
    ) -> Option<&Arc<CertifiedKey>> {
        let name = name.map(|name| name.strip_suffix('.').unwrap_or(name));
        let exact = name.and_then(|name| self.exact.get(name));
        let parent = name.and_then(|name| name.split_once('.')).map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent));
        let all = || exact.into_iter().chain(wildcard).flatten().map(|loaded| &loaded.key);
        let default =
            || self.default.as_ref().and_then(|default| LazyLock::force(default).as_ref());
        all().find(|key| accepts(key)).or_else(|| all().next()).or_else(default)
    }

    /// How many certificates can be shown.
    #[must_use]
    pub fn len(&self) -> usize {
        self.loaded.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.loaded.is_empty()
    }
}

fn preference(loaded: &Loaded) -> (bool, i64) {
    (loaded.key.key.algorithm() != SignatureAlgorithm::ECDSA, -loaded.not_after)
}

fn problem(certificate: &Certificate, index: usize, reason: String) -> CertificateProblem {
    let name = certificate.names.first().cloned();
    CertificateProblem { name: name.unwrap_or_else(|| format!("number {}", index + 1)), reason }
}

fn fingerprint(certificate: &Certificate) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(u64::try_from(certificate.chain.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(&certificate.chain);
    hash.update(&certificate.key);
    hash.finalize().into()
}

/// The names that a certificate is shown for.
fn names<'a>(
    certificate: &'a Certificate,
    loaded: &'a Loaded,
) -> impl Iterator<Item = String> + 'a {
    let given = &certificate.names;
    let names = if given.is_empty() { &loaded.names } else { given };
    names.iter().map(|name| name.to_ascii_lowercase())
}

fn load(certificate: &Certificate, provider: &CryptoProvider) -> Result<Loaded, String> {
    let chain = certificates(certificate.chain.as_bytes(), MAX_CHAIN)?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
        .map_err(|error| format!("its private key can't be read ({error})"))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| format!("its private key can't be used ({error})"))?;
    let (_, leaf) = X509Certificate::from_der(&chain[0])
        .map_err(|error| format!("it is no X.509 certificate ({error})"))?;
    // As rustls compares them, which however refuses extensions that it does not know and that are marked as critical. The
    // proofs of RFC 8737 have one.
    if key.public_key().is_some_and(|public| public.as_ref() != leaf.public_key().raw) {
        return Err("its private key is that of another one".to_owned());
    }
    let (names, not_after) = (dns_names(&leaf), leaf.validity().not_after.timestamp());
    Ok(Loaded { key: Arc::new(CertifiedKey::new(chain, key)), names, not_after })
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// Hands out certificates of the latest table.
#[derive(Debug, Default)]
pub(super) struct Resolver(RwLock<Arc<Certificates>>);

impl Resolver {
    pub(super) fn current(&self) -> Arc<Certificates> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace(&self, certificates: Certificates) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificates);
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let accepts = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        self.current().find(hello.server_name(), accepts).cloned()
    }
}

/// Hands out proofs to certificate authorities, and nothing else (RFC 8737, 3).
#[derive(Debug)]
pub(super) struct ChallengeResolver(pub(super) Arc<Resolver>);

impl ResolvesServerCert for ChallengeResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.alpn()?.any(|protocol| protocol == ACME_TLS);
        let name = hello.server_name().filter(|_| asked)?;
        self.0.current().challenges.get(name).cloned()
    }
}
