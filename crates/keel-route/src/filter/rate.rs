//! Limits on the rate of requests: the generic cell rate algorithm (GCRA, ITU-T I.371), a token bucket in one number.
//!
//! What is kept of a client is the time at which its allowance is full again. One in the past is as good as none, so that
//! full allowances are forgotten without loss. All workers share one [`Limiter`]; for each client there is one short
//! critical section a request, in one of [`SHARDS`] parts.
//!
//! Bound: [`MAX_KEYS`] clients a limit, about 40 bytes each, at most 2.3 MB a limit. When a part is full, full allowances
//! are forgotten first, then the fullest of a few: a flood of made-up keys can give a client back some of its
//! allowance, never take it away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keel_model::{ClientKey, RateLimit};

use crate::client_key;
use crate::filter::answer::Answer;
use crate::request::RequestView;

/// Clients that one limit remembers: 3,500 a part, for which a hash table that comes and goes has 8,192 places; it
/// would take twice as many from 3,584 on.
pub const MAX_KEYS: usize = 56_000;
/// Parts that are locked on their own.
pub const SHARDS: usize = 16;
/// Allowances looked at to find one to forget when none is full.
const LOOKED_AT: usize = 8;
/// Parts are searched for full allowances at most this often, in nanoseconds.
const SEARCH_PAUSE_NS: u64 = 10_000_000;
/// Longest time of a limit, in seconds (a year).
const MAX_PER_S: u64 = 366 * 86_400;

/// A limit with what its clients have used of it.
#[derive(Debug)]
pub(crate) struct Limiter {
    key: ClientKey,
    secret: [u8; 16],
    /// Between two requests in the long run, in nanoseconds.
    interval_ns: u64,
    /// How far the time of fullness may lie ahead for a request to be let through.
    tolerance_ns: u64,
    /// For [`ClientKey::All`].
    all: AtomicU64,
    shards: Box<[Mutex<Shard>]>,
    /// `RateLimit-Policy`.
    policy: String,
    /// The same policy's name, in quotes.
    name: &'static str,
}

#[derive(Debug, Default)]
struct Shard {
    /// When each client's allowance is full again, in nanoseconds.
    full_at: HashMap<u64, u64>,
    /// Not searched before.
    search_at: u64,
}

/// Whose allowance.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    All,
    One(u64),
}

/// The allowance is used up for so many nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait(pub u64);

/// Adds to `problems` what is wrong with a limit.
pub(crate) fn check(limit: &RateLimit, problems: &mut Vec<String>) {
    let mut problem = |text: &str| problems.push(format!("rate_limits: {text}"));
    if limit.requests == 0 {
        problem("`requests` must be at least 1; to refuse all, use `allow`");
    }
    if limit.burst == 0 {
        problem("`burst` must be at least 1, or no request would ever be let through");
    }
    if limit.per.is_zero() || limit.per.as_secs() > MAX_PER_S {
        problem("`per` must be more than 0 and at most a year");
    }
    client_key::check(&limit.key, "rate_limits", problems);
}

impl Limiter {
    /// Full allowances for a limit that [`check`] found good.
    pub fn new(limit: &RateLimit, secret: [u8; 16]) -> Self {
        let per_ns = u64::try_from(limit.per.as_nanos()).unwrap_or(u64::MAX);
        // Rounded up: never more than was asked for.
        let interval_ns = per_ns.div_ceil(u64::from(limit.requests.max(1))).max(1);
        let more = u64::from(limit.burst.max(1) - 1);
        let name = match limit.key {
            ClientKey::All => "\"all\"",
            ClientKey::Source => "\"source\"",
            ClientKey::Header(_) => "\"header\"",
            ClientKey::Cookie(_) => "\"cookie\"",
            ClientKey::Path => "\"path\"",
        };
        let window = match limit.per.as_secs() {
            seconds if seconds > 0 && limit.per.subsec_nanos() == 0 => format!(";w={seconds}"),
            _ => String::new(),
        };
        let shards = if limit.key == ClientKey::All { 0 } else { SHARDS };
        Self {
            key: limit.key.clone(),
            secret,
            interval_ns,
            tolerance_ns: more.saturating_mul(interval_ns),
            all: AtomicU64::new(0),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            policy: format!("{name};q={}{window}", limit.requests),
            name,
        }
    }

    /// Whose allowance a request draws on. A request without the header or cookie draws on that of its address, so that
    /// leaving it out gains nothing.
    pub fn whose(&self, view: &RequestView<'_>) -> Whose {
        if self.key == ClientKey::All {
            return Whose::All;
        }
        let hash = client_key::hash(&self.key, view, &self.secret)
            .or_else(|| client_key::hash(&ClientKey::Source, view, &self.secret));
        hash.map_or(Whose::All, Whose::One)
    }

