//! The log of the server and the proxy, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What is logged, unless `KEEL_LOG` says otherwise (in the syntax of `RUST_LOG`).
const DEFAULT: &str = "info";

/// Begins to log.
pub fn start() {
    let filter = std::env::var("KEEL_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(DEFAULT));
    // It fails only when logging has begun already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log that can't be written (a full disk) must not bring down what it speaks of.
        .log_internal_errors(false)
        .try_init();
}
