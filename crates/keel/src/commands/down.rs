//! `keel down`: stops everything of a stack, dependents first, and forgets it.

use keel_model::{EventKind, StackName, Timestamp};
use keel_server::api::client::{Client, Error};
use keel_server::api::types::{DownRequest, EventsQuery};

use crate::change::{Change, WaitArgs};
use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::project;
use crate::ui::time;
use crate::wait::Until;

/// Options of `keel down`.
#[derive(clap::Args, Clone, Debug)]
pub struct DownArgs {
    /// Delete the stack's named volumes, with their data; also those that an earlier `down` left
    #[arg(short, long)]
    pub volumes: bool,
    /// Remove services that are no longer in the file; `down` always does
    #[arg(long)]
    pub remove_orphans: bool,
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
/// When the server can't be reached, or the stack is not gone in time.
pub async fn run(ctx: &Context, args: DownArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let since = time::now();
    let applied = match client.down(stack.as_str(), &DownRequest { volumes: args.volumes }).await {
        // As `docker compose down`: what is wanted is so already.
        Err(Error::Refused(body)) if body.code == "no_such_stack" => {
            ctx.warn(&format!("there is no stack {stack} to remove"));
            return Ok(());
        }
        answer => answer?,
    };
    let change = Change {
        ctx,
        client: &client,
        stack: &stack,
        applied: &applied,
        services: None,
        until: Until::Gone,
        limit: Some(args.wait.wait_timeout),
        done: format!("{stack} is removed"),
    };
    if args.wait.detach {
        return change.print_result("removing");
    }
    change.settle().await?;
    if args.volumes {
        warn_of_left(ctx, &client, &stack, since).await;
    }
    Ok(())
}

/// A volume that somebody uses does not keep the stack from going, but its data is still there.
async fn warn_of_left(ctx: &Context, client: &Client, stack: &StackName, since: Timestamp) {
    let stack = Some(stack.to_string());
    let query = EventsQuery { stack, since: Some(since.0), ..EventsQuery::default() };
    let Ok(mut events) = client.events(&query).await else { return };
    while let Some(Ok(event)) = events.next().await {
        if event.kind == EventKind::Platform && event.message.starts_with("volume ") {
            ctx.warn(&event.message);
        }
    }
}
