//! `keel ls`: lists the stacks of the server.

use keel_server::api::types::StackSummary;

use crate::cli::OutputForm;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::{table, time};

/// Options of `keel ls`.
#[derive(clap::Args, Clone, Debug)]
pub struct LsArgs {
    /// Also stacks of which nothing runs
    #[arg(short, long)]
    pub all: bool,
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
    /// As --output
    #[arg(long, hide = true, value_name = "FORM")]
    pub format: Option<OutputForm>,
}

/// Runs the command.
///
/// # Errors
/// When the server can't be reached.
pub async fn run(ctx: &Context, args: LsArgs) -> Result<(), Failure> {
    let mut stacks = ctx.client().stacks().await?;
    stacks.retain(|stack| args.all || stack.status != "stopped");
    if args.quiet {
        return print(&stacks.iter().map(|stack| format!("{}\n", stack.name)).collect::<String>());
    }
    if ctx.json() || args.format == Some(OutputForm::Json) {
        return print_json(&stacks.iter().map(json).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = stacks
        .iter()
        .map(|stack| {
            vec![
                stack.name.to_string(),
                stack.status.clone(),
                stack.generation.to_string(),
                format!("{} ago", time::words(time::now().since(stack.changed_at))),
                stack.directory.display().to_string(),
            ]
        })
        .collect();
    print(&table::render(&["NAME", "STATUS", "GENERATION", "CHANGED", "DIRECTORY"], &rows))
}

fn json(stack: &StackSummary) -> serde_json::Value {
    serde_json::json!({
        "name": stack.name,
        "status": stack.status,
        "generation": stack.generation,
        "changed_at": time::rfc3339(stack.changed_at),
        "directory": stack.directory,
    })
}
