//! `keel scale`: changes how many instances services have.

use keel_server::api::types::ScaleRequest;

use crate::change::{Change, WaitArgs};
use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::Until;
use crate::{names, project};

/// Options of `keel scale`.
#[derive(clap::Args, Clone, Debug)]
pub struct ScaleArgs {
    /// Services with their number of instances
    #[arg(value_name = "SERVICE=N", required = true, value_parser = names::parse_scale)]
    pub replicas: Vec<(String, u32)>,
    /// Whether and how long to wait
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such service, or it does not get ready.
pub async fn run(ctx: &Context, args: ScaleArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let replicas = names::replicas(&args.replicas)?;
    let services = replicas.keys().cloned().collect();
    let applied = client.scale(stack.as_str(), &ScaleRequest { replicas }).await?;
    let change = Change {
        ctx,
        client: &client,
        stack: &stack,
        applied: &applied,
        services: Some(services),
        until: Until::Converged,
        limit: Some(args.wait.wait_timeout),
        done: format!("{stack} is scaled"),
    };
    if args.wait.detach {
        return change.print_result("accepted");
    }
    change.settle().await.map(|_| ())
}
