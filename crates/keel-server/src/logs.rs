//! The output of several instances as one stream, in order of time.
//!
//! What there is already is merged exactly; what comes later is passed on as it comes. New instances join a
//! stream that follows.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use keel_model::{InstanceId, ServiceName, StackName, Timestamp};
use keel_runtime::{LogLine, LogQuery, LogStream, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::types::{LogRecord, LogsQuery};
use crate::error::Refusal;
use crate::views::{Changed, Viewer};
use crate::{clock, http};

/// Lines younger than this are left to the following part: they may still be on their way to the file.
const SETTLING_MS: u64 = 100;

/// What is asked for.
pub struct Source {
    runtime: Arc<dyn Runtime>,
    viewer: Viewer,
    stack: StackName,
    names: Vec<String>,
    query: LogsQuery,
}

struct Head {
    instance: InstanceId,
    service: ServiceName,
    line: LogLine,
    rest: mpsc::Receiver<LogLine>,
}

impl Source {
    /// Checks the request.
    ///
    /// # Errors
    /// When the stack or a named service or instance does not exist.
    pub fn new(
        viewer: &Viewer,
        runtime: Arc<dyn Runtime>,
        stack: &StackName,
        query: LogsQuery,
    ) -> Result<Self, Refusal> {
        let view = viewer.stack(stack)?;
        let names: Vec<String> =
            query.services.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &names {
            let known = view.services.iter().any(|(service, detail)| {
                service.as_str() == name
                    || detail.instances.iter().any(|instance| instance.id.as_str() == name)
            });
            if !known {
                let services: Vec<&str> = view.services.keys().map(ServiceName::as_str).collect();
                return Err(Refusal::new(
                    "no_such_service",
                    format!("stack `{stack}` has no service or instance `{name}`"),
                )
                .hint(format!("its services: {}", services.join(", "))));
            }
        }
        Ok(Self { runtime, viewer: viewer.clone(), stack: stack.clone(), names, query })
    }

    /// Sends lines until there are no more or the reader is gone.
    pub async fn send_to(self, sender: mpsc::Sender<Bytes>) {
        let mut changes = self.viewer.subscribe();
        let border = clock::now().0.saturating_sub(SETTLING_MS);
        let until = match (self.query.follow, self.query.until) {
            (true, Some(until)) => Some(until.min(border)),
            (true, None) => Some(border),
            (false, until) => until,
        };
        let known = self.instances();
        if self.send_past(&known, until, &sender).await.is_err() || !self.query.follow {
            return;
        }
        self.follow(known, border + 1, &mut changes, &sender).await;
    }

    fn instances(&self) -> BTreeSet<(InstanceId, ServiceName)> {
        let Ok(view) = self.viewer.stack(&self.stack) else { return BTreeSet::new() };
        view.services
            .iter()
            .flat_map(|(service, detail)| {
                detail.instances.iter().map(|instance| (instance.id.clone(), service.clone()))
            })
            .filter(|(instance, service)| {
                self.names.is_empty()
                    || self.names.iter().any(|n| n == instance.as_str() || n == service.as_str())
            })
            .collect()
    }

    async fn send_past(
        &self,
        instances: &BTreeSet<(InstanceId, ServiceName)>,
        until: Option<u64>,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<(), ()> {
        let query = LogQuery {
            since: self.query.since.map(Timestamp),
            until: until.map(Timestamp),
            tail: self.query.tail,
            follow: false,
        };
        let mut heads: Vec<Head> = Vec::new();
        for (instance, service) in instances {
            // An instance that has not started yet has no log.
            let Ok(mut rest) = self.runtime.logs(instance, query).await else { continue };
            if let Some(line) = rest.recv().await {
                let (instance, service) = (instance.clone(), service.clone());
                heads.push(Head { instance, service, line, rest });
            }
        }
        while let Some(first) = (0..heads.len()).min_by_key(|index| heads[*index].line.at) {
            let head = &mut heads[first];
            let bytes = record(&head.instance, &head.service, &head.line);
            sender.send(bytes).await.map_err(|_| ())?;
            match head.rest.recv().await {
                Some(line) => head.line = line,
                None => {
                    heads.swap_remove(first);
                }
            }
        }
        Ok(())
    }

    async fn follow(
        self,
        known: BTreeSet<(InstanceId, ServiceName)>,
        since: u64,
        changes: &mut Changed,
        sender: &mpsc::Sender<Bytes>,
    ) {
        // Dropped, and with it every task, when the reader goes away.
        let mut tasks: JoinSet<()> = JoinSet::new();
        let mut followed = BTreeSet::new();
        loop {
            for (instance, service) in self.instances() {
                if !followed.insert(instance.clone()) {
                    continue;
                }
                let seen = known.contains(&(instance.clone(), service.clone()));
                let query = LogQuery {
                    since: seen.then_some(Timestamp(since)),
                    follow: true,
                    until: self.query.until.map(Timestamp),
                    tail: None,
                };
                tasks.spawn(forward(
                    self.runtime.clone(),
                    instance,
                    service,
                    query,
                    sender.clone(),
                ));
            }
            tokio::select! {
                () = changes.changed() => {}
                () = sender.closed() => return,
            }
            if self.viewer.stack(&self.stack).is_err() {
                return;
            }
        }
    }
}

/// Passes on one instance's lines. One that has not started yet has no log: each start is a reason to look again.
async fn forward(
    runtime: Arc<dyn Runtime>,
    instance: InstanceId,
    service: ServiceName,
    query: LogQuery,
    sender: mpsc::Sender<Bytes>,
) {
    let mut started = runtime.changed();
    loop {
        if let Ok(mut lines) = runtime.logs(&instance, query).await {
            while let Some(line) = lines.recv().await {
                if sender.send(record(&instance, &service, &line)).await.is_err() {
                    return;
                }
            }
            return;
        }
        if started.changed().await.is_err() {
            return;
        }
    }
}

fn record(instance: &InstanceId, service: &ServiceName, line: &LogLine) -> Bytes {
    http::line(&LogRecord {
        instance: instance.clone(),
        service: service.clone(),
        at: line.at,
        stream: match line.stream {
            LogStream::Stdout => "stdout".to_owned(),
            LogStream::Stderr => "stderr".to_owned(),
        },
        text: line.text.clone(),
    })
}
