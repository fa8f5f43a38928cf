//! A network namespace, link and address for each isolated instance.
//!
//! Each gets a veth pair without a bridge: inside, `eth0` with one address of the subnet and a default route to a
//! link-local gateway; outside, a route to that one address. So an instance reaches everything that the host
//! itself answers for (the virtual addresses of services, published ports), and the host reaches it. There is no NAT:
//! addresses outside the host are not reachable unless the host is made to forward.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use keel_model::InstanceId;
use serde::{Deserialize, Serialize};

use crate::types::Capability;

/// The gateway that every instance sees; the address of the host's end of every link.
const GATEWAY: &str = "169.254.77.1";
/// Addresses in the /16, without its first and last.
const ADDRESSES: u32 = 65_534;
/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";

/// What one instance has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// Its namespace's name, as `ip netns` knows it.
    pub namespace: String,
    /// The host's end of its link.
    pub link: String,
    pub address: Ipv4Addr,
}

impl Network {
    /// The file that stands for the namespace.
    pub(super) fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.namespace)
    }
}

/// Gives out addresses.
pub(super) struct Networks {
    subnet: Ipv4Addr,
    tag: String,
    owners: Mutex<BTreeMap<Ipv4Addr, InstanceId>>,
}

impl Networks {
    pub(super) fn new(subnet: Ipv4Addr, tag: &str) -> Self {
        Self { subnet, tag: tag.to_owned(), owners: Mutex::default() }
    }

    /// Whether instances can have networks of their own.
    pub(super) fn capability(&self, own: (u32, u32)) -> Capability {
        if own.0 != 0 {
            return Capability::no("only root may make network namespaces");
        }
        match Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => {
                Capability::yes(format!("addresses from {}/16", self.subnet))
            }
            _ => Capability::no("the program `ip` is missing; install iproute2"),
        }
    }

    /// Remembers that an adopted instance has its address already.
    pub(super) fn keep(&self, id: &InstanceId, network: &Network) {
        self.owners().insert(network.address, id.clone());
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, BTreeMap<Ipv4Addr, InstanceId>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network of `id`: `old` if that still is whole, otherwise a new one.
    pub(super) fn make(&self, id: &InstanceId, old: Option<&Network>) -> Result<Network, String> {
        if let Some(old) = old {
            let link = Path::new("/sys/class/net").join(&old.link);
            if old.path().exists() && link.exists() {
                self.keep(id, old);
                return Ok(old.clone());
            }
            self.remove(old);
        }
        let address = self.address(id)?;
        let host = u32::from(address) - u32::from(self.subnet);
        // Interface names hold 15 characters.
        let network = Network {
            namespace: format!("keel-{}-{host}", self.tag),
            link: format!("k{}{host:04x}", &self.tag[..self.tag.len().min(8)]),
            address,
        };
        tidy(&network);
        match set_up(&network) {
            Ok(()) => Ok(network),
            Err(error) => {
                self.remove(&network);
                Err(format!("its network could not be made: {error}"))
            }
        }
    }

    fn address(&self, id: &InstanceId) -> Result<Ipv4Addr, String> {
        let mut owners = self.owners();
        let taken = taken_routes();
        (2..ADDRESSES)
            .map(|host| Ipv4Addr::from(u32::from(self.subnet) + host))
            .find(|address| !owners.contains_key(address) && !taken.contains(address))
            .inspect(|address| {
                owners.insert(*address, id.clone());
            })
            .ok_or_else(|| format!("no address of {}/16 is free", self.subnet))
    }

    /// Takes a network away.
    pub(super) fn remove(&self, network: &Network) {
        tidy(network);
        self.owners().remove(&network.address);
    }
}

/// Addresses that the host routes to single links already: those of other servers' instances.
fn taken_routes() -> Vec<Ipv4Addr> {
    let Ok(routes) = std::fs::read_to_string("/proc/net/route") else { return Vec::new() };
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let single = *fields.get(7)? == "FFFFFFFF";
            let raw = u32::from_str_radix(fields.get(1)?, 16).ok()?;
            single.then(|| Ipv4Addr::from(u32::from_be(raw)))
        })
        .collect()
}

fn tidy(network: &Network) {
    for words in [["link", "del", &network.link], ["netns", "del", &network.namespace]] {
        let _ = Command::new("ip").args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn set_up(network: &Network) -> Result<(), String> {
    let Network { namespace, link, address } = network;
    batch(
        None,
        &format!(
            "netns add {namespace}\n\
             link add {link} type veth peer name eth0 netns {namespace}\n\
             addr add {GATEWAY}/32 dev {link} scope link\n\
             link set {link} up\n\
             route add {address}/32 dev {link} scope link\n"
        ),
    )?;
    batch(
        Some(namespace),
        &format!(
            "link set lo up\n\
             addr add {address}/32 dev eth0\n\
             link set eth0 up\n\
             route add {GATEWAY}/32 dev eth0 scope link\n\
             route add default via {GATEWAY} dev eth0 src {address}\n"
        ),
    )
}

fn batch(namespace: Option<&str>, commands: &str) -> Result<(), String> {
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    let failed = |error: std::io::Error| format!("ip: {error}");
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(text.lines().next().unwrap_or("ip failed").to_owned())
    }
}
