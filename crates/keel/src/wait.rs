//! Waits until a change has taken effect, and shows how it goes.
//!
//! What is waited for is level-triggered: each view of the stack is judged as a whole. A server that is replaced
//! meanwhile is found again; that is bounded by [`RECONNECT`].

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use keel_model::{Generation, Phase, ServiceName, StackName};
use keel_server::api::client::{Client, Error, Lines};
use keel_server::api::types::{ServiceView, StackView};
use tokio::time::{Instant, sleep, timeout_at};

use crate::evidence::Evidence;
use crate::failure::Failure;
use crate::ui::progress::Progress;

/// How long a server that went away is looked for.
pub const RECONNECT: Duration = Duration::from_secs(30);
/// Pause between two looks.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How often is looked whether there is something to say while nothing changes.
const LOOK: Duration = Duration::from_secs(1);

/// How long the others are waited for when a service has failed: what is wrong is often wrong with several, and better told
/// at once.
const OTHERS: Duration = Duration::from_secs(2);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Each service has an instance that was started, or could not be.
    Started,
    /// Nothing is left to do.
    Converged,
    /// No process runs any more.
    Stopped,
    /// The stack is gone.
    Gone,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// As wanted; the last view, unless the stack is gone.
    Reached(Option<StackView>),
    /// Some service failed.
    Failed(StackView),
    /// The time is over.
    TimedOut(Option<StackView>),
}

/// Which part of a stack is waited for, and for what.
#[derive(Debug)]
pub struct Wait {
    /// The stack.
    pub stack: StackName,
    /// These services; all when absent.
    pub services: Option<BTreeSet<ServiceName>>,
    /// Views of earlier generations say nothing.
    pub generation: Generation,
    /// What for.
    pub until: Until,
    /// How long; without end when absent.
    pub limit: Option<Duration>,
}

impl Wait {
    /// Waits, shows progress, and gathers evidence of failures on the way.
    ///
    /// # Errors
    /// When the server goes away and does not come back.
    pub async fn run(
        &self,
        client: &Client,
        progress: &mut Progress,
        evidence: &mut Evidence,
    ) -> Result<Outcome, Failure> {
        let deadline = self.limit.map(|limit| Instant::now() + limit);
        let mut last: Option<StackView> = None;
        let mut failed: Option<Instant> = None;
        let mut watch = Watch::new(client.clone(), self.stack.clone());
        loop {
            let mut next = pin!(watch.next());
            let next = loop {
                let look = Instant::now() + LOOK;
                let until = deadline.map_or(look, |deadline| deadline.min(look));
                let until = failed.map_or(until, |since| until.min(since + OTHERS));
                if let Ok(next) = timeout_at(until, &mut next).await {
                    break next?;
                }
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if failed.is_some_and(|since| late || since.elapsed() >= OTHERS)
                    && let Some(view) = last.take()
                {
                    return Ok(Outcome::Failed(view));
                }
                if late {
                    return Ok(Outcome::TimedOut(last));
                }
                // What has stayed as it is for a while has a reason.
                last.iter().for_each(|view| progress.update(self.scope(view)));
            };
            let Some(view) = next else { return Ok(Outcome::Reached(None)) };
            progress.update(self.scope(&view));
            if view.generation < self.generation {
                continue;
            }
            evidence.gather(client, &view, |name| self.covers(name)).await;
            if let Some(outcome) = self.judge(view, &mut last, &mut failed) {
                return Ok(outcome);
            }
        }
    }

