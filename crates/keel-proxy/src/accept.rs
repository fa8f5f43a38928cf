//! Accepting connections and telling what they speak.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use futures_util::FutureExt as _;
use keel_model::Protocol;
use keel_route::detect::{MAX_LOOK, More, Wire, detect};
use tokio::net::{TcpListener, TcpStream};

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::limits::{ACCEPT_PAUSE, BUFFER, CLIENT_IDLE, DETECT, REQUEST_HEAD};
use crate::session::{Client, Session};
use crate::worker::{Ending, Stop, Target, Worker};
use crate::{http1, http2, stream, tunnel};

/// Accepts until told to stop; then takes what is still queued, unless a successor does.
pub async fn run(
    worker: Rc<Worker>,
    listener: Rc<TcpListener>,
    target: Rc<Target>,
    stop: Rc<Stop>,
) {
    let ending = loop {
        let accepted = tokio::select! {
            biased;
            ending = stop.told() => break ending,
            accepted = accept(&worker, &listener) => accepted,
        };
        spawn(&worker, &target, accepted);
    };
    if ending == Ending::Succeeded {
        return;
    }
    // A connection that the system has completed belongs to a client that may have sent its request.
    while let Some(accepted) = listener.accept().now_or_never() {
        match accepted {
            Ok(accepted) => spawn(&worker, &target, accepted),
            Err(_) => return,
        }
    }
}

/// The next connection, waiting while there are too many or descriptors have run out.
async fn accept(worker: &Worker, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        let ended = worker.ended.notified();
        if worker.connections.get() >= worker.shared.max_connections {
            ended.await;
            continue;
        }
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if stream::is_exhaustion(&error) => {
                tracing::warn!(%error, "cannot accept connections for a moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The client gave up before it was accepted, or the network did.
            Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
        }
    }
}

/// Counts an open connection; the count is kept even if the task panics.
struct Open(Rc<Worker>);

impl Open {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        self.0.ended.notify_waiters();
    }
}

fn spawn(worker: &Rc<Worker>, target: &Rc<Target>, (stream, peer): (TcpStream, SocketAddr)) {
    let open = Open::new(worker);
    let session = Session::new(peer, Rc::clone(target), Rc::clone(worker), None);
    let client = Client {
        stream: stream.into(),
        deadline: Deadline::new(&worker.deadlines),
        session: Rc::new(session),
    };
    tokio::task::spawn_local(async move {
        serve(client).await;
        drop(open);
    });
}

/// What is rare is boxed, so that the many connections that only speak HTTP/1 do not pay for it in memory.
async fn serve(client: Client) {
    match client.target.protocol() {
        Protocol::Tcp => Box::pin(tunnel::serve(client, Buffer::default())).await,
        Protocol::Http | Protocol::Http2 | Protocol::Auto => match look(&client).await {
            Ok((Wire::Http1, first)) => http1::serve(client, first).await,
            Ok((Wire::Http2, first)) => Box::pin(http2::serve(client, first)).await,
            Ok((_, first)) if first.is_empty() => {
                if let Some((client, first)) = Box::pin(tunnel::serve_silent(client)).await {
                    http1::serve(client, first).await;
                }
            }
            Ok((_, first)) => Box::pin(tunnel::serve(client, first)).await,
            Err(_) => {}
        },
    }
}

/// Reads until it is clear what is spoken, for a bounded time where the server might have to speak first.
async fn look(client: &Client) -> io::Result<(Wire, Buffer)> {
    let mut first = Buffer::default();
    // A service of HTTP never speaks first: no hurry. And what is not something else for sure is
    // treated as HTTP/1 there (and answered with 400 if it is not).
    if client.target.protocol() != Protocol::Auto {
        let wire = first_bytes(client, &mut first).await?;
        return Ok((if wire == Wire::Opaque { Wire::Http1 } else { wire }, first));
    }
    let wire = wire(client, &mut first).await?;
    Ok((wire, first))
}

/// What is spoken, decided within [`DETECT`].
///
/// # Errors
/// `UnexpectedEof` if the client ends without a word.
pub async fn wire(client: &Client, first: &mut Buffer) -> io::Result<Wire> {
    let in_time = tokio::time::timeout(DETECT, first_bytes(client, first)).await;
    in_time.unwrap_or_else(|_| Ok(detect(first.bytes(), More::Not).unwrap_or(Wire::Opaque)))
}

/// Reads until it is clear what is spoken.
async fn first_bytes(client: &Client, first: &mut Buffer) -> io::Result<Wire> {
    client.deadline.set_idle(CLIENT_IDLE);
    loop {
        stream::readable(&client.stream, &client.deadline).await?;
        if first.is_empty() {
            *first = client.worker.buffers.take();
            client.deadline.set(REQUEST_HEAD);
        }
        let more = match client.stream.try_read(first.room(BUFFER.max(MAX_LOOK))) {
            Ok(0) if first.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => More::Not,
            Ok(n) => {
                first.filled(n);
                More::MayCome
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        if let Some(wire) = detect(first.bytes(), more) {
            return Ok(wire);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_task<F: Future>(_: impl FnOnce(Client) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_costs_little_memory() {
        let size = size_of_task(serve);
        assert!(size <= 3_000, "{size} bytes for the task of a connection");
    }
}
