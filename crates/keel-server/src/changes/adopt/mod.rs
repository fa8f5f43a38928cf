//! Takes over what `docker compose` has started: the record is written as an apply does it, and in the same transaction
//! the assignments of the containers as they run. What dies before has changed nothing; after it, the node's worker does
//! the rest, however often it takes.

mod differences;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, stream};
use keel_container::compose::{self, Found, State};
use keel_container::images::{Error, ImageFacts};
use keel_model::{
    Adoption, Assignment, Generation, Goal, HeldPort, InstanceId, Service, ServiceName, Stack,
    StackName, StackRecord,
};
use keel_store::Transaction;

use self::survey::{Sight, Survey, survey};
use super::{Change, Changes, encode, ports, wish};
use crate::api::adopt::{AdoptRequest, AdoptView};
use crate::api::types::{Applied, ApplyRequest};
use crate::error::Refusal;
use crate::world::{ServiceAddress, StackState, World};
use crate::{clock, detour, keys, sockets};

/// Containers and images that are asked about at the same time.
const AT_ONCE: usize = 16;

/// The containers that are taken over with a change, by service and serial.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(pub(crate) BTreeMap<ServiceName, BTreeMap<u64, Adoption>>);

impl Changes {
    /// Takes over containers of a project, or shows which would be.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn adopt(&self, request: AdoptRequest) -> Result<AdoptView, Refusal> {
        check_root(rustix::process::geteuid().is_root())?;
        let sight = self.look(&request.stack).await?;
        let world = self.worlds.refresh().await?;
        let name = request.stack.name.clone();
        let empty = StackState::default();
        let stack = world.stacks.get(&name).unwrap_or(&empty);
        let survey = survey(&request.stack, request.services.as_deref(), stack, &sight)?;
        let Survey { containers, notes, stack, taken } = survey;
        let mut view = AdoptView { containers, notes, ..AdoptView::default() };
        if taken.is_empty() {
            return Ok(view);
        }
        let holds = taken.holds();
        let warnings = tokio::task::spawn_blocking(move || detour::preflight(&holds)).await;
        view.warnings = warnings.map_err(|e| Refusal::new("internal", e.to_string()))??;
        let Some(shown) = request.containers else { return Ok(view) };
        if shown != view.taken() {
            let message = format!("the containers of project `{name}` have changed meanwhile");
            return Err(Refusal::new("conflict", message).hint("look at them again"));
        }
        view.applied = Some(self.take(stack, &taken, request.change).await?);
        Ok(view)
    }

    /// Makes these containers instances of the services of `stack` that have any of them.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub(crate) async fn take(
        &self,
        stack: Stack,
        taken: &Taken,
        change: String,
    ) -> Result<Applied, Refusal> {
        let name = stack.name.clone();
        let request = ApplyRequest {
            stack,
            services: Some(taken.0.keys().cloned().collect()),
            remove_orphans: false,
            force_recreate: false,
            change,
        };
        let next = |stack: &StackState| {
            if let Some((service, _)) = taken.0.iter().find(|(name, _)| has(stack, name)) {
                let message = format!("service `{service}` has instances by now");
                return Err(Refusal::new("conflict", message).hint("look at them again"));
            }
            wish::applied(stack, &request)
        };
        self.change_with(&name, Change::Definition, Some(taken), next).await
    }

    /// Refuses to start services beside containers that `docker compose` runs for them: two databases on one volume.
    ///
    /// # Errors
    /// [`Refusal`] that names one.
    pub(super) async fn check_beside(
        &self,
        stack: &Stack,
        services: Option<&[ServiceName]>,
    ) -> Result<(), Refusal> {
        let world = self.worlds.current();
        let known = world.stacks.get(&stack.name);
        let is_new = |name: &ServiceName| {
            services.is_none_or(|services| services.contains(name))
                && !known.is_some_and(|known| has(known, name))
        };
        let new = stack.services.iter().filter(|(name, _)| is_new(name));
        let new: BTreeSet<&str> = new
            .filter(|(_, service)| service.spec.container.is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        // An engine that is away tells when something is started.
        let engine = self.images.engine();
        let found = compose::project(engine, stack.name.as_str()).await.unwrap_or_default();
        beside(&found, &new).map_or(Ok(()), Err)
    }

    /// What there is of a project, and what is known of its images.
    async fn look(&self, stack: &Stack) -> Result<Sight, Refusal> {
        let engine = self.images.engine();
        let info = engine.info().await.map_err(Error::Engine)?;
        if !info.local || info.rootless {
            let message = format!(
                "containers of {} can't be taken over: it is rootless or on another machine, so that their addresses lead \
                 nowhere from here",
                info.text
            );
            return Err(Refusal::new("engine_elsewhere", message)
                .hint("start the project anew with `keel up`, after `docker compose down`"));
        }
        let found = compose::project(engine, stack.name.as_str()).await.map_err(Error::Engine)?;
        if found.is_empty() {
            return Err(no_such_project(&stack.name, &info.text));
        }
        let own = found.iter().map(|container| container.image.clone());
        let named = stack.services.values().filter_map(|service| service.spec.image.clone());
        let wanted: BTreeSet<String> = own.chain(named).collect();
        let ask = |name: String| async move {
            // What can't be told is said where it is missed.
            let facts = self.images.inspect(&name).await.ok().flatten();
            (name, facts)
        };
        let known: Vec<(String, Option<ImageFacts>)> =
            stream::iter(wanted).map(ask).buffer_unordered(AT_ONCE).collect().await;
        let images = known.into_iter().filter_map(|(name, facts)| Some((name, facts?))).collect();
        let listening = found.iter().map(|container| (container.id.clone(), served(container)));
        Ok(Sight { images, listening: listening.collect(), found })
    }
}

