//! Why services failed: which instance, how it ended, and its last words.
//!
//! Instances of a revision that is rolled back are removed with their logs, so evidence is gathered while it is
//! there: whenever a view shows an instance in trouble that was not seen before.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{Goal, Health, InstanceId, Phase, RolloutState, ServiceName};
use keel_server::api::client::Client;
use keel_server::api::types::{InstanceView, LogsQuery, ServiceView, StackView};
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::ui::paint::Paint;
use crate::ui::status;

/// Log lines that are kept of an instance.
const LINES: usize = 20;
/// Pause before a second look when there are none.
const LOG_DELAY: Duration = Duration::from_millis(150);
/// Time to fetch them.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Instances whose logs are fetched at most per service: a crash loop shows the same every time.
const MAX_FETCHES: u32 = 20;

/// Trouble of an instance that runs, as half a sentence.
const NEVER_READY: &str = "did not become ready";
/// What to do about a program that listens on another port than its own.
const PORT_HINT: &str = "each instance must listen on the port that $PORT names; the service's own port belongs to its \
     virtual address (see docs/processes.md), or give it `x-keel: {network: isolated}`";

/// The same of a container.
const CONTAINER_HINT: &str = "a container must take connections at its first port at its own address (0.0.0.0, not 127.0.0.1); \
     name the port with `expose`, or give it `x-keel: {readiness: none}`";

/// What is known of one service's failure.
#[derive(Clone, Debug)]
struct Note {
    instance: InstanceId,
    attempt: u32,
    fetches: u32,
    /// As half a sentence.
    trouble: String,
    log: Vec<String>,
}

/// What is known of failures.
#[derive(Debug, Default)]
pub struct Evidence {
    notes: BTreeMap<ServiceName, Note>,
}

impl Evidence {
    /// Takes in a view of the stack; `covers` says which services matter.
    pub async fn gather(
        &mut self,
        client: &Client,
        view: &StackView,
        covers: impl Fn(&ServiceName) -> bool,
    ) {
        for (name, service) in view.services.iter().filter(|(name, _)| covers(name)) {
            let Some((instance, trouble)) = suspect(service) else { continue };
            let known = self.notes.get(name);
            let fetches = known.map_or(0, |note| note.fetches);
            let same =
                known.is_some_and(|n| n.instance == instance.id && n.attempt == instance.attempts);
            if same || fetches >= MAX_FETCHES {
                continue;
            }
            let mut log = last_lines(client, view, &instance.id).await;
            if log.is_empty() {
                // The exit may be known a moment before the last lines.
                sleep(LOG_DELAY).await;
                log = last_lines(client, view, &instance.id).await;
            }
            let note = Note {
                instance: instance.id.clone(),
                attempt: instance.attempts,
                fetches: fetches + 1,
                trouble,
                log,
            };
            self.notes.insert(name.clone(), note);
        }
    }

