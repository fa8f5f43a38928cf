//! Ctrl-C and SIGTERM as something that can be waited for.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Both signals.
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// From now on the signals no longer end the process.
    ///
    /// # Errors
    /// When the handlers can't be installed.
    pub fn listen() -> Result<Self, Failure> {
        let install = |kind| {
            signal(kind).map_err(|error| {
                Failure::failed("internal", format!("cannot listen for signals: {error}"))
            })
        };
        Ok(Self { int: install(SignalKind::interrupt())?, term: install(SignalKind::terminate())? })
    }

    /// The next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
