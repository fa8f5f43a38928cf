//! Choosing by chance and load: one of the candidates, or the better of two.
//!
//! Two random choices avoid both the herd that "the least loaded of all" makes when several proxies look at
//! the same numbers, and the long queues of one random choice (Mitzenmacher 2001). Among equally loaded ones
//! the first of the two wins, which is itself random.
//!
//! A candidate with less than its full weight takes part only in that share of the choices. So its share of the
//! traffic is bounded by its weight however idle it is, which a weight on its load would not achieve.

use super::random::{mix, scale};
use super::{FULL_WEIGHT, Load, Random};

/// Draws before all candidates are looked at. Each fails if a drawn candidate does not take part.
const REDRAWS: usize = 4;
/// Latencies whose ratio is up to this count as equal, as numerator and denominator: so much is noise, and requests
/// in flight tell more. Without it, one of two equal and idle endpoints would get everything until its next peak.
const NOISE: (u64, u64) = (3, 2);
/// No endpoint counts as more than this many times as slow as the one it is compared with: one very slow answer
/// must not starve it while others pile up requests, nor may a decayed value make another swallow everything.
const MAX_RATIO: u64 = 8;

/// Who takes part in one choice; the same however often it is asked.
struct Lot<F> {
    salt: u64,
    load: F,
}

impl<F: Fn(usize) -> Option<Load>> Lot<F> {
    fn of(&self, i: usize) -> Option<Load> {
        (self.load)(i).filter(|load| {
            load.weight_per_mille >= FULL_WEIGHT
                || scale(mix(self.salt ^ i as u64) >> 32, usize::from(FULL_WEIGHT))
                    < usize::from(load.weight_per_mille)
        })
    }
}

/// The better of two of `count` candidates. `None` when no candidate may be used.
pub(super) fn better_of_two(
    count: usize,
    random: &mut Random,
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    if count < 2 {
        return (count == 1 && load(0).is_some()).then_some(0);
    }
    let mut bits = random.bits();
    let lot = Lot { salt: bits, load };
    for _ in 0..REDRAWS {
        let (a, b) = two(count, bits);
        if let (Some(of_a), Some(of_b)) = (lot.of(a), lot.of(b)) {
            return Some(if is_better(of_b, of_a) { b } else { a });
        }
        bits = random.bits();
    }
    // Many are left out: choose among the others only, so that none of them gets a double share.
    let among = |taking_part: &dyn Fn(usize) -> Option<Load>| {
        let nth = |n| (0..count).filter_map(|i| taking_part(i).map(|l| (i, l))).nth(n);
        match (0..count).filter(|i| taking_part(*i).is_some()).count() {
            0 => None,
            1 => nth(0).map(|(i, _)| i),
            usable => {
                let (a, b) = two(usable, bits);
                let (a, b) = (nth(a)?, nth(b)?);
                Some(if is_better(b.1, a.1) { b.0 } else { a.0 })
            }
        }
    };
    among(&|i| lot.of(i)).or_else(|| among(&|i| (lot.load)(i)))
}

/// One of `count` candidates at random. `None` when no candidate may be used.
pub(super) fn any_one(
    count: usize,
    random: &mut Random,
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    let lot = Lot { salt: random.bits(), load };
    for _ in 0..REDRAWS {
        let i = random.below(count);
        if i < count && lot.of(i).is_some() {
            return Some(i);
        }
    }
    let bits = random.bits() >> 32;
    let among = |taking_part: &dyn Fn(usize) -> bool| {
        let usable = (0..count).filter(|i| taking_part(*i)).count();
        (0..count).filter(|i| taking_part(*i)).nth(scale(bits, usable))
    };
    among(&|i| lot.of(i).is_some()).or_else(|| among(&|i| (lot.load)(i).is_some()))
}

/// Two different numbers below `count`, which is at least 2.
fn two(count: usize, bits: u64) -> (usize, usize) {
    let a = scale(bits >> 32, count);
    let b = scale(bits & u64::from(u32::MAX), count - 1);
    (a, if b >= a { b + 1 } else { b })
}