    fn judge(
        &self,
        view: StackView,
        last: &mut Option<StackView>,
        failed: &mut Option<Instant>,
    ) -> Option<Outcome> {
        let has_failed = self.scope(&view).any(|(_, service)| service.failed && settled(service));
        let reached = match self.until {
            Until::Started => self.scope(&view).all(|(_, service)| started(service)),
            Until::Converged if self.services.is_none() && !view.converged => false,
            Until::Converged => self.scope(&view).all(|(_, service)| settled(service)),
            Until::Stopped => self.scope(&view).all(|(_, service)| idle(service)),
            Until::Gone => false,
        };
        let matters = matches!(self.until, Until::Started | Until::Converged);
        if matters && has_failed {
            let done = |service| match self.until {
                Until::Started => started(service),
                _ => settled(service),
            };
            let others = self.scope(&view).any(|(_, service)| !done(service));
            let since = *failed.get_or_insert_with(Instant::now);
            if !others || since.elapsed() >= OTHERS {
                return Some(Outcome::Failed(view));
            }
            *last = Some(view);
            return None;
        }
        *failed = None;
        if reached {
            return Some(Outcome::Reached(Some(view)));
        }
        *last = Some(view);
        None
    }

    /// The services that are waited for.
    pub fn scope<'a>(
        &'a self,
        view: &'a StackView,
    ) -> impl Iterator<Item = (&'a ServiceName, &'a ServiceView)> {
        view.services.iter().filter(|(name, _)| self.covers(name))
    }

    fn covers(&self, name: &ServiceName) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(name))
    }
}

/// Whether nothing is left to do for a service, and the server has seen its newest definition: right after a change, what
/// is said may still be about the revision before.
pub fn settled(service: &ServiceView) -> bool {
    let current = service.rollout.as_ref().is_none_or(|rollout| rollout.to == service.revision);
    service.converged && current
}

/// Whether no process of a service runs any more; those that are draining do.
pub fn idle(service: &ServiceView) -> bool {
    let ended = |phase| matches!(phase, None | Some(Phase::Exited | Phase::Failed));
    service.running == 0 && service.instances.iter().all(|instance| ended(instance.phase))
}

/// Whether the first instance of the wanted revision was started, or could not be.
fn started(service: &ServiceView) -> bool {
    let begun = |instance: &&keel_server::api::types::InstanceView| {
        instance.revision == service.revision
            && matches!(
                instance.phase,
                Some(Phase::Running | Phase::Exited | Phase::Failed | Phase::Stopping)
            )
    };
    service.desired == 0
        || settled(service)
        || service.state == "stopped"
        || service.instances.iter().any(|instance| begun(&instance))
}

/// The views of a stack, over restarts of the server.
pub struct Watch {
    client: Client,
    stack: StackName,
    lines: Option<Lines<StackView>>,
}

impl Watch {
    /// Not connected yet.
    pub fn new(client: Client, stack: StackName) -> Self {
        Self { client, stack, lines: None }
    }

    /// The next view; `None` when the stack is gone.
    ///
    /// # Errors
    /// When the server does not come back, or refuses.
    pub async fn next(&mut self) -> Result<Option<StackView>, Failure> {
        let mut lost: Option<Instant> = None;
        let mut rounds = 0_u32;
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next().await {
                    Some(Ok(view)) => return Ok(Some(view)),
                    Some(Err(_)) | None => self.lines = None,
                }
            }
            match self.client.watch(self.stack.as_str()).await {
                Ok(lines) => {
                    self.lines = Some(lines);
                    // A stream that ends at once again and again must not become a busy loop.
                    if lost.get_or_insert_with(Instant::now).elapsed() > RECONNECT {
                        return Err(Failure::unreachable(
                            "the keel server ends every watch at once",
                        ));
                    }
                    sleep(if rounds == 0 { Duration::ZERO } else { RECONNECT_PAUSE }).await;
                    rounds += 1;
                }
                Err(Error::Refused(body)) if body.code == "no_such_stack" => return Ok(None),
                Err(error @ (Error::Refused(_) | Error::Denied { .. })) => return Err(error.into()),
                Err(error) => {
                    if lost.get_or_insert_with(Instant::now).elapsed() > RECONNECT {
                        return Err(error.into());
                    }
                    sleep(RECONNECT_PAUSE).await;
                }
            }
        }
    }
}
