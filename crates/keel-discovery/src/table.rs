//! The endpoint table and the names that follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use keel_model::{Generation, InstanceId, ServiceName, ServicePort, StackName};

/// The domain that all names end with. `internal` is reserved for private use (ICANN resolution 2024.07.29.06).
pub const ZONE: &str = "keel.internal";

/// All services with their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Rises with every change; becomes the zone's serial number.
    pub generation: Generation,
    /// By stack and service.
    pub stacks: BTreeMap<StackName, BTreeMap<ServiceName, ServiceNames>>,
}

/// What one service is called and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNames {
    /// Its virtual address.
    pub vip: IpAddr,
    /// The ports that the load balancer serves at the virtual address; the first is the main one.
    pub ports: Vec<ServicePort>,
    /// Further names within the stack (network aliases, `container_name`).
    pub aliases: BTreeSet<String>,
    /// Its instances.
    pub instances: Vec<InstanceAddress>,
}

/// Where one instance listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceAddress {
    /// Which instance.
    pub id: InstanceId,
    /// Its address and its first port.
    pub address: SocketAddr,
    /// Whether it takes traffic.
    pub ready: bool,
}

/// The domain to search for the short names of a stack's services: `shop.keel.internal`.
#[must_use]
pub fn search_domain(stack: &StackName) -> String {
    format!("{stack}.{ZONE}")
}

/// The full name of a service: `cart.shop.keel.internal`.
#[must_use]
pub fn service_domain(stack: &StackName, service: &str) -> String {
    format!("{service}.{stack}.{ZONE}")
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;
    use keel_model::{Protocol, Transport};

    pub(crate) fn port(target: u16, name: Option<&str>, protocol: Protocol) -> ServicePort {
        let name = name.map(str::to_owned);
        ServicePort { target, name, transport: Transport::Tcp, protocol }
    }

    /// Two stacks; `cart` with two ports, an alias and three instances of which two are ready.
    pub(crate) fn table() -> Table {
        let stack = StackName::new("shop").unwrap();
        let name = |name: &str| ServiceName::new(name).unwrap();
        let instances = (1..=3).map(|n| InstanceAddress {
            id: InstanceId::numbered(&stack, &name("cart"), n),
            address: SocketAddr::new([10, 77, 128, u8::try_from(n).unwrap()].into(), 8080),
            ready: n != 2,
        });
        let cart = ServiceNames {
            vip: [10, 77, 0, 2].into(),
            ports: vec![
                port(8080, Some("http"), Protocol::Http),
                port(9000, Some("admin"), Protocol::Auto),
            ],
            aliases: ["basket", "not a valid/name\u{0}", "db"].map(str::to_owned).into(),
            instances: instances.collect(),
        };
        let db = ServiceNames {
            vip: [10, 77, 0, 3].into(),
            ports: vec![port(5432, None, Protocol::Tcp)],
            aliases: BTreeSet::new(),
            instances: Vec::new(),
        };
        let dotted = ServiceNames {
            vip: "fd77::4".parse().unwrap(),
            ports: vec![port(80, None, Protocol::Auto)],
            aliases: BTreeSet::new(),
            instances: Vec::new(),
        };
        let quiet = ServiceNames {
            vip: [10, 77, 0, 5].into(),
            ports: Vec::new(),
            aliases: BTreeSet::new(),
            instances: Vec::new(),
        };
        let shop = BTreeMap::from([
            (name("cart"), cart),
            (name("db"), db.clone()),
            (name("Web.api-1"), dotted),
            (name("worker"), quiet),
        ]);
        let other =
            BTreeMap::from([(name("db"), ServiceNames { vip: [10, 77, 1, 1].into(), ..db })]);
        let stacks = [(stack, shop), (StackName::new("blog").unwrap(), other)].into();
        Table { generation: Generation(7), stacks }
    }
}
