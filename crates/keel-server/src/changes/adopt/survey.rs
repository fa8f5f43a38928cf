//! Which containers of a project become which instances, and why others don't. Pure.

use std::collections::{BTreeMap, BTreeSet};

use keel_container::compose::{Found, State};
use keel_container::images::{ImageFacts, pin};
use keel_model::{
    Adoption, ContainerNetwork, InstanceId, RestartCondition, RestartPolicy, RuntimeKind, Scale,
    Service, ServiceName, Stack,
};

use super::{Taken, differences, has};
use crate::api::adopt::AdoptRow;
use crate::changes::wish;
use crate::error::Refusal;
use crate::world::StackState;

/// What was seen of a project.
pub(super) struct Sight {
    /// Its containers.
    pub found: Vec<Found>,
    /// What is known of images, by name and by id.
    pub images: BTreeMap<String, ImageFacts>,
    /// Where each container can be reached by others.
    pub listening: BTreeMap<String, BTreeSet<u16>>,
}

/// What comes of it.
#[derive(Debug)]
pub(super) struct Survey {
    pub containers: Vec<AdoptRow>,
    pub notes: Vec<String>,
    /// The definition, with each service that is taken over pinned to what runs.
    pub stack: Stack,
    pub taken: Taken,
}

/// What is to become of one container.
enum Fate<'s> {
    Taken(ServiceName, &'s Service),
    Left(String),
}

pub(super) fn survey(
    stack: &Stack,
    named: Option<&[ServiceName]>,
    known: &StackState,
    sight: &Sight,
) -> Result<Survey, Refusal> {
    if let Some(named) = named {
        check_named(stack, named, known)?;
    }
    let mut survey = Survey {
        containers: Vec::new(),
        notes: Vec::new(),
        stack: stack.clone(),
        taken: Taken::default(),
    };
    let mut of_service: BTreeMap<ServiceName, Vec<&Found>> = BTreeMap::new();
    for found in &sight.found {
        let fate = fate(stack, named, known, found, &of_service);
        let (instance, what) = match fate {
            Fate::Left(why) => (None, why),
            Fate::Taken(name, service) => {
                let id = InstanceId::numbered(&stack.name, &name, found.number);
                let what = becomes(&found.state, &service.restart);
                of_service.entry(name).or_default().push(found);
                (Some(id), what)
            }
        };
        survey.containers.push(AdoptRow {
            service: found.service.clone(),
            container: found.name.clone(),
            id: found.id.clone(),
            state: state(&found.state),
            instance,
            what,
        });
    }
    for name in of_service.keys() {
        for shared in shares(&stack.services[name]) {
            if !of_service.contains_key(shared)
                && !known.assignments.values().any(|it| it.value.service.as_str() == shared)
            {
                let message = format!(
                    "service `{name}` is in a namespace of service `{shared}`, which is not taken over with it"
                );
                return Err(Refusal::new("invalid", message).hint("take over both"));
            }
        }
    }
    for (name, found) in of_service {
        survey.take(name, &found, sight);
    }
    let running = sight.found.iter().map(|found| found.service.as_str());
    let running: BTreeSet<&str> = running.collect();
    for name in stack.services.keys().filter(|name| !running.contains(name.as_str())) {
        if named.is_none_or(|named| named.contains(name)) && !has(known, name) {
            survey.notes.push(format!("{name}: it has no container; the next `keel up` starts it"));
        }
    }
    Ok(survey)
}

/// The services of whose namespaces a service is.
fn shares(service: &Service) -> BTreeSet<&str> {
    let Some(container) = service.spec.container.as_deref() else { return BTreeSet::new() };
    let network = match &container.network {
        ContainerNetwork::Service(name) => Some(name.as_str()),
        _ => None,
    };
    let modes = [container.ipc.as_ref(), container.pid.as_ref()].into_iter().flatten();
    network.into_iter().chain(modes.filter_map(|mode| mode.strip_prefix("service:"))).collect()
}

/// Whoever names a service wants it taken over.
fn check_named(stack: &Stack, named: &[ServiceName], known: &StackState) -> Result<(), Refusal> {
    for name in named {
        if !stack.services.contains_key(name) {
            return Err(wish::no_such_service(&stack.name, name, stack.services.keys()));
        }
        let own = |stored: &crate::world::Stored<keel_model::Assignment>| {
            stored.value.service == *name && stored.value.adoption.is_none()
        };
        if known.assignments.values().any(own) {
            let message = format!("service `{name}` runs already as keel has started it");
            return Err(Refusal::new("conflict", message)
                .hint("`keel ps` lists its instances; stop the other containers with docker"));
        }
    }
    Ok(())
}

