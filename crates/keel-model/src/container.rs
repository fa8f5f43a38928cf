//! What concerns containers only.
//!
//! Fields that have their default are left out of the stored form: the hash of that form names the revision, and a
//! later version with more fields must not replace every container.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a container is started with besides what every instance has. Absent fields are as the image or the engine
/// has them. Names of networks and volumes are those that the engine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// The content of the image (`sha256:…`) that its name stood for when the revision was made. A tag that is
    /// moved later changes nothing about a revision that runs.
    #[serde(skip_serializing_if = "is_default")]
    pub image_id: Option<String>,
    /// Replaces the entrypoint of the image; empty resets it.
    #[serde(skip_serializing_if = "is_default")]
    pub entrypoint: Option<Vec<String>>,
    /// What is taken from the image because the file does not say it.
    #[serde(skip_serializing_if = "is_default")]
    pub from_image: FromImage,
    /// Variables of the image that it does not get: those that the file names without a value.
    #[serde(skip_serializing_if = "is_default")]
    pub unset: Vec<String>,
    /// `os[/arch[/variant]]`.
    #[serde(skip_serializing_if = "is_default")]
    pub platform: Option<String>,
    /// `hostname`.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: Option<String>,
    /// `domainname`.
    #[serde(skip_serializing_if = "is_default")]
    pub domainname: Option<String>,
    /// All rights of the host.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Its own file system can't be written.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Capabilities added to the engine's usual ones.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_add: Vec<String>,
    /// Capabilities taken from them.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_drop: Vec<String>,
    /// `security_opt`, as the engine's command line reads it; the content of a seccomp profile in place of its file.
    /// `systempaths=unconfined` means that no path of `/proc` and `/sys` is hidden or read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub security_opt: Vec<String>,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "is_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Annotations for the low-level runtime.
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: BTreeMap<String, String>,
    /// Size of `/dev/shm` in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub shm_size: Option<u64>,
    /// Devices of the host.
    #[serde(skip_serializing_if = "is_default")]
    pub devices: Vec<Device>,
    /// Rules of the device control group (`c 1:3 mr`).
    #[serde(skip_serializing_if = "is_default")]
    pub device_cgroup_rules: Vec<String>,
    /// Devices that a driver provides (`gpus`, `deploy.resources.reservations.devices`).
    #[serde(skip_serializing_if = "is_default")]
    pub device_requests: Vec<DeviceRequest>,
    /// How it is connected.
    #[serde(skip_serializing_if = "is_default")]
    pub network: ContainerNetwork,
    /// Containers that the platform did not start, as `CONTAINER[:ALIAS]`, to be found on its networks by these names
    /// (`external_links`).
    #[serde(skip_serializing_if = "is_default")]
    pub links: Vec<String>,
    /// Containers that the platform did not start, as `CONTAINER[:ro]`, whose mounts it has too (`volumes_from`).
    #[serde(skip_serializing_if = "is_default")]
    pub volumes_from: Vec<String>,
    /// Its address on the link layer, on its first network.
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: Option<String>,
    /// Name servers in the place of the platform's.
    #[serde(skip_serializing_if = "is_default")]
    pub dns: Vec<IpAddr>,
    /// Resolver options.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_opt: Vec<String>,
    /// Domains to search, after those of the platform.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_search: Vec<String>,
    /// Whose inter-process communication it shares: `host`, `shareable`, `none`, `private`, `service:NAME`,
    /// `container:NAME`.
    #[serde(skip_serializing_if = "is_default")]
    pub ipc: Option<String>,
    /// Whose process ids it sees: `host`, `service:NAME`, `container:NAME`.
    #[serde(skip_serializing_if = "is_default")]
    pub pid: Option<String>,
    /// `host`: the host's name is its own.
    #[serde(skip_serializing_if = "is_default")]
    pub uts: Option<String>,
    /// `host`: user ids are not mapped where the engine maps them.
    #[serde(skip_serializing_if = "is_default")]
    pub userns: Option<String>,
    /// `host` or `private` control group namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup: Option<String>,
    /// Parent of its control group.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup_parent: Option<String>,
    /// The low-level runtime (`runc`, `runsc`, …).
    #[serde(skip_serializing_if = "is_default")]
    pub oci_runtime: Option<String>,
    /// Options of its file system layer.
    #[serde(skip_serializing_if = "is_default")]
    pub storage_opt: BTreeMap<String, String>,
    /// Where the engine sends its output (`logging`).
    #[serde(skip_serializing_if = "is_default")]
    pub log_driver: Option<String>,
    /// Options of that driver.
    #[serde(skip_serializing_if = "is_default")]
    pub log_options: BTreeMap<String, String>,
    /// Resource settings that only containers have.
    #[serde(skip_serializing_if = "is_default")]
    pub resources: ContainerResources,
    /// UDP ports that the engine opens on the host, as the load balancer speaks TCP.
    #[serde(skip_serializing_if = "is_default")]
    pub publish_udp: Vec<UdpPort>,
}

