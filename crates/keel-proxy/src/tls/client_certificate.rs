//! What a client's certificate says, and the header that passes it on to services.
//!
//! The header is that of Envoy (`x-forwarded-client-cert`): elements `key=value` joined with `;`, values in quotes where
//! they hold a separator. What a client sends under this name must be removed, always: a service believes it.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// The header that tells services who the client is, in lower case.
pub const CLIENT_CERTIFICATE_HEADER: &str = "x-forwarded-client-cert";
/// Most alternative names that are passed on.
const MAX_NAMES: usize = 32;

/// A name in a certificate besides its subject (RFC 5280, 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    /// A host.
    Dns(String),
    /// An identity (SPIFFE).
    Uri(String),
    /// A person.
    Email(String),
    /// An address.
    Ip(std::net::IpAddr),
}

/// How much of a certificate is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What it says.
    Facts,
    /// The certificate itself too: 1 to 4 KB.
    WithPem,
}

/// What a client's certificate says. It has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whose it is, as RFC 4514 writes it (`CN=ann,O=Example`).
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// Other names, at most 32.
    pub sans: Vec<AlternativeName>,
    /// In hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint_sha256: String,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
    /// The certificate as PEM, percent-encoded.
    pub pem_url_encoded: String,
}

impl ClientCertificate {
    /// What `certificate` says; `None` if it is no certificate (which no verified one is).
    #[must_use]
    pub fn from_der(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            subject: distinguished_name(parsed.subject()),
            issuer: distinguished_name(parsed.issuer()),
            sans: names.filter_map(alternative_name).take(MAX_NAMES).collect(),
            serial: hex(parsed.raw_serial()),
            fingerprint_sha256: hex(&Sha256::digest(certificate)),
            not_after: parsed.validity().not_after.timestamp(),
            pem_url_encoded: pem_url_encoded(certificate),
        })
    }

    /// The value of [`CLIENT_CERTIFICATE_HEADER`]: `Hash`, `Cert` if asked for, `Subject`, and every `URI` and `DNS` name.
    /// Printable ASCII only, whatever the certificate holds.
    #[must_use]
    pub fn forwarded(&self, detail: Detail) -> String {
        let mut header = format!("Hash={}", self.fingerprint_sha256);
        let mut element = |key: &str, value: &str, quoted: bool| {
            header.push(';');
            header.push_str(key);
            header.push('=');
            push_value(&mut header, value, quoted);
        };
        if detail == Detail::WithPem {
            element("Cert", &self.pem_url_encoded, true);
        }
        element("Subject", &self.subject, true);
        for name in &self.sans {
            match name {
                AlternativeName::Uri(uri) => element("URI", uri, false),
                AlternativeName::Dns(host) => element("DNS", host, false),
                AlternativeName::Email(_) | AlternativeName::Ip(_) => {}
            }
        }
        header
    }
}

/// In quotes if asked for or if it holds a separator; what a header can't hold is percent-encoded.
fn push_value(header: &mut String, value: &str, quoted: bool) {
    let quoted = quoted || value.contains([',', ';', '=', '"']);
    if quoted {
        header.push('"');
    }
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' if quoted => {
                header.push('\\');
                header.push(char::from(byte));
            }
            b' ' | b'!'..=b'~' => header.push(char::from(byte)),
            _ => push_percent(header, byte),
        }
    }
    if quoted {
        header.push('"');
    }
}

fn push_percent(text: &mut String, byte: u8) {
    write!(text, "%{byte:02X}").expect("a string takes all that is written to it");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written to it");
        text
    })
}

/// PEM (RFC 7468), percent-encoded.
fn pem_url_encoded(certificate: &CertificateDer<'_>) -> String {
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let content = STANDARD.encode(certificate);
    for line in content.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut text = String::with_capacity(pem.len() * 5 / 4);
    for byte in pem.bytes() {
        // Unreserved (RFC 3986, 2.3).
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            push_percent(&mut text, byte);
        }
    }
    text
}

fn alternative_name(name: &GeneralName<'_>) -> Option<AlternativeName> {
    match name {
        GeneralName::DNSName(name) => Some(AlternativeName::Dns((*name).to_owned())),
        GeneralName::URI(uri) => Some(AlternativeName::Uri((*uri).to_owned())),
        GeneralName::RFC822Name(email) => Some(AlternativeName::Email((*email).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|b| Ipv4Addr::from(b).into());
            let v6 = || <[u8; 16]>::try_from(*bytes).map(|b| Ipv6Addr::from(b).into());
            v4.or_else(|_| v6()).ok().map(AlternativeName::Ip)
        }
        _ => None,
    }
}

/// As RFC 4514 writes it: the last part first.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter().collect();
    for (index, part) in parts.iter().rev().enumerate() {
        if index > 0 {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            let oid = attribute.attr_type();
            match short_name(&oid.to_id_string()) {
                Some(short) => text.push_str(short),
                None => text.push_str(&oid.to_id_string()),
            }
            text.push('=');
            match attribute.as_str() {
                Ok(value) => push_escaped(&mut text, value),
                // Of a type that has no text: its encoding in hexadecimal (RFC 4514, 2.4).
                Err(_) => {
                    text.push('#');
                    text.push_str(&hex(attribute.as_slice()));
                }
            }
        }
    }
    text
}

