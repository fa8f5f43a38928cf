//! What only one container at a time can have: the ports of the host, a fixed address, a UDP port of the host.

use keel_model::{ContainerNetwork, Order, RolloutPolicy, Scale, Service};

use super::{Context, Lower};
use crate::diagnostic::{Code, Span};
use crate::value::Node;

impl Lower<'_> {
    /// Refuses replicas of what there can be only one of, and lets the old container end before the new one starts.
    pub(super) fn one_at_a_time(&mut self, context: &Context<'_>, service: &mut Service) {
        let Some(container) = &service.spec.container else { return };
        let many = matches!(service.scale, Scale::Replicated(2..) | Scale::Job(2..));
        // Who shares a network shares its ports.
        let mut alone = matches!(
            container.network,
            ContainerNetwork::Host | ContainerNetwork::Service(_) | ContainerNetwork::Container(_)
        );
        let ports_of_host =
            container.network == ContainerNetwork::Host && !service.ports.is_empty();
        if many && ports_of_host {
            let keys = ["network_mode", "networks"];
            let node = keys.iter().find_map(|key| context.node.get(key));
            let span = node.map_or(context.span, |node| &node.span).clone();
            let message =
                format!("the replicas of `{}` would all want its ports of the host", context.name);
            self.error(
                Code::Conflict,
                &span,
                message,
                "give it a network of its own, or one replica",
            );
        }
        for (key, node) in fixed_addresses(context) {
            alone = true;
            if many {
                let message =
                    format!("the replicas of `{}` would all want the same `{key}`", context.name);
                self.error(
                    Code::Conflict,
                    &node.span,
                    message,
                    "leave it out, or ask for one replica",
                );
            }
        }
        if container.publish_udp.iter().any(|port| port.published.is_some()) {
            alone = true;
            if many && let Some(node) = context.node.get("ports") {
                let message = format!(
                    "UDP ports of the host lead to one replica of `{}` only: the load balancer speaks TCP",
                    context.name
                );
                self.warn(&node.span, message);
            }
        }
        if alone {
            self.stop_first(context, "update_config", &mut service.rollout);
            if let Some(rollback) = &mut service.rollback {
                self.stop_first(context, "rollback_config", rollback);
            }
        }
    }

    fn stop_first(&mut self, context: &Context<'_>, key: &str, policy: &mut RolloutPolicy) {
        if policy.order == Some(Order::StartFirst)
            && let Some(span) = order_span(context, key)
        {
            let message = format!(
                "`start-first` has no effect: two containers of `{}` can't have the same address or port of the host",
                context.name
            );
            self.warn(&span, message);
        }
        policy.order = Some(Order::StopFirst);
    }
}

fn order_span(context: &Context<'_>, key: &str) -> Option<Span> {
    context.node.at(&["deploy", key, "order"]).map(|node| node.span.clone())
}

/// Addresses that the file gives to a container, with their keys.
fn fixed_addresses<'c>(context: &Context<'c>) -> Vec<(&'static str, &'c Node)> {
    let networks = context.node.get("networks").into_iter().flat_map(Node::entries);
    let mut found: Vec<(&'static str, &Node)> = Vec::new();
    let own = context.node.get("mac_address").map(|node| ("mac_address", node));
    for (_, network) in networks {
        for key in ["ipv4_address", "ipv6_address", "mac_address"] {
            found.extend(network.get(key).map(|node| (key, node)));
        }
    }
    found.extend(own);
    found.retain(|(_, node)| node.as_str().is_some_and(|text| !text.is_empty()));
    found
}
