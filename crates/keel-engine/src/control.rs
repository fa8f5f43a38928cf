//! The control socket: who may serve it, the server's connection, and the last state in a file.

use std::fs::{self, File, TryLockError};
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, MAX_FRAME, Snapshot, ToProxy};
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::files;
use crate::limits::{CONTROL_WRITE, LOCK_PATIENCE, LOCK_PAUSE};

/// Bytes read from the server at once.
const READ: usize = 64 * 1024;

/// The control socket and the right to it; removed and given up when dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

/// The right to serve a control socket, for as long as the file is open; `None` if somebody else keeps it.
pub fn lock(socket: &Path, patience: Duration) -> io::Result<Option<File>> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let file = File::options().create(true).append(true).open(path)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            // One that is ending gives it up in a moment.
            Err(TryLockError::WouldBlock) if since.elapsed() < patience => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// How long the right to a control socket is waited for.
pub const PATIENCE: Duration = LOCK_PATIENCE;

impl ControlSocket {
    /// Makes the socket, for this user only. A file that is there is left from somebody who died.
    pub fn create(path: &Path, lock: File) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        umask(before);
        Ok(Self { listener: listener?, path: path.to_owned(), _lock: lock })
    }

    /// The next connection of the server.
    pub async fn accept(socket: Option<&Self>) -> io::Result<UnixStream> {
        match socket {
            Some(socket) => socket.listener.accept().await.map(|(stream, _)| stream),
            None => pending().await,
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Whoever looks for a proxy shall not find one that is gone. The lock is given up after this.
        let _ = fs::remove_file(&self.path);
    }
}

/// The server's connection, if there is one.
#[derive(Default)]
pub struct Server {
    connection: Option<Connection>,
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Server {
    /// Takes a connection in the place of the one there was.
    pub fn replace(&mut self, stream: UnixStream) {
        let connection = Connection { stream, decoder: Decoder::default(), buffer: vec![0; READ] };
        if self.connection.replace(connection).is_some() {
            tracing::info!("a new connection of the server replaces the old one");
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

    /// Waits for news; what came, if the connection still stands.
    pub async fn receive(&mut self) -> Vec<ToProxy> {
        let Some(Connection { stream, decoder, buffer }) = &mut self.connection else {
            return pending().await;
        };
        let Ok(read @ 1..) = stream.read(buffer).await else {
            tracing::info!("the server is gone; the last state stays in force");
            self.connection = None;
            return Vec::new();
        };
        decoder.push(&buffer[..read]);
        let mut messages = Vec::new();
        loop {
            match decoder.decode() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return messages,
                Err(error) => {
                    tracing::warn!(%error, "the server is not understood; its connection is closed");
                    self.connection = None;
                    return messages;
                }
            }
        }
    }
}

/// Reads the last state; `None` if there is none or it can't be used.
pub fn load(path: &Path) -> Option<Snapshot> {
    let length = fs::metadata(path).ok()?.len();
    if length > MAX_FRAME as u64 {
        return None;
    }
    let state = serde_json::from_slice(&fs::read(path).ok()?);
    state.inspect_err(|error| tracing::warn!(%error, "the last state is damaged")).ok()
}

/// Keeps the last state. A full disk costs the newest state after a restart, nothing else.
pub fn save(path: &Path, snapshot: &Snapshot) {
    let json = serde_json::to_vec(snapshot).expect("a snapshot has string keys only");
    if let Err(error) = files::put(path, &json, files::SECRET) {
        tracing::warn!(path = %path.display(), %error, "cannot keep the last state");
    }
}
