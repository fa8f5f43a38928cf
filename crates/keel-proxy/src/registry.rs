//! The state in force, and what a new one changes about it.
//!
//! Only differences go to the workers: listeners and clusters that stay as they are stay untouched. The
//! shared part of an endpoint is found again as long as anything is in flight there, so that its count is never
//! lost, even if it left and came back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use keel_model::{EndpointState, Generation, InstanceId, Protocol};
use keel_route::snapshot::{
    Cluster, ClusterId, ClusterStats, EndpointCounts, Listener, ListenerFailure, Snapshot, Stats,
};

use crate::callers::CallerNames;
use crate::cluster::ClusterChange;
use crate::listen;
use crate::shared::{ClusterShared, EndpointShared};
use crate::worker::{Change, ListenerChange};

type EndpointKey = (ClusterId, InstanceId, SocketAddr);

#[derive(Debug)]
struct Known {
    state: Cluster,
    change: ClusterChange,
}

/// The state in force.
#[derive(Debug)]
pub struct Registry {
    snapshot: Snapshot,
    workers: usize,
    clusters: BTreeMap<ClusterId, Known>,
    endpoints: HashMap<EndpointKey, Weak<EndpointShared>>,
    /// Open listeners, and where they lead.
    open: BTreeMap<SocketAddr, (Protocol, ClusterId)>,
    callers: Arc<CallerNames>,
}

impl Registry {
    /// Nothing is known yet; changes are made for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self {
            snapshot: Snapshot::default(),
            workers,
            clusters: BTreeMap::new(),
            endpoints: HashMap::new(),
            open: BTreeMap::new(),
            callers: Arc::default(),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn generation(&self) -> Generation {
        self.snapshot.generation
    }

    /// Takes over `snapshot`: one change for each worker, and the listeners that could not be opened.
    pub fn replace(&mut self, snapshot: Snapshot) -> (Vec<Change>, Vec<ListenerFailure>) {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        self.snapshot = snapshot;
        let lead_to = self.snapshot.listeners.iter().map(|l| l.cluster.clone());
        let wanted: BTreeSet<_> = lead_to.chain(self.snapshot.clusters.keys().cloned()).collect();
        for id in &wanted {
            let cluster = self.snapshot.clusters.get(id).cloned().unwrap_or_default();
            self.set_cluster(id, cluster, &mut changes);
        }
        let gone: Vec<_> =
            self.clusters.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in gone {
            self.clusters.remove(&id);
            changes.iter_mut().for_each(|c| c.removed_clusters.push(id.clone()));
        }
        let failed = self.set_listeners(&mut changes);
        self.set_callers(&mut changes);
        self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        (changes, failed)
    }

    /// Takes over the new state of one cluster.
    pub fn replace_cluster(
        &mut self,
        generation: Generation,
        id: ClusterId,
        cluster: Cluster,
    ) -> Vec<Change> {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        self.snapshot.generation = generation;
        self.set_cluster(&id, cluster.clone(), &mut changes);
        self.snapshot.clusters.insert(id, cluster);
        self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        changes
    }

    /// Takes over what callers are known by.
    pub fn replace_callers(
        &mut self,
        generation: Generation,
        callers: BTreeMap<std::net::IpAddr, String>,
        caller_cgroups: BTreeMap<u64, String>,
    ) -> Vec<Change> {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        self.snapshot.generation = generation;
        (self.snapshot.callers, self.snapshot.caller_cgroups) = (callers, caller_cgroups);
        self.set_callers(&mut changes);
        changes
    }

    fn set_cluster(&mut self, id: &ClusterId, cluster: Cluster, changes: &mut [Change]) {
        if self.clusters.get(id).is_some_and(|known| known.state == cluster) {
            return;
        }
        let shared = self.clusters.get(id).map_or_else(
            || Arc::new(ClusterShared::new(id.clone(), self.workers)),
            |known| Arc::clone(&known.change.shared),
        );
        let before = self.clusters.get(id).map_or(&[][..], |known| &known.state.endpoints);
        let endpoints = cluster
            .endpoints
            .iter()
            .map(|e| {
                let is_new = !before.iter().any(|b| b.instance == e.instance);
                let shared =
                    endpoint(&mut self.endpoints, (id.clone(), e.instance.clone(), e.address));
                shared.set_draining(e.state == EndpointState::Draining);
                if is_new {
                    shared.revive();
                }
                (shared, e.state)
            })
            .collect();
        let change = ClusterChange {
            shared,
            endpoints,
            expected: cluster.expected,
            protocol: cluster.protocol,
            policy: cluster.policy.as_deref().map_or_else(Arc::default, |p| Arc::new(p.clone())),
        };
        changes.iter_mut().for_each(|c| c.clusters.push(change.clone()));
        self.clusters.insert(id.clone(), Known { state: cluster, change });
    }

