//! `keel run`: runs a command in a container of its own, beside the instances of a service.
//!
//! The server makes the container, as it knows names, networks and secrets; this process starts it with its own streams, and
//! ends with its exit code. Nothing leads requests to it, and nothing starts it again. `keel down` removes what is left.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use keel_compose::Lowered;
use keel_container::attach::{self, Attach, End};
use keel_model::{RuntimeKind, ServiceName, Stack, StackName};
use keel_server::api::client::Client;
use keel_server::api::once::{OnceRequest, OnceView};
use keel_server::api::types::ApplyRequest;

use crate::change::Change;
use crate::cli::FileArgs;
use crate::commands::up::{self, ImageArgs};
use crate::context::{Context, print};
use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::ui::progress::Progress;
use crate::wait::{Outcome, Until};
use crate::{images, names, once, project, spawn};

/// How long the services that it depends on may take to be ready.
const WAIT_LIMIT: Duration = Duration::from_secs(600);
/// The exit code for a program that can't be executed, as shells have it.
const NOT_EXECUTABLE: u8 = 126;
/// The exit code for a program that is not there.
const NOT_FOUND: u8 = 127;

/// Options of `keel run`.
#[derive(clap::Args, Clone, Debug)]
#[command(override_usage = "keel run [OPTIONS] <SERVICE> [COMMAND]...")]
pub struct RunArgs {
    /// The service, and the command with its arguments (default: the service's). All that follows the service is the
    /// command's, also what looks like an option
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "SERVICE [COMMAND]")]
    pub words: Vec<String>,
    /// Return when the container runs, and print its name
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Environment variable; without a value it is taken from the caller. May be given several times
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Mount a path of this machine or a named volume; may be given several times
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Where to run (default: the service's directory)
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// As whom to run (default: the service's user), by name or number of the image
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Replace the entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Label of the container; may be given several times
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Add a capability; may be given several times
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Drop a capability; may be given several times
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
    /// Leave the services alone that this one depends on
    #[arg(long)]
    pub no_deps: bool,
    /// Open a port of this machine, at 127.0.0.1 unless an address is named; may be given several times
    #[arg(short = 'p', long, value_name = "[[IP:]PORT:]TARGET[/udp]")]
    pub publish: Vec<String>,
    /// Open the ports that the service publishes; they are free only while the service itself does not run
    #[arg(short = 'P', long)]
    pub service_ports: bool,
    /// The container is found by the service's network aliases too
    #[arg(long)]
    pub use_aliases: bool,
    /// Keep standard input open; it always is, unless this is `false`
    #[arg(short, long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub interactive: bool,
    /// Insist on a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Allocate no pseudo-terminal (default: there is one if this is run in a terminal)
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,
    /// What is built and pulled first
    #[command(flatten)]
    pub images: ImageArgs,
    /// Name of the stack. Without the short form, which `--publish` has here, as with docker compose.
    #[arg(id = "project_name", long = "project-name", value_name = "NAME", hide = true)]
    pub project: Option<String>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

impl RunArgs {
    /// The command; empty for the service's own.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// Runs the command. Ends this process with the exit code of the container.
///
/// # Errors
/// When the files are wrong, or the container can't be made or started.
pub async fn run(ctx: &Context, args: RunArgs) -> Result<(), Failure> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.tty && !terminal {
        return Err(Failure::usage("there is no terminal here").hint("leave out -t"));
    }
    let named = args.words.get(..1).unwrap_or_default();
    let lowered = project::lowered(ctx, named)?;
    let service = check(&lowered.stack, &named.concat())?;
    let publish = once::ports(&args, &lowered.stack.services[&service])?;
    let client = spawn::ensure_server(ctx).await?;
    let mut stack = prepare(ctx, &client, lowered, &service, &args).await?;
    let changed = stack.services.get_mut(&service).map(|it| &mut it.spec);
    if let Some(spec) = changed {
        once::adapt(spec, &args, terminal && !args.no_tty && !args.detach)?;
    }
    once::mount(&mut stack, &service, &args.volume)?;
    let name = stack.name.clone();
    let auto_remove = args.rm && args.detach;
    let request = OnceRequest { stack, service, name: args.name.clone(), publish, auto_remove };
    let made = client.make_once(&request).await?;
    if args.detach {
        return detach(&client, &name, &made, args.name.as_deref()).await;
    }
    let how = Attach { input: args.interactive, signals: true, start: true, detach_keys: None };
    let end = attach::attach(&made.container, &how).await;
    if args.rm && !matches!(end, Ok(End::Detached)) || end.is_err() {
        client.remove_once(name.as_str(), &made.id).await?;
    }
    match end.map_err(|error| not_started(&request.service, &error))? {
        End::Detached => Ok(()),
        End::Exited(code) => std::process::exit(code),
    }
}

/// The service, which must be a container.
fn check(stack: &Stack, name: &str) -> Result<ServiceName, Failure> {
    let known: Vec<&str> = stack.services.keys().map(ServiceName::as_str).collect();
    let found = stack.services.get_key_value(name);
    let (name, service) =
        found.ok_or_else(|| names::unknown_service(name, stack.name.as_str(), &known))?;
    if service.spec.runtime == RuntimeKind::Container {
        return Ok(name.clone());
    }
    Err(Failure::failed("run", format!("service {name} is a host process, not a container"))
        .hint(format!("`keel exec {name} COMMAND` runs a command in an instance that runs")))
}

/// Makes images present and starts what the service depends on.
async fn prepare(
    ctx: &Context,
    client: &Client,
    lowered: Lowered,
    service: &ServiceName,
    args: &RunArgs,
) -> Result<Stack, Failure> {
    let named = [service.to_string()];
    let services = up::selection(&lowered.stack, &named, !args.no_deps)?.unwrap_or_default();
    let sources = images::sources(&lowered, Some(&services));
    images::ensure(ctx, client, sources, &args.images.wishes()).await?;
    let mut needed = services;
    needed.remove(service);
    if !needed.is_empty() {
        start(ctx, client, &lowered.stack, needed, service).await?;
    }
    Ok(lowered.stack)
}

/// Starts services and waits until they are ready. Nothing of it is said on standard output, which is the command's.
async fn start(
    ctx: &Context,
    client: &Client,
    stack: &Stack,
    services: BTreeSet<ServiceName>,
    of: &ServiceName,
) -> Result<(), Failure> {
    let request = ApplyRequest {
        stack: stack.clone(),
        services: Some(services.iter().cloned().collect()),
        remove_orphans: false,
        force_recreate: false,
        change: format!("run {of}"),
    };
    let applied = client.apply(&request).await?;
    let change = Change {
        ctx,
        client,
        stack: &stack.name,
        applied: &applied,
        services: Some(services),
        until: Until::Converged,
        limit: Some(WAIT_LIMIT),
        done: String::new(),
    };
    let mut progress = Progress::new(ctx.progress(), ctx.talk);
    let mut evidence = Evidence::default();
    let wait = change.wait();
    match wait.run(client, &mut progress, &mut evidence).await? {
        Outcome::Reached(_) => Ok(()),
        Outcome::Failed(view) => {
            Err(evidence.failure(stack.name.as_str(), wait.scope(&view), ctx.talk))
        }
        Outcome::TimedOut(_) => {
            let message = format!("what service {of} depends on was not ready in time");
            Err(Failure::failed("timeout", message).hint("see `keel ps`; --no-deps does not wait"))
        }
    }
}

async fn detach(
    client: &Client,
    stack: &StackName,
    made: &OnceView,
    name: Option<&str>,
) -> Result<(), Failure> {
    if let Err(error) = attach::start(&made.container).await {
        client.remove_once(stack.as_str(), &made.id).await?;
        return Err(Failure::failed("run", error.to_string()));
    }
    print(&format!("{}\n", name.unwrap_or(made.id.as_str())))
}

/// With the exit code that shells have for it.
fn not_started(service: &ServiceName, error: &keel_container::Error) -> Failure {
    let text = error.to_string();
    let failure = Failure::failed("run", format!("service {service}: {text}"));
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["executable file not found", "no such file or directory"]) {
        failure.exit(NOT_FOUND)
    } else if says(&["permission denied", "Permission denied"]) {
        failure.exit(NOT_EXECUTABLE)
    } else {
        failure
    }
}
