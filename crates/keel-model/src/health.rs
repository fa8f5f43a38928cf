//! How an instance's health and readiness are judged.
//!
//! *Readiness* decides whether traffic is sent; *health* (the Compose `healthcheck`) also decides whether the
//! instance is restarted. An instance with a health check is ready only when both agree.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::HealthTimes;

/// The command of a Compose `healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Run directly.
    Exec(Vec<String>),
    /// Run by `/bin/sh -c`.
    Shell(String),
}

/// A Compose `healthcheck`. Defaults are those of the Docker engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is run; exit code 0 means healthy.
    pub test: Test,
    /// Time between two checks once started (30 s).
    #[serde(with = "crate::millis")]
    pub interval: Duration,
    /// After this a check counts as failed (30 s).
    #[serde(with = "crate::millis")]
    pub timeout: Duration,
    /// Failures in a row that make an instance unhealthy (3).
    pub retries: u32,
    /// Failures in this time after the start do not count (0 s).
    #[serde(with = "crate::millis")]
    pub start_period: Duration,
    /// Time between checks until the first success (1 s; Compose's own default of 5 s delays every start).
    #[serde(with = "crate::millis")]
    pub start_interval: Duration,
}

impl HealthCheck {
    /// Runs `test` at `times`; what they leave open is as the Docker engine has it.
    #[must_use]
    pub fn at_times(test: Test, times: &HealthTimes) -> Self {
        let seconds = Duration::from_secs;
        Self {
            test,
            interval: times.interval.unwrap_or(seconds(30)),
            timeout: times.timeout.unwrap_or(seconds(30)),
            retries: times.retries.unwrap_or(3),
            start_period: times.start_period.unwrap_or_default(),
            start_interval: times.start_interval.unwrap_or(seconds(1)),
        }
    }
}

/// One way to ask an instance whether it can take requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The port accepts a TCP connection.
    Tcp,
    /// `GET path` answers with a status from 200 to 399.
    Http {
        /// Absolute path, with query if any.
        path: String,
    },
    /// A command exits with 0.
    Exec(Vec<String>),
    /// Ready as soon as the process runs.
    None,
}

/// When an instance receives traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// What is asked. `None` (absent) means: TCP when the service has a port, otherwise [`Probe::None`].
    pub probe: Option<Probe>,
    /// The target port that is asked; the service's first when absent.
    pub port: Option<u16>,
    /// The file names no port: they are those that the image exposes, at which not every service of it listens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_image: bool,
    /// Time between two probes once ready (2 s).
    #[serde(with = "crate::millis")]
    pub interval: Duration,
    /// After this a probe counts as failed (1 s).
    #[serde(with = "crate::millis")]
    pub timeout: Duration,
    /// Successes in a row that make an instance that was not ready, ready again (2; the very first needs one).
    pub successes: u32,
    /// Failures in a row that take it out (3).
    pub failures: u32,
    /// An instance that was never ready for this long has failed to start (300 s).
    #[serde(with = "crate::millis")]
    pub startup_timeout: Duration,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            probe: None,
            port: None,
            from_image: false,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            successes: 2,
            failures: 3,
            startup_timeout: Duration::from_secs(300),
        }
    }
}
