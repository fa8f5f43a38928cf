//! What happened, in words: what, for whom, why, and when again.

use std::fmt;

use keel_model::Timestamp;

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There is a new certificate.
    Issued {
        /// For whom.
        names: Vec<String>,
        /// From whom.
        directory: String,
        /// Until when it is valid.
        until: Timestamp,
    },
    /// There is none.
    Failed {
        /// For whom.
        names: Vec<String>,
        /// From whom.
        directory: String,
        /// Why.
        reason: String,
        /// The next try.
        again: Timestamp,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issued { names, directory, until } => write!(
                f,
                "certificate for {} issued by {}, valid until {}",
                some(names),
                host(directory),
                time(*until)
            ),
            Self::Failed { names, directory, reason, again } => write!(
                f,
                "no certificate for {} from {}: {reason}; the next try is at {}",
                some(names),
                host(directory),
                time(*again)
            ),
        }
    }
}

/// The first names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn host(directory: &str) -> &str {
    let rest = directory.split_once("://").map_or(directory, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn time(at: Timestamp) -> String {
    let milliseconds = i64::try_from(at.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}
