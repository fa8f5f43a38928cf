//! What users may change: from a request to a new [`StackRecord`].
//!
//! A change is checked completely, then written in one conditional transaction; a refused change leaves everything
//! as it was. A change that changes nothing is not written.

mod adopt;
mod commit;
mod ports;
mod routes;
mod wish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use keel_container::images::Images;
use keel_model::{EventKind, Generation, Goal, NodeName, StackName, StackRecord};
use keel_runtime::Runtime;
use keel_store::{Outcome, Store, Transaction};
use tokio::sync::{Mutex, watch};

use crate::api::types::{
    Applied, ApplyRequest, ChangeView, DownRequest, RollbackRequest, ScaleRequest, ServicesRequest,
};
use crate::error::Refusal;
use crate::events::EventLog;
use crate::images::Again;
use crate::network::Network;
use crate::traffic::ProxyState;
use crate::world::{ServiceAddress, StackState, World, WorldReader};
use crate::{clock, detour, images, keys, preflight, sockets, views, volumes};

#[cfg(test)]
pub(crate) use adopt::Taken;
pub use wish::Operation;

/// Tries against other writers before a change gives up.
const TRIES: usize = 5;
/// Writes in one transaction that prepares a change.
const PREPARE_BATCH: usize = 100;

/// What a change is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// What the stack is: a revision that failed before is tried again.
    Definition,
    /// How much of it runs.
    Operation,
}

/// Makes changes.
pub struct Changes {
    /// This machine.
    pub node: NodeName,
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
    /// What container services are pinned to.
    pub images: Images,
    /// Keeps the volumes of stacks.
    pub runtime: Arc<dyn Runtime>,
    /// One change at a time; others would only conflict.
    pub turn: Mutex<()>,
}

