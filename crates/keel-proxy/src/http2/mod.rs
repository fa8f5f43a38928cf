//! HTTP/2: a client's connection, each request in a task of its own.
//!
//! The protocol is the `h2` crate's, with its defences against floods of resets, settings, empty frames and
//! continuations switched on; here is how long things may take and how many there may be.

mod pool;
mod runners;
mod upgrade;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

pub use pool::{Lane, Pool};
pub use runners::Runners;
pub use upgrade::{Upgrade, settings_end, wanted};

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::http2::runners::Job;
use crate::limits::{
    CLIENT_IDLE, H2_CONNECTION_WINDOW, H2_GIVEN_UP_PER_SECOND, H2_STREAM_WINDOW, MAX_H2_GIVEN_UP,
    MAX_H2_OFFENCES, MAX_H2_REMEMBERED, MAX_H2_RESETS, MAX_H2_SEND_BUFFER, MAX_H2_SMALL_PIECES,
    MAX_H2_STREAMS, MAX_HEAD, REQUEST_HEAD,
};
use crate::session::{Client, Session};

/// Serves a connection that begins with the preface of HTTP/2; `first` was read from it already.
pub async fn serve(client: Client, first: Buffer) {
    let Client { stream, deadline, session } = client;
    let io = upgrade::Begun::new(stream, first);
    run(io, &deadline, session).await;
}

/// Serves a connection that was upgraded from HTTP/1; its first request came before the upgrade.
pub async fn serve_upgraded(client: Client, upgrade: Upgrade) {
    let Client { stream, deadline, session } = client;
    let io = upgrade::Begun::upgraded(stream, upgrade);
    run(io, &deadline, session).await;
}

async fn run<T>(io: T, deadline: &Deadline, session: Rc<Session>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_H2_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_send_buffer_size(MAX_H2_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_H2_RESETS)
        .max_concurrent_reset_streams(MAX_H2_REMEMBERED)
        .max_local_error_reset_streams(Some(MAX_H2_OFFENCES))
        .data_frame_budget(MAX_H2_SMALL_PIECES)
        .enable_connect_protocol();
    deadline.set(REQUEST_HEAD);
    let mut handshake = builder.handshake::<_, Bytes>(io);
    let made =
        deadline.until(|cx| std::pin::Pin::new(&mut handshake).poll(cx).map_err(io::Error::other));
    let Ok(connection) = made.await else { return };
    let (open, given_up) = (Rc::default(), Rc::default());
    Served { connection, session, open, given_up, ending: false }.run(deadline).await;
}

/// Requests that were given up soon after they began.
#[derive(Debug, Default)]
pub struct GivenUp {
    count: Cell<u64>,
    /// What time makes good has been taken off the count up to here.
    since_ms: Cell<u64>,
}

impl GivenUp {
    fn add(&self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.since_ms.get());
        let made_good = passed_ms.saturating_mul(H2_GIVEN_UP_PER_SECOND) / 1000;
        if made_good > 0 {
            self.since_ms.set(now_ms);
        }
        self.count.set(self.count.get().saturating_sub(made_good) + 1);
    }

    fn are_too_many(&self) -> bool {
        self.count.get() > MAX_H2_GIVEN_UP
    }
}

struct Served<T> {
    connection: Connection<T, Bytes>,
    session: Rc<Session>,
    /// Requests that are being served.
    open: Rc<Cell<usize>>,
    given_up: Rc<GivenUp>,
    /// The client was told to send no more.
    ending: bool,
}

/// Counts a request that is being served, even if its task panics.
#[derive(Debug)]
pub struct Open(Rc<Cell<usize>>);

impl Open {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<T> Served<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    async fn run(mut self, deadline: &Deadline) {
        loop {
            let worker = Rc::clone(&self.session.worker);
            let drained = worker.draining.notified();
            if worker.ending.get() && !self.ending {
                self.ending = true;
                self.connection.graceful_shutdown();
            }
            let accepted = tokio::select! {
                biased;
                accepted = self.next(deadline) => accepted,
                () = drained => continue,
            };
            match accepted {
                // The library has seen only those that were reset before they came here.
                Ok(Some(_)) if self.given_up.are_too_many() => {
                    self.ending = true;
                    self.connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                }
                Ok(Some((request, respond))) => self.begin(request, respond),
                Ok(None) => return,
                // Idle for long: no more requests, then the end.
                Err(e) if e.kind() == io::ErrorKind::TimedOut && !self.ending => {
                    self.ending = true;
                    self.connection.graceful_shutdown();
                }
                Err(error) => {
                    tracing::debug!(peer = %self.session.peer, %error, "a connection of HTTP/2 broke");
                    return;
                }
            }
        }
    }

    /// The next request; drives the connection meanwhile.
    async fn next(
        &mut self,
        deadline: &Deadline,
    ) -> io::Result<Option<(Request<h2::RecvStream>, SendResponse<Bytes>)>> {
        let mut waits_idle = None;
        let (connection, open) = (&mut self.connection, &self.open);
        deadline
            .until(|cx| {
                let polled = connection.poll_accept(cx);
                let idle = open.get() == 0;
                if waits_idle != Some(idle) {
                    waits_idle = Some(idle);
                    if idle { deadline.set_idle(CLIENT_IDLE) } else { deadline.unset() }
                }
                match polled {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(None) => Poll::Ready(Ok(None)),
                    Poll::Ready(Some(Ok(request))) => Poll::Ready(Ok(Some(request))),
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Err(io::Error::other(error))),
                }
            })
            .await
    }

    fn begin(&self, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        self.session.worker.runners.run(Job {
            session: Rc::clone(&self.session),
            request,
            respond,
            open: Open::new(&self.open),
            given_up: Rc::clone(&self.given_up),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_makes_good_what_was_given_up() {
        let given_up = GivenUp::default();
        let rate = H2_GIVEN_UP_PER_SECOND;
        // Less than the rate, for long, in bursts between two ticks.
        for tick in 0..100_000 {
            (0..rate / 5).for_each(|_| given_up.add(tick * 250));
            assert!(!given_up.are_too_many());
        }
        // At the last tick, so that no time makes good what comes now.
        let now = 99_999 * 250;
        let left = MAX_H2_GIVEN_UP - given_up.count.get();
        (0..left).for_each(|_| given_up.add(now));
        assert!(!given_up.are_too_many());
        given_up.add(now);
        assert!(given_up.are_too_many());
    }
}
