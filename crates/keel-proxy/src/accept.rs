//! Accepting connections and telling what they speak.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::FutureExt as _;
use keel_model::Protocol;
use keel_route::detect::{MAX_LOOK, More, Wire, detect};
use keel_route::proxy_protocol::{self, MAX_V2, Parsed};

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::limits::{ACCEPT_PAUSE, BUFFER, CLIENT_IDLE, DETECT, REQUEST_HEAD};
use crate::route::RouteAt;
use crate::session::{Client, Session};
use crate::tcp::{Listening, Tcp};
use crate::worker::{Stop, Target, Worker};
use crate::{http1, http2, secure, stream, tunnel};

/// Accepts until told to stop; then takes what is still queued. A successor that has the socket too would take that, but
/// it need not have all of them.
pub async fn run(
    worker: Rc<Worker>,
    listener: Rc<Listening>,
    bind: SocketAddr,
    target: Rc<Target>,
    stop: Rc<Stop>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.told() => break,
            accepted = accept(&worker, &listener) => accepted,
        };
        spawn(&worker, bind, &target, accepted);
    }
    // A connection that the system has completed belongs to a client that may have sent its request.
    while let Some(accepted) = listener.accept().now_or_never() {
        match accepted {
            Ok(accepted) => spawn(&worker, bind, &target, accepted),
            Err(_) => return,
        }
    }
}

/// The next connection, waiting while there are too many or descriptors have run out.
async fn accept(worker: &Worker, listener: &Listening) -> (Tcp, SocketAddr) {
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
        worker.shared.connections.fetch_add(1, Relaxed);
        Self(Rc::clone(worker))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        self.0.shared.connections.fetch_sub(1, Relaxed);
        self.0.ended.notify_waiters();
    }
}

fn spawn(
    worker: &Rc<Worker>,
    bind: SocketAddr,
    target: &Rc<Target>,
    (stream, peer): (Tcp, SocketAddr),
) {
    let open = Open::new(worker);
    // A wildcard says nothing of where the client wanted to go.
    let wild = bind.ip().is_unspecified();
    let local = if wild { stream.socket().local_addr().unwrap_or(bind) } else { bind };
    let session = Session::new(peer, local, Rc::clone(target), Rc::clone(worker), None);
    let client = Client {
        stream: stream.into(),
        deadline: Deadline::new(&worker.deadlines),
        session: Rc::new(session),
    };
    if is_refused(&client) {
        return;
    }
    tokio::task::spawn_local(async move {
        serve(client).await;
        drop(open);
    });
}

/// What is rare is boxed, so that the many connections that only speak HTTP/1 do not pay for it in memory.
async fn serve(client: Client) {
    match begin(client).await {
        Some((client, first, Speaks::Http1)) => http1::serve(client, first).await,
        Some((client, first, Speaks::Http2)) => Box::pin(http2::serve(client, first)).await,
        Some((client, first, Speaks::Bytes(None))) => Box::pin(tunnel::serve(client, first)).await,
        Some((client, first, Speaks::Bytes(Some(route)))) => {
            Box::pin(tunnel::serve_route(client, first, &route)).await;
        }
        None => {}
    }
}

/// What a client speaks, once TLS has ended if it does here.
pub enum Speaks {
    Http1,
    Http2,
    /// Nobody asks, or a route for connections wants it.
    Bytes(Option<RouteAt>),
}

/// Whether the caller shares no network with the service; people are told then.
fn is_refused(client: &Client) -> bool {
    let refused = client.target.refuses(client.peer.ip(), &client.worker.callers);
    let Some(caller) = refused else { return false };
    let (shared, cluster) = (&client.worker.shared, client.target.cluster());
    shared.notices.refused(shared.now_ms(), caller, cluster.id());
    true
}

