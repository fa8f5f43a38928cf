//! The state in force, and what a new one changes about it.
//!
//! Only differences go to the workers: listeners and clusters that stay as they are stay untouched. The
//! shared part of an endpoint is found again as long as anything is in flight there, so that its count is never
//! lost, even if it left and came back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use keel_model::{Balance, Endpoint, EndpointState, Generation, InstanceId, TrafficPolicy};
use keel_route::access_log::AccessLog;
use keel_route::balance::{Balancer, EndpointKey};
use keel_route::concurrency::Limiter;
use keel_route::memory::Memory;
use keel_route::snapshot::{
    Certificate, Challenges, Cluster, ClusterId, ClusterStats, EndpointCounts, Listener,
    ListenerFailure, Notices, RouteTable, Snapshot, Stats, TableId,
};
use keel_route::table::Table;

use crate::callers::CallerNames;
use crate::cluster::ClusterChange;
use crate::listen::{self, Taken};
use crate::shared::{ClusterShared, EndpointShared, Shared};
use crate::worker::{Change, Leads, ListenerChange};

/// Changes of clusters after which endpoints that are gone are forgotten.
const FORGET_AFTER: usize = 256;

type EndpointId = (ClusterId, InstanceId, SocketAddr);

#[derive(Debug)]
struct Known {
    state: Arc<Cluster>,
    /// Of this node, when the balancer was made.
    zone: Option<String>,
    change: ClusterChange,
}

impl Known {
    /// Whether nothing is different.
    fn is(&self, state: &Cluster, zone: Option<&String>) -> bool {
        *self.state == *state && self.zone.as_ref() == zone
    }
}

/// A state, in parts that are cheap to take hold of.
#[derive(Debug)]
pub struct Parts {
    rest: Arc<Snapshot>,
    generation: Generation,
    clusters: Vec<(ClusterId, Arc<Cluster>)>,
}

impl Parts {
    /// The whole.
    pub fn snapshot(&self) -> Snapshot {
        let clusters = self.clusters.iter().map(|(id, c)| (id.clone(), (**c).clone())).collect();
        Snapshot { generation: self.generation, clusters, ..(*self.rest).clone() }
    }
}

/// The state in force.
#[derive(Debug)]
pub struct Registry {
    /// Without its clusters.
    snapshot: Arc<Snapshot>,
    generation: Generation,
    workers: usize,
    clusters: BTreeMap<ClusterId, Known>,
    endpoints: HashMap<EndpointId, Weak<EndpointShared>>,
    /// Open listeners, as they were wanted.
    open: BTreeMap<SocketAddr, Listener>,
    /// Tables in force, as they were wanted; one that can't be used leaves the one before in force.
    tables: BTreeMap<TableId, RouteTable>,
    /// What outlives a table.
    memory: Memory,
    /// Certificates and proofs in force.
    certificates: (Arc<Vec<Certificate>>, Challenges),
    shared: Arc<Shared>,
    callers: Arc<CallerNames>,
    /// Sockets of the proxy before, by address, that are not in use yet.
    adopted: BTreeMap<SocketAddr, Vec<std::net::TcpListener>>,
    /// Addresses are opened beside another process that listens there.
    beside: bool,
    /// The clusters that an instance is in.
    members: HashMap<InstanceId, BTreeSet<ClusterId>>,
    /// In how many clusters an instance drains; those that drain nowhere are not in it.
    draining: BTreeMap<InstanceId, usize>,
    /// Changes since endpoints that are gone were forgotten.
    changes_since: usize,
    /// A successor listens: listeners are no business of ours any more.
    retired: bool,
}

