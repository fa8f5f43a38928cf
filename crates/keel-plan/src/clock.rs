//! Time as one turn sees it: a fixed `now`, and the earliest moment at which a deadline will pass.
//!
//! Stored times come from clocks that may since have been set back. A time that lies further in the future than
//! the deadline is long counts as passed, so no wait lasts longer than twice its deadline.

use std::cell::Cell;
use std::time::Duration;

use keel_model::Timestamp;

/// The time of one turn.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The time of this turn.
    pub(crate) now: Timestamp,
    stands: bool,
    wake: Cell<Option<Timestamp>>,
}

impl Clock {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { now, stands: false, wake: Cell::new(None) }
    }

    /// For a look at things as they are: no deadline passes.
    pub(crate) fn standing() -> Self {
        Self { now: Timestamp(u64::MAX), stands: true, wake: Cell::new(None) }
    }

    /// Whether `wait` has passed since `since`; if not, the turn is repeated when it has.
    pub(crate) fn passed(&self, since: Timestamp, wait: Duration) -> bool {
        if self.stands {
            return false;
        }
        let due = since + wait;
        if self.now >= due || since > self.now + wait {
            return true;
        }
        self.wake.set(Some(self.wake.get().map_or(due, |wake| wake.min(due))));
        false
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        self.wake.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_until_the_earliest_deadline() {
        let clock = Clock::new(Timestamp(1_000));
        assert!(clock.passed(Timestamp(0), Duration::from_secs(1)));
        assert!(!clock.passed(Timestamp(900), Duration::from_secs(1)));
        assert!(!clock.passed(Timestamp(500), Duration::from_secs(1)));
        assert_eq!(clock.wake_at(), Some(Timestamp(1_500)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stall() {
        let clock = Clock::new(Timestamp(1_000));
        assert!(clock.passed(Timestamp(1_000_000), Duration::from_secs(1)));
        assert!(!clock.passed(Timestamp(1_500), Duration::from_secs(1)));
    }
}