/// What is taken from the image because the file does not say it. Settled together with the image's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FromImage {
    /// Its health check, if it has one, with these times in the place of its own.
    #[serde(skip_serializing_if = "is_default")]
    pub health: Option<HealthTimes>,
    /// Its stop signal, if it names one.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: bool,
    /// The ports that it exposes, besides those that the file names.
    #[serde(skip_serializing_if = "is_default")]
    pub ports: bool,
}

/// Times of a health check that the file gives without a test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthTimes {
    /// Time between two checks.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "is_default")]
    pub interval: Option<Duration>,
    /// After this a check counts as failed.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "is_default")]
    pub timeout: Option<Duration>,
    /// Failures in this time after the start do not count.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "is_default")]
    pub start_period: Option<Duration>,
    /// Time between checks until the first success.
    #[serde(with = "crate::millis_opt", skip_serializing_if = "is_default")]
    pub start_interval: Option<Duration>,
    /// Failures in a row that make an instance unhealthy.
    #[serde(skip_serializing_if = "is_default")]
    pub retries: Option<u32>,
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the host, or the name of a CDI device (`vendor/class=name`).
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Devices that a driver provides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRequest {
    /// The driver; the engine chooses when it is empty.
    pub driver: String,
    /// How many; -1 is all. Absent where `ids` are given.
    pub count: Option<i64>,
    /// Which.
    pub ids: Vec<String>,
    /// What they must be able to do (`gpu`, …).
    pub capabilities: Vec<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// How a container is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerNetwork {
    /// It has an address of its own on each of these; the first is the one that requests come by.
    Attached(Vec<Attachment>),
    /// The network stack of the host.
    Host,
    /// None.
    None,
    /// That of an instance of this service of the same stack.
    Service(crate::ServiceName),
    /// That of a container which the platform did not start.
    Container(String),
}

impl Default for ContainerNetwork {
    fn default() -> Self {
        Self::Attached(Vec::new())
    }
}

/// Whether two services are containers that share no network.
#[must_use]
pub fn are_apart(one: &crate::Spec, other: &crate::Spec) -> bool {
    let (one, other) = (attachments(one), attachments(other));
    let shared = |to: &Attachment| other.iter().any(|it| it.network == to.network);
    !one.is_empty() && !other.is_empty() && !one.iter().any(shared)
}

/// The networks of a container that has any of its own.
fn attachments(spec: &crate::Spec) -> &[Attachment] {
    match spec.container.as_deref().map(|container| &container.network) {
        Some(ContainerNetwork::Attached(to)) => to,
        _ => &[],
    }
}

