//! What users may change: from a request to a new [`StackRecord`].
//!
//! A change is checked completely, then written in one conditional transaction; a refused change leaves everything
//! as it was. A change that changes nothing is not written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use keel_model::{
    EventKind, Generation, Goal, Intent, RolloutState, Scale, Service, ServiceName, StackName,
    StackRecord,
};
use keel_store::{Outcome, Store, Transaction};
use tokio::sync::{Mutex, watch};

use crate::api::types::{
    Applied, ApplyRequest, ChangeView, DownRequest, RollbackRequest, ScaleRequest, ServicesRequest,
};
use crate::error::Refusal;
use crate::events::EventLog;
use crate::network::Network;
use crate::traffic::ProxyState;
use crate::world::{ServiceAddress, StackState, World, WorldReader};
use crate::{clock, keys, sockets, views};

/// Past definitions that are kept of each stack.
const HISTORY: usize = 20;
/// Tries against other writers before a change gives up.
const TRIES: usize = 5;
/// Writes in one transaction that prepares a change.
const PREPARE_BATCH: usize = 100;
/// Instances per service that may be asked for.
const MAX_REPLICAS: u32 = 1000;
/// Host ports that are chosen for `ports:` entries without one.
const CHOSEN_PORTS: std::ops::Range<u16> = 32_768..40_000;

/// What `keel stop`, `start` and `restart` do to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Stop it, keep it.
    Stop,
    /// Run it again.
    Start,
    /// Replace its instances.
    Restart,
}

/// Makes changes.
pub struct Changes {
    /// Where they are written.
    pub store: Arc<dyn Store>,
    /// What they start from.
    pub worlds: Arc<WorldReader>,
    /// Where they are told.
    pub events: Arc<EventLog>,
    /// Where virtual addresses come from.
    pub network: Arc<Network>,
    /// Whose sockets are our own.
    pub proxy: watch::Receiver<ProxyState>,
    /// One change at a time; others would only conflict.
    pub turn: Mutex<()>,
}

