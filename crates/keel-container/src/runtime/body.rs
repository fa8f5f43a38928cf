//! From a [`Launch`] to what the engine is asked to create. Decides, and asks nobody.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings,
    HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, MountBindOptions,
    MountBindOptionsPropagationEnum, MountImageOptions, MountTmpfsOptions, MountType,
    MountVolumeOptions, NetworkingConfig, PortBinding as HostPort, ResourcesBlkioWeightDevice,
    ResourcesUlimits, ThrottleDevice,
};
use keel_model::{
    Attachment, ContainerNetwork, ContainerSpec, Limits, LogPolicy, Mount, MountOptions,
    MountSource, Spec,
};
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
    let (network_mode, mut endpoints) = networks(container, setting.shared);
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

/// From weakest to strongest: the platform's variables, those of the other services, the spec's own.
fn environment(launch: &Launch) -> Vec<String> {
    let mut all = BTreeMap::from([
        ("KEEL_INSTANCE".to_owned(), launch.id.to_string()),
        ("KEEL_SERVICE".to_owned(), launch.service.to_string()),
        ("KEEL_STACK".to_owned(), launch.stack.to_string()),
        ("KEEL_REVISION".to_owned(), launch.revision.to_string()),
    ]);
    if let Some(port) = launch.spec.ports.first() {
        all.insert("PORT".to_owned(), port.to_string());
    }
    all.extend(launch.environment.clone());
    all.extend(launch.spec.environment.clone());
    all.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
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
    container: &ContainerSpec,
    ids: &BTreeMap<String, String>,
) -> (Option<String>, Vec<(String, EndpointSettings)>) {
    match &container.network {
        ContainerNetwork::Attached(attachments) => {
            let mac = container.mac_address.as_ref();
            let endpoints: Vec<_> = attachments
                .iter()
                .enumerate()
                .map(|(index, to)| (to.network.clone(), endpoint(to, mac.filter(|_| index == 0))))
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
        aliases: some(&to.aliases),
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
    let (mounts, binds) = mounts(launch, setting);
    let mut host = HostConfig {
        network_mode,
        mounts: some(&mounts),
        binds: some(&binds),
        init: spec.init.then_some(true),
        group_add: some(&spec.groups),
        privileged: container.privileged.then_some(true),
        readonly_rootfs: container.read_only.then_some(true),
        cap_add: some(&container.cap_add),
        cap_drop: some(&container.cap_drop),
        security_opt: some(&container.security_opt),
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
    limit(&mut host, &spec.limits, container);
    devices(&mut host, container);
    host
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

fn limit(host: &mut HostConfig, limits: &Limits, container: &ContainerSpec) {
    host.nano_cpus = limits.cpu_milli.map(|milli| signed(milli.saturating_mul(1_000_000)));
    host.cpu_shares = limits.cpu_shares.map(signed);
    host.cpuset_cpus = limits.cpuset.clone();
    host.memory = limits.memory.map(signed);
    host.memory_swap = limits.memory_swap.map(signed);
    host.pids_limit = limits.pids.map(signed);
    host.oom_score_adj = limits.oom_score_adj.map(i64::from);
    let ulimit = |(name, (soft, hard)): (&String, &(u64, u64))| ResourcesUlimits {
        name: Some(name.clone()),
        soft: Some(unlimited(*soft)),
        hard: Some(unlimited(*hard)),
    };
    host.ulimits = some(&limits.ulimits.iter().map(ulimit).collect::<Vec<_>>());
    let own = &container.resources;
    host.shm_size = container.shm_size.map(signed);
    host.memory_reservation = own.memory_reservation.map(signed);
    host.memory_swappiness = own.swappiness.map(signed);
    host.oom_kill_disable = own.oom_kill_disable.then_some(true);
    host.cpu_realtime_period = own.realtime_period.map(signed);
    host.cpu_realtime_runtime = own.realtime_runtime.map(signed);
    host.blkio_weight = own.io_weight;
    let weight = |(path, weight): (&String, &u16)| ResourcesBlkioWeightDevice {
        path: Some(path.clone()),
        weight: Some(usize::from(*weight)),
    };
    host.blkio_weight_device = some(&own.io_weight_device.iter().map(weight).collect::<Vec<_>>());
    host.blkio_device_read_bps = throttle(&own.read_bytes);
    host.blkio_device_write_bps = throttle(&own.write_bytes);
    host.blkio_device_read_iops = throttle(&own.read_operations);
    host.blkio_device_write_iops = throttle(&own.write_operations);
}

/// The engine writes "no limit" as -1.
fn unlimited(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(-1)
}

fn throttle(rates: &BTreeMap<String, u64>) -> Option<Vec<ThrottleDevice>> {
    let device = |(path, rate): (&String, &u64)| ThrottleDevice {
        path: Some(path.clone()),
        rate: Some(signed(*rate)),
    };
    some(&rates.iter().map(device).collect::<Vec<_>>())
}

fn devices(host: &mut HostConfig, container: &ContainerSpec) {
    // `vendor/class=name` is a device that the container device interface describes.
    let (described, plain): (Vec<_>, Vec<_>) =
        container.devices.iter().partition(|device| device.source.contains('='));
    let mapping = |device: &&keel_model::Device| DeviceMapping {
        path_on_host: Some(device.source.clone()),
        path_in_container: Some(device.target.clone()),
        cgroup_permissions: Some(device.permissions.clone()),
    };
    host.devices = some(&plain.iter().map(mapping).collect::<Vec<_>>());
    host.device_cgroup_rules = some(&container.device_cgroup_rules);
    let mut requests: Vec<_> = container
        .device_requests
        .iter()
        .map(|request| DeviceRequest {
            driver: Some(request.driver.clone()),
            count: request.count,
            device_ids: some(&request.ids),
            capabilities: Some(vec![request.capabilities.clone()]),
            options: map(&request.options),
        })
        .collect();
    if !described.is_empty() {
        let ids = described.iter().map(|device| device.source.clone()).collect();
        let driver = Some("cdi".to_owned());
        requests.push(DeviceRequest { driver, device_ids: Some(ids), ..Default::default() });
    }
    host.device_requests = some(&requests);
}

/// The mounts, and those that the engine knows only in the old form, with options after colons.
fn mounts(launch: &Launch, setting: &Setting<'_>) -> (Vec<bollard::models::Mount>, Vec<String>) {
    let (mut mounts, mut binds) = (Vec::new(), Vec::new());
    for mount in &launch.spec.mounts {
        let none = MountOptions::default();
        let options = mount.options.as_deref().unwrap_or(&none);
        if let Some(place) = setting.subpaths.get(&mount.target) {
            mounts.push(bind(place, &mount.target, mount.read_only));
            continue;
        }
        match (&mount.source, &options.selinux) {
            (MountSource::Bind { path, .. }, Some(label)) => {
                let access = if mount.read_only { "ro" } else { "rw" };
                let mut text =
                    format!("{}:{}:{access},{label}", path.display(), mount.target.display());
                if let Some(propagation) = &options.propagation {
                    text = format!("{text},{propagation}");
                }
                binds.push(text);
            }
            _ => mounts.push(mounted(mount, options, setting)),
        }
    }
    for (file, place) in launch.spec.files.iter().zip(setting.files) {
        mounts.push(bind(place, &file.target, true));
    }
    (mounts, binds)
}

fn bind(source: &Path, target: &Path, read_only: bool) -> bollard::models::Mount {
    bollard::models::Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.display().to_string()),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

fn mounted(mount: &Mount, options: &MountOptions, setting: &Setting<'_>) -> bollard::models::Mount {
    let text = |path: &PathBuf| path.display().to_string();
    let mut all = bollard::models::Mount {
        target: Some(text(&mount.target)),
        read_only: mount.read_only.then_some(true),
        ..Default::default()
    };
    match &mount.source {
        MountSource::Volume { name, subpath } => {
            all.typ = Some(MountType::VOLUME);
            all.source = Some(name.clone());
            all.volume_options = Some(MountVolumeOptions {
                no_copy: options.no_copy.then_some(true),
                subpath: subpath.as_ref().map(text),
                ..Default::default()
            });
        }
        MountSource::Anonymous => {
            all.typ = Some(MountType::VOLUME);
            all.source = setting.unnamed.get(&mount.target).cloned();
            all.volume_options = Some(MountVolumeOptions {
                no_copy: options.no_copy.then_some(true),
                ..Default::default()
            });
        }
        MountSource::Bind { path, .. } => {
            all.typ = Some(MountType::BIND);
            all.source = Some(text(path));
            all.bind_options = Some(MountBindOptions {
                propagation: options.propagation.as_deref().and_then(propagation),
                non_recursive: (options.recursive.as_deref() == Some("disabled")).then_some(true),
                read_only_non_recursive: (options.recursive.as_deref() == Some("writable"))
                    .then_some(true),
                read_only_force_recursive: (options.recursive.as_deref() == Some("readonly"))
                    .then_some(true),
                ..Default::default()
            });
        }
        MountSource::Tmpfs { size, mode } => {
            all.typ = Some(MountType::TMPFS);
            all.tmpfs_options = Some(MountTmpfsOptions {
                size_bytes: size.map(signed),
                mode: Some(i64::from(mode.unwrap_or(0o1777))),
                ..Default::default()
            });
        }
        MountSource::Image { name, subpath } => {
            all.typ = Some(MountType::IMAGE);
            all.source = Some(name.clone());
            all.image_options = Some(MountImageOptions { subpath: subpath.as_ref().map(text) });
        }
    }
    all
}

fn propagation(text: &str) -> Option<MountBindOptionsPropagationEnum> {
    use MountBindOptionsPropagationEnum as Known;
    Some(match text {
        "private" => Known::PRIVATE,
        "rprivate" => Known::RPRIVATE,
        "shared" => Known::SHARED,
        "rshared" => Known::RSHARED,
        "slave" => Known::SLAVE,
        "rslave" => Known::RSLAVE,
        _ => return None,
    })
}
