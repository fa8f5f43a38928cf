//! What is shown to an authority that wants to see whether a name is ours.

use instant_acme::KeyAuthorization;
use keel_route::snapshot::Certificate;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};

/// The certificate of the tls-alpn-01 proof (RFC 8737, 3): for the one name, with the digest of the proof in a critical
/// extension. Authorities do not look at who has signed it.
///
/// # Errors
/// When there is no randomness or `name` is no name.
pub fn tls_alpn(name: &str, proof: &KeyAuthorization) -> Result<Certificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(proof.digest().as_ref())];
    let certificate = params.self_signed(&key)?;
    Ok(Certificate {
        names: vec![name.to_owned()],
        chain: certificate.pem(),
        key: key.serialize_pem(),
    })
}
