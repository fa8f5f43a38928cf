//! The network of virtual addresses: which one, and which address and ports a service gets.
//!
//! With root on Linux it is 10.77.0.0/16, made local to the host by one route, reachable from host processes,
//! containers and namespaces alike. Without rights it is 127.77.0.0/16, where ports below 1024 move up by 8000.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;

use keel_model::StackName;
use keel_store::{Store, Transaction};

use crate::{Error, keys};

/// With rights.
const PRIVILEGED_NETWORK: &str = "10.77.0.0/16";
/// Without.
const LOOPBACK_NETWORK: &str = "127.77.0.0/16";
/// Without rights, ports below this can't be opened …
const FIRST_FREE_PORT: u16 = 1024;
/// … and are moved up by this.
const PORT_SHIFT: u16 = 8000;

/// A network of virtual addresses that is ready to use.
#[derive(Debug)]
pub struct Network {
    base: u32,
    size: u32,
    text: String,
    privileged: bool,
    dns: OnceLock<SocketAddr>,
}

impl Network {
    /// Chooses the network (`asked`, or what was used before, or the default) and makes it reachable.
    ///
    /// # Errors
    /// When the network that was asked for can't be used. Where the default can't be, the loopback network
    /// is taken and the reason given back.
    pub async fn open(
        asked: Option<&str>,
        store: &dyn Store,
    ) -> Result<(Self, Option<String>), Error> {
        let privileged = rustix::process::geteuid().is_root();
        let stored = store.get(keys::NETWORK).await?;
        let stored = stored.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        let wanted = asked.map(str::to_owned).or(stored);
        let (network, limitation) = match wanted {
            Some(text) => (Self::prepare(&text, privileged)?, None),
            None if privileged => match Self::prepare(PRIVILEGED_NETWORK, privileged) {
                Ok(network) => (network, None),
                Err(error) => {
                    let network = Self::prepare(LOOPBACK_NETWORK, privileged)?;
                    (network, Some(format!("{error}; using {LOOPBACK_NETWORK} instead")))
                }
            },
            None => (
                Self::prepare(LOOPBACK_NETWORK, privileged)?,
                Some(format!(
                    "without root virtual addresses come from {LOOPBACK_NETWORK}, and ports below \
                     {FIRST_FREE_PORT} are moved up by {PORT_SHIFT}"
                )),
            ),
        };
        let note = Transaction::new().put(keys::NETWORK, network.text.as_bytes());
        let _ = store.commit(note).await?;
        Ok((network, limitation))
    }

    fn prepare(text: &str, privileged: bool) -> Result<Self, Error> {
        let failed = |reason: String| Error::Network { network: text.to_owned(), reason };
        let (base, prefix) = parse(text).map_err(&failed)?;
        if !base.is_loopback() {
            add_route(text).map_err(&failed)?;
        }
        Ok(Self {
            base: u32::from(base),
            size: 1 << (32 - prefix),
            text: text.to_owned(),
            privileged,
            dns: OnceLock::new(),
        })
    }

    /// The network as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the DNS server of this node should listen: the first address of the network.
    pub fn dns_address(&self) -> SocketAddr {
        let port = if self.privileged { 53 } else { 53 + PORT_SHIFT };
        SocketAddr::from((Ipv4Addr::from(self.base + 1), port))
    }

    /// The DNS server listens; instances may be pointed at it.
    pub fn dns_is_up(&self) {
        let _ = self.dns.set(self.dns_address());
    }

    /// Where the DNS server listens, if it does.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns.get().copied()
    }

    /// What an instance's resolver is pointed at. A resolver can only be told an address, so the standard port
    /// is needed.
    pub fn nameserver(&self, stack: &StackName) -> Option<(IpAddr, Vec<String>)> {
        let dns = self.dns().filter(|dns| dns.port() == 53)?;
        Some((dns.ip(), vec![keel_discovery::search_domain(stack)]))
    }

    /// The first address that is neither taken nor in use; `None` when the network is full.
    pub fn allocate(&self, taken: &BTreeSet<IpAddr>, in_use: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        (2..self.size - 1)
            .map(|offset| IpAddr::V4(Ipv4Addr::from(self.base + offset)))
            .find(|address| !taken.contains(address) && !in_use.contains(address))
    }

    /// The port under which clients inside reach `target`.
    pub fn client_port(&self, target: u16) -> u16 {
        if self.privileged || target >= FIRST_FREE_PORT { target } else { target + PORT_SHIFT }
    }

    /// The address of an `extra_hosts` entry; `host-gateway` is this machine.
    pub fn host_entry(&self, address: &str) -> Option<IpAddr> {
        if address == "host-gateway" {
            return Some(IpAddr::V4(if self.privileged {
                Ipv4Addr::from(self.base + 1)
            } else {
                Ipv4Addr::LOCALHOST
            }));
        }
        address.trim_matches(['[', ']']).parse().ok()
    }
}

fn parse(text: &str) -> Result<(Ipv4Addr, u32), String> {
    let form = || "write it as a network of IPv4 addresses, like 10.77.0.0/16".to_owned();
    let (base, prefix) = text.split_once('/').ok_or_else(form)?;
    let base: Ipv4Addr = base.parse().map_err(|_| form())?;
    let prefix: u32 = prefix.parse().map_err(|_| form())?;
    if !(8..=28).contains(&prefix) {
        return Err("its prefix must be between /8 and /28".to_owned());
    }
    if u32::from(base) & ((1 << (32 - prefix)) - 1) != 0 {
        return Err("its address has bits set behind the prefix".to_owned());
    }
    if !(base.is_private() || base.is_loopback()) {
        return Err("use a private or a loopback network".to_owned());
    }
    Ok((base, prefix))
}

/// The resolvers that this machine uses, without `own`.
pub fn system_resolvers(own: IpAddr) -> Vec<SocketAddr> {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    file.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|address| *address != own)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Makes every address of the network local to this host.
fn add_route(network: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(["route", "replace", "local", network, "dev", "lo"])
        .output()
        .map_err(|e| format!("the program `ip` could not be run ({e}); install iproute2"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(privileged: bool) -> Network {
        Network::prepare("127.99.0.0/24", privileged).unwrap()
    }

    #[test]
    fn the_lowest_free_address_is_taken() {
        let network = loopback(true);
        let address = |n| IpAddr::from([127, 99, 0, n]);
        assert_eq!(network.allocate(&BTreeSet::new(), &BTreeSet::new()), Some(address(2)));
        let taken = BTreeSet::from([address(2), address(4)]);
        let in_use = BTreeSet::from([address(3)]);
        assert_eq!(network.allocate(&taken, &in_use), Some(address(5)));
        let all = (2..255).map(address).collect();
        assert_eq!(network.allocate(&all, &BTreeSet::new()), None);
    }

    #[test]
    fn low_ports_move_up_without_rights() {
        assert_eq!(loopback(false).client_port(80), 8080);
        assert_eq!(loopback(false).client_port(8000), 8000);
        assert_eq!(loopback(true).client_port(80), 80);
    }

    #[test]
    fn networks_are_checked() {
        for bad in ["", "10.0.0.0", "10.0.0.1/16", "8.8.0.0/16", "10.0.0.0/30", "10.0.0.0/x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("10.77.0.0/16").is_ok());
    }
}
