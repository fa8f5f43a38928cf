//! Chance that is handed in: a small generator whose sequence is fixed by its seed.

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

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        scale(self.bits() >> 32, bound)
    }
}

/// Brings 32 random bits below `bound` (multiply-shift).
pub(super) fn scale(bits: u64, bound: usize) -> usize {
    let bound = u64::try_from(bound).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
    usize::try_from((bits * bound) >> 32).unwrap_or(0)
}

/// Scrambles all bits (the finalizer of splitmix64), so that neighbouring inputs share nothing.
pub(super) fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn below_stays_below(seed in any::<u64>(), bound in 1usize..10_000) {
            let mut random = Random::new(seed);
            for _ in 0..50 {
                prop_assert!(random.below(bound) < bound);
            }
        }
    }
}
