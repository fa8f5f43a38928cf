//! The volumes of a stack: directories of the host for processes, kept by the engine for containers.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{MountSource, RuntimeKind, Service, ServiceName, Volume};

use super::Lower;
use super::network::options;
use super::spec::is_true;
use crate::value::Node;

impl Lower<'_> {
    /// The volumes of the stack by the key that services use.
    pub(super) fn volumes(
        &mut self,
        services: &BTreeMap<ServiceName, Service>,
    ) -> BTreeMap<String, Volume> {
        let processes = used_by(services, RuntimeKind::Process);
        let containers = used_by(services, RuntimeKind::Container);
        let mut volumes = BTreeMap::new();
        let section = self.project.model.get("volumes");
        for (key, node) in section.into_iter().flat_map(Node::entries) {
            let name = node.text("name").unwrap_or(key);
            let of_engine = containers.contains(name);
            let driver = node
                .get("driver")
                .filter(|driver| !matches!(driver.as_str(), None | Some("" | "local")));
            let driver_opts = node.get("driver_opts");
            if of_engine && processes.contains(name) {
                let span = section.and_then(Node::as_map).and_then(|map| map.key_span(key));
                let span = span.unwrap_or(&node.span).clone();
                self.warn(&span, format!("containers and host processes do not share the volume `{key}`: the engine keeps the one, a directory is the other; bind a directory to share it"));
            }
            if let Some(driver) = driver.filter(|_| !of_engine) {
                let text = driver.display().unwrap_or_default();
                self.warn(&driver.span, format!("the volume driver `{text}` has no effect: volumes are directories of this host"));
            }
            if let Some(options) = driver_opts.filter(|_| !of_engine) {
                self.warn(
                    &options.span,
                    "`driver_opts` have no effect: volumes are directories of this host",
                );
            }
            let volume = Volume {
                name: name.to_owned(),
                external: is_true(node.get("external")),
                labels: self.labels(node.get("labels")),
                driver: driver.filter(|_| of_engine).and_then(Node::display),
                driver_opts: options(driver_opts.filter(|_| of_engine)),
            };
            volumes.insert(key.to_owned(), volume);
        }
        volumes
    }
}

/// The names of volumes that services of a kind mount.
fn used_by(services: &BTreeMap<ServiceName, Service>, kind: RuntimeKind) -> BTreeSet<String> {
    let services = services.values().filter(|service| service.spec.runtime == kind);
    let mounts = services.flat_map(|service| &service.spec.mounts);
    let names = mounts.filter_map(|mount| match &mount.source {
        MountSource::Volume { name, .. } => Some(name.clone()),
        _ => None,
    });
    names.collect()
}
