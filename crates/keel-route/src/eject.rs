//! Passive ejection: an endpoint that refused a connection is left out for a short, growing time.
//!
//! This bridges the gap between an instance's death and the snapshot that says so; it does not replace
//! the server's view. It is never a reason to fail: who has nothing else left uses an ejected endpoint.

use std::time::Duration;

/// How long after the first refused connection.
pub const FIRST: Duration = Duration::from_millis(200);
/// The longest that one refused connection leads to.
pub const LONGEST: Duration = Duration::from_secs(5);

/// Bits of the packed form that hold the time.
const TIME_BITS: u32 = 56;

/// What is remembered of an endpoint's refused connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejection {
    /// Refused connections in a row.
    failures: u8,
    /// Left out before this time, in milliseconds of the caller's clock.
    until_ms: u64,
}

impl Ejection {
    /// After one more refused connection at `now_ms`. Refusals while it is already left out change nothing:
    /// they come from requests that were on their way.
    #[must_use]
    pub fn refused(self, now_ms: u64) -> Self {
        if self.ejected(now_ms) {
            return self;
        }
        let failures = self.failures.saturating_add(1);
        let doubled = FIRST * (1 << u32::from(failures - 1).min(16));
        let pause = u64::try_from(doubled.min(LONGEST).as_millis()).unwrap_or(u64::MAX);
        Self { failures, until_ms: now_ms.saturating_add(pause).min((1 << TIME_BITS) - 1) }
    }

    /// Whether it is left out at `now_ms`.
    #[must_use]
    pub fn ejected(self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    /// In one word, to be shared between threads.
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.failures) << TIME_BITS | self.until_ms
    }

    /// The reverse of [`Ejection::pack`].
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        let failures = u8::try_from(word >> TIME_BITS).unwrap_or(u8::MAX);
        Self { failures, until_ms: word & ((1 << TIME_BITS) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grows_to_a_bound() {
        let mut ejection = Ejection::default();
        assert!(!ejection.ejected(0));
        let mut now = 1_000;
        let mut pauses = Vec::new();
        for _ in 0..300 {
            ejection = ejection.refused(now);
            assert_eq!(ejection, ejection.refused(now), "no growth while ejected");
            pauses.push(ejection.until_ms - now);
            now = ejection.until_ms;
            assert!(!ejection.ejected(now));
        }
        assert_eq!(pauses[..6], [200, 400, 800, 1_600, 3_200, 5_000]);
        assert_eq!(pauses[299], 5_000);
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(times in prop::collection::vec(0u64..1 << 50, 0..20)) {
            let mut ejection = Ejection::default();
            for now in times {
                ejection = ejection.refused(now);
                prop_assert_eq!(Ejection::unpack(ejection.pack()), ejection);
            }
        }
    }
}
