//! A driver process under test, and the server's side of its control socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use keel_engine::DriverOptions;
use keel_model::{Endpoint, EndpointState, Generation, InstanceId, Protocol};
use keel_render::Engine;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{
    Cluster, ClusterStats, FromProxy, Lacking, Listener, ListenerFailure, Snapshot, ToProxy,
};

/// Everything that a test waits for comes within this time, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The cluster of tests that need only one.
pub const CART: &str = "shop/cart:80";

const DIR: &str = "KEEL_TEST_ENGINE_DIR";
const ENGINE: &str = "KEEL_TEST_ENGINE";
const TAKE_OVER: &str = "KEEL_TEST_ENGINE_TAKE_OVER";

/// The engines that are installed. Says which are not.
pub fn installed() -> Vec<Engine> {
    let engines = [Engine::Haproxy, Engine::Nginx].into_iter();
    engines.filter(|engine| has(*engine)).collect()
}

pub fn has(engine: Engine) -> bool {
    let there = Command::new(engine.command()).arg("-v").output().is_ok();
    if !there {
        eprintln!("skipped: no {}", engine.command());
    }
    there
}

/// The other end of [`Driver::start`].
pub fn run_as_told() {
    let dir = PathBuf::from(std::env::var(DIR).expect("set by the test that starts this"));
    let engine = match std::env::var(ENGINE).unwrap().as_str() {
        "haproxy" => Engine::Haproxy,
        _ => Engine::Nginx,
    };
    let log = fs::File::options().create(true).append(true).open(dir.join("driver.log")).unwrap();
    tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(log)).with_ansi(false).init();
    let result = keel_engine::run(&DriverOptions {
        engine,
        control_socket: dir.join("control"),
        snapshot_file: dir.join("snapshot.json"),
        directory: dir.join("e"),
        workers: Some(2),
        version: "test".into(),
        take_over: std::env::var_os(TAKE_OVER).is_some(),
    });
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// A driver, the connection of its server, and an address of its own.
pub struct Driver {
    pub engine: Engine,
    pub dir: tempfile::TempDir,
    pub child: Child,
    pub server: Server,
    pub ip: Ipv4Addr,
}

fn spawn(engine: Engine, dir: &Path, take_over: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "driver_process", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(ENGINE, engine.command())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if take_over {
        command.env(TAKE_OVER, "1");
    }
    command.spawn().unwrap()
}

impl Driver {
    pub fn start(engine: Engine) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let dir = tempfile::tempdir().unwrap();
        // The engine's workers are another user, and pass through here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let child = spawn(engine, dir.path(), false);
        let server = Server::connect(dir.path(), engine);
        let pid = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 128 | pid[2], pid[3], NEXT.fetch_add(1, Ordering::SeqCst));
        Self { engine, dir, child, server, ip }
    }

    /// Another process on the same files.
    pub fn second(driver: &Self) -> Child {
        spawn(driver.engine, driver.dir.path(), false)
    }

    /// The same with another process in its place.
    pub fn succeed(&mut self, take_over: bool) {
        let mut before =
            std::mem::replace(&mut self.child, spawn(self.engine, self.dir.path(), take_over));
        until("the driver before has ended", || before.try_wait().unwrap());
        self.reconnect();
    }

    /// The server connects anew.
    pub fn reconnect(&mut self) {
        let generation = self.server.generation;
        self.server = Server::connect(self.dir.path(), self.engine);
        self.server.generation = generation;
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The process of the engine.
    pub fn engine_pid(&self) -> u32 {
        let note = fs::read_to_string(self.dir.path().join("e/engine.pid")).unwrap();
        note.split(' ').next().unwrap().parse().unwrap()
    }

    /// What engine and driver logged.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("e/engine.log"), read("driver.log"))
    }

    pub fn address(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the driver ends", || self.child.try_wait().unwrap())
    }

    /// What people are to be told of the engine.
    pub fn notices(&mut self) -> Vec<String> {
        self.server.send(&ToProxy::Stats);
        self.server.until("notices", |message| match message {
            FromProxy::Stats(stats) => Some(stats.notices.engine.clone()),
            _ => None,
        })
    }

    pub fn stats(&mut self) -> ClusterStats {
        self.server.send(&ToProxy::Stats);
        self.server.until("statistics", |message| match message {
            FromProxy::Stats(stats) => Some(stats.clusters.get(CART).cloned().unwrap_or_default()),
            _ => None,
        })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let note = fs::read_to_string(self.dir.path().join("e/engine.pid")).unwrap_or_default();
        if let Some((pid, _)) = note.split_once(' ') {
            signal(pid.parse().unwrap(), "-TERM");
        }
    }
}