/// A connection to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// The name that the engine knows it by ([`Network::name`]).
    pub network: String,
    /// Further names of the container on it, for containers that the platform did not start.
    #[serde(skip_serializing_if = "is_default")]
    pub aliases: Vec<String>,
    /// A fixed address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4: Option<IpAddr>,
    /// A fixed address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6: Option<IpAddr>,
    /// Addresses for the link only.
    #[serde(skip_serializing_if = "is_default")]
    pub link_local: Vec<IpAddr>,
    /// Its address on the link layer.
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: Option<String>,
    /// Name of the interface in the container.
    #[serde(skip_serializing_if = "is_default")]
    pub interface: Option<String>,
    /// The default route leads to the network with the highest.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_priority: Option<i64>,
    /// Options of the network's driver.
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: BTreeMap<String, String>,
}

/// Resource settings that only containers have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerResources {
    /// Memory in bytes that it is reduced to when the machine runs short (`mem_reservation`).
    #[serde(skip_serializing_if = "is_default")]
    pub memory_reservation: Option<u64>,
    /// `mem_swappiness`, 0 to 100.
    #[serde(skip_serializing_if = "is_default")]
    pub swappiness: Option<u64>,
    /// `oom_kill_disable`.
    #[serde(skip_serializing_if = "is_default")]
    pub oom_kill_disable: bool,
    /// `cpu_rt_period` in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub realtime_period: Option<u64>,
    /// `cpu_rt_runtime` in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub realtime_runtime: Option<u64>,
    /// Relative weight of its block I/O, 10 to 1000.
    #[serde(skip_serializing_if = "is_default")]
    pub io_weight: Option<u16>,
    /// The same for single devices.
    #[serde(skip_serializing_if = "is_default")]
    pub io_weight_device: BTreeMap<String, u16>,
    /// Most bytes a second read from a device.
    #[serde(skip_serializing_if = "is_default")]
    pub read_bytes: BTreeMap<String, u64>,
    /// Most bytes a second written to a device.
    #[serde(skip_serializing_if = "is_default")]
    pub write_bytes: BTreeMap<String, u64>,
    /// Most operations a second that read from a device.
    #[serde(skip_serializing_if = "is_default")]
    pub read_operations: BTreeMap<String, u64>,
    /// Most operations a second that write to a device.
    #[serde(skip_serializing_if = "is_default")]
    pub write_operations: BTreeMap<String, u64>,
}

/// A UDP port that the engine opens on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpPort {
    /// The host address; all addresses when absent.
    pub ip: Option<IpAddr>,
    /// The host port; the engine chooses one when absent.
    pub published: Option<u16>,
    /// The port in the container.
    pub target: u16,
}

/// A network of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// The name that the engine knows it by (`<stack>_<key>` unless the file names it).
    pub name: String,
    /// Not created and never removed by this stack.
    #[serde(skip_serializing_if = "is_default")]
    pub external: bool,
    /// Its containers reach nothing outside the machine.
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    /// Other containers may be connected to it by hand.
    #[serde(skip_serializing_if = "is_default")]
    pub attachable: bool,
    /// The driver; the engine's default when absent.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: Option<String>,
    /// Options of the driver.
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: BTreeMap<String, String>,
    /// Whether it has IPv6 addresses.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6: Option<bool>,
    /// Whether it has IPv4 addresses.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4: Option<bool>,
    /// Driver of the address management.
    #[serde(skip_serializing_if = "is_default")]
    pub ipam_driver: Option<String>,
    /// Options of the address management.
    #[serde(skip_serializing_if = "is_default")]
    pub ipam_options: BTreeMap<String, String>,
    /// Its address ranges.
    #[serde(skip_serializing_if = "is_default")]
    pub subnets: Vec<Subnet>,
    /// Labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
}

/// A range of addresses of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subnet {
    /// In the form `172.28.0.0/16`.
    #[serde(skip_serializing_if = "is_default")]
    pub subnet: Option<String>,
    /// The part of it that containers get addresses from.
    #[serde(skip_serializing_if = "is_default")]
    pub ip_range: Option<String>,
    /// The address of the host in it.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: Option<String>,
    /// Addresses in use by others, by host name.
    #[serde(skip_serializing_if = "is_default")]
    pub aux_addresses: BTreeMap<String, String>,
}