    /// Takes one request out of an allowance.
    pub fn take(&self, whose: Whose, now_ns: u64) -> Result<(), Wait> {
        let Whose::One(key) = whose else {
            return self.take_of_all(now_ns);
        };
        let mut shard = self.shard(key);
        let before = shard.full_at.get(&key).copied();
        let after = self.after(before.unwrap_or(0), now_ns)?;
        if before.is_none() {
            shard.make_room(now_ns);
        }
        shard.full_at.insert(key, after);
        Ok(())
    }

    fn take_of_all(&self, now_ns: u64) -> Result<(), Wait> {
        let mut wait = Wait(0);
        let taken = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            self.after(before, now_ns).map_err(|later| wait = later).ok()
        });
        taken.map(|_| ()).map_err(|_| wait)
    }

    /// When an allowance is full again after one more request.
    fn after(&self, full_at: u64, now_ns: u64) -> Result<u64, Wait> {
        let full_at = full_at.max(now_ns);
        match (full_at - now_ns).checked_sub(self.tolerance_ns) {
            None | Some(0) => Ok(full_at.saturating_add(self.interval_ns)),
            Some(wait) => Err(Wait(wait)),
        }
    }

    /// Puts back what [`Limiter::take`] took for a request that another limit refused.
    pub fn give_back(&self, whose: Whose) {
        match whose {
            Whose::All => {
                let _ = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                    Some(full_at.saturating_sub(self.interval_ns))
                });
            }
            Whose::One(key) => {
                if let Some(full_at) = self.shard(key).full_at.get_mut(&key) {
                    *full_at = full_at.saturating_sub(self.interval_ns);
                }
            }
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        let at = usize::try_from(key % SHARDS as u64).unwrap_or(0);
        // What a panicking thread can have left is a number that is a little old.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a request beyond the limit (RFC 6585, 4; draft-ietf-httpapi-ratelimit-headers-10).
    pub fn refusal(&self, Wait(wait_ns): Wait) -> Answer {
        let seconds = wait_ns.div_ceil(1_000_000_000).max(1);
        Answer::text(429, "Too many requests. Try again later.")
            .with("retry-after", seconds.to_string())
            .with("ratelimit-policy", &*self.policy)
            .with("ratelimit", format!("{};r=0;t={seconds}", self.name))
    }
}

impl Shard {
    fn make_room(&mut self, now_ns: u64) {
        if self.full_at.len() < MAX_KEYS / SHARDS {
            return;
        }
        if now_ns >= self.search_at {
            self.search_at = now_ns.saturating_add(SEARCH_PAUSE_NS);
            self.full_at.retain(|_, full_at| *full_at > now_ns);
        }
        if self.full_at.len() < MAX_KEYS / SHARDS {
            return;
        }
        let fullest = self.full_at.iter().take(LOOKED_AT).min_by_key(|(_, full_at)| **full_at);
        if let Some(key) = fullest.map(|(key, _)| *key) {
            self.full_at.remove(&key);
        }
    }
}

