//! Why the server can't start, and why a request is refused.

use std::path::PathBuf;

/// Why the server can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] keel_store::Error),
    /// A stored record makes no sense to this version.
    #[error("the stored record {key} can't be read by this version of keel: {reason}")]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or socket can't be used.
    #[error("can't {action} {}: {source}", path.display())]
    File {
        /// What was tried (`create`, `listen on`, …).
        action: &'static str,
        /// What with.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Metrics can't be served where they were asked for.
    #[error(
        "can't serve metrics at {address}: {source}; hint: name a free address of this machine with --metrics-listen"
    )]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The network of virtual addresses can't be used.
    #[error("can't use {network} for virtual addresses: {reason}")]
    Network {
        /// The network.
        network: String,
        /// Why.
        reason: String,
    },
    /// The runtime can't be set up.
    #[error("can't run host processes here: {0}")]
    Runtime(String),
}

/// Why a request is refused. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs; see [`crate::api::types::ErrorBody::code`].
    pub code: &'static str,
    /// What happened, and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<keel_store::Error> for Refusal {
    fn from(error: keel_store::Error) -> Self {
        let code = match error {
            keel_store::Error::Full { .. } => "disk_full",
            keel_store::Error::TooLarge { .. } | keel_store::Error::Invalid(_) => "invalid",
            _ => "internal",
        };
        Self::new(code, error.to_string())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            other => Self::new("internal", other.to_string()),
        }
    }
}
