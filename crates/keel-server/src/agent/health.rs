//! Readiness and health of one running instance, as two loops that report what they find.

use std::time::{Duration, Instant};

use keel_model::{Health, HealthCheck, InstanceId, PortBinding, Probe, Readiness, Test, Timestamp};
use keel_runtime::{Error, ExecRequest, Runtime};

use crate::clock;

/// First pause of the startup probe; doubles up to [`STARTUP_PAUSE_MAX`], so that a fast program is ready at once.
const STARTUP_PAUSE: Duration = Duration::from_millis(10);
/// Largest pause of the startup probe.
const STARTUP_PAUSE_MAX: Duration = Duration::from_secs(1);
/// First pause of a health check before its first success; doubles up to the check's `start_interval`.
const HEALTH_PAUSE: Duration = Duration::from_millis(25);
/// A container that listens at none of its image's ports by then is not one that does.
const GUESS: Duration = Duration::from_secs(10);
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

/// Asks for readiness until dropped; `known` is the verdict from before, if any. A service with a health check (`checked`)
/// is not asked at ports that only its image names.
pub async fn watch_readiness(
    readiness: Readiness,
    checked: bool,
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
    let guessed = readiness.from_image && readiness.probe.is_none() && readiness.port.is_none();
    let port = port.filter(|_| !(guessed && checked));
    let asked = match (&readiness.probe, port) {
        (Some(probe), _) => probe.clone(),
        (None, Some(_)) => Probe::Tcp,
        (None, None) => Probe::None,
    };
    if asked == Probe::None {
        // A check says more than time does.
        if !known && !checked {
            tokio::time::sleep(SETTLE).await;
        }
        report(Finding::Answering(true, String::new()));
        return std::future::pending().await;
    }
    let (mut ready, mut first) = (known, !known);
    let (mut streak, mut pause) = (0, STARTUP_PAUSE);
    let begun = Instant::now();
    loop {
        let answer = match ask(&asked, port, &id, runtime, readiness.timeout).await {
            Answer::Given(answer) => answer,
            Answer::None => {
                tokio::time::sleep(readiness.interval).await;
                continue;
            }
        };
        if guessed && first && answer.is_err() && begun.elapsed() > GUESS {
            report(Finding::Answering(true, String::new()));
            return std::future::pending().await;
        }
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
) -> Answer {
    Answer::Given(match (probe, port) {
        (Probe::Exec(command), _) => return run(runtime, id, command.clone(), timeout).await,
        (Probe::None, _) => Ok(()),
        (_, Some(binding)) => keel_runtime::check(probe, binding.address, timeout).await,
        (_, None) => Err("the readiness probe names a port that the service does not have".into()),
    })
}

/// What came of a question.
enum Answer {
    /// It is well, or why not.
    Given(Result<(), String>),
    /// It could not be asked, which says nothing about the instance.
    None,
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
        let answer = match run(runtime, &id, command.clone(), check.timeout).await {
            Answer::Given(answer) => answer,
            Answer::None => {
                tokio::time::sleep(check.interval).await;
                continue;
            }
        };
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
) -> Answer {
    let request = ExecRequest { command, timeout: Some(timeout), ..ExecRequest::default() };
    Answer::Given(match runtime.exec(id, request).await {
        // Nothing is heard of the instance, good or bad; that it has ended is seen elsewhere, and how.
        Err(Error::Away(_) | Error::NotRunning(_)) => return Answer::None,
        Ok(output) if output.code == 0 => Ok(()),
        Ok(output) => {
            let words = last_words(&output.output);
            let colon = if words.is_empty() { "" } else { ": " };
            Err(format!("the check ended with code {}{colon}{words}", output.code))
        }
        Err(error) => Err(format!("the check could not run: {error}")),
    })
}

/// The end of a command's output, of bounded length.
pub fn last_words(output: &str) -> &str {
    let start = output.len().saturating_sub(MAX_WORDS);
    let start = (start..=output.len()).find(|at| output.is_char_boundary(*at)).unwrap_or(0);
    output[start..].trim()
}
