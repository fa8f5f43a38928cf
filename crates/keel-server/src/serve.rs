//! Puts the server together and runs it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keel_container::images::Images;
use keel_container::{ContainerRuntime, Engine};
use keel_model::{EventKind, NodeName, ZoneName};
use keel_route::access_log::AccessLog;
use keel_runtime::{MixedRuntime, ProcessOptions, ProcessRuntime, Runtime};
use keel_store::{RedbStore, Store};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;

use crate::agent::{Context, Direct, Hosts};
use crate::api::types::{ProxyView, ServerInfo};
use crate::board::Board;
use crate::changes::Changes;
use crate::controller::Controller;
use crate::detour::{self, Keeper};
use crate::events::EventLog;
use crate::http::{Api, router};
use crate::images::{Kept, Presence};
use crate::issuance::Issuance;
use crate::network::{Network, system_resolvers};
use crate::traffic::{CertificateFiles, Credentials, Figures, Link, ProxyState, Told};
use crate::views::Viewer;
use crate::world::WorldReader;
use crate::{Error, clock, metrics, names};

/// Threads of the control plane. It decides and waits; the data plane has its own process.
const WORKER_THREADS: usize = 2;
/// The answer to the request that asked for the end gets this long to leave.
const CLOSE_PAUSE: Duration = Duration::from_millis(50);
/// Shortest time between two tables of names.
const NAMES_PAUSE: Duration = Duration::from_millis(20);

/// How a server is run.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The machine's name; its host name when absent.
    pub node: Option<NodeName>,
    /// The zone that the machine is in, if it is known.
    pub zone: Option<ZoneName>,
    /// The network of virtual addresses (`10.77.0.0/16`); chosen by rights when absent.
    pub network: Option<String>,
    /// The binary that has `shim` and `proxy` as subcommands.
    pub program: PathBuf,
    /// Where metrics are served over TCP, besides the server's socket.
    pub metrics: Option<SocketAddr>,
    /// How requests are logged, if they are.
    pub access_log: Option<AccessLog>,
    /// The load balancer that handles traffic in the place of our own: `haproxy` or `nginx`.
    pub proxy_engine: Option<String>,
}

/// Where the server of a state directory listens.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("keel.sock")
}

/// Runs a server until it gets SIGTERM or SIGINT or is told to shut down. Blocks.
///
/// # Errors
/// When it can't start; nothing is left behind then.
pub fn run(options: &ServerOptions) -> Result<(), Error> {
    make_state_dir(&options.state_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(|e| Error::Runtime(e.to_string()))?;
    runtime.block_on(serve(options))
}

fn make_state_dir(path: &Path) -> Result<(), Error> {
    let failed = |source| keel_store::Error::NotWritable {
        path: path.to_owned(),
        reason: std::io::Error::to_string(&source),
    };
    if !path.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(failed)?;
    }
    Ok(())
}

async fn serve(options: &ServerOptions) -> Result<(), Error> {
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(&options.state_dir)?);
    let metrics = metrics::bind(options.metrics).await?;
    let (network, limitation) = Network::open(options.network.as_deref(), &*store).await?;
    let network = Arc::new(network);
    let node = node_name(options.node.clone());
    let worlds = Arc::new(WorldReader::new(store.clone()).await?);
    let board = Arc::new(Board::load(&*store).await?);
    let events = Arc::new(EventLog::load(&*store).await?);
    let (runtime, images) = runtime(options).map_err(|e| Error::Runtime(e.to_string()))?;
    let agent = Arc::new(Context {
        node: node.clone(),
        runtime: runtime.clone(),
        board: board.clone(),
        events: events.clone(),
        worlds: worlds.clone(),
        store: store.clone(),
        network: network.clone(),
        preparations: crate::agent::Preparations::default(),
    });
    agent.adopt().await?;

    let mut tasks = JoinSet::new();
    let (proxy_sender, proxy) = proxy_state(&store, &mut tasks).await?;
    tasks.spawn(board.clone().persist(store.clone()));
    tasks.spawn(events.clone().persist(store.clone()));
    start_dns(&network, &worlds, &board, &events, &mut tasks).await;
    let figures = Figures { ask: Arc::default(), state: proxy.clone() };
    start_link(options, &agent, &figures, proxy_sender, &mut tasks).await?;
    start_adoption(options, &agent, &proxy, &mut tasks);
    let metrics = metrics::start(metrics, &figures, &mut tasks);
    tasks.spawn(controller(&agent).run());
    tasks.spawn(agent.clone().run());
    tasks.spawn(Kept::new(&images, &worlds, &store).run());

    let shutdown = Arc::new(Notify::new());
    let limitations = limitation.into_iter().chain(limitations(&*runtime)).collect();
    let api = Arc::new(Api {
        changes: changes(&agent, &proxy, &images),
        presence: Presence { images, store: store.clone() },
        viewer: Viewer {
            node: node.clone(),
            worlds: worlds.clone(),
            board,
            network: network.clone(),
            proxy: proxy.clone(),
        },
        events: events.clone(),
        runtime,
        figures,
        info: ServerInfo { metrics, ..info(options, node, &network, limitations) },
        shutdown: shutdown.clone(),
    });
    let socket = socket_path(&options.state_dir);
    let listener = listen(&socket)?;
    let message = format!("server {} started", env!("CARGO_PKG_VERSION"));
    tracing::info!(socket = %socket.display(), "{message}");
    events.add(EventKind::Platform, None, None, None, message);
    wait(listener, api, &shutdown).await;
    // The link first, as it would start another proxy.
    tasks.shutdown().await;
    leave(options, &worlds, &*store, &proxy).await;
    Ok(())
}

