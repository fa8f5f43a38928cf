//! `keel rm`: forgets stopped instances.

use std::io::{IsTerminal as _, Write as _};

use keel_model::StackName;
use keel_server::api::client::{Client, ServiceOperation};
use keel_server::api::types::{ServicesRequest, StackView};

use crate::change::Change;
use crate::cli::LongFileArgs;
use crate::context::{Context, print_json};
use crate::failure::Failure;
use crate::ui::status::State;
use crate::wait::Until;
use crate::{names, project};

/// Options of `keel rm`.
#[derive(clap::Args, Clone, Debug)]
pub struct RmArgs {
    /// Which services (default: all)
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Stop the services first
    #[arg(short, long)]
    pub stop: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Delete anonymous volumes; they always go with their instance
    #[arg(short, long)]
    pub volumes: bool,
    /// Compose files
    #[command(flatten)]
    pub files: LongFileArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such service, or the user says no.
pub async fn run(ctx: &Context, args: RmArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let (mut view, services) = names::stack_with(&client, &stack, &args.services).await?;
    let request = ServicesRequest { services, in_place: false };
    if args.stop {
        view = stop(ctx, &client, &stack, &request).await?.unwrap_or(view);
    }
    let doomed = ended(&view, &request);
    if doomed.is_empty() {
        ctx.note("No stopped instances");
    } else if args.force || confirmed(&doomed)? {
        client.operate(stack.as_str(), ServiceOperation::Remove, &request).await?;
    } else {
        return Ok(());
    }
    if ctx.json() {
        return print_json(&serde_json::json!({ "stack": stack, "removed": doomed }));
    }
    for name in &doomed {
        ctx.note(&format!("{} {name} is removed", ctx.talk.good("✔")));
    }
    Ok(())
}

async fn stop(
    ctx: &Context,
    client: &Client,
    stack: &StackName,
    request: &ServicesRequest,
) -> Result<Option<StackView>, Failure> {
    let applied = client.operate(stack.as_str(), ServiceOperation::Stop, request).await?;
    let mut progress = crate::ui::progress::Progress::new(ctx.progress(), ctx.talk);
    let change = Change {
        ctx,
        client,
        stack,
        applied: &applied,
        services: (!request.services.is_empty())
            .then(|| request.services.iter().cloned().collect()),
        until: Until::Stopped,
        limit: None,
        done: String::new(),
    };
    let outcome =
        change.wait().run(client, &mut progress, &mut crate::evidence::Evidence::default()).await?;
    match outcome {
        crate::wait::Outcome::Reached(view) | crate::wait::Outcome::TimedOut(view) => Ok(view),
        crate::wait::Outcome::Failed(view) => Ok(Some(view)),
    }
}

/// The instances that have ended.
fn ended(view: &StackView, request: &ServicesRequest) -> Vec<String> {
    view.services
        .iter()
        .filter(|(name, _)| request.services.is_empty() || request.services.contains(name))
        .flat_map(|(_, service)| &service.instances)
        .filter(|instance| matches!(State::of(instance), State::Exited | State::Failed))
        .map(|instance| instance.id.to_string())
        .collect()
}

fn confirmed(doomed: &[String]) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "rm asks before it removes, but there is no terminal to answer on",
        )
        .hint("give --force"));
    }
    crate::say(&format!("Going to remove {}\nAre you sure? [yN] ", doomed.join(", ")));
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed("io", format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