/// Takes one request out of each limit, or out of none.
pub(crate) fn take_all(
    limiters: &[std::sync::Arc<Limiter>],
    view: &RequestView<'_>,
    now_ms: u64,
) -> Result<(), Answer> {
    let now_ns = now_ms.saturating_mul(1_000_000);
    for (at, limiter) in limiters.iter().enumerate() {
        if let Err(wait) = limiter.take(limiter.whose(view), now_ns) {
            for taken in &limiters[..at] {
                taken.give_back(taken.whose(view));
            }
            return Err(limiter.refusal(wait));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::request::tests::{Fields, get};

    fn limit(requests: u32, per_ms: u64, burst: u32, key: ClientKey) -> RateLimit {
        RateLimit { requests, per: Duration::from_millis(per_ms), burst, key }
    }

    fn limiter(limit: &RateLimit) -> Limiter {
        let mut problems = Vec::new();
        check(limit, &mut problems);
        assert_eq!(problems, [""; 0]);
        Limiter::new(limit, [7; 16])
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_and_then_the_rate() {
        for key in [ClientKey::All, ClientKey::Source] {
            let limiter = limiter(&limit(10, 1000, 3, key));
            let headers: Fields<'_> = &[];
            let whose = limiter.whose(&get(&headers));
            let taken = |now_ms| limiter.take(whose, now_ms * MS);
            assert_eq!([0; 3].map(taken), [Ok(()); 3]);
            assert_eq!(taken(0), Err(Wait(100 * MS)));
            assert_eq!(taken(99), Err(Wait(MS)));
            assert_eq!(taken(100), Ok(()));
            assert_eq!(taken(100), Err(Wait(100 * MS)));
            assert_eq!([5000; 3].map(taken), [Ok(()); 3]);
            assert_eq!(taken(5000), Err(Wait(100 * MS)));
            limiter.give_back(whose);
            assert_eq!(taken(5000), Ok(()));
        }
    }

    #[test]
    fn clients_have_allowances_of_their_own() {
        let header = limiter(&limit(1, 60_000, 1, ClientKey::Header("x-key".into())));
        let a: Fields<'_> = &[("X-Key", "a")];
        let b: Fields<'_> = &[("X-Key", "b")];
        let none: Fields<'_> = &[];
        let other = RequestView { client: [10, 9, 9, 9].into(), ..get(&none) };
        let taken = |view: &RequestView<'_>| header.take(header.whose(view), 0).is_ok();
        assert_eq!([taken(&get(&a)), taken(&get(&a)), taken(&get(&b))], [true, false, true]);
        assert_eq!([taken(&get(&none)), taken(&get(&none)), taken(&other)], [true, false, true]);
    }

    #[test]
    fn a_request_that_one_limit_refuses_costs_the_others_nothing() {
        let wide = Arc::new(limiter(&limit(100, 60_000, 5, ClientKey::All)));
        let narrow = Arc::new(limiter(&limit(1, 60_000, 1, ClientKey::Source)));
        let headers: Fields<'_> = &[];
        let both = [wide.clone(), narrow];
        assert!(take_all(&both, &get(&headers), 0).is_ok());
        for _ in 0..20 {
            let answer = take_all(&both, &get(&headers), 0).unwrap_err();
            assert_eq!(answer.status, 429);
            assert!(answer.headers.contains(&("retry-after".into(), "60".into())));
            assert!(answer.headers.contains(&("ratelimit".into(), "\"source\";r=0;t=60".into())));
            assert!(
                answer.headers.contains(&("ratelimit-policy".into(), "\"source\";q=1;w=60".into()))
            );
        }
        let left = (0..20).filter(|_| wide.take(Whose::All, 0).is_ok()).count();
        assert_eq!(left, 4);
    }

    #[test]
    fn memory_is_bounded_and_a_flood_takes_nothing_from_others() {
        let limiter = limiter(&limit(1, 60_000, 2, ClientKey::Source));
        let bound = MAX_KEYS / SHARDS;
        // All in one part, and none full again.
        let key = |n: usize| Whose::One((n * SHARDS) as u64);
        for n in 0..5 * bound {
            assert!(limiter.take(key(n), 0).is_ok());
        }
        assert_eq!(limiter.shard(0).full_at.len(), bound);
        let places = (limiter.shard(0).full_at.capacity() * 8 / 7).next_power_of_two();
        assert!(places * 17 * SHARDS <= 2_300_000, "{places} places");
        // Whoever else is remembered, a client new to the limit has its whole allowance.
        assert_eq!([1, 1].map(|now| limiter.take(key(6 * bound), now)), [Ok(()); 2]);
        // After a while all are full, and one search finds it.
        assert!(limiter.take(key(7 * bound), 200_000 * MS).is_ok());
        assert_eq!(limiter.shard(0).full_at.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (limit, part) in [
            (limit(0, 1, 1, ClientKey::All), "`requests`"),
            (limit(1, 1, 0, ClientKey::All), "`burst`"),
            (limit(1, 0, 1, ClientKey::All), "`per`"),
            (limit(1, u64::MAX, 1, ClientKey::All), "`per`"),
            (limit(1, 1, 1, ClientKey::Header("a b".into())), "header field"),
            (limit(1, 1, 1, ClientKey::Cookie("a=b".into())), "cookie"),
        ] {
            let mut problems = Vec::new();
            check(&limit, &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(part), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            requests in 1u32..2000,
            per_ms in 1u64..100_000,
            burst in 1u32..50,
            pauses in prop::collection::vec(prop_oneof![Just(0u64), 0u64..20, 0u64..5000], 1..300),
            all in any::<bool>(),
        ) {
            let key = if all { ClientKey::All } else { ClientKey::Source };
            let limiter = limiter(&limit(requests, per_ms, burst, key));
            let headers: Fields<'_> = &[];
            let whose = limiter.whose(&get(&headers));
            let mut now_ms = 1_700_000_000_000;
            let mut let_through: Vec<u64> = Vec::new();
            for pause in pauses {
                now_ms += pause;
                match limiter.take(whose, now_ms * MS) {
                    Ok(()) => let_through.push(now_ms),
                    // Whoever waits as long as it is told is let through.
                    Err(Wait(wait)) => {
                        now_ms += wait.div_ceil(MS);
                        prop_assert_eq!(limiter.take(whose, now_ms * MS), Ok(()));
                        let_through.push(now_ms);
                    }
                }
            }
            // In every stretch of time, not only from the start.
            for first in 0..let_through.len() {
                for last in first..let_through.len() {
                    let elapsed = let_through[last] - let_through[first];
                    let allowed = u128::from(burst)
                        + u128::from(requests) * u128::from(elapsed) / u128::from(per_ms);
                    prop_assert!((last - first + 1) as u128 <= allowed, "{first}..={last}");
                }
            }
        }

        #[test]
        fn any_limit_and_any_time_work(
            requests in any::<u32>(), per_ms in any::<u64>(), burst in any::<u32>(),
            times in prop::collection::vec(any::<u64>(), 0..20),
        ) {
            let limiter = Limiter::new(&limit(requests, per_ms, burst, ClientKey::All), [0; 16]);
            for now in times {
                if let Err(wait) = limiter.take(Whose::All, now) {
                    limiter.refusal(wait);
                }
            }
        }
    }
}
