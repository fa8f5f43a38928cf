//! The table as a DNS zone: which names exist, and what each holds.
//!
//! Built once per table, then only read. A name exists when it or a name below it holds something (so an empty
//! non-terminal is "no data", not "no such name"). Where names collide, services come before aliases, aliases before
//! `tasks` and instance names.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, RecordType};
use keel_model::{ServicePort, Transport};

use crate::table::{ServiceNames, Table, ZONE};

/// How long, in seconds, anyone may remember an answer. Virtual addresses hardly ever change, instance addresses do.
pub(crate) const TTL: u32 = 5;
/// How long, in seconds, anyone may remember that there was none. A service that is just being made is asked for
/// again soon.
pub(crate) const NEGATIVE_TTL: u32 = 1;

/// What a name holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    addresses: Vec<IpAddr>,
    services: Vec<SRV>,
    pointers: Vec<Name>,
}

/// The answer to one question within the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The records, and addresses of the names that they mention.
    Found { records: Vec<RData>, extra: Vec<(Name, RData)> },
    /// The name exists but holds nothing of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Not a name of this zone.
    Foreign,
}

/// All names, lower-cased and without the final dot.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    nodes: HashMap<String, Node>,
    serial: u32,
}

impl Zone {
    pub(crate) fn new(table: &Table) -> Self {
        // Serial numbers wrap (RFC 1982).
        let serial = u32::try_from(table.generation.0 % (1 << 32)).unwrap_or_default();
        let mut zone = Self { nodes: HashMap::new(), serial };
        zone.exists(ZONE);
        for (stack, services) in &table.stacks {
            let domain = format!("{stack}.{ZONE}");
            for (service, names) in services {
                zone.add_service(&format!("{service}.{domain}"), names);
            }
            let mut aliases: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for names in services.values() {
                for alias in &names.aliases {
                    aliases.entry(alias.to_ascii_lowercase()).or_default().push(names.vip);
                }
            }
            for (alias, addresses) in aliases {
                zone.add_addresses(&format!("{alias}.{domain}"), addresses);
            }
            for (service, names) in services {
                zone.add_instances(&format!("{service}.{domain}"), names);
            }
        }
        zone
    }

    fn add_service(&mut self, domain: &str, names: &ServiceNames) {
        let Some(target) = to_name(domain) else { return };
        self.add_addresses(domain, vec![names.vip]);
        let record = |port: &ServicePort| SRV::new(0, 0, port.target, target.clone());
        if let Some(node) = self.exists(domain) {
            node.services = names.ports.iter().map(record).collect();
        }
        for port in &names.ports {
            let transport = match port.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            if let Some(name) = &port.name
                && let Some(node) = self.exists(&format!("_{name}._{transport}.{domain}"))
            {
                node.services.push(record(port));
            }
        }
        self.add_pointer(names.vip, target);
    }

