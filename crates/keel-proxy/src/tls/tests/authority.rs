//! A certificate authority for tests.

use std::path::{Path, PathBuf};

use keel_route::snapshot::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    SignatureAlgorithm,
};

/// Issues certificates and keeps them in files.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// The file with its own certificate.
    pub(super) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn issue(&self, names: &[&str]) -> Certificate {
        self.issue_with(names, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub(super) fn issue_with(
        &self,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            names: Vec::new(),
            chain: certificate.pem() + &self.issuer.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate for a client, in two files.
    pub(super) fn identity(&self, name: &str) -> (PathBuf, PathBuf) {
        let uri = format!("spiffe://test/{name}").try_into().unwrap();
        let certificate = self.issue_with(&[], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.distinguished_name.push(DnType::OrganizationName, "A, B");
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = vec![SanType::URI(uri)];
        });
        self.write(name, &certificate)
    }

    /// Chain and key in two files.
    pub(super) fn write(&self, name: &str, certificate: &Certificate) -> (PathBuf, PathBuf) {
        let files = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        put(&files.0, &certificate.chain);
        put(&files.1, &certificate.key);
        files
    }
}

fn put(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
}