fn changes(agent: &Context, proxy: &watch::Receiver<ProxyState>, images: &Images) -> Changes {
    Changes {
        node: agent.node.clone(),
        store: agent.store.clone(),
        worlds: agent.worlds.clone(),
        events: agent.events.clone(),
        network: agent.network.clone(),
        proxy: proxy.clone(),
        images: images.clone(),
        runtime: agent.runtime.clone(),
        turn: Mutex::new(()),
    }
}

/// What serves nothing would only be left over. A proxy that serves a stack goes on.
async fn leave(
    options: &ServerOptions,
    worlds: &WorldReader,
    store: &dyn Store,
    proxy: &watch::Receiver<ProxyState>,
) {
    if !worlds.current().stacks.is_empty() {
        return;
    }
    proxy.borrow().end(&options.state_dir);
    // Nor must anything be led to it.
    detour::remove_all(store, &detour::tag(&options.state_dir)).await;
}

/// What is known of the proxy, before there is one.
async fn proxy_state(
    store: &Arc<dyn Store>,
    tasks: &mut JoinSet<()>,
) -> Result<(watch::Sender<ProxyState>, watch::Receiver<ProxyState>), Error> {
    let told = Told::load(store.clone()).await?;
    let state = ProxyState { lacks: told.lacks().to_vec(), ..ProxyState::default() };
    let (sender, proxy) = watch::channel(state);
    tasks.spawn(told.follow(proxy.clone()));
    Ok((sender, proxy))
}

/// What the proxy is told, and the certificates that go with it.
async fn start_link(
    options: &ServerOptions,
    shared: &Context,
    figures: &Figures,
    state: watch::Sender<ProxyState>,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    let credentials = Arc::new(Credentials::default());
    let (worlds, store) = (shared.worlds.clone(), shared.store.clone());
    let events = shared.events.clone();
    let mut files = CertificateFiles::new(worlds, events, credentials.clone(), store).await?;
    // Before the link: a proxy that runs must not lose its certificates to a new server that has not looked yet.
    files.look();
    files.keep().await;
    tasks.spawn(files.run());
    let (shown_sender, shown) = watch::channel(0);
    let issuance = Issuance {
        worlds: shared.worlds.clone(),
        events: shared.events.clone(),
        store: shared.store.clone(),
        shown,
    };
    let issued = issuance.start(tasks).await?;
    credentials.set_issued(issued.borrow().clone());
    tasks.spawn(credentials.clone().follow(issued));
    let link = Link {
        program: options.program.clone(),
        engine: options.proxy_engine.clone(),
        state_dir: options.state_dir.clone(),
        worlds: shared.worlds.clone(),
        board: shared.board.clone(),
        events: shared.events.clone(),
        node: shared.node.clone(),
        zone: options.zone.clone(),
        network: shared.network.clone(),
        runtime: shared.runtime.clone(),
        access_log: options.access_log.clone(),
        ask: figures.ask.clone(),
        credentials,
        state,
        shown: shown_sender,
    };
    tasks.spawn(link.run());
    Ok(())
}

