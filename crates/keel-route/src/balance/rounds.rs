//! Round robin: one after the other, smoothly by weight.
//!
//! Each turn of an endpoint earns it its weight; with a full weight saved up it takes the request. An endpoint with
//! half the weight of another is skipped every other round. This spreads its requests as evenly as nginx's
//! smooth weighted round robin does, and looks at one endpoint per request instead of all.

use super::{FULL_WEIGHT, Load, Random};

/// Rounds that are made to find an endpoint with a full weight saved up. An endpoint that starts slowly with a
/// tenth of its weight has it by then.
const MAX_ROUNDS: usize = 10;

/// Whose turn it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Rounds {
    /// Whom the next request finds first; at random at first, so that workers and proxies do not march in step.
    next: Option<usize>,
    /// What each has saved up, less than a full weight.
    saved: Box<[u16]>,
}

impl Rounds {
    /// For as many endpoints as there are ids (their hashes).
    pub fn new(ids: impl Iterator<Item = u64>) -> Self {
        // Different beginnings, so that the light ones do not all come in the same round.
        let saved = |id| u16::try_from(id % u64::from(FULL_WEIGHT)).unwrap_or(0);
        Self { next: None, saved: ids.map(saved).collect() }
    }

    /// The next one that may be used.
    pub fn next(
        &mut self,
        random: &mut Random,
        load: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        let count = self.saved.len();
        let mut at = self.next.unwrap_or_else(|| random.below(count));
        let mut fallback: Option<usize> = None;
        for _ in 0..MAX_ROUNDS {
            for _ in 0..count {
                let i = at;
                at = if i + 1 < count { i + 1 } else { 0 };
                let Some(load) = load(i) else { continue };
                let saved = self.saved[i].saturating_add(load.weight_per_mille.min(FULL_WEIGHT));
                if saved >= FULL_WEIGHT {
                    self.saved[i] = saved - FULL_WEIGHT;
                    self.next = Some(at);
                    return Some(i);
                }
                self.saved[i] = saved;
                if fallback.is_none_or(|f| self.saved[f] < saved) {
                    fallback = Some(i);
                }
            }
            // Nobody may be used.
            fallback?;
        }
        let chosen = fallback?;
        self.saved[chosen] = 0;
        self.next = Some((chosen + 1) % count);
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weight(weight_per_mille: u16) -> Load {
        Load { weight_per_mille, ..Load::default() }
    }

    fn rounds(count: u64) -> Rounds {
        Rounds::new((0..count).map(|i| i * 321))
    }

    #[test]
    fn equal_ones_take_turns() {
        let mut rounds = rounds(3);
        let mut random = Random::new(5);
        let first = rounds.next(&mut random, |_| Some(weight(1_000))).unwrap();
        for turn in 1..20 {
            let next = rounds.next(&mut random, |_| Some(weight(1_000)));
            assert_eq!(next, Some((first + turn) % 3));
        }
        let one_out = |i| (i != 1).then(|| weight(1_000));
        let (a, b) = (rounds.next(&mut random, one_out), rounds.next(&mut random, one_out));
        assert!(a != b && a != Some(1) && b != Some(1));
        assert_eq!(rounds.next(&mut random, |_| None), None);
        assert_eq!(Rounds::default().next(&mut random, |_| None), None);
    }

    #[test]
    fn shares_are_exact_and_smooth() {
        let weights = [1_000, 500, 250, 100, 0];
        let mut rounds = rounds(5);
        let mut random = Random::new(5);
        let mut hits = [0u32; 5];
        let mut last = 4;
        let mut run = 0;
        for _ in 0..18_500 {
            let i = rounds.next(&mut random, |i| Some(weight(weights[i]))).unwrap();
            hits[i] += 1;
            run = if i == last { run + 1 } else { 1 };
            last = i;
            assert!(i == 0 || run == 1, "only the heaviest may come twice in a row");
        }
        for (hits, weight) in hits.into_iter().zip(weights) {
            assert!(hits.abs_diff(u32::from(weight) * 10) <= 2, "{hits} for {weight}");
        }
    }

    #[test]
    fn those_that_all_begin_slowly_share_evenly() {
        let mut rounds = rounds(4);
        let mut random = Random::new(3);
        let mut hits = [0u32; 4];
        for _ in 0..4_000 {
            hits[rounds.next(&mut random, |_| Some(weight(30))).unwrap()] += 1;
        }
        assert!(hits.iter().all(|h| h.abs_diff(1_000) < 50), "{hits:?}");
    }

    proptest! {
        #[test]
        fn one_is_found_if_there_is_any(
            weights in prop::collection::vec(prop::option::of(0u16..2_000), 0..9),
            seed in any::<u64>(),
        ) {
            let mut random = Random::new(seed);
            let mut rounds = Rounds::new(weights.iter().map(|_| random.bits()).collect::<Vec<_>>().into_iter());
            for _ in 0..30 {
                match rounds.next(&mut random, |i| weights[i].map(weight)) {
                    Some(i) => prop_assert!(weights[i].is_some()),
                    None => prop_assert!(weights.iter().all(Option::is_none)),
                }
            }
        }
    }
}
