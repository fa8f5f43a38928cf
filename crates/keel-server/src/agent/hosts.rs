//! Tells containers that were taken over the names of services, so that what they look up from now on leads through the
//! proxy. A service whose container is reached at ports that it does not name, or by UDP, is left to the engine's names:
//! at its virtual address nobody would answer there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keel_model::{InstanceId, Phase, ServiceName, StackName, Transport};
use keel_runtime::Runtime;
use tokio::sync::watch;

use crate::board::{Board, BoardView};
use crate::network::Network;
use crate::traffic::{ProxyState, tcp_ports};
use crate::world::{StackState, World, WorldReader};
use crate::{detour, names};

/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Tells names.
pub struct Hosts {
    /// What there is.
    pub worlds: Arc<WorldReader>,
    /// What runs, and since which attempt.
    pub board: Arc<Board>,
    /// Writes them.
    pub runtime: Arc<dyn Runtime>,
    /// Virtual addresses.
    pub network: Arc<Network>,
    /// Where the proxy listens.
    pub proxy: watch::Receiver<ProxyState>,
    /// Host ports that are led around.
    pub led: watch::Receiver<BTreeSet<u16>>,
}

type Entries = Vec<(IpAddr, String)>;
/// What an instance was told: it forgets when it is started again.
type Told = BTreeMap<InstanceId, (u32, Option<u32>, Entries)>;

impl Hosts {
    /// Runs until cancelled.
    pub async fn run(mut self) {
        let mut told = Told::new();
        let mut filtered = None;
        let (mut worlds, mut board) = (self.worlds.subscribe(), self.board.subscribe());
        loop {
            let world = worlds.borrow_and_update().clone();
            board.borrow_and_update();
            self.proxy.borrow_and_update();
            self.led.borrow_and_update();
            let adopted = world.stacks.values().any(|stack| stack.has_adopted());
            let failed =
                if adopted { self.turn(&world, &mut told, &mut filtered).await } else { false };
            tokio::time::sleep(PAUSE).await;
            let pause = async {
                match failed {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() { return },
                changed = board.changed(), if adopted => if changed.is_err() { return },
                changed = self.proxy.changed(), if adopted => if changed.is_err() { return },
                changed = self.led.changed(), if adopted => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Tells whoever does not know; true if that could not be done.
    async fn turn(&self, world: &World, told: &mut Told, filtered: &mut Option<bool>) -> bool {
        // Where not everything is let in, virtual addresses may be out of the containers' reach.
        let closed = match *filtered {
            Some(closed) => closed,
            None => {
                let look = tokio::task::spawn_blocking(|| detour::firewall().is_some());
                *filtered.insert(look.await.unwrap_or(true))
            }
        };
        if closed {
            return false;
        }
        let board = self.board.view();
        let mut failed = false;
        told.retain(|id, _| world.stacks.values().any(|it| it.assignments.contains_key(id)));
        for (name, stack) in world.stacks.iter().filter(|(_, stack)| stack.has_adopted()) {
            let Some(entries) = self.entries(world, &board, name, stack) else { continue };
            for id in stack.assignments.keys() {
                let Some(status) = board.statuses.get(id) else { continue };
                if status.phase != Phase::Running || self.runtime.adopted(id).is_none() {
                    continue;
                }
                let wanted = (status.attempt, status.pid, entries.clone());
                if told.get(id) == Some(&wanted) {
                    continue;
                }
                match self.runtime.tell_hosts(id, &entries).await {
                    Ok(_) => _ = told.insert(id.clone(), wanted),
                    Err(error) => {
                        tracing::info!(instance = %id, %error, "it goes on by the engine's names");
                        failed = true;
                    }
                }
            }
        }
        failed
    }

    /// The names of a stack that may be told; `None` while the proxy is not ready for them.
    fn entries(
        &self,
        world: &World,
        board: &BoardView,
        name: &StackName,
        stack: &StackState,
    ) -> Option<Entries> {
        let record = stack.record.as_ref().filter(|record| !record.value.removing)?;
        let ways = detour::ways(world, &*self.runtime);
        let led = self.led.borrow().clone();
        let proxy = self.proxy.borrow();
        let snapshot = proxy.snapshot.as_ref().filter(|_| proxy.pid.is_some())?;
        if proxy.acknowledged < snapshot.generation {
            return None;
        }
        let mut open = BTreeSet::new();
        for (service_name, service) in &record.value.stack.services {
            let Some(address) = stack.addresses.get(service_name) else { continue };
            let udp = service.ports.iter().any(|port| port.transport == Transport::Udp);
            let ports: Vec<u16> =
                tcp_ports(service).map(|port| self.network.client_port(port)).collect();
            if udp || ports.is_empty() || hides(stack, service_name) {
                continue;
            }
            // As long as another has the port, what is meant for the virtual address is led around too.
            let waits =
                |port: &u16| ways.get(port).is_some_and(|way| way.held && !led.contains(port));
            if ports.iter().any(waits) {
                return None;
            }
            let listens = |port: u16| {
                let port = ways.get(&port).filter(|way| way.held).map_or(port, |way| way.detour);
                let bind = SocketAddr::new(address.address, port);
                snapshot.listeners.iter().any(|listener| listener.bind == bind)
                    && !proxy.failed.iter().any(|failure| failure.bind == bind)
            };
            if ports.into_iter().all(listens) {
                open.insert(address.address);
            }
        }
        let table = names::table(world, board, &self.network);
        let mut entries = keel_discovery::hosts_entries(&table, name);
        entries.retain(|(address, _)| open.contains(address));
        Some(entries)
    }
}

/// Whether a container of the service is reached at ports that the service does not name.
fn hides(stack: &StackState, service: &ServiceName) -> bool {
    let of_service = stack.assignments.values().filter(|it| it.value.service == *service);
    let mut adoptions = of_service.filter_map(|it| it.value.adoption.as_ref());
    adoptions.any(|adoption| !adoption.undeclared.is_empty())
}
