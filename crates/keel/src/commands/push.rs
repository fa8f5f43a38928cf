//! `keel push`: pushes the images of services to their registries.

use std::collections::BTreeSet;

use keel_server::api::client::Client;
use keel_server::api::images::{PushImage, PushRequest};

use crate::cli::FileArgs;
use crate::commands::up;
use crate::context::{Context, print_json};
use crate::failure::Failure;
use crate::images::{self, Present, Show, Sources};
use crate::{project, spawn};

/// Options of `keel push`.
#[derive(clap::Args, Clone, Debug)]
pub struct PushArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Push the images of the services that the named ones depend on, too
    #[arg(long)]
    pub include_deps: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong, or an image can't be pushed.
pub async fn run(ctx: &Context, args: PushArgs) -> Result<(), Failure> {
    let lowered = project::lowered(ctx, &args.services)?;
    let services = up::selection(&lowered.stack, &args.services, args.include_deps)?;
    // As docker compose: what is only used was pushed by somebody else.
    let sources = images::sources(&lowered, services.as_ref()).into_iter();
    let sources: Sources = sources.filter(|(_, source)| source.build.is_some()).collect();
    let client = spawn::ensure_server(ctx).await?;
    let pushed = push(ctx, &client, &sources, args.quiet).await?;
    if ctx.json() {
        return print_json(&pushed);
    }
    if sources.is_empty() && !args.quiet {
        ctx.note("there is nothing to push: no service has `build`");
    }
    Ok(())
}

/// Pushes these.
///
/// # Errors
/// When one can't be pushed: the others have been waited for.
pub async fn push(
    ctx: &Context,
    client: &Client,
    sources: &Sources,
    quiet: bool,
) -> Result<Vec<Present>, Failure> {
    let references: BTreeSet<&str> = sources.values().map(|it| it.reference.as_str()).collect();
    if references.is_empty() {
        return Ok(Vec::new());
    }
    let (credentials, problems) = images::credentials(references.clone()).await?;
    let image = |reference: &str| PushImage {
        reference: reference.to_owned(),
        credentials: credentials.get(reference).cloned(),
    };
    let request = PushRequest { images: references.into_iter().map(image).collect() };
    let pushed =
        images::follow(client.push(&request).await?, Show::new(ctx, quiet, "pushed")).await;
    images::with_problems(ctx, pushed, problems)
}
