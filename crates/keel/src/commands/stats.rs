//! `keel stats`: what the instances of a stack use.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{InstanceId, ServiceName, StackName};
use keel_server::api::client::Client;
use keel_server::api::usage::{Transfer, UsageView};
use serde::Serialize;

use crate::cli::{FileArgs, OutputForm};
use crate::context::{Context, print_look};
use crate::failure::Failure;
use crate::ui::{quantity, table};
use crate::{names, project};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Options of `keel stats`.
#[derive(clap::Args, Clone, Debug)]
pub struct StatsArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Measure for one second and end
    #[arg(long)]
    pub no_stream: bool,
    /// Do not cut names; they never are, so that scripts written for docker compose run unchanged
    #[arg(long)]
    pub no_trunc: bool,
    /// As --output
    #[arg(long, hide = true, value_name = "FORM")]
    pub format: Option<OutputForm>,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// What one instance uses.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    name: InstanceId,
    service: ServiceName,
    /// Of one processor, in percent; absent if it was not there a look before.
    cpu_percent: Option<f64>,
    memory_bytes: u64,
    memory_limit: u64,
    memory_percent: f64,
    pids: u64,
    /// Bytes received and sent; absent where it shares its network with others.
    network: Option<Transfer>,
    /// Bytes read and written; absent where they are not counted.
    block: Option<Transfer>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such stack or service, or the stack goes away meanwhile.
pub async fn run(ctx: &Context, args: StatsArgs) -> Result<(), Failure> {
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let (_, services) = names::stack_with(&client, &stack, &args.services).await?;
    let json = ctx.json() || args.format == Some(OutputForm::Json);
    let mut before = look(&client, &stack, &services).await?;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let after = look(&client, &stack, &services).await?;
        let rows = rows(&before, &after);
        print_look(&rows, || render(&rows), json, !args.no_stream)?;
        if args.no_stream {
            return Ok(());
        }
        before = after;
    }
}

async fn look(
    client: &Client,
    stack: &StackName,
    services: &[ServiceName],
) -> Result<Vec<UsageView>, Failure> {
    let mut all = client.stats(stack.as_str()).await?;
    all.retain(|usage| services.is_empty() || services.contains(&usage.service));
    Ok(all)
}

fn rows(before: &[UsageView], after: &[UsageView]) -> Vec<Row> {
    let before: BTreeMap<_, _> = before.iter().map(|usage| (&usage.instance, usage)).collect();
    after.iter().map(|usage| row(before.get(&usage.instance).copied(), usage)).collect()
}

#[allow(clippy::cast_precision_loss, reason = "a few digits are shown")]
fn row(before: Option<&UsageView>, now: &UsageView) -> Row {
    // One that was started anew meanwhile has used less than before.
    let cpu_percent = before.and_then(|before| {
        let time = now.at_usec.checked_sub(before.at_usec).filter(|time| *time > 0)?;
        Some(now.cpu_usec.checked_sub(before.cpu_usec)? as f64 / time as f64 * 100.0)
    });
    let share = now.memory_bytes as f64 / now.memory_limit.max(1) as f64 * 100.0;
    Row {
        name: now.instance.clone(),
        service: now.service.clone(),
        cpu_percent,
        memory_bytes: now.memory_bytes,
        memory_limit: now.memory_limit,
        memory_percent: if now.memory_limit == 0 { 0.0 } else { share },
        pids: now.pids,
        network: now.network,
        block: now.block,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a few digits are shown")]
fn render(rows: &[Row]) -> String {
    let header =
        ["NAME", "SERVICE", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    let both = |transfer: Option<Transfer>| {
        let bytes = |count: u64| quantity::bytes(count as f64);
        transfer.map_or_else(
            || "-".to_owned(),
            |it| format!("{} / {}", bytes(it.inward), bytes(it.outward)),
        )
    };
    let cells = rows.iter().map(|row| {
        let used = quantity::bytes(row.memory_bytes as f64);
        let limit = quantity::bytes(row.memory_limit as f64);
        vec![
            row.name.to_string(),
            row.service.to_string(),
            row.cpu_percent.map_or_else(|| "--".to_owned(), |share| format!("{share:.2}%")),
            format!("{used} / {limit}"),
            format!("{:.2}%", row.memory_percent),
            both(row.network),
            both(row.block),
            row.pids.to_string(),
        ]
    });
    table::render(&header, &cells.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(at_usec: u64, cpu_usec: u64) -> UsageView {
        UsageView {
            instance: InstanceId::new("app-web-1").unwrap(),
            service: ServiceName::new("web").unwrap(),
            at_usec,
            cpu_usec,
            memory_bytes: 5_000_000,
            memory_limit: 20_000_000,
            pids: 3,
            network: Some(Transfer { inward: 1500, outward: 20 }),
            block: None,
        }
    }

    #[test]
    fn shares_are_those_of_the_time_between_two_looks() {
        let rows = rows(&[usage(1_000_000, 500_000)], &[usage(3_000_000, 3_500_000)]);
        assert_eq!(rows[0].cpu_percent, Some(150.0));
        insta::assert_snapshot!(render(&rows), @r"
        NAME        SERVICE   CPU %     MEM USAGE / LIMIT   MEM %    NET I/O       BLOCK I/O   PIDS
        app-web-1   web       150.00%   5.0MB / 20MB        25.00%   1.5kB / 20B   -           3
        ");
    }

    #[test]
    fn what_was_started_anew_is_not_measured_against_what_was_before() {
        let anew = rows(&[usage(1_000_000, 500_000)], &[usage(2_000_000, 100)]);
        assert_eq!(anew[0].cpu_percent, None);
        assert_eq!(rows(&[], &[usage(1, 1)])[0].cpu_percent, None);
    }
}
