//! State as people and programs see it.

mod routes;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use keel_model::{
    Assignment, Health, InstanceStatus, NodeName, Order, Phase, Scale, Service, ServiceName,
    StackName, StackRecord, Transport,
};
use keel_plan::{ChangeKind, Outcome, ServiceState, ServiceSummary};
use tokio::sync::watch;

use crate::api::types::{
    ChangeView, HistoryEntry, HistoryService, InstanceView, LacksView, PublishedView, ServiceView,
    StackSummary, StackView,
};
use crate::board::{Board, BoardView};
use crate::controller;
use crate::error::Refusal;
use crate::network::Network;
use crate::traffic::{LeftOut, ProxyState, is_served, lacks_of_stack};
use crate::world::{StackState, World, WorldReader};

/// Longest command shown.
const MAX_COMMAND: usize = 200;

/// Makes views.
#[derive(Clone)]
pub struct Viewer {
    /// This machine.
    pub node: NodeName,
    /// What is stored.
    pub worlds: Arc<WorldReader>,
    /// What is seen.
    pub board: Arc<Board>,
    /// Addresses.
    pub network: Arc<Network>,
    /// Which listeners failed, and which endpoints are served.
    pub proxy: watch::Receiver<ProxyState>,
}

/// Wakes when a view may have changed.
pub struct Changed {
    worlds: watch::Receiver<Arc<World>>,
    board: watch::Receiver<u64>,
    proxy: watch::Receiver<ProxyState>,
}