/// Finds out what is spoken, and what was read of it; `None` if there is nothing more to serve.
async fn begin(mut client: Client) -> Option<(Client, Buffer, Speaks)> {
    let mut first = Buffer::default();
    if client.target.believes(client.peer.ip()) {
        client = Box::pin(introduced(client, &mut first)).await?;
    }
    if let Some(config) = client.target.tls() {
        return Box::pin(secure::begin(client, first, config)).await;
    }
    if client.target.protocol() == Protocol::Tcp {
        let route = secure::wanted_by(&client, None);
        return Some((client, first, Speaks::Bytes(route)));
    }
    let wire = look(&client, &mut first).await.ok()?;
    match wire {
        Wire::Http1 => Some((client, first, Speaks::Http1)),
        Wire::Http2 => Some((client, first, Speaks::Http2)),
        Wire::Tls if client.target.table().is_some() => {
            Box::pin(secure::pass_through(client, first)).await;
            None
        }
        _ if first.is_empty() => match Box::pin(tunnel::serve_silent(client)).await? {
            (client, Wire::Http2, first) => Some((client, first, Speaks::Http2)),
            (client, _, first) => Some((client, first, Speaks::Http1)),
        },
        _ => Some((client, first, Speaks::Bytes(None))),
    }
}

/// Reads the header by which a proxy in front says who its client is. A peer that is believed and says nothing
/// speaks for itself; one that says nonsense is not served.
async fn introduced(client: Client, first: &mut Buffer) -> Option<Client> {
    client.deadline.set(REQUEST_HEAD);
    loop {
        match proxy_protocol::parse(first.bytes()) {
            Parsed::Incomplete => {}
            Parsed::NotProxy => return Some(client),
            Parsed::Malformed(why) => {
                tracing::debug!(peer = %client.peer, why, "a PROXY header is not understood");
                return None;
            }
            Parsed::Header { len, source, destination } => {
                first.consume(len);
                let Client { stream, deadline, session } = client;
                let mut introduced = Session::new(
                    source.unwrap_or(session.peer),
                    destination.unwrap_or(session.local),
                    Rc::clone(&session.target),
                    Rc::clone(&session.worker),
                    None,
                );
                // It is for the sender to say, not for whom it names.
                introduced.trusted = session.trusted;
                return Some(Client { stream, deadline, session: Rc::new(introduced) });
            }
        }
        read_more(&client, first, MAX_V2).await.ok()?;
    }
}

/// Reads something behind what is in `first`, of which there may be `most` bytes.
pub async fn read_more(client: &Client, first: &mut Buffer, most: usize) -> io::Result<()> {
    match read_once(client, first, most).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// One read behind what is in `first`; 0 at the end. Memory is taken when there is something to put into it.
async fn read_once(client: &Client, first: &mut Buffer, most: usize) -> io::Result<usize> {
    // What the client of a new connection has to say it has often said already.
    let mut may_be_there = client.stream.is_fresh();
    loop {
        if !may_be_there {
            stream::readable(&client.stream, &client.deadline).await?;
        }
        may_be_there = false;
        if first.is_empty() {
            *first = client.worker.buffers.take();
        }
        match client.stream.try_read(first.room(most.max(BUFFER))) {
            Ok(n) => {
                first.filled(n);
                return Ok(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if first.is_empty() {
            client.worker.buffers.give(std::mem::take(first));
        }
    }
}

/// Reads until it is clear what is spoken, for a bounded time where the server might have to speak first.
async fn look(client: &Client, first: &mut Buffer) -> io::Result<Wire> {
    // A service of HTTP never speaks first: no hurry. And what is not something else for sure is
    // treated as HTTP/1 there (and answered with 400 if it is not). The same holds where routes decide.
    if client.target.protocol() != Protocol::Auto || client.target.table().is_some() {
        let wire = first_bytes(client, first).await?;
        return Ok(if wire == Wire::Opaque { Wire::Http1 } else { wire });
    }
    wire(client, first).await
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
    if !first.is_empty()
        && let Some(wire) = detect(first.bytes(), More::MayCome)
    {
        return Ok(wire);
    }
    loop {
        let begins = first.is_empty();
        let more = match read_once(client, first, MAX_LOOK).await? {
            0 if begins => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => More::Not,
            _ => More::MayCome,
        };
        if begins {
            client.deadline.set(REQUEST_HEAD);
        }
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
        assert!(size <= 3_500, "{size} bytes for the task of a connection");
    }
}
