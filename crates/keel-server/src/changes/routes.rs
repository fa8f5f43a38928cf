//! Routes and entrypoints: whether they lead somewhere, and whether all stacks can have theirs at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use keel_model::claims::{Claim, claims, describe};
use keel_model::{
    Entrypoint, EntrypointName, Route, RouteKind, Service, ServiceName, Stack, StackName,
    StackRecord,
};
use keel_route::validate::validate_route;

use crate::error::Refusal;
use crate::sockets::{self, Own};
use crate::traffic::{default_priority, tcp_ports};
use crate::world::World;

/// Most routes of all stacks together.
const MAX_ROUTES: usize = 20_000;
/// Problems of a route that are told at once.
const MAX_PROBLEMS: usize = 3;
/// Characters that are shown of a name.
const MAX_SHOWN: usize = 80;

/// Refuses routes that lead nowhere, and what somebody else has already. Looks at no socket.
pub(super) fn check(world: &World, wanted: &StackRecord) -> Result<(), Refusal> {
    check_references(&wanted.stack)?;
    let others: Vec<&Stack> = world
        .stacks
        .iter()
        .filter(|(name, _)| **name != wanted.stack.name)
        .filter_map(|(_, stack)| stack.record.as_ref())
        .filter(|record| !record.value.removing)
        .map(|record| &record.value.stack)
        .collect();
    check_entrypoints(&wanted.stack, &others)?;
    check_published(&wanted.stack, &others)?;
    check_claims(&wanted.stack, &others)
}

/// Refuses entrypoints whose port another program has. What is open already was ours before.
pub(super) fn check_sockets(
    old: Option<&StackRecord>,
    wanted: &Stack,
    own: &Own,
) -> Result<(), Refusal> {
    for (name, entrypoint) in &wanted.entrypoints {
        let before = old.and_then(|old| old.stack.entrypoints.get(name));
        if before.is_some_and(|before| before.bind == entrypoint.bind) {
            continue;
        }
        if let Some(holder) = sockets::holder(entrypoint.bind, own) {
            return Err(Refusal::new(
                "port_in_use",
                format!("entrypoint `{name}` can't listen on {}: it is in use by {holder}", entrypoint.bind),
            )
            .hint(format!("stop that program, or choose another port: `x-keel: {{entrypoints: {{{name}: \":8080\"}}}}`")));
        }
    }
    Ok(())
}

fn invalid(message: String, hint: &str) -> Refusal {
    Refusal::new("invalid", message).hint(hint)
}

/// Every route must be one that the proxy can use, and every name that it has one of its stack. The command line
/// has checked what it read from files; others send what they like.
fn check_references(stack: &Stack) -> Result<(), Refusal> {
    let mut names: BTreeMap<&str, &ServiceName> = BTreeMap::new();
    for (service, definition) in &stack.services {
        for route in &definition.routes {
            if let Some(other) = names.insert(&route.name, service) {
                let message = format!(
                    "services `{other}` and `{service}` both have a route `{}`",
                    route.name
                );
                return Err(invalid(message, "give one of them another `name`"));
            }
            let problems = validate_route(route);
            if !problems.is_empty() {
                let message = format!(
                    "route `{}` of service `{service}` can't be used: {}",
                    shown(&route.name),
                    listed(&problems)
                );
                return Err(Refusal::new("invalid", message));
            }
            let unknown =
                route.entrypoints.iter().find(|name| !stack.entrypoints.contains_key(*name));
            if let Some(unknown) = unknown {
                let message = format!(
                    "route `{}` of service `{service}`: there is no entrypoint `{unknown}`",
                    route.name
                );
                return Err(invalid(message, "define it in the top-level `x-keel.entrypoints`"));
            }
            check_port(route, service, definition, route.port)?;
            for part in &route.split {
                let Some(other) = stack.services.get(&part.service) else {
                    let message = format!(
                        "route `{}` of service `{service}` gives a share to service `{}`, which stack `{}` does not have",
                        route.name, part.service, stack.name
                    );
                    return Err(invalid(
                        message,
                        "start that service too, or take it out of `split`",
                    ));
                };
                check_port(route, &part.service, other, part.port)?;
            }
        }
    }
    Ok(())
}

/// A name that somebody made up, in an error message.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

