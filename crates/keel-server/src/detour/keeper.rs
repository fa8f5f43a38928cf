//! Keeps the rules of the packet filter as they have to be.
//!
//! Each turn looks at everything: what is held, where the proxy listens, which rules there are. A port is led around once
//! the proxy listens at its detour and has somebody to send requests to; no more once the proxy has the port itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_model::{EndpointState, EventKind, ServiceName, StackName};
use keel_runtime::Runtime;
use keel_store::{Store, Transaction};
use tokio::sync::watch;

use super::rules::{self, Chain, Family, Rule};
use super::{Way, Ways, filter, ways};
use crate::board::Board;
use crate::events::EventLog;
use crate::keys;
use crate::network::Network;
use crate::traffic::ProxyState;
use crate::world::WorldReader;

/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Somebody else may change the filter: it is looked at this often while there are rules.
const RESCAN: Duration = Duration::from_secs(30);
/// Pause after a filter that could not be changed.
const RETRY: Duration = Duration::from_secs(2);
/// How long the proxy goes on listening at a detour that no rule leads to any more: a connection may be on its way.
const CLOSE_AFTER: Duration = Duration::from_secs(30);

/// Keeps the rules.
pub struct Keeper {
    /// By which the rules of this server are told from those of others.
    pub tag: String,
    /// What is stored.
    pub worlds: Arc<WorldReader>,
    /// What is seen.
    pub board: Arc<Board>,
    /// What runs.
    pub runtime: Arc<dyn Runtime>,
    /// Where the proxy listens.
    pub proxy: watch::Receiver<ProxyState>,
    /// Where is noted that there may be rules.
    pub store: Arc<dyn Store>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// The network of virtual addresses.
    pub network: Arc<Network>,
    /// The host ports that are led around.
    pub led: watch::Sender<BTreeSet<u16>>,
}

/// What is remembered between two turns.
#[derive(Default)]
struct Memory {
    /// There may be rules.
    marked: bool,
    /// The firewall lets in only what it is told to.
    filtered: bool,
    /// The rules as they were made last, and when.
    done: Option<(BTreeSet<Rule>, Instant)>,
    /// Since when the proxy has a port itself.
    open: BTreeMap<u16, Instant>,
    /// What was told.
    said: Option<String>,
}

