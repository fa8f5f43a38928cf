//! Which requests lead to a service, and what is done to them on the way.
//!
//! A [`Route`] belongs to the service that declares it. It can be changed under running instances.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ServiceName;

/// The name of an address that routes share (`web`, `websecure`).
pub type EntrypointName = String;

/// One address at which routes of a stack are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entrypoint {
    /// Host address and port; `0.0.0.0` also opens `[::]`.
    pub bind: std::net::SocketAddr,
    /// Connections are TLS.
    pub tls: bool,
    /// Requests that no route wants are sent to this entrypoint instead (308).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to: Option<EntrypointName>,
    /// Connections begin with a PROXY protocol header (v1 or v2), believed if the sender is one of these; so are
    /// their `X-Forwarded-*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_proxy_from: Vec<IpNet>,
    /// Clients must (or may) show a certificate of one of the authorities in this PEM file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_tls: TlsVersion,
}

/// Certificates of clients (mTLS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuth {
    /// PEM file with the authorities that are trusted.
    pub ca: std::path::PathBuf,
    /// Clients without a certificate are served too.
    #[serde(default)]
    pub optional: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V1_3,
}

/// A rule that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Unique within the stack.
    pub name: String,
    /// Where it is served; never empty (the reader fills in `websecure` for routes with TLS, else `web`).
    pub entrypoints: Vec<EntrypointName>,
    /// Which requests.
    pub rule: Rule,
    /// Among routes that match, the highest wins; `None` is the length of the rule as text, as in Traefik, so that
    /// the more specific one wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// HTTP, or whole connections.
    #[serde(default)]
    pub kind: RouteKind,
    /// The port of the service that takes the traffic; its first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Shares of the traffic that go to other services of the stack; the rest goes to this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<Split>,
    /// TLS of this route; `None` is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTls>,
    /// What is done to requests and answers.
    #[serde(default)]
    pub filters: Filters,
    /// The whole request must be answered within this time; overrides that of the service.
    #[serde(default, with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// Requests or connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// HTTP requests, over any version.
    #[default]
    Http,
    /// Opaque connections, chosen by server name ([`Rule::Sni`]); TLS is ended here.
    Tcp,
    /// TLS connections that are passed through as they are, chosen by server name.
    Passthrough,
}

/// A share of a route's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The service that gets it.
    pub service: ServiceName,
    /// Its port; its first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share in parts per thousand of the route's traffic.
    pub per_mille: u16,
}

/// Where the certificate of a route comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteTls {
    /// Whatever certificate there is for the name; a self-signed one if none.
    Any,
    /// From the certificate authority of the stack (RFC 8555), for the hosts of the rule.
    Acme,
    /// From PEM files, read again when they change.
    Files {
        /// Certificate chain.
        cert: std::path::PathBuf,
        /// Private key.
        key: std::path::PathBuf,
    },
}

/// Which certificate authority issues certificates, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acme {
    /// The directory (Let's Encrypt).
    pub directory: String,
    /// Where the authority may write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// How names are proved.
    #[serde(default)]
    pub challenge: AcmeChallenge,
    /// PEM file with the authority's own roots, for test and company authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<std::path::PathBuf>,
}

/// How a name is proved to a certificate authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcmeChallenge {
    /// A request on port 80 (RFC 8555, 8.3).
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// A TLS handshake on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// Which requests. Names of hosts and headers do not know case; values, paths and methods do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// All of these; without any: every request.
    All(Vec<Rule>),
    /// One of these.
    Any(Vec<Rule>),
    /// Not this.
    Not(Box<Rule>),
    /// The host, exactly, or `*.example.com` for one more label in front. Without port.
    Host(String),
    /// The host matches this regular expression as a whole.
    HostRegex(String),
    /// The path (without query), exactly.
    Path(String),
    /// The path begins with these segments: `/api` matches `/api` and `/api/x`, not `/apis`.
    PathPrefix(String),
    /// The path matches this regular expression from its start.
    PathRegex(String),
    /// The method.
    Method(String),
    /// A header has this value; `None`: is there.
    Header(String, Option<String>),
    /// A header matches this regular expression.
    HeaderRegex(String, String),
    /// A query parameter has this value; `None`: is there.
    Query(String, Option<String>),
    /// The client's address.
    Client(IpNet),
    /// The server name of the TLS handshake, exactly, `*.example.com`, or `*` for any.
    Sni(String),
}