/// The first problems of many.
fn listed(problems: &[String]) -> String {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    let mut text = problems[..problems.len() - more].join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

fn check_port(
    route: &Route,
    service: &ServiceName,
    definition: &Service,
    port: Option<u16>,
) -> Result<(), Refusal> {
    let mut ports = tcp_ports(definition);
    let found = match port {
        Some(port) => ports.any(|known| known == port),
        None => ports.next().is_some(),
    };
    if found {
        return Ok(());
    }
    let wanted = port.map_or_else(|| "no port".to_owned(), |port| format!("no port {port}"));
    let message =
        format!("route `{}` leads to service `{service}`, which has {wanted}", route.name);
    Err(invalid(message, "name the port under `expose` or `ports`"))
}

/// Two entrypoints at one port must be the same address, used in the same way.
fn check_entrypoints(wanted: &Stack, others: &[&Stack]) -> Result<(), Refusal> {
    let mine = || wanted.entrypoints.iter();
    for (index, (name, entrypoint)) in mine().enumerate() {
        if let Some((other, _)) =
            mine().skip(index + 1).find(|(_, other)| overlap(other, entrypoint))
        {
            let message = format!(
                "entrypoints `{name}` and `{other}` both want port {}",
                entrypoint.bind.port()
            );
            return Err(invalid(message, "give one of them another port"));
        }
        for stack in others {
            for (other_name, other) in
                stack.entrypoints.iter().filter(|(_, other)| overlap(other, entrypoint))
            {
                let difference = difference(wanted, entrypoint, stack, other);
                if let Some(difference) = difference {
                    let message = format!(
                        "entrypoint `{name}` ({}) and entrypoint `{other_name}` ({}) of stack `{}` are at the same port, but {difference}",
                        entrypoint.bind, other.bind, stack.name
                    );
                    return Err(Refusal::new("route_taken", message)
                        .hint("describe both alike, or give one another port"));
                }
            }
        }
    }
    Ok(())
}

fn overlap(a: &Entrypoint, b: &Entrypoint) -> bool {
    a.bind.port() == b.bind.port() && same_host(a.bind.ip(), b.bind.ip())
}

fn same_host(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}

/// In what two entrypoints that overlap differ so that they can't be one.
fn difference(
    stack: &Stack,
    entrypoint: &Entrypoint,
    other_stack: &Stack,
    other: &Entrypoint,
) -> Option<&'static str> {
    let port = |stack: &Stack, entrypoint: &Entrypoint| {
        let target = entrypoint.redirect_to.as_ref().and_then(|to| stack.entrypoints.get(to));
        target.map(|target| target.bind.port())
    };
    let (to, other_to) = (port(stack, entrypoint), port(other_stack, other));
    if entrypoint.bind != other.bind {
        Some("their addresses differ")
    } else if entrypoint.tls != other.tls {
        Some("only one of them speaks TLS")
    } else if entrypoint.min_tls != other.min_tls || entrypoint.client_auth != other.client_auth {
        Some("their TLS differs (`min_tls`, `client_auth`)")
    } else if entrypoint.accept_proxy_from != other.accept_proxy_from {
        Some("they believe the PROXY protocol of different senders")
    } else if to.is_some() && other_to.is_some() && to != other_to {
        Some("they redirect to different ports")
    } else {
        None
    }
}

/// A published port leads to one service; an entrypoint can't be at the same port.
fn check_published(wanted: &Stack, others: &[&Stack]) -> Result<(), Refusal> {
    let entrypoints = |stack: &Stack| -> Vec<(StackName, EntrypointName, SocketAddr)> {
        let all = stack.entrypoints.iter();
        all.map(|(name, e)| (stack.name.clone(), name.clone(), e.bind)).collect()
    };
    let published = |stack: &Stack| -> Vec<(StackName, ServiceName, Option<IpAddr>, u16)> {
        let services = stack.services.iter();
        let ports =
            services.flat_map(|(name, service)| service.publish.iter().map(move |p| (name, p)));
        ports
            .filter_map(|(name, p)| Some((stack.name.clone(), name.clone(), p.ip, p.published?)))
            .collect()
    };
    let all = || others.iter().copied().chain([wanted]);
    let mine = entrypoints(wanted);
    let theirs: Vec<_> = all().flat_map(entrypoints).collect();
    let with_mine =
        all().flat_map(published).flat_map(|p| mine.iter().map(move |e| (p.clone(), e.clone())));
    let with_theirs = published(wanted)
        .into_iter()
        .flat_map(|p| theirs.iter().map(move |e| (p.clone(), e.clone())));
    for ((p_stack, service, ip, port), (e_stack, entrypoint, bind)) in with_mine.chain(with_theirs)
    {
        if bind.port() == port && ip.is_none_or(|ip| same_host(ip, bind.ip())) {
            let message = format!(
                "port {port} can't be both: published by service `{service}` of stack `{p_stack}`, and entrypoint `{entrypoint}` ({bind}) of stack `{e_stack}`"
            );
            return Err(Refusal::new("port_in_use", message)
                .hint("publish another port, or none: a route reaches the service without"));
        }
    }
    Ok(())
}

