//! What the command line of `keel run` changes about a service.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use keel_model::{
    ContainerNetwork, Mount, MountSource, Service, ServiceName, Spec, Stack, Transport, Volume,
};
use keel_runtime::OncePort;

use crate::commands::exec;
use crate::commands::run::RunArgs;
use crate::failure::Failure;

/// Where ports are opened unless an address is named. With all addresses the engine would take the port at the virtual
/// addresses of all services too.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What is run, and how.
///
/// # Errors
/// When an option can't be understood.
pub fn adapt(spec: &mut Spec, args: &RunArgs, terminal: bool) -> Result<(), Failure> {
    spec.tty = terminal;
    spec.stdin_open = args.interactive && !args.detach;
    spec.environment.extend(exec::environment(&args.env, |name| std::env::var_os(name))?);
    spec.working_dir = args.workdir.clone().or(spec.working_dir.take());
    spec.user = args.user.clone().or(spec.user.take());
    for label in &args.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        spec.labels.insert(name.to_owned(), value.to_owned());
    }
    // They are for instances, of which there may be one.
    spec.health = None;
    spec.post_start.clear();
    spec.pre_stop.clear();
    let container = spec.container.get_or_insert_default();
    container.cap_add.extend(args.cap_add.iter().cloned());
    container.cap_drop.extend(args.cap_drop.iter().cloned());
    container.mac_address = None;
    if let ContainerNetwork::Attached(networks) = &mut container.network {
        for network in networks {
            (network.ipv4, network.ipv6, network.mac_address) = (None, None, None);
            if !args.use_aliases {
                network.aliases.clear();
            }
        }
    }
    if let Some(entrypoint) = &args.entrypoint {
        let words = keel_compose::split_words(entrypoint);
        let words =
            words.map_err(|why| Failure::usage(format!("--entrypoint {entrypoint:?}: {why}")))?;
        container.entrypoint = Some(words);
        // The service's arguments are those of its own entrypoint.
        spec.command.clear();
    }
    if !args.command().is_empty() {
        spec.command = args.command().to_vec();
    }
    Ok(())
}

/// Adds `SOURCE:TARGET[:OPTIONS]` and `TARGET`, in the place of what is mounted there.
///
/// # Errors
/// When one can't be understood, or names a volume that the file does not have.
pub fn mount(stack: &mut Stack, service: &ServiceName, texts: &[String]) -> Result<(), Failure> {
    let mounts: Vec<Mount> =
        texts.iter().map(|text| parse_mount(stack, text)).collect::<Result<_, _>>()?;
    let Some(service) = stack.services.get_mut(service) else { return Ok(()) };
    for mount in mounts {
        service.spec.mounts.retain(|other| other.target != mount.target);
        service.spec.mounts.push(mount);
    }
    Ok(())
}

fn parse_mount(stack: &mut Stack, text: &str) -> Result<Mount, Failure> {
    let wrong = |why: &str| Failure::usage(format!("--volume {text:?}: {why}"));
    let mut parts = text.split(':');
    let (first, second, options) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    if parts.next().is_some() {
        return Err(wrong("it has more than three parts"));
    }
    let (source, target) = match second {
        None => (MountSource::Anonymous, first),
        Some(target) => (source(stack, first).ok_or_else(|| wrong("its source is empty"))?, target),
    };
    if !target.starts_with('/') {
        return Err(wrong("its target is no absolute path"));
    }
    let read_only = match options {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(wrong("its only options are `ro` and `rw`")),
    };
    Ok(Mount { source, target: PathBuf::from(target), read_only, options: None })
}