    fn add_instances(&mut self, domain: &str, names: &ServiceNames) {
        for instance in &names.instances {
            let name = format!("{}.{domain}", instance.id);
            let address = instance.address.ip();
            self.add_addresses(&name, vec![address]);
            if !address.is_loopback()
                && let Some(name) = to_name(&name)
            {
                self.add_pointer(address, name);
            }
        }
        let ready = names.instances.iter().filter(|instance| instance.ready);
        let mut addresses: Vec<_> = ready.map(|instance| instance.address.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.add_addresses(&format!("tasks.{domain}"), addresses);
    }

    /// Sets the addresses of a name that has none yet.
    fn add_addresses(&mut self, domain: &str, addresses: Vec<IpAddr>) {
        if let Some(node) = self.exists(domain)
            && node.addresses.is_empty()
        {
            node.addresses = addresses;
        }
    }

    fn add_pointer(&mut self, address: IpAddr, target: Name) {
        let name = Name::from(address).to_ascii();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let node = self.nodes.entry(name).or_default();
        if node.pointers.is_empty() {
            node.pointers.push(target);
        }
    }

    /// Makes a name and those above it exist; none when it can't be a name in DNS.
    fn exists(&mut self, domain: &str) -> Option<&mut Node> {
        to_name(domain)?;
        let domain = domain.to_ascii_lowercase();
        let mut above = domain.as_str();
        while let Some((_, rest)) = above.split_once('.')
            && rest.len() >= ZONE.len()
        {
            self.nodes.entry(rest.to_owned()).or_default();
            above = rest;
        }
        Some(self.nodes.entry(domain).or_default())
    }

    /// Answers one question. `turn` varies the order of several addresses.
    pub(crate) fn look_up(&self, name: &Name, kind: RecordType, turn: u16) -> Lookup {
        let Some(key) = key(name) else { return Lookup::NoName };
        let inside = key == ZONE || key.ends_with(&format!(".{ZONE}"));
        let node = match self.nodes.get(&key) {
            Some(node) => node,
            None if inside => return Lookup::NoName,
            None => return Lookup::Foreign,
        };
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(RData::A(A(*address))),
            IpAddr::V6(_) => None,
        };
        let v6 = |address: &IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(RData::AAAA(AAAA(*address))),
        };
        let mut extra = Vec::new();
        let mut records: Vec<RData> = match kind {
            RecordType::A => node.addresses.iter().filter_map(v4).collect(),
            RecordType::AAAA => node.addresses.iter().filter_map(v6).collect(),
            // A few records instead of all of them are allowed (RFC 8482).
            RecordType::ANY => {
                node.addresses.iter().filter_map(|a| v4(a).or_else(|| v6(a))).collect()
            }
            RecordType::PTR => node.pointers.iter().cloned().map(|p| RData::PTR(PTR(p))).collect(),
            RecordType::SRV => {
                extra = self.targets(&node.services);
                node.services.iter().cloned().map(RData::SRV).collect()
            }
            RecordType::SOA if key == ZONE => vec![RData::SOA(self.authority())],
            _ => Vec::new(),
        };
        if records.is_empty() {
            return Lookup::NoData;
        }
        let first = usize::from(turn) % records.len();
        records.rotate_left(first);
        Lookup::Found { records, extra }
    }

    fn targets(&self, services: &[SRV]) -> Vec<(Name, RData)> {
        let mut extra = Vec::new();
        // All records of one name lead to the same service.
        if let Some(name) = services.first().map(|srv| &srv.target) {
            let node = key(name).and_then(|key| self.nodes.get(&key));
            for address in node.into_iter().flat_map(|node| &node.addresses) {
                extra.push((name.clone(), RData::from(*address)));
            }
        }
        extra
    }

    /// The start of authority, which negative answers carry.
    pub(crate) fn authority(&self) -> SOA {
        let name = |label: &str| to_name(&format!("{label}.{ZONE}")).unwrap_or_default();
        let (refresh, retry, expire) = (60, 60, 60);
        let negative_ttl = NEGATIVE_TTL;
        SOA::new(name("ns"), name("admin"), self.serial, refresh, retry, expire, negative_ttl)
    }
}

/// The zone's own name.
pub(crate) fn apex() -> Name {
    to_name(ZONE).unwrap_or_default()
}

/// How a name is looked up; none when no name of ours can equal it.
fn key(name: &Name) -> Option<String> {
    let mut key = String::new();
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok()?;
        if label.contains('.') {
            return None;
        }
        if !key.is_empty() {
            key.push('.');
        }
        key.push_str(&label.to_ascii_lowercase());
    }
    Some(key)
}