impl Changes {
    /// Makes the stack as described.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn apply(&self, request: ApplyRequest) -> Result<Applied, Refusal> {
        let name = request.stack.name.clone();
        self.change(&name, |stack| applied(stack, &request)).await
    }

    /// What [`Self::apply`] would change.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn diff(&self, request: &ApplyRequest) -> Result<Vec<ChangeView>, Refusal> {
        let world = self.worlds.refresh().await?;
        let empty = StackState::default();
        let stack = world.stacks.get(&request.stack.name).unwrap_or(&empty);
        let next = applied(stack, request)?;
        let old = stack.record.as_ref().map(|record| &*record.value);
        Ok(views::changes(old, &next))
    }

    /// Changes numbers of instances.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn scale(
        &self,
        name: &StackName,
        request: &ScaleRequest,
    ) -> Result<Applied, Refusal> {
        self.change(name, |stack| scaled(name, stack, request)).await
    }

    /// Stops, starts or restarts services.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn operate(
        &self,
        name: &StackName,
        operation: Operation,
        request: &ServicesRequest,
    ) -> Result<Applied, Refusal> {
        self.change(name, |stack| operated(name, stack, operation, request)).await
    }

    /// Stops everything and forgets it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn down(&self, name: &StackName, request: &DownRequest) -> Result<Applied, Refusal> {
        self.change(name, |stack| {
            let mut next = existing(name, stack)?;
            next.removing = true;
            next.remove_volumes |= request.volumes;
            next.change = "down".to_owned();
            Ok(next)
        })
        .await
    }

    /// Returns to an earlier definition.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn rollback(
        &self,
        name: &StackName,
        request: &RollbackRequest,
    ) -> Result<Applied, Refusal> {
        self.change(name, |stack| rolled_back(name, stack, request.to)).await
    }

    /// Forgets the instances of stopped services.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn remove_stopped(
        &self,
        name: &StackName,
        request: &ServicesRequest,
    ) -> Result<Applied, Refusal> {
        let _turn = self.turn.lock().await;
        let world = self.worlds.refresh().await?;
        let stack = find(&world, name)?;
        let record = existing(name, stack)?;
        let services = chosen(name, &record, &request.services)?;
        let mut transaction = Transaction::new();
        for (id, stored) in &stack.assignments {
            let old = &stored.value;
            if old.goal != Goal::Stop || !services.contains(&old.service) {
                continue;
            }
            let mut next = keel_model::Assignment::clone(old);
            next.goal = Goal::Remove;
            "removed by the user".clone_into(&mut next.reason);
            next.generation = next.generation.next();
            next.goal_since = clock::now();
            let key = keys::assignment(name, id);
            transaction = transaction.if_version(&key, stored.version).put(key, encode(&next));
        }
        if !transaction.writes.is_empty()
            && self.store.commit(transaction).await? == Outcome::Conflict
        {
            return Err(busy(name));
        }
        self.worlds.refresh().await?;
        Ok(Applied { generation: record.generation, changes: Vec::new() })
    }

    /// Applies `next` to the latest state of a stack until it can be written.
    async fn change(
        &self,
        name: &StackName,
        next: impl Fn(&StackState) -> Result<StackRecord, Refusal>,
    ) -> Result<Applied, Refusal> {
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES {
            let world = self.worlds.refresh().await?;
            let empty = StackState::default();
            let stack = world.stacks.get(name).unwrap_or(&empty);
            let mut wanted = next(stack)?;
            let old = stack.record.as_ref().map(|record| &*record.value);
            if old.is_some_and(|old| same(old, &wanted) && !wants_another_try(stack)) {
                return Ok(Applied { generation: wanted.generation, changes: Vec::new() });
            }
            let last = stack.history.keys().next_back().copied().unwrap_or(0);
            let last = old.map_or(last, |old| last.max(old.generation.0));
            wanted.generation = Generation(last + 1);
            wanted.changed_at = clock::now();
            if !wanted.removing {
                self.check_ports(&world, &wanted)?;
            }
            self.prepare(&world, stack, &wanted).await?;
            let outcome = self.store.commit(commit(name, stack, &wanted)).await?;
            if outcome == Outcome::Conflict {
                continue;
            }
            self.worlds.refresh().await?;
            let message = format!("{} (generation {})", wanted.change, wanted.generation);
            self.events.add(EventKind::StackChanged, Some(name), None, None, message);
            let changes = views::changes(old, &wanted);
            return Ok(Applied { generation: wanted.generation, changes });
        }
        Err(busy(name))
    }

    /// Writes what the record will refer to: revisions and addresses. Left over, they harm nobody.
    async fn prepare(
        &self,
        world: &World,
        stack: &StackState,
        wanted: &StackRecord,
    ) -> Result<(), Refusal> {
        let name = &wanted.stack.name;
        let mut taken: BTreeSet<IpAddr> = world
            .stacks
            .values()
            .flat_map(|stack| stack.addresses.values().map(|address| address.address))
            .collect();
        let mut ports: BTreeSet<u16> = world
            .stacks
            .values()
            .flat_map(|stack| stack.addresses.values())
            .flat_map(|address| address.chosen.values().copied())
            .collect();
        let in_use = sockets::addresses_in_use();
        let mut writes = Vec::new();
        for (service_name, service) in &wanted.stack.services {
            let revision = service.spec.revision();
            writes.push((keys::revision(name, service_name, &revision), encode(service)));
            let known = stack.addresses.get(service_name).map(|known| ServiceAddress::clone(known));
            let mut address = match known.clone() {
                Some(known) => known,
                None => ServiceAddress {
                    address: self.network.allocate(&taken, &in_use).ok_or_else(|| {
                        Refusal::new("invalid", format!("{} is full", self.network.text()))
                    })?,
                    chosen: BTreeMap::new(),
                },
            };
            taken.insert(address.address);
            choose_ports(service, &mut address, &mut ports)?;
            if known.as_ref() != Some(&address) {
                writes.push((keys::address(name, service_name), encode(&address)));
            }
        }
        for batch in writes.chunks(PREPARE_BATCH) {
            let transaction = batch
                .iter()
                .fold(Transaction::new(), |t, (key, value)| t.put(key.clone(), value.clone()));
            let _ = self.store.commit(transaction).await?;
        }
        Ok(())
    }

    /// Refuses host ports that somebody else has.
    fn check_ports(&self, world: &World, wanted: &StackRecord) -> Result<(), Refusal> {
        let own = self.proxy.borrow().pid;
        let mut seen: BTreeMap<(Option<IpAddr>, u16), (StackName, ServiceName)> = BTreeMap::new();
        let others = world.stacks.iter().filter(|(name, _)| **name != wanted.stack.name);
        for (name, stack) in others {
            for (service, definition) in
                stack.record.iter().flat_map(|record| &record.value.stack.services)
            {
                for port in &definition.publish {
                    if let Some(published) = port.published {
                        let owner = (name.clone(), service.clone());
                        seen.insert((port.ip, published), owner);
                    }
                }
            }
        }
        for (service, definition) in &wanted.stack.services {
            for port in &definition.publish {
                let Some(published) = port.published else { continue };
                let clash = seen.iter().find(|((ip, other), _)| {
                    *other == published && (ip.is_none() || port.ip.is_none() || *ip == port.ip)
                });
                if let Some((_, (stack, other))) = clash {
                    return Err(port_in_use(
                        service,
                        published,
                        &format!("service `{other}` of stack `{stack}`"),
                    ));
                }
                let ip = port.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                if let Some(holder) = sockets::holder(SocketAddr::new(ip, published), own) {
                    return Err(port_in_use(service, published, &holder));
                }
                let owner = (wanted.stack.name.clone(), service.clone());
                seen.insert((port.ip, published), owner);
            }
        }
        Ok(())
    }
}