/// What containers need that were taken over.
fn start_adoption(
    options: &ServerOptions,
    shared: &Context,
    proxy: &watch::Receiver<ProxyState>,
    tasks: &mut JoinSet<()>,
) {
    let (led, led_around) = watch::channel(BTreeSet::new());
    let keeper = Keeper {
        tag: detour::tag(&options.state_dir),
        worlds: shared.worlds.clone(),
        board: shared.board.clone(),
        runtime: shared.runtime.clone(),
        proxy: proxy.clone(),
        store: shared.store.clone(),
        events: shared.events.clone(),
        network: shared.network.clone(),
        led,
    };
    let direct = Direct {
        worlds: shared.worlds.clone(),
        board: shared.board.clone(),
        runtime: shared.runtime.clone(),
        proxy: proxy.clone(),
    };
    let hosts = Hosts {
        worlds: shared.worlds.clone(),
        board: shared.board.clone(),
        runtime: shared.runtime.clone(),
        network: shared.network.clone(),
        proxy: proxy.clone(),
        led: led_around,
    };
    tasks.spawn(keeper.run());
    tasks.spawn(direct.run());
    tasks.spawn(hosts.run());
}

fn controller(shared: &Context) -> Controller {
    Controller {
        node: shared.node.clone(),
        store: shared.store.clone(),
        worlds: shared.worlds.clone(),
        board: shared.board.clone(),
        events: shared.events.clone(),
        runtime: shared.runtime.clone(),
    }
}

/// Serves the API until the server is told to end.
async fn wait(listener: UnixListener, api: Arc<Api>, shutdown: &Notify) {
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals can't be received");
        return;
    };
    let serving = axum::serve(listener, router(api));
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(%error, "the API ended");
        },
        () = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = shutdown.notified() => {}
            }
            tokio::time::sleep(CLOSE_PAUSE).await;
        } => {}
    }
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::File { action: "listen on", path: path.to_owned(), source };
    // The store's lock is held: a socket that is there belongs to a server that died.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let hidden = path.with_extension("sock.new");
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    // Rights first, name second: at no moment can anybody else connect.
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

async fn start_dns(
    network: &Arc<Network>,
    worlds: &Arc<WorldReader>,
    board: &Arc<Board>,
    events: &Arc<EventLog>,
    tasks: &mut JoinSet<()>,
) {
    let address = network.dns_address();
    let server = match keel_discovery::DnsServer::bind(address).await {
        Ok(server) => server,
        Err(error) => {
            let message = format!("no DNS server at {address}: {error}");
            tracing::warn!("{message}");
            return events.add(EventKind::Platform, None, None, None, message);
        }
    };
    network.dns_is_up();
    let first = names::table(&worlds.current(), &board.view(), network);
    let (sender, table) = watch::channel(Arc::new(first));
    let upstream = system_resolvers(address.ip());
    tasks.spawn(server.serve(table, upstream, std::future::pending()));
    let (network, worlds, board) = (network.clone(), worlds.clone(), board.clone());
    tasks.spawn(async move {
        let (mut stored, mut seen) = (worlds.subscribe(), board.subscribe());
        loop {
            tokio::select! {
                changed = stored.changed() => if changed.is_err() { return },
                changed = seen.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(NAMES_PAUSE).await;
            sender.send_replace(Arc::new(names::table(&worlds.current(), &board.view(), &network)));
        }
    });
}

/// Processes of this machine, and containers of the engine that there may be, with its images.
fn runtime(options: &ServerOptions) -> Result<(Arc<dyn Runtime>, Images), keel_runtime::Error> {
    let engine = Engine::of_this_process();
    let images = Images::new(engine.clone());
    let processes = ProcessOptions::new(&options.state_dir, &options.program);
    let processes = Arc::new(ProcessRuntime::new(processes)?);
    let containers = Arc::new(ContainerRuntime::new(&options.state_dir, engine)?);
    Ok((Arc::new(MixedRuntime::new(processes, containers)), images))
}

fn node_name(asked: Option<NodeName>) -> NodeName {
    asked
        .or_else(|| {
            let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            NodeName::new(name.trim()).ok()
        })
        .unwrap_or_else(|| NodeName::new("node").expect("the fallback is a valid name"))
}

fn limitations(runtime: &dyn Runtime) -> BTreeSet<String> {
    let can = runtime.capabilities();
    [can.limits, can.network, can.mounts, can.names, can.users]
        .into_iter()
        .filter(|capability| !capability.available)
        .map(|capability| capability.reason)
        .collect()
}

fn info(
    options: &ServerOptions,
    node: NodeName,
    network: &Network,
    limitations: Vec<String>,
) -> ServerInfo {
    ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: clock::now(),
        state_dir: options.state_dir.clone(),
        node,
        zone: options.zone.clone(),
        network: network.text().to_owned(),
        dns: network.dns(),
        metrics: None,
        access_log: options.access_log.as_ref().map(|log| log.path.clone()),
        proxy_engine: options.proxy_engine.clone(),
        lacks: Vec::new(),
        limitations,
        proxy: ProxyView::default(),
    }
}
