//! The top-level `x-keel`: addresses at which routes are served, and who issues certificates.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use keel_model::{Acme, AcmeChallenge, ClientAuth, Entrypoint, TlsVersion};

use super::reader::Reader;
use crate::diagnostic::{Code, Diagnostic};
use crate::routes::Located;
use crate::value::{Node, Value};

/// Keys of the top-level `x-keel`.
pub(crate) const TOP_KEYS: [&str; 2] = ["entrypoints", "acme"];
/// Keys of an entrypoint.
pub(crate) const ENTRYPOINT_KEYS: [&str; 6] =
    ["bind", "tls", "redirect_to", "accept_proxy_from", "client_auth", "min_tls"];
/// Keys of `client_auth`.
pub(crate) const CLIENT_AUTH_KEYS: [&str; 2] = ["ca", "optional"];
/// Keys of `acme`.
pub(crate) const ACME_KEYS: [&str; 4] = ["directory", "email", "challenge", "ca"];

/// The name of the default entrypoint for TLS.
pub(crate) const WEBSECURE: &str = "websecure";
/// The name of the default entrypoint without TLS.
pub(crate) const WEB: &str = "web";
/// Largest number of entrypoints.
const MAX_ENTRYPOINTS: usize = 64;
/// Let's Encrypt: where certificates come from unless the file says otherwise.
pub(crate) const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Let's Encrypt for tests: the same without rate limits, and without anybody's trust.
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// The settings at the top level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XTop {
    pub entrypoints: BTreeMap<String, Located<Entrypoint>>,
    pub acme: Option<Acme>,
}

/// Reads the top-level `x-keel`.
pub(crate) fn read_top(node: &Node) -> Result<XTop, Vec<Diagnostic>> {
    let mut reader = Reader::default();
    let mut top = XTop::default();
    for (key, value) in reader.keys(node, "x-keel", &TOP_KEYS) {
        match key {
            "entrypoints" => top.entrypoints = reader.entrypoints(value),
            _ => top.acme = reader.acme(value),
        }
    }
    for error in &mut reader.errors {
        let of_service =
            super::KEYS.iter().any(|key| error.message.contains(&format!("no key `{key}`")));
        if error.code == Code::UnknownKey && of_service {
            error.help =
                Some("this is a setting of a service: write it into its `x-keel`".to_owned());
        }
    }
    if reader.errors.is_empty() { Ok(top) } else { Err(reader.errors) }
}

impl Reader {
    fn entrypoints(&mut self, node: &Node) -> BTreeMap<String, Located<Entrypoint>> {
        let mut entrypoints = BTreeMap::new();
        let map = match &node.value {
            Value::Map(map) => map,
            Value::Null => return entrypoints,
            _ => {
                self.wrong(
                    node,
                    "a mapping from name to address",
                    "write for example {web: \":80\"}",
                );
                return entrypoints;
            }
        };
        for (name, value) in map.iter() {
            let span = map.key_span(name).unwrap_or(&value.span);
            let good = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            if !good {
                let message = format!("`{name}` is not a name for an entrypoint");
                self.error(Code::InvalidValue, span, message).help =
                    Some("use letters, digits, `-` and `_`".to_owned());
                continue;
            }
            if let Some(entrypoint) = self.entrypoint(name, value) {
                entrypoints.insert(name.to_owned(), Located::new(entrypoint, span));
            }
        }
        if entrypoints.len() > MAX_ENTRYPOINTS {
            let message = format!("there can be at most {MAX_ENTRYPOINTS} entrypoints");
            self.error(Code::Budget, &node.span, message);
        }
        entrypoints
    }

    /// `":80"`, `"127.0.0.1:8443"`, `8080`, or a mapping.
    fn entrypoint(&mut self, name: &str, node: &Node) -> Option<Entrypoint> {
        let mut entrypoint = default_entrypoint(name);
        if node.as_map().is_none() {
            entrypoint.bind = self.bind(node)?;
            return Some(entrypoint);
        }
        let mut bound = false;
        for (key, value) in self.keys(node, &format!("x-keel.entrypoints.{name}"), &ENTRYPOINT_KEYS)
        {
            match key {
                "bind" => {
                    entrypoint.bind = self.bind(value)?;
                    bound = true;
                }
                "tls" => entrypoint.tls = self.flag(value).unwrap_or_default(),
                "redirect_to" => {
                    entrypoint.redirect_to = self.text(value, "the name of an entrypoint")
                }
                "accept_proxy_from" => entrypoint.accept_proxy_from = self.networks(value),
                "client_auth" => entrypoint.client_auth = self.client_auth(value),
                _ => {
                    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
                    entrypoint.min_tls = self.word(value, &versions).unwrap_or_default();
                }
            }
        }
        if !bound && !matches!(name, WEB | WEBSECURE) {
            let message = format!("the entrypoint `{name}` has no address");
            self.error(Code::MissingKey, &node.span, message).help =
                Some("write for example `bind: \":8080\"`".to_owned());
        }
        if !entrypoint.tls
            && (entrypoint.client_auth.is_some() || entrypoint.min_tls != TlsVersion::V1_2)
        {
            let message = format!(
                "the entrypoint `{name}` speaks no TLS, so it has no certificates and versions of it"
            );
            self.error(Code::Conflict, &node.span, message).help =
                Some("add `tls: true`".to_owned());
        }
        Some(entrypoint)
    }

