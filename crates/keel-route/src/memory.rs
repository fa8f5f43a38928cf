//! What outlives a table: used allowances and passwords that were found right.
//!
//! A proxy has one memory for all its tables. A limit that is the same in the next table goes on where it stood, and one
//! route that is served at two entrypoints has one allowance, not two.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use keel_model::RateLimit;

use crate::filter::auth::AuthState;
use crate::filter::rate::Limiter;
use crate::filter::remembered::Remembered;

/// What outlives a table.
#[derive(Debug)]
pub struct Memory {
    auth: AuthState,
    /// For keys of rate limits.
    secret: [u8; 16],
    /// Limits that a table uses, by route, place and content.
    limiters: Mutex<HashMap<String, Weak<Limiter>>>,
}

impl Memory {
    /// An empty memory. `secret` must be random and new for each process: with it clients could be aimed at, and
    /// passwords guessed from a copy of the memory.
    #[must_use]
    pub fn new(secret: [u8; 48]) -> Self {
        let mut keys = [0; 16];
        let mut passwords = [0; 32];
        keys.copy_from_slice(&secret[..16]);
        passwords.copy_from_slice(&secret[16..]);
        let remembered = Arc::new(Remembered::new(passwords));
        Self {
            auth: AuthState { remembered, under_way: Arc::default() },
            secret: keys,
            limiters: Mutex::default(),
        }
    }

    pub(crate) fn auth(&self) -> AuthState {
        self.auth.clone()
    }

    /// The limiter for the limit at `place` of `route`: that of another table if it is the same limit.
    pub(crate) fn limiter(&self, route: &str, place: usize, limit: &RateLimit) -> Arc<Limiter> {
        let name = format!("{route} {place} {limit:?}");
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = limiters.get(&name).and_then(Weak::upgrade) {
            return limiter;
        }
        let limiter = Arc::new(Limiter::new(limit, self.secret));
        limiters.insert(name, Arc::downgrade(&limiter));
        limiter
    }

    /// Forgets limits that no table uses any more.
    pub(crate) fn tidy(&self) {
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        limiters.retain(|_, limiter| limiter.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keel_model::ClientKey;

    use super::*;

    #[test]
    fn the_same_limit_is_one_while_it_is_used() {
        let memory = Memory::new([0; 48]);
        let limit = |burst| RateLimit {
            requests: 1,
            per: Duration::from_secs(1),
            burst,
            key: ClientKey::All,
        };
        let first = memory.limiter("shop/api", 0, &limit(1));
        assert!(Arc::ptr_eq(&first, &memory.limiter("shop/api", 0, &limit(1))));
        for other in [
            memory.limiter("shop/web", 0, &limit(1)),
            memory.limiter("shop/api", 1, &limit(1)),
            memory.limiter("shop/api", 0, &limit(2)),
        ] {
            assert!(!Arc::ptr_eq(&first, &other));
        }
        memory.tidy();
        assert_eq!(memory.limiters.lock().unwrap().len(), 1);
        drop(first);
        memory.tidy();
        assert!(memory.limiters.lock().unwrap().is_empty());
    }
}
