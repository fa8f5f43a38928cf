//! `keel up`: makes the stack as its Compose files describe it.
//!
//! Attached (the default), it then follows the logs until the services end or Ctrl-C stops them; with `--detach` it returns when every
//! service has begun to run; with `--wait` when all are ready.

use std::collections::BTreeSet;
use std::time::Duration;

use keel_compose::Lowered;
use keel_model::{PullPolicy, Scale, ServiceName, Stack};
use keel_server::api::client::Client;
use keel_server::api::types::{ApplyRequest, StackView};

use crate::attach::{self, Attach};
use crate::change::Change;
use crate::cli::FileArgs;
use crate::context::Context;
use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::follow::LogStyle;
use crate::images::{self, Wishes};
use crate::interrupt::Interrupts;
use crate::ui::progress::Progress;
use crate::ui::time;
use crate::wait::{Outcome, Until};
use crate::watch::{self, Say, Setting, Stream};
use crate::{host, lacks, names, project, spawn};

/// How long `up --detach` waits for the first instances of services, which may wait for others.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long `up --wait` waits, unless told otherwise: the progress deadline of a rollout.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// Options of `keel up`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct UpArgs {
    /// Only these services, with what they depend on
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Also do what `develop.watch` says when files change, as `keel watch` does
    #[arg(short, long, conflicts_with_all = ["detach", "wait"])]
    pub watch: bool,
    /// Return when every service has begun to run (at most 5 minutes), instead of following the logs
    #[arg(short, long)]
    pub detach: bool,
    /// Return when all services are ready (at most 10 minutes); fail when one fails. Implies --detach
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this time (seconds, or a duration such as 5m); the change goes on
    #[arg(long, value_name = "TIME", value_parser = time::parse_seconds)]
    pub wait_timeout: Option<Duration>,
    /// Number of instances of a service, instead of what the file says; may be given several times
    #[arg(long, value_name = "SERVICE=N", value_parser = names::parse_scale)]
    pub scale: Vec<(String, u32)>,
    /// Replace instances even if nothing changed
    #[arg(long)]
    pub force_recreate: bool,
    /// Leave the services alone that the named ones depend on
    #[arg(long, requires = "services")]
    pub no_deps: bool,
    /// With named services: also remove services that are no longer in the file (otherwise always done)
    #[arg(long)]
    pub remove_orphans: bool,
    /// Do not ask; `up` never does, so that scripts written for docker compose run unchanged
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// What is built and pulled first
    #[command(flatten)]
    pub images: ImageArgs,
    /// How log lines look
    #[command(flatten)]
    pub style: LogStyle,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// What is built and pulled before anything is changed.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ImageArgs {
    /// Build images first, even if they are here
    #[arg(long, conflicts_with = "no_build")]
    pub build: bool,
    /// Build no images, even if they are missing
    #[arg(long)]
    pub no_build: bool,
    /// Which images to pull first: `always`, `missing`, `never`, or `policy`: as the file says
    #[arg(long, value_name = "POLICY", value_parser = ["always", "missing", "never", "policy"])]
    pub pull: Option<String>,
    /// Show nothing while images are pulled
    #[arg(long)]
    pub quiet_pull: bool,
}