/// Whether a request is better off at `a` than at `b`: by latency times requests in flight, this one included. One of
/// which nothing is known counts as quick as the other, so that it is neither flooded nor starved.
fn is_better(a: Load, b: Load) -> bool {
    let latency = |load: Load, other: Load| load.ewma_us.or(other.ewma_us).unwrap_or(1).into();
    let (of_a, of_b): (u64, u64) = (latency(a, b), latency(b, a));
    let (low, high) = (of_a.min(of_b), of_a.max(of_b));
    if high * NOISE.1 <= low * NOISE.0 {
        return a.in_flight < b.in_flight;
    }
    let most = low.saturating_mul(MAX_RATIO);
    let cost = |latency: u64, load: Load| {
        latency.min(most).saturating_mul(load.in_flight.saturating_add(1))
    };
    cost(of_a, a) < cost(of_b, b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(in_flight: u64, ewma_us: Option<u32>) -> Load {
        Load { in_flight, ewma_us, ..Load::default() }
    }

    #[test]
    fn which_is_better() {
        for (a, b, better) in [
            (load(0, None), load(1, None), true),
            (load(1, None), load(1, None), false),
            // Unknown counts as the other.
            (load(0, None), load(1, Some(9)), true),
            (load(1, None), load(0, Some(9)), false),
            // Noise: requests in flight decide.
            (load(0, Some(149)), load(1, Some(100)), true),
            (load(1, Some(100)), load(1, Some(149)), false),
            // Twice as slow: takes half as many.
            (load(0, Some(100)), load(0, Some(200)), true),
            (load(1, Some(100)), load(0, Some(200)), false),
            (load(0, Some(200)), load(1, Some(100)), false),
            (load(0, Some(200)), load(2, Some(100)), true),
            // A thousand times as slow counts as eight times.
            (load(0, Some(100_000)), load(8, Some(100)), true),
            (load(0, Some(100_000)), load(7, Some(100)), false),
            (load(u64::MAX - 1, Some(u32::MAX)), load(0, Some(1)), false),
        ] {
            assert_eq!(is_better(a, b), better, "{a:?} {b:?}");
        }
    }

    proptest! {
        #[test]
        fn only_usable_ones_are_chosen_and_one_is_if_there_is_any(
            loads in prop::collection::vec(
                prop::option::of((0u64..5, prop::option::of(1u32..100), 0u16..=1_000)),
                0..12,
            ),
            seed in any::<u64>(),
        ) {
            let state = |i: usize| {
                let part = |(in_flight, ewma_us, weight_per_mille)| Load { in_flight, ewma_us, weight_per_mille };
                loads[i].map(part)
            };
            let mut random = Random::new(seed);
            for _ in 0..20 {
                for chosen in [
                    better_of_two(loads.len(), &mut random, state),
                    any_one(loads.len(), &mut random, state),
                ] {
                    match chosen {
                        Some(i) => prop_assert!(loads[i].is_some()),
                        None => prop_assert!(loads.iter().all(Option::is_none)),
                    }
                }
            }
        }

        #[test]
        fn neither_the_most_loaded_nor_the_slowest_of_equals_is_chosen(
            mut loads in prop::collection::vec(0u64..5, 2..12),
            seed in any::<u64>(),
        ) {
            loads[0] = 9;
            let mut random = Random::new(seed);
            for _ in 0..20 {
                let by_load = better_of_two(loads.len(), &mut random, |i| Some(load(loads[i], None)));
                prop_assert_ne!(by_load, Some(0));
                let slow = |i: usize| if i == 0 { 1_000 } else { 500 };
                let by_time = better_of_two(loads.len(), &mut random, |i| Some(load(1, Some(slow(i)))));
                prop_assert_ne!(by_time, Some(0));
            }
        }
    }

    #[test]
    fn shares_follow_weights_within_a_factor_of_two() {
        for (count, in_flight) in [(2, 0), (2, 5), (5, 0), (5, 5)] {
            let mut random = Random::new(11);
            let state = |i: usize| {
                let (in_flight, weight_per_mille) =
                    if i == 1 { (0, 200) } else { (in_flight, 1_000) };
                Some(Load { in_flight, ewma_us: None, weight_per_mille })
            };
            let mut hits = 0;
            let mut blind = 0;
            for _ in 0..20_000 {
                hits += usize::from(better_of_two(count, &mut random, state) == Some(1));
                blind += usize::from(any_one(count, &mut random, state) == Some(1));
            }
            // 200 of 1,000 in each of the drawn pairs that it would win.
            let fair = 20_000 / 5 / count;
            assert!((fair * 8 / 10..fair * 25 / 10).contains(&hits), "{count} {in_flight}: {hits}");
            assert!((fair * 9 / 10..fair * 14 / 10).contains(&blind), "{count}: {blind}");
        }
    }

    #[test]
    fn equally_loaded_ones_share_evenly_even_when_some_are_left_out() {
        let mut random = Random::new(7);
        let mut hits = [[0u32; 5]; 2];
        let state = |i: usize| (i != 2).then(|| load(1, None));
        for _ in 0..10_000 {
            hits[0][better_of_two(5, &mut random, state).unwrap()] += 1;
            hits[1][any_one(5, &mut random, state).unwrap()] += 1;
        }
        for hits in hits {
            assert_eq!(hits[2], 0);
            for i in [0, 1, 3, 4] {
                assert!((2_200..2_800).contains(&hits[i]), "{hits:?}");
            }
        }
    }

    #[test]
    fn queues_stay_short() {
        // 10 servers, each request stays for 10 arrivals: on average one in flight at each.
        let mut random = Random::new(1);
        let mut loads = [0u64; 10];
        let mut running = std::collections::VecDeque::new();
        let mut worst = 0;
        for _ in 0..10_000 {
            let i = better_of_two(10, &mut random, |i| Some(load(loads[i], None))).unwrap();
            loads[i] += 1;
            worst = worst.max(loads[i]);
            running.push_back(i);
            if running.len() > 10 {
                loads[running.pop_front().unwrap()] -= 1;
            }
        }
        assert!(worst <= 4, "{worst}");
    }
}
