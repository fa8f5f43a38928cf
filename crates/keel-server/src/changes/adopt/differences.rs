//! In what a container differs from what the file says. Names only: values may be secret. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use keel_container::compose::Found;
use keel_container::images::ImageFacts;
use keel_model::{MountSource, Service, ServiceName, Spec, Transport};

/// When a difference comes to an end.
const LATER: &str = "applied when its instances are replaced";

/// A line for each difference, each only once for all containers of the service.
pub(super) fn of(
    name: &ServiceName,
    service: &Service,
    found: &[&Found],
    images: &BTreeMap<String, ImageFacts>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for container in found {
        lines.extend(image(service, container, images));
        lines.extend(words(&service.spec, container));
        lines.extend(environment(&service.spec, container));
        lines.extend(mounts(&service.spec, container));
        lines.extend(ports(service, container));
    }
    let mut said = BTreeSet::new();
    lines.retain(|line| said.insert(line.clone()));
    lines.into_iter().map(|line| format!("{name}: {line}")).collect()
}

fn image(
    service: &Service,
    container: &Found,
    images: &BTreeMap<String, ImageFacts>,
) -> Option<String> {
    let named = service.spec.image.as_deref()?;
    match images.get(named) {
        Some(facts) if facts.id == container.image => None,
        Some(_) => Some(format!(
            "{named} is another image by now than the one that runs; the next `keel up` releases it"
        )),
        None => Some(format!(
            "{named} is not on this machine by this name; the next `keel up` pulls or builds it"
        )),
    }
}

fn words(spec: &Spec, container: &Found) -> Vec<String> {
    let mut lines = Vec::new();
    // Placeholders are filled in for each instance.
    let known = |words: &[String]| words.iter().all(|word| !word.contains("${"));
    if !spec.command.is_empty() && known(&spec.command) && spec.command != container.command {
        lines.push(format!("the file has another command; {LATER}"));
    }
    let entrypoint = spec.container.as_ref().and_then(|container| container.entrypoint.as_ref());
    if entrypoint.is_some_and(|wanted| known(wanted) && *wanted != container.entrypoint) {
        lines.push(format!("the file has another entrypoint; {LATER}"));
    }
    lines
}

fn environment(spec: &Spec, container: &Found) -> Vec<String> {
    let differs = |(key, value): (&String, &String)| match container.environment.get(key) {
        _ if value.contains("${") => None,
        None => Some(format!(
            "the file has environment {key}=…; the container runs without it; {LATER}"
        )),
        Some(now) if now != value => {
            Some(format!("the file has another value of environment {key}; {LATER}"))
        }
        Some(_) => None,
    };
    spec.environment.iter().filter_map(differs).collect()
}

fn mounts(spec: &Spec, container: &Found) -> Vec<String> {
    let has: BTreeMap<&PathBuf, &str> =
        container.mounts.iter().map(|mount| (&mount.target, mount.source.as_str())).collect();
    let mut lines = Vec::new();
    let mut wanted: BTreeSet<&PathBuf> = spec.files.iter().map(|file| &file.target).collect();
    for mount in &spec.mounts {
        wanted.insert(&mount.target);
        let source = match &mount.source {
            MountSource::Volume { name, .. } => Some(name.clone()),
            MountSource::Bind { path, .. } => Some(path.display().to_string()),
            MountSource::Anonymous => None,
            // The engine does not list these.
            MountSource::Tmpfs { .. } | MountSource::Image { .. } => continue,
        };
        let target = mount.target.display();
        match (has.get(&mount.target), source) {
            (None, _) => lines
                .push(format!("the file mounts {target}; the container runs without it; {LATER}")),
            (Some(now), Some(wanted)) if *now != wanted => {
                lines.push(format!(
                    "the file mounts {wanted} at {target}, the container has {now}; {LATER}"
                ));
            }
            _ => {}
        }
    }
    for mount in container.mounts.iter().filter(|mount| !wanted.contains(&mount.target)) {
        let target = mount.target.display();
        lines.push(format!("the container has a mount at {target} that the file does not name; gone when it is replaced"));
    }
    lines
}

fn ports(service: &Service, container: &Found) -> Vec<String> {
    if container.host_network {
        return Vec::new();
    }
    let tcp = service.publish.iter().filter(|port| port.transport == Transport::Tcp);
    let wanted: BTreeSet<(u16, u16)> =
        tcp.filter_map(|port| Some((port.published?, port.target))).collect();
    let open: BTreeSet<u16> =
        service.publish.iter().filter(|port| port.published.is_none()).map(|p| p.target).collect();
    let held: BTreeSet<(u16, u16)> =
        container.holds.iter().map(|held| (held.port, held.target)).collect();
    let more = wanted.difference(&held);
    let more = more.map(|(port, target)| {
        format!("the file publishes {port}:{target}, which the container does not; keel's proxy opens it at once")
    });
    let less = held.difference(&wanted).filter(|(_, target)| !open.contains(target));
    let less = less.map(|(port, target)| {
        format!("the container publishes {port}:{target}, which the file does not; closed when it is replaced")
    });
    more.chain(less).collect()
}
