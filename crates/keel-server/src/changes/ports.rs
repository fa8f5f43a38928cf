//! Host ports: who has them, and which are chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use keel_model::{Service, ServiceName, StackName, StackRecord};

use crate::error::Refusal;
use crate::sockets::{self, Own};
use crate::world::{ServiceAddress, World};

/// Host ports that are chosen for `ports:` entries without one.
const CHOSEN_PORTS: std::ops::Range<u16> = 32_768..40_000;

/// Refuses host ports that somebody else has. Those that are `held` by containers of the stack that were taken over are no
/// hindrance: the proxy listens beside them.
pub(super) fn check(
    world: &World,
    wanted: &StackRecord,
    own: &Own,
    held: &BTreeSet<u16>,
) -> Result<(), Refusal> {
    let mut seen: BTreeMap<(Option<IpAddr>, u16), (StackName, ServiceName)> = BTreeMap::new();
    let others = world.stacks.iter().filter(|(name, _)| **name != wanted.stack.name);
    for (name, stack) in others {
        for (service, definition) in
            stack.record.iter().flat_map(|record| &record.value.stack.services)
        {
            for port in &definition.publish {
                if let Some(published) = port.published {
                    let owner = (name.clone(), service.clone());
                    seen.insert((port.ip, published), owner);
                }
            }
        }
    }
    for (service, definition) in &wanted.stack.services {
        for port in &definition.publish {
            let Some(published) = port.published else { continue };
            let clash = seen.iter().find(|((ip, other), _)| {
                *other == published && (ip.is_none() || port.ip.is_none() || *ip == port.ip)
            });
            if let Some((_, (stack, other))) = clash {
                return Err(port_in_use(
                    service,
                    published,
                    &format!("service `{other}` of stack `{stack}`"),
                ));
            }
            let ip = port.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let holder = || sockets::holder(SocketAddr::new(ip, published), own);
            if let Some(holder) = (!held.contains(&published)).then(holder).flatten() {
                return Err(port_in_use(service, published, &holder));
            }
            let owner = (wanted.stack.name.clone(), service.clone());
            seen.insert((port.ip, published), owner);
        }
    }
    Ok(())
}

fn port_in_use(service: &ServiceName, port: u16, holder: &str) -> Refusal {
    Refusal::new(
        "port_in_use",
        format!("service `{service}` can't publish port {port}: it is in use by {holder}"),
    )
    .hint("stop that program, or publish another port (`ports: [\"8081:80\"]`)")
}

/// Picks a host port for each `ports:` entry that names none; what was picked before stays.
pub(super) fn choose(
    service: &Service,
    address: &mut ServiceAddress,
    taken: &mut BTreeSet<u16>,
) -> Result<(), Refusal> {
    for port in service.publish.iter().filter(|port| port.published.is_none()) {
        if address.chosen.contains_key(&port.target) {
            continue;
        }
        address.chosen.insert(port.target, free(taken)?);
    }
    Ok(())
}

/// A host port that nobody has; it is taken then.
pub(super) fn free(taken: &mut BTreeSet<u16>) -> Result<u16, Refusal> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let free = CHOSEN_PORTS.clone().find(|candidate| {
        !taken.contains(candidate) && std::net::TcpListener::bind((any, *candidate)).is_ok()
    });
    let free =
        free.ok_or_else(|| Refusal::new("port_in_use", "no host port is free to publish on"))?;
    taken.insert(free);
    Ok(free)
}
