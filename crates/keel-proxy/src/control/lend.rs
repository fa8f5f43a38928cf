//! Giving the listening sockets: to a successor, or to the one that keeps this proxy running.

use std::collections::BTreeMap;
use std::io;

use keel_link::handover::{self, HANDOVER, Sockets};
use keel_route::snapshot::Snapshot;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Running, Server};
use crate::Error;
use crate::worker::Command;

impl Running {
    /// Gives a successor the sockets and the state. Until it accepts, nothing is acknowledged to the server: what
    /// it does not know must not be withdrawn meanwhile.
    pub(super) async fn hand_over(&mut self) -> Result<(), Error> {
        let sockets = self.sockets().await?;
        let Some((stream, decoder)) = self.server.take().and_then(Server::into_parts) else {
            return Ok(());
        };
        let parts = self.registry.parts();
        match give(stream, move || parts.snapshot(), sockets).await {
            Ok(stream) => {
                tracing::info!("a successor has the sockets");
                self.server = Some(Server::new(stream, decoder));
                self.handing_over = Some(Instant::now() + HANDOVER);
            }
            Err(error) => tracing::warn!(%error, "a successor did not take the sockets"),
        }
        Ok(())
    }

    /// A successor hangs: this proxy goes on as before, and its server may come back.
    pub(super) fn give_up_successor(&mut self) {
        tracing::warn!("a successor did not begin to accept in time and is given up");
        (self.server, self.handing_over) = (None, None);
    }

    /// Gives copies of at most `most` sockets. With one of each address nobody is refused who connects when this proxy has
    /// died; only who was waiting in the others then is.
    pub(super) async fn lend(&self, to: Server, most: usize) -> Result<(), Error> {
        let mut sockets = self.sockets().await?;
        if sockets.values().map(Vec::len).sum::<usize>() > most {
            sockets = sockets.into_iter().take(most).collect();
            sockets.values_mut().for_each(|sockets| sockets.truncate(1));
        }
        let Some((to, _)) = to.into_parts() else { return Ok(()) };
        tokio::spawn(async move {
            if let Err(error) = give(to, Snapshot::default, sockets).await {
                tracing::warn!(%error, "nobody keeps copies of the sockets");
            }
        });
        Ok(())
    }

    /// Copies of what the workers listen on.
    async fn sockets(&self) -> Result<Sockets, Error> {
        let mut sockets = BTreeMap::<_, Vec<_>>::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let (answer, lent) = oneshot::channel();
            let sent = worker.send(Command::Lend(answer)).await;
            sent.map_err(|_| Error::WorkerDied(index))?;
            for (bind, socket) in lent.await.map_err(|_| Error::WorkerDied(index))? {
                sockets.entry(bind).or_default().push(socket);
            }
        }
        Ok(sockets)
    }
}

/// Gives a state and sockets, where it may take its time.
async fn give(
    stream: UnixStream,
    snapshot: impl FnOnce() -> Snapshot + Send + 'static,
    sockets: Sockets,
) -> io::Result<UnixStream> {
    let given = tokio::task::spawn_blocking(move || {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        handover::give(&stream, &snapshot(), &sockets)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    given.await.map_err(io::Error::other).flatten().and_then(UnixStream::from_std)
}
