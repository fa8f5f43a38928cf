//! Consistent hashing by table (Eisenbud et al. 2016, "Maglev: A Fast and Reliable Software Network Load
//! Balancer", 3.4).
//!
//! Every endpoint lists the slots of the table in an order of its own; in turns each takes its next free one. Shares
//! are even to about one slot in a hundred; when an endpoint comes or goes a few keys of the others move as well.
//! With weights, an endpoint of half the weight sits out every other turn, as in Envoy.

use super::stable::numbered_hash;
use super::{EndpointKey, FULL_WEIGHT, MAX_STEPS};

/// Slots for up to [`FEW`] endpoints; a prime, so that every step leads through all slots.
const SMALL: usize = 5_003;
/// Slots for more (the paper's size; a prime). Growing beyond [`FEW`] moves nearly all keys, once.
const LARGE: usize = 65_537;
/// Endpoints that the small table serves: a hundred slots for each.
const FEW: usize = 50;

/// The table: slot → index of the endpoint.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[u32]>,
}

struct Turns<'a> {
    id: &'a str,
    index: u32,
    weight: u64,
    /// Where the list of slots begins, and the step from one to the next.
    at: usize,
    step: usize,
    /// Turns that it has taken part in, times [`FULL_WEIGHT`].
    taken: u64,
}

impl Table {
    /// `weights` are in thousandths of the largest.
    pub fn new(endpoints: &[EndpointKey<'_>], weights: &[u16]) -> Self {
        let size = if endpoints.len() <= FEW { SMALL } else { LARGE };
        let mut turns: Vec<_> = (0u32..)
            .zip(endpoints.iter().zip(weights))
            .map(|(index, (endpoint, weight))| Turns {
                id: endpoint.id,
                index,
                weight: (*weight).max(1).into(),
                at: below(numbered_hash(endpoint.id.as_bytes(), 0), size),
                step: 1 + below(numbered_hash(endpoint.id.as_bytes(), 1), size - 1),
                taken: 0,
            })
            .collect();
        // Turns go by id: the order of the list must not matter.
        turns.sort_unstable_by_key(|turns| turns.id);
        Self { slots: fill(size, &mut turns) }
    }

    /// Whose `key` is; if it is not usable, whose the next slot is, and so on. `None` if there is none within
    /// [`MAX_STEPS`] slots.
    pub fn find(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let (before, after) = self.slots.split_at(below(key, self.slots.len()));
        let walk = after.iter().chain(before).take(MAX_STEPS);
        walk.map(|index| *index as usize).find(|index| usable(*index))
    }
}

fn below(hash: u64, size: usize) -> usize {
    usize::try_from(hash % size.max(1) as u64).unwrap_or(0)
}

fn fill(size: usize, turns: &mut [Turns<'_>]) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let mut slots = vec![FREE; size].into_boxed_slice();
    if turns.is_empty() {
        return Box::default();
    }
    let mut free = size;
    // One of full weight takes a slot in every round, so that there are at most `size` rounds.
    for round in 1..=size as u64 {
        for turn in turns.iter_mut() {
            if round * turn.weight < turn.taken + u64::from(FULL_WEIGHT) {
                continue;
            }
            turn.taken += u64::from(FULL_WEIGHT);
            while slots[turn.at] != FREE {
                turn.at = (turn.at + turn.step) % size;
            }
            slots[turn.at] = turn.index;
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
    slots
}
