//! A look at a certificate before it is used: an authority may be no friend, and a file may be half written.

use std::net::{Ipv4Addr, Ipv6Addr};

use keel_model::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

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

/// What speaks against showing the first certificate of `chain` (PEM) to clients that want these `hosts` now: its time, or
/// its names. One that can't be read has none; see [`examine`].
#[must_use]
pub fn flaw(chain: &str, hosts: &[&str], now: Timestamp) -> Option<String> {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).ok()?;
    let (_, leaf) = X509Certificate::from_der(&leaf).ok()?;
    let now = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
    let validity = leaf.validity();
    let date = |time: ASN1Time| time.to_datetime().date();
    if validity.not_after.timestamp() < now {
        return Some(format!("it expired on {}", date(validity.not_after)));
    }
    if validity.not_before.timestamp() > now {
        return Some(format!("it is not valid before {}", date(validity.not_before)));
    }
    let names = names(&leaf);
    let uncovered = hosts.iter().find(|host| !names.iter().any(|name| covers(name, host)))?;
    Some(format!("it does not cover {uncovered}"))
}

/// The names that a certificate is for, in lower case.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|ip| Ipv6Addr::from(ip).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Whether a certificate for `name` is one for `host`: `*.` stands for one label (RFC 6125, 6.4.3).
fn covers(name: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').trim_matches(['[', ']']).to_ascii_lowercase();
    let parent = host.split_once('.').map(|(_, parent)| parent);
    name == host || name.strip_prefix("*.").is_some_and(|of| parent == Some(of))
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

    #[test]
    fn what_speaks_against_a_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["a.test", "*.b.test", "192.0.2.7"].map(str::to_owned);
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 3, 1);
        params.not_after = rcgen::date_time_ymd(2026, 5, 1);
        let chain = params.self_signed(&key).unwrap().pem();
        let at = |seconds: u64| Timestamp(seconds * 1000);
        let (february, april, june) = (at(1_770_000_000), at(1_775_500_000), at(1_780_500_000));
        for (hosts, now, expected) in [
            (&["a.test", "A.test.", "x.b.test", "*.b.test", "192.0.2.7"][..], april, None),
            (&[], april, None),
            (&["a.test", "b.test"], april, Some("it does not cover b.test")),
            (&["x.y.b.test"], april, Some("it does not cover x.y.b.test")),
            (&["a.test"], june, Some("it expired on 2026-05-01")),
            (&["a.test"], february, Some("it is not valid before 2026-03-01")),
        ] {
            assert_eq!(flaw(&chain, hosts, now).as_deref(), expected, "{hosts:?}");
        }
    }
}