fn fate<'s>(
    stack: &'s Stack,
    named: Option<&[ServiceName]>,
    known: &StackState,
    found: &Found,
    taken: &BTreeMap<ServiceName, Vec<&Found>>,
) -> Fate<'s> {
    let left = |why: &str| Fate::Left(format!("left alone: {why}"));
    let mut assigned = known.assignments.values().filter_map(|it| it.value.adoption.as_ref());
    if assigned.any(|adoption| adoption.container == found.id) {
        return left("taken over before");
    }
    let Some((name, service)) = stack.services.get_key_value(found.service.as_str()) else {
        return left("the file has no such service");
    };
    if named.is_some_and(|named| !named.contains(name)) {
        return left("not named");
    }
    if found.one_off {
        return left("it was made by `docker compose run`");
    }
    if service.spec.runtime != RuntimeKind::Container {
        return left("the service is a host process in the file");
    }
    if has(known, name) {
        return left("keel runs the service already");
    }
    match &found.state {
        State::Created => return left("it was never started"),
        State::Other(state) => return left(&format!("it is {state}")),
        State::Running | State::Paused | State::Restarting | State::Exited(_) => {}
    }
    let same = |other: &&Found| other.number == found.number;
    if taken.get(name).is_some_and(|others| others.iter().any(same)) {
        return left("another container has the same number");
    }
    Fate::Taken(name.clone(), service)
}

fn state(state: &State) -> String {
    match state {
        State::Running => "running".to_owned(),
        State::Paused => "paused".to_owned(),
        State::Restarting => "restarting".to_owned(),
        State::Exited(code) => format!("exited ({code})"),
        State::Created => "created".to_owned(),
        State::Other(text) => text.clone(),
    }
}

/// What happens to a container that is taken over.
fn becomes(state: &State, policy: &RestartPolicy) -> String {
    let again = match (state, policy.condition) {
        (State::Exited(_), RestartCondition::Always) => true,
        (State::Exited(code), RestartCondition::OnFailure) => *code != 0,
        (State::Exited(_), RestartCondition::Never) => false,
        _ => return "adopted as it runs".to_owned(),
    };
    if again {
        "adopted, and started again as its restart policy says".to_owned()
    } else {
        "adopted, and not run again".to_owned()
    }
}

impl Survey {
    /// Takes over the containers of one service.
    fn take(&mut self, name: ServiceName, found: &[&Found], sight: &Sight) {
        let Some(service) = self.stack.services.get_mut(&name) else { return };
        // What runs, not what the name of the image stands for by now: nothing is pulled for this.
        let newest = found.iter().max_by_key(|found| (&found.created, found.number));
        let image = newest.map(|found| found.image.clone()).unwrap_or_default();
        let known = sight.images.get(&image).cloned();
        let facts = known.unwrap_or_else(|| ImageFacts { id: image, ..ImageFacts::default() });
        pin(service, &facts);
        self.notes.extend(differences::of(&name, service, found, &sight.images));
        self.notes.extend(numbers(&name, service, found.len()));
        let mut adoptions = BTreeMap::new();
        for found in found {
            let declared = &service.spec.ports;
            let listening = sight.listening.get(&found.id).into_iter().flatten().copied();
            let undeclared: Vec<u16> = listening.filter(|port| !declared.contains(port)).collect();
            self.notes.extend(hidden(&name, &undeclared));
            let adoption = Adoption {
                container: found.id.clone(),
                since: found.started,
                holds: found.holds.clone(),
                undeclared,
            };
            adoptions.insert(found.number, adoption);
        }
        self.taken.0.insert(name, adoptions);
        let mut said = BTreeSet::new();
        self.notes.retain(|note| said.insert(note.clone()));
    }
}

/// What is said when the file wants another number of instances.
fn numbers(name: &ServiceName, service: &Service, found: usize) -> Option<String> {
    let wanted = match service.scale {
        Scale::Replicated(n) | Scale::Job(n) => usize::try_from(n).unwrap_or(usize::MAX),
        Scale::Global | Scale::GlobalJob => 1,
    };
    match wanted.checked_sub(found) {
        Some(0) => None,
        Some(more) => {
            Some(format!("{name}: the file wants {wanted} instances; {more} more start afterwards"))
        }
        None => {
            let surplus = found - wanted;
            Some(format!(
                "{name}: the file wants {wanted} instances; {surplus} of the {found} are stopped afterwards"
            ))
        }
    }
}

fn hidden(name: &ServiceName, ports: &[u16]) -> Option<String> {
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    (!ports.is_empty()).then(|| {
        let list = list.join(", ");
        format!(
            "{name}: it listens at {list} too, which the file does not name: `expose: [{list}]` has others reach it there \
             through keel; until it is replaced they go on by the engine's names"
        )
    })
}
