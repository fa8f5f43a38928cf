//! `x-keel`: our own settings, all optional; those of a service, and those at the top level.
//!
//! They are read strictly: an unknown key or a value of the wrong form is an error at its place. The keys are also
//! published as a JSON Schema, `docs/x-keel.schema.json`; a test keeps the two in step.

pub(crate) mod access;
pub(crate) mod filters;
mod matches;
pub(crate) mod reader;
mod routes;
mod settings;
mod top;
pub(crate) mod traffic;

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{NetworkMode, Probe, Protocol, RuntimeKind, TrafficPolicy};

use crate::diagnostic::Diagnostic;
use crate::routes::Draft;
use crate::value::Node;

use reader::Reader;
pub(crate) use top::{WEB, WEBSECURE, XTop, default_acme, default_entrypoint, read_top};

/// Keys of `x-keel` in a service.
pub(crate) const KEYS: [&str; 8] = [
    "runtime",
    "network",
    "readiness",
    "protocol",
    "rollout",
    "restart_backoff",
    "routes",
    "traffic",
];
/// Keys of `readiness`.
pub(crate) const READINESS_KEYS: [&str; 10] = [
    "http",
    "tcp",
    "exec",
    "none",
    "port",
    "interval",
    "timeout",
    "successes",
    "failures",
    "startup_timeout",
];
/// Keys of `rollout`.
pub(crate) const ROLLOUT_KEYS: [&str; 3] =
    ["min_healthy_time", "progress_deadline", "drain_timeout"];
/// Keys of `restart_backoff`.
pub(crate) const BACKOFF_KEYS: [&str; 3] = ["initial", "max", "reset_after"];

/// The settings of one service; `None` means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XKeel {
    pub runtime: Option<RuntimeKind>,
    pub network: Option<NetworkMode>,
    pub readiness: XReadiness,
    pub protocol: Option<Protocol>,
    pub protocols: BTreeMap<u16, Protocol>,
    pub min_healthy_time: Option<Duration>,
    pub progress_deadline: Option<Duration>,
    pub drain_timeout: Option<Duration>,
    pub backoff_initial: Option<Duration>,
    pub backoff_max: Option<Duration>,
    pub backoff_reset_after: Option<Duration>,
    pub routes: Vec<Draft>,
    pub traffic: TrafficPolicy,
}

/// The settings of `readiness`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XReadiness {
    pub probe: Option<Probe>,
    pub port: Option<u16>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub successes: Option<u32>,
    pub failures: Option<u32>,
    pub startup_timeout: Option<Duration>,
}

/// Reads `x-keel` of a service.
pub(crate) fn read(node: &Node) -> Result<XKeel, Vec<Diagnostic>> {
    let mut reader = Reader::default();
    let mut settings = XKeel::default();
    for (key, value) in reader.keys(node, "x-keel", &KEYS) {
        match key {
            "runtime" => {
                settings.runtime = reader.word(
                    value,
                    &[("process", RuntimeKind::Process), ("container", RuntimeKind::Container)],
                );
            }
            "network" => {
                settings.network = reader.word(
                    value,
                    &[("shared", NetworkMode::Shared), ("isolated", NetworkMode::Isolated)],
                );
            }
            "readiness" => reader.readiness(value, &mut settings.readiness),
            "protocol" => reader.protocol(value, &mut settings),
            "rollout" => reader.rollout(value, &mut settings),
            "routes" => settings.routes = reader.routes(value),
            "traffic" => settings.traffic = reader.traffic(value),
            _ => reader.backoff(value, &mut settings),
        }
    }
    if reader.errors.is_empty() { Ok(settings) } else { Err(reader.errors) }
}

/// The top-level secrets that routes of a service take users from.
pub(crate) fn secrets_of(service: &Node) -> impl Iterator<Item = &str> {
    let routes = service.at(&["x-keel", "routes"]);
    let items = routes.map(|routes| routes.as_seq().unwrap_or(std::slice::from_ref(routes)));
    let items = items.unwrap_or_default().iter();
    items.filter_map(|route| route.at(&["basic_auth", "secret"])?.as_str())
}

#[cfg(test)]
mod tests;
