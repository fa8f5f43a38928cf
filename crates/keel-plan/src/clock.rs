//! Time as one turn sees it: a fixed `now`, and the earliest moment at which a deadline will pass.
//!
//! Stored times come from clocks that may since have been set back. The planner's own are mended when a turn begins
//! (see [`crate::draft`]); a time that a node reported and that lies further in the future than the wait is long
//! gives way to the planner's own. So no wait lasts longer than twice its length, and none ends early.

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

    /// Whether `wait` has passed since `since`, a time of the planner's own; if not, the turn is repeated when it has.
    pub(crate) fn passed(&self, since: Timestamp, wait: Duration) -> bool {
        if self.stands {
            return false;
        }
        let due = since + wait;
        if self.now >= due {
            return true;
        }
        self.wake.set(Some(self.wake.get().map_or(due, |wake| wake.min(due))));
        false
    }

    /// Whether `wait` has passed since `reported`, a time that a node told us after `told`, a time of our own.
    pub(crate) fn passed_since_report(
        &self,
        reported: Timestamp,
        told: Timestamp,
        wait: Duration,
    ) -> bool {
        let believable = reported <= self.now + wait;
        self.passed(if believable { reported } else { told }, wait)
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
        let second = Duration::from_secs(1);
        assert!(!clock.passed_since_report(Timestamp(1_500), Timestamp(0), second));
        assert!(clock.passed_since_report(Timestamp(9_000), Timestamp(0), second));
        assert!(!clock.passed_since_report(Timestamp(9_000), Timestamp(900), second));
    }
}