fn port_in_use(service: &ServiceName, port: u16, holder: &str) -> Refusal {
    Refusal::new(
        "port_in_use",
        format!("service `{service}` can't publish port {port}: it is in use by {holder}"),
    )
    .hint("stop that program, or publish another port (`ports: [\"8081:80\"]`)")
}

/// Picks a host port for each `ports:` entry that names none; what was picked before stays.
fn choose_ports(
    service: &Service,
    address: &mut ServiceAddress,
    taken: &mut BTreeSet<u16>,
) -> Result<(), Refusal> {
    for port in service.publish.iter().filter(|port| port.published.is_none()) {
        if address.chosen.contains_key(&port.target) {
            continue;
        }
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let free = CHOSEN_PORTS.clone().find(|candidate| {
            !taken.contains(candidate) && std::net::TcpListener::bind((any, *candidate)).is_ok()
        });
        let free =
            free.ok_or_else(|| Refusal::new("port_in_use", "no host port is free to publish on"))?;
        taken.insert(free);
        address.chosen.insert(port.target, free);
    }
    Ok(())
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have only string keys")
}

fn busy(name: &StackName) -> Refusal {
    Refusal::new("conflict", format!("stack `{name}` is being changed by somebody else"))
        .hint("try again")
}

/// The write that makes a change, and that trims the history.
fn commit(name: &StackName, stack: &StackState, wanted: &StackRecord) -> Transaction {
    let key = keys::record(name);
    let mut transaction = match &stack.record {
        Some(old) => Transaction::new().if_version(&key, old.version),
        None => Transaction::new().if_absent(&key),
    };
    let value = encode(wanted);
    transaction =
        transaction.put(keys::history(name, wanted.generation), value.clone()).put(key, value);
    let surplus = (stack.history.len() + 1).saturating_sub(HISTORY);
    let mut kept: BTreeSet<_> = wanted.stack.services.iter().map(revision_key).collect();
    for record in stack.history.values().skip(surplus) {
        kept.extend(record.stack.services.iter().map(revision_key));
    }
    kept.extend(
        stack
            .assignments
            .values()
            .map(|stored| (stored.value.service.clone(), stored.value.revision.clone())),
    );
    for (service, stored) in &stack.rollouts {
        kept.insert((service.clone(), stored.value.to.clone()));
        kept.extend(stored.value.from.iter().map(|from| (service.clone(), from.clone())));
    }
    for generation in stack.history.keys().take(surplus) {
        transaction = transaction.delete(keys::history(name, Generation(*generation)));
    }
    for (service, revision) in stack.revisions.keys().filter(|key| !kept.contains(*key)) {
        transaction = transaction.delete(keys::revision(name, service, revision));
    }
    let assigned: BTreeSet<&ServiceName> =
        stack.assignments.values().map(|stored| &stored.value.service).collect();
    for service in stack.addresses.keys() {
        if !wanted.stack.services.contains_key(service) && !assigned.contains(service) {
            transaction = transaction.delete(keys::address(name, service));
        }
    }
    transaction
}

