//! Hashes on which all proxies agree, now and after an update: XXH3 (64 bits), whose values are fixed by its
//! specification. Not against attackers: who knows the keys can choose some that meet at one endpoint.

use twox_hash::XxHash3_64;

use super::random::mix;

/// The hash of a key (a client's address, a header's value, an instance's id).
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Another hash of the same bytes for each `number`.
pub(super) fn numbered_hash(bytes: &[u8], number: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(number, bytes)
}

/// The usable one among `ids` (hashes) that fits `key` best: rendezvous hashing (Thaler and Ravishankar 1998). It looks at
/// all, but a key moves only if the one that it went to is no longer usable.
pub(super) fn rendezvous(ids: &[u64], key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
    let fit = |i: &usize| (mix(ids[*i] ^ key), ids[*i]);
    (0..ids.len()).filter(|i| usable(*i)).max_by_key(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_specified_one() {
        // Values that the reference implementation gives; another crate or version has to give the same.
        assert_eq!(hash(b""), 0x2D06_8005_38D3_94C2);
        assert_eq!(hash(b"shop-cart-1"), 0x9625_F949_655B_020F);
        assert_eq!(numbered_hash(b"shop-cart-1", 7), 0x6DE2_C542_32C1_F884);
    }

    #[test]
    fn only_the_keys_of_the_one_that_leaves_move() {
        let ids: Vec<_> = (0..8u64).map(|i| hash(&i.to_le_bytes())).collect();
        let mut kept = 0;
        for key in 0..8_000 {
            let before = rendezvous(&ids, hash(&i64::to_le_bytes(key)), |_| true).unwrap();
            let after = rendezvous(&ids, hash(&i64::to_le_bytes(key)), |i| i != 3).unwrap();
            assert!(after == before || before == 3);
            kept += usize::from(after == before);
        }
        assert!((6_800..7_200).contains(&kept), "{kept}");
        assert_eq!(rendezvous(&ids, 1, |_| false), None);
    }
}