    /// The error that tells what failed in `view`.
    pub fn failure<'a>(
        &self,
        stack: &str,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceView)>,
        paint: Paint,
    ) -> Failure {
        let mut details = Vec::new();
        let mut names = Vec::new();
        let mut port_hint = None;
        let mut code = "service_failed";
        for (name, service) in services.filter(|(_, service)| service.failed) {
            names.push(name.as_str());
            if service.state == "rolled back" {
                code = "rolled_back";
            }
            port_hint = port_hint.or_else(|| self.wrong_port(name, service));
            details.extend(self.describe(name, service, paint));
        }
        let message = match (names.as_slice(), code) {
            ([name], "rolled_back") => {
                format!("the new revision of service {name} failed and was rolled back")
            }
            ([name], _) => format!("service {name} of stack {stack} failed"),
            (names, _) => format!("services {} of stack {stack} failed", names.join(", ")),
        };
        let first = names.first().copied().unwrap_or_default();
        let hint = if code == "rolled_back" {
            format!(
                "the earlier revision serves on; correct the file and run `keel up` again, or see `keel events` and `keel logs {first}`"
            )
        } else {
            format!(
                "see `keel logs {first}` and `keel ps -a`; correct the file and run `keel up` again"
            )
        };
        let hint = port_hint.map(|it| format!("{it}\nhint: {hint}")).unwrap_or(hint);
        Failure::failed(code, message).details(details).hint(hint)
    }

    /// What to do when one of the services seems to listen on the wrong port.
    pub fn port_hint<'a>(
        &self,
        mut services: impl Iterator<Item = (&'a ServiceName, &'a ServiceView)>,
    ) -> Option<&'static str> {
        services.find_map(|(name, service)| self.wrong_port(name, service))
    }

    /// What to do if a service's port was taken, by its own words, or nothing ever answered at the one it was given.
    fn wrong_port(&self, name: &ServiceName, service: &ServiceView) -> Option<&'static str> {
        let note = self.notes.get(name);
        let taken = note.is_some_and(|n| n.log.iter().any(|l| l.contains("ddress already in use")));
        let silent = |instance: &InstanceView| {
            instance.phase == Some(Phase::Running)
                && !instance.ready
                && instance.health != Health::Unhealthy
        };
        let never_ready = service.reason.contains("was not ready within")
            || note.is_some_and(|note| note.trouble == NEVER_READY);
        let mute = never_ready || (!service.converged && service.instances.iter().any(silent));
        let contained = service.instances.iter().any(|instance| !instance.image.is_empty());
        let hint = if contained { CONTAINER_HINT } else { PORT_HINT };
        (taken || (!service.ports.is_empty() && mute)).then_some(hint)
    }

    fn describe(&self, name: &ServiceName, service: &ServiceView, paint: Paint) -> Vec<String> {
        let mut lines = Vec::new();
        let reason = service.reason.lines().next().unwrap_or("");
        lines.push(format!("{}: {}", paint.bold(name), joined(&service.state, reason)));
        if let Some(note) = self.notes.get(name) {
            if !reason.contains(note.instance.as_str()) {
                lines.push(format!("  instance {} {}", note.instance, note.trouble));
            }
            if note.log.is_empty() {
                lines.push(format!("  {} wrote nothing", note.instance));
            } else {
                lines.push(format!("  last lines of {}:", note.instance));
                lines.extend(note.log.iter().map(|l| format!("    {} {l}", paint.dim("|"))));
            }
        }
        lines
    }

    /// A service whose instance could not be started or ended badly, whatever the server makes of it.
    pub fn first_trouble(&self) -> Option<(&ServiceName, &str)> {
        self.notes.iter().next().map(|(name, note)| (name, note.trouble.as_str()))
    }

    /// The error for instances that could not be started or ended at once, before the server gave up on them.
    pub fn early_failure(&self, view: &StackView, paint: Paint) -> Option<Failure> {
        let (first, trouble) = self.first_trouble()?;
        let details = self
            .notes
            .keys()
            .filter_map(|name| view.services.get(name).map(|service| (name, service)))
            .flat_map(|(name, service)| self.describe(name, service, paint))
            .collect();
        let note = self.notes.get(first)?;
        let mut hint = format!(
            "see `keel ps -a` and `keel logs {first}`; `keel up --wait` tells whether it recovers"
        );
        if let Some(port_hint) = self.port_hint(view.services.iter().filter(|s| s.0 == first)) {
            hint = format!("{port_hint}\nhint: {hint}");
        }
        Some(
            Failure::failed("service_failed", format!("instance {} {trouble}", note.instance))
                .details(details)
                .hint(hint),
        )
    }
}

fn joined(state: &str, reason: &str) -> String {
    if reason.is_empty() { state.to_owned() } else { format!("{state}: {reason}") }
}

/// The instance that explains best why a service has trouble.
fn suspect(service: &ServiceView) -> Option<(&InstanceView, String)> {
    let rollout = service.rollout.as_ref();
    let target = rollout.map_or(&service.revision, |rollout| &rollout.to);
    let mut of_target = service.instances.iter().rev().filter(|i| i.revision == *target);
    if let Some(found) =
        of_target.clone().find_map(|i| status::trouble(i).map(|trouble| (i, trouble)))
    {
        return Some(found);
    }
    if let Some(found) = service
        .failed_instance
        .as_ref()
        .and_then(|id| service.instances.iter().find(|instance| instance.id == *id))
    {
        let trouble = status::trouble(found).unwrap_or_else(|| NEVER_READY.to_owned());
        return Some((found, trouble));
    }
    let turning_back = rollout.is_some_and(|r| {
        matches!(r.state, RolloutState::RollingBack | RolloutState::Failed | RolloutState::Paused)
    });
    if !turning_back {
        return None;
    }
    of_target
        .find(|instance| instance.goal != Goal::Run || !instance.ready)
        .map(|instance| (instance, NEVER_READY.to_owned()))
}

async fn last_lines(client: &Client, view: &StackView, instance: &InstanceId) -> Vec<String> {
    let query =
        LogsQuery { services: instance.to_string(), tail: Some(LINES), ..LogsQuery::default() };
    let fetch = async {
        let mut lines = Vec::new();
        let Ok(mut stream) = client.logs(view.name.as_str(), &query).await else { return lines };
        while let Some(Ok(record)) = stream.next().await {
            if lines.len() == LINES {
                lines.remove(0);
            }
            lines.push(record.text);
        }
        lines
    };
    timeout(FETCH_TIMEOUT, fetch).await.unwrap_or_default()
}
