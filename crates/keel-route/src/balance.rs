//! Which endpoint takes a request: the less loaded of two chosen at random.
//!
//! Two random choices avoid both the herd that "the least loaded of all" makes when several proxies look at
//! the same numbers, and the long queues of one random choice (Mitzenmacher 2001). Among equally loaded ones
//! the first of the two wins, which is itself random.

/// A small random number generator (xorshift64*); good enough to spread load, useless for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose sequence is fixed by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Spread small seeds over all bits (splitmix64); the state must not be 0.
        let mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let high = self.word() >> 32;
        // Multiply-shift: the upper 32 bits of high · bound.
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        usize::try_from((high * bound) >> 32).unwrap_or(0)
    }
}

/// Picks one of `count` candidates. `load` says how loaded a candidate is, or `None` if it may not be used.
///
/// `None` when no candidate may be used.
pub fn pick(
    count: usize,
    random: &mut Random,
    load: impl Fn(usize) -> Option<u64>,
) -> Option<usize> {
    match count {
        0 => return None,
        1 => return load(0).map(|_| 0),
        _ => {}
    }
    let (a, b) = two(count, random);
    match (load(a), load(b)) {
        (Some(of_a), Some(of_b)) => Some(if of_b < of_a { b } else { a }),
        // Some are left out: choose among the others only, so that none of them gets a double share.
        _ => pick_among_usable(count, random, load),
    }
}

/// Two different numbers below `count`, which is at least 2.
fn two(count: usize, random: &mut Random) -> (usize, usize) {
    let a = random.below(count);
    let b = random.below(count - 1);
    (a, if b >= a { b + 1 } else { b })
}

fn pick_among_usable(
    count: usize,
    random: &mut Random,
    load: impl Fn(usize) -> Option<u64>,
) -> Option<usize> {
    let usable = (0..count).filter(|i| load(*i).is_some()).count();
    let nth = |n: usize| (0..count).filter_map(|i| load(i).map(|l| (i, l))).nth(n);
    match usable {
        0 => None,
        1 => nth(0).map(|(i, _)| i),
        _ => {
            let (a, b) = two(usable, random);
            let (a, b) = (nth(a)?, nth(b)?);
            Some(if b.1 < a.1 { b.0 } else { a.0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_usable_ones_are_picked_and_one_is_if_there_is_any(
            loads in prop::collection::vec(prop::option::of(0u64..5), 0..12),
            seed in any::<u64>(),
        ) {
            let mut random = Random::new(seed);
            for _ in 0..20 {
                match pick(loads.len(), &mut random, |i| loads[i]) {
                    Some(i) => prop_assert!(loads[i].is_some()),
                    None => prop_assert!(loads.iter().all(Option::is_none)),
                }
            }
        }

        #[test]
        fn the_most_loaded_of_several_is_never_picked(
            mut loads in prop::collection::vec(0u64..5, 2..12),
            seed in any::<u64>(),
        ) {
            loads[0] = 9;
            let mut random = Random::new(seed);
            for _ in 0..20 {
                prop_assert_ne!(pick(loads.len(), &mut random, |i| Some(loads[i])), Some(0));
            }
        }

        #[test]
        fn below_stays_below(seed in any::<u64>(), bound in 1usize..10_000) {
            let mut random = Random::new(seed);
            for _ in 0..50 {
                prop_assert!(random.below(bound) < bound);
            }
        }
    }

    #[test]
    fn equally_loaded_ones_share_evenly_even_when_some_are_left_out() {
        let mut random = Random::new(7);
        let mut hits = [0u32; 5];
        for _ in 0..10_000 {
            let i = pick(5, &mut random, |i| (i != 2).then_some(1)).unwrap();
            hits[i] += 1;
        }
        assert_eq!(hits[2], 0);
        for i in [0, 1, 3, 4] {
            assert!((2_200..2_800).contains(&hits[i]), "{hits:?}");
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
            let i = pick(10, &mut random, |i| Some(loads[i])).unwrap();
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
