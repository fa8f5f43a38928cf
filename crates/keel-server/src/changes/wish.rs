//! From a request to the record that it asks for. Pure; refuses what makes no sense.

use std::collections::BTreeSet;

use keel_model::{Generation, Intent, Scale, Service, ServiceName, Stack, StackName, StackRecord};

use crate::api::types::{ApplyRequest, ScaleRequest, ServicesRequest};
use crate::clock;
use crate::error::Refusal;
use crate::world::{StackState, World};

/// Instances per service that may be asked for.
const MAX_REPLICAS: u32 = 1000;

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

pub(super) fn find<'a>(world: &'a World, name: &StackName) -> Result<&'a StackState, Refusal> {
    world.stacks.get(name).filter(|stack| stack.record.is_some()).ok_or_else(|| no_such(name))
}

pub(super) fn no_such(name: &StackName) -> Refusal {
    Refusal::new("no_such_stack", format!("there is no stack `{name}`"))
        .hint("`keel ls` lists the stacks, `keel up` starts one")
}

pub(super) fn existing(name: &StackName, stack: &StackState) -> Result<StackRecord, Refusal> {
    let record = stack.record.as_ref().ok_or_else(|| no_such(name))?;
    Ok(StackRecord::clone(&record.value))
}

pub(super) fn alive(name: &StackName, stack: &StackState) -> Result<StackRecord, Refusal> {
    let record = existing(name, stack)?;
    if record.removing {
        return Err(being_removed(name));
    }
    Ok(record)
}

pub(super) fn being_removed(name: &StackName) -> Refusal {
    Refusal::new("conflict", format!("stack `{name}` is being removed"))
        .hint("wait until `keel ls` shows it no more, then try again")
}

pub(super) fn applied(stack: &StackState, request: &ApplyRequest) -> Result<StackRecord, Refusal> {
    let name = &request.stack.name;
    let old = stack.record.as_ref().map(|record| &*record.value);
    if old.is_some_and(|old| old.removing) {
        return Err(being_removed(name));
    }
    let mut next = StackRecord {
        generation: old.map_or(Generation(0), |old| old.generation),
        applied: old.map_or(Generation(0), |old| old.applied),
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
            let goes = orphan && request.remove_orphans;
            if !goes && !named.contains(service) {
                next.stack.services.insert(service.clone(), definition.clone());
                keep_entrypoints(&mut next.stack, old, definition);
            }
        }
    }
    for service in &named {
        let intent = next.intents.entry(service.clone()).or_default();
        intent.stopped = false;
        if request.force_recreate {
            intent.restarts += 1;
            intent.in_place = false;
        }
    }
    next.intents.retain(|service, intent| {
        next.stack.services.contains_key(service) && *intent != Intent::default()
    });
    for (service, definition) in &next.stack.services {
        check_replicas(service, definition)?;
    }
    Ok(next)
}

/// What stays as it is is served where it was, unless the file says otherwise.
fn keep_entrypoints(stack: &mut Stack, old: Option<&StackRecord>, service: &Service) {
    let Some(before) = old.map(|old| &old.stack.entrypoints) else { return };
    for name in service.routes.iter().flat_map(|route| &route.entrypoints) {
        let target = before.get(name).and_then(|entrypoint| entrypoint.redirect_to.as_ref());
        for name in [Some(name), target].into_iter().flatten() {
            if let Some(entrypoint) = before.get(name) {
                stack.entrypoints.entry(name.clone()).or_insert_with(|| entrypoint.clone());
            }
        }
    }
}

fn check_replicas(service: &ServiceName, definition: &Service) -> Result<(), Refusal> {
    match definition.scale {
        Scale::Replicated(n) | Scale::Job(n) if n > MAX_REPLICAS => Err(Refusal::new(
            "invalid",
            format!("service `{service}`: {n} instances are more than the limit of {MAX_REPLICAS}"),
        )),
        Scale::Replicated(n) if n > 1 => match definition.is_alone_because() {
            Some(why) => {
                let message = format!("service `{service}` can't have {n} instances: {why}");
                Err(Refusal::new("invalid", message)
                    .hint("attach it to a network without a fixed address, or run one instance"))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

pub(super) fn scaled(
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
        check_replicas(service, definition)?;
        words.push(format!("{service}={replicas}"));
    }
    next.change = format!("scale {}", words.join(" "));
    Ok(next)
}

pub(super) fn operated(
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
                intent.in_place = request.in_place;
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

pub(super) fn rolled_back(
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
            .find(|record| record.stack != next.stack && !record.removing && proved(stack, record))
            .ok_or_else(|| {
                Refusal::new("invalid", format!("stack `{name}` has no earlier definition"))
            })?,
    };
    next.stack = target.stack.clone();
    next.change = format!("rollback to {}", target.generation);
    next.intents.retain(|service, _| target.stack.services.contains_key(service));
    Ok(next)
}

/// Where a rollout failed, only the revision that it returned to is known to be good; and nobody wants to return to one
/// that failed before.
fn proved(stack: &StackState, record: &StackRecord) -> bool {
    stack.rollouts.iter().all(|(name, rollout)| {
        let rollout = &rollout.value;
        let Some(service) = record.stack.services.get(name) else { return true };
        let revision = service.spec.revision();
        if rollout.state.has_failed() {
            rollout.from.as_ref() == Some(&revision)
        } else {
            !rollout.saw_failing(&revision)
        }
    })
}

/// The services that a request names; all when it names none.
pub(super) fn chosen(
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

pub(super) fn no_such_service<'a>(
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