fn revision_key(
    (name, service): (&ServiceName, &Service),
) -> (ServiceName, keel_model::RevisionId) {
    (name.clone(), service.spec.revision())
}

/// Whether two records want the same.
fn same(old: &StackRecord, new: &StackRecord) -> bool {
    old.stack == new.stack
        && old.intents == new.intents
        && old.removing == new.removing
        && old.remove_volumes == new.remove_volumes
}

/// A rollout that failed is tried again when the user says the same once more.
fn wants_another_try(stack: &StackState) -> bool {
    stack.rollouts.values().any(|rollout| {
        matches!(
            rollout.value.state,
            RolloutState::RolledBack | RolloutState::Paused | RolloutState::Failed
        )
    })
}

fn find<'a>(world: &'a World, name: &StackName) -> Result<&'a StackState, Refusal> {
    world.stacks.get(name).filter(|stack| stack.record.is_some()).ok_or_else(|| no_such(name))
}

fn no_such(name: &StackName) -> Refusal {
    Refusal::new("no_such_stack", format!("there is no stack `{name}`"))
        .hint("`keel ls` lists the stacks, `keel up` starts one")
}

fn existing(name: &StackName, stack: &StackState) -> Result<StackRecord, Refusal> {
    let record = stack.record.as_ref().ok_or_else(|| no_such(name))?;
    Ok(StackRecord::clone(&record.value))
}

fn alive(name: &StackName, stack: &StackState) -> Result<StackRecord, Refusal> {
    let record = existing(name, stack)?;
    if record.removing {
        return Err(being_removed(name));
    }
    Ok(record)
}

fn being_removed(name: &StackName) -> Refusal {
    Refusal::new("conflict", format!("stack `{name}` is being removed"))
        .hint("wait until `keel ls` shows it no more, then try again")
}

fn applied(stack: &StackState, request: &ApplyRequest) -> Result<StackRecord, Refusal> {
    let name = &request.stack.name;
    let old = stack.record.as_ref().map(|record| &*record.value);
    if old.is_some_and(|old| old.removing) {
        return Err(being_removed(name));
    }
    let mut next = StackRecord {
        generation: old.map_or(Generation(0), |old| old.generation),
        stack: request.stack.clone(),
        intents: old.map(|old| old.intents.clone()).unwrap_or_default(),
        removing: false,
        remove_volumes: false,
        changed_at: old.map_or_else(clock::now, |old| old.changed_at),
        change: request.change.clone(),
    };
    let named: BTreeSet<ServiceName> = match &request.services {
        Some(services) => services.iter().cloned().collect(),
        None => request.stack.services.keys().cloned().collect(),
    };
    if let Some(missing) = named.iter().find(|name| !request.stack.services.contains_key(*name)) {
        return Err(no_such_service(name, missing, request.stack.services.keys()));
    }
    if request.services.is_some() {
        next.stack.services.retain(|service, _| named.contains(service));
        for (service, definition) in old.iter().flat_map(|old| &old.stack.services) {
            let orphan = !request.stack.services.contains_key(service);
            if !named.contains(service) && !(orphan && request.remove_orphans) {
                next.stack.services.insert(service.clone(), definition.clone());
            }
        }
    }
    for service in &named {
        let intent = next.intents.entry(service.clone()).or_default();
        intent.stopped = false;
        intent.restarts += u64::from(request.force_recreate);
    }
    next.intents.retain(|service, intent| {
        next.stack.services.contains_key(service) && *intent != Intent::default()
    });
    for (service, definition) in &next.stack.services {
        check_replicas(service, definition.scale)?;
    }
    Ok(next)
}

fn check_replicas(service: &ServiceName, scale: Scale) -> Result<(), Refusal> {
    match scale {
        Scale::Replicated(n) | Scale::Job(n) if n > MAX_REPLICAS => Err(Refusal::new(
            "invalid",
            format!("service `{service}`: {n} instances are more than the limit of {MAX_REPLICAS}"),
        )),
        _ => Ok(()),
    }
}

