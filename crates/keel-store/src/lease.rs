//! When leases run out.
//!
//! Keeps deadlines only; which keys die with a lease is the key space's affair. Every entry takes `now`, a
//! monotonic instant, so that steps of the wall clock change nothing.
//!
//! When deadlines were missed by more than [`STALL`], the process itself did not run (it was stopped, or the disk
//! hung), and holders could not renew. Then nobody is punished: all leases get the lost time back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::{Error, LeaseId};

/// A deadline missed by more than this means that the store stood still.
pub(crate) const STALL: Duration = Duration::from_secs(1);

/// The deadlines of all leases.
#[derive(Debug, Default)]
pub(crate) struct Deadlines(BTreeMap<LeaseId, (Instant, Duration)>);

impl Deadlines {
    pub(crate) fn start(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.0.insert(lease, (now + ttl, ttl));
    }

    /// Starts a lease unless it runs already.
    pub(crate) fn ensure(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.0.entry(lease).or_insert((now + ttl, ttl));
    }

    pub(crate) fn renew(&mut self, lease: LeaseId, now: Instant) -> Result<(), Error> {
        let (deadline, ttl) = self.0.get_mut(&lease).ok_or(Error::LeaseLost(lease))?;
        *deadline = now + *ttl;
        Ok(())
    }

    pub(crate) fn forget(&mut self, lease: LeaseId) {
        self.0.remove(&lease);
    }

    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.0.values().map(|(deadline, _)| *deadline).min()
    }

    /// Removes and returns the leases that have run out.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<LeaseId> {
        let missed = self.earliest().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if missed > STALL {
            self.0.values_mut().for_each(|(deadline, _)| *deadline += missed + STALL);
            return Vec::new();
        }
        let expired: Vec<_> =
            self.0.iter().filter(|(_, (at, _))| *at <= now).map(|(lease, _)| *lease).collect();
        expired.iter().for_each(|lease| self.forget(*lease));
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    #[test]
    fn a_lease_runs_out_unless_renewed() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(LeaseId(1), TTL, start);
        deadlines.start(LeaseId(2), TTL, start);
        deadlines.renew(LeaseId(1), start + TTL / 2).unwrap();
        assert_eq!(deadlines.take_expired(start + TTL), [LeaseId(2)]);
        assert_eq!(deadlines.renew(LeaseId(2), start + TTL), Err(Error::LeaseLost(LeaseId(2))));
        assert_eq!(deadlines.earliest(), Some(start + TTL / 2 + TTL));
    }

    #[test]
    fn a_stall_gives_everybody_time_to_renew() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(LeaseId(1), TTL, start);
        let woken = start + TTL * 10;
        assert_eq!(deadlines.take_expired(woken), []);
        assert_eq!(deadlines.earliest(), Some(woken + STALL));
        assert_eq!(deadlines.take_expired(woken + STALL), [LeaseId(1)]);
    }
}
