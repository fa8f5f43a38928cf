//! Opaque connections: bytes both ways until both sides have said all.
//!
//! The end of one direction is passed on as such (half-close) while the other goes on. A connection that breaks
//! is reset towards the other side, so that neither takes a cut-off stream for a whole one. There is
//! no idle timeout; the system's keep-alive finds peers that have vanished.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use keel_route::balance;
use keel_route::detect::Wire;

use crate::accept;
use crate::access::Entry;
use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::counted::{Affinity, Counted};
use crate::deadline::Deadline;
use crate::limits::{CLIENT_IDLE, MAX_MOVES, SCRATCH, SMALL_TURNS};
use crate::route::RouteAt;
use crate::session::Client;
use crate::upstream::{Placement, Reuse, Upstream};
use crate::worker::Worker;
use crate::{splice, stream};

/// Serves a connection that is no HTTP; `first` was read from it already.
pub async fn serve(client: Client, first: Buffer) {
    let counted = client.session.count(client.target.cluster(), None, by_source(&client));
    place_and_pass(&client, &counted, first).await;
}

/// Serves a connection that a route wants.
pub async fn serve_route(client: Client, first: Buffer, route: &RouteAt) {
    if !route.route().allows(client.peer.ip().to_canonical()) {
        return client.stream.reset_on_close();
    }
    let Some(cluster) = route.cluster(&client) else { return client.stream.reset_on_close() };
    let counted = client.session.count(cluster, Some(route.name()), by_source(&client));
    place_and_pass(&client, &counted, first).await;
}

/// Of an opaque connection nothing is known but where it comes from.
fn by_source(client: &Client) -> Affinity {
    let hash = balance::hash(client.peer_text.as_bytes());
    Affinity { hash: Some(hash), token: None }
}

async fn place_and_pass(client: &Client, counted: &Counted, first: Buffer) {
    counted.log(Entry::of_connection(&client.session, "TCP"));
    if counted.enter().is_err() || client.shed().is_some() {
        counted.failed(0);
        counted.because("busy");
        return client.stream.reset_on_close();
    }
    counted.is_tunnel();
    if let Some(upstream) = place(client, counted).await {
        pass(client, counted, &upstream, first).await;
    }
}

/// Serves a connection on which the client has said nothing for a while: the server may have to speak first.
///
/// It may also be a client of HTTP that connects in advance, or was held up. So the first to speak decides; a
/// client that speaks HTTP after all is handed back with its first bytes. While nobody has spoken,
/// the connection moves on when its endpoint drains.
pub async fn serve_silent(client: Client) -> Option<(Client, Wire, Buffer)> {
    let counted = client.session.count(client.target.cluster(), None, by_source(&client));
    counted.log(Entry::of_connection(&client.session, "TCP"));
    let silence = Deadline::never(&client.worker.deadlines);
    silence.set_idle(CLIENT_IDLE);
    let mut moves = 0;
    loop {
        let upstream = place(&client, &counted).await?;
        match first_to_speak(&client, &counted, &upstream, &silence, moves < MAX_MOVES).await {
            Ok(Event::Server) => {
                pass(&client, &counted, &upstream, Buffer::default()).await;
                return None;
            }
            Ok(Event::Client) => {
                let mut first = Buffer::default();
                match accept::wire(&client, &mut first).await {
                    Ok(wire @ (Wire::Http1 | Wire::Http2)) => {
                        counted.was_none();
                        return Some((client, wire, first));
                    }
                    // It has ended without a word; the server may still have one.
                    Ok(_) => pass(&client, &counted, &upstream, first).await,
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        pass(&client, &counted, &upstream, first).await;
                    }
                    Err(_) => {}
                }
                return None;
            }
            Ok(Event::Moved) => moves += 1,
            Err(_) => return None,
        }
    }
}

enum Event {
    Client,
    Server,
    /// The endpoint takes nothing new any more.
    Moved,
}

