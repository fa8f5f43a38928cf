//! `keel watch`: does what `develop.watch` says when files change, until Ctrl-C.

use keel_model::PullPolicy;

use super::up::{self, ImageArgs, UpArgs};
use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::watch::{self, Say, Setting, Stream};
use crate::{images, project, spawn};

/// Options of `keel watch`.
#[derive(clap::Args, Clone, Debug)]
pub struct WatchArgs {
    /// Only these services, with what they depend on
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Build and start nothing first: what runs is watched
    #[arg(long)]
    pub no_up: bool,
    /// Show nothing of builds
    #[arg(long)]
    pub quiet: bool,
    /// Remove images that rebuilds leave; those of the last five revisions always stay, and others always go
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub prune: Option<bool>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong, the services can't be started, or files can't be watched.
pub async fn run(ctx: &Context, args: WatchArgs) -> Result<(), Failure> {
    let mut lowered = project::lowered(ctx, &args.services)?;
    let services = up::selection(&lowered.stack, &args.services, true)?;
    let plan = watch::plan(ctx, &lowered, services.as_ref(), false)?;
    let stack = lowered.stack.clone();
    let sources = images::sources(&lowered, services.as_ref());
    let mut interrupts = Interrupts::listen()?;
    let work = async {
        let client = if args.no_up {
            ctx.client()
        } else {
            // What was changed since the last build is not seen as a change any more.
            for (_, source) in lowered.images.iter_mut().filter(|(name, _)| plan.watches(name)) {
                if source.build.is_some() {
                    source.pull = PullPolicy::Build;
                }
            }
            let up = UpArgs {
                services: args.services.clone(),
                detach: true,
                images: ImageArgs { quiet_pull: args.quiet, ..ImageArgs::default() },
                files: args.files.clone(),
                ..UpArgs::default()
            };
            match up::run_with(ctx, up, lowered).await {
                // It is mended while it is watched.
                Err(failure) if failure.is_of_a_service() => {
                    failure.report(ctx.talk, ctx.json());
                }
                done => done?,
            }
            spawn::ensure_server(ctx).await?
        };
        let say = Say { ctx, stream: Stream::Output };
        let setting = Setting::new(&client, &stack, sources, say, args.quiet);
        watch::run(&setting, &plan).await
    };
    tokio::select! {
        ended = work => ended,
        () = interrupts.next() => {
            ctx.note("\nnothing is watched any more; what runs, runs on");
            Ok(())
        }
    }
}
