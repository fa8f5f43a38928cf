//! What is in flight at instances that drain: what the engine says of itself, and what the proxy before this one says.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keel_model::{EndpointState, Generation, InstanceId};
use keel_route::snapshot::{FromProxy, Snapshot};
use tokio::time::Instant;

use super::{Driven, Driver};
use crate::limits::IN_FLIGHT_REPORT;

impl Driver {
    /// Reports what is in flight at instances that drain: after an acknowledgement all, else what is news.
    pub async fn report(&mut self, all: bool) {
        let draining = draining(self.applied.as_ref());
        self.reported.retain(|instance, _| draining.contains_key(instance));
        self.draining_since.retain(|instance, _| draining.contains_key(instance));
        if draining.is_empty() || !self.server.is_there() {
            return;
        }
        let addresses: Vec<_> = draining.values().flatten().copied().collect();
        let counted = match &mut self.driven {
            Driven::Haproxy(haproxy) => haproxy.in_flight(&addresses).await,
            Driven::Nginx(nginx) => Some(nginx.in_flight(&addresses)),
        };
        // Without an answer nothing is known, and nothing is said.
        let Some(counted) = counted else { return };
        let regular = self.reported_at.elapsed() >= IN_FLIGHT_REPORT;
        if regular || all {
            self.reported_at = Instant::now();
        }
        let mut counts = counted.into_iter();
        let generation = self.generation();
        for (instance, addresses) in draining {
            let mut count = counts.by_ref().take(addresses.len()).sum();
            let since = *self.draining_since.entry(instance.clone()).or_insert(generation);
            count += self.elder.as_ref().map_or(0, |elder| elder.in_flight(&instance, since));
            let before = self.reported.insert(instance.clone(), count);
            if all
                || before.is_none()
                || (count == 0 && before != Some(0))
                || (regular && count > 0)
            {
                self.server.send(&FromProxy::InFlight { generation, instance, count }).await;
            }
        }
    }

    fn generation(&self) -> Generation {
        self.applied.as_ref().map_or(Generation(0), |snapshot| snapshot.generation)
    }
}

/// The addresses of each instance that drains.
fn draining(snapshot: Option<&Snapshot>) -> BTreeMap<InstanceId, Vec<SocketAddr>> {
    let mut draining: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let clusters = snapshot.iter().flat_map(|snapshot| snapshot.clusters.values());
    for endpoint in clusters.flat_map(|cluster| &cluster.endpoints) {
        if endpoint.state == EndpointState::Draining {
            let addresses = draining.entry(endpoint.instance.clone()).or_default();
            if !addresses.contains(&endpoint.address) {
                addresses.push(endpoint.address);
            }
        }
    }
    draining
}
