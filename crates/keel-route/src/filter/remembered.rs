//! Passwords that were found right, remembered for a while so that not every request costs tens of milliseconds.
//!
//! What is kept is a keyed hash (SHA-256 over a secret of this process, the stored hash, the name and the password), so that
//! passwords can't be read out of memory, and a user whose stored hash changes has to show the password anew. Wrong
//! passwords are not remembered: who guesses never asks twice.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

/// Right passwords that are remembered at most; about 64 bytes each.
pub const MAX_REMEMBERED: usize = 4096;
/// How long, in milliseconds (15 minutes).
const KEPT_MS: u64 = 15 * 60_000;

/// Stands for a stored hash, a name and a password.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag([u8; 32]);

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tag")
    }
}

/// Right passwords.
pub(crate) struct Remembered {
    secret: [u8; 32],
    /// Until when each is good, in milliseconds.
    until: Mutex<HashMap<Tag, u64>>,
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remembered").finish_non_exhaustive()
    }
}

impl Remembered {
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret, until: Mutex::default() }
    }

    pub fn tag(&self, stored: &str, name: &str, password: &[u8]) -> Tag {
        let mut hasher = Sha256::new_with_prefix(self.secret);
        // With lengths, so that no two triples run together into one text.
        for part in [stored.as_bytes(), name.as_bytes(), password] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Tag(hasher.finalize().into())
    }

    /// A number for a name, which nobody can foresee who doesn't know the secret.
    pub fn number(&self, name: &str) -> usize {
        let Tag(tag) = self.tag("", name, b"");
        usize::from_be_bytes(tag.first_chunk().copied().unwrap_or_default())
    }

    pub fn has(&self, tag: &Tag, now_ms: u64) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(tag).is_some_and(|until| now_ms < *until)
    }

    pub fn add(&self, tag: Tag, now_ms: u64) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= MAX_REMEMBERED {
            until.retain(|_, until| now_ms < *until);
        }
        if until.len() >= MAX_REMEMBERED {
            // Looked for among all, but only after a verification that took a thousand times as long.
            let oldest = until.iter().min_by_key(|(_, until)| **until).map(|(tag, _)| *tag);
            oldest.and_then(|oldest| until.remove(&oldest));
        }
        until.insert(tag, now_ms.saturating_add(KEPT_MS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_counts() {
        let remembered = Remembered::new([1; 32]);
        let tag = remembered.tag("hash", "ann", b"secret");
        assert_eq!(tag, remembered.tag("hash", "ann", b"secret"));
        for other in [
            remembered.tag("hash2", "ann", b"secret"),
            remembered.tag("hash", "an", b"nsecret"),
            remembered.tag("hash", "ann", b"Secret"),
            Remembered::new([2; 32]).tag("hash", "ann", b"secret"),
        ] {
            assert_ne!(tag, other);
        }
    }

    #[test]
    fn bounded_in_time_and_number() {
        let remembered = Remembered::new([1; 32]);
        let tag = |n: usize| remembered.tag("", &n.to_string(), b"");
        remembered.add(tag(0), 1000);
        assert!(remembered.has(&tag(0), 1000 + KEPT_MS - 1));
        assert!(!remembered.has(&tag(0), 1000 + KEPT_MS));
        for n in 1..=MAX_REMEMBERED {
            remembered.add(tag(n), 2000);
        }
        assert!(!remembered.has(&tag(0), 2000), "the oldest makes room");
        assert!(remembered.has(&tag(MAX_REMEMBERED), 2000));
        assert_eq!(remembered.until.lock().unwrap().len(), MAX_REMEMBERED);
    }
}
