//! `keel history`: past changes of a stack, newest first.

use keel_server::api::types::HistoryEntry;

use crate::cli::FileArgs;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::project;
use crate::ui::{table, time};

/// Options of `keel history`.
#[derive(clap::Args, Clone, Debug)]
pub struct HistoryArgs {
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no such stack.
pub async fn run(ctx: &Context, _: HistoryArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let entries = ctx.client().history(stack.as_str()).await?;
    if ctx.json() {
        return print_json(&entries.iter().map(json).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    print(&table::render(&["GENERATION", "WHEN", "CHANGE", "SERVICES"], &rows))
}

fn row(entry: &HistoryEntry) -> Vec<String> {
    let mark = if entry.current { " *" } else { "" };
    let services: Vec<String> = entry
        .services
        .iter()
        .map(|(name, service)| format!("{name}:{} ({})", short(&service.revision), service.scale))
        .collect();
    vec![
        format!("{}{mark}", entry.generation),
        format!("{} ago", time::words(time::now().since(entry.at))),
        entry.change.clone(),
        services.join(", "),
    ]
}

fn short(revision: &keel_model::RevisionId) -> &str {
    let text = revision.as_str();
    text.get(..7).unwrap_or(text)
}

fn json(entry: &HistoryEntry) -> serde_json::Value {
    serde_json::json!({
        "generation": entry.generation,
        "at": time::rfc3339(entry.at),
        "change": entry.change,
        "current": entry.current,
        "services": entry.services,
    })
}
