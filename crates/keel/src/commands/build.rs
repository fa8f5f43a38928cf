//! `keel build`: builds the images of services.

use std::collections::BTreeMap;

use crate::cli::FileArgs;
use crate::commands::{push, up};
use crate::context::{Context, print_json};
use crate::failure::Failure;
use crate::images::{self, BuildOptions, Sources};
use crate::{project, spawn};

/// Options of `keel build`.
#[derive(clap::Args, Clone, Debug)]
pub struct BuildArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Run every step anew
    #[arg(long)]
    pub no_cache: bool,
    /// Pull the images that builds begin with, even if they are here
    #[arg(long)]
    pub pull: bool,
    /// Build argument (NAME=VALUE, or NAME to take it from the environment); may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub build_arg: Vec<String>,
    /// Build the images of the services that the named ones depend on, too
    #[arg(long)]
    pub with_dependencies: bool,
    /// Push what was built
    #[arg(long)]
    pub push: bool,
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
/// When the files are wrong, or an image can't be built.
pub async fn run(ctx: &Context, args: BuildArgs) -> Result<(), Failure> {
    let lowered = project::lowered(ctx, &args.services)?;
    let services = up::selection(&lowered.stack, &args.services, args.with_dependencies)?;
    let sources = images::sources(&lowered, services.as_ref()).into_iter();
    let sources: Sources = sources.filter(|(_, source)| source.build.is_some()).collect();
    let options = BuildOptions {
        no_cache: args.no_cache,
        pull: args.pull,
        args: arguments(&args.build_arg)?,
        only: None,
        quiet: args.quiet,
    };
    let client = spawn::ensure_server(ctx).await?;
    let built = images::build(ctx, &client, &sources, &options).await?;
    if args.push {
        push::push(ctx, &client, &sources, args.quiet).await?;
    }
    if ctx.json() {
        return print_json(&built);
    }
    if sources.is_empty() && !args.quiet {
        ctx.note("there is nothing to build: no service has `build`");
    }
    Ok(())
}

fn arguments(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let one = |text: &String| match text.split_once('=') {
        Some(("", _)) => Err(Failure::usage(format!("--build-arg {text}: there is no name"))),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => {
            let unset = || Failure::usage(format!("--build-arg {text}: {text} is not set"));
            Ok((text.clone(), std::env::var(text).map_err(|_| unset())?))
        }
    };
    given.iter().map(one).collect()
}
