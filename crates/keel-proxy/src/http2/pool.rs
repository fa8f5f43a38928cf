//! Connections of HTTP/2 to an endpoint: few, shared by many requests.
//!
//! A request takes a place on a connection that has one free. Several that need a new connection at the same time
//! wait for the first one's, until the endpoint has told how many it takes: those that are too many it would refuse.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use crate::conn::Conn;
use crate::limits::{
    CONNECT, H2_STREAM_WINDOW, H2_UPSTREAM_WINDOW, MAX_H2_SEND_BUFFER, MAX_H2_SMALL_PIECES,
    MAX_H2_STREAMS, MAX_HEAD,
};
use crate::stream::ConnectError;

/// How many requests the library lets pass while the endpoint has not told how many it takes. Any number would do
/// that no endpoint tells.
const UNTOLD: usize = usize::MAX - 1;

/// How many requests may be on a connection at a time.
fn places(send: &SendRequest<Bytes>) -> usize {
    match send.current_max_send_streams() {
        UNTOLD => 1,
        told => told.min(usize::try_from(MAX_H2_STREAMS).unwrap_or(usize::MAX)),
    }
}

/// One connection.
#[derive(Debug)]
struct Shared {
    /// Requests on it.
    streams: Cell<usize>,
    /// It takes no more.
    over: Cell<bool>,
    /// The endpoint has sent its settings.
    told: Cell<bool>,
    /// Woken when it has, or will not.
    news: Notify,
}

/// A place on a connection; given back when dropped.
#[derive(Debug)]
pub struct Lane {
    /// For sending the request.
    pub send: SendRequest<Bytes>,
    shared: Rc<Shared>,
}

impl Lane {
    fn new(send: &SendRequest<Bytes>, shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self { send: send.clone(), shared: Rc::clone(shared) }
    }

    /// The only place on a connection that `dial` makes.
    ///
    /// # Errors
    /// As those of [`Pool::open`].
    pub async fn alone<F>(dial: F) -> Result<Self, ConnectError>
    where
        F: Future<Output = Result<Conn, ConnectError>>,
    {
        let (send, shared) = connect(dial, None).await?;
        Ok(Self::new(&send, &shared))
    }

    /// Whether tunnels can be asked for (RFC 8441, 3), once the endpoint has said so.
    pub async fn takes_tunnels(&self) -> bool {
        let told = async {
            loop {
                let news = self.shared.news.notified();
                if self.shared.told.get() || self.shared.over.get() {
                    return;
                }
                news.await;
            }
        };
        let in_time = tokio::time::timeout(CONNECT, told).await;
        in_time.is_ok() && self.send.is_extended_connect_protocol_enabled()
    }

    /// The connection takes no more requests.
    pub fn is_over(&self) {
        self.shared.over.set(true);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.streams.set(self.shared.streams.get().saturating_sub(1));
    }
}

/// The connections of one worker to one endpoint.
#[derive(Debug, Default)]
pub struct Pool {
    open: RefCell<Vec<(SendRequest<Bytes>, Rc<Shared>)>>,
    making: Rc<Making>,
}

/// Whether a connection is being made.
#[derive(Debug, Default)]
struct Making {
    now: Cell<bool>,
    changed: Notify,
}

/// Says that nobody makes a connection any more, however that ended.
struct Maker(Rc<Making>);

impl Maker {
    fn new(making: &Rc<Making>) -> Self {
        making.now.set(true);
        Self(Rc::clone(making))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.0.now.set(false);
        self.0.changed.notify_waiters();
    }
}

impl Pool {
    /// A place on a connection that is open.
    pub fn take(&self) -> Option<Lane> {
        let mut open = self.open.borrow_mut();
        open.retain(|(_, shared)| !shared.over.get());
        let free = open.iter().find(|(send, shared)| shared.streams.get() < places(send));
        free.map(|(send, shared)| Lane::new(send, shared))
    }

    /// A place on a new connection that `dial` makes, or on one that another request is making.
    ///
    /// # Errors
    /// Those of `dial`; `Refused` when the endpoint does not speak HTTP/2.
    pub async fn open<F>(&self, dial: F) -> Result<Lane, ConnectError>
    where
        F: Future<Output = Result<Conn, ConnectError>>,
    {
        while self.making.now.get() {
            let changed = tokio::time::timeout(CONNECT, self.making.changed.notified()).await;
            if let Some(lane) = self.take() {
                return Ok(lane);
            }
            if changed.is_err() {
                // Whatever became of it: this request connects by itself.
                break;
            }
        }
        let maker = Maker::new(&self.making);
        let (send, shared) = connect(dial, Some(maker)).await?;
        let lane = Lane::new(&send, &shared);
        self.open.borrow_mut().push((send, shared));
        Ok(lane)
    }

    /// Lets go of connections without requests.
    pub fn close_unused(&self) {
        self.open.borrow_mut().retain(|(_, shared)| shared.streams.get() > 0);
    }

    /// Lets go of all connections; they end when their requests have.
    pub fn clear(&self) {
        self.open.take();
    }
}

/// A new connection, driven until it ends. Its `maker` is let go when the endpoint has said how many requests it takes.
async fn connect<F>(
    dial: F,
    maker: Option<Maker>,
) -> Result<(SendRequest<Bytes>, Rc<Shared>), ConnectError>
where
    F: Future<Output = Result<Conn, ConnectError>>,
{
    let conn = dial.await?;
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_UPSTREAM_WINDOW)
        .initial_max_send_streams(UNTOLD)
        .data_frame_budget(MAX_H2_SMALL_PIECES)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_send_buffer_size(MAX_H2_SEND_BUFFER)
        .handshake(conn);
    let (send, connection) = match tokio::time::timeout(CONNECT, handshake).await {
        Ok(Ok(made)) => made,
        Ok(Err(_)) | Err(_) => return Err(ConnectError::Refused),
    };
    let shared = Rc::new(Shared {
        streams: Cell::new(0),
        over: Cell::new(false),
        told: Cell::new(false),
        news: Notify::new(),
    });
    let over = Rc::clone(&shared);
    let mut untold = maker.map(|maker| (send.clone(), maker));
    tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        let ended = poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            untold.take_if(|(send, _)| send.current_max_send_streams() != UNTOLD);
            if !over.told.get() && connection.max_concurrent_send_streams() != UNTOLD {
                over.told.set(true);
                over.news.notify_waiters();
            }
            polled
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "a connection of HTTP/2 to an endpoint broke");
        }
        over.over.set(true);
        over.news.notify_waiters();
    });
    Ok((send, shared))
}
