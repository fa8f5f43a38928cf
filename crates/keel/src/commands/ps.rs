//! `keel ps`: lists the instances of a stack.

use keel_model::{Goal, ServiceName, Timestamp};
use keel_server::api::types::{InstanceView, ServiceView, StackView};
use serde::Serialize;

use crate::cli::{FileArgs, OutputForm};
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::status::{self, State};
use crate::ui::{table, time};
use crate::{names, project};

/// Width of the COMMAND column.
const COMMAND_WIDTH: usize = 40;
/// Width of the IMAGE column: a digest tells little that its beginning does not.
const IMAGE_WIDTH: usize = 40;

/// Options of `keel ps`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PsArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Also instances that have ended for good
    #[arg(short, long)]
    pub all: bool,
    /// Only names of instances
    #[arg(short, long)]
    pub quiet: bool,
    /// Only names of services
    #[arg(long = "services", conflicts_with = "quiet")]
    pub only_services: bool,
    /// Only instances in this state; may be given several times
    #[arg(long, value_name = "STATE")]
    pub status: Vec<State>,
    /// Only instances that match, such as status=running
    #[arg(long, value_name = "status=STATE", value_parser = parse_filter)]
    pub filter: Vec<State>,
    /// Do not cut long commands
    #[arg(long)]
    pub no_trunc: bool,
    /// As --output
    #[arg(long, hide = true, value_name = "FORM")]
    pub format: Option<OutputForm>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

fn parse_filter(text: &str) -> Result<State, String> {
    use clap::ValueEnum as _;
    let (key, value) = text.split_once('=').ok_or("write status=STATE")?;
    if key != "status" {
        return Err(format!("unknown filter {key:?}: the only one is status"));
    }
    State::from_str(value, true).map_err(|_| {
        let known: Vec<&str> = State::value_variants().iter().map(|s| s.as_str()).collect();
        format!("unknown status {value:?}: one of {}", known.join(", "))
    })
}

/// A command may hold whole scripts; a table has one line for it.
fn one_line(command: &str) -> String {
    command.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs the command.
///
/// # Errors
/// When there is no such stack or service.
pub async fn run(ctx: &Context, args: PsArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let (view, services) = names::stack_with(&ctx.client(), &stack, &args.services).await?;
    let now = time::now();
    let shown = select(&view, &services, &args);
    if args.only_services {
        let mut names: Vec<&ServiceName> = shown.iter().map(|row| row.0).collect();
        names.dedup();
        return print(&names.iter().map(|name| format!("{name}\n")).collect::<String>());
    }
    if args.quiet {
        return print(&shown.iter().map(|row| format!("{}\n", row.2.id)).collect::<String>());
    }
    if ctx.json() || args.format == Some(OutputForm::Json) {
        return print_json(&shown.iter().map(|row| json(row, now)).collect::<Vec<_>>());
    }
    print(&render(&shown, now, args.no_trunc))
}

type Row<'a> = (&'a ServiceName, &'a ServiceView, &'a InstanceView);

fn select<'a>(view: &'a StackView, services: &[ServiceName], args: &PsArgs) -> Vec<Row<'a>> {
    let states: Vec<State> = args.status.iter().chain(&args.filter).copied().collect();
    view.services
        .iter()
        .filter(|(name, _)| services.is_empty() || services.contains(name))
        .flat_map(|(name, service)| service.instances.iter().map(move |i| (name, service, i)))
        .filter(|(_, _, instance)| {
            if states.is_empty() {
                args.all || !ended(instance)
            } else {
                states.contains(&State::of(instance))
            }
        })
        .collect()
}

/// Whether an instance has ended and will not run again by itself.
fn ended(instance: &InstanceView) -> bool {
    let success = instance
        .status
        .as_ref()
        .and_then(|status| status.exit.as_ref())
        .is_some_and(keel_model::Exit::success);
    State::of(instance) == State::Exited && (success || instance.goal >= Goal::Stop)
}

fn render(rows: &[Row<'_>], now: Timestamp, full: bool) -> String {
    let cut = |text: &str, width| table::cut(text, if full { usize::MAX } else { width });
    // Stacks of host processes have none.
    let images = rows.iter().any(|(_, _, instance)| !instance.image.is_empty());
    let mut header = vec!["NAME", "SERVICE", "REVISION", "STATUS", "PORTS", "COMMAND"];
    if images {
        header.insert(1, "IMAGE");
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, service, instance)| {
            let mut cells = vec![
                instance.id.to_string(),
                name.to_string(),
                instance.revision.to_string(),
                status::line(instance, now),
                status::ports(service),
                cut(&one_line(&instance.command), COMMAND_WIDTH),
            ];
            if images {
                cells.insert(1, cut(&instance.image, IMAGE_WIDTH));
            }
            cells
        })
        .collect();
    table::render(&header, &rows)
}

#[derive(Serialize)]
struct Json<'a> {
    name: &'a str,
    service: &'a str,
    revision: &'a str,
    node: &'a str,
    state: &'static str,
    status: String,
    health: keel_model::Health,
    ready: bool,
    left_out: bool,
    goal: Goal,
    reason: &'a str,
    attempts: u32,
    exit_code: Option<i32>,
    pid: Option<u32>,
    addresses: Vec<String>,
    published: Vec<serde_json::Value>,
    created_at: String,
    started_at: Option<String>,
    message: &'a str,
    not_enforced: &'a [String],
    command: &'a str,
    image: &'a str,
}

fn json<'a>((name, service, instance): &Row<'a>, now: Timestamp) -> Json<'a> {
    let report = instance.status.as_ref();
    Json {
        name: instance.id.as_str(),
        service: name.as_str(),
        revision: instance.revision.as_str(),
        node: instance.node.as_str(),
        state: State::of(instance).as_str(),
        status: status::line(instance, now),
        health: instance.health,
        ready: instance.ready,
        left_out: instance.left_out,
        goal: instance.goal,
        reason: &instance.reason,
        attempts: instance.attempts,
        exit_code: report.and_then(|s| s.exit.as_ref()).and_then(status::exit_code),
        pid: report.and_then(|s| s.pid),
        addresses: report
            .map(|s| s.ports.iter().map(|port| port.address.to_string()).collect())
            .unwrap_or_default(),
        published: service
            .published
            .iter()
            .map(
                |p| serde_json::json!({"address": p.address, "target": p.target, "error": p.error}),
            )
            .collect(),
        created_at: time::rfc3339(instance.created_at),
        started_at: report.and_then(|s| s.started_at).map(time::rfc3339),
        message: report.map_or("", |s| &s.message),
        not_enforced: report.map_or(&[], |s| &s.not_enforced),
        command: &instance.command,
        image: &instance.image,
    }
}
