//! Gives each instance ports of its own on the loopback address.
//!
//! A port belongs to one instance from its first start until it is removed; a restart gets the same one unless
//! somebody outside took it meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use keel_model::InstanceId;

/// Who has which port.
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owners: BTreeMap<u16, InstanceId>,
    /// Where the search for a free one goes on, so that a port rests before it is given again.
    cursor: u16,
}

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        // Two servers on one machine begin at different places.
        let span = u32::from(range.end() - range.start()) + 1;
        let offset = u16::try_from(std::process::id().wrapping_mul(97) % span).unwrap_or(0);
        let cursor = range.start() + offset;
        Self { range, state: Mutex::new(State { owners: BTreeMap::new(), cursor }) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Remembers that `id` has `port` already.
    pub(super) fn keep(&self, id: &InstanceId, port: u16) {
        self.state().owners.insert(port, id.clone());
    }

    /// Gives `count` ports to `id`: those of `before` that are still free to bind, and new ones for the rest.
    pub(super) fn take(
        &self,
        id: &InstanceId,
        before: &[u16],
        count: usize,
    ) -> Result<Vec<u16>, String> {
        let mut state = self.state();
        let mut given = Vec::with_capacity(count);
        for index in 0..count {
            let old = before.get(index).copied().filter(|port| {
                state.owners.get(port).is_none_or(|owner| owner == id) && free(*port)
            });
            let port = match old {
                Some(port) => port,
                None => self.search(&mut state).ok_or_else(|| {
                    format!(
                        "no port between {} and {} is free; widen the range or stop something",
                        self.range.start(),
                        self.range.end()
                    )
                })?,
            };
            state.owners.insert(port, id.clone());
            given.push(port);
        }
        state.owners.retain(|port, owner| owner != id || given.contains(port));
        Ok(given)
    }

    fn search(&self, state: &mut State) -> Option<u16> {
        for _ in self.range.clone() {
            let port = state.cursor;
            state.cursor = if port >= *self.range.end() { *self.range.start() } else { port + 1 };
            if !state.owners.contains_key(&port) && free(port) {
                return Some(port);
            }
        }
        None
    }

    /// Gives all ports of `id` back.
    pub(super) fn release(&self, id: &InstanceId) {
        self.state().owners.retain(|_, owner| owner != id);
    }
}

/// Whether a program could listen there, on the loopback address or on all.
fn free(port: u16) -> bool {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]
        .into_iter()
        .all(|ip| TcpListener::bind(SocketAddr::new(IpAddr::V4(ip), port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> InstanceId {
        InstanceId::new(name).unwrap()
    }

    #[test]
    fn ports_are_distinct_kept_and_given_back() {
        let ports = Ports::new(23_400..=23_409);
        let first = ports.take(&id("a-1"), &[], 4).unwrap();
        let second = ports.take(&id("a-2"), &[], 4).unwrap();
        assert!(first.iter().all(|port| !second.contains(port)));
        assert_eq!(ports.take(&id("a-1"), &first, 4).unwrap(), first);
        assert!(ports.take(&id("a-3"), &[], 4).unwrap_err().contains("23400"));
        ports.release(&id("a-2"));
        ports.release(&id("a-3"));
        assert!(ports.take(&id("a-3"), &[], 4).is_ok());
    }

    #[test]
    fn a_port_that_somebody_else_took_is_replaced() {
        let ports = Ports::new(23_410..=23_419);
        let before = ports.take(&id("a-1"), &[], 1).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", before[0])).unwrap();
        assert_ne!(ports.take(&id("a-1"), &before, 1).unwrap(), before);
    }
}
