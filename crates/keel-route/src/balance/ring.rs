//! Consistent hashing on a ring (Karger et al. 1997), in the manner of ketama.
//!
//! Each endpoint has [`POINTS`] points on a circle of hashes; a key belongs to the next point. Points depend on the
//! endpoint's id alone, so that all proxies agree and one that comes or goes moves only its own keys. With so many
//! points shares differ by about one in twelve (standard deviation 1/√160); who needs them more even takes Maglev.

use super::stable::numbered_hash;
use super::{EndpointKey, FULL_WEIGHT, MAX_STEPS};

/// Points of an endpoint with full weight, as libmemcached's weighted ketama has them.
const POINTS: usize = 160;
/// Most points of a ring; very many endpoints get fewer each.
const MAX_POINTS: usize = 1 << 20;

/// Points in order of their hash, each with the index of its endpoint.
#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// `weights` are in thousandths of the largest.
    pub fn new(endpoints: &[EndpointKey<'_>], weights: &[u16]) -> Self {
        let each = POINTS.min(MAX_POINTS / endpoints.len().max(1)).max(1);
        let mut points = Vec::with_capacity(each * endpoints.len());
        for (index, (endpoint, weight)) in (0u32..).zip(endpoints.iter().zip(weights)) {
            let count = (each * usize::from(*weight)).div_ceil(usize::from(FULL_WEIGHT)).max(1);
            let point = |number| (numbered_hash(endpoint.id.as_bytes(), number), index);
            points.extend((0..).take(count).map(point));
        }
        // Should two points coincide, the order of ids decides, not that of the list.
        points.sort_unstable_by_key(|(hash, index)| (*hash, endpoints[*index as usize].id));
        Self { points: points.into() }
    }

    /// Whose `key` is: the first usable one from there on. `None` if there is none within [`MAX_STEPS`] points.
    pub fn find(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let at = self.points.partition_point(|(hash, _)| *hash < key);
        let (before, after) = self.points.split_at(at);
        let walk = after.iter().chain(before).take(MAX_STEPS);
        walk.map(|(_, index)| *index as usize).find(|index| usable(*index))
    }
}
