//! `keel pull`: brings the images of services onto the server's machine.

use keel_model::PullPolicy;

use crate::cli::FileArgs;
use crate::commands::up;
use crate::context::{Context, print_json};
use crate::failure::Failure;
use crate::images::{self, Sources};
use crate::{project, spawn};

/// Options of `keel pull`.
#[derive(clap::Args, Clone, Debug)]
pub struct PullArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Leave out images that can be built
    #[arg(long)]
    pub ignore_buildable: bool,
    /// Pull the images of the services that the named ones depend on, too
    #[arg(long)]
    pub include_deps: bool,
    /// Which images to pull: `always` (all, the default) or `missing`
    #[arg(long, value_name = "POLICY", value_parser = ["always", "missing"])]
    pub policy: Option<String>,
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
/// When the files are wrong, or an image can't be had.
pub async fn run(ctx: &Context, args: PullArgs) -> Result<(), Failure> {
    let lowered = project::lowered(ctx, &args.services)?;
    let services = up::selection(&lowered.stack, &args.services, args.include_deps)?;
    let policy = match args.policy.as_deref() {
        Some("missing") => PullPolicy::Missing,
        _ => PullPolicy::Always,
    };
    let sources = images::sources(&lowered, services.as_ref()).into_iter();
    // As docker compose: what the file only builds, or never pulls, is not pulled by name either. What can be built
    // has a registry to come from only where the file names an image.
    let mut sources: Sources = sources
        .filter(|(_, source)| !matches!(source.pull, PullPolicy::Build | PullPolicy::Never))
        .filter(|(name, source)| {
            let own = format!("{}-{name}", lowered.stack.name);
            source.build.is_none() || !(args.ignore_buildable || source.reference == own)
        })
        .collect();
    sources.values_mut().for_each(|source| source.pull = policy);
    let client = spawn::ensure_server(ctx).await?;
    let present = images::pull(ctx, &client, &sources, args.quiet).await?;
    if ctx.json() {
        return print_json(&present);
    }
    if sources.is_empty() && !args.quiet {
        ctx.note("there is nothing to pull");
    }
    Ok(())
}
