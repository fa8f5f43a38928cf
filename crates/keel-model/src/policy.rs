//! How the load balancer treats the traffic of a service. Changes under running instances.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ClientKey;

/// How the load balancer treats the traffic of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficPolicy {
    /// Which endpoint takes a request.
    pub balance: Balance,
    /// The same client goes to the same endpoint while it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickyCookie>,
    /// A new endpoint gets its full share after this time.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Duration>,
    /// Endpoints in the zone of the proxy are preferred while enough of them are ready.
    pub prefer_zone: bool,
    /// When an endpoint is left out because of what it does.
    pub outlier: Outlier,
    /// Asked by the proxy itself, beside the probes of the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<ActiveCheck>,
    /// What is tried again.
    pub retry: Retry,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Bounds on what one endpoint set may have open (circuit breaking).
    pub limits: TrafficLimits,
    /// Finds the concurrency that the service can take by its latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveConcurrency>,
    /// The service speaks TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// The service hears of the client by a PROXY protocol header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<ProxyVersion>,
}

/// Which endpoint takes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The better of two random ones by requests in flight and peak-EWMA latency.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// Consistent hashing on a ring: few keys move when endpoints come and go.
    RingHash(ClientKey),
    /// Consistent hashing by table (Maglev): more even, a little more movement.
    Maglev(ClientKey),
}

/// A cookie that names the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyCookie {
    /// Its name.
    pub name: String,
    /// How long the browser keeps it; for the session when absent.
    #[serde(default, with = "crate::millis_opt")]
    pub ttl: Option<Duration>,
    /// Only over TLS.
    #[serde(default)]
    pub secure: bool,
    /// `SameSite`: `strict`, `lax` or `none`.
    #[serde(default)]
    pub same_site: Option<String>,
}

/// When an endpoint is left out because of what it does (outlier detection).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outlier {
    /// Failures in a row (5xx, resets, timeouts) that lead to it (5); 0 switches it off.
    pub consecutive_errors: u32,
    /// Left out for this long, times the number of times before (10 s).
    #[serde(with = "crate::millis")]
    pub base: Duration,
    /// At most (5 min).
    #[serde(with = "crate::millis")]
    pub max: Duration,
    /// At most this share of the endpoints, in percent (50); never the last one.
    pub max_percent: u8,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            base: Duration::from_secs(10),
            max: Duration::from_secs(300),
            max_percent: 50,
        }
    }
}

/// Requests that the proxy itself makes to see whether an endpoint is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveCheck {
    /// Asked with GET; a status from 200 to 399 is a success.
    pub path: String,
    /// Time between two.
    #[serde(with = "crate::millis")]
    pub interval: Duration,
    /// After this it counts as failed.
    #[serde(with = "crate::millis")]
    pub timeout: Duration,
    /// Failures in a row that take it out.
    pub failures: u32,
    /// Successes in a row that bring it back.
    pub successes: u32,
}

/// What is tried again, when that is safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Times that a request which an endpoint took and did not answer is sent again (1). Requests of which no
    /// endpoint has seen anything are placed elsewhere in any case.
    pub attempts: u32,
    /// Retries as a share of requests, in percent (20).
    pub budget_percent: u8,
    /// Each try must have begun its answer by then.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// Statuses that count as not answered (idempotent requests only).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_status: Vec<u16>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 1, budget_percent: 20, per_try_timeout: None, on_status: Vec::new() }
    }
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// To make a connection (1 s).
    #[serde(with = "crate::millis")]
    pub connect: Duration,
    /// From the whole request to the head of its answer (300 s).
    #[serde(with = "crate::millis")]
    pub response: Duration,
    /// From the head of a request to the end of its answer.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Between two pieces of a body, or of an opaque connection (120 s; opaque ones: none unless given).
    #[serde(with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
    /// A request waits this long for a service without a ready endpoint that is expected to have one (30 s).
    #[serde(with = "crate::millis_opt", skip_serializing_if = "Option::is_none")]
    pub hold: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            response: Duration::from_secs(300),
            request: None,
            idle: None,
            hold: None,
        }
    }
}

/// Bounds on what a service may have open; beyond them requests are refused at once (503, `Retry-After`).
/// Each counts over all workers of one proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficLimits {
    /// Connections to one endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection or an endpoint (1024).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests in flight at the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
}

/// Bounds of the concurrency that is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdaptiveConcurrency {
    /// Never below.
    pub min: u32,
    /// Never above.
    pub max: u32,
}

/// TLS towards a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamTls {
    /// The name that its certificate must have; the name of the service when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM file with the authorities that are trusted; those of the system when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate that the proxy shows (mTLS): chain and key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Any certificate is taken.
    pub insecure: bool,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}