/// Names of attributes (RFC 4514, 3, and what OpenSSL adds).
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// RFC 4514, 2.4.
fn push_escaped(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        let at_edge = (c == ' ' && (index == 0 || index == last)) || (c == '#' && index == 0);
        if at_edge || "\"+,;<>\\".contains(c) {
            text.push('\\');
            text.push(c);
        } else if c.is_ascii_control() {
            write!(text, "\\{:02X}", u32::from(c))
                .expect("a string takes all that is written to it");
        } else {
            text.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> rcgen::Certificate {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    /// The value of `key` in a header, found the way that a careful reader finds it.
    fn value(header: &str, key: &str) -> Option<String> {
        let mut elements = vec![String::new()];
        let (mut quoted, mut characters) = (false, header.chars());
        while let Some(c) = characters.next() {
            match c {
                '\\' if quoted => elements.last_mut()?.extend(characters.next()),
                '"' => quoted = !quoted,
                ';' | ',' if !quoted => elements.push(String::new()),
                c => elements.last_mut()?.push(c),
            }
        }
        let found = elements.iter().find_map(|e| e.strip_prefix(key)?.strip_prefix('='));
        found.map(str::to_owned)
    }

    #[test]
    fn says_what_openssl_says() {
        let certificate = certificate(|params| {
            params.serial_number = Some(SerialNumber::from(vec![0x0a, 0xbc, 0x01]));
            params.distinguished_name.push(DnType::CommonName, " #1+2 ");
            params.distinguished_name.push(DnType::OrganizationName, r#"A "B", <C>; D\"#);
            params.distinguished_name.push(DnType::CountryName, "DE");
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), certificate.pem()).unwrap();
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-subject", "-issuer", "-serial", "-fingerprint", "-sha256"])
            .args(["-nameopt", "RFC2253", "-in"])
            .arg(file.path())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let of = |key: &str| {
            let line = told.lines().find(|line| line.to_lowercase().starts_with(key));
            line.and_then(|line| line.split_once('=')).map(|(_, value)| value).unwrap()
        };
        let facts = ClientCertificate::from_der(certificate.der()).unwrap();
        assert_eq!(facts.subject, of("subject"));
        assert_eq!(facts.issuer, of("issuer"));
        assert_eq!(facts.serial, of("serial").to_lowercase());
        assert_eq!(facts.fingerprint_sha256, of("sha256").replace(':', "").to_lowercase());
    }

    #[test]
    fn the_header_says_it_all_and_the_pem_comes_back() {
        let certificate = certificate(|params| {
            params.distinguished_name.push(DnType::CommonName, "ann");
            params.subject_alt_names = vec![
                SanType::URI("spiffe://a.test/ann;x".try_into().unwrap()),
                SanType::DnsName("ann.test".try_into().unwrap()),
                SanType::IpAddress("10.1.2.3".parse().unwrap()),
            ];
        });
        let facts = ClientCertificate::from_der(certificate.der()).unwrap();
        assert_eq!(facts.sans.len(), 3);
        let header = facts.forwarded(Detail::Facts);
        let hash = &facts.fingerprint_sha256;
        let expected =
            format!(r#"Hash={hash};Subject="CN=ann";URI="spiffe://a.test/ann;x";DNS=ann.test"#);
        assert_eq!(header, expected);
        let header = facts.forwarded(Detail::WithPem);
        let encoded = value(&header, "Cert").unwrap();
        let pem = encoded.replace("%0A", "\n").replace("%20", " ").replace("%2B", "+");
        let pem = pem.replace("%2F", "/").replace("%3D", "=");
        assert_eq!(pem.replace('\r', ""), certificate.pem().replace('\r', ""));
    }

    #[test]
    fn no_name_in_a_certificate_can_forge_an_element() {
        for name in [
            r#"eve";URI="spiffe://admin"#,
            r#"eve\";URI="spiffe://admin"#,
            "eve;URI=spiffe://admin",
            "eve,Hash=00",
            "eve\r\nX-Admin: yes",
            "êve\u{0}\u{7f}",
        ] {
            let certificate = certificate(|params| {
                params.distinguished_name.push(DnType::CommonName, name);
            });
            let facts = ClientCertificate::from_der(certificate.der()).unwrap();
            let header = facts.forwarded(Detail::Facts);
            assert!(header.bytes().all(|b| (b' '..=b'~').contains(&b)), "{header:?}");
            assert_eq!(value(&header, "URI"), None, "{header:?}");
            assert_eq!(value(&header, "Hash"), Some(facts.fingerprint_sha256.clone()));
            let subject = value(&header, "Subject").unwrap();
            if name.is_ascii() {
                assert_eq!(subject, facts.subject);
            }
        }
    }

    #[test]
    fn what_is_no_certificate_says_nothing() {
        assert_eq!(ClientCertificate::from_der(&CertificateDer::from(vec![48, 3, 1, 1, 1])), None);
    }
}
