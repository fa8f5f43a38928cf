//! Load shedding: what is refused before memory or connections run out.
//!
//! From [`MEMORY_CONNECTIONS`] percent of the memory limit on no new connections are taken; those that are there go on. From
//! [`MEMORY_REQUESTS`] on new requests are answered with 503, too. Both end [`RELIEF`] points below where they began, so that
//! the proxy does not swing between them. The thresholds leave room for what is on its way: Envoy's overload manager
//! is usually set to 92 and 95 % of its heap, but grows in smaller steps than a burst of large bodies does here.
//! Connections are bounded by their number as well; a proxy that has all it may have takes new ones again when it
//! is below [`RELIEF`] percent of them.
//!
//! `memory_used` has to go down when the load does: bytes that are in use, or what the kernel counts against the limit
//! less what it can take back. What an allocator keeps after a peak must not count, or shedding would never end.

use std::time::Duration;

/// Percent of the memory limit from which on no new connections are taken.
pub const MEMORY_CONNECTIONS: u64 = 85;
/// Percent of the memory limit from which on requests are refused.
pub const MEMORY_REQUESTS: u64 = 92;
/// Percentage points below its threshold at which a measure ends.
pub const RELIEF: u64 = 5;
/// Refused requests are asked to come back after this time at [`MEMORY_REQUESTS`].
const WAIT_LEAST: Duration = Duration::from_secs(1);
/// And after this time when there is no memory left.
const WAIT_MOST: Duration = Duration::from_secs(10);

/// What there is, and what there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes in use.
    pub memory_used: u64,
    /// Bytes that may be in use; `None` if nobody says.
    pub memory_limit: Option<u64>,
    /// Open client connections.
    pub connections: usize,
    /// How many there may be.
    pub max_connections: usize,
}

/// What is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shed {
    /// Nothing.
    #[default]
    No,
    /// New connections.
    NewConnections,
    /// New connections, and new requests on those that are there: 503 with this `Retry-After`
    /// ([`crate::retry_after::seconds`]).
    Requests(Duration),
}

impl Shed {
    /// What is refused from now on.
    #[must_use]
    pub fn next(self, pressure: &Pressure) -> Self {
        let memory = percent(pressure.memory_used, pressure.memory_limit);
        let connections =
            percent(pressure.connections as u64, Some(pressure.max_connections as u64));
        let from = |threshold: u64, on: bool| if on { threshold - RELIEF } else { threshold };
        let requests = matches!(self, Self::Requests(_));
        if memory >= from(MEMORY_REQUESTS, requests) {
            return Self::Requests(wait(memory));
        }
        let on = self != Self::No;
        if memory >= from(MEMORY_CONNECTIONS, on) || connections >= from(100, on) {
            return Self::NewConnections;
        }
        Self::No
    }
}

/// Rounded down; 0 if there is no limit.
fn percent(used: u64, limit: Option<u64>) -> u64 {
    let percent = limit.map_or(0, |limit| u128::from(used) * 100 / u128::from(limit.max(1)));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// Longer the less there is left.
fn wait(memory: u64) -> Duration {
    let beyond = memory.clamp(MEMORY_REQUESTS, 100) - MEMORY_REQUESTS;
    let steps = u32::try_from(100 - MEMORY_REQUESTS).unwrap_or(1);
    WAIT_LEAST + (WAIT_MOST - WAIT_LEAST) / steps * u32::try_from(beyond).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pressure(memory_used: u64, connections: usize) -> Pressure {
        Pressure { memory_used, memory_limit: Some(1_000), connections, max_connections: 100 }
    }

    #[test]
    fn begins_and_ends_at_different_points() {
        let requests = |millis| Shed::Requests(Duration::from_millis(millis));
        let mut shed = Shed::default();
        for (memory, connections, expected) in [
            (849, 99, Shed::No),
            (850, 0, Shed::NewConnections),
            (800, 0, Shed::NewConnections),
            (799, 94, Shed::No),
            (0, 100, Shed::NewConnections),
            (0, 95, Shed::NewConnections),
            (0, 94, Shed::No),
            (919, 0, Shed::NewConnections),
            (920, 0, requests(1_000)),
            (870, 0, requests(1_000)),
            (960, 0, requests(5_500)),
            (1_000, 0, requests(10_000)),
            (u64::MAX, 0, requests(10_000)),
            (869, 0, Shed::NewConnections),
            (0, 0, Shed::No),
        ] {
            shed = shed.next(&pressure(memory, connections));
            assert_eq!(shed, expected, "{memory} {connections}");
        }
        let unlimited = Pressure { memory_limit: None, ..pressure(u64::MAX, 0) };
        assert_eq!(shed.next(&unlimited), Shed::No);
    }

    proptest! {
        #[test]
        fn it_does_not_swing(memory in 0u64..1_100, wobble in 0u64..50, start in 0u64..1_100) {
            // Ups and downs smaller than the relief do not switch it on and off.
            let mut shed = Shed::No.next(&pressure(start, 0));
            let mut changes = 0;
            for turn in 0..20 {
                let next = shed.next(&pressure(memory + wobble * (turn % 2), 0));
                changes += u32::from(std::mem::discriminant(&next) != std::mem::discriminant(&shed));
                shed = next;
            }
            prop_assert!(changes <= 2, "{changes}");
        }
    }
}
