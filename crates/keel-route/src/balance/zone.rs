//! How much of the traffic stays in the zone of the proxy.
//!
//! If instances were spread evenly, each zone would have its part of them, and serving its own traffic there costs
//! nothing. So the own zone keeps all its traffic while its usable endpoints are at least [`ENOUGH`] of that
//! part. Below, it keeps what they can take by that measure, and the rest goes to the other zones, which have room
//! for it. If the others are not well either, preferring anybody would only overload somebody: then every
//! usable endpoint gets the same.
//!
//! [`ENOUGH`] is the reciprocal of Envoy's overprovisioning factor (1.4). Unlike Envoy's zone-aware routing nothing has to be
//! known of the other proxies; that each zone brings the same traffic is assumed.

/// Percent of its even part that a zone needs usable to keep all its traffic.
pub const ENOUGH: u64 = 70;

/// Weights of endpoints, in any one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// Those in the own zone that may be used.
    pub near_usable: u64,
    /// All in the own zone.
    pub near: u64,
    /// Those elsewhere that may be used.
    pub far_usable: u64,
    /// All elsewhere.
    pub far: u64,
    /// How many zones there are, the own one included.
    pub zones: u64,
}

/// The share of the requests that stays in the own zone, in thousandths.
#[must_use]
pub fn near_per_mille(zones: Zones) -> u16 {
    let Zones { near_usable, near, far_usable, far, zones } = zones;
    // Times 100 and times the number of zones, to stay with whole numbers.
    let part = near.saturating_add(far).saturating_mul(ENOUGH);
    let can = near_usable.saturating_mul(100).saturating_mul(zones.max(1));
    if near_usable == 0 {
        return 0;
    }
    if can >= part || far_usable == 0 {
        return 1_000;
    }
    let far_is_well = far_usable.saturating_mul(100) >= far.saturating_mul(ENOUGH);
    if far_is_well {
        ratio(can, part)
    } else {
        ratio(near_usable, near_usable.saturating_add(far_usable))
    }
}

fn ratio(of: u64, to: u64) -> u16 {
    let per_mille = u128::from(of) * 1_000 / u128::from(to.max(1));
    u16::try_from(per_mille.min(1_000)).unwrap_or(1_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table() {
        for (near_usable, near, far_usable, far, zones, expected) in [
            (3, 3, 3, 3, 2, 1_000),
            (0, 3, 3, 3, 2, 0),
            (3, 3, 0, 3, 2, 1_000),
            // 70 % of 3 are 2.1.
            (2, 3, 3, 3, 2, 952),
            (1, 3, 3, 3, 2, 476),
            (7, 10, 20, 20, 3, 1_000),
            // One of six cannot take the half of all.
            (1, 1, 5, 5, 2, 476),
            // More than its part: some may be out.
            (4, 8, 4, 4, 2, 952),
            (5, 8, 4, 4, 2, 1_000),
            // The others are not well.
            (1, 3, 1, 3, 2, 500),
            (1, 4, 2, 4, 2, 333),
            (0, 0, 0, 0, 0, 0),
        ] {
            let case = Zones { near_usable, near, far_usable, far, zones };
            assert_eq!(near_per_mille(case), expected, "{case:?}");
        }
    }

    proptest! {
        #[test]
        fn more_usable_ones_near_never_keep_less(near in 1u64..50, far in 0u64..50, zones in 1u64..5, far_usable in 0u64..50) {
            let far_usable = far_usable.min(far);
            let mut before = 0;
            for near_usable in 0..=near {
                let share = near_per_mille(Zones { near_usable, near, far_usable, far, zones });
                prop_assert!(before <= share && share <= 1_000);
                before = share;
            }
        }

        #[test]
        fn no_numbers_are_a_panic(near_usable: u64, near: u64, far_usable: u64, far: u64, zones: u64) {
            let share = near_per_mille(Zones { near_usable, near, far_usable, far, zones });
            prop_assert!(share <= 1_000);
        }
    }
}
