//! Log-linear histograms of times: exact to one part in eight, a few hundred bytes each.
//!
//! Values below 16 have a bucket each; above, every power of two is cut into eight equal parts, as in
//! HdrHistogram. Histograms of several workers or proxies are added bucket by bucket.

use serde::{Deserialize, Serialize};

/// Parts of each power of two.
const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values from here on share the last bucket: about 19 hours in microseconds.
const HIGHEST_BITS: u32 = 36;
/// Number of buckets.
pub const BUCKETS: usize = ((HIGHEST_BITS - STEP_BITS + 1) as usize) * STEPS as usize;

/// The bucket of `value`.
#[must_use]
pub fn bucket(value: u64) -> usize {
    let value = value.min((1 << HIGHEST_BITS) - 1);
    if value < STEPS {
        return usize::try_from(value).unwrap_or(0);
    }
    let exponent = value.ilog2();
    let group = u64::from(exponent - STEP_BITS + 1);
    let step = (value >> (exponent - STEP_BITS)) & (STEPS - 1);
    usize::try_from(group * STEPS + step).unwrap_or(BUCKETS - 1).min(BUCKETS - 1)
}

/// The smallest value that is above every value of `bucket`.
#[must_use]
pub fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let (group, step) = (bucket / STEPS, bucket % STEPS);
    if group == 0 {
        return step + 1;
    }
    (STEPS + step + 1) << (group - 1)
}

/// Counts of values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Sum of all values.
    pub sum: u64,
    /// Bucket → count, for buckets that are not empty, in order.
    pub counts: Vec<(u16, u64)>,
}

impl Histogram {
    /// From counts by bucket.
    #[must_use]
    pub fn new(sum: u64, counts: impl IntoIterator<Item = u64>) -> Self {
        let counts = (0u16..).zip(counts).filter(|(_, count)| *count > 0).collect();
        Self { sum, counts }
    }

    /// How many values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// Adds the values of another one.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        for (bucket, count) in &other.counts {
            match self.counts.binary_search_by_key(bucket, |(b, _)| *b) {
                Ok(at) => self.counts[at].1 += count,
                Err(at) => self.counts.insert(at, (*bucket, *count)),
            }
        }
    }

    /// A value that `quantile` (0 to 1) of all values do not exceed, rounded up to the end of its bucket; `None`
    /// without values.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let total = self.count();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rank = ((quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.counts
            .iter()
            .find(|(_, count)| {
                seen += count;
                seen >= rank
            })
            .map(|(bucket, _)| upper_bound(usize::from(*bucket)) - 1)
    }

    /// How many values are below `bound`, counting buckets that reach beyond it as above.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        let within = self.counts.iter().filter(|(b, _)| upper_bound(usize::from(*b)) <= bound);
        within.map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buckets_are_exact_to_an_eighth(value in 0u64..(1 << HIGHEST_BITS)) {
            let at = bucket(value);
            let low = if at == 0 { 0 } else { upper_bound(at - 1) };
            prop_assert!(low <= value && value < upper_bound(at), "{value} {low} {}", upper_bound(at));
            prop_assert!(at < BUCKETS);
            prop_assert!(upper_bound(at) - low <= (value / STEPS).max(1));
        }

        #[test]
        fn quantiles_and_sums(values in prop::collection::vec(0u64..10_000_000, 1..200), cut in 0usize..200) {
            let of = |values: &[u64]| {
                let mut counts = vec![0; BUCKETS];
                values.iter().for_each(|v| counts[bucket(*v)] += 1);
                Histogram::new(values.iter().sum(), counts)
            };
            let cut = cut.min(values.len());
            let mut sum = of(&values[..cut]);
            sum.add(&of(&values[cut..]));
            prop_assert_eq!(&sum, &of(&values));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let median = sorted[values.len().div_ceil(2) - 1];
            let told = sum.quantile(0.5).unwrap();
            prop_assert!(told >= median && told - median <= median / STEPS + 1);
        }
    }

    #[test]
    fn what_is_too_large_is_in_the_last_bucket() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
