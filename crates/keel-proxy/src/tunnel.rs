//! Opaque connections: bytes both ways until both sides have said all.
//!
//! The end of one direction is passed on as such (half-close) while the other goes on. A connection that breaks
//! is reset towards the other side, so that neither takes a cut-off stream for a whole one. There is
//! no idle timeout; the system's keep-alive finds peers that have vanished.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::task::Poll;

use rustix::net::Shutdown;
use tokio::net::TcpStream;

use crate::accept::Client;
use crate::buffer::Buffer;
use crate::cluster::Counted;
use crate::deadline::Deadline;
use crate::stream;
use crate::upstream::{Placement, Reuse};
use crate::worker::Worker;

/// Serves a connection that is not HTTP/1; `first` was read from it already.
pub async fn serve(client: Client, first: Buffer) {
    let counted = Counted::begin(client.target.cluster());
    let mut placement = Placement::default();
    let upstream = match placement.acquire(&client.worker, &counted, Reuse::No).await {
        Ok(upstream) => upstream,
        Err(why) => {
            counted.failed();
            tracing::debug!(cluster = counted.cluster.id(), ?why, "a connection found no endpoint");
            stream::reset_on_close(&client.stream);
            return;
        }
    };
    placement.placed();
    let never = Deadline::never(&client.worker.deadlines);
    let sent = stream::write_all(&upstream.stream, first.bytes(), &never).await;
    client.worker.buffers.give(first);
    let done = match sent {
        Ok(()) => both_ways(&client, &upstream.stream, Buffer::default()).await,
        Err((_, error)) => Err(error),
    };
    if let Err(error) = done {
        tracing::debug!(cluster = counted.cluster.id(), %error, "a connection broke");
        stream::reset_on_close(&client.stream);
        stream::reset_on_close(&upstream.stream);
    }
}

/// Copies in both directions until both have ended; `early` goes to the client first.
pub async fn both_ways(client: &Client, upstream: &TcpStream, early: Buffer) -> io::Result<()> {
    let worker = &*client.worker;
    let never = [Deadline::never(&worker.deadlines), Deadline::never(&worker.deadlines)];
    let mut up = pin!(one_way(worker, &client.stream, upstream, Buffer::default(), &never[0]));
    let mut down = pin!(one_way(worker, upstream, &client.stream, early, &never[1]));
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
    worker: &Worker,
    from: &TcpStream,
    to: &TcpStream,
    early: Buffer,
    never: &Deadline,
) -> io::Result<()> {
    write(worker, to, early, never).await?;
    loop {
        stream::readable(from, never).await?;
        let left = {
            let mut scratch = worker.scratch.borrow_mut();
            let read = match stream::try_read(from, &mut scratch[..]) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            };
            let written = match stream::try_write(to, &scratch[..read], &[]) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(e) => return Err(e),
            };
            if written == read {
                continue;
            }
            let mut left = worker.buffers.take();
            left.extend(&scratch[written..read]);
            left
        };
        write(worker, to, left, never).await?;
    }
    match rustix::net::shutdown(to.as_fd(), Shutdown::Write) {
        // It has closed already.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn write(worker: &Worker, to: &TcpStream, bytes: Buffer, never: &Deadline) -> io::Result<()> {
    let written = stream::write_all(to, bytes.bytes(), never).await;
    worker.buffers.give(bytes);
    written.map_err(|(_, error)| error)
}
