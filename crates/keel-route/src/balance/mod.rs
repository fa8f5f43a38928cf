//! Which endpoint takes a request.
//!
//! A [`Balancer`] is made from what does not change with every request (the policy, the endpoints' ids, weights and
//! zones) and asked with what does: who may be used now, and how loaded it is. It decides nothing about
//! readiness, ejection or retries; the caller leaves out whom it must not use, and asks again with fewer
//! conditions if nobody is left.
//!
//! | policy | chooses | weights, slow start | zone preference |
//! |---|---|---|---|
//! | least request (default) | the better of two at random, by latency × requests in flight (`choice`) | yes | yes |
//! | round robin | the next (`rounds`) | yes | yes |
//! | random | any | yes | yes |
//! | ring hash | by key (`ring`) | weights | no |
//! | maglev | by key (`maglev`) | weights | no |
//!
//! Slow start and zones would send the same key here or there by chance, so the hashing policies ignore them. If the one
//! that a key belongs to may not be used, the next in an order that depends on the key takes the request, the same at
//! all proxies; so one that is left out for a while moves only its own keys.

use std::sync::Arc;

use keel_model::Balance;

mod choice;
mod maglev;
mod random;
mod ring;
mod rounds;
mod spread;
mod stable;
mod sticky;
pub mod zone;

pub use random::Random;
pub use stable::hash;
pub use sticky::Token;

use maglev::Table;
use ring::Ring;
use spread::{Spread, Way};

/// The weight of an endpoint that takes its whole share, in thousandths.
pub const FULL_WEIGHT: u16 = 1_000;
/// Points or slots that are looked at, one after the other, for a usable endpoint. Beyond that all are ranked by key.
const MAX_STEPS: usize = 16;

/// What of an endpoint matters for balancing and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointKey<'a> {
    /// The instance; the same text at all proxies.
    pub id: &'a str,
    /// Its share relative to the others. 0 counts as 1.
    pub weight_per_mille: u16,
    /// Where it is.
    pub zone: Option<&'a str>,
}

impl<'a> EndpointKey<'a> {
    /// An endpoint of full weight, somewhere.
    #[must_use]
    pub fn new(id: &'a str) -> Self {
        Self { id, weight_per_mille: FULL_WEIGHT, zone: None }
    }
}

/// How loaded an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight there.
    pub in_flight: u64,
    /// Its latency ([`crate::ewma::Ewma::value`]) in microseconds; `None`: not known.
    pub ewma_us: Option<u32>,
    /// How much of its share it may have now ([`crate::slow_start`], [`crate::outlier`]).
    pub weight_per_mille: u16,
}

impl Default for Load {
    /// Idle, not known, full weight.
    fn default() -> Self {
        Self { in_flight: 0, ewma_us: None, weight_per_mille: FULL_WEIGHT }
    }
}

/// Chooses endpoints of one cluster for one worker. Clones share tables, so that one is made per change of the
/// cluster and cloned for each worker.
#[derive(Clone, Debug)]
pub struct Balancer {
    /// Hashes of the endpoints' ids.
    ids: Arc<[u64]>,
    /// In thousandths of the largest; `None` if all are equal.
    weights: Option<Arc<[u16]>>,
    method: Method,
}

#[derive(Clone, Debug)]
enum Method {
    Spread(Spread),
    Ring(Arc<Ring>),
    Maglev(Arc<Table>),
}