impl Registry {
    /// Nothing is known yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            snapshot: Arc::default(),
            generation: Generation(0),
            workers: shared.workers,
            clusters: BTreeMap::new(),
            endpoints: HashMap::new(),
            open: BTreeMap::new(),
            tables: BTreeMap::new(),
            memory: Memory::new(secret()),
            certificates: Default::default(),
            shared,
            callers: Arc::default(),
            adopted: BTreeMap::new(),
            beside: false,
            members: HashMap::new(),
            draining: BTreeMap::new(),
            changes_since: 0,
            retired: false,
        }
    }

    /// Takes over listening sockets, to be used instead of new ones.
    pub fn adopt(&mut self, sockets: BTreeMap<SocketAddr, Vec<std::net::TcpListener>>) {
        self.adopted = sockets;
    }

    /// Whether addresses are opened although another process listens there, which is about to end.
    pub fn open_beside(&mut self, beside: bool) {
        self.beside = beside;
    }

    /// See [`Registry::open_beside`].
    pub fn opens_beside(&self) -> bool {
        self.beside
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

    /// The state in force, to be put together where it holds up nobody.
    pub fn parts(&self) -> Parts {
        let clusters = self.clusters.iter();
        Parts {
            rest: Arc::clone(&self.snapshot),
            generation: self.generation,
            clusters: clusters.map(|(id, known)| (id.clone(), Arc::clone(&known.state))).collect(),
        }
    }

    /// How requests are to be logged, if the state says so.
    pub fn access_log(&self) -> Option<&AccessLog> {
        self.snapshot.access_log.as_ref()
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Takes over `snapshot`: one change for each worker, and the listeners that could not be opened.
    pub fn replace(&mut self, mut snapshot: Snapshot) -> (Vec<Change>, Vec<ListenerFailure>) {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        let clusters = std::mem::take(&mut snapshot.clusters);
        let mut clusters: BTreeMap<_, _> =
            clusters.into_iter().map(|(id, cluster)| (id, Arc::new(cluster))).collect();
        self.generation = snapshot.generation;
        self.snapshot = Arc::new(snapshot);
        let lead_to = self.snapshot.listeners.iter().map(|l| &l.cluster);
        let routes = self.snapshot.tables.values().flat_map(|table| &table.routes);
        let routed = routes.flat_map(|route| route.clusters.iter().map(|(id, _)| id));
        let known = clusters.keys();
        let wanted: BTreeSet<_> = lead_to.chain(routed).chain(known).cloned().collect();
        for id in &wanted {
            let cluster = clusters.remove(id).unwrap_or_default();
            self.set_cluster(id, cluster, &mut changes);
        }
        let gone: Vec<_> =
            self.clusters.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in gone {
            if let Some(known) = self.clusters.remove(&id) {
                self.recount(&id, &known.state.endpoints, &[]);
            }
            changes.iter_mut().for_each(|c| c.removed_clusters.push(id.clone()));
        }
        self.set_certificates(&mut changes);
        self.set_tables(&mut changes);
        let failed = self.set_listeners(&mut changes);
        self.set_callers(&mut changes);
        self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        (changes, failed)
    }

    /// Takes over the new state of some clusters.
    pub fn replace_clusters(
        &mut self,
        generation: Generation,
        clusters: impl IntoIterator<Item = (ClusterId, Cluster)>,
    ) -> Vec<Change> {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        self.generation = generation;
        for (id, cluster) in clusters {
            self.set_cluster(&id, Arc::new(cluster), &mut changes);
        }
        self.forget_endpoints();
        changes
    }

    /// The state of a cluster in force.
    pub fn cluster(&self, id: &ClusterId) -> Option<Cluster> {
        self.clusters.get(id).map(|known| Cluster::clone(&known.state))
    }

    /// Takes over what callers are known by.
    pub fn replace_callers(
        &mut self,
        generation: Generation,
        callers: BTreeMap<std::net::IpAddr, String>,
        caller_cgroups: BTreeMap<u64, String>,
    ) -> Vec<Change> {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        self.generation = generation;
        let snapshot = Arc::make_mut(&mut self.snapshot);
        (snapshot.callers, snapshot.caller_cgroups) = (callers, caller_cgroups);
        self.set_callers(&mut changes);
        changes
    }

    /// Forgets endpoints that are gone, when they have become many.
    fn forget_endpoints(&mut self) {
        self.changes_since += 1;
        if self.changes_since > FORGET_AFTER {
            self.changes_since = 0;
            self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        }
    }

    fn set_cluster(&mut self, id: &ClusterId, cluster: Arc<Cluster>, changes: &mut [Change]) {
        let zone = self.snapshot.zone.clone();
        if self.clusters.get(id).is_some_and(|known| known.is(&cluster, zone.as_ref())) {
            return;
        }
        let shared = self.clusters.get(id).map_or_else(
            || Arc::new(ClusterShared::new(id.clone(), self.workers)),
            |known| Arc::clone(&known.change.shared),
        );
        let before = self.clusters.get(id).map_or(&[][..], |known| &known.state.endpoints);
        let shared_before = self.clusters.get(id).map_or(&[][..], |known| &known.change.endpoints);
        let now_ms = self.shared.now_ms();
        let endpoints = cluster
            .endpoints
            .iter()
            .enumerate()
            .map(|(index, e)| {
                let is = |b: &Endpoint| b.instance == e.instance && b.address == e.address;
                // Mostly it is where it was.
                let same = shared_before.get(index).filter(|_| before.get(index).is_some_and(is));
                let shared = same.map_or_else(
                    || endpoint(&mut self.endpoints, (id.clone(), e.instance.clone(), e.address)),
                    |(shared, _)| Arc::clone(shared),
                );
                shared.set_draining(e.state == EndpointState::Draining, now_ms);
                if same.is_none() && !before.iter().any(is) {
                    shared.revive(now_ms);
                }
                (shared, e.state)
            })
            .collect();
        let same = self.clusters.get(id).filter(|known| known.state.policy == cluster.policy);
        let policy = same.map(|known| Arc::clone(&known.change.policy)).unwrap_or_else(|| {
            cluster.policy.as_deref().map_or_else(Arc::default, |policy| Arc::new(policy.clone()))
        });
        let limiter = self.limiter(id, &policy);
        let change = ClusterChange {
            shared,
            endpoints,
            expected: cluster.expected,
            protocol: cluster.protocol,
            balancer: balancer(&cluster, &policy.balance, self.snapshot.zone.as_deref()),
            policy,
            limiter,
        };
        changes.iter_mut().for_each(|c| c.clusters.push(change.clone()));
        let after = Arc::clone(&cluster);
        let before = self.clusters.insert(id.clone(), Known { state: cluster, zone, change });
        let before = before.as_ref().map_or(&[][..], |known| &known.state.endpoints);
        self.recount(id, before, &after.endpoints);
    }

    /// What finds out how much a cluster can take: the same as before while it is to find out the same.
    fn limiter(&self, id: &ClusterId, policy: &TrafficPolicy) -> Option<Arc<Limiter>> {
        let wanted = policy.adaptive.as_ref()?;
        let before = self.clusters.get(id).map(|known| &known.change);
        let same = before.filter(|change| change.policy.adaptive.as_ref() == Some(wanted));
        let kept = same.and_then(|change| change.limiter.clone());
        Some(kept.unwrap_or_else(|| Arc::new(Limiter::new(wanted, crate::counted::unix_ms()))))
    }

    fn set_certificates(&mut self, changes: &mut [Change]) {
        let wanted = (&self.snapshot.certificates, &self.snapshot.challenges);
        if (&self.certificates.0, &self.certificates.1) == wanted {
            return;
        }
        for problem in self.shared.tls.set_certificates(wanted.0, wanted.1) {
            tracing::warn!(%problem, "a certificate is not used");
        }
        let proofs = Arc::new(wanted.1.http.clone());
        changes.iter_mut().for_each(|c| c.proofs = Some(Arc::clone(&proofs)));
        self.certificates = (wanted.0.clone(), wanted.1.clone());
    }

    fn set_tables(&mut self, changes: &mut [Change]) {
        let snapshot = Arc::clone(&self.snapshot);
        for (id, wanted) in &snapshot.tables {
            if self.tables.get(id) == Some(wanted) {
                continue;
            }
            match Table::compile(wanted, &self.memory) {
                Ok(table) => {
                    let table = Arc::new(table);
                    let change = |c: &mut Change| c.tables.push((id.clone(), Arc::clone(&table)));
                    changes.iter_mut().for_each(change);
                }
                Err(error) => tracing::error!(%id, %error, "routes stay as they were"),
            }
            self.tables.insert(id.clone(), wanted.clone());
        }
        let wanted = &snapshot.tables;
        self.tables.retain(|id, _| {
            let stays = wanted.contains_key(id);
            if !stays {
                changes.iter_mut().for_each(|c| c.removed_tables.push(id.clone()));
            }
            stays
        });
    }

    /// Tries once more to open the listeners that are not: one change for each worker, and those that still could not be
    /// opened.
    pub fn listen_again(&mut self) -> (Vec<Change>, Vec<ListenerFailure>) {
        let mut changes: Vec<_> = (0..self.workers).map(|_| Change::default()).collect();
        let failed = self.set_listeners(&mut changes);
        (changes, failed)
    }

    fn set_listeners(&mut self, changes: &mut [Change]) -> Vec<ListenerFailure> {
        let mut failed = Vec::new();
        let mut wanted = BTreeSet::new();
        let taken = if self.beside { Taken::by_nobody() } else { Taken::default() };
        if self.retired {
            return failed;
        }
        let snapshot = Arc::clone(&self.snapshot);
        for listener in &snapshot.listeners {
            let bind = listener.bind;
            let fail = |reason: String| ListenerFailure { bind, reason };
            if !wanted.insert(bind) {
                failed.push(fail(format!("{bind} is wanted twice")));
                continue;
            }
            // A file of authorities that it names may have changed, so that it is always read again.
            let reads = listener.tls.as_ref().is_some_and(|tls| tls.client_auth.is_some());
            let leads = match leads(listener, &self.shared) {
                Ok(leads) => leads,
                Err(reason) => {
                    failed.push(fail(reason));
                    continue;
                }
            };
            let sockets = match self.open.get(&bind) {
                Some(known) if known == listener && !reads => continue,
                Some(_) => (0..self.workers).map(|_| Vec::new()).collect(),
                None => {
                    let adopted = self.adopted.remove(&bind).unwrap_or_default();
                    match listen::open(listener, adopted, &taken, self.workers) {
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
                let (leads, cluster) = (leads.clone(), Arc::clone(cluster));
                change.listeners.push(ListenerChange { bind, leads, cluster, sockets });
            }
            self.open.insert(bind, listener.clone());
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
        let callers = CallerNames::new(&self.snapshot);
        if *self.callers != callers {
            self.callers = Arc::new(callers);
            changes.iter_mut().for_each(|c| c.callers = Some(Arc::clone(&self.callers)));
        }
    }

    /// What is in flight at each instance that drains, over all its clusters.
    pub fn draining(&self) -> BTreeMap<InstanceId, u64> {
        self.in_flight_at(self.draining.keys())
    }

    /// The same for those that have an endpoint in one of these clusters.
    pub fn draining_in(&self, clusters: &[ClusterId]) -> BTreeMap<InstanceId, u64> {
        let known = clusters.iter().filter_map(|id| self.clusters.get(id));
        let instances = known.flat_map(|known| known.state.endpoints.iter().map(|e| &e.instance));
        self.in_flight_at(instances.filter(|instance| self.draining.contains_key(*instance)))
    }

    fn in_flight_at<'a>(
        &self,
        instances: impl Iterator<Item = &'a InstanceId>,
    ) -> BTreeMap<InstanceId, u64> {
        let in_flight = |instance: &InstanceId| -> u64 {
            let clusters = self.members.get(instance).into_iter().flatten();
            let known = clusters.filter_map(|id| self.clusters.get(id));
            let endpoints = known.flat_map(|known| known.change.endpoints.iter());
            let own = endpoints.filter(|(endpoint, _)| endpoint.instance == *instance);
            own.map(|(endpoint, _)| endpoint.in_flight()).sum()
        };
        instances.map(|instance| (instance.clone(), in_flight(instance))).collect()
    }

    /// Keeps count of where instances are and drain, for one cluster that changes.
    fn recount(&mut self, id: &ClusterId, before: &[Endpoint], after: &[Endpoint]) {
        let pairs = || before.iter().zip(after);
        if before.len() == after.len() && pairs().all(|(b, a)| b.instance == a.instance) {
            // Mostly something changes about one of many, and not where they are.
            let changed: Vec<_> = pairs().filter(|(b, a)| b.state != a.state).collect();
            changed.iter().for_each(|(before, _)| self.count_draining(before, false));
            changed.iter().for_each(|(_, after)| self.count_draining(after, true));
            return;
        }
        for endpoint in before {
            if let Some(clusters) = self.members.get_mut(&endpoint.instance) {
                clusters.remove(id);
                if clusters.is_empty() {
                    self.members.remove(&endpoint.instance);
                }
            }
            self.count_draining(endpoint, false);
        }
        for endpoint in after {
            self.members.entry(endpoint.instance.clone()).or_default().insert(id.clone());
            self.count_draining(endpoint, true);
        }
    }

    /// Notes that an endpoint is there, or is not any more, if it drains.
    fn count_draining(&mut self, endpoint: &Endpoint, is_there: bool) {
        if endpoint.state != EndpointState::Draining {
            return;
        }
        let count = self.draining.entry(endpoint.instance.clone()).or_default();
        *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.draining.remove(&endpoint.instance);
        }
    }

    /// Clusters as the workers know them.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterChange> {
        self.clusters.values().map(|known| &known.change)
    }

    /// What all threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What people are to be told of endpoints, and was not told yet.
    pub fn notices(&self) -> Notices {
        let takes_requests = |cluster: &ClusterId, instance: &InstanceId| {
            let endpoints = self.clusters.get(cluster).map(|known| &*known.change.endpoints);
            endpoints.unwrap_or_default().iter().any(|(endpoint, state)| {
                *state == EndpointState::Ready
                    && endpoint.instance == *instance
                    && !endpoint.is_checked_out()
            })
        };
        self.shared.notices.take(self.shared.now_ms(), takes_requests)
    }

    /// Counters of all clusters.
    pub fn stats(&self) -> Stats {
        let now_ms = self.shared.now_ms();
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
            EndpointState::Ready if endpoint.ejected(now_ms) || endpoint.is_out(now_ms) => {
                counts.ejected += 1;
            }
            EndpointState::Ready => counts.ready += 1,
        }
    }
    counts
}

