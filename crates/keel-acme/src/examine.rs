//! A look at a certificate before it is used: an authority may be no friend, and a file may be half written.

use keel_model::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a certificate says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// Looks at the first certificate of `chain` and at its private `key`, both PEM.
///
/// # Errors
/// A sentence that says what is wrong: either can't be read, or they are not each other's.
pub fn examine(chain: &str, key: &str) -> Result<Examined, String> {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes())
        .map_err(|error| format!("there is no certificate that can be read ({error})"))?;
    let (_, leaf) = X509Certificate::from_der(&leaf)
        .map_err(|error| format!("it is no X.509 certificate ({error})"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("there is no private key that can be read ({error})"))?;
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| format!("the private key can't be used ({error})"))?;
    if key.public_key().is_some_and(|public| public.as_ref() != leaf.public_key().raw) {
        return Err("the private key is that of another certificate".to_owned());
    }
    let at = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    let validity = leaf.validity();
    Ok(Examined {
        not_before: at(validity.not_before.timestamp()),
        not_after: at(validity.not_after.timestamp()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_told_from_others() {
        let pair = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let ((chain, key), (_, other)) = (pair(), pair());
        let examined = examine(&chain, &key).unwrap();
        assert!(examined.not_after > examined.not_before);
        assert_eq!(
            examine(&chain, &other).unwrap_err(),
            "the private key is that of another certificate"
        );
        assert!(examine("", &key).unwrap_err().starts_with("there is no certificate"));
        assert!(examine(&chain, "").unwrap_err().starts_with("there is no private key"));
    }
}