impl Balancer {
    /// For these endpoints. Those in `prefer_zone` are preferred; with `None`, zones do not matter.
    ///
    /// The hashing policies make a table: 10 ms for a thousand endpoints, which should not be spent in every worker.
    #[must_use]
    pub fn new(
        balance: &Balance,
        endpoints: &[EndpointKey<'_>],
        prefer_zone: Option<&str>,
    ) -> Self {
        let ids: Arc<[u64]> = endpoints.iter().map(|e| hash(e.id.as_bytes())).collect();
        let weights = relative_weights(endpoints);
        let spread = |way| Method::Spread(Spread::new(way, endpoints, &ids, prefer_zone));
        let method = match balance {
            Balance::LeastRequest => spread(Way::LeastRequest),
            Balance::RoundRobin => spread(Way::RoundRobin),
            Balance::Random => spread(Way::Random),
            Balance::RingHash(_) => Method::Ring(Arc::new(Ring::new(endpoints, &weights))),
            Balance::Maglev(_) => Method::Maglev(Arc::new(Table::new(endpoints, &weights))),
        };
        let equal = weights.iter().all(|weight| *weight == FULL_WEIGHT);
        Self { ids, weights: (!equal).then(|| weights.into()), method }
    }

    /// The endpoint for a request, as an index into the list that this was made from. `state` says how loaded
    /// one is, or `None` if it may not be used. `key` is what hashing policies go by ([`hash`] of the value that
    /// the policy names); a request without one goes anywhere.
    ///
    /// `None` when no endpoint may be used. Allocates nothing.
    pub fn pick(
        &mut self,
        key: Option<u64>,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        if self.ids.len() <= 1 {
            return (self.ids.len() == 1 && state(0).is_some()).then_some(0);
        }
        let usable = |i: usize| state(i).is_some();
        let mut key = || key.unwrap_or_else(|| random.bits());
        let (key, found) = match &mut self.method {
            Method::Spread(spread) => {
                return match &self.weights {
                    None => spread.pick(random, state),
                    Some(weights) => {
                        spread.pick(random, |i| state(i).map(|load| load.scaled(weights[i])))
                    }
                };
            }
            Method::Ring(ring) => {
                let key = key();
                (key, ring.find(key, usable))
            }
            Method::Maglev(table) => {
                let key = key();
                (key, table.find(key, usable))
            }
        };
        found.or_else(|| stable::rendezvous(&self.ids, key, usable))
    }

    /// As [`Balancer::pick`], but for a client that has been at an endpoint before: there again while it may be used.
    pub fn pick_sticky(
        &mut self,
        token: Token,
        key: Option<u64>,
        random: &mut Random,
        state: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        let known = self.ids.iter().position(|id| token.is_of(*id));
        known.filter(|i| state(*i).is_some()).or_else(|| self.pick(key, random, state))
    }

    /// What a client is given to come back to the endpoint at this index. `None` beyond the last.
    #[must_use]
    pub fn token(&self, index: usize) -> Option<Token> {
        self.ids.get(index).map(|id| Token::new(*id))
    }
}

impl Load {
    fn scaled(self, weight: u16) -> Self {
        let product = u32::from(self.weight_per_mille) * u32::from(weight);
        let scaled = product.div_ceil(u32::from(FULL_WEIGHT));
        Self { weight_per_mille: u16::try_from(scaled).unwrap_or(u16::MAX), ..self }
    }
}

/// In thousandths of the largest, each at least 1.
fn relative_weights(endpoints: &[EndpointKey<'_>]) -> Vec<u16> {
    let most = endpoints.iter().map(|e| e.weight_per_mille).max().unwrap_or(0).max(1);
    let of = |e: &EndpointKey<'_>| {
        let per_mille = u32::from(e.weight_per_mille) * u32::from(FULL_WEIGHT) / u32::from(most);
        u16::try_from(per_mille).unwrap_or(FULL_WEIGHT).max(1)
    };
    if most == 1 { vec![FULL_WEIGHT; endpoints.len()] } else { endpoints.iter().map(of).collect() }
}

/// Picks one of `count` candidates by requests in flight. `load` says how loaded a candidate is, or `None` if it may not
/// be used.
///
/// `None` when no candidate may be used.
pub fn pick(
    count: usize,
    random: &mut Random,
    load: impl Fn(usize) -> Option<u64>,
) -> Option<usize> {
    let in_flight = |in_flight| Load { in_flight, ..Load::default() };
    choice::better_of_two(count, random, |i| load(i).map(in_flight))
}

#[cfg(test)]
mod tests;
