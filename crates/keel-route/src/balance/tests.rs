//! Balancers as a worker uses them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use keel_model::ClientKey;
use proptest::prelude::*;

use super::*;
use crate::ewma::Ewma;

const KEYS: u64 = 20_000;

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("shop-cart-{}-{i}", hash(&i.to_le_bytes()) % 1_000)).collect()
}

fn keys(ids: &[String]) -> Vec<EndpointKey<'_>> {
    ids.iter().map(|id| EndpointKey::new(id)).collect()
}

fn hashing() -> [Balance; 2] {
    [Balance::RingHash(ClientKey::Source), Balance::Maglev(ClientKey::Source)]
}

fn all() -> [Balance; 5] {
    let [ring, maglev] = hashing();
    [Balance::LeastRequest, Balance::RoundRobin, Balance::Random, ring, maglev]
}

/// Whom each of many keys belongs to, by id.
fn owners<'a>(
    balancer: &mut Balancer,
    ids: &'a [String],
    usable: &dyn Fn(usize) -> bool,
) -> Vec<&'a str> {
    let mut random = Random::new(1);
    let state = |i: usize| usable(i).then(Load::default);
    let of = |key: u64| balancer.pick(Some(hash(&key.to_le_bytes())), &mut random, state);
    (0..KEYS).map(of).map(|i| ids[i.unwrap()].as_str()).collect()
}

/// Owners before and after, and how many of `KEYS` have another owner though theirs is still there.
fn moved(before: &[&str], after: &[&str], gone: &str) -> usize {
    before.iter().zip(after).filter(|(b, a)| **b != gone && a != b).count()
}

