//! From the world and the board to listeners, tables and clusters. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use keel_model::{
    Endpoint, EndpointState, Generation, Goal, InstanceId, NodeName, Phase, Scale, Service,
    ServiceName, Stack, StackName, TrafficPolicy, Transport, ZoneName, are_apart,
};
use keel_route::snapshot::{Cluster, ClusterId, Listener, Snapshot};

use super::{Credentials, ProxyState, tables};
use crate::board::BoardView;
use crate::detour::{Ways, divert};
use crate::network::Network;
use crate::world::{StackState, World};

/// The name of the instances behind one port of one service.
pub fn cluster_id(stack: &StackName, service: &ServiceName, port: u16) -> ClusterId {
    format!("{stack}/{service}:{port}")
}

/// What a snapshot is made from.
pub struct Sources<'s> {
    /// What is stored.
    pub world: &'s World,
    /// What is seen.
    pub board: &'s BoardView,
    /// This machine.
    pub node: &'s NodeName,
    /// The zone that it is in, if it is known.
    pub zone: Option<&'s ZoneName>,
    /// Virtual addresses.
    pub network: &'s Network,
    /// Certificates and proofs.
    pub credentials: &'s Credentials,
    /// This machine has IPv6.
    pub ipv6: bool,
    /// Host ports that the proxy can't open yet.
    pub ways: &'s Ways,
}

/// Everything that the proxy needs to know.
pub fn snapshot(sources: &Sources<'_>, generation: Generation) -> Snapshot {
    let Sources { world, board, network, credentials, ipv6, .. } = *sources;
    let mut snapshot = Snapshot {
        generation,
        certificates: credentials.certificates(),
        challenges: credentials.challenges(),
        zone: sources.zone.map(ToString::to_string),
        ..Snapshot::default()
    };
    let mut entrypoints = Vec::new();
    let mut bound = BTreeSet::new();
    for (name, stack) in &world.stacks {
        let Some(record) = &stack.record else { continue };
        for (service_name, service) in &record.value.stack.services {
            for cluster in clusters(name, stack, board, service_name, service) {
                snapshot.clusters.insert(cluster.0, cluster.1);
            }
            let refuses = apart(&record.value.stack, service_name, service);
            let mut own = listeners(name, stack, service_name, service, network, ipv6);
            divert(&mut own, sources.ways);
            for mut listener in own {
                if !listener.published {
                    listener.refuses.clone_from(&refuses);
                }
                if bound.insert(listener.bind) {
                    snapshot.listeners.push(listener);
                }
            }
        }
        let definition = &record.value.stack;
        tables::add(&mut snapshot.tables, &mut entrypoints, name, definition, ipv6);
        snapshot.callers.extend(callers(name, stack, board));
        // A service that was taken out of the file has requests in flight until its instances are drained.
        for (service_name, service) in orphans(stack) {
            snapshot.clusters.extend(clusters(name, stack, board, &service_name, &service));
        }
    }
    if let Some(zone) = sources.zone {
        set_zones(&mut snapshot, world, sources.node, zone);
    }
    tables::settle_protocols(&mut entrypoints, &snapshot.tables);
    snapshot.listeners.extend(entrypoints.into_iter().filter(|l| bound.insert(l.bind)));
    snapshot
}

/// The services of a stack that share no network with one of them, as callers are named.
fn apart(stack: &Stack, name: &ServiceName, service: &Service) -> BTreeSet<String> {
    let others = stack.services.iter().filter(|(other, _)| *other != name);
    let apart = others.filter(|(_, other)| are_apart(&service.spec, &other.spec));
    apart.map(|(other, _)| format!("{}/{other}", stack.name)).collect()
}

/// Notes the zone of the endpoints on this machine; those of others are not known.
fn set_zones(snapshot: &mut Snapshot, world: &World, node: &NodeName, zone: &ZoneName) {
    let all = world.stacks.values().flat_map(|stack| stack.assignments.values());
    let here: BTreeSet<&InstanceId> =
        all.map(|stored| &stored.value).filter(|a| a.node == *node).map(|a| &a.id).collect();
    for cluster in snapshot.clusters.values_mut() {
        let ids = cluster.endpoints.iter().map(|endpoint| &endpoint.instance);
        let ids = ids.filter(|id| here.contains(id));
        cluster.zones = ids.map(|id| (id.clone(), zone.to_string())).collect();
    }
}

/// Instances that call from an address of their own.
fn callers(name: &StackName, stack: &StackState, board: &BoardView) -> BTreeMap<IpAddr, String> {
    stack
        .assignments
        .values()
        .filter_map(|assignment| {
            let status = board.statuses.get(&assignment.value.id)?;
            let running = status.phase == Phase::Running || status.phase == Phase::Stopping;
            let address = status.address.filter(|_| running)?;
            Some((address, format!("{name}/{}", assignment.value.service)))
        })
        .collect()
}

fn orphans(stack: &StackState) -> BTreeMap<ServiceName, Service> {
    let known = stack.record.iter().flat_map(|record| record.value.stack.services.keys());
    let known: BTreeSet<&ServiceName> = known.collect();
    stack
        .assignments
        .values()
        .filter(|stored| !known.contains(&stored.value.service))
        .filter_map(|stored| {
            let definition = stack.definition(&stored.value.service, &stored.value.revision)?;
            Some((stored.value.service.clone(), definition))
        })
        .collect()
}

