//! Ports: what others reach inside, and what the load balancer opens on the host.

use keel_model::{Protocol, PublishedPort, ServicePort, Transport, UdpPort};

use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::number::parse_decimal;
use crate::value::Node;

/// Most ports of one service, so that a range cannot exhaust the platform.
const MAX_PORTS: usize = 1024;

/// Where others reach a service that listens on `${PORT}` and names no port: `http://web` then just works.
const IMPLIED_PORT: u16 = 80;

const NO_UDP: &str = "UDP has no effect in this version: the load balancer speaks TCP; let the program listen on the \
                      host's port itself";

const NO_UDP_INSIDE: &str = "UDP has no effect inside the stack in this version: the load balancer, which names of \
                             services lead to, speaks TCP; publish the port under `ports`";

/// The ports of a service.
#[derive(Default)]
pub(super) struct Ports {
    pub inside: Vec<ServicePort>,
    pub published: Vec<PublishedPort>,
    /// UDP ports that the engine opens on the host, for containers.
    pub udp: Vec<UdpPort>,
    /// Target ports in order, without repetition.
    pub targets: Vec<u16>,
}

impl Ports {
    fn add(&mut self, port: ServicePort) {
        if !self.targets.contains(&port.target) {
            self.targets.push(port.target);
        }
        let known =
            self.inside.iter().any(|p| p.target == port.target && p.transport == port.transport);
        if !known {
            self.inside.push(port);
        }
    }
}

