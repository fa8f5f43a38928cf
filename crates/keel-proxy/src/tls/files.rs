//! PEM files: certificates, authorities and keys that are named in the snapshot.

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Most certificates of one chain.
pub const MAX_CHAIN: usize = 10;
/// Most authorities in one file; systems have about 150.
const MAX_AUTHORITIES: usize = 2000;

/// Why TLS can't be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read.
    #[error("can't read {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What is in a file is not what it should be.
    #[error("can't use {path}: {reason}", path = path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cryptography failed.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A file and what it held when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    content: Vec<u8>,
}

impl PemFile {
    /// Reads all of it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let content = std::fs::read(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), content })
    }

    /// What is wrong with it.
    pub fn problem(&self, reason: impl ToString) -> ConfigError {
        ConfigError::Content { path: self.path.clone(), reason: reason.to_string() }
    }

    /// The authorities in it.
    pub fn authorities(&self) -> Result<RootCertStore, ConfigError> {
        let mut roots = RootCertStore::empty();
        for authority in
            certificates(&self.content, MAX_AUTHORITIES).map_err(|e| self.problem(e))?
        {
            roots.add(authority).map_err(|error| self.problem(error))?;
        }
        Ok(roots)
    }

    /// The certificate chain in it, leaf first.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        certificates(&self.content, MAX_CHAIN).map_err(|reason| self.problem(reason))
    }

    /// The private key in it.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, ConfigError> {
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|error| {
            self.problem(format!("there is no private key that can be read ({error})"))
        })
    }
}

/// The certificates in a PEM text: at least one, and at most `most`.
pub fn certificates(pem: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(most + 1).collect();
    let found = found.map_err(|error| format!("it can't be read ({error})"))?;
    match found.len() {
        0 => Err("there is no certificate in it".to_owned()),
        n if n > most => Err(format!("there are more than {most} certificates in it")),
        _ => Ok(found),
    }
}