    fn bind(&mut self, node: &Node) -> Option<SocketAddr> {
        let text = node.display().filter(|_| !node.is_null());
        let address = text.as_deref().and_then(parse_bind);
        if address.is_none() {
            self.wrong(
                node,
                "an address with a port",
                "write for example \":80\" or \"127.0.0.1:8080\"",
            );
        }
        address
    }

    fn client_auth(&mut self, node: &Node) -> Option<ClientAuth> {
        let mistakes = self.errors.len();
        if node.as_map().is_none() {
            let ca = self.text(node, "the path of a PEM file")?;
            return Some(ClientAuth { ca: ca.into(), optional: false });
        }
        let (mut ca, mut optional) = (None, false);
        for (key, value) in self.keys(node, "x-keel.entrypoints.*.client_auth", &CLIENT_AUTH_KEYS) {
            match key {
                "ca" => ca = self.text(value, "the path of a PEM file"),
                _ => optional = self.flag(value).unwrap_or_default(),
            }
        }
        if ca.is_none() && self.errors.len() == mistakes {
            let message = "`client_auth` needs the authorities that are trusted".to_owned();
            self.error(Code::MissingKey, &node.span, message).help =
                Some("add `ca`, the path of a PEM file".to_owned());
        }
        ca.map(|ca| ClientAuth { ca: ca.into(), optional })
    }

    /// `you@example.com`, or a mapping.
    fn acme(&mut self, node: &Node) -> Option<Acme> {
        let mut acme = default_acme();
        match &node.value {
            Value::Null => return Some(acme),
            Value::String(_) => {
                acme.email = self.email(node);
                return Some(acme);
            }
            _ => {}
        }
        for (key, value) in self.keys(node, "x-keel.acme", &ACME_KEYS) {
            match key {
                "directory" => acme.directory = self.directory(value).unwrap_or_default(),
                "email" => acme.email = self.email(value),
                "challenge" => {
                    let words = [
                        ("http-01", AcmeChallenge::Http01),
                        ("tls-alpn-01", AcmeChallenge::TlsAlpn01),
                    ];
                    acme.challenge = self.word(value, &words).unwrap_or_default();
                }
                _ => acme.ca = self.text(value, "the path of a PEM file").map(Into::into),
            }
        }
        Some(acme)
    }

    fn email(&mut self, node: &Node) -> Option<String> {
        let address = node.as_str().filter(|text| {
            text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
                && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        });
        if address.is_none() {
            self.wrong(node, "an e-mail address", "");
        }
        address.map(str::to_owned)
    }

    fn directory(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node, "the address of a directory")?;
        match text.as_str() {
            "letsencrypt" => Some(LETS_ENCRYPT.to_owned()),
            "letsencrypt-staging" => Some(LETS_ENCRYPT_STAGING.to_owned()),
            url if url.starts_with("https://") && url.len() > "https://".len() => Some(text),
            _ => {
                self.wrong(
                    node,
                    "an address that begins with https://",
                    "`letsencrypt` and `letsencrypt-staging` are known too",
                );
                None
            }
        }
    }
}

/// An entrypoint as it is unless the file says otherwise.
pub(crate) fn default_entrypoint(name: &str) -> Entrypoint {
    let tls = name == WEBSECURE;
    let port = if tls { 443 } else { 80 };
    Entrypoint {
        bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        tls,
        redirect_to: None,
        accept_proxy_from: Vec::new(),
        client_auth: None,
        min_tls: TlsVersion::V1_2,
    }
}

/// Who issues certificates unless the file says otherwise.
pub(crate) fn default_acme() -> Acme {
    Acme {
        directory: LETS_ENCRYPT.to_owned(),
        email: None,
        challenge: AcmeChallenge::Http01,
        ca: None,
    }
}

/// `:80`, `80`, `127.0.0.1:80`, `[::1]:80`.
fn parse_bind(text: &str) -> Option<SocketAddr> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    if let Some(port) = port(text.strip_prefix(':').unwrap_or(text)) {
        return Some(SocketAddr::new(any, port));
    }
    text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0)
}