impl Changes {
    /// Makes the stack as described.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn apply(&self, mut request: ApplyRequest) -> Result<Applied, Refusal> {
        let name = request.stack.name.clone();
        let known =
            images::pin(&self.images, &mut request.stack, request.services.as_deref()).await?;
        let (engine, services) = (self.images.engine(), request.services.as_deref());
        images::external::check(engine, &request.stack, services).await?;
        self.check_beside(&request.stack, services).await?;
        let change = |stack: &StackState| wish::applied(stack, &request);
        let applied = self.change(&name, Change::Definition, change).await?;
        images::note(&*self.store, known).await;
        Ok(applied)
    }

    /// What [`Self::apply`] would change.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn diff(&self, mut request: ApplyRequest) -> Result<Vec<ChangeView>, Refusal> {
        images::pin(&self.images, &mut request.stack, request.services.as_deref()).await?;
        let world = self.worlds.refresh().await?;
        let empty = StackState::default();
        let stack = world.stacks.get(&request.stack.name).unwrap_or(&empty);
        let next = wish::applied(stack, &request)?;
        let old = stack.record.as_ref().map(|record| &*record.value);
        let mut changes = views::changes(old, &next);
        // What the file says is what was wanted last, and did not come about.
        for (service, reason) in commit::not_come_about(stack, &next) {
            if changes.iter().all(|change| change.service != service) {
                let (kind, fields) = ("retry".to_owned(), Vec::new());
                changes.push(ChangeView { service, kind, how: reason, fields });
            }
        }
        Ok(changes)
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
        self.change(name, Change::Operation, |stack| wish::scaled(name, stack, request)).await
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
        self.change(name, Change::Operation, |stack| {
            wish::operated(name, stack, operation, request)
        })
        .await
    }

    /// Stops everything and forgets it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn down(&self, name: &StackName, request: &DownRequest) -> Result<Applied, Refusal> {
        if request.volumes && self.delete_left_volumes(name).await? {
            return Ok(Applied { generation: Generation(0), changes: Vec::new() });
        }
        self.change(name, Change::Operation, |stack| {
            let mut next = wish::existing(name, stack)?;
            next.removing = true;
            next.remove_volumes |= request.volumes;
            next.change = "down".to_owned();
            Ok(next)
        })
        .await
    }

    /// Deletes what a stack has left that is gone; false if it is not, or has left nothing.
    async fn delete_left_volumes(&self, name: &StackName) -> Result<bool, Refusal> {
        if self.worlds.current().stacks.contains_key(name) {
            return Ok(false);
        }
        // Before others have to wait: an engine may take its time to say.
        let left = volumes::made_for(name, &volumes::all(&*self.runtime).await?);
        // Nobody shall start it while its volumes go.
        let _turn = self.turn.lock().await;
        let world = self.worlds.refresh().await?;
        if left.is_empty() || world.stacks.contains_key(name) {
            return Ok(false);
        }
        let stay = volumes::delete(&*self.runtime, &world, name, left).await;
        if !stay.is_empty() {
            return Err(Refusal::new("volume_in_use", stay.join("\n"))
                .hint("stop what uses it, and say `keel down -v` again"));
        }
        Ok(true)
    }

    /// Returns to an earlier definition, whose images have to be there or to be had again.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn rollback(
        &self,
        name: &StackName,
        request: &RollbackRequest,
    ) -> Result<Applied, Refusal> {
        let world = self.worlds.refresh().await?;
        let stack = wish::find(&world, name)?;
        let next = wish::rolled_back(name, stack, request.to)?;
        let old = stack.record.as_ref().map(|record| &record.value.stack);
        let images = Again { images: &self.images, store: &*self.store };
        images.bring(old, &next.stack, &request.credentials).await?;
        self.change(name, Change::Definition, |stack| wish::rolled_back(name, stack, request.to))
            .await
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
        let stack = wish::find(&world, name)?;
        let record = wish::existing(name, stack)?;
        let services = wish::chosen(name, &record, &request.services)?;
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
        kind: Change,
        next: impl Fn(&StackState) -> Result<StackRecord, Refusal>,
    ) -> Result<Applied, Refusal> {
        self.change_with(name, kind, None, next).await
    }

    /// The same, with containers that are taken over.
    async fn change_with(
        &self,
        name: &StackName,
        kind: Change,
        taken: Option<&adopt::Taken>,
        next: impl Fn(&StackState) -> Result<StackRecord, Refusal>,
    ) -> Result<Applied, Refusal> {
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES {
            let world = self.worlds.refresh().await?;
            let empty = StackState::default();
            let stack = world.stacks.get(name).unwrap_or(&empty);
            let mut wanted = next(stack)?;
            let old = stack.record.as_ref().map(|record| &*record.value);
            let same = |old| commit::same(old, &wanted) && !commit::wants_another_try(stack);
            if taken.is_none() && old.is_some_and(same) {
                return Ok(Applied { generation: wanted.generation, changes: Vec::new() });
            }
            let last = stack.history.keys().next_back().copied().unwrap_or(0);
            let last = old.map_or(last, |old| last.max(old.generation.0));
            wanted.generation = Generation(last + 1);
            if kind == Change::Definition {
                wanted.applied = wanted.generation;
            }
            wanted.changed_at = clock::now();
            let detours = match taken {
                Some(taken) => taken.detours(&world)?,
                None => detour::Chosen::new(),
            };
            if !wanted.removing {
                check_programs(stack, &wanted)?;
                let own = self.proxy.borrow().own();
                let held = stack.detours.values().flat_map(|held| held.keys());
                let held = held.chain(detours.values().flat_map(BTreeMap::keys));
                ports::check(&world, &wanted, &own, &held.copied().collect())?;
                routes::check(&world, &wanted)?;
                routes::check_sockets(old, &wanted.stack, &own)?;
            }
            self.prepare(&world, stack, &wanted, taken).await?;
            let mut transaction = commit::commit(name, stack, &wanted);
            if let Some(taken) = taken {
                transaction = taken.write(transaction, stack, &wanted, &self.node, &detours);
            }
            let outcome = self.store.commit(transaction).await?;
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
        adopted: Option<&adopt::Taken>,
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
        // Only looked for when an address is needed: on a busy machine the kernel's table is long.
        let mut in_use = None;
        let mut writes = Vec::new();
        for (service_name, service) in &wanted.stack.services {
            let revision = service.spec.revision();
            writes.push((keys::revision(name, service_name, &revision), encode(service)));
            let known = stack.addresses.get(service_name).map(|known| ServiceAddress::clone(known));
            let mut address = match known.clone() {
                Some(known) => known,
                None => ServiceAddress {
                    address: self
                        .network
                        .allocate(&taken, in_use.get_or_insert_with(sockets::addresses_in_use))
                        .ok_or_else(|| {
                            Refusal::new("invalid", format!("{} is full", self.network.text()))
                        })?,
                    chosen: BTreeMap::new(),
                },
            };
            taken.insert(address.address);
            if let Some(adopted) = adopted {
                adopted.keep_chosen(service_name, service, &mut address, &mut ports);
            }
            ports::choose(service, &mut address, &mut ports)?;
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
}

/// Only revisions that are new here: what runs is left alone.
fn check_programs(stack: &StackState, wanted: &StackRecord) -> Result<(), Refusal> {
    for (name, service) in &wanted.stack.services {
        if !stack.revisions.contains_key(&(name.clone(), service.spec.revision())) {
            preflight::check(name, &service.spec)?;
        }
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
