//! Chance that is the same every time: what spreads out in time must not move with every look.

use sha2::{Digest, Sha256};

/// The part of `whole` that falls to `key`, evenly spread over keys.
pub fn share(whole: u64, key: &str) -> u64 {
    let hash = Sha256::digest(key);
    let number = hash.iter().take(4).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u64::try_from((u128::from(whole) * u128::from(number)) >> 32).unwrap_or(whole)
}

/// The first bytes of a hash of `text`, in hexadecimal: 32 digits.
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_and_stay() {
        let shares: Vec<u64> = (0..100).map(|n| share(1000, &n.to_string())).collect();
        assert!(shares.iter().all(|share| *share < 1000));
        for quarter in 0..4 {
            let inside = shares.iter().filter(|share| **share / 250 == quarter).count();
            assert!(inside > 10, "{inside} of 100 in quarter {quarter}");
        }
        assert_eq!(share(u64::MAX, "a"), share(u64::MAX, "a"));
        assert_eq!(share(0, "a"), 0);
    }
}
