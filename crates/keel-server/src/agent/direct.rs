//! Connections that lead past the proxy to containers that were taken over.
//!
//! Those that were there before the takeover, and those of containers that ask the engine for names, are nothing that the
//! proxy knows of. So such an instance counts as drained only once nobody else is connected to it, which the drain timeout
//! bounds as it does all else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{Assignment, Goal, InstanceId};
use keel_runtime::Runtime;
use tokio::sync::watch;

use crate::board::Board;
use crate::sockets;
use crate::traffic::ProxyState;
use crate::world::{World, WorldReader};

/// Pause between two looks while something drains.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks at connections.
pub struct Direct {
    /// What drains.
    pub worlds: Arc<WorldReader>,
    /// Where is noted who has none.
    pub board: Arc<Board>,
    /// What runs.
    pub runtime: Arc<dyn Runtime>,
    /// Whose connections do not count.
    pub proxy: watch::Receiver<ProxyState>,
}

impl Direct {
    /// Runs until cancelled.
    pub async fn run(self) {
        let mut worlds = self.worlds.subscribe();
        let mut before = BTreeSet::new();
        loop {
            let world = worlds.borrow_and_update().clone();
            let draining: Vec<(InstanceId, BTreeSet<u16>)> = draining(&world);
            if draining.is_empty() {
                before.clear();
                self.board.set_quiet(BTreeSet::new());
                if worlds.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let own = self.proxy.borrow().own();
            let with_process = draining.into_iter().map(|(id, ports)| {
                let pid = self.runtime.seen(&id).and_then(|seen| seen.pid).filter(|pid| *pid > 0);
                (id, pid, ports)
            });
            let with_process: Vec<_> = with_process.collect();
            let look = tokio::task::spawn_blocking(move || {
                let server = std::process::id();
                let quiet = with_process.into_iter().filter(|(_, pid, ports)| {
                    pid.is_none_or(|pid| !sockets::has_strangers(pid, ports, &own, server))
                });
                quiet.map(|(id, _, _)| id).collect()
            });
            // What could not be looked at is left to the drain timeout. The kernel may leave out a line while connections
            // come and go, so that one look is no proof.
            let quiet: BTreeSet<InstanceId> = look.await.unwrap_or_default();
            let twice = quiet.intersection(&before).cloned().collect();
            self.board.set_quiet(twice);
            before = quiet;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The instances that drain and were taken over, with the ports that others may be connected to.
fn draining(world: &World) -> Vec<(InstanceId, BTreeSet<u16>)> {
    let stacks = world.stacks.values();
    let all = stacks.flat_map(|stack| stack.assignments.values().map(move |it| (stack, &it.value)));
    let draining = all.filter(|(_, it)| it.goal == Goal::Drain && it.adoption.is_some());
    let with_ports = draining.map(|(stack, it)| {
        let service = stack.definition(&it.service, &it.revision);
        let declared = service.map(|service| service.spec.ports).unwrap_or_default();
        (it.id.clone(), declared.into_iter().chain(others(it)).collect())
    });
    with_ports.collect()
}

fn others(assignment: &Assignment) -> Vec<u16> {
    let adoption = assignment.adoption.as_deref();
    let held = adoption.into_iter().flat_map(|it| it.holds.iter().map(|held| held.target));
    held.chain(adoption.into_iter().flat_map(|it| it.undeclared.iter().copied())).collect()
}