fn endpoint(
    known: &mut HashMap<EndpointId, Weak<EndpointShared>>,
    key: EndpointId,
) -> Arc<EndpointShared> {
    if let Some(endpoint) = known.get(&key).and_then(Weak::upgrade) {
        return endpoint;
    }
    let endpoint = Arc::new(EndpointShared::new(key.1.clone(), key.2));
    known.insert(key, Arc::downgrade(&endpoint));
    endpoint
}

/// What becomes of connections to `listener`.
fn leads(listener: &Listener, shared: &Shared) -> Result<Leads, String> {
    let tls = listener.tls.as_ref().map(|tls| shared.tls.config(tls)).transpose();
    Ok(Leads {
        protocol: listener.protocol,
        published: listener.published,
        table: listener.table.clone(),
        tls: tls.map_err(|error| error.to_string())?,
        accept_proxy_from: listener.accept_proxy_from.as_slice().into(),
        refuses: Arc::new(listener.refuses.clone()),
    })
}

fn balancer(cluster: &Cluster, balance: &Balance, zone: Option<&str>) -> Balancer {
    let ready = cluster.endpoints.iter().filter(|e| e.state == EndpointState::Ready);
    let keys: Vec<_> = ready
        .map(|e| EndpointKey {
            zone: cluster.zones.get(&e.instance).map(String::as_str),
            ..EndpointKey::new(e.instance.as_str())
        })
        .collect();
    let prefers = cluster.policy.as_ref().is_some_and(|policy| policy.prefer_zone);
    Balancer::new(balance, &keys, zone.filter(|_| prefers))
}

/// Random, and new for each process.
fn secret() -> [u8; 48] {
    let mut secret = [0; 48];
    let mut filled = 0;
    while filled < secret.len() {
        // It waits only while the system has not gathered any randomness yet, and then only once.
        match rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty())
        {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the system has no randomness: {error}"),
        }
    }
    secret
}
