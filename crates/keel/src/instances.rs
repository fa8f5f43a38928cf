//! Which running instance is meant on the command line.

use keel_model::Phase;
use keel_server::api::types::{InstanceView, StackView};

use crate::failure::Failure;
use crate::names;

/// The running instances of a service in the order of `keel ps`, or one by its own name.
///
/// # Errors
/// When there is no such service, or nothing of it runs.
pub fn running<'a>(view: &'a StackView, service: &str) -> Result<Vec<&'a InstanceView>, Failure> {
    let mut all = view.services.values().flat_map(|service| &service.instances);
    if let Some(named) = all.find(|instance| instance.id.as_str() == service) {
        if named.phase == Some(Phase::Running) {
            return Ok(vec![named]);
        }
        return Err(none_runs(format!("instance {} does not run", named.id)));
    }
    let names = names::check(view, &[service.to_owned()])?;
    let instances: Vec<&InstanceView> = names
        .iter()
        .filter_map(|name| view.services.get(name))
        .flat_map(|service| &service.instances)
        .filter(|instance| instance.phase == Some(Phase::Running))
        .collect();
    if instances.is_empty() {
        return Err(none_runs(format!("no instance of service {service} runs")));
    }
    Ok(instances)
}

/// The `index`-th of them, from 1.
///
/// # Errors
/// As [`running`], and when there are not so many.
pub fn choose<'a>(
    view: &'a StackView,
    service: &str,
    index: usize,
) -> Result<&'a InstanceView, Failure> {
    let instances = running(view, service)?;
    let found = index.checked_sub(1).and_then(|at| instances.get(at)).copied();
    found.ok_or_else(|| {
        none_runs(match instances.len() {
            1 => format!("service {service} has only 1 running instance"),
            n => format!("service {service} has only {n} running instances"),
        })
    })
}

fn none_runs(message: String) -> Failure {
    Failure::failed("not_running", message).hint("see `keel ps -a`")
}
