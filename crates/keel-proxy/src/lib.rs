//! The data plane: a process that accepts connections and passes requests to ready endpoints.
//!
//! It does what a [`Snapshot`](keel_route::snapshot::Snapshot) says and keeps doing so without the server.
//! Decisions are made by [`keel_route`]; here are the sockets. One control thread ([`run`]'s caller) talks to the
//! server; each worker thread has its own runtime, listening sockets, connections and pools, and shares only
//! counters with the others.
//!
//! Invariants: after an `Ack` no worker sends a new request to a draining endpoint (but as a last resort, when a
//! service that is not expected back has nothing else); nothing is repeated that may have been done; every wait,
//! queue and buffer has a bound in `limits`; hostile bytes are an error, never a panic.

mod accept;
mod access;
mod again;
mod bridge;
mod buffer;
mod callers;
mod check;
mod cluster;
mod conn;
mod control;
mod counted;
mod date;
mod deadline;
mod edge;
#[doc(hidden)]
pub mod fuzz;
mod http1;
mod http2;
mod ids;
mod limits;
mod listen;
mod notices;
mod persist;
mod pressure;
mod registry;
mod reply;
mod route;
mod secure;
mod session;
mod shared;
mod sock_diag;
mod splice;
mod stream;
mod tcp;
#[doc(hidden)]
pub mod tls;
mod tries;
mod tunnel;
mod upstream;
mod waiting;
mod worker;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use keel_link::handover;
use keel_route::access_log::AccessLog;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::control::{Control, Predecessor};
use crate::shared::Shared;

/// How long requests are held for a service without a ready endpoint, unless told otherwise.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// How to run a proxy.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Unix socket to be created for the server; a file with `.lock` added to its name is kept beside it.
    pub control_socket: PathBuf,
    /// Where the last state is kept.
    pub snapshot_file: PathBuf,
    /// Data-plane threads; at least one is started.
    pub workers: usize,
    /// How long a request waits for a service that has no ready endpoint but is expected to.
    pub hold_timeout: Duration,
    /// Told to the server.
    pub version: String,
    /// The access log, where the state does not say how it is wanted.
    pub access_log: Option<AccessLog>,
    /// Take the place of the proxy that serves the control socket, if there is one, without losing a connection.
    pub take_over: bool,
    /// The standard input is a Unix socket through which the state and the listening sockets of a proxy that died come
    /// ([`handover::give`]).
    pub sockets_from_stdin: bool,
}

/// Why a proxy did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another proxy serves the same control socket.
    #[error(
        "a proxy already serves {path}; end it first (kill -TERM), or give this one another control socket"
    )]
    AlreadyServed {
        /// The control socket.
        path: PathBuf,
    },
    /// The control socket cannot be made.
    #[error(
        "cannot create the control socket {path}: {source}; check that its directory exists and is writable"
    )]
    ControlSocket {
        /// The control socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The running proxy did not give its place up.
    #[error(
        "cannot take over from the running proxy: {0}; it serves on, and a restart without taking over needs its end"
    )]
    TakeOver(#[source] io::Error),
    /// Threads, signals or runtimes could not be set up.
    #[error("cannot start the proxy: {0}")]
    Start(#[source] io::Error),
    /// A worker thread ended by itself. The proxy is to be restarted.
    #[error(
        "worker {0} of the proxy ended unexpectedly; the log says why, and a restart serves again at once"
    )]
    WorkerDied(usize),
}