    fn set_listeners(&mut self, changes: &mut [Change]) -> Vec<ListenerFailure> {
        let mut failed = Vec::new();
        let mut wanted = BTreeSet::new();
        for listener in &self.snapshot.listeners {
            let bind = listener.bind;
            let fail = |reason: String| ListenerFailure { bind, reason };
            if !wanted.insert(bind) {
                failed.push(fail(format!("{bind} is wanted twice")));
                continue;
            }
            let leads = (listener.protocol, listener.cluster.clone());
            let sockets = match self.open.get(&bind) {
                Some(known) if *known == leads => continue,
                Some(_) => (0..self.workers).map(|_| None).collect(),
                None => match listen::open(listener, self.workers) {
                    Ok(sockets) => sockets.into_iter().map(Some).collect::<Vec<_>>(),
                    Err(reason) => {
                        failed.push(fail(reason));
                        continue;
                    }
                },
            };
            let cluster = &self.clusters[&listener.cluster].change.shared;
            for (change, socket) in changes.iter_mut().zip(sockets) {
                change.listeners.push(listener_change(listener, cluster, socket));
            }
            self.open.insert(bind, leads);
        }
        self.open.retain(|bind, _| {
            let stays = wanted.contains(bind);
            if !stays {
                changes.iter_mut().for_each(|c| c.removed_listeners.push(*bind));
            }
            stays
        });
        failed
    }

    fn set_callers(&mut self, changes: &mut [Change]) {
        let callers = CallerNames::new(&self.snapshot);
        if *self.callers != callers {
            self.callers = Arc::new(callers);
            changes.iter_mut().for_each(|c| c.callers = Some(Arc::clone(&self.callers)));
        }
    }

    /// What is in flight at each instance that drains, over all its clusters.
    pub fn draining(&self) -> BTreeMap<InstanceId, u64> {
        let mut counts = BTreeMap::new();
        let endpoints = || self.clusters.values().flat_map(|known| known.change.endpoints.iter());
        for (endpoint, state) in endpoints() {
            if *state == EndpointState::Draining {
                counts.insert(endpoint.instance.clone(), 0);
            }
        }
        if counts.is_empty() {
            return counts;
        }
        for (endpoint, _) in endpoints() {
            if let Some(count) = counts.get_mut(&endpoint.instance) {
                *count += endpoint.in_flight();
            }
        }
        counts
    }

    /// Counters of all clusters, `now_ms` after the proxy started.
    pub fn stats(&self, now_ms: u64) -> Stats {
        let stats = |known: &Known| ClusterStats {
            endpoints: counts(&known.change.endpoints, now_ms),
            ..known.change.shared.stats()
        };
        Stats {
            clusters: self.clusters.iter().map(|(id, k)| (id.clone(), stats(k))).collect(),
            ..Stats::default()
        }
    }
}

/// Endpoints by what they are good for.
fn counts(endpoints: &[(Arc<EndpointShared>, EndpointState)], now_ms: u64) -> EndpointCounts {
    let mut counts = EndpointCounts::default();
    for (endpoint, state) in endpoints {
        match state {
            EndpointState::Draining => counts.draining += 1,
            EndpointState::Ready if endpoint.ejected(now_ms) => counts.ejected += 1,
            EndpointState::Ready => counts.ready += 1,
        }
    }
    counts
}

fn endpoint(
    known: &mut HashMap<EndpointKey, Weak<EndpointShared>>,
    key: EndpointKey,
) -> Arc<EndpointShared> {
    if let Some(endpoint) = known.get(&key).and_then(Weak::upgrade) {
        return endpoint;
    }
    let endpoint = Arc::new(EndpointShared::new(key.1.clone(), key.2));
    known.insert(key, Arc::downgrade(&endpoint));
    endpoint
}

fn listener_change(
    listener: &Listener,
    cluster: &Arc<ClusterShared>,
    socket: Option<std::net::TcpListener>,
) -> ListenerChange {
    let Listener { bind, protocol, published, .. } = *listener;
    ListenerChange { bind, protocol, cluster: Arc::clone(cluster), published, socket }
}