impl ImageArgs {
    /// The same, as it is passed on.
    pub fn wishes(&self) -> Wishes {
        let policy = match self.pull.as_deref() {
            Some("always") => Some(PullPolicy::Always),
            Some("missing") => Some(PullPolicy::Missing),
            Some("never") => Some(PullPolicy::Never),
            _ => None,
        };
        let Self { build, no_build, quiet_pull, .. } = *self;
        Wishes { build, no_build, policy, quiet: quiet_pull }
    }
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong, the server can't be started, or a service failed.
pub async fn run(ctx: &Context, args: UpArgs) -> Result<(), Failure> {
    let lowered = project::lowered(ctx, &args.services)?;
    run_with(ctx, args, lowered).await
}

/// The same with files that have been read.
///
/// # Errors
/// As [`run`].
pub async fn run_with(ctx: &Context, args: UpArgs, lowered: Lowered) -> Result<(), Failure> {
    let services = selection(&lowered.stack, &args.services, !args.no_deps)?;
    let plan = match args.watch {
        true => Some(watch::plan(ctx, &lowered, services.as_ref(), args.images.no_build)?),
        false => None,
    };
    let sources = images::sources(&lowered, services.as_ref());
    let mut stack = lowered.stack;
    scale(&mut stack, &args.scale)?;
    let client = spawn::ensure_server(ctx).await?;
    warn_without_zone(ctx, &client, &stack).await?;
    host::warn_of_another(ctx, &client, &stack).await?;
    let interrupts = attached(&args).then(Interrupts::listen).transpose()?;
    images::ensure(ctx, &client, sources.clone(), &args.images.wishes()).await?;
    let since = time::now();
    let request = ApplyRequest {
        stack,
        services: services.clone().map(Vec::from_iter),
        remove_orphans: args.remove_orphans || args.services.is_empty(),
        force_recreate: args.force_recreate,
        change: describe(&args),
    };
    let applied = client.apply(&request).await?;
    let stack = request.stack;
    let change = Change {
        ctx,
        client: &client,
        stack: &stack.name,
        applied: &applied,
        services,
        until: if args.wait { Until::Converged } else { Until::Started },
        limit: limit(&args),
        done: done(&args, applied.changes.is_empty(), stack.name.as_str()),
    };
    match interrupts {
        None if args.wait => {
            change.settle().await?;
            lacks::tell_of_stack(ctx, &client, &stack.name).await
        }
        None => detach(&change).await,
        Some(interrupts) => {
            let attach = Attach { change: &change, since, style: args.style.clone() };
            let say = Say { ctx, stream: Stream::Talk };
            let setting = Setting::new(&client, &stack, sources, say, args.images.quiet_pull);
            let watching = plan.as_ref().map(|plan| watch::run(&setting, plan));
            attach::run(attach, interrupts, watching).await
        }
    }
}

/// A preference that comes to nothing is said.
async fn warn_without_zone(ctx: &Context, client: &Client, stack: &Stack) -> Result<(), Failure> {
    let prefers = stack.services.iter().filter(|(_, service)| service.traffic.prefer_zone);
    let names: Vec<&str> = prefers.map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() && client.info().await?.zone.is_none() {
        ctx.warn(&format!(
            "`prefer_zone` has no effect ({}): the server does not know its zone; start it with `keel server --zone NAME`",
            names.join(", ")
        ));
    }
    Ok(())
}

fn attached(args: &UpArgs) -> bool {
    !args.detach && !args.wait
}

fn limit(args: &UpArgs) -> Option<Duration> {
    let default = match (args.wait, args.detach) {
        (true, _) => Some(WAIT_LIMIT),
        (false, true) => Some(START_LIMIT),
        (false, false) => None,
    };
    args.wait_timeout.or(default)
}

fn done(args: &UpArgs, unchanged: bool, stack: &str) -> String {
    match (unchanged, args.wait) {
        (true, _) => format!("{stack} is up to date"),
        (false, true) => format!("{stack} is up"),
        (false, false) => format!("{stack} has started"),
    }
}

/// `up --detach`: returns when every service has begun to run, or could not.
async fn detach(change: &Change<'_>) -> Result<(), Failure> {
    let mut progress = Progress::new(change.ctx.progress(), change.ctx.talk);
    let mut evidence = Evidence::default();
    let wait = change.wait();
    let outcome = wait.run(change.client, &mut progress, &mut evidence).await?;
    match outcome {
        Outcome::Reached(Some(view)) => {
            if let Some(failure) = evidence.early_failure(&view, change.ctx.talk) {
                drop(progress);
                change.print_result("failed")?;
                return Err(failure);
            }
            change.conclude(&wait, Outcome::Reached(Some(view)), progress, &evidence)?;
            lacks::tell_of_stack(change.ctx, change.client, change.stack).await
        }
        Outcome::TimedOut(view) if change.limit == Some(START_LIMIT) => {
            drop(progress);
            not_yet(change, view.as_ref());
            change.print_result("starting")
        }
        other => change.conclude(&wait, other, progress, &evidence).map(|_| ()),
    }
}

fn not_yet(change: &Change<'_>, view: Option<&StackView>) {
    let waiting: Vec<String> = view
        .into_iter()
        .flat_map(|view| view.services.iter())
        .filter(|(_, service)| service.running == 0 && !service.converged)
        .map(|(name, service)| format!("{name} ({})", service.reason))
        .collect();
    change.ctx.warn(&format!(
        "after {} these services have not started yet: {}; `keel ps` shows how they get on",
        time::short(START_LIMIT),
        waiting.join(", ")
    ));
}

fn scale(stack: &mut Stack, wanted: &[(String, u32)]) -> Result<(), Failure> {
    for (name, replicas) in wanted {
        let known: Vec<&str> = stack.services.keys().map(ServiceName::as_str).collect();
        let unknown = names::unknown_service(name, stack.name.as_str(), &known);
        let service = stack.services.get_mut(name.as_str()).ok_or(unknown)?;
        service.scale = match service.scale {
            Scale::Replicated(_) => Scale::Replicated(*replicas),
            Scale::Job(_) => Scale::Job(*replicas),
            Scale::Global | Scale::GlobalJob => {
                return Err(Failure::usage(format!(
                    "service {name} runs once per node (deploy.mode: global) and can't be scaled"
                )));
            }
        };
    }
    Ok(())
}

/// The services that are meant: those named, with what they depend on if that is wanted; `None` for all.
///
/// # Errors
/// When there is no service of a name.
pub fn selection(
    stack: &Stack,
    named: &[String],
    with_dependencies: bool,
) -> Result<Option<BTreeSet<ServiceName>>, Failure> {
    if named.is_empty() {
        return Ok(None);
    }
    let known: Vec<&str> = stack.services.keys().map(ServiceName::as_str).collect();
    let mut selected = BTreeSet::new();
    let mut open: Vec<&str> = named.iter().map(String::as_str).collect();
    while let Some(name) = open.pop() {
        let (name, service) = stack
            .services
            .get_key_value(name)
            .ok_or_else(|| names::unknown_service(name, stack.name.as_str(), &known))?;
        if selected.insert(name.clone()) && with_dependencies {
            let present = |name: &&ServiceName| stack.services.contains_key(*name);
            open.extend(service.depends_on.keys().filter(present).map(ServiceName::as_str));
        }
    }
    Ok(Some(selected))
}

/// For `keel history`.
fn describe(args: &UpArgs) -> String {
    let mut text = "up".to_owned();
    for name in &args.services {
        text.push(' ');
        text.push_str(name);
    }
    for (name, replicas) in &args.scale {
        text.push_str(&format!(" --scale {name}={replicas}"));
    }
    if args.force_recreate {
        text.push_str(" --force-recreate");
    }
    text
}
