//! `keel port`: where a port of a service is published.

use crate::cli::FileArgs;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::{names, project};

/// Options of `keel port`.
#[derive(clap::Args, Clone, Debug)]
pub struct PortArgs {
    /// The service
    pub service: String,
    /// Its port, as the Compose file names it
    pub port: u16,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such service, or the port is not published.
pub async fn run(ctx: &Context, args: PortArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let wanted = std::slice::from_ref(&args.service);
    let (view, services) = names::stack_with(&ctx.client(), &stack, wanted).await?;
    let published: Vec<_> = services
        .iter()
        .filter_map(|name| view.services.get(name))
        .flat_map(|service| &service.published)
        .filter(|published| published.target == args.port)
        .collect();
    if published.is_empty() {
        let message = format!("service {} does not publish port {}", args.service, args.port);
        return Err(Failure::failed("not_published", message).hint(format!(
            "add it under `ports:`, or use the service's own address from inside: {}:{}",
            args.service, args.port
        )));
    }
    if ctx.json() {
        return print_json(&published);
    }
    print(&published.iter().map(|p| format!("{}\n", p.address)).collect::<String>())
}
