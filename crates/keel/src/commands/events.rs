//! `keel events`: what happened to a stack.

use keel_model::{Event, Timestamp};
use keel_server::api::types::EventsQuery;

use super::logs::parse_time;
use crate::cli::LongFileArgs;
use crate::context::{Context, print, print_json_line};
use crate::failure::Failure;
use crate::project;
use crate::ui::time;

/// Options of `keel events`.
#[derive(clap::Args, Clone, Debug)]
pub struct EventsArgs {
    /// Only of these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Go on with new events
    #[arg(short, long)]
    pub follow: bool,
    /// Events of all stacks
    #[arg(long)]
    pub all: bool,
    /// Only events since this time (2026-01-02T15:04:05Z, 2026-01-02, Unix seconds, or how long ago: 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only events until this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<Timestamp>,
    /// One JSON object per line, as with `--output json`
    #[arg(long)]
    pub json: bool,
    /// Compose files
    #[command(flatten)]
    pub files: LongFileArgs,
}

/// Runs the command.
///
/// # Errors
/// When the server can't be reached.
pub async fn run(ctx: &Context, args: EventsArgs) -> Result<(), Failure> {
    let stack = if args.all { None } else { Some(project::stack_name(ctx)?) };
    let query = EventsQuery {
        stack: stack.map(String::from),
        follow: args.follow,
        since: args.since.map(|at| at.0),
        until: args.until.map(|at| at.0),
    };
    let mut events = ctx.client().events(&query).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        let wanted = |name: &String| event.service.as_ref().is_some_and(|s| s.as_str() == name);
        if !args.services.is_empty() && !args.services.iter().any(wanted) {
            continue;
        }
        if args.json || ctx.json() {
            print_json_line(&json(&event))?;
        } else {
            print(&line(&event))?;
        }
    }
    Ok(())
}

fn json(event: &Event) -> serde_json::Value {
    serde_json::json!({
        "seq": event.seq,
        "at": time::rfc3339(event.at),
        "kind": event.kind,
        "stack": event.stack,
        "service": event.service,
        "instance": event.instance,
        "message": event.message,
    })
}

fn line(event: &Event) -> String {
    let kind = kind(event);
    let subject = event
        .instance
        .as_ref()
        .map(keel_model::InstanceId::as_str)
        .or(event.service.as_ref().map(keel_model::ServiceName::as_str))
        .or(event.stack.as_ref().map(keel_model::StackName::as_str))
        .unwrap_or("-");
    format!("{} {kind} {subject} {}\n", time::rfc3339(event.at), event.message)
}

/// The kind as it is in JSON.
pub fn kind(event: &Event) -> String {
    serde_json::to_value(event.kind)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keel_model::{EventKind, InstanceId, StackName};

    use super::*;

    #[test]
    fn a_line_has_time_kind_subject_and_message() {
        let event = Event {
            seq: 7,
            at: Timestamp(1_700_000_000_250),
            kind: EventKind::InstanceExited,
            stack: Some(StackName::new("shop").unwrap()),
            service: None,
            instance: Some(InstanceId::new("shop-web-1").unwrap()),
            message: "was killed by signal 9".to_owned(),
        };
        assert_eq!(
            line(&event),
            "2023-11-14T22:13:20.250Z instance_exited shop-web-1 was killed by signal 9\n"
        );
    }
}
