//! What is compared, and how good ours has to be.

use super::load::Load;

/// Connections of clients where the case does not say otherwise.
pub const CONNECTIONS: u32 = 64;
/// Part of HAProxy's peak at which latencies are compared.
pub const LATENCY_LOAD: f64 = 0.7;

/// What is held against HAProxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// CPU time of the whole process per request.
    Cpu,
    /// The 99th percentile of the latency.
    P99,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For `--case`.
    pub name: &'static str,
    pub title: &'static str,
    pub load: Load,
    pub measure: Measure,
    /// The largest good ratio of ours to HAProxy's.
    pub bar: f64,
}

impl Case {
    /// Whether so much is moved that `splice` matters.
    pub fn is_bulk(&self) -> bool {
        self.load.body() >= 1 << 20
    }
}

/// Every row. The first one also finds HAProxy's peak for the last.
pub const CASES: &[Case] = &[
    cpu(
        "http-64",
        "HTTP/1.1 small GET, 64 connections",
        Load::Http { connections: CONNECTIONS, path: "/small", tls: false },
        0.80,
    ),
    cpu(
        "http-512",
        "HTTP/1.1 small GET, 512 connections",
        Load::Http { connections: 512, path: "/small", tls: false },
        0.80,
    ),
    cpu(
        "body-16k",
        "HTTP/1.1, 16 KiB bodies",
        Load::Http { connections: CONNECTIONS, path: "/16k", tls: false },
        0.90,
    ),
    cpu(
        "body-1m",
        "HTTP/1.1, 1 MiB bodies",
        Load::Http { connections: 16, path: "/1m", tls: false },
        0.90,
    ),
    cpu("connect", "new connection per request", Load::Connect { connections: CONNECTIONS }, 0.95),
    cpu(
        "tls-64",
        "TLS 1.3 small GET, 64 kept connections",
        Load::Http { connections: CONNECTIONS, path: "/small", tls: true },
        0.95,
    ),
    cpu("handshake", "TLS 1.3 full handshakes", Load::Handshake { connections: 32 }, 0.60),
    cpu(
        "h2-tls",
        "HTTP/2 over TLS to HTTP/1, 64 × 16 streams",
        Load::Http2 { connections: 64, streams: 16, tls: true },
        1.0,
    ),
    cpu(
        "h2-clear",
        "HTTP/2 cleartext to HTTP/1, 64 × 16 streams",
        Load::Http2 { connections: 64, streams: 16, tls: false },
        1.0,
    ),
    cpu("tcp-small", "TCP, 64 bytes and back", Load::Echo { connections: CONNECTIONS }, 0.95),
    cpu("tcp-1m", "TCP, 1 MiB", Load::Bulk { connections: 16 }, 0.60),
    Case {
        name: "latency",
        title: "p99 latency at 70 % of HAProxy's peak",
        load: Load::Paced { connections: CONNECTIONS, rate: 0.0 },
        measure: Measure::P99,
        bar: 1.0,
    },
];

const fn cpu(name: &'static str, title: &'static str, load: Load, bar: f64) -> Case {
    Case { name, title, load, measure: Measure::Cpu, bar }
}

/// The load that finds HAProxy's peak.
pub const PEAK: Load = CASES[0].load;