pub fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

pub fn listener(bind: SocketAddr) -> Listener {
    Listener { bind, protocol: Protocol::Http, cluster: CART.into(), ..Listener::default() }
}

pub fn instance(address: SocketAddr) -> InstanceId {
    InstanceId::new(format!("shop-cart-{}", address.port())).unwrap()
}

/// A cluster of endpoints; the instance is named after its address.
pub fn cluster(endpoints: &[(SocketAddr, EndpointState)]) -> Cluster {
    let endpoint = |(address, state): &(SocketAddr, EndpointState)| Endpoint {
        instance: instance(*address),
        address: *address,
        state: *state,
    };
    Cluster {
        endpoints: endpoints.iter().map(endpoint).collect(),
        expected: true,
        protocol: Protocol::Http,
        ..Cluster::default()
    }
}

/// The server's end of the control socket.
pub struct Server {
    pub stream: UnixStream,
    decoder: Decoder,
    pub generation: u64,
    dir: PathBuf,
}

impl Server {
    fn connect(dir: &Path, engine: Engine) -> Self {
        let path = dir.join("control");
        let stream = until("the control socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut server =
            Self { stream, decoder: Decoder::default(), generation: 0, dir: dir.to_owned() };
        match server.receive() {
            FromProxy::Hello { version, .. } => {
                assert_eq!(version, format!("test with {}", engine.command()));
            }
            other => panic!("{other:?}"),
        }
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("driver.log")).unwrap_or_default()
    }

    pub fn send(&mut self, message: &ToProxy) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    fn receive(&mut self) -> FromProxy {
        loop {
            if let Some(message) = self.decoder.decode().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).unwrap_or_else(|error| {
                panic!("no message in time: {error}\n{}", self.log());
            });
            assert!(read > 0, "the connection is open");
            self.decoder.push(&bytes[..read]);
        }
    }

    /// The next message for which `find` finds something.
    pub fn until<T>(&mut self, what: &str, mut find: impl FnMut(&FromProxy) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let message = self.receive();
            if let Some(found) = find(&message) {
                return found;
            }
        }
        panic!("no {what} in time");
    }

    pub fn acknowledged(&mut self) -> Vec<ListenerFailure> {
        self.acknowledgement().0
    }

    fn acknowledgement(&mut self) -> (Vec<ListenerFailure>, Option<Vec<Lacking>>) {
        let wanted = Generation(self.generation);
        self.until("acknowledgement", |message| match message {
            FromProxy::Ack { generation, failed, lacks } if *generation >= wanted => {
                Some((failed.clone(), lacks.clone()))
            }
            _ => None,
        })
    }

    fn tell(&mut self, snapshot: Snapshot) {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToProxy::Snapshot(Snapshot { generation, ..snapshot }));
    }

    /// Sends a whole state and waits for its acknowledgement.
    pub fn replace(&mut self, snapshot: Snapshot) -> Vec<ListenerFailure> {
        self.tell(snapshot);
        self.acknowledged()
    }

    /// Sends a whole state; what its acknowledgement says is lacking, if it says so.
    pub fn lacks(&mut self, snapshot: Snapshot) -> Option<Vec<Lacking>> {
        self.tell(snapshot);
        self.acknowledgement().1
    }

    /// Sends a state with these listeners, which all lead to [`CART`].
    pub fn serve(&mut self, binds: &[SocketAddr], cart: Cluster) -> Vec<ListenerFailure> {
        self.replace(Snapshot {
            listeners: binds.iter().map(|bind| listener(*bind)).collect(),
            clusters: BTreeMap::from([(CART.to_owned(), cart)]),
            ..Snapshot::default()
        })
    }

    /// Sends a new state of [`CART`] and waits for its acknowledgement.
    pub fn update(&mut self, cluster: Cluster) {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToProxy::Cluster { generation, id: CART.into(), cluster });
        let failed = self.acknowledged();
        assert_eq!(failed, [], "{}", self.log());
    }

    /// Waits until `wanted` requests are reported in flight at a draining endpoint.
    pub fn in_flight(&mut self, address: SocketAddr, wanted: impl Fn(u64) -> bool) {
        let of = instance(address);
        self.until("number in flight", |message| match message {
            FromProxy::InFlight { instance, count, .. } => {
                (*instance == of && wanted(*count)).then_some(())
            }
            _ => None,
        });
    }
}

/// Waits for `find` to find something.
pub fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
