//! `keel up` without `--detach`: follows the logs of a stack until its services end or the user stops them.
//!
//! The first Ctrl-C stops the services as `keel stop` does and ends with 0; the second ends this command at once with 130, the
//! server goes on stopping. A service that fails is told of once, with its last lines; the others are followed on, and the
//! exit code at the end is 1.

use std::collections::BTreeSet;
use std::time::Duration;

use keel_model::{Event, EventKind, RevisionId, ServiceName, Timestamp};
use keel_server::api::client::{Lines, ServiceOperation};
use keel_server::api::types::{
    EventsQuery, LogRecord, LogsQuery, ServiceView, ServicesRequest, StackView,
};
use tokio::time::{Instant, timeout};

use crate::change::Change;
use crate::evidence::Evidence;
use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::follow::{LogPrinter, LogStream, LogStyle, short_name};
use crate::interrupt::Interrupts;
use crate::lacks;
use crate::ui::progress::Progress;
use crate::wait::{Outcome, Watch, idle, settled};

/// After the last service has ended: silence that means that all its lines have come.
const QUIET: Duration = Duration::from_millis(300);
/// And how long lines are waited for at most.
const LAST_LINES: Duration = Duration::from_secs(3);

/// How the server's reason of a service begins that waits for another one.
const WAITS: &str = "waits for ";

/// What to follow.
pub struct Attach<'a> {
    /// The change that `up` made.
    pub change: &'a Change<'a>,
    /// Lines from this time on.
    pub since: Timestamp,
    /// How they look.
    pub style: LogStyle,
}

/// Why following ended.
#[derive(Clone, Copy)]
enum End {
    /// The services have ended.
    Over,
    /// The stack is gone.
    Gone,
}

/// Waits for the start, then follows.
///
/// # Errors
/// When a service failed or the server went away.
pub async fn run(
    attach: Attach<'_>,
    mut interrupts: Interrupts,
    watching: Option<impl Future<Output = Result<(), Failure>>>,
) -> Result<(), Failure> {
    let change = attach.change;
    let mut evidence = Evidence::default();
    let mut progress = Progress::new(change.ctx.progress(), change.ctx.talk);
    let wait = change.wait();
    let outcome = tokio::select! {
        outcome = wait.run(change.client, &mut progress, &mut evidence) => Some(outcome?),
        () = interrupts.next() => None,
    };
    let interrupted = outcome.is_none();
    match outcome {
        Some(outcome @ Outcome::Reached(_)) => {
            let view = change.conclude(&wait, outcome, progress, &evidence)?;
            if view.is_none() {
                return Ok(());
            }
            lacks::tell_of_stack(change.ctx, change.client, change.stack).await?;
        }
        // The session tells what failed.
        Some(Outcome::Failed(_) | Outcome::TimedOut(_)) | None => drop(progress),
    }
    let mut session = Session::open(&attach, evidence).await?;
    if interrupted {
        session.stop().await?;
    }
    let watching = async {
        match watching {
            Some(watching) => watching.await,
            None => std::future::pending().await,
        }
    };
    session.follow(&mut interrupts, watching).await
}

/// The streams that are followed.
struct Session<'a> {
    change: &'a Change<'a>,
    logs: LogStream,
    logs_over: bool,
    events: Option<Lines<Event>>,
    watch: Watch,
    printer: LogPrinter,
    evidence: Evidence,
    /// The failures that were told.
    told: BTreeSet<(ServiceName, RevisionId)>,
    stopping: bool,
    /// Files may still be watched.
    watches: bool,
    /// They could not be.
    failed: bool,
}

impl<'a> Session<'a> {
    async fn open(attach: &Attach<'a>, evidence: Evidence) -> Result<Self, Failure> {
        let change = attach.change;
        let services = change.services.as_ref().map(joined).unwrap_or_default();
        let since = Some(attach.since.0);
        let query = LogsQuery { services, follow: true, since, ..LogsQuery::default() };
        let logs = LogStream::open(change.client, change.stack, query).await?;
        let query =
            EventsQuery { stack: Some(change.stack.to_string()), follow: true, since, until: None };
        let events = change.client.events(&query).await.ok();
        Ok(Self {
            change,
            logs,
            logs_over: false,
            events,
            watch: Watch::new(change.client.clone(), change.stack.clone()),
            printer: LogPrinter::new(change.ctx, change.stack, attach.style.clone()),
            evidence,
            told: BTreeSet::new(),
            stopping: false,
            watches: true,
            failed: false,
        })
    }

