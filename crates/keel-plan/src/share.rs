//! Instances in the namespaces of another service's (`network_mode: service:…`, and `ipc` and `pid` likewise).
//!
//! A namespace ends with the container that it belongs to. Whoever shares it runs on, with no network and nobody to talk
//! to, and nothing but a start in the namespace of the next one helps.

use keel_model::{ContainerNetwork, Goal, InstanceId, Phase, Service, ServiceName, SharesWith};

use crate::draft::Draft;
use crate::{restart, withdraw};

/// Starts those again whose namespaces have ended, as soon as there are others.
pub(crate) fn follow(draft: &mut Draft<'_>, name: &ServiceName) {
    let due: Vec<(InstanceId, bool, String)> = draft
        .slots(name)
        .filter(|instance| instance.assignment.goal == Goal::Run && instance.runs())
        .filter_map(|instance| {
            let shares = &instance.fresh()?.shares;
            let lost = shares.iter().find(|with| has_ended(draft, with))?;
            let reason = format!("{}, whose namespaces it shares, was replaced", lost.id);
            let again = draft.of(&lost.service).any(crate::Instance::runs);
            again.then(|| (instance.assignment.id.clone(), instance.serves(), reason))
        })
        .collect();
    for (id, serves, reason) in due {
        if serves {
            withdraw::drain(draft, &id, Goal::Run, &reason);
        } else {
            restart::start_again(draft, &id, &reason);
        }
    }
}

/// Whether an attempt is over.
fn has_ended(draft: &Draft<'_>, with: &SharesWith) -> bool {
    let Some(instance) = draft.instances.get(&with.id) else { return true };
    let over = instance.status.as_ref().is_some_and(|status| {
        let ended = matches!(status.phase, Phase::Exited | Phase::Failed);
        status.attempt > with.attempt || (status.attempt == with.attempt && ended)
    });
    instance.gone || over
}

/// Whether the namespaces that an instance of `service` needs are there: without them it could not start.
pub(crate) fn is_possible(draft: &Draft<'_>, service: &Service) -> bool {
    let services = &draft.desired.record.stack.services;
    with(service)
        .filter(|other| services.contains_key(other))
        .all(|other| draft.of(&other).any(crate::Instance::runs))
}

/// The services whose namespaces a service shares.
fn with(service: &Service) -> impl Iterator<Item = ServiceName> {
    let container = service.spec.container.as_deref();
    let network = container.and_then(|container| match &container.network {
        ContainerNetwork::Service(name) => Some(name.clone()),
        _ => None,
    });
    let modes = container.into_iter().flat_map(|it| [&it.ipc, &it.pid]).flatten();
    let named = modes.filter_map(|mode| ServiceName::new(mode.strip_prefix("service:")?).ok());
    network.into_iter().chain(named)
}
