//! What an instance is doing, in the words of `docker compose ps`.

use std::time::Duration;

use keel_model::{Exit, Goal, Health, Phase, StartFailure, Timestamp};
use keel_server::api::types::{InstanceView, PublishedView, ServiceView};

use super::time;

/// The value of `ps --status` and of `state` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    /// Assigned, not yet taken up by its node.
    Created,
    /// Files, volumes and `pre_start` steps are being prepared.
    Starting,
    /// Its process runs.
    Running,
    /// It runs, but receives no new requests.
    Draining,
    /// It was asked to stop.
    Stopping,
    /// It ended.
    Exited,
    /// It could not be started.
    Failed,
}

impl State {
    /// What `instance` is doing.
    pub fn of(instance: &InstanceView) -> Self {
        let gone = instance.status.as_ref().is_some_and(|status| status.pid.is_none());
        match (instance.phase, instance.goal) {
            (None, _) => Self::Created,
            // How it ended is not known yet.
            (Some(Phase::Running), _) if gone => Self::Exited,
            (Some(Phase::Preparing), _) => Self::Starting,
            (Some(Phase::Running), Goal::Drain) => Self::Draining,
            (Some(Phase::Running), _) => Self::Running,
            (Some(Phase::Stopping), _) => Self::Stopping,
            (Some(Phase::Exited), _) => Self::Exited,
            (Some(Phase::Failed), _) => Self::Failed,
        }
    }

    /// The state as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Failed => "failed",
        }
    }
}

/// Longest reason in the STATUS column, in columns.
const MAX_WHY: usize = 60;
/// What is not ready for less than this is on its way.
const A_WHILE: Duration = Duration::from_secs(3);

/// The STATUS column: `Up 3 minutes (healthy)`.
pub fn line(instance: &InstanceView, now: Timestamp) -> String {
    let status = instance.status.as_ref();
    match State::of(instance) {
        State::Created => "Created".to_owned(),
        State::Starting => match message(instance) {
            "" => "Starting".to_owned(),
            why => format!("Starting: {}", super::table::shorten(why, MAX_WHY)),
        },
        State::Draining => "Draining".to_owned(),
        State::Stopping => "Stopping".to_owned(),
        State::Running => {
            let started = status.and_then(|s| s.started_at).unwrap_or(instance.created_at);
            let left_out = if instance.left_out { ", left out by the proxy" } else { "" };
            format!("Up {}{}{left_out}", time::words(now.since(started)), note(instance))
        }
        State::Exited => status
            .and_then(|s| s.exit.as_ref())
            .map_or_else(|| "Exited".to_owned(), |exit| exited(exit, now)),
        State::Failed => {
            format!("Failed: {}", super::table::shorten(message(instance), MAX_WHY))
        }
    }
}

/// The last thing worth telling, without the instance's name in front.
fn message(instance: &InstanceView) -> &str {
    let text = instance.status.as_ref().map_or("", |status| first_line(&status.message));
    text.strip_prefix("instance ")
        .and_then(|rest| rest.strip_prefix(instance.id.as_str()))
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(text)
}

fn note(instance: &InstanceView) -> String {
    let health = match instance.health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Starting => "health: starting",
        Health::None => "",
    };
    let ready = match (instance.ready, instance.health, message(instance)) {
        // These are not ready by themselves.
        (true, ..) | (_, Health::Unhealthy | Health::Starting, _) => String::new(),
        (false, _, "") => "not ready".to_owned(),
        (false, _, why) => format!("not ready: {}", super::table::shorten(why, MAX_WHY)),
    };
    let parts: Vec<&str> = [health, &ready].into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// Why an instance of the service that should take requests does not, if that has been so for a while.
pub fn waits(service: &ServiceView, now: Timestamp) -> Option<String> {
    let waits = |instance: &&InstanceView| {
        let state = matches!(State::of(instance), State::Starting | State::Running);
        let begun = instance.status.as_ref().and_then(|status| status.started_at);
        let long = now.since(begun.unwrap_or(instance.created_at)) > A_WHILE;
        state && !instance.ready && long && !message(instance).is_empty()
    };
    let instance = service.instances.iter().find(waits)?;
    Some(format!("{}: {}", instance.id, message(instance)))
}

fn exited(exit: &Exit, now: Timestamp) -> String {
    let code = exit_code(exit).map_or_else(|| "?".to_owned(), |code| code.to_string());
    let oom = if exit.oom { ", out of memory" } else { "" };
    format!("Exited ({code}{oom}) {} ago", time::words(now.since(exit.at)))
}

/// The exit code as a shell would see it: 128 + signal for a signal.
pub fn exit_code(exit: &Exit) -> Option<i32> {
    exit.code.or_else(|| exit.signal.map(|signal| 128 + signal))
}

/// How an instance ended, as half a sentence: `exited with code 1`.
pub fn exit_words(exit: &Exit) -> String {
    match (exit.oom, exit.code, exit.signal) {
        (true, ..) => "was killed because it ran out of memory".to_owned(),
        (_, Some(code), _) => format!("exited with code {code}"),
        (_, None, Some(signal)) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (_, None, None) => "ended in an unknown way".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// What is wrong with an instance, as half a sentence; `None` when nothing is known to be.
pub fn trouble(instance: &InstanceView) -> Option<String> {
    let status = instance.status.as_ref()?;
    match status.phase {
        Phase::Failed => Some(format!(
            "could not be started{}",
            suffix(message(instance), failure_words(status.failure))
        )),
        Phase::Exited => status.exit.as_ref().filter(|exit| !exit.success()).map(exit_words),
        _ if status.health == Health::Unhealthy => {
            Some(format!("is unhealthy{}", suffix(message(instance), "")))
        }
        _ => None,
    }
}

const fn failure_words(failure: Option<StartFailure>) -> &'static str {
    match failure {
        Some(StartFailure::NotFound) => "command not found",
        Some(StartFailure::NotExecutable) => "command not executable",
        Some(StartFailure::Hook) => "a pre_start step failed",
        Some(StartFailure::Away) => "the container engine is away",
        Some(StartFailure::Environment) => "its environment could not be prepared",
        None => "",
    }
}

fn suffix(message: &str, otherwise: &str) -> String {
    match if message.is_empty() { otherwise } else { message } {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("").trim()
}

/// The PORTS column: published ports, then those that only the service's address answers at.
pub fn ports(service: &ServiceView) -> String {
    let mut cells: Vec<String> = service.published.iter().map(published).collect();
    cells.extend(
        service
            .ports
            .iter()
            .filter(|port| !service.published.iter().any(|p| p.target == **port))
            .map(|port| format!("{port}/tcp")),
    );
    cells.join(", ")
}

fn published(view: &PublishedView) -> String {
    let closed = if view.error.is_some() { " (not open)" } else { "" };
    format!("{}->{}/tcp{closed}", view.address, view.target)
}
