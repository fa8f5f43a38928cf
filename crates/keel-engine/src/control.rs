//! The server's connection, and the last state kept for the next driver.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use keel_link::handover;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, Snapshot, ToProxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::limits::CONTROL_WRITE;

/// Bytes read from the server at once.
const READ: usize = 64 * 1024;

/// The server's connection, if there is one.
#[derive(Default)]
pub struct Server {
    connection: Option<Connection>,
    /// Has said nothing yet. Who only asks who serves here must not cost the server its connection.
    newcomer: Option<Connection>,
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// What came.
pub struct News {
    /// What was said.
    pub messages: Vec<ToProxy>,
    /// It is the first that a new connection says.
    pub is_new: bool,
}

impl Server {
    /// Greets whoever has connected. The first word makes it the server.
    pub async fn greet(&mut self, mut stream: UnixStream, hello: &FromProxy) {
        let Ok(frame) = encode(hello) else { return };
        if let Ok(Ok(())) = timeout(CONTROL_WRITE, stream.write_all(&frame)).await {
            let buffer = vec![0; READ];
            self.newcomer = Some(Connection { stream, decoder: Decoder::default(), buffer });
        }
    }

    pub fn is_there(&self) -> bool {
        self.connection.is_some()
    }

    pub fn close(&mut self) {
        self.connection = None;
    }

    /// Sends a frame. A server that does not take it in time is dropped.
    pub async fn send(&mut self, message: &FromProxy) {
        let Some(Connection { stream, .. }) = &mut self.connection else { return };
        let frame = match encode(message) {
            Ok(frame) => frame,
            Err(error) => return tracing::error!(%error, "a message is not sent"),
        };
        let sent = timeout(CONTROL_WRITE, stream.write_all(&frame)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::info!("the server is gone");
            self.connection = None;
        }
    }

    /// Gives a place to the one that is connected: the state, and the sockets. Whether it took them; one that did not is
    /// dropped.
    pub async fn give(
        &mut self,
        snapshot: Snapshot,
        sockets: BTreeMap<SocketAddr, Vec<OwnedFd>>,
    ) -> bool {
        let Some(Connection { stream, decoder, buffer }) = self.connection.take() else {
            return false;
        };
        let given = tokio::task::spawn_blocking(move || {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            handover::give(&stream, &snapshot, &sockets)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match given.await.map_err(io::Error::other).flatten().and_then(UnixStream::from_std) {
            Ok(stream) => {
                self.connection = Some(Connection { stream, decoder, buffer });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a successor did not take the place");
                false
            }
        }
    }

    /// Waits for news; what came, if the connection still stands.
    pub async fn receive(&mut self) -> News {
        let (read, is_new) = tokio::select! {
            read = read(&mut self.connection) => (read, false),
            read = read(&mut self.newcomer) => (read, true),
        };
        let mut news = News { messages: Vec::new(), is_new: false };
        if is_new {
            let newcomer = self.newcomer.take().filter(|_| read > 0);
            let Some(newcomer) = newcomer else { return news };
            news.is_new = true;
            if self.connection.replace(newcomer).is_some() {
                tracing::info!("a new connection of the server replaces the old one");
            }
        } else if read == 0 {
            tracing::info!("the server is gone; the last state stays in force");
            self.connection = None;
        }
        let Some(Connection { decoder, buffer, .. }) = &mut self.connection else { return news };
        decoder.push(&buffer[..read]);
        loop {
            match decoder.decode() {
                Ok(Some(message)) => news.messages.push(message),
                Ok(None) => return news,
                Err(error) => {
                    tracing::warn!(%error, "the server is not understood; its connection is closed");
                    self.connection = None;
                    return news;
                }
            }
        }
    }
}

/// Reads once; 0 if the connection has ended. Without one it waits for ever.
async fn read(connection: &mut Option<Connection>) -> usize {
    match connection {
        Some(Connection { stream, buffer, .. }) => stream.read(buffer).await.unwrap_or(0),
        None => pending().await,
    }
}

/// Keeps the last state. A full disk costs the newest state after a restart, nothing else.
pub fn save(path: &Path, snapshot: &Snapshot) {
    if let Err(error) = keel_link::save(path, &keel_link::to_json(snapshot)) {
        tracing::warn!(path = %path.display(), %error, "cannot keep the last state");
    }
}