impl Default for Rule {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

/// What is done to the requests and answers of a route, in the order of these fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// Only clients from these networks (403); all when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// A moved address (no endpoint is asked).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Rules for scripts of other sites (Fetch standard, 3.2); preflight requests are answered here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Name and password (RFC 7617, 401).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// At most so many requests (429).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// Largest request body in bytes (413).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
    /// Another path or host towards the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Headers of the request.
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    /// Headers of the answer.
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
    /// Answers are compressed for clients that accept it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
}

/// A moved address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `http` or `https`; as the request when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Another port; the scheme's own when absent and scheme or host change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Another path; the query stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// How a path is changed. The query stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// This path.
    Replace(String),
    /// The first of these prefixes that matches whole segments is left out.
    StripPrefix(Vec<String>),
    /// In front.
    AddPrefix(String),
    /// One prefix for another, whole segments.
    ReplacePrefix {
        /// The prefix of the request.
        from: String,
        /// What stands in its place.
        to: String,
    },
    /// The first match of a regular expression; `$1` and `${name}` in `to` are its groups.
    Regex {
        /// The expression.
        from: String,
        /// What stands in its place.
        to: String,
    },
}

/// Another path or host towards the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rewrite {
    /// The `Host` that the service sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Changes of the path, one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PathRewrite>,
}

/// Changes of header fields: first removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeaderEdits {
    /// These go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// These stand in the place of any of that name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// These come in addition.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
}

impl HeaderEdits {
    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Rules for scripts of other sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cors {
    /// Origins: exact, `*`, or with one `*` for a label or port (`https://*.example.com`).
    pub origins: Vec<String>,
    /// Methods; those that are always allowed (GET, HEAD, POST) when empty.
    pub methods: Vec<String>,
    /// Request headers beyond the safelisted ones; `*` for those that are asked for.
    pub headers: Vec<String>,
    /// Answer headers that scripts may read.
    pub expose: Vec<String>,
    /// With cookies. Excludes `*` as an origin.
    pub credentials: bool,
    /// How long a preflight answer is good for.
    #[serde(with = "crate::millis_opt")]
    pub max_age: Option<Duration>,
}

/// Name and password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasicAuth {
    /// What the browser shows.
    pub realm: String,
    /// Lines of an htpasswd file: name and hash (bcrypt, `$apr1$` or `{SHA}`).
    pub users: Vec<String>,
    /// The name is passed on in this header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_header: Option<String>,
    /// `Authorization` is not passed on.
    #[serde(default)]
    pub remove_header: bool,
}

impl std::fmt::Debug for BasicAuth {
    /// Without the hashes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BasicAuth")
            .field("realm", &self.realm)
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

/// At most so many requests in a time, for each client or for all together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Requests in `per`, in the long run.
    pub requests: u32,
    /// The time.
    #[serde(with = "crate::millis")]
    pub per: Duration,
    /// Requests that may come at once.
    pub burst: u32,
    /// Who shares one allowance.
    pub key: ClientKey,
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientKey {
    /// Nothing: all are one.
    All,
    /// The address (IPv6: its /64).
    Source,
    /// The value of a header.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
    /// The path (ring hash and maglev: caches).
    Path,
}

/// Compression of answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compress {
    /// In order of preference, where the client does not say.
    pub encodings: Vec<Encoding>,
    /// Smaller answers stay as they are, in bytes (1024).
    pub min_size: u64,
    /// Media types that are compressed (`text/*`, `application/json`, …).
    pub types: Vec<String>,
}

/// A content coding (RFC 9110, 8.4.1; RFC 7932; RFC 8878).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Zstandard.
    Zstd,
    /// Brotli.
    Br,
    /// gzip.
    Gzip,
}

impl Default for Compress {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/javascript",
            "application/xml",
            "application/wasm",
            "image/svg+xml",
        ];
        Self {
            encodings: vec![Encoding::Zstd, Encoding::Br, Encoding::Gzip],
            min_size: 1024,
            types: types.map(str::to_owned).to_vec(),
        }
    }
}