/// Who wants requests at an address.
struct Holder<'s> {
    stack: &'s StackName,
    service: &'s ServiceName,
    route: &'s Route,
}

impl Holder<'_> {
    /// Whether it is settled which of two routes gets a request that both want for the same reasons. Within a stack the
    /// author sees both; between stacks only a priority that is written down counts.
    fn settled(&self, other: &Self) -> bool {
        let (a, b) = (self.route, other.route);
        let priority =
            |route: &Route| route.priority.unwrap_or_else(|| default_priority(&route.rule));
        let written = a.priority.is_some() || b.priority.is_some();
        priority(a) != priority(b) && (written || self.stack == other.stack)
    }

    fn describe(&self) -> String {
        format!(
            "route `{}` of service `{}` of stack `{}`",
            self.route.name, self.service, self.stack
        )
    }
}

/// No two routes may want the same requests, unless priorities say who gets them.
fn check_claims(wanted: &Stack, others: &[&Stack]) -> Result<(), Refusal> {
    let mut held: BTreeMap<(SocketAddr, Claim), Vec<Holder<'_>>> = BTreeMap::new();
    let mut opaque: BTreeMap<SocketAddr, Holder<'_>> = BTreeMap::new();
    let mut busy: BTreeSet<SocketAddr> = BTreeSet::new();
    let mut count = 0;
    for stack in others.iter().copied().chain([wanted]) {
        let routes = stack
            .services
            .iter()
            .flat_map(|(service, definition)| definition.routes.iter().map(move |r| (service, r)));
        for (service, route) in routes {
            count += 1;
            for name in &route.entrypoints {
                let Some(entrypoint) = stack.entrypoints.get(name) else { continue };
                let holder = || Holder { stack: &stack.name, service, route };
                // Connections that can't be told apart take the whole address.
                if route.kind == RouteKind::Tcp && !entrypoint.tls {
                    if let Some(other) = opaque.insert(entrypoint.bind, holder()) {
                        return Err(taken(&holder(), &other, "all connections", entrypoint.bind));
                    }
                } else {
                    busy.insert(entrypoint.bind);
                }
                for claim in claims(&route.rule) {
                    let holders = held.entry((entrypoint.bind, claim.clone())).or_default();
                    if let Some(other) = holders.iter().find(|other| !holder().settled(other)) {
                        return Err(taken(&holder(), other, &describe(&claim), entrypoint.bind));
                    }
                    holders.push(holder());
                }
            }
        }
    }
    if let Some((bind, holder)) = opaque.iter().find(|(bind, _)| busy.contains(*bind)) {
        let message = format!(
            "{} takes all connections at {bind}, where other routes are served too",
            holder.describe()
        );
        return Err(invalid(message, "give it an entrypoint of its own"));
    }
    if count > MAX_ROUTES {
        let message = format!(
            "all stacks together would have {count} routes; at most {MAX_ROUTES} are possible"
        );
        return Err(invalid(message, "join routes: one may have many hosts and paths"));
    }
    Ok(())
}

fn taken(route: &Holder<'_>, other: &Holder<'_>, what: &str, bind: SocketAddr) -> Refusal {
    let message =
        format!("{} wants {what} at {bind}, which {} has", route.describe(), other.describe());
    Refusal::new("route_taken", message)
        .hint("change the host or path of one of them, or give the one that shall win a higher `priority`")
}

#[cfg(test)]
mod tests;
