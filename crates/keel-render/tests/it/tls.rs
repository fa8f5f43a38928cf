//! Certificates for tests.

use keel_route::snapshot::Certificate;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// A certificate authority.
pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for these names; they are not repeated beside it.
pub fn certificate(authority: &Authority, names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    // The name of the library's own choice would be that of the authority too.
    params.distinguished_name.push(DnType::CommonName, "a subject of the tests");
    let signed = params.signed_by(&key, authority).unwrap();
    Certificate { names: Vec::new(), chain: signed.pem(), key: key.serialize_pem() }
}