fn spread_of(owners: &[&str], ids: &[String]) -> (usize, usize) {
    let count = |id: &String| owners.iter().filter(|o| *o == id).count();
    let counts: Vec<_> = ids.iter().map(count).collect();
    (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
}

#[test]
fn keys_are_spread_and_few_move_when_one_leaves_or_is_left_out() {
    for (count, even) in [(2, [70, 4]), (5, [75, 4]), (20, [65, 8]), (60, [60, 15])] {
        for (balance, (least_even, most_moved)) in
            hashing().iter().zip([(even[0], 0), (100 - even[1], KEYS as usize / 20)])
        {
            let ids = ids(count);
            let gone = count / 2;
            let mut balancer = Balancer::new(balance, &keys(&ids), None);
            let before = owners(&mut balancer, &ids, &|_| true);
            let (min, max) = spread_of(&before, &ids);
            let fair = KEYS as usize / count;
            // Percent of the fair share; random keys add their own noise.
            let noise = 300 / fair.isqrt();
            assert!(min * 100 / fair + noise >= least_even, "{balance:?} {count}: {min} of {fair}");
            assert!(
                max * 100 / fair <= 200 - least_even + noise,
                "{balance:?} {count}: {max} of {fair}"
            );

            let out = owners(&mut balancer, &ids, &|i| i != gone);
            assert_eq!(moved(&before, &out, &ids[gone]), 0, "{balance:?}: left out for a while");
            assert!(!out.contains(&ids[gone].as_str()));

            let mut left = ids.clone();
            left.remove(gone);
            let mut balancer = Balancer::new(balance, &keys(&left), None);
            let after = owners(&mut balancer, &left, &|_| true);
            let moved = moved(&before, &after, &ids[gone]);
            assert!(moved <= most_moved, "{balance:?} {count}: {moved} of {KEYS}");
        }
    }
}

#[test]
fn the_order_of_endpoints_does_not_matter_to_keys() {
    let ids = ids(9);
    let mut turned = ids.clone();
    turned.rotate_left(4);
    turned.swap(0, 7);
    for balance in hashing() {
        let mut one = Balancer::new(&balance, &keys(&ids), None);
        let mut other = Balancer::new(&balance, &keys(&turned), None);
        let odd = |ids: &[String], i: usize| !ids[i].ends_with('3');
        let here = owners(&mut one, &ids, &|i| odd(&ids, i));
        assert_eq!(here, owners(&mut other, &turned, &|i| odd(&turned, i)));
    }
}

#[test]
fn those_of_a_dead_endpoint_are_shared_by_the_others() {
    let ids = ids(10);
    for balance in hashing() {
        let mut balancer = Balancer::new(&balance, &keys(&ids), None);
        let out = owners(&mut balancer, &ids, &|i| i >= 5);
        let (min, max) = spread_of(&out, &ids[5..]);
        assert!(min > 2_400 && max < 5_900, "{balance:?}: {min} {max}");
    }
}

#[test]
fn weights_give_shares() {
    let ids = ids(4);
    let mut endpoints = keys(&ids);
    endpoints[0].weight_per_mille = 3_000;
    endpoints[2].weight_per_mille = 500;
    for balance in all() {
        let mut balancer = Balancer::new(&balance, &endpoints, None);
        let mut random = Random::new(9);
        let mut hits = [0u32; 4];
        for _ in 0..11_000 {
            hits[balancer.pick(None, &mut random, |_| Some(Load::default())).unwrap()] += 1;
        }
        let within = |hits: u32, share: u32| {
            let fair = 2_000 * share / 1_000;
            assert!((fair * 3 / 4..fair * 5 / 4).contains(&hits), "{balance:?}: {hits} for {fair}");
        };
        // By chance, the heavy one takes what the light ones, sitting out, leave: more than its part.
        if !matches!(balance, Balance::LeastRequest | Balance::Random) {
            [3_000, 1_000, 500, 1_000].into_iter().zip(hits).for_each(|(s, h)| within(h, s));
        } else {
            assert!(
                hits[0] > 5_000 && hits[2] < hits[1] && hits[1].abs_diff(hits[3]) < 250,
                "{balance:?} {hits:?}"
            );
        }
    }
}

#[test]
fn a_client_stays_where_it_was() {
    let ids = ids(6);
    let mut balancer = Balancer::new(&Balance::LeastRequest, &keys(&ids), None);
    let token: Token = balancer.token(4).unwrap().to_string().parse().unwrap();
    let mut random = Random::new(2);
    let mut stick = |usable: &dyn Fn(usize) -> bool| {
        balancer.pick_sticky(token, None, &mut random, |i| usable(i).then(Load::default))
    };
    for _ in 0..20 {
        assert_eq!(stick(&|_| true), Some(4));
        assert!(stick(&|i| i != 4).is_some_and(|i| i != 4));
    }
    assert_eq!(stick(&|_| false), None);
    // Elsewhere in the list, and after it is gone.
    let turned: Vec<_> = ids[3..].to_vec();
    let mut other = Balancer::new(&Balance::RoundRobin, &keys(&turned), None);
    assert_eq!(other.pick_sticky(token, None, &mut random, |_| Some(Load::default())), Some(1));
    let mut none = Balancer::new(&Balance::RoundRobin, &keys(&turned[..1]), None);
    assert_eq!(none.pick_sticky(token, None, &mut random, |_| Some(Load::default())), Some(0));
    assert_eq!(none.token(1), None);
    for text in ["", "0", "+123456789abcdef", "123456789abcdefg", "0123456789abcdef0", "äääääääé"]
    {
        assert!(text.parse::<Token>().is_err(), "{text}");
    }
}

#[test]
fn traffic_stays_in_the_zone_while_that_can_take_it() {
    let ids = ids(12);
    for balance in [Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let mut endpoints = keys(&ids);
        for (i, endpoint) in endpoints.iter_mut().enumerate() {
            endpoint.zone = Some(["a", "b", "c"][i % 3]);
        }
        let mut balancer = Balancer::new(&balance, &endpoints, Some("a"));
        let mut random = Random::new(4);
        // Percent of the requests that stay, with this many of the four there usable.
        let mut stay = |near: usize, far: bool| {
            let usable = |i: usize| if i.is_multiple_of(3) { i / 3 < near } else { far };
            let mut stayed = 0;
            for _ in 0..20_000 {
                let picked = balancer.pick(None, &mut random, |i| usable(i).then(Load::default));
                stayed += usize::from(picked.unwrap().is_multiple_of(3));
            }
            stayed / 200
        };
        assert_eq!(stay(4, true), 100, "{balance:?}");
        assert_eq!(stay(3, true), 100, "{balance:?}");
        let half = stay(2, true);
        assert!((69..=73).contains(&half), "{balance:?}: {half}");
        assert!(stay(1, false) >= 99, "{balance:?}");
        assert_eq!(stay(0, true), 0, "{balance:?}");
        // Somebody whose zone has none of them has no preference.
        let mut other = Balancer::new(&balance, &endpoints, Some("d"));
        let mut hits = [0; 3];
        for _ in 0..3_000 {
            hits[other.pick(None, &mut random, |_| Some(Load::default())).unwrap() % 3] += 1;
        }
        assert!(hits.iter().all(|h| (900..1_100).contains(h)), "{balance:?} {hits:?}");
    }
}

proptest! {
    #[test]
    fn one_is_picked_if_there_is_any_and_only_usable_ones(
        states in prop::collection::vec((prop::option::of((0u64..9, 0u16..=1_000)), 0u16..3_000, 0usize..3), 0..40),
        policy in 0usize..5,
        key in prop::option::of(any::<u64>()),
        preferring: bool,
        seed in any::<u64>(),
    ) {
        let ids = ids(states.len());
        let mut endpoints = keys(&ids);
        for (endpoint, (_, weight, zone)) in endpoints.iter_mut().zip(&states) {
            endpoint.weight_per_mille = *weight;
            endpoint.zone = [None, Some("a"), Some("b")][*zone];
        }
        let mut balancer = Balancer::new(&all()[policy], &endpoints, preferring.then_some("a"));
        let mut random = Random::new(seed);
        let state = |i: usize| {
            let load = |(in_flight, weight_per_mille)| Load { in_flight, ewma_us: None, weight_per_mille };
            states[i].0.map(load)
        };
        for round in 0..70 {
            let token = balancer.token(round).filter(|_| round % 2 == 0);
            let picked = match token {
                Some(token) => balancer.pick_sticky(token, key, &mut random, state),
                None => balancer.pick(key, &mut random, state),
            };
            match picked {
                Some(i) => prop_assert!(states[i].0.is_some()),
                None => prop_assert!(states.iter().all(|s| s.0.is_none())),
            }
        }
    }
}

/// Servers with some threads and a queue each, and requests that come at random: how long they take, sorted, and the
/// share of each server in percent.
struct Simulation {
    /// Milliseconds of work of a request, by server.
    work: [f64; 3],
    /// Thousandths of its weight that a server may have at a time.
    weight: fn(usize, u64) -> u16,
    /// Latencies are told to the balancer.
    measured: bool,
}

impl Simulation {
    const THREADS: usize = 8;
    const REQUESTS: usize = 40_000;

    fn run(&self, balance: &Balance, load: f64) -> (Vec<u64>, [usize; 3]) {
        let ids = ids(3);
        let mut balancer = Balancer::new(balance, &keys(&ids), None);
        let mut random = Random::new(77);
        let mut uniform = move || (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
        let mut exponential = move |mean: f64| -mean * (1.0 - uniform()).ln();
        let capacity: f64 = self.work.iter().map(|w| Self::THREADS as f64 / w).sum();
        let mut random = Random::new(78);
        // Times are in microseconds.
        let mut running: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
        let mut queues: [VecDeque<(u64, u64)>; 3] = Default::default();
        let (mut busy, mut in_flight) = ([0; 3], [0u64; 3]);
        let (mut words, mut hits) = ([0u64; 3], [0; 3]);
        let mut latencies = Vec::new();
        let mut now = 0;
        for _ in 0..Self::REQUESTS {
            now += (exponential(1_000.0 / (capacity * load))) as u64;
            while let Some(Reverse((end, i, begun))) =
                running.peek().copied().filter(|r| r.0.0 <= now)
            {
                running.pop();
                latencies.push(end - begun);
                if self.measured {
                    words[i] = Ewma::unpack(words[i]).observe(end - begun, end / 1_000).pack();
                }
                in_flight[i] -= 1;
                busy[i] -= 1;
                if let Some((begun, work)) = queues[i].pop_front() {
                    busy[i] += 1;
                    running.push(Reverse((end + work, i, begun)));
                }
            }
            let state = |i: usize| {
                let ewma_us = Ewma::unpack(words[i]).value(now / 1_000);
                let weight_per_mille = (self.weight)(i, now / 1_000);
                Some(Load { in_flight: in_flight[i], ewma_us, weight_per_mille })
            };
            let i = balancer.pick(None, &mut random, state).unwrap();
            let work = exponential(self.work[i] * 1_000.0) as u64;
            hits[i] += 1;
            in_flight[i] += 1;
            if busy[i] < Self::THREADS {
                busy[i] += 1;
                running.push(Reverse((now + work, i, now)));
            } else {
                queues[i].push_back((now, work));
            }
        }
        latencies.sort_unstable();
        (latencies, hits.map(|h| h * 100 / Self::REQUESTS))
    }
}

fn p99(latencies: &[u64]) -> u64 {
    latencies[latencies.len() * 99 / 100]
}

#[test]
fn a_slow_endpoint_gets_less_and_hurts_less() {
    let with = |measured| Simulation { work: [20.0, 5.0, 5.0], weight: |_, _| 1_000, measured };
    for load in [0.1, 0.5, 0.8] {
        let (by_latency, shares) = with(true).run(&Balance::LeastRequest, load);
        let (by_requests, _) = with(false).run(&Balance::LeastRequest, load);
        let (in_turn, _) = with(true).run(&Balance::RoundRobin, load);
        assert!((1..=9).contains(&shares[0]), "{load}: {shares:?}");
        let (ours, requests, turn) = (p99(&by_latency), p99(&by_requests), p99(&in_turn));
        assert!(ours * 5 / 4 < requests && ours * 3 / 2 < turn, "{load}: {ours} {requests} {turn}");
    }
}

#[test]
fn equal_endpoints_get_equal_shares_and_latency_costs_nothing() {
    let with = |measured| Simulation { work: [5.0; 3], weight: |_, _| 1_000, measured };
    for load in [0.05, 0.5, 0.9] {
        let (ours, shares) = with(true).run(&Balance::LeastRequest, load);
        let (by_requests, _) = with(false).run(&Balance::LeastRequest, load);
        assert!(shares.iter().all(|s| (28..=38).contains(s)), "{load}: {shares:?}");
        assert!(p99(&ours) * 100 <= p99(&by_requests) * 105, "{load}");
    }
}

#[test]
fn a_new_endpoint_gets_its_share_little_by_little() {
    let shares = |balance: &Balance, weight| {
        let simulation = Simulation { work: [5.0; 3], weight, measured: true };
        simulation.run(balance, 0.5).1[0]
    };
    for balance in [Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let tenth = shares(&balance, |i, _| if i == 0 { 100 } else { 1_000 });
        let half = shares(&balance, |i, _| if i == 0 { 500 } else { 1_000 });
        // Of three that are equal otherwise 5 and 20 percent; with the better of two at most twice as much.
        assert!((3..=9).contains(&tenth), "{balance:?} {tenth}");
        assert!((15..=30).contains(&half), "{balance:?} {half}");
        let growing = shares(&balance, |i, now| {
            let window = Some(std::time::Duration::from_secs(16));
            if i == 0 { crate::slow_start::share_per_mille(now, window) } else { 1_000 }
        });
        assert!((tenth..33).contains(&growing), "{balance:?} {growing}");
    }
}
