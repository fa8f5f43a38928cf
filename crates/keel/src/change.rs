//! What all commands that change a stack have in common after the server said yes: wait, show, conclude.

use std::collections::BTreeSet;
use std::time::Duration;

use keel_model::{ServiceName, StackName};
use keel_server::api::client::Client;
use keel_server::api::types::{Applied, StackView};
use serde::Serialize;

use crate::context::{Context, print_json};
use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::ui::progress::{self, Progress};
use crate::ui::{status, time};
use crate::wait::{Outcome, Until, Wait};

/// How long a command waits.
#[derive(clap::Args, Clone, Debug)]
pub struct WaitArgs {
    /// Return as soon as the server has taken the change
    #[arg(short, long)]
    pub detach: bool,
    /// Give up waiting after this time (seconds, or a duration such as 5m); the change goes on
    #[arg(long, value_name = "TIME", value_parser = time::parse_seconds, default_value = "10m")]
    pub wait_timeout: Duration,
}

/// A change that the server has taken.
pub struct Change<'a> {
    /// Options and streams.
    pub ctx: &'a Context,
    /// The server.
    pub client: &'a Client,
    /// Of which stack.
    pub stack: &'a StackName,
    /// The server's answer.
    pub applied: &'a Applied,
    /// The services that matter; all when absent.
    pub services: Option<BTreeSet<ServiceName>>,
    /// What is waited for.
    pub until: Until,
    /// How long.
    pub limit: Option<Duration>,
    /// What is said at the end: `shop is up`.
    pub done: String,
}

#[derive(Serialize)]
struct Json<'a> {
    stack: &'a str,
    generation: u64,
    result: &'a str,
    changes: &'a [keel_server::api::types::ChangeView],
}

impl Change<'_> {
    /// Waits for the end of the change and says how it went.
    ///
    /// # Errors
    /// When a service failed, the time is over, or the server went away.
    pub async fn settle(&self) -> Result<Option<StackView>, Failure> {
        let mut progress = Progress::new(self.ctx.progress(), self.ctx.talk);
        let mut evidence = Evidence::default();
        let wait = self.wait();
        let outcome = wait.run(self.client, &mut progress, &mut evidence).await?;
        self.conclude(&wait, outcome, progress, &evidence)
    }

    /// What is waited for.
    pub fn wait(&self) -> Wait {
        Wait {
            stack: self.stack.clone(),
            services: self.services.clone(),
            generation: self.applied.generation,
            until: self.until,
            limit: self.limit,
        }
    }

    /// Says how it went.
    ///
    /// # Errors
    /// When a service failed or the time is over.
    pub fn conclude(
        &self,
        wait: &Wait,
        outcome: Outcome,
        progress: Progress,
        evidence: &Evidence,
    ) -> Result<Option<StackView>, Failure> {
        let elapsed = progress.elapsed();
        match outcome {
            Outcome::Reached(view) => {
                progress.finish(&self.summary(view.as_ref(), elapsed));
                self.warn_closed_ports(wait, view.as_ref());
                self.print_result(self.reached())?;
                Ok(view)
            }
            Outcome::Failed(view) => {
                let talk = self.ctx.talk;
                progress.finish(&format!("{} {} failed", talk.bad("✘"), self.stack));
                self.print_result("failed")?;
                Err(evidence.failure(self.stack.as_str(), wait.scope(&view), talk))
            }
            Outcome::TimedOut(view) => {
                drop(progress);
                self.print_result("timeout")?;
                Err(self.timed_out(wait, view.as_ref(), evidence))
            }
        }
    }

    /// A port that could not be opened harms only those who come through it, so it is no failure of the change.
    fn warn_closed_ports(&self, wait: &Wait, view: Option<&StackView>) {
        for entrypoint in view.into_iter().flat_map(|view| &view.entrypoints) {
            if let Some(error) = &entrypoint.error {
                let (name, address) = (&entrypoint.name, entrypoint.address);
                self.ctx.warn(&format!("entrypoint {name}: {address} is not open: {error}"));
            }
        }
        for (name, service) in view.into_iter().flat_map(|view| wait.scope(view)) {
            for port in &service.published {
                if let Some(error) = &port.error {
                    self.ctx
                        .warn(&format!("service {name}: {} is not open: {error}", port.address));
                }
            }
        }
    }

    fn summary(&self, view: Option<&StackView>, elapsed: Duration) -> String {
        let counts = view.map(|view| format!(": {}", progress::count(view))).unwrap_or_default();
        let elapsed = self.ctx.talk.dim(time::short(elapsed));
        format!("{} {}{counts}  {elapsed}", self.ctx.talk.good("✔"), self.done)
    }

    fn timed_out(&self, wait: &Wait, view: Option<&StackView>, evidence: &Evidence) -> Failure {
        let limit = time::short(self.limit.unwrap_or_default());
        let details = view
            .into_iter()
            .flat_map(|view| wait.scope(view))
            .filter(|(_, service)| !service.converged)
            .map(|(name, s)| {
                let waits = status::waits(s, time::now());
                let reason = waits.as_deref().unwrap_or(&s.reason);
                format!("{name}: {} {}/{} ready  {reason}", s.state, s.ready, s.desired)
            })
            .collect();
        let mut hint =
            "the change goes on in the background: see `keel ps` and `keel events -f`".to_owned();
        if let Some(view) = view
            && let Some(port_hint) = evidence.port_hint(wait.scope(view))
        {
            hint = format!("{port_hint}\nhint: {hint}");
        }
        Failure::failed("timeout", format!("stack {} was not done within {limit}", self.stack))
            .details(details)
            .hint(hint)
    }

    const fn reached(&self) -> &'static str {
        match self.until {
            Until::Started => "started",
            Until::Converged => "converged",
            Until::Stopped => "stopped",
            Until::Gone => "removed",
        }
    }

    /// Prints the result for programs, when that is wanted.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn print_result(&self, result: &str) -> Result<(), Failure> {
        if !self.ctx.json() {
            return Ok(());
        }
        print_json(&Json {
            stack: self.stack.as_str(),
            generation: self.applied.generation.0,
            result,
            changes: &self.applied.changes,
        })
    }
}
