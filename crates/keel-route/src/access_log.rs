//! Which requests the access log holds, and how it is kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::balance::Random;

/// Every request.
pub const ALL: u16 = 1000;

/// The access log: one line per request, written at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessLog {
    /// The file. Lines are appended; one that is moved away or deleted is made anew.
    pub path: PathBuf,
    /// How a line looks.
    pub format: LogFormat,
    /// Of a thousand requests, so many are logged. Failures and slow ones always are.
    pub sample_per_mille: u16,
    /// Requests that take this long or longer count as slow, in milliseconds.
    pub slow_ms: u64,
    /// Keep queries, which may hold secrets, in paths and referrers.
    pub query: bool,
    /// At which listeners.
    pub scope: LogScope,
    /// A file that would grow beyond this many bytes is moved aside to `.1` before; 0: never.
    pub max_size: u64,
    /// Files moved aside that are kept.
    pub keep: u32,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            format: LogFormat::Json,
            sample_per_mille: ALL,
            slow_ms: 1_000,
            query: false,
            scope: LogScope::All,
            max_size: 100 << 20,
            keep: 5,
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// An object of JSON.
    #[default]
    Json,
    /// Apache's "combined".
    Combined,
}

/// At which listeners requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogScope {
    /// All.
    #[default]
    All,
    /// Those open for clients outside.
    Published,
}

impl AccessLog {
    /// Whether requests at a listener are logged at all.
    #[must_use]
    pub fn covers(&self, published: bool) -> bool {
        published || self.scope == LogScope::All
    }

    /// Whether the next request is one of the sample.
    pub fn samples(&self, random: &mut Random) -> bool {
        self.sample_per_mille >= ALL
            || random.below(usize::from(ALL)) < usize::from(self.sample_per_mille)
    }

    /// Whether a request is logged although it is not one of the sample.
    #[must_use]
    pub fn always_keeps(&self, failed: bool, status: u16, duration_us: u64) -> bool {
        failed || status >= 500 || duration_us >= self.slow_ms.saturating_mul(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_are_sampled_as_wanted() {
        let mut random = Random::new(7);
        let mut sampled = |sample_per_mille| {
            let log = AccessLog { sample_per_mille, ..AccessLog::default() };
            (0..100_000).filter(|_| log.samples(&mut random)).count()
        };
        assert_eq!((sampled(0), sampled(1000)), (0, 100_000));
        let tenth = sampled(100);
        assert!((9_500..10_500).contains(&tenth), "{tenth}");
    }

    #[test]
    fn failures_and_slow_requests_are_never_left_out() {
        let log = AccessLog { slow_ms: 20, ..AccessLog::default() };
        assert!(!log.always_keeps(false, 499, 19_999));
        assert!(log.always_keeps(false, 500, 0));
        assert!(log.always_keeps(false, 200, 20_000));
        assert!(log.always_keeps(true, 0, 0));
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let log: AccessLog = serde_json::from_str(r#"{"path":"a","format":"combined"}"#).unwrap();
        let wanted = AccessLog { path: "a".into(), format: LogFormat::Combined, ..log.clone() };
        assert_eq!(log, wanted);
        assert_eq!((log.sample_per_mille, log.keep), (1000, 5));
        assert!(log.covers(false));
        let outside = AccessLog { scope: LogScope::Published, ..log };
        assert!(outside.covers(true) && !outside.covers(false));
    }
}
