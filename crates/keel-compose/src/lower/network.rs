//! How containers are connected: `network_mode`, the networks of a service, and those of the stack.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use keel_model::{Attachment, ContainerNetwork, Network, ServiceName, Subnet};

use super::container::text;
use super::ports::Ports;
use super::spec::{is_true, texts};
use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::print::number_of;
use crate::services::is_process;
use crate::value::Node;

/// The engine's network for containers that name none.
const BRIDGE: &str = "bridge";

/// Whether others can reach ports of a container that is connected so.
pub(super) fn has_ports(network: &ContainerNetwork) -> bool {
    match network {
        ContainerNetwork::Attached(attachments) => !attachments.is_empty(),
        ContainerNetwork::Host => true,
        ContainerNetwork::None | ContainerNetwork::Service(_) | ContainerNetwork::Container(_) => {
            false
        }
    }
}

impl Lower<'_> {
    pub(super) fn network(&mut self, context: &Context<'_>) -> ContainerNetwork {
        let Some(mode) = self.mode(context.node) else { return self.attachments(context) };
        match mode.as_str() {
            "host" => ContainerNetwork::Host,
            "none" => ContainerNetwork::None,
            "default" => attached_to(BRIDGE),
            _ => {
                if let Some(service) = mode.strip_prefix("service:") {
                    self.shared_network(context, service)
                } else if let Some(container) = mode.strip_prefix("container:") {
                    ContainerNetwork::Container(container.to_owned())
                } else {
                    // Docker takes any other word for the name of a network of the engine.
                    attached_to(&mode)
                }
            }
        }
    }

    /// `network_mode`, or an external network that stands for one.
    fn mode(&self, service: &Node) -> Option<String> {
        let mode = text(service, "network_mode");
        mode.or_else(|| {
            let keys = service.get("networks").into_iter().flat_map(Node::entries);
            let mut networks =
                keys.filter_map(|(key, _)| self.project.model.at(&["networks", key]));
            let network = networks.find(|network| {
                is_true(network.get("external"))
                    && matches!(network.text("name"), Some("host" | "none"))
            })?;
            text(network, "name")
        })
    }

    fn shared_network(&mut self, context: &Context<'_>, service: &str) -> ContainerNetwork {
        if let Some(node) = context.node.get("network_mode") {
            self.shares_with(context, "network_mode", node, service);
        }
        ServiceName::new(service).map_or(ContainerNetwork::None, ContainerNetwork::Service)
    }

    /// Only a container has something of its own that another container can share.
    pub(super) fn shares_with(
        &mut self,
        context: &Context<'_>,
        key: &str,
        node: &Node,
        service: &str,
    ) {
        let help = match self.project.service(service) {
            None => "name a service of this file",
            Some(other) if is_process(other) => {
                "write `host`: what a host process has is the host's"
            }
            Some(_) => return,
        };
        let message = format!("`{key}` of `{}` can't be that of `{service}`", context.name);
        self.error(Code::UndefinedReference, &node.span, message, help);
    }

    /// The networks of a service: the one with the highest priority first, as Docker Compose has it.
    fn attachments(&mut self, context: &Context<'_>) -> ContainerNetwork {
        let mut entries: Vec<(&str, &Node)> =
            context.node.get("networks").into_iter().flat_map(Node::entries).collect();
        if entries.is_empty() {
            return ContainerNetwork::None;
        }
        entries.sort_by_key(|(_, node)| Reverse(whole_of(node.get("priority")).unwrap_or(0)));
        let mut attachments = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let definition = self.project.model.at(&["networks", key]);
            let name = definition.and_then(|network| network.text("name")).unwrap_or(key);
            let external = definition.is_some_and(|network| is_true(network.get("external")));
            attachments.push(self.attachment(name, node, external));
        }
        self.one_mac_address(context, &attachments);
        ContainerNetwork::Attached(attachments)
    }

    /// The address of the service is that on its first network.
    fn one_mac_address(&mut self, context: &Context<'_>, attachments: &[Attachment]) {
        let own = context.node.get("mac_address");
        let first = attachments.first().and_then(|first| first.mac_address.as_deref());
        if let (Some(own), Some(first)) = (own, first)
            && own.as_str().is_some_and(|own| !own.is_empty() && own != first)
        {
            let message =
                format!("the first network of `{}` has another `mac_address`", context.name);
            self.error(Code::Conflict, &own.span, message, "keep the one of the network");
        }
    }

    fn attachment(&mut self, network: &str, node: &Node, external: bool) -> Attachment {
        // Inside the stack names lead to the load balancer; a name at the engine would lead past it.
        let aliases = if external { self.foreign_aliases(node) } else { Vec::new() };
        Attachment {
            network: network.to_owned(),
            aliases,
            ipv4: self.address(node.get("ipv4_address"), IpAddr::is_ipv4, "an IPv4 address"),
            ipv6: self.address(node.get("ipv6_address"), IpAddr::is_ipv6, "an IPv6 address"),
            link_local: node
                .get("link_local_ips")
                .map(Node::items)
                .unwrap_or_default()
                .iter()
                .filter_map(|item| self.address(Some(item), |_| true, "an IP address"))
                .collect(),
            mac_address: text(node, "mac_address"),
            interface: text(node, "interface_name"),
            gateway_priority: whole_of(node.get("gw_priority")),
            driver_opts: options(node.get("driver_opts")),
        }
    }

    /// Aliases for containers of others. A name of a service stays the platform's.
    fn foreign_aliases(&self, node: &Node) -> Vec<String> {
        let mut aliases = texts(node.get("aliases"));
        aliases.retain(|alias| self.project.service(alias).is_none());
        aliases
    }

    fn address(
        &mut self,
        node: Option<&Node>,
        fits: impl Fn(&IpAddr) -> bool,
        wanted: &str,
    ) -> Option<IpAddr> {
        let node = node?;
        let text = node.as_str().filter(|text| !text.is_empty())?;
        let address = text.parse().ok().filter(fits);
        if address.is_none() {
            let message = format!("`{text}` is not {wanted}");
            self.error(Code::InvalidValue, &node.span, message, "correct it, or leave it out");
        }
        address
    }

    /// Ports that a container of this mode can't have.
    pub(super) fn restrict_ports(&mut self, context: &Context<'_>, ports: &mut Ports) {
        let Some(mode) = self.mode(context.node).filter(|_| context.is_container()) else {
            return;
        };
        let Some(node) = context.node.get("ports").filter(|node| !node.items().is_empty()) else {
            return;
        };
        if mode == "host" {
            self.warn(
                &node.span,
                "no port is published: the container has the network of the host and its ports",
            );
        } else if mode == "none" {
            self.warn(&node.span, "no port is published: the container has no network");
        } else if mode.starts_with("service:") || mode.starts_with("container:") {
            let message = format!(
                "the service `{}` can't publish ports of the network of another",
                context.name
            );
            self.error(
                Code::Conflict,
                &node.span,
                message,
                "publish them at the service whose network it is",
            );
        } else {
            return;
        }
        ports.published.clear();
        ports.udp.clear();
    }

    /// The networks that containers of the stack are on, by the key that services use.
    pub(super) fn networks(&mut self) -> BTreeMap<String, Network> {
        let containers = self.project.active_services().filter(|(_, node)| !is_process(node));
        let used: BTreeSet<&str> = containers
            .filter(|(_, node)| self.mode(node).is_none())
            .flat_map(|(_, node)| node.get("networks").into_iter().flat_map(Node::entries))
            .map(|(key, _)| key)
            .collect();
        let mut networks = BTreeMap::new();
        for key in used {
            if let Some(node) = self.project.model.at(&["networks", key]) {
                networks.insert(key.to_owned(), self.stack_network(key, node));
            }
        }
        networks
    }

    fn stack_network(&mut self, key: &str, node: &Node) -> Network {
        let flag = |key: &str| {
            node.get(key).filter(|node| !node.is_null()).map(|node| is_true(Some(node)))
        };
        let ipam = node.get("ipam");
        let pools = ipam.and_then(|ipam| ipam.get("config")).map(Node::items).unwrap_or_default();
        Network {
            name: node.text("name").unwrap_or(key).to_owned(),
            external: is_true(node.get("external")),
            internal: is_true(node.get("internal")),
            attachable: is_true(node.get("attachable")),
            driver: text(node, "driver"),
            driver_opts: options(node.get("driver_opts")),
            ipv6: flag("enable_ipv6"),
            ipv4: flag("enable_ipv4"),
            ipam_driver: ipam.and_then(|ipam| text(ipam, "driver")),
            ipam_options: ipam.map(|ipam| options(ipam.get("options"))).unwrap_or_default(),
            subnets: pools.iter().filter_map(|pool| self.subnet(pool)).collect(),
            labels: self.labels(node.get("labels")),
        }
    }

    fn subnet(&mut self, pool: &Node) -> Option<Subnet> {
        for key in ["subnet", "ip_range"] {
            if let Some(node) = pool.get(key)
                && let Some(range) = node.as_str().filter(|text| !text.is_empty())
                && range.parse::<ipnet::IpNet>().is_err()
            {
                let message = format!("`{range}` is not a range of addresses");
                let help = "write for example 172.28.0.0/16";
                self.error(Code::InvalidValue, &node.span, message, help);
                return None;
            }
        }
        self.address(pool.get("gateway"), |_| true, "an IP address");
        Some(Subnet {
            subnet: text(pool, "subnet"),
            ip_range: text(pool, "ip_range"),
            gateway: text(pool, "gateway"),
            aux_addresses: options(pool.get("aux_addresses")),
        })
    }
}

fn attached_to(network: &str) -> ContainerNetwork {
    ContainerNetwork::Attached(vec![Attachment {
        network: network.to_owned(),
        ..Attachment::default()
    }])
}

#[allow(clippy::cast_possible_truncation)] // A float cast saturates.
fn whole_of(node: Option<&Node>) -> Option<i64> {
    node.and_then(|node| number_of(node).ok()).map(|number| number as i64)
}

/// Options: any scalar as text, nothing as an empty one.
pub(super) fn options(node: Option<&Node>) -> BTreeMap<String, String> {
    let entries = node.into_iter().flat_map(Node::entries);
    let text = |value: &Node| value.display().filter(|_| !value.is_null()).unwrap_or_default();
    entries.map(|(key, value)| (key.to_owned(), text(value))).collect()
}
