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
    Cluster, ClusterId, ClusterStats, Listener, ListenerFailure, Snapshot, Stats,
};

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
    callers: BTreeMap<std::net::IpAddr, String>,
    /// Sockets of the proxy before, by address, that are not in use yet.
    adopted: BTreeMap<SocketAddr, Vec<std::net::TcpListener>>,
    /// A successor listens: listeners are no business of ours any more.
    retired: bool,
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
            callers: BTreeMap::new(),
            adopted: BTreeMap::new(),
            retired: false,
        }
    }

    /// Takes over listening sockets, to be used instead of new ones.
    pub fn adopt(&mut self, sockets: BTreeMap<SocketAddr, Vec<std::net::TcpListener>>) {
        self.adopted = sockets;
    }

    /// Lets go of all listeners.
    pub fn retire(&mut self) {
        self.retired = true;
        self.open.clear();
    }

    /// Whether a successor listens.
    pub fn is_retired(&self) -> bool {
        self.retired
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
        if self.retired {
            return failed;
        }
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
                Some(_) => (0..self.workers).map(|_| Vec::new()).collect(),
                None => {
                    let adopted = self.adopted.remove(&bind).unwrap_or_default();
                    match listen::open(listener, adopted, self.workers) {
                        Ok(sockets) => sockets,
                        Err(reason) => {
                            failed.push(fail(reason));
                            continue;
                        }
                    }
                }
            };
            let cluster = &self.clusters[&listener.cluster].change.shared;
            for (change, sockets) in changes.iter_mut().zip(sockets) {
                change.listeners.push(listener_change(listener, cluster, sockets));
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
        // What nobody wants any more is closed; nobody can have been waiting in it for long.
        self.adopted.clear();
        failed
    }

    fn set_callers(&mut self, changes: &mut [Change]) {
        let callers = &self.snapshot.callers;
        if self.callers != *callers {
            self.callers.clone_from(callers);
            let by_address: Arc<HashMap<_, _>> =
                Arc::new(callers.iter().map(|(ip, name)| (*ip, name.clone())).collect());
            changes.iter_mut().for_each(|c| c.callers = Some(Arc::clone(&by_address)));
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

    /// Counters of all clusters.
    pub fn stats(&self) -> Stats {
        let stats = |known: &Known| -> ClusterStats { known.change.shared.stats() };
        Stats {
            clusters: self.clusters.iter().map(|(id, k)| (id.clone(), stats(k))).collect(),
            edges: Vec::new(),
        }
    }
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
    sockets: Vec<std::net::TcpListener>,
) -> ListenerChange {
    let Listener { bind, protocol, .. } = *listener;
    ListenerChange { bind, protocol, cluster: Arc::clone(cluster), sockets }
}
