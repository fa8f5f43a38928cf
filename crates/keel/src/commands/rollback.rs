//! `keel rollback`: returns to an earlier definition of the stack.

use keel_model::Generation;
use keel_server::api::types::RollbackRequest;

use crate::change::{Change, WaitArgs};
use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::project;
use crate::wait::Until;

/// Options of `keel rollback`.
#[derive(clap::Args, Clone, Debug)]
pub struct RollbackArgs {
    /// The generation to return to, as `keel history` lists it (default: the last one before this that did not fail)
    #[arg(value_name = "GENERATION")]
    pub generation: Option<u64>,
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
/// When there is no such generation, or a service does not get ready.
pub async fn run(ctx: &Context, args: RollbackArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    // Images that are gone are fetched again from where they came.
    let credentials = crate::images::all_credentials(ctx).await;
    let request = RollbackRequest { to: args.generation.map(Generation), credentials };
    let applied = client.rollback(stack.as_str(), &request).await?;
    let change = Change {
        ctx,
        client: &client,
        stack: &stack,
        applied: &applied,
        services: None,
        until: Until::Converged,
        limit: Some(args.wait.wait_timeout),
        done: format!("{stack} is rolled back"),
    };
    if args.wait.detach {
        return change.print_result("accepted");
    }
    change.settle().await.map(|_| ())
}
