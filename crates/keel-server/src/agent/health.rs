//! Readiness and health of one running instance, as two loops that report what they find.

use std::time::Duration;

use keel_model::{Health, HealthCheck, InstanceId, PortBinding, Probe, Readiness, Test, Timestamp};
use keel_runtime::{ExecRequest, Runtime};

use crate::clock;

/// First pause of the startup probe; doubles up to [`STARTUP_PAUSE_MAX`], so that a fast program is ready at once.
const STARTUP_PAUSE: Duration = Duration::from_millis(10);
/// Largest pause of the startup probe.
const STARTUP_PAUSE_MAX: Duration = Duration::from_secs(1);
/// First pause of a health check before its first success; doubles up to the check's `start_interval`.
const HEALTH_PAUSE: Duration = Duration::from_millis(25);
/// A program that is not asked anything must have run for this long before it counts as ready: one that ends at
/// once was never ready.
const SETTLE: Duration = Duration::from_millis(300);
/// Longest text kept of a check's output, in bytes.
const MAX_WORDS: usize = 1024;

/// Where a loop says what it found.
pub type Report<'a> = &'a (dyn Fn(Finding) + Send + Sync);

/// What a loop found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The readiness probe's verdict changed.
    Answering(bool, String),
    /// The health check's verdict changed.
    Health(Health, String),
}

/// Asks for readiness until dropped; `known` is the verdict from before, if any.
pub async fn watch_readiness(
    readiness: Readiness,
    ports: Vec<PortBinding>,
    id: InstanceId,
    runtime: &dyn Runtime,
    known: bool,
    report: Report<'_>,
) {
    let port = match readiness.port {
        Some(target) => ports.iter().find(|binding| binding.target == target),
        None => ports.first(),
    };
    let asked = match (&readiness.probe, port) {
        (Some(probe), _) => probe.clone(),
        (None, Some(_)) => Probe::Tcp,
        (None, None) => Probe::None,
    };
    if asked == Probe::None {
        if !known {
            tokio::time::sleep(SETTLE).await;
        }
        report(Finding::Answering(true, String::new()));
        return std::future::pending().await;
    }
    let (mut ready, mut first) = (known, !known);
    let (mut streak, mut pause) = (0, STARTUP_PAUSE);
    loop {
        let answer = ask(&asked, port, &id, runtime, readiness.timeout).await;
        let good = answer.is_ok();
        streak = if good == ready { 0 } else { streak + 1 };
        let needed = match (ready, first) {
            (false, true) => 1,
            (false, false) => readiness.successes.max(1),
            (true, _) => readiness.failures.max(1),
        };
        if streak >= needed {
            (ready, first, streak) = (good, false, 0);
            report(Finding::Answering(ready, answer.err().unwrap_or_default()));
        } else if let (true, Err(reason)) = (first, answer) {
            report(Finding::Answering(false, reason));
        }
        let next = if first {
            pause = (pause * 2).min(STARTUP_PAUSE_MAX);
            pause
        } else {
            readiness.interval
        };
        tokio::time::sleep(next).await;
    }
}

async fn ask(
    probe: &Probe,
    port: Option<&PortBinding>,
    id: &InstanceId,
    runtime: &dyn Runtime,
    timeout: Duration,
) -> Result<(), String> {
    match (probe, port) {
        (Probe::Exec(command), _) => run(runtime, id, command.clone(), timeout).await,
        (Probe::None, _) => Ok(()),
        (_, Some(binding)) => keel_runtime::check(probe, binding.address, timeout).await,
        (_, None) => Err("the readiness probe names a port that the service does not have".into()),
    }
}

/// Runs the health check until dropped; `known` is the verdict from before.
///
/// Until the first success it is asked often, beginning at [`STARTUP_PAUSE`], so that a fast program is healthy at
/// once. A failure counts only when a whole interval has passed since the one before (or the start), so that asking
/// often makes no instance unhealthy sooner than the file says.
pub async fn watch_health(
    check: HealthCheck,
    id: InstanceId,
    runtime: &dyn Runtime,
    started_at: Timestamp,
    known: Health,
    report: Report<'_>,
) {
    let command = match &check.test {
        Test::Exec(command) => command.clone(),
        Test::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
    };
    let (mut verdict, mut failures, mut counted) = (known, 0, started_at);
    let mut pause = HEALTH_PAUSE;
    loop {
        let answer = run(runtime, &id, command.clone(), check.timeout).await;
        let now = clock::now();
        if answer.is_ok() {
            (verdict, failures, counted) = (Health::Healthy, 0, now);
        } else if verdict == Health::Healthy
            || (now.since(started_at) >= check.start_period && now.since(counted) >= check.interval)
        {
            (failures, counted) = (failures + 1, now);
            if failures >= check.retries.max(1) {
                verdict = Health::Unhealthy;
            }
        }
        report(Finding::Health(verdict, answer.err().unwrap_or_default()));
        tokio::time::sleep(if verdict == Health::Starting {
            pause = (pause * 2).min(check.start_interval);
            pause.min(check.interval)
        } else {
            check.interval
        })
        .await;
    }
}

async fn run(
    runtime: &dyn Runtime,
    id: &InstanceId,
    command: Vec<String>,
    timeout: Duration,
) -> Result<(), String> {
    let request = ExecRequest { command, timeout: Some(timeout), ..ExecRequest::default() };
    match runtime.exec(id, request).await {
        Ok(output) if output.code == 0 => Ok(()),
        Ok(output) => {
            let words = last_words(&output.output);
            let colon = if words.is_empty() { "" } else { ": " };
            Err(format!("the check ended with code {}{colon}{words}", output.code))
        }
        Err(error) => Err(format!("the check could not run: {error}")),
    }
}

/// The end of a command's output, of bounded length.
pub fn last_words(output: &str) -> &str {
    let start = output.len().saturating_sub(MAX_WORDS);
    let start = (start..=output.len()).find(|at| output.is_char_boundary(*at)).unwrap_or(0);
    output[start..].trim()
}