fn scaled(
    name: &StackName,
    stack: &StackState,
    request: &ScaleRequest,
) -> Result<StackRecord, Refusal> {
    let mut next = alive(name, stack)?;
    let mut words = Vec::new();
    let known: Vec<ServiceName> = next.stack.services.keys().cloned().collect();
    for (service, replicas) in &request.replicas {
        let Some(definition) = next.stack.services.get_mut(service) else {
            return Err(no_such_service(name, service, known.iter()));
        };
        definition.scale = match definition.scale {
            Scale::Replicated(_) => Scale::Replicated(*replicas),
            Scale::Job(_) => Scale::Job(*replicas),
            Scale::Global | Scale::GlobalJob => {
                let message = format!("service `{service}` runs once per node and can't be scaled");
                return Err(Refusal::new("invalid", message));
            }
        };
        check_replicas(service, definition.scale)?;
        words.push(format!("{service}={replicas}"));
    }
    next.change = format!("scale {}", words.join(" "));
    Ok(next)
}

fn operated(
    name: &StackName,
    stack: &StackState,
    operation: Operation,
    request: &ServicesRequest,
) -> Result<StackRecord, Refusal> {
    let mut next = alive(name, stack)?;
    for service in chosen(name, &next, &request.services)? {
        let intent = next.intents.entry(service).or_default();
        match operation {
            Operation::Stop => intent.stopped = true,
            Operation::Start => intent.stopped = false,
            Operation::Restart => {
                // A stopped service is started by a restart, as Compose has it.
                intent.restarts += u64::from(!intent.stopped);
                intent.stopped = false;
            }
        }
    }
    next.intents.retain(|_, intent| *intent != Intent::default());
    let verb = match operation {
        Operation::Stop => "stop",
        Operation::Start => "start",
        Operation::Restart => "restart",
    };
    let names: Vec<&str> = request.services.iter().map(ServiceName::as_str).collect();
    next.change = format!("{verb} {}", names.join(" ")).trim().to_owned();
    Ok(next)
}

fn rolled_back(
    name: &StackName,
    stack: &StackState,
    to: Option<Generation>,
) -> Result<StackRecord, Refusal> {
    let mut next = alive(name, stack)?;
    let target = match to {
        Some(to) => stack.history.get(&to.0).ok_or_else(|| {
            Refusal::new("invalid", format!("stack `{name}` has no generation {to}"))
                .hint("`keel history` lists those that are kept")
        })?,
        None => stack
            .history
            .range(..next.generation.0)
            .rev()
            .map(|(_, record)| record)
            .find(|record| record.stack != next.stack && !record.removing)
            .ok_or_else(|| {
                Refusal::new("invalid", format!("stack `{name}` has no earlier definition"))
            })?,
    };
    next.stack = target.stack.clone();
    next.change = format!("rollback to {}", target.generation);
    next.intents.retain(|service, _| target.stack.services.contains_key(service));
    Ok(next)
}

/// The services that a request names; all when it names none.
fn chosen(
    name: &StackName,
    record: &StackRecord,
    services: &[ServiceName],
) -> Result<BTreeSet<ServiceName>, Refusal> {
    let known = &record.stack.services;
    if let Some(missing) = services.iter().find(|service| !known.contains_key(*service)) {
        return Err(no_such_service(name, missing, known.keys()));
    }
    Ok(if services.is_empty() {
        known.keys().cloned().collect()
    } else {
        services.iter().cloned().collect()
    })
}

fn no_such_service<'a>(
    stack: &StackName,
    service: &ServiceName,
    known: impl Iterator<Item = &'a ServiceName>,
) -> Refusal {
    let known: Vec<&ServiceName> = known.collect();
    let refusal =
        Refusal::new("no_such_service", format!("stack `{stack}` has no service `{service}`"));
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(name.as_str(), service.as_str()), name))
        .filter(|(distance, _)| *distance <= 2 + service.as_str().len() / 4)
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((_, name)) => refusal.hint(format!("did you mean `{name}`?")),
        None => {
            let names: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
            refusal.hint(format!("its services: {}", names.join(", ")))
        }
    }
}
