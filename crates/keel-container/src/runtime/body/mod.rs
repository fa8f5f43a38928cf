//! From a [`Launch`] to what the engine is asked to create. Decides, and asks nobody.

mod mounts;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, HostConfigLogConfig, NetworkingConfig, PortBinding as HostPort,
};
use keel_model::{Attachment, ContainerNetwork, ContainerSpec, LogPolicy, Spec};
use keel_runtime::Launch;

use super::labels;

/// How the load balancer reaches a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// At its own address.
    Own,
    /// At a port that the engine opens at this address of a host; the addresses of a rootless engine's containers lead
    /// nowhere outside of its namespace.
    Published(IpAddr),
}

/// What a body is made of besides the launch.
pub(super) struct Setting<'s> {
    /// By which the containers of this server are told from those of others.
    pub tag: &'s str,
    pub reach: Reach,
    /// Whose namespaces it shares: container ids by `service:NAME` or `container:NAME`.
    pub shared: &'s BTreeMap<String, String>,
    /// Secrets and configs as files of this machine, in the order of the spec.
    pub files: &'s [PathBuf],
    /// Places of volumes of this machine for those that are mounted with a subpath, where the engine can't do that.
    pub subpaths: &'s BTreeMap<PathBuf, PathBuf>,
    /// Volumes for the mounts that the file gives none, by target.
    pub unnamed: &'s BTreeMap<PathBuf, String>,
}

/// What to create, and the networks that it is connected to afterwards: old engines take only one with the creation.
#[derive(Debug)]
pub(super) struct Recipe {
    pub body: ContainerCreateBody,
    pub platform: String,
    pub connect: Vec<(String, EndpointSettings)>,
}

/// The recipe of an instance's container.
pub(super) fn recipe(launch: &Launch, setting: &Setting<'_>) -> Recipe {
    let spec = &launch.spec;
    let none = ContainerSpec::default();
    let container = spec.container.as_deref().unwrap_or(&none);
    let (network_mode, mut endpoints) = networks(launch, container, setting.shared);
    let first = (!endpoints.is_empty()).then(|| endpoints.remove(0));
    let networking = first.map(|(name, settings)| NetworkingConfig {
        endpoints_config: Some(HashMap::from([(name, settings)])),
    });
    let command = (!spec.command.is_empty()).then(|| spec.command.clone());
    let owns_network = matches!(container.network, ContainerNetwork::Attached(_));
    let body = ContainerCreateBody {
        image: container.image_id.clone().or_else(|| spec.image.clone()),
        entrypoint: container.entrypoint.clone(),
        cmd: command,
        env: Some(environment(launch)),
        hostname: container.hostname.clone().filter(|_| owns_network),
        domainname: container.domainname.clone().filter(|_| owns_network),
        user: spec.user.clone(),
        working_dir: spec.working_dir.as_ref().map(|dir| dir.display().to_string()),
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin_open),
        // The platform asks itself, on every engine alike.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        exposed_ports: Some(exposed(spec, container)),
        labels: Some(labels::of(launch, setting.tag)),
        host_config: Some(host(launch, container, network_mode, setting)),
        networking_config: networking,
        ..Default::default()
    };
    let platform = container.platform.clone().unwrap_or_default();
    Recipe { body, platform, connect: endpoints }
}

/// From weakest to strongest: the platform's variables, the spec's own. Others would take the place of the image's, which
/// often reads such names as `PORT` and `REDIS_URL`; other services are found by their names.
fn environment(launch: &Launch) -> Vec<String> {
    let mut all = BTreeMap::from([
        ("KEEL_INSTANCE".to_owned(), launch.id.to_string()),
        ("KEEL_SERVICE".to_owned(), launch.service.to_string()),
        ("KEEL_STACK".to_owned(), launch.stack.to_string()),
        ("KEEL_REVISION".to_owned(), launch.revision.to_string()),
    ]);
    all.extend(launch.spec.environment.clone());
    let set = all.iter().map(|(key, value)| format!("{key}={value}"));
    // A name alone takes the image's variable away.
    let container = launch.spec.container.as_deref();
    let unset = container.into_iter().flat_map(|container| &container.unset);
    set.chain(unset.filter(|key| !all.contains_key(*key)).cloned()).collect()
}

