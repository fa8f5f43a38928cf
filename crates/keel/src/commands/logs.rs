//! `keel logs`: the output of instances, merged in order of time.

use keel_model::Timestamp;
use keel_server::api::types::{LogsQuery, StackView};

use crate::cli::LongFileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{LogPrinter, LogStream, LogStyle};
use crate::ui::time;
use crate::{names, project};

/// Options of `keel logs`.
#[derive(clap::Args, Clone, Debug)]
pub struct LogsArgs {
    /// Only these services or instances
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines since this time (2026-01-02T15:04:05Z, 2026-01-02, Unix seconds, or how long ago: 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only lines until this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<Timestamp>,
    /// Only this many of the last lines of each instance, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = parse_tail)]
    pub tail: Tail,
    /// How lines look
    #[command(flatten)]
    pub style: LogStyle,
    /// Compose files
    #[command(flatten)]
    pub files: LongFileArgs,
}

/// How many of the last lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail(Option<usize>);

fn parse_tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail(None));
    }
    text.parse().map(|n| Tail(Some(n))).map_err(|_| "write a number, or `all`".to_owned())
}

/// Reads a point in time relative to now.
///
/// # Errors
/// As [`time::parse_point`].
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    time::parse_point(text, time::now())
}

/// Runs the command.
///
/// # Errors
/// When there is no such stack or service.
pub async fn run(ctx: &Context, args: LogsArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let view = client.stack(stack.as_str()).await?;
    check(&view, &args.services)?;
    let mut printer = LogPrinter::new(ctx, &stack, args.style.clone());
    for (name, instance) in instances(&view) {
        if args.services.is_empty() || args.services.iter().any(|s| s == name || s == instance) {
            printer.expect(instance);
        }
    }
    let query = LogsQuery {
        services: args.services.join(","),
        follow: args.follow,
        since: args.since.map(|at| at.0),
        until: args.until.map(|at| at.0),
        tail: args.tail.0,
    };
    let mut stream = LogStream::open(&client, &stack, query).await?;
    while let Some(record) = stream.next().await? {
        printer.print(&record)?;
    }
    Ok(())
}

fn instances(view: &StackView) -> impl Iterator<Item = (&str, &str)> {
    view.services.iter().flat_map(|(name, service)| {
        service.instances.iter().map(|i| (name.as_str(), i.id.as_str()))
    })
}

/// Names may be those of services or of instances.
fn check(view: &StackView, wanted: &[String]) -> Result<(), Failure> {
    let services: Vec<String> = wanted
        .iter()
        .filter(|name| !instances(view).any(|(_, instance)| instance == name.as_str()))
        .cloned()
        .collect();
    names::check(view, &services).map(|_| ())
}
