//! `keel port`: where a port of a service is published.
//!
//! TCP ports are opened by the load balancer, for all instances together; UDP ports by the engine, for the container
//! that has them.

use std::net::SocketAddr;

use clap::ValueEnum;
use keel_container::ports;
use keel_runtime::ExecSpec;
use keel_server::api::types::{PublishedView, StackView};

use crate::cli::FileArgs;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::{instances, names, project};

/// Options of `keel port`.
#[derive(clap::Args, Clone, Debug)]
pub struct PortArgs {
    /// The service
    pub service: String,
    /// Its port, as the Compose file names it; `/udp` may follow
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = parse_port)]
    pub port: (u16, Option<Protocol>),
    /// Number of the instance within its service, from 1; a TCP port is that of all instances
    #[arg(long, value_name = "N")]
    pub index: Option<usize>,
    /// Which kind of port it is
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<Protocol>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

// No doc comments on the variants: they would make the help page three times as long.
/// Kind of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

fn parse_port(text: &str) -> Result<(u16, Option<Protocol>), String> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, Some(Protocol::from_str(protocol, true)?)),
        None => (text, None),
    };
    let number =
        port.parse().map_err(|_| format!("{port:?} is no port: write a number such as 80"))?;
    Ok((number, protocol))
}

/// Runs the command.
///
/// # Errors
/// When there is no such service or instance, or the port is not published.
pub async fn run(ctx: &Context, args: PortArgs) -> Result<(), Failure> {
    let (port, of_port) = args.port;
    let protocol = match (of_port, args.protocol) {
        (Some(one), Some(other)) if one != other => {
            return Err(Failure::usage(format!(
                "{port}/{} and --protocol {} contradict each other",
                one.as_str(),
                other.as_str()
            )));
        }
        (one, other) => one.or(other).unwrap_or(Protocol::Tcp),
    };
    let stack = project::stack_name(ctx)?;
    let wanted = std::slice::from_ref(&args.service);
    let (view, _) = names::stack_with(&ctx.client(), &stack, wanted).await?;
    let published = match protocol {
        Protocol::Tcp => of_balancer(&view, &args, port)?,
        Protocol::Udp => of_engine(ctx, &view, &args, port).await?,
    };
    if published.is_empty() {
        let Protocol::Tcp = protocol else {
            let message = format!("service {} does not publish port {port}/udp", args.service);
            return Err(Failure::failed("not_published", message)
                .hint(format!("add \"{port}/udp\" under `ports:`")));
        };
        let message = format!("service {} does not publish port {port}", args.service);
        return Err(Failure::failed("not_published", message).hint(format!(
            "add it under `ports:`, or use the service's own address from inside: {}:{port}",
            args.service
        )));
    }
    if ctx.json() {
        return print_json(&published);
    }
    print(&published.iter().map(|p| format!("{}\n", p.address)).collect::<String>())
}

/// TCP ports are opened for all instances together. One that is named has to be there.
fn of_balancer(
    view: &StackView,
    args: &PortArgs,
    port: u16,
) -> Result<Vec<PublishedView>, Failure> {
    if let Some(index) = args.index {
        instances::choose(view, &args.service, index)?;
    }
    let service = view.services.get(args.service.as_str());
    let published = service.into_iter().flat_map(|service| &service.published);
    Ok(published.filter(|published| published.target == port).cloned().collect())
}

/// UDP ports are opened by the engine.
async fn of_engine(
    ctx: &Context,
    view: &StackView,
    args: &PortArgs,
    port: u16,
) -> Result<Vec<PublishedView>, Failure> {
    let instance = instances::choose(view, &args.service, args.index.unwrap_or(1))?;
    let ExecSpec::Container(container) = ctx.client().exec_spec(instance.id.as_str()).await? else {
        return Ok(Vec::new());
    };
    let found = ports::published(&container, port, Protocol::Udp.as_str()).await;
    let found = found.map_err(|error| Failure::failed("port", error.to_string()))?;
    let one = |address: SocketAddr| PublishedView { address, target: port, error: None };
    Ok(found.into_iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_name_its_protocol() {
        assert_eq!(parse_port("80"), Ok((80, None)));
        assert_eq!(parse_port("53/udp"), Ok((53, Some(Protocol::Udp))));
        for bad in ["x", "80/sctp", "", "70000", "/udp"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
    }
}
