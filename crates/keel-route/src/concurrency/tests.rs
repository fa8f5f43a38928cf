//! The limiter in front of a simulated service with so many threads and a queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::balance::Random;

const POLICY: AdaptiveConcurrency = AdaptiveConcurrency { min: 3, max: 1_000 };

/// What happens in one second.
#[derive(Clone, Copy)]
struct Second {
    /// Threads of the service.
    threads: usize,
    /// Mean time that a request takes one, in microseconds.
    work_us: f64,
    /// Requests that come.
    requests: f64,
}

/// What was seen in one second.
#[derive(Clone, Debug, Default)]
struct Seen {
    latencies: Vec<u64>,
    refused: usize,
    limit: u32,
}

impl Seen {
    fn p99_us(&self) -> u64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100]
    }
}

fn simulate(proxies: usize, seconds: &[Second], seed: u64) -> Vec<Seen> {
    let mut random = Random::new(seed);
    let mut choice = random.clone();
    let mut exponential = move |mean: f64| {
        let uniform = (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    };
    let limiters: Vec<_> = (0..proxies).map(|_| Limiter::new(&POLICY, 0)).collect();
    let mut passes: Vec<_> = limiters.iter().map(|_| Vec::new()).collect();
    // Ends of those that have a thread, beginnings, and proxies; who waits for a thread.
    let mut running: BinaryHeap<Reverse<(u64, u64, usize)>> = BinaryHeap::new();
    let mut queue: VecDeque<(u64, usize)> = VecDeque::new();
    let mut seen = vec![Seen::default(); seconds.len()];
    let mut now = 0u64;
    while let Some(second) = seconds.get((now / 1_000_000) as usize) {
        let at = (now / 1_000_000) as usize;
        while let Some(Reverse((end, begun, p))) = running.peek().copied().filter(|r| r.0.0 <= now)
        {
            running.pop();
            limiters[p].on_complete(Completion::Answered(end - begun), end / 1_000);
            passes[p].pop();
            seen[at].latencies.push(end - begun);
            if running.len() < second.threads
                && let Some((begun, p)) = queue.pop_front()
            {
                running.push(Reverse((end + exponential(second.work_us) as u64, begun, p)));
            }
        }
        let p = choice.below(proxies);
        match limiters[p].enter() {
            Err(_) => seen[at].refused += 1,
            Ok(pass) => {
                passes[p].push(pass);
                if running.len() < second.threads {
                    running.push(Reverse((now + exponential(second.work_us) as u64, now, p)));
                } else {
                    queue.push_back((now, p));
                }
            }
        }
        seen[at].limit = limiters.iter().map(Limiter::limit).sum();
        now += exponential(1_000_000.0 / second.requests).max(1.0) as u64;
    }
    seen
}

/// A service that could answer 2,000 requests a second, for so many seconds.
fn service(threads: usize, load: f64, seconds: usize) -> Vec<Second> {
    let work_us = threads as f64 * 500.0;
    vec![Second { threads, work_us, requests: load * 2_000.0 }; seconds]
}

fn mean_limit(seen: &[Seen]) -> usize {
    seen.iter().map(|s| s.limit as usize).sum::<usize>() / seen.len()
}

#[test]
fn under_overload_the_limit_is_near_the_capacity_and_latency_stays_low() {
    for threads in [5, 20, 100] {
        // Three times what it can take, for two minutes.
        let seen = simulate(1, &service(threads, 3.0, 120), 1);
        let late = &seen[30..];
        let limit = mean_limit(late);
        assert!((threads..=threads * 2 + 3).contains(&limit), "{threads}: {limit}");
        // Without a queue, one in a hundred takes 4.6 times the mean.
        let worst = late.iter().map(Seen::p99_us).sum::<u64>() / late.len() as u64;
        let alone = threads as u64 * 500 * 46 / 10;
        assert!(worst < alone * 17 / 10, "{threads}: {worst} {alone}");
        let answered: usize = late.iter().map(|s| s.latencies.len()).sum();
        assert!(answered > late.len() * 2_000 * 95 / 100, "{threads}: {answered}");
    }
}

#[test]
fn several_proxies_find_their_parts() {
    let seen = simulate(4, &service(100, 2.0, 240), 5);
    let late = &seen[60..];
    let limit = mean_limit(late);
    assert!((100..=250).contains(&limit), "{limit}");
    let answered: usize = late.iter().map(|s| s.latencies.len()).sum();
    assert!(answered > late.len() * 2_000 * 95 / 100, "{answered}");
}

#[test]
fn it_does_not_drift_under_lasting_overload() {
    let seen = simulate(1, &service(20, 2.0, 600), 2);
    let (early, late) = (mean_limit(&seen[60..120]), mean_limit(&seen[540..]));
    assert!(late < early * 5 / 4 && late * 5 / 4 > early, "{early} {late}");
}

#[test]
fn nothing_is_refused_below_the_capacity() {
    for load in [0.02, 0.3, 0.7] {
        let seen = simulate(1, &service(20, load, 120), 3);
        let refused: usize = seen.iter().map(|s| s.refused).sum();
        assert_eq!(refused, 0, "{load}");
        // It has come down to where it has something to say.
        let last = seen[119].limit;
        assert!(load < 0.1 || last < 120, "{load}: {last}");
    }
}

#[test]
fn it_recovers_after_a_slowdown_and_finds_what_has_changed() {
    let before = service(20, 1.5, 60);
    let slow: Vec<_> = before.iter().map(|s| Second { work_us: s.work_us * 4.0, ..*s }).collect();
    let larger: Vec<_> =
        before.iter().map(|s| Second { threads: 60, requests: 9_000.0, ..*s }).collect();
    let seen = simulate(1, &[before.clone(), slow, before, larger].concat(), 4);
    let answered =
        |from: usize| seen[from..from + 30].iter().map(|s| s.latencies.len()).sum::<usize>() / 30;
    // From half a minute after each change on.
    for (from, threads, capacity) in
        [(30, 20, 2_000), (90, 20, 500), (150, 20, 2_000), (210, 60, 6_000)]
    {
        let limit = mean_limit(&seen[from..from + 30]);
        assert!((threads * 8 / 10..=threads * 2 + 3).contains(&limit), "{from}: {limit}");
        assert!(answered(from) > capacity * 9 / 10, "{from}: {}", answered(from));
    }
}

#[test]
fn drops_lower_it_and_bounds_hold() {
    let limiter = Limiter::new(&AdaptiveConcurrency { min: 8, max: 30 }, 0);
    assert_eq!(limiter.limit(), 30);
    let passes: Vec<_> = (0..30).map(|_| limiter.enter().unwrap()).collect();
    assert_eq!(limiter.enter().unwrap_err().bound, Bound::Concurrency);
    for i in 0..3_000 {
        limiter.on_complete(Completion::Dropped, i * 10);
    }
    assert_eq!(limiter.limit(), 8);
    // One in a hundred has other reasons.
    for i in 0..100_000 {
        let dropped = i % 100 == 0;
        let completion = if dropped { Completion::Dropped } else { Completion::Answered(1_000) };
        limiter.on_complete(completion, 30_000 + i * 10);
    }
    assert_eq!(limiter.limit(), 30);
    drop(passes);
    assert_eq!(Limiter::new(&AdaptiveConcurrency { min: 0, max: 0 }, 0).limit(), 1);
}

#[test]
fn the_search_is_given_up_when_traffic_ceases() {
    let limiter = Limiter::new(&AdaptiveConcurrency { min: 1, max: 1_000 }, 0);
    // Reached and slow: after a while the limit is lowered to look.
    let (mut now, mut passes) = (0, Vec::new());
    let before = loop {
        let limit = limiter.limit();
        passes.extend(std::iter::from_fn(|| limiter.enter().ok()));
        let latency = if now < 1_000 { 1_000 } else { 9_000 };
        limiter.on_complete(Completion::Answered(latency), now);
        passes.truncate(limiter.limit() as usize);
        now += 1;
        if limiter.limit() * 2 < limit {
            break limit;
        }
        assert!(now < 60_000, "never looked into");
    };
    passes.clear();
    limiter.on_complete(Completion::Answered(9_000), now + search::WINDOW_MOST_MS);
    assert!(limiter.limit() + 2 >= before, "{} {before}", limiter.limit());
}

#[test]
fn threads_share_it() {
    let limiter = Limiter::new(&AdaptiveConcurrency { min: 2, max: 6 }, 0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for now in 0..3_000 {
                    let Ok(_pass) = limiter.enter() else { continue };
                    assert!(limiter.gate.inside() <= 6);
                    limiter.on_complete(Completion::Answered(500 + now % 7), now);
                    assert!((2..=6).contains(&limiter.limit()));
                }
            });
        }
    });
    assert_eq!(limiter.gate.inside(), 0);
}

proptest! {
    #[test]
    fn it_stays_within_its_bounds(
        (min, max) in (0u32..50, 0u32..50),
        answers in prop::collection::vec(
            (prop::option::weighted(0.98, any::<u64>()), 0usize..60, 0u64..40),
            0..300,
        ),
    ) {
        let limiter = Limiter::new(&AdaptiveConcurrency { min, max }, 0);
        let mut now = 0;
        for (latency, in_flight, passed) in answers {
            now += passed;
            let _passes: Vec<_> = (0..in_flight).map_while(|_| limiter.enter().ok()).collect();
            limiter.on_complete(latency.map_or(Completion::Dropped, Completion::Answered), now);
            prop_assert!((min.max(1)..=max.max(min).max(1)).contains(&limiter.limit()));
        }
    }
}