/// A path, or a volume of the stack by its key; one that is not there is made, with the name that it would have.
fn source(stack: &mut Stack, text: &str) -> Option<MountSource> {
    if text.is_empty() {
        return None;
    }
    let home = text
        .strip_prefix("~/")
        .and_then(|rest| Some(Path::new(&std::env::var_os("HOME")?).join(rest)));
    if home.is_some() || text.starts_with(['/', '.']) {
        let path = std::path::absolute(home.unwrap_or_else(|| text.into())).ok()?;
        return Some(MountSource::Bind { path, create: true });
    }
    let project = stack.name.to_string();
    let volume = stack.volumes.entry(text.to_owned()).or_insert_with(|| Volume {
        name: format!("{project}_{text}"),
        external: false,
        labels: std::collections::BTreeMap::new(),
        driver: None,
        driver_opts: std::collections::BTreeMap::new(),
    });
    Some(MountSource::Volume { name: volume.name.clone(), subpath: None })
}

/// The ports that are opened.
///
/// # Errors
/// When one can't be understood.
pub fn ports(args: &RunArgs, service: &Service) -> Result<Vec<OncePort>, Failure> {
    let mut ports = Vec::new();
    if args.service_ports {
        ports.extend(service.publish.iter().map(|port| OncePort {
            ip: port.ip.filter(|ip| !ip.is_unspecified()).unwrap_or(HERE),
            published: port.published,
            target: port.target,
            udp: port.transport == Transport::Udp,
        }));
        let container = service.spec.container.iter();
        ports.extend(container.flat_map(|it| &it.publish_udp).map(|port| OncePort {
            ip: port.ip.unwrap_or(HERE),
            published: port.published,
            target: port.target,
            udp: true,
        }));
    }
    for text in &args.publish {
        let port = parse_port(text);
        ports.push(port.ok_or_else(|| {
            Failure::usage(format!("--publish {text:?} is no port"))
                .hint("write 8080:80, 127.0.0.1:8080:80, or 80 for any that is free")
        })?);
    }
    Ok(ports)
}

fn parse_port(text: &str) -> Option<OncePort> {
    let (text, udp) = match text.split_once('/') {
        Some((text, "udp")) => (text, true),
        Some((text, "tcp")) => (text, false),
        Some(_) => return None,
        None => (text, false),
    };
    let (host, target) = match text.rsplit_once(':') {
        Some((host, target)) => (Some(host), target),
        None => (None, text),
    };
    let (ip, published) = match host.map(|host| host.rsplit_once(':').ok_or(host)) {
        None => (HERE, None),
        Some(Err(port)) => (HERE, Some(port.parse().ok()?)),
        Some(Ok((ip, port))) => {
            let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
            (ip.trim_matches(['[', ']']).parse().ok()?, port)
        }
    };
    Some(OncePort { ip, published, target: target.parse().ok()?, udp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_compose_writes_them() {
        let read = |text: &str| {
            parse_port(text)
                .map(|port| (port.ip.to_string(), port.published, port.target, port.udp))
        };
        let here = "127.0.0.1".to_owned();
        assert_eq!(read("80"), Some((here.clone(), None, 80, false)));
        assert_eq!(read("8080:80/udp"), Some((here, Some(8080), 80, true)));
        assert_eq!(read("10.0.0.5:8080:80"), Some(("10.0.0.5".into(), Some(8080), 80, false)));
        assert_eq!(read("[::1]::80"), Some(("::1".into(), None, 80, false)));
        for bad in ["", "x", "80:", ":80:", "80/x", "1:2:3", "99999"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_volume_has_the_name_that_it_has_in_the_file() {
        let json = serde_json::json!({
            "name": "app", "directory": "/", "services": {},
            "volumes": {"data": {"name": "other", "external": true}},
        });
        let mut stack: Stack = serde_json::from_value(json).unwrap();
        let mut source = |text: &str| parse_mount(&mut stack, text).map(|mount| mount.source);
        let volume = |name: &str| MountSource::Volume { name: name.into(), subpath: None };
        assert_eq!(source("data:/x").unwrap(), volume("other"));
        assert_eq!(source("new:/x:ro").unwrap(), volume("app_new"));
        assert_eq!(source("/x").unwrap(), MountSource::Anonymous);
        let bind = MountSource::Bind { path: "/srv".into(), create: true };
        assert_eq!(source("/srv:/x").unwrap(), bind);
        for bad in ["x", ":/x", "/a:b", "/a:/b:z", "/a:/b:ro:x"] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }
}
