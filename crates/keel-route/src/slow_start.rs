//! Slow start: an endpoint that has just become ready gets its share little by little.
//!
//! Caches are cold, code is not compiled yet, pools are empty: the full share at once would make its first requests
//! slow. The share grows in a straight line over the window from [`LEAST_PER_MILLE`] on, as Envoy's slow start with
//! its default aggression. If all endpoints are new, all have the same share and nobody notices.

use std::time::Duration;

use crate::balance::FULL_WEIGHT;

/// Share at the beginning, in thousandths.
pub const LEAST_PER_MILLE: u16 = 100;

/// The share, in thousandths, of an endpoint that became ready `age_ms` ago. Without a window: all of it.
#[must_use]
pub fn share_per_mille(age_ms: u64, window: Option<Duration>) -> u16 {
    let window_ms = window.map_or(0, |window| window.as_millis());
    if u128::from(age_ms) >= window_ms {
        return FULL_WEIGHT;
    }
    let share = u128::from(age_ms) * u128::from(FULL_WEIGHT) / window_ms;
    u16::try_from(share).unwrap_or(FULL_WEIGHT).max(LEAST_PER_MILLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_in_a_straight_line() {
        let window = Some(Duration::from_secs(30));
        for (age, share) in
            [(0, 100), (3_000, 100), (3_300, 110), (15_000, 500), (29_999, 999), (30_000, 1_000)]
        {
            assert_eq!(share_per_mille(age, window), share, "{age}");
        }
        assert_eq!(share_per_mille(0, None), 1_000);
        assert_eq!(share_per_mille(0, Some(Duration::ZERO)), 1_000);
        assert_eq!(share_per_mille(u64::MAX, Some(Duration::MAX)), 100);
    }
}
