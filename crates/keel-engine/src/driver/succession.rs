//! A driver takes the place of a proxy of another kind, and gives its own place to one.
//!
//! HAProxy takes and gives its listening sockets, so that nobody who is connecting is turned away. nginx shares its
//! addresses with nobody: whoever comes before or after it has to wait until they are free.

use std::collections::BTreeMap;
use std::path::Path;

use keel_link::handover::{self, HANDOVER, TakenOver};
use keel_link::{ControlSocket, Elder, Incumbent};
use keel_render::Engine;
use keel_route::snapshot::{FromProxy, Snapshot, ToProxy};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Driven, Driver, Signals, ended};
use crate::limits::{IN_FLIGHT_LOOK, RETIRED_DRAIN};
use crate::listeners;
use crate::program::Error;

/// The proxy whose place is to be taken, if it is of another kind: it drives another engine, or none.
pub fn other_kind(options: &super::DriverOptions) -> std::io::Result<Option<Incumbent>> {
    if !options.take_over {
        return Ok(None);
    }
    let incumbent = keel_link::incumbent(&options.control_socket)?;
    Ok(incumbent.filter(|incumbent| incumbent.engine() != Some(options.engine.command())))
}

impl Driver {
    /// Takes the place of a proxy of another kind; the state that it leaves, `kept` being the one in the file.
    pub async fn take_from(
        &mut self,
        other: &Incumbent,
        kept: Option<Snapshot>,
    ) -> Result<Option<Snapshot>, Error> {
        if self.options.engine == Engine::Haproxy && other.engine().is_none() {
            let path = self.options.control_socket.clone();
            let asked = tokio::task::spawn_blocking(move || handover::take_over(&path)).await;
            match asked.map_err(std::io::Error::other).flatten().map_err(Error::TakeOver)? {
                Some(before) => return self.succeed(before).await.map(Some),
                None => return Ok(kept),
            }
        }
        other.end();
        let listeners = kept.iter().flat_map(|snapshot| &snapshot.listeners);
        listeners::released(&listeners.map(|listener| listener.bind).collect()).await;
        Ok(kept)
    }

    /// Takes the place of our own proxy, and its sockets. If the engine does not start, that one goes on.
    async fn succeed(&mut self, before: TakenOver) -> Result<Snapshot, Error> {
        let TakenOver { snapshot, sockets, mut stream, .. } = before;
        let given = sockets.keys().copied().collect();
        let (fit, _) = listeners::without_failing(&snapshot, &given);
        if let Driven::Haproxy(haproxy) = &mut self.driven {
            haproxy.adopt(sockets.into_values().flatten().collect());
        }
        if let Err(error) = self.driven.apply(&fit).await {
            // It may be there all the same, and would get a share of the connections, with nobody to tell it anything.
            self.driven.kill();
            return Err(error);
        }
        self.applied = Some(fit);
        let retired =
            tokio::task::spawn_blocking(move || handover::retire(&mut stream).map(|()| stream));
        match retired.await.map_err(std::io::Error::other).flatten().and_then(Elder::new) {
            Ok(elder) => self.elder = Some(elder),
            // It is dead, or will notice that it has lost its place.
            Err(error) => tracing::warn!(%error, "the proxy before this one did not retire"),
        }
        Ok(snapshot)
    }

    /// Waits for news of the one before; forgets it when it has ended.
    pub async fn hear_elder(elder: &mut Option<Elder>) {
        match elder {
            Some(heard) => {
                if heard.hear().await.is_err() {
                    tracing::info!("the proxy before this one has ended");
                    *elder = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Gives a successor the state, and the sockets if the engine gives them. Until it accepts nothing is acknowledged to
    /// the server.
    pub async fn hand_over(&mut self) {
        let sockets = match &self.driven {
            Driven::Haproxy(haproxy) => haproxy.sockets().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "haproxy gives no sockets; the addresses are to be opened beside it");
                BTreeMap::new()
            }),
            Driven::Nginx(_) => BTreeMap::new(),
        };
        let snapshot = self.wanted.clone().unwrap_or_default();
        if self.server.give(snapshot, sockets).await {
            tracing::info!("a successor has the place");
            self.handing_over = Some(Instant::now() + HANDOVER);
        }
    }

    /// A successor accepts: the engine takes no more connections, and is followed until it has none.
    pub async fn retire(&mut self, socket: ControlSocket, signals: &mut Signals, note: &Path) {
        tracing::info!("retiring: no new connections, at most {RETIRED_DRAIN:?} for the open ones");
        self.keep();
        match &mut self.driven {
            Driven::Haproxy(haproxy) => haproxy.retire(),
            Driven::Nginx(nginx) => nginx.stop(),
        }
        let _ = std::fs::remove_file(note);
        drop(socket);
        self.server.send(&FromProxy::Retired).await;
        if self.driven.is_gone() {
            return;
        }
        let until = Instant::now() + RETIRED_DRAIN;
        let mut look = interval(IN_FLIGHT_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = signals.next() => break,
                () = ended(&self.driven) => return,
                () = sleep_until(until) => {
                    tracing::warn!("connections are cut that did not end in time");
                    break;
                }
                news = self.server.receive() => {
                    for message in news.messages {
                        self.follow(message).await;
                    }
                }
                _ = look.tick() => self.report(false).await,
            }
        }
        self.driven.kill();
    }

    /// A change while the engine only ends what it has: nothing new is to be sent to endpoints that are not ready.
    async fn follow(&mut self, message: ToProxy) {
        if !self.note_change(message) {
            return;
        }
        let Some(wanted) = self.wanted.clone() else { return };
        if let Driven::Haproxy(haproxy) = &mut self.driven
            && let Err(error) = haproxy.close_leaving(&wanted).await
        {
            // Without an acknowledgement the successor does not reckon with this one any more. It may just have ended.
            return tracing::debug!(%error, "a change did not reach the engine that is ending");
        }
        let generation = wanted.generation;
        self.applied = Some(wanted);
        self.server.send(&FromProxy::Ack { generation, failed: Vec::new(), lacks: None }).await;
        self.report(true).await;
    }
}