    async fn follow(
        mut self,
        interrupts: &mut Interrupts,
        watching: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        tokio::pin!(watching);
        loop {
            tokio::select! {
                ended = &mut watching, if self.watches => {
                    self.watches = false;
                    if let Err(failure) = ended {
                        let ctx = self.change.ctx;
                        failure.report(ctx.talk, ctx.json());
                        ctx.note("nothing is watched any more; what runs, runs on and is followed");
                        self.failed = true;
                    }
                }
                record = self.logs.next(), if !self.logs_over => match record? {
                    Some(record) => self.printer.print(&record)?,
                    None => self.logs_over = true,
                },
                event = next_event(&mut self.events) => match event {
                    Some(event) => self.tell(&event),
                    None => self.events = None,
                },
                view = self.watch.next() => if let Some(end) = self.judge(view?).await? {
                    return self.end(end).await;
                },
                () = interrupts.next() => {
                    if self.stopping {
                        return Err(Failure::Quiet(INTERRUPTED));
                    }
                    self.stop().await?;
                }
            }
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        self.change.ctx.note("\nstopping… (press Ctrl-C again to leave at once)");
        self.stopping = true;
        self.watches = false;
        let services = self.change.services.iter().flatten().cloned().collect();
        let request = ServicesRequest { services, in_place: false };
        let client = self.change.client;
        client.operate(self.change.stack.as_str(), ServiceOperation::Stop, &request).await?;
        // The first view must be one of after the request.
        self.watch = Watch::new(client.clone(), self.change.stack.clone());
        Ok(())
    }

    async fn judge(&mut self, view: Option<StackView>) -> Result<Option<End>, Failure> {
        let Some(view) = view else { return Ok(Some(End::Gone)) };
        let wait = self.change.wait();
        for (_, service) in wait.scope(&view) {
            for instance in &service.instances {
                self.printer.expect(instance.id.as_str());
            }
        }
        let covered: BTreeSet<ServiceName> = wait.scope(&view).map(|(n, _)| n.clone()).collect();
        self.evidence.gather(self.change.client, &view, |name| covered.contains(name)).await;
        let idle = wait.scope(&view).all(|(_, service)| idle(service));
        if self.stopping {
            return Ok(idle.then_some(End::Over));
        }
        self.tell_failures(&view).await?;
        Ok((idle && wait.scope(&view).all(|(_, service)| settled(service))).then_some(End::Over))
    }

    /// Tells of each failure once: with the service's last lines and what to do.
    async fn tell_failures(&mut self, view: &StackView) -> Result<(), Failure> {
        let wait = self.change.wait();
        let fresh: Vec<_> = wait
            .scope(view)
            .filter(|(_, service)| has_failed(service))
            .filter(|(name, service)| {
                !self.told.contains(&((*name).clone(), service.revision.clone()))
            })
            .collect();
        // That a service fails which waits for one that has failed is no news.
        let consequence = |service: &ServiceView| service.reason.starts_with(WAITS);
        let news = self.told.is_empty() && fresh.iter().all(|(_, s)| consequence(s));
        let fresh: Vec<_> = fresh.into_iter().filter(|(_, s)| news || !consequence(s)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        self.told.extend(fresh.iter().map(|(name, s)| ((*name).clone(), s.revision.clone())));
        self.last_lines().await?;
        let ctx = self.change.ctx;
        let stack = self.change.stack.as_str();
        self.evidence.failure(stack, fresh.into_iter(), ctx.talk).report(ctx.talk, ctx.json());
        if wait.scope(view).any(|(_, service)| !settled(service) || !idle(service)) {
            ctx.note("what runs, runs on and is followed; Ctrl-C stops it");
        }
        Ok(())
    }

    async fn end(mut self, end: End) -> Result<(), Failure> {
        self.last_lines().await?;
        let ctx = self.change.ctx;
        match end {
            End::Gone => ctx.note(&format!("{} was removed", self.change.stack)),
            End::Over if self.stopping => {
                ctx.note(&format!("{} {} is stopped", ctx.talk.good("✔"), self.change.stack));
            }
            End::Over => ctx.note("all services have ended"),
        }
        if self.told.is_empty() && !self.failed { Ok(()) } else { Err(Failure::Quiet(FAILED)) }
    }

    /// Lines may still be on their way when the process has ended.
    async fn last_lines(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + LAST_LINES;
        while !self.logs_over && Instant::now() < deadline {
            match timeout(QUIET, self.logs.next()).await {
                Ok(Ok(Some(record))) => self.print(&record)?,
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        Ok(())
    }

    fn print(&mut self, record: &LogRecord) -> Result<(), Failure> {
        self.printer.print(record)
    }

    /// Tells what a user who watches wants to know besides the logs.
    fn tell(&self, event: &Event) {
        let matters = matches!(
            event.kind,
            EventKind::InstanceExited
                | EventKind::InstanceFailed
                | EventKind::InstanceUnhealthy
                | EventKind::InstanceRestarting
                | EventKind::EndpointEjected
                | EventKind::EndpointReadmitted
                | EventKind::EndpointFailed
                | EventKind::Rollout
                | EventKind::Platform
        );
        let covered = match (&self.change.services, &event.service) {
            (Some(services), Some(service)) => services.contains(service),
            _ => true,
        };
        if !matters || !covered {
            return;
        }
        let stack = self.change.stack;
        let subject = event
            .instance
            .as_ref()
            .map(|id| short_name(stack, id.as_str()))
            .or(event.service.as_ref().map(ServiceName::as_str))
            .unwrap_or(stack.as_str());
        let text = format!("{subject}: {}", event.message);
        self.change.ctx.note(&self.change.ctx.talk.dim(text));
    }
}

/// Whether the server has given a service up.
fn has_failed(service: &ServiceView) -> bool {
    service.failed && settled(service)
}

fn joined(services: &BTreeSet<ServiceName>) -> String {
    services.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(",")
}

/// The next event; never ready when there is no stream. Events are an extra: their loss ends nothing.
async fn next_event(events: &mut Option<Lines<Event>>) -> Option<Event> {
    match events {
        Some(lines) => lines.next().await.and_then(Result::ok),
        None => std::future::pending().await,
    }
}