impl Lower<'_> {
    pub(super) fn ports(&mut self, context: &Context<'_>) -> Ports {
        let mut ports = Ports::default();
        for item in context.node.get("ports").map(Node::items).unwrap_or_default() {
            self.published_port(context, item, &mut ports);
        }
        for item in context.node.get("expose").map(Node::items).unwrap_or_default() {
            self.exposed(context, item, &mut ports);
        }
        if ports.inside.is_empty() || context.is_container() {
            // A process that names no port has those that its routes lead to. A container has every port.
            for port in context.settings.routes.iter().filter_map(|route| route.port.as_ref()) {
                let (target, transport) = (port.value, Transport::Tcp);
                let protocol = protocol(context, target, transport, None);
                ports.add(ServicePort { target, name: None, transport, protocol });
            }
        }
        if ports.inside.is_empty() && !context.is_container() && uses_port(context.node) {
            let protocol = protocol(context, IMPLIED_PORT, Transport::Tcp, None);
            let (target, transport) = (IMPLIED_PORT, Transport::Tcp);
            ports.add(ServicePort { target, name: None, transport, protocol });
        }
        if ports.inside.len() > MAX_PORTS {
            let message = format!("the service `{}` has more than {MAX_PORTS} ports", context.name);
            self.error(Code::Budget, &context.node.span, message, "name fewer ports");
            ports.inside.truncate(MAX_PORTS);
            ports.published.truncate(MAX_PORTS);
            ports.targets.truncate(MAX_PORTS);
            ports.udp.truncate(MAX_PORTS);
        }
        self.restrict_ports(context, &mut ports);
        ports
    }

    fn published_port(&mut self, context: &Context<'_>, item: &Node, ports: &mut Ports) {
        let target =
            item.get("target").and_then(Node::display).and_then(|text| parse_decimal(&text));
        let Some(target) =
            target.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
        else {
            self.error(
                Code::InvalidValue,
                &item.span,
                "the target port must be from 1 to 65535",
                "write for example 8080:80",
            );
            return;
        };
        let word = item.text("protocol").unwrap_or("tcp");
        let Some(transport) = self.transport(item, word) else { return };
        if transport == Transport::Udp && !context.is_container() {
            self.warn(&item.span, NO_UDP);
        }
        let protocol = protocol(context, target, transport, item.text("app_protocol"));
        let name = item.text("name").filter(|name| !name.is_empty()).map(str::to_owned);
        ports.add(ServicePort { target, name, transport, protocol });

        let text = item.get("published").and_then(Node::display).unwrap_or_default();
        let published = match text.split_once('-') {
            Some((first, _)) => {
                let who = match transport {
                    Transport::Udp if context.is_container() => "engine",
                    _ => "load balancer",
                };
                let message = format!("of the published range {text} the {who} opens {first}");
                self.note(&item.span, message);
                first
            }
            None => text.as_str(),
        };
        let published = match published {
            "" | "0" => None,
            port => match port.parse::<u16>() {
                Ok(port) => Some(port),
                Err(_) => {
                    let message = format!("the published port `{port}` must be from 1 to 65535");
                    self.error(
                        Code::InvalidValue,
                        &item.span,
                        message,
                        "write for example 8080:80",
                    );
                    return;
                }
            },
        };
        let ip = item.text("host_ip").and_then(|ip| ip.parse().ok());
        if transport == Transport::Udp && context.is_container() {
            ports.udp.push(UdpPort { ip, published, target });
            return;
        }
        ports.published.push(PublishedPort { ip, published, target, transport, protocol });
    }

    fn exposed(&mut self, context: &Context<'_>, item: &Node, ports: &mut Ports) {
        let text = item.display().unwrap_or_default();
        let (range, protocol_name) = text.split_once('/').unwrap_or((&text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
            self.error(
                Code::InvalidValue,
                &item.span,
                format!("`{text}` is not a port"),
                "write for example \"8080\"",
            );
            return;
        };
        if first == 0 || last < first || usize::from(last - first) > MAX_PORTS {
            self.error(
                Code::InvalidValue,
                &item.span,
                format!("`{text}` is not a range of ports"),
                "name fewer ports",
            );
            return;
        }
        let Some(transport) = self.transport(item, protocol_name) else { return };
        if transport == Transport::Udp {
            let why = if context.is_container() { NO_UDP_INSIDE } else { NO_UDP };
            self.warn(&item.span, why);
        }
        for target in first..=last {
            let protocol = protocol(context, target, transport, None);
            ports.add(ServicePort { target, name: None, transport, protocol });
        }
    }

    fn transport(&mut self, item: &Node, name: &str) -> Option<Transport> {
        match name.to_ascii_lowercase().as_str() {
            "tcp" | "" => Some(Transport::Tcp),
            "udp" => Some(Transport::Udp),
            other => {
                let message = format!("the load balancer does not speak `{other}`");
                self.error(Code::Unsupported, &item.span, message, "use tcp or udp");
                None
            }
        }
    }
}

/// Whether the service speaks of the port that it is given.
fn uses_port(service: &Node) -> bool {
    ["command", "entrypoint", "environment", "healthcheck"]
        .iter()
        .filter_map(|key| service.get(key))
        .any(mentions_port)
}

fn mentions_port(node: &Node) -> bool {
    node.as_str().is_some_and(|text| text.contains("${PORT}"))
        || node.items().iter().any(mentions_port)
        || node.entries().any(|(_, value)| mentions_port(value))
}

/// What is spoken on a port: `x-keel.protocol` for the port or the service, else `app_protocol`.
fn protocol(
    context: &Context<'_>,
    target: u16,
    transport: Transport,
    app: Option<&str>,
) -> Protocol {
    let settings = &context.settings;
    if let Some(protocol) = settings.protocols.get(&target).copied().or(settings.protocol) {
        return protocol;
    }
    match (transport, app.map(str::to_ascii_lowercase).as_deref()) {
        (Transport::Udp, _) => Protocol::Auto,
        (_, Some("http" | "http1" | "http/1.1" | "ws")) => Protocol::Http,
        (_, Some("http2" | "h2c" | "grpc")) => Protocol::Http2,
        // Anything else that is named is not HTTP in clear, so that its bytes pass untouched.
        (_, Some(name)) if !name.is_empty() => Protocol::Tcp,
        _ => Protocol::Auto,
    }
}