fn clusters(
    stack_name: &StackName,
    stack: &StackState,
    board: &BoardView,
    name: &ServiceName,
    service: &Service,
) -> BTreeMap<ClusterId, Cluster> {
    let record = stack.record.as_ref();
    let removing = record.is_some_and(|record| record.value.removing);
    let stopped = record.is_some_and(|r| r.value.intents.get(name).is_some_and(|i| i.stopped));
    let known = record.is_some_and(|record| record.value.stack.services.contains_key(name));
    let wanted = !matches!(service.scale, Scale::Replicated(0) | Scale::Job(0));
    let expected = known && wanted && !stopped && !removing;
    let policy =
        (service.traffic != TrafficPolicy::default()).then(|| Box::new(service.traffic.clone()));
    tcp_ports(service)
        .map(|target| {
            let endpoints = stack
                .assignments
                .values()
                .filter(|assignment| assignment.value.service == *name)
                .filter_map(|assignment| {
                    let status = board.statuses.get(&assignment.value.id)?;
                    let state = match assignment.value.goal {
                        Goal::Run if status.ready => EndpointState::Ready,
                        Goal::Drain => EndpointState::Draining,
                        _ => return None,
                    };
                    let running = status.phase == Phase::Running;
                    let binding = status.ports.iter().find(|port| port.target == target)?;
                    running.then(|| Endpoint {
                        instance: assignment.value.id.clone(),
                        address: binding.address,
                        state,
                    })
                })
                .collect();
            (
                cluster_id(stack_name, name, target),
                Cluster {
                    endpoints,
                    expected,
                    protocol: protocol(service, target),
                    policy: policy.clone(),
                    ..Cluster::default()
                },
            )
        })
        .collect()
}

/// Whether the proxy, as far as it is there, serves the endpoints that a service has now. It may be behind the board:
/// an engine that has to read its configuration anew takes a moment.
pub fn is_served(
    proxy: &ProxyState,
    stack_name: &StackName,
    stack: &StackState,
    board: &BoardView,
    name: &ServiceName,
    service: &Service,
) -> bool {
    if proxy.pid.is_none() {
        return true;
    }
    let Some(told) = proxy.snapshot.as_ref().filter(|told| proxy.acknowledged >= told.generation)
    else {
        return false;
    };
    clusters(stack_name, stack, board, name, service)
        .iter()
        .all(|(id, now)| told.clusters.get(id).is_some_and(|t| t.endpoints == now.endpoints))
}

fn protocol(service: &Service, target: u16) -> keel_model::Protocol {
    let port = service.ports.iter().find(|port| port.target == target);
    port.map(|port| port.protocol).unwrap_or_default()
}

/// The ports of a service that the load balancer serves, in order.
pub fn tcp_ports(service: &Service) -> impl Iterator<Item = u16> {
    service.ports.iter().filter(|port| port.transport == Transport::Tcp).map(|port| port.target)
}

fn listeners(
    stack_name: &StackName,
    stack: &StackState,
    name: &ServiceName,
    service: &Service,
    network: &Network,
    ipv6: bool,
) -> Vec<Listener> {
    let Some(address) = stack.addresses.get(name) else { return Vec::new() };
    let mut listeners = Vec::new();
    for port in service.ports.iter().filter(|port| port.transport == Transport::Tcp) {
        listeners.push(Listener {
            bind: SocketAddr::new(address.address, network.client_port(port.target)),
            protocol: port.protocol,
            cluster: cluster_id(stack_name, name, port.target),
            ..Listener::default()
        });
    }
    for port in service.publish.iter().filter(|port| port.transport == Transport::Tcp) {
        let chosen = address.chosen.get(&port.target).copied();
        let Some(published) = port.published.or(chosen) else { continue };
        let addresses = match port.ip {
            Some(ip) => vec![ip],
            None if ipv6 => {
                vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
            }
            None => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        };
        listeners.extend(addresses.into_iter().map(|ip| Listener {
            bind: SocketAddr::new(ip, published),
            protocol: port.protocol,
            cluster: cluster_id(stack_name, name, port.target),
            published: true,
            ..Listener::default()
        }));
    }
    listeners
}

/// Which instances can be stopped: the proxy has acknowledged a generation in which they take no new requests
/// (`spared`: since which generation), and counts nothing in flight there.
pub fn drained(
    spared: &BTreeMap<InstanceId, Generation>,
    acknowledged: Generation,
    in_flight: &BTreeMap<InstanceId, (Generation, u64)>,
) -> BTreeSet<InstanceId> {
    spared
        .iter()
        .filter(|(id, since)| {
            acknowledged >= **since
                && in_flight.get(*id).is_some_and(|(at, count)| at >= since && *count == 0)
        })
        .map(|(id, _)| id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_drained_once_acknowledged_and_idle() {
        let id = InstanceId::new("shop-cart-1").unwrap();
        let spared = BTreeMap::from([(id.clone(), Generation(5))]);
        let counted = |at, count| BTreeMap::from([(id.clone(), (Generation(at), count))]);
        let drained = |acknowledged, in_flight| {
            !super::drained(&spared, Generation(acknowledged), &in_flight).is_empty()
        };
        assert!(!drained(4, counted(5, 0)), "not acknowledged");
        assert!(!drained(5, BTreeMap::new()), "nothing heard of what is in flight");
        assert!(!drained(5, counted(4, 0)), "counted before it was spared");
        assert!(!drained(5, counted(5, 1)), "busy");
        assert!(drained(5, counted(5, 0)));
        assert!(drained(9, counted(7, 0)));
    }
}