/// The name in the form of the wire; none when a label is empty or too long, or the whole is.
fn to_name(domain: &str) -> Option<Name> {
    let mut name = Name::from_labels(domain.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::fixture;

    fn look(name: &str, kind: RecordType) -> Lookup {
        Zone::new(&fixture::table()).look_up(&to_name(name).unwrap(), kind, 0)
    }

    fn found(name: &str, kind: RecordType) -> Vec<String> {
        match look(name, kind) {
            Lookup::Found { records, .. } => records.iter().map(ToString::to_string).collect(),
            other => panic!("{name} {kind}: {other:?}"),
        }
    }

    #[test]
    fn services_have_their_virtual_address() {
        assert_eq!(found("cart.shop.keel.internal", RecordType::A), ["10.77.0.2"]);
        assert_eq!(found("CART.Shop.keel.INTERNAL", RecordType::A), ["10.77.0.2"]);
        assert_eq!(found("db.blog.keel.internal", RecordType::A), ["10.77.1.1"]);
        assert_eq!(found("web.api-1.shop.keel.internal", RecordType::AAAA), ["fd77::4"]);
        assert_eq!(found("web.api-1.shop.keel.internal", RecordType::ANY), ["fd77::4"]);
    }

    #[test]
    fn aliases_lead_to_their_service_but_never_hide_one() {
        assert_eq!(found("basket.shop.keel.internal", RecordType::A), ["10.77.0.2"]);
        assert_eq!(found("db.shop.keel.internal", RecordType::A), ["10.77.0.3"]);
    }

    #[test]
    fn instances_and_tasks_have_their_own_addresses() {
        assert_eq!(found("shop-cart-2.cart.shop.keel.internal", RecordType::A), ["10.77.128.2"]);
        let tasks = found("tasks.cart.shop.keel.internal", RecordType::A);
        assert_eq!(tasks, ["10.77.128.1", "10.77.128.3"]);
        assert_eq!(look("tasks.db.shop.keel.internal", RecordType::A), Lookup::NoData);
    }

    #[test]
    fn ports_are_found_by_srv() {
        let all = found("cart.shop.keel.internal", RecordType::SRV);
        assert_eq!(all, ["0 0 8080 cart.shop.keel.internal.", "0 0 9000 cart.shop.keel.internal."]);
        let http = found("_http._tcp.cart.shop.keel.internal", RecordType::SRV);
        assert_eq!(http, ["0 0 8080 cart.shop.keel.internal."]);
        assert_eq!(look("_http._udp.cart.shop.keel.internal", RecordType::SRV), Lookup::NoName);
        let Lookup::Found { extra, .. } =
            look("_admin._tcp.cart.shop.keel.internal", RecordType::SRV)
        else {
            panic!("there is a port named admin")
        };
        assert_eq!(extra[0].1.to_string(), "10.77.0.2");
    }

    #[test]
    fn addresses_have_names() {
        assert_eq!(found("2.0.77.10.in-addr.arpa", RecordType::PTR), ["cart.shop.keel.internal."]);
        let instance = found("3.128.77.10.in-addr.arpa", RecordType::PTR);
        assert_eq!(instance, ["shop-cart-3.cart.shop.keel.internal."]);
        assert_eq!(look("9.9.9.9.in-addr.arpa", RecordType::PTR), Lookup::Foreign);
    }

    #[test]
    fn absent_names_and_absent_types_differ() {
        assert_eq!(look("cart.shop.keel.internal", RecordType::AAAA), Lookup::NoData);
        assert_eq!(look("cart.shop.keel.internal", RecordType::MX), Lookup::NoData);
        for above in ["keel.internal", "shop.keel.internal", "_tcp.cart.shop.keel.internal"] {
            assert_eq!(look(above, RecordType::A), Lookup::NoData, "{above}");
        }
        assert_eq!(look("nothing.shop.keel.internal", RecordType::A), Lookup::NoName);
        assert_eq!(look("cart.nothing.keel.internal", RecordType::A), Lookup::NoName);
        for foreign in ["example.org", "internal", "xkeel.internal", "cart"] {
            assert_eq!(look(foreign, RecordType::A), Lookup::Foreign, "{foreign}");
        }
        assert_eq!(found("keel.internal", RecordType::SOA).len(), 1);
    }

    #[test]
    fn a_dot_inside_a_label_is_no_separator() {
        let labels: [&[u8]; 3] = [b"cart.shop", b"keel", b"internal"];
        let name = Name::from_labels(labels).unwrap();
        let zone = Zone::new(&fixture::table());
        assert_eq!(zone.look_up(&name, RecordType::A, 0), Lookup::NoName);
    }

    #[test]
    fn several_addresses_take_turns() {
        let zone = Zone::new(&fixture::table());
        let name = to_name("tasks.cart.shop.keel.internal").unwrap();
        let firsts: Vec<_> = (0..4)
            .map(|turn| match zone.look_up(&name, RecordType::A, turn) {
                Lookup::Found { records, .. } => records[0].to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(firsts, ["10.77.128.1", "10.77.128.3", "10.77.128.1", "10.77.128.3"]);
    }
}