async fn first_to_speak(
    client: &Client,
    counted: &Counted,
    upstream: &Upstream,
    silence: &Deadline,
    may_move: bool,
) -> io::Result<Event> {
    loop {
        let changed = counted.cluster.changed.notified();
        let moved = !upstream.in_flight.endpoint.is_ready() && counted.cluster.has_ready();
        if moved && may_move {
            return Ok(Event::Moved);
        }
        let spoken = silence.until(|cx| {
            if let Poll::Ready(result) = upstream.line.poll_read_ready(cx) {
                return Poll::Ready(result.map(|()| Event::Server));
            }
            client.stream.poll_read_ready(cx).map_ok(|()| Event::Client)
        });
        tokio::select! {
            biased;
            event = spoken => return event,
            () = changed => {}
        }
    }
}

async fn place(client: &Client, counted: &Counted) -> Option<Upstream> {
    let mut placement = Placement::default();
    match placement.acquire(&client.worker, counted, Reuse::No).await {
        Ok(upstream) => {
            counted.tries(&upstream.in_flight.endpoint);
            Some(upstream)
        }
        Err(why) => {
            counted.failed(0);
            counted.because(why.reason());
            tracing::debug!(cluster = counted.cluster.id(), ?why, "a connection found no endpoint");
            client.stream.reset_on_close();
            None
        }
    }
}

async fn pass(client: &Client, counted: &Counted, upstream: &Upstream, first: Buffer) {
    let passed = both_ways(client, counted, &upstream.line, first, Buffer::default()).await;
    if let Err(error) = passed {
        counted.because("broken");
        tracing::debug!(cluster = counted.cluster.id(), %error, "a connection broke");
        client.stream.reset_on_close();
        upstream.line.reset_on_close();
    }
}

/// What both directions of a tunnel share.
struct Tunnel<'a> {
    worker: &'a Worker,
    /// With nothing in either direction for this long it ends.
    idle: Option<Duration>,
    /// When something last came, on the worker's clock.
    active_ms: Cell<u64>,
}

impl Tunnel<'_> {
    fn is_active(&self) {
        self.active_ms.set(self.worker.deadlines.now_ms());
    }

    /// Waits for bytes from `from`, as long as there is anything in the other direction.
    async fn readable(&self, from: &Conn, deadline: &Deadline) -> io::Result<()> {
        loop {
            match self.idle {
                Some(idle) => deadline.set(idle),
                None => deadline.unset(),
            }
            match stream::readable(from, deadline).await {
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    let silent = self.worker.deadlines.now_ms() - self.active_ms.get();
                    if self.idle.is_some_and(|idle| u128::from(silent) >= idle.as_millis()) {
                        return Err(e);
                    }
                }
                done => return done,
            }
        }
    }
}

/// Copies in both directions until both have ended; what has been read already goes first.
pub async fn both_ways(
    client: &Client,
    counted: &Counted,
    upstream: &Conn,
    up: Buffer,
    down: Buffer,
) -> io::Result<()> {
    let tunnel = Tunnel {
        worker: &client.worker,
        idle: counted.cluster.policy().timeouts.idle,
        active_ms: Cell::new(client.worker.deadlines.now_ms()),
    };
    let moved = [Cell::new(0), Cell::new(0)];
    let passed = {
        let mut up = pin!(one_way(&tunnel, &client.stream, upstream, up, &moved[0]));
        let mut down = pin!(one_way(&tunnel, upstream, &client.stream, down, &moved[1]));
        until_both_end(up.as_mut(), down.as_mut()).await
    };
    counted.moved(moved[0].get(), moved[1].get());
    passed
}

