//! Choosing without a key: among all endpoints, or by zone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::rounds::Rounds;
use super::zone::{self, Zones};
use super::{EndpointKey, FULL_WEIGHT, Load, Random, choice, relative_weights};

/// Requests after which the share of the own zone is worked out anew; it looks at every endpoint.
const REVIEW: u32 = 64;

/// How one of several is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    LeastRequest,
    RoundRobin,
    Random,
}

/// Chooses without a key.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    way: Way,
    places: Places,
}

#[derive(Clone, Debug)]
enum Places {
    Anywhere(usize, Rounds),
    ByZone(Box<ByZone>),
}

#[derive(Clone, Debug)]
struct ByZone {
    near: Group,
    far: Group,
    zones: u64,
    /// Share of the own zone.
    near_per_mille: u16,
    /// Requests until it is worked out anew.
    review_in: u32,
}

#[derive(Clone, Debug)]
struct Group {
    members: Arc<[u32]>,
    /// Sum of their weights.
    weight: u64,
    rounds: Rounds,
}

impl Spread {
    /// `ids` are the hashes of the endpoints' ids.
    pub fn new(
        way: Way,
        endpoints: &[EndpointKey<'_>],
        ids: &[u64],
        prefer_zone: Option<&str>,
    ) -> Self {
        let rounds = |members: &mut dyn Iterator<Item = u64>| match way {
            Way::RoundRobin => Rounds::new(members),
            Way::LeastRequest | Way::Random => Rounds::default(),
        };
        let is_near = |e: &EndpointKey<'_>| e.zone == prefer_zone;
        let mixed = endpoints.iter().any(is_near) && !endpoints.iter().all(is_near);
        if prefer_zone.is_none() || !mixed {
            let anywhere = rounds(&mut ids.iter().copied());
            return Self { way, places: Places::Anywhere(ids.len(), anywhere) };
        }
        let weights = relative_weights(endpoints);
        let group = |near: bool| {
            let all = (0u32..).zip(endpoints).filter(|(_, e)| is_near(e) == near);
            let members: Arc<[u32]> = all.map(|(i, _)| i).collect();
            Group {
                weight: members.iter().map(|i| u64::from(weights[*i as usize])).sum(),
                rounds: rounds(&mut members.iter().map(|i| ids[*i as usize])),
                members,
            }
        };
        let zones: BTreeSet<_> = endpoints.iter().map(|e| e.zone).collect();
        let by_zone = ByZone {
            near: group(true),
            far: group(false),
            zones: zones.len() as u64,
            near_per_mille: 0,
            review_in: 0,
        };
        Self { way, places: Places::ByZone(Box::new(by_zone)) }
    }

    pub fn pick(
        &mut self,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        match &mut self.places {
            Places::Anywhere(count, rounds) => self.way.pick(*count, rounds, random, state),
            Places::ByZone(by_zone) => by_zone.pick(self.way, random, state),
        }
    }
}

impl Way {
    fn pick(
        self,
        count: usize,
        rounds: &mut Rounds,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        match self {
            Self::LeastRequest => choice::better_of_two(count, random, state),
            Self::RoundRobin => rounds.next(random, state),
            Self::Random => choice::any_one(count, random, state),
        }
    }
}

impl ByZone {
    fn pick(
        &mut self,
        way: Way,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        if self.review_in == 0 {
            self.review_in = REVIEW;
            self.near_per_mille = zone::near_per_mille(Zones {
                near_usable: self.near.usable(&state),
                near: self.near.weight,
                far_usable: self.far.usable(&state),
                far: self.far.weight,
                zones: self.zones,
            });
        }
        self.review_in -= 1;
        let stays = random.below(FULL_WEIGHT.into()) < self.near_per_mille.into();
        let (first, second) = match stays {
            true => (&mut self.near, &mut self.far),
            false => (&mut self.far, &mut self.near),
        };
        first.pick(way, random, &state).or_else(|| second.pick(way, random, &state))
    }
}

impl Group {
    /// Sum of the weights of those that may be used.
    fn usable(&self, state: impl Fn(usize) -> Option<Load>) -> u64 {
        let weight = |i: &u32| state(*i as usize).map(|load| u64::from(load.weight_per_mille));
        self.members.iter().filter_map(weight).sum()
    }

    fn pick(
        &mut self,
        way: Way,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        let Self { members, rounds, .. } = self;
        let member = |at: usize| members[at] as usize;
        way.pick(members.len(), rounds, random, |at| state(member(at))).map(member)
    }
}