/// Runs a proxy until it is told to end by SIGTERM or SIGINT; then it closes its listeners, gives its control
/// socket up to a successor, and waits for open connections, at most 30 s. Told twice, it ends at once.
///
/// # Errors
/// [`Error`], if it cannot start or has to give up.
pub fn run(options: ProxyOptions) -> Result<(), Error> {
    let predecessor = predecessor(&options)?;
    let workers = options.workers.max(1);
    let (refused_tx, refused) = mpsc::channel(limits::REFUSED_QUEUE);
    let shared = Arc::new(Shared {
        drained: tokio::sync::Notify::new(),
        refused: refused_tx,
        started: Instant::now(),
        hold: options.hold_timeout,
        workers,
        max_connections: max_connections(raise_descriptor_limit(), workers),
        tls: tls::Listeners::default(),
        upstreams: tls::Upstreams::default(),
        connections: AtomicUsize::new(0),
        shed: AtomicU64::new(0),
        notices: notices::Notices::default(),
    });
    let (died_tx, died) = mpsc::channel(workers);
    let log = Rc::new(access::Writer::start().map_err(Error::Start)?);
    let mut senders = Vec::with_capacity(workers);
    for index in 0..workers {
        let (commands, receiver) = mpsc::channel(limits::COMMAND_QUEUE);
        let (shared, died, feed) = (Arc::clone(&shared), died_tx.clone(), log.feed());
        std::thread::Builder::new()
            .name(format!("keel-worker-{index}"))
            .spawn(move || {
                let _guard = DeathNotice { index, died };
                if let Err(error) = worker::run(index, shared, receiver, feed) {
                    tracing::error!(index, %error, "a worker could not start");
                }
            })
            .map_err(Error::Start)?;
        senders.push(commands);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let result = runtime.block_on(async {
        control::run(Control {
            version: options.version.clone(),
            workers: senders,
            died,
            refused,
            shared,
            control_socket: options.control_socket.clone(),
            snapshot_file: options.snapshot_file.clone(),
            predecessor,
            log: access::Switch::new(Rc::clone(&log), options.access_log),
        })
        .await
    });
    if let Some(log) = Rc::into_inner(log) {
        log.finish(limits::LOG_END);
    }
    runtime.shutdown_timeout(limits::CONTROL_WRITE);
    result
}

/// Whose place is taken. Without anybody's it is made sure, before anything is started, that nobody serves.
fn predecessor(options: &ProxyOptions) -> Result<Predecessor, Error> {
    if options.take_over
        && let Some(before) =
            handover::take_over(&options.control_socket).map_err(Error::TakeOver)?
    {
        return Ok(Predecessor::Proxy(Box::new(before)));
    }
    // Held before anything is accepted: of two that start at once, one ends, and must not have begun to serve.
    let lock = lock(&options.control_socket, keel_link::LOCK_PATIENCE)?;
    Ok(match options.sockets_from_stdin.then(left).flatten() {
        Some(left) => Predecessor::Dead(lock, Box::new(left)),
        None => Predecessor::None(lock),
    })
}

/// What one that died left: it comes through the standard input. Without it everything is opened anew.
fn left() -> Option<control::Left> {
    let stream = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let taken = stream.and_then(|mut stream| handover::take(&mut stream));
    if let Err(error) = &taken {
        tracing::warn!(%error, "the sockets of the proxy before this one don't come; others are opened");
    }
    taken.ok()
}

/// Tells the control thread when a worker ends, by a panic too.
struct DeathNotice {
    index: usize,
    died: mpsc::Sender<usize>,
}

impl Drop for DeathNotice {
    fn drop(&mut self) {
        // There is room for one notice of each worker; after the end nobody listens.
        let _ = self.died.try_send(self.index);
    }
}

/// The right to serve a control socket.
fn lock(control_socket: &Path, patience: Duration) -> Result<keel_link::Lock, Error> {
    let path = || control_socket.to_owned();
    let lock = keel_link::lock(control_socket, patience);
    let lock = lock.map_err(|source| Error::ControlSocket { path: path(), source })?;
    lock.ok_or_else(|| Error::AlreadyServed { path: path() })
}

/// Allows as many file descriptors as the system lets us; the number.
fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current }.unwrap_or(u64::MAX)
}

/// Each connection of a client may need one to an endpoint, but most are idle most of the time.
fn max_connections(descriptors: u64, workers: usize) -> usize {
    let usable = descriptors.saturating_sub(limits::SPARE_DESCRIPTORS) / 3 * 2;
    let each = usize::try_from(usable).unwrap_or(usize::MAX) / workers;
    each.clamp(16, 1 << 20)
}
