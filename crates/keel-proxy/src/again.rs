//! When something that failed is tried again: soon, then twice as late each time.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{AGAIN, AGAIN_MOST};

/// Doublings after which the longest pause has been reached for sure.
const MOST_DOUBLINGS: u32 = 16;

/// Whether and when to try again.
#[derive(Debug, Default)]
pub struct Again {
    failures: u32,
    at: Option<Instant>,
}

impl Again {
    /// It failed just now.
    pub fn failed(&mut self) {
        self.at = Some(Instant::now() + pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// There is nothing to be tried again.
    pub fn done(&mut self) {
        *self = Self::default();
    }

    /// When, if at all.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Waits until then.
    pub async fn due(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

fn pause(failures: u32) -> Duration {
    (AGAIN * (1 << failures.min(MOST_DOUBLINGS))).min(AGAIN_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let seconds: Vec<_> = (0..9).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX), AGAIN_MOST);
        let mut again = Again::default();
        assert_eq!(again.at(), None);
        again.failed();
        let first = again.at();
        again.failed();
        assert!(first.is_some() && again.at() > first);
        again.done();
        assert_eq!(again.at(), None);
    }
}