fn exposed(spec: &Spec, container: &ContainerSpec) -> Vec<String> {
    let tcp = spec.ports.iter().map(|port| format!("{port}/tcp"));
    let udp = container.publish_udp.iter().map(|port| format!("{}/udp", port.target));
    tcp.chain(udp).collect()
}

fn some<T>(items: &[T]) -> Option<Vec<T>>
where
    T: Clone,
{
    (!items.is_empty()).then(|| items.to_vec())
}

fn map(items: &BTreeMap<String, String>) -> Option<HashMap<String, String>> {
    let owned = || items.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    (!items.is_empty()).then(owned)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `service:NAME` and `container:NAME` as the engine writes them.
fn shared(mode: &str, ids: &BTreeMap<String, String>) -> String {
    ids.get(mode).map_or_else(|| mode.to_owned(), |id| format!("container:{id}"))
}

fn networks(
    launch: &Launch,
    container: &ContainerSpec,
    ids: &BTreeMap<String, String>,
) -> (Option<String>, Vec<(String, EndpointSettings)>) {
    match &container.network {
        ContainerNetwork::Attached(attachments) => {
            let mac = container.mac_address.as_ref();
            let endpoints: Vec<_> = attachments
                .iter()
                .enumerate()
                .map(|(index, to)| {
                    let mut settings = endpoint(to, mac.filter(|_| index == 0));
                    let names = launch.aliases.iter().filter(|name| !to.aliases.contains(name));
                    let names: Vec<String> = to.aliases.iter().chain(names).cloned().collect();
                    settings.aliases = some(&names);
                    (to.network.clone(), settings)
                })
                .collect();
            (endpoints.first().map(|(name, _)| name.clone()), endpoints)
        }
        ContainerNetwork::Host => (Some("host".into()), Vec::new()),
        ContainerNetwork::None => (Some("none".into()), Vec::new()),
        ContainerNetwork::Service(name) => {
            (Some(shared(&format!("service:{name}"), ids)), Vec::new())
        }
        ContainerNetwork::Container(name) => {
            (Some(shared(&format!("container:{name}"), ids)), Vec::new())
        }
    }
}

fn endpoint(to: &Attachment, mac: Option<&String>) -> EndpointSettings {
    let text = |address: &Option<IpAddr>| address.map(|address| address.to_string());
    let fixed = to.ipv4.is_some() || to.ipv6.is_some() || !to.link_local.is_empty();
    EndpointSettings {
        mac_address: to.mac_address.as_ref().or(mac).cloned(),
        gw_priority: to.gateway_priority,
        driver_opts: map(&to.driver_opts).or_else(|| {
            let name = to.interface.clone()?;
            Some(HashMap::from([("com.docker.network.endpoint.ifname".to_owned(), name)]))
        }),
        ipam_config: fixed.then(|| EndpointIpamConfig {
            ipv4_address: text(&to.ipv4),
            ipv6_address: text(&to.ipv6),
            link_local_ips: some(&to.link_local.iter().map(IpAddr::to_string).collect::<Vec<_>>()),
        }),
        ..Default::default()
    }
}

fn host(
    launch: &Launch,
    container: &ContainerSpec,
    network_mode: Option<String>,
    setting: &Setting<'_>,
) -> HostConfig {
    let spec = &launch.spec;
    let owns_network = matches!(container.network, ContainerNetwork::Attached(_));
    let mode = |text: &Option<String>| text.as_ref().map(|mode| shared(mode, setting.shared));
    let mut host = HostConfig {
        network_mode,
        init: spec.init.then_some(true),
        group_add: some(&spec.groups),
        privileged: container.privileged.then_some(true),
        readonly_rootfs: container.read_only.then_some(true),
        cap_add: some(&container.cap_add),
        cap_drop: some(&container.cap_drop),
        security_opt: some(&container.security_opt),
        links: some(&container.links),
        volumes_from: some(&container.volumes_from),
        sysctls: map(&container.sysctls),
        annotations: map(&container.annotations),
        storage_opt: map(&container.storage_opt),
        ipc_mode: mode(&container.ipc),
        pid_mode: mode(&container.pid),
        uts_mode: container.uts.clone(),
        userns_mode: container.userns.clone(),
        cgroupns_mode: container.cgroup.as_deref().and_then(|mode| match mode {
            "host" => Some(HostConfigCgroupnsModeEnum::HOST),
            "private" => Some(HostConfigCgroupnsModeEnum::PRIVATE),
            _ => None,
        }),
        cgroup_parent: container.cgroup_parent.clone(),
        runtime: container.oci_runtime.clone(),
        port_bindings: Some(port_bindings(spec, container, setting.reach)),
        log_config: Some(log(&spec.logs, container)),
        ..Default::default()
    };
    if owns_network {
        resolve_names(&mut host, launch, container);
    }
    mounts::put(&mut host, launch, setting);
    resources::limit(&mut host, &spec.limits, container);
    resources::devices(&mut host, container);
    unmask(&mut host);
    host
}

/// `systempaths=unconfined` is an option of the client: the engine is told that nothing is hidden.
fn unmask(host: &mut HostConfig) {
    let Some(options) = &mut host.security_opt else { return };
    let before = options.len();
    options.retain(|option| option != "systempaths=unconfined");
    if options.len() < before {
        host.masked_paths = Some(Vec::new());
        host.readonly_paths = Some(Vec::new());
    }
}

/// Names: by the platform's DNS, and without it by the container's own `/etc/hosts`.
fn resolve_names(host: &mut HostConfig, launch: &Launch, container: &ContainerSpec) {
    let entry = |(address, name): &(IpAddr, String)| format!("{name}:{address}");
    host.extra_hosts = some(&launch.hosts.iter().map(entry).collect::<Vec<_>>());
    host.dns_options = some(&container.dns_opt);
    let own: Vec<String> = container.dns.iter().map(IpAddr::to_string).collect();
    let mut search = container.dns_search.clone();
    if let Some((server, domains)) = &launch.nameserver {
        host.dns = Some(if own.is_empty() { vec![server.to_string()] } else { own });
        search.splice(0..0, domains.iter().cloned());
    } else {
        host.dns = some(&own);
    }
    host.dns_search = some(&search);
}

fn port_bindings(
    spec: &Spec,
    container: &ContainerSpec,
    reach: Reach,
) -> HashMap<String, Option<Vec<HostPort>>> {
    let mut bindings = HashMap::new();
    if !matches!(container.network, ContainerNetwork::Attached(_)) {
        return bindings;
    }
    if let Reach::Published(address) = reach {
        for port in &spec.ports {
            let at =
                HostPort { host_ip: Some(address.to_string()), host_port: Some(String::new()) };
            bindings.insert(format!("{port}/tcp"), Some(vec![at]));
        }
    }
    for port in &container.publish_udp {
        let at = HostPort {
            host_ip: port.ip.map(|ip| ip.to_string()),
            host_port: Some(port.published.map(|port| port.to_string()).unwrap_or_default()),
        };
        let all: &mut Option<Vec<HostPort>> =
            bindings.entry(format!("{}/udp", port.target)).or_default();
        all.get_or_insert_default().push(at);
    }
    bindings
}

/// Output is kept by the engine in rotated files, which the platform reads, unless the file chooses a driver.
fn log(policy: &LogPolicy, container: &ContainerSpec) -> HostConfigLogConfig {
    let driver = match &container.log_driver {
        _ if !policy.keep => "none",
        Some(driver) => driver,
        None => "json-file",
    };
    let mut options: HashMap<String, String> = map(&container.log_options).unwrap_or_default();
    if container.log_driver.is_none() && policy.keep {
        options.entry("max-size".into()).or_insert_with(|| policy.max_size.to_string());
        options.entry("max-file".into()).or_insert_with(|| policy.max_files.to_string());
    }
    HostConfigLogConfig { typ: Some(driver.to_owned()), config: Some(options) }
}