async fn until_both_end(
    mut up: Pin<&mut impl Future<Output = io::Result<()>>>,
    mut down: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> io::Result<()> {
    let (mut up_ended, mut down_ended) = (false, false);
    poll_fn(|cx| {
        if !up_ended && let Poll::Ready(result) = up.as_mut().poll(cx) {
            up_ended = true;
            if result.is_err() {
                return Poll::Ready(result);
            }
        }
        if !down_ended && let Poll::Ready(result) = down.as_mut().poll(cx) {
            down_ended = true;
            if result.is_err() {
                return Poll::Ready(result);
            }
        }
        if up_ended && down_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

async fn one_way(
    tunnel: &Tunnel<'_>,
    from: &Conn,
    to: &Conn,
    early: Buffer,
    moved: &Cell<u64>,
) -> io::Result<()> {
    let worker = tunnel.worker;
    let deadline = Deadline::new(&worker.deadlines);
    let never = Deadline::never(&worker.deadlines);
    moved.set(early.len() as u64);
    write(worker, to, early, &never).await?;
    loop {
        tunnel.readable(from, &deadline).await?;
        tunnel.is_active();
        match copy(worker, from, to, moved)? {
            Copied::All => {}
            Copied::End => return to.end(&never).await,
            Copied::Left(left) => write(worker, to, left, &never).await?,
            Copied::Bulk(left) => {
                write(worker, to, left, &never).await?;
                bulk(tunnel, from, to, &deadline, moved).await?;
            }
        }
    }
}

enum Copied {
    All,
    /// Nothing more comes.
    End,
    /// The other side took only a part; this is the rest.
    Left(Buffer),
    /// As `Left`, and there is much more.
    Bulk(Buffer),
}

/// One read and one write.
fn copy(worker: &Worker, from: &Conn, to: &Conn, moved: &Cell<u64>) -> io::Result<Copied> {
    let mut scratch = worker.scratch.borrow_mut();
    let read = match from.try_read(&mut scratch[..]) {
        Ok(0) => return Ok(Copied::End),
        Ok(n) => n,
        Err(e) if is_passing(&e) => return Ok(Copied::All),
        Err(e) => return Err(e),
    };
    moved.set(moved.get() + read as u64);
    let written = match to.try_write(&scratch[..read], &[]) {
        Ok(n) => n,
        Err(e) if is_passing(&e) => 0,
        Err(e) => return Err(e),
    };
    let is_bulk = read == scratch.len();
    if written == read && !is_bulk {
        return Ok(Copied::All);
    }
    let mut left = Buffer::default();
    if written < read {
        left = worker.buffers.take();
        left.extend(&scratch[written..read]);
    }
    Ok(if is_bulk { Copied::Bulk(left) } else { Copied::Left(left) })
}

/// Lets the system move the bytes for as long as many come.
async fn bulk(
    tunnel: &Tunnel<'_>,
    from: &Conn,
    to: &Conn,
    deadline: &Deadline,
    moved: &Cell<u64>,
) -> io::Result<()> {
    let never = Deadline::never(&tunnel.worker.deadlines);
    let (Some(source), Some(sink)) = (from.plain(), to.plain()) else { return Ok(()) };
    let mut small = 0;
    while small < SMALL_TURNS {
        let turn = splice::turn(&tunnel.worker.pipes, source, sink, u64::MAX, &never).await;
        let turn = turn.map_err(|(splice::Broken::Source(e) | splice::Broken::Sink(e))| e)?;
        if let splice::Turn::Moved(n) = turn {
            moved.set(moved.get() + n as u64);
            tunnel.is_active();
        }
        match turn {
            // The end shows in the next read, too.
            splice::Turn::Moved(0) | splice::Turn::Unavailable => return Ok(()),
            splice::Turn::Moved(n) if n >= SCRATCH => small = 0,
            splice::Turn::Moved(_) => small += 1,
            splice::Turn::Nothing => tunnel.readable(from, deadline).await?,
        }
    }
    Ok(())
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

async fn write(worker: &Worker, to: &Conn, bytes: Buffer, never: &Deadline) -> io::Result<()> {
    let written = stream::write_all(to, bytes.bytes(), never).await;
    worker.buffers.give(bytes);
    written.map_err(|(_, error)| error)
}
