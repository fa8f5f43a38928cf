//! By what the platform knows its containers, networks and volumes again.

use std::collections::HashMap;

use keel_runtime::Launch;

/// Which server something belongs to.
pub(crate) const SERVER: &str = "dev.evenkeel.server";
/// Which stack.
pub(crate) const STACK: &str = "dev.evenkeel.stack";
/// Which service.
pub(crate) const SERVICE: &str = "dev.evenkeel.service";
/// Which instance.
pub(crate) const INSTANCE: &str = "dev.evenkeel.instance";
/// Which revision.
pub(crate) const REVISION: &str = "dev.evenkeel.revision";

/// Which command that runs once beside the instances; in the place of the instance.
pub(crate) const ONCE: &str = "dev.evenkeel.once";

/// The labels of an instance's container: the spec's, and ours.
pub(super) fn of(launch: &Launch, tag: &str) -> HashMap<String, String> {
    let mut labels: HashMap<_, _> = launch.spec.labels.clone().into_iter().collect();
    for (key, value) in [
        (SERVER, tag),
        (STACK, launch.stack.as_str()),
        (SERVICE, launch.service.as_str()),
        (INSTANCE, launch.id.as_str()),
        (REVISION, launch.revision.as_str()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}
