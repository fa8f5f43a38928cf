//! `Retry-After` of the proxy's own 503 (RFC 9110, 10.2.3): when it is worth coming back.
//!
//! | because | wait |
//! |---|---|
//! | a bound or the adaptive limit is reached | [`FULL`] |
//! | memory runs out | what [`crate::shed::Shed`] says |
//! | all endpoints are left out | the shortest [`crate::outlier::Standing::back_at_ms`] |
//! | no endpoint came while the request was held | [`NO_ENDPOINT`] |

use std::time::Duration;

use crate::balance::Random;

/// When something is full for the moment.
pub const FULL: Duration = Duration::from_secs(1);
/// When there is no endpoint.
pub const NO_ENDPOINT: Duration = Duration::from_secs(5);
/// Nobody is sent away for longer, before chance is added.
pub const MOST: Duration = Duration::from_secs(30);

/// The header's value in seconds: at least `wait`, and up to half of it plus a second more, so that those who are sent
/// away together do not come back together.
#[must_use]
pub fn seconds(wait: Duration, random: &mut Random) -> u64 {
    let wait = wait.min(MOST);
    let least = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
    let spread = usize::try_from(least / 2 + 2).unwrap_or(1);
    least + random.below(spread) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_too_early_nor_much_too_late(millis in 0u64..30_000, seed in any::<u64>()) {
            let told = Duration::from_secs(seconds(Duration::from_millis(millis), &mut Random::new(seed)));
            prop_assert!(told >= Duration::from_millis(millis.max(1_000)));
            prop_assert!(told.as_millis() <= u128::from(millis.max(1_000) * 3 / 2 + 2_500));
        }
    }

    #[test]
    fn spreads_and_is_bounded() {
        let mut random = Random::new(1);
        let mut told: Vec<_> =
            (0..200).map(|_| seconds(Duration::from_secs(4), &mut random)).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told, [4, 5, 6, 7]);
        assert!(seconds(Duration::MAX, &mut random) <= 46);
    }
}