/// What is said of the first container that runs for one of these services.
fn beside(found: &[Found], services: &BTreeSet<&str>) -> Option<Refusal> {
    let runs = |found: &&Found| {
        let state = matches!(found.state, State::Running | State::Paused | State::Restarting);
        !found.one_off && state && services.contains(found.service.as_str())
    };
    let Found { service, name, .. } = found.iter().find(runs)?;
    let message = format!(
        "service `{service}` runs already: docker compose has started container {name} for it, and another beside it would use \
         the same volumes and ports"
    );
    Some(Refusal::new("started_by_compose", message).hint(
        "`keel adopt` takes the project over as it runs; or end it first with `docker compose down`",
    ))
}

/// The ports that others reach in a container.
fn served(container: &Found) -> BTreeSet<u16> {
    match container.pid.filter(|_| !container.host_network) {
        Some(pid) => sockets::served_by(pid),
        None => BTreeSet::new(),
    }
}

fn has(stack: &StackState, service: &ServiceName) -> bool {
    stack.assignments.values().any(|stored| stored.value.service == *service)
}

fn check_root(is_root: bool) -> Result<(), Refusal> {
    if is_root {
        return Ok(());
    }
    let message = "only a server that runs as root can take over containers: it leads their ports to itself, and tells them \
                   names";
    Err(Refusal::new("not_root", message).hint("sudo keel adopt"))
}

fn no_such_project(name: &StackName, engine: &str) -> Refusal {
    let message = format!("{engine} has no container of a Compose project `{name}`");
    Refusal::new("no_such_project", message).hint(
        "`docker compose ls -a` lists the projects; name one with -p. A project that does not run is started with `keel up`",
    )
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn holds(&self) -> Vec<HeldPort> {
        let all = self.0.values().flat_map(BTreeMap::values);
        all.flat_map(|adoption| adoption.holds.clone()).collect()
    }

    /// Keeps the host ports that the engine has chosen, where the file leaves them open.
    pub(super) fn keep_chosen(
        &self,
        name: &ServiceName,
        service: &Service,
        address: &mut ServiceAddress,
        taken: &mut BTreeSet<u16>,
    ) {
        let held =
            || self.0.get(name).into_iter().flat_map(|all| all.values()).flat_map(|it| &it.holds);
        for port in service.publish.iter().filter(|port| port.published.is_none()) {
            if let Some(held) = held().find(|held| held.target == port.target) {
                address.chosen.insert(port.target, held.port);
                taken.insert(held.port);
            }
        }
    }

    /// Finds a free port beside each that the engine holds, where the proxy can listen meanwhile.
    pub(super) fn detours(&self, world: &World) -> Result<detour::Chosen, Refusal> {
        let stacks = || world.stacks.values();
        let chosen =
            stacks().flat_map(|stack| stack.addresses.values()).flat_map(|a| a.chosen.values());
        let detours = stacks().flat_map(|stack| stack.detours.values()).flat_map(|it| it.values());
        let mut taken: BTreeSet<u16> = chosen.chain(detours).copied().collect();
        let mut all = detour::Chosen::new();
        for (service, adoptions) in &self.0 {
            let held: BTreeSet<u16> =
                adoptions.values().flat_map(|it| &it.holds).map(|held| held.port).collect();
            for port in held {
                let free = ports::free(&mut taken)?;
                all.entry(service.clone()).or_default().insert(port, free);
            }
        }
        Ok(all)
    }

    /// Adds what makes the containers instances to the transaction that writes `wanted`.
    pub(super) fn write(
        &self,
        mut transaction: Transaction,
        stack: &StackState,
        wanted: &StackRecord,
        node: &keel_model::NodeName,
        detours: &detour::Chosen,
    ) -> Transaction {
        let name = &wanted.stack.name;
        for (service_name, adoptions) in &self.0 {
            let Some(service) = wanted.stack.services.get(service_name) else { continue };
            let revision = service.spec.revision();
            for (serial, adoption) in adoptions {
                let id = InstanceId::numbered(name, service_name, *serial);
                let now = clock::now();
                let assignment = Assignment {
                    id: id.clone(),
                    stack: name.clone(),
                    service: service_name.clone(),
                    revision: revision.clone(),
                    node: node.clone(),
                    generation: Generation(1),
                    attempt: 1,
                    failures: 0,
                    restarts: stack.rollouts.get(service_name).map_or(0, |it| it.value.epoch),
                    goal: Goal::Run,
                    reason: "taken over".to_owned(),
                    created_at: now,
                    goal_since: now,
                    after_drain: Goal::Remove,
                    adoption: Some(Box::new(adoption.clone())),
                };
                let key = keys::assignment(name, &id);
                transaction = transaction.if_absent(&key).put(key, encode(&assignment));
            }
            let known = stack.serials.get(service_name).copied().unwrap_or(1);
            let last = adoptions.keys().next_back().copied().unwrap_or(0);
            let next = known.max(last + 1);
            transaction = transaction.put(keys::serial(name, service_name), encode(&next));
        }
        for (service, chosen) in detours {
            transaction = transaction.put(keys::detours(name, service), encode(chosen));
        }
        if detours.is_empty() {
            return transaction;
        }
        transaction.put(keys::DETOURS, encode(&true))
    }
}