impl Keeper {
    /// Runs until cancelled.
    pub async fn run(self) {
        let marked = self.store.get(keys::DETOURS).await.ok().flatten().is_some();
        let mut memory = Memory { marked, ..Memory::default() };
        let (mut worlds, mut board) = (self.worlds.subscribe(), self.board.subscribe());
        let mut proxy = self.proxy.clone();
        loop {
            worlds.borrow_and_update();
            board.borrow_and_update();
            proxy.borrow_and_update();
            let pause = match self.turn(&mut memory).await {
                Ok(()) => {
                    memory.said = None;
                    // One that is open is to be closed in time.
                    if memory.open.is_empty() { RESCAN } else { RETRY }
                }
                Err(why) => {
                    self.say(&mut memory, why);
                    RETRY
                }
            };
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() { return },
                changed = board.changed() => if changed.is_err() { return },
                changed = proxy.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn say(&self, memory: &mut Memory, why: String) {
        if memory.said.as_ref() != Some(&why) {
            tracing::warn!("{why}");
            self.events.add(EventKind::Platform, None, None, None, why.clone());
            memory.said = Some(why);
        }
    }

    async fn turn(&self, memory: &mut Memory) -> Result<(), String> {
        let ways = ways(&self.worlds.current(), &*self.runtime);
        if ways.is_empty() && !memory.marked {
            return Ok(());
        }
        if memory.done.is_none() {
            // Whoever was here before has left rules or not.
            memory.filtered = blocking(|| filter::firewall().is_some()).await;
            let there = self.there().await?;
            let led = ways.iter().filter(|(port, way)| is_led(**port, way, &there));
            self.led.send_replace(led.map(|(port, _)| *port).collect());
        }
        if !std::mem::replace(&mut memory.marked, true) {
            // It may have been taken away just when it was written.
            let mark = Transaction::new().put(keys::DETOURS, b"true".to_vec());
            let _ = self.store.commit(mark).await.map_err(|error| error.to_string())?;
        }
        let led = self.led(&ways);
        let wanted: BTreeSet<Rule> = ways
            .iter()
            .filter(|(port, _)| led.contains(port))
            .flat_map(|(port, way)| {
                rules::of(&self.tag, *port, way, self.network.text(), memory.filtered)
            })
            .collect();
        let is_done =
            memory.done.as_ref().is_some_and(|(done, at)| *done == wanted && at.elapsed() < RESCAN);
        if !is_done {
            self.settle(wanted.clone()).await?;
            memory.done = Some((wanted.clone(), Instant::now()));
            self.tell(&ways, &led);
            self.led.send_replace(led.clone());
        }
        self.close(memory, &ways, &led).await;
        if ways.is_empty() {
            let gone = self.store.commit(Transaction::new().delete(keys::DETOURS)).await;
            memory.marked = gone.is_err();
            memory.done = None;
        }
        Ok(())
    }

    /// The comments of the rules that there are.
    async fn there(&self) -> Result<BTreeSet<String>, String> {
        let tag = self.tag.clone();
        let listed = blocking(move || filter::list(&tag, Family::V4)).await?;
        let nat = listed.into_iter().filter(|(chain, _)| *chain == Chain::Prerouting);
        Ok(nat.flat_map(|(_, rules)| rules).map(|rule| rule.comment).collect())
    }

    /// The ports that are to be led around.
    fn led(&self, ways: &Ways) -> BTreeSet<u16> {
        let proxy = self.proxy.borrow();
        let already = self.led.borrow();
        let wanted = ways.iter().filter(|(port, way)| {
            is_wanted(way, already.contains(port), &Listening::of(&proxy, **port, way))
        });
        wanted.map(|(port, _)| *port).collect()
    }

    async fn settle(&self, wanted: BTreeSet<Rule>) -> Result<(), String> {
        let tag = self.tag.clone();
        blocking(move || {
            filter::settle(&tag, Family::V4, &wanted)?;
            if let Err(error) = filter::settle(&tag, Family::V6, &wanted) {
                // Without it, connections by IPv6 go on to the container as long as it lives.
                tracing::info!(error, "IPv6 is not led around");
            }
            Ok(())
        })
        .await
    }

    fn tell(&self, ways: &Ways, led: &BTreeSet<u16>) {
        let before = self.led.borrow().clone();
        for port in led.symmetric_difference(&before) {
            let Some(Way { owner: (stack, service), detour, .. }) = ways.get(port) else {
                continue;
            };
            let message = if led.contains(port) {
                format!("connections to port {port} are led to the proxy, at port {detour}")
            } else {
                format!("the proxy has port {port} itself")
            };
            let (stack, service) = (Some(stack), Some(service));
            self.events.add(EventKind::Platform, stack, service, None, message);
        }
    }

    /// Forgets the detours of services whose ports the proxy has had itself for long enough.
    async fn close(&self, memory: &mut Memory, ways: &Ways, led: &BTreeSet<u16>) {
        let over = |port: &u16, way: &Way| !way.held && !led.contains(port);
        memory.open.retain(|port, _| ways.get(port).is_some_and(|way| over(port, way)));
        for (port, _) in ways.iter().filter(|(port, way)| over(port, way)) {
            memory.open.entry(*port).or_insert_with(Instant::now);
        }
        let mut services: BTreeMap<&(StackName, ServiceName), bool> = BTreeMap::new();
        for (port, way) in ways {
            let long = memory.open.get(port).is_some_and(|since| since.elapsed() >= CLOSE_AFTER);
            *services.entry(&way.owner).or_insert(true) &= long;
        }
        for ((stack, service), _) in services.into_iter().filter(|(_, over)| *over) {
            let forget = Transaction::new().delete(keys::detours(stack, service));
            if let Err(error) = self.store.commit(forget).await {
                tracing::warn!(%error, "a detour stays");
                continue;
            }
            let _ = self.worlds.refresh().await;
        }
    }
}

/// Where the proxy listens, as far as it has said so.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listening {
    /// At the detour, with somebody to send requests to.
    pub detour: bool,
    /// At the port itself.
    pub port: bool,
}

impl Listening {
    fn of(proxy: &ProxyState, port: u16, way: &Way) -> Self {
        let Some(told) = proxy.snapshot.as_ref().filter(|_| proxy.pid.is_some()) else {
            return Self::default();
        };
        if proxy.acknowledged < told.generation {
            return Self::default();
        }
        let failed = |bind: &SocketAddr| proxy.failed.iter().any(|failure| failure.bind == *bind);
        let open = |port: u16| {
            let mut wanted = told
                .listeners
                .iter()
                .filter(|it| it.published && it.bind.port() == port)
                .peekable();
            // A file that publishes nothing there wants nothing there.
            let any = wanted.peek().is_some() || !way.published;
            any && wanted.all(|listener| !failed(&listener.bind))
        };
        let of_service = format!("{}/{}:", way.owner.0, way.owner.1);
        let mut clusters = told.clusters.iter().filter(|(id, _)| id.starts_with(&of_service));
        let ready = clusters.any(|(_, cluster)| {
            cluster.endpoints.iter().any(|endpoint| endpoint.state == EndpointState::Ready)
        });
        let ready = ready || !way.published;
        Self { detour: ready && open(way.detour), port: open(port) }
    }
}

/// Whether a port is to be led around.
pub(super) fn is_wanted(way: &Way, already: bool, listening: &Listening) -> bool {
    if way.removing {
        return false;
    }
    if way.held { already || listening.detour } else { already && !listening.port }
}

/// Whether a rule of an earlier server leads a port around.
fn is_led(port: u16, way: &Way, there: &BTreeSet<String>) -> bool {
    let about = format!(" {port} to {} ", way.detour);
    there.iter().any(|comment| comment.contains(&about))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Takes away all rules of this server, where there may be any: nobody is left whom they lead to.
pub async fn remove_all(store: &dyn Store, tag: &str) {
    if !matches!(store.get(keys::DETOURS).await, Ok(Some(_))) {
        return;
    }
    let tag = tag.to_owned();
    let removed = blocking(move || {
        let _ = filter::settle(&tag, Family::V6, &BTreeSet::new());
        filter::settle(&tag, Family::V4, &BTreeSet::new())
    });
    let removed = match removed.await {
        Ok(()) => {
            store.commit(Transaction::new().delete(keys::DETOURS)).await.map_err(|e| e.to_string())
        }
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(error, "rules of the packet filter stay");
    }
}