impl Changed {
    /// Waits for the next change; for ever once the server ends.
    pub async fn changed(&mut self) {
        let ended = tokio::select! {
            changed = self.worlds.changed() => changed.is_err(),
            changed = self.board.changed() => changed.is_err(),
            changed = self.proxy.changed() => changed.is_err(),
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
}

impl Viewer {
    /// Wakes with every change from now on.
    pub fn subscribe(&self) -> Changed {
        let proxy = self.proxy.clone();
        Changed { worlds: self.worlds.subscribe(), board: self.board.subscribe(), proxy }
    }

    /// One line per stack.
    pub fn summaries(&self) -> Vec<StackSummary> {
        let world = self.worlds.current();
        world
            .stacks
            .iter()
            .filter_map(|(name, stack)| {
                let record = &stack.record.as_ref()?.value;
                let view = self.stack(name).ok()?;
                Some(StackSummary {
                    name: name.clone(),
                    generation: record.generation,
                    directory: record.stack.directory.clone(),
                    status: status(&view),
                    changed_at: record.changed_at,
                })
            })
            .collect()
    }

    /// One stack.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn stack(&self, name: &StackName) -> Result<StackView, Refusal> {
        let world = self.worlds.current();
        let board = self.board.view();
        let none = || {
            Refusal::new("no_such_stack", format!("there is no stack `{name}`"))
                .hint("`keel ls` lists the stacks, `keel up` starts one")
        };
        let stack = world.stacks.get(name).ok_or_else(none)?;
        let (desired, observed) = controller::inputs(stack, &board, &self.node).ok_or_else(none)?;
        let record = &desired.record;
        let summaries = keel_plan::summary(&desired, &observed);
        let services: BTreeMap<ServiceName, ServiceView> = record
            .stack
            .services
            .iter()
            .map(|(service, definition)| {
                let mut view = self.service(stack, &board, service, definition, &summaries);
                // Who waits for a service wants to call it next.
                view.converged &= view.failed
                    || is_served(&self.proxy.borrow(), name, stack, &board, service, definition);
                (service.clone(), view)
            })
            .collect();
        Ok(StackView {
            name: name.clone(),
            generation: record.generation,
            removing: record.removing,
            converged: !record.removing
                && services.values().all(|service| service.converged)
                && stack
                    .assignments
                    .values()
                    .all(|stored| record.stack.services.contains_key(&stored.value.service)),
            failed: services.values().any(|service| service.failed),
            services,
            entrypoints: routes::entrypoints(&record.stack, &self.proxy.borrow().failed),
        })
    }

    /// What the engine in the place of our proxy, if there is one, lacks of what a stack wants.
    pub fn lacks(&self, name: &StackName) -> LacksView {
        let proxy = self.proxy.borrow();
        let told = proxy.snapshot.as_deref();
        LacksView {
            settled: told.is_some_and(|told| proxy.acknowledged >= told.generation),
            lacks: lacks_of_stack(name, &proxy.lacks, told),
        }
    }

    fn service(
        &self,
        stack: &StackState,
        board: &BoardView,
        name: &ServiceName,
        definition: &Service,
        summaries: &BTreeMap<ServiceName, ServiceSummary>,
    ) -> ServiceView {
        let summary = &summaries[name];
        let outcome = summary.outcome();
        let address = stack.addresses.get(name);
        // Once: whoever asks a second time waits for a writer that waits for the first.
        let proxy = self.proxy.borrow();
        let failed = &proxy.failed;
        let published = definition
            .publish
            .iter()
            .filter_map(|port| {
                let chosen = address.and_then(|address| address.chosen.get(&port.target));
                let number = port.published.or(chosen.copied())?;
                let ip = port.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                let address = SocketAddr::new(ip, number);
                let failure = failed.iter().find(|failure| failure.bind == address);
                let error = failure.map(|failure| failure.reason.clone());
                Some(PublishedView { address, target: port.target, error })
            })
            .collect();
        ServiceView {
            address: address.map(|address| address.address),
            ports: definition
                .ports
                .iter()
                .filter(|port| port.transport == Transport::Tcp)
                .map(|port| self.network.client_port(port.target))
                .collect(),
            published,
            revision: definition.spec.revision(),
            desired: count(summary.desired),
            running: count(summary.running),
            ready: count(summary.ready),
            state: state(summary.state).to_owned(),
            reason: summary.reason.clone(),
            converged: outcome != Outcome::Wait,
            failed: outcome == Outcome::Failed,
            failed_instance: summary.failed_instance.clone(),
            rollout: stack
                .rollouts
                .get(name)
                .map(|rollout| keel_model::Rollout::clone(&rollout.value)),
            instances: instances(stack, board, name, &proxy.left_out),
        }
    }

    /// Past changes, newest first.
    ///
    /// # Errors
    /// When there is no such stack.
    pub fn history(&self, name: &StackName) -> Result<Vec<HistoryEntry>, Refusal> {
        let world = self.worlds.current();
        let stack = world
            .stacks
            .get(name)
            .ok_or_else(|| Refusal::new("no_such_stack", format!("there is no stack `{name}`")))?;
        let current = stack.record.as_ref().map(|record| record.value.generation);
        Ok(stack
            .history
            .values()
            .rev()
            .map(|record| HistoryEntry {
                generation: record.generation,
                at: record.changed_at,
                change: match failed_services(stack, record) {
                    failed if failed.is_empty() => record.change.clone(),
                    failed => format!("{} (failed: {failed})", record.change),
                },
                services: record
                    .stack
                    .services
                    .iter()
                    .map(|(name, service)| {
                        let scale = match service.scale {
                            Scale::Replicated(n) => n.to_string(),
                            Scale::Global => "global".to_owned(),
                            Scale::Job(n) => format!("job {n}"),
                            Scale::GlobalJob => "global job".to_owned(),
                        };
                        let revision = service.spec.revision();
                        (name.clone(), HistoryService { revision, scale })
                    })
                    .collect(),
                current: current == Some(record.generation),
            })
            .collect())
    }
}

/// The services whose revision in `record` failed at its last try.
fn failed_services(stack: &StackState, record: &StackRecord) -> String {
    let failed = record.stack.services.iter().filter(|(name, service)| {
        let rollout = stack.rollouts.get(*name);
        rollout.is_some_and(|rollout| rollout.value.saw_failing(&service.spec.revision()))
    });
    failed.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn state(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Starting => "starting",
        ServiceState::Ready => "running",
        ServiceState::Degraded => "degraded",
        ServiceState::Completed => "completed",
        ServiceState::Failed => "failed",
        ServiceState::Stopped => "stopped",
        ServiceState::RollingOut => "updating",
        ServiceState::RollingBack => "rolling back",
        ServiceState::RolledBack => "rolled back",
        ServiceState::Paused => "paused",
        ServiceState::Removing => "removing",
    }
}

fn instances(
    stack: &StackState,
    board: &BoardView,
    name: &ServiceName,
    left_out: &LeftOut,
) -> Vec<InstanceView> {
    let mut views: Vec<InstanceView> = stack
        .assignments
        .values()
        .filter(|stored| stored.value.service == *name)
        .map(|stored| {
            let assignment = &stored.value;
            let status = board.statuses.get(&assignment.id);
            let definition = stack.definition(&assignment.service, &assignment.revision);
            let (command, image) = definition
                .map(|it| (it.runs().join(" "), it.spec.image.unwrap_or_default()))
                .unwrap_or_default();
            InstanceView {
                id: assignment.id.clone(),
                revision: assignment.revision.clone(),
                node: assignment.node.clone(),
                goal: assignment.goal,
                reason: assignment.reason.clone(),
                phase: status.map(|status| status.phase),
                ready: status.is_some_and(|status| status.ready),
                left_out: left_out.iter().any(|(_, instance)| *instance == assignment.id),
                health: status.map_or(Health::None, |status| status.health),
                attempts: assignment.attempt,
                created_at: assignment.created_at,
                command: command.chars().take(MAX_COMMAND).collect(),
                image,
                status: status.map(|status| with_adoption(assignment, status)),
            }
        })
        .collect();
    views.sort_by_key(|view| (view.created_at, view.id.as_str().len(), view.id.clone()));
    views
}

/// What is known of a container that was taken over begins with that; people want to know how long it has been running.
fn with_adoption(assignment: &Assignment, status: &InstanceStatus) -> InstanceStatus {
    let since = assignment.adoption.as_ref().and_then(|adoption| adoption.since);
    match since.filter(|_| assignment.attempt == 1) {
        Some(since) => InstanceStatus { started_at: Some(since), ..status.clone() },
        None => status.clone(),
    }
}

fn status(view: &StackView) -> String {
    let running: u32 = view.services.values().map(|service| service.running).sum();
    let exited = view
        .services
        .values()
        .flat_map(|service| &service.instances)
        .filter(|instance| matches!(instance.phase, Some(Phase::Exited | Phase::Failed)))
        .count();
    if view.removing {
        return "removing".to_owned();
    }
    match (running, exited) {
        (0, 0) => "created".to_owned(),
        (0, exited) => format!("exited({exited})"),
        (running, 0) => format!("running({running})"),
        (running, exited) => format!("exited({exited}), running({running})"),
    }
}

/// What differs between two records.
pub fn changes(old: Option<&StackRecord>, new: &StackRecord) -> Vec<ChangeView> {
    keel_plan::diff(old, new)
        .into_iter()
        .map(|change| ChangeView {
            how: how(&change, new),
            service: change.service,
            kind: match (change.kind, change.replaces) {
                (ChangeKind::Create, _) => "create",
                (ChangeKind::Update, Some(_)) => "replace",
                (ChangeKind::Update, None) => "update",
                (ChangeKind::Scale, _) => "scale",
                (ChangeKind::Remove, _) => "remove",
            }
            .to_owned(),
            fields: change.fields,
        })
        .collect()
}

fn how(change: &keel_plan::Change, new: &StackRecord) -> String {
    let Some(order) = change.replaces else { return String::new() };
    let order = match order {
        Order::StartFirst => "start-first",
        Order::StopFirst => "stop-first",
    };
    let parallelism = new.stack.services.get(&change.service).map_or(1, |s| s.rollout.parallelism);
    match parallelism {
        0 => format!("{order}, all at a time"),
        n => format!("{order}, {n} at a time"),
    }
}
