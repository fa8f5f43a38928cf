//! A proxy process under test, and the server's side of its control socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use keel_model::{Endpoint, EndpointState, Generation, InstanceId, Protocol};
use keel_proxy::ProxyOptions;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{
    Cluster, ClusterStats, FromProxy, Listener, ListenerFailure, Snapshot, Stats, ToProxy,
};

/// Everything that a test waits for comes within this time, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The cluster of tests that need only one.
pub const CART: &str = "shop/cart:80";

const DIR: &str = "KEEL_TEST_PROXY_DIR";
const TAKE_OVER: &str = "KEEL_TEST_PROXY_TAKE_OVER";
const HOLD_MS: &str = "KEEL_TEST_PROXY_HOLD_MS";
const LOGS: &str = "KEEL_TEST_PROXY_LOGS";

/// The other end of [`Proxy::start`].
pub fn run_as_told() {
    let dir = PathBuf::from(std::env::var(DIR).expect("set by the test that starts this"));
    let hold_ms = std::env::var(HOLD_MS).unwrap().parse().unwrap();
    if std::env::var_os(LOGS).is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).log_internal_errors(false).init();
    }
    let result = keel_proxy::run(ProxyOptions {
        control_socket: dir.join("control"),
        snapshot_file: dir.join("snapshot.json"),
        workers: 2,
        hold_timeout: Duration::from_millis(hold_ms),
        version: "test".into(),
        access_log: None,
        take_over: std::env::var_os(TAKE_OVER).is_some(),
        sockets_from_stdin: false,
    });
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// A process of its own, killed when dropped.
pub struct Process {
    pub child: Child,
}

impl Process {
    pub fn start(dir: &Path, hold: Duration) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), dir, hold, Stdio::piped())
    }

    /// As [`Process::start`], with so many file descriptors at most.
    pub fn start_with_descriptors(dir: &Path, descriptors: u32) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}:{descriptors}"));
        command.arg(std::env::current_exe().unwrap());
        Self::spawn(command, dir, Duration::from_secs(20), Stdio::piped())
    }

    /// As [`Process::start`], with its log in a file.
    pub fn start_logging(dir: &Path, log: std::fs::File) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(LOGS, "1");
        Self::spawn(command, dir, Duration::from_secs(20), log.into())
    }

    fn spawn(mut command: Command, dir: &Path, hold: Duration, stderr: Stdio) -> Self {
        let child = command
            .args(["--exact", "proxy_process", "--ignored", "--nocapture"])
            .env(DIR, dir)
            .env(HOLD_MS, hold.as_millis().to_string())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child }
    }

    /// As [`Process::start`], in the place of the one that runs.
    pub fn succeed(dir: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(TAKE_OVER, "1");
        Self::spawn(command, dir, Duration::from_secs(20), Stdio::piped())
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Memory that it has in use, in bytes.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the proxy ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy and the connection of its server.
pub struct Proxy {
    pub dir: tempfile::TempDir,
    pub process: Process,
    pub server: Server,
    /// An address of the loopback network that no other test of this process uses.
    pub ip: Ipv4Addr,
}

impl Proxy {
    pub fn start() -> Self {
        Self::start_holding(Duration::from_secs(20))
    }

    pub fn start_holding(hold: Duration) -> Self {
        Self::start_as(|dir| Process::start(dir, hold))
    }

    /// With a process that is started in another way.
    pub fn start_as(start: impl FnOnce(&Path) -> Process) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let dir = tempfile::tempdir().unwrap();
        let process = start(dir.path());
        let server = Server::connect(dir.path());
        let pid = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, pid[2], pid[3], NEXT.fetch_add(1, Ordering::Relaxed));
        Self { dir, process, server, ip }
    }

    /// Kills the process and starts another one on the same files.
    pub fn restart(&mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
        self.process = Process::start(self.dir.path(), Duration::from_secs(20));
    }

    /// An address to listen on.
    pub fn address(&self) -> SocketAddr {
        TcpListener::bind((self.ip, 0)).unwrap().local_addr().unwrap()
    }

    /// One listener that leads to [`CART`]; its address.
    pub fn listen(
        &mut self,
        protocol: Protocol,
        endpoints: &[(SocketAddr, EndpointState)],
    ) -> SocketAddr {
        let bind = self.address();
        let listeners = vec![listener(bind, protocol)];
        let clusters = BTreeMap::from([(CART.to_owned(), cluster(endpoints, true))]);
        assert_eq!(self.server.replace(listeners, clusters), []);
        bind
    }

    /// As [`Proxy::listen`], all endpoints ready.
    pub fn serve(&mut self, protocol: Protocol, endpoints: &[SocketAddr]) -> SocketAddr {
        let ready: Vec<_> = endpoints.iter().map(|e| (*e, EndpointState::Ready)).collect();
        self.listen(protocol, &ready)
    }

    /// Waits until nothing is in flight any more.
    pub fn all_ended(&mut self) {
        until("the end of all requests", || (self.stats().in_flight == 0).then_some(()));
    }

    pub fn stats(&mut self) -> ClusterStats {
        self.all_stats().clusters.remove(CART).expect("the cluster is known")
    }

    pub fn all_stats(&mut self) -> Stats {
        self.server.send(&ToProxy::Stats);
        self.server.until("statistics", |message| match message {
            FromProxy::Stats(stats) => Some(stats.clone()),
            _ => None,
        })
    }
}

pub fn listener(bind: SocketAddr, protocol: Protocol) -> Listener {
    Listener { bind, protocol, cluster: CART.into(), ..Listener::default() }
}

/// A cluster of endpoints; the instance is named after its address.
pub fn cluster(endpoints: &[(SocketAddr, EndpointState)], expected: bool) -> Cluster {
    let endpoints = endpoints
        .iter()
        .map(|(address, state)| Endpoint {
            instance: instance(*address),
            address: *address,
            state: *state,
        })
        .collect();
    Cluster { endpoints, expected, ..Cluster::default() }
}

pub fn instance(address: SocketAddr) -> InstanceId {
    InstanceId::new(format!("shop-cart-{}", address.port())).unwrap()
}

/// The server's end of the control socket.
pub struct Server {
    pub stream: UnixStream,
    decoder: Decoder,
    pub generation: u64,
}

impl Server {
    /// Connects and reads the greeting, as often as it takes: the socket may have to appear, or be given up by a
    /// proxy that retires.
    pub fn connect(dir: &Path) -> Self {
        let path = dir.join("control");
        until("the control socket", || {
            let stream = UnixStream::connect(&path).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut server = Self { stream, decoder: Decoder::default(), generation: 0 };
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = server.stream.read(&mut bytes) {
                server.decoder.push(&bytes[..n]);
                if let Some(greeting) = server.decoder.decode().unwrap() {
                    assert!(
                        matches!(greeting, FromProxy::Hello { version, .. } if version == "test")
                    );
                    return Some(server);
                }
            }
            None
        })
    }

    pub fn send(&mut self, message: &ToProxy) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    /// The next message; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<FromProxy> {
        loop {
            if let Some(message) = self.decoder.decode().unwrap() {
                return Some(message);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).expect("a message in time") {
                0 => return None,
                n => self.decoder.push(&bytes[..n]),
            }
        }
    }

    /// Whether the other side ends the connection.
    pub fn receive_until_end(&mut self) -> bool {
        while self.receive().is_some() {}
        true
    }

    /// The next message for which `find` finds something.
    pub fn until<T>(&mut self, what: &str, mut find: impl FnMut(&FromProxy) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let message = self.receive().expect("the connection is open");
            if let Some(found) = find(&message) {
                return found;
            }
        }
        panic!("no {what} in time");
    }

    fn acknowledged(&mut self) -> Vec<ListenerFailure> {
        self.acknowledged_at(Generation(self.generation))
    }

    /// Waits for the acknowledgement of one change.
    pub fn acknowledged_at(&mut self, wanted: Generation) -> Vec<ListenerFailure> {
        self.until("acknowledgement", |message| match message {
            FromProxy::Ack { generation, failed, .. } if *generation == wanted => {
                Some(failed.clone())
            }
            _ => None,
        })
    }

    /// Sends a whole state and waits for its acknowledgement.
    pub fn replace(
        &mut self,
        listeners: Vec<Listener>,
        clusters: BTreeMap<String, Cluster>,
    ) -> Vec<ListenerFailure> {
        self.apply(Snapshot { listeners, clusters, ..Snapshot::default() })
    }

    /// As [`Server::replace`], with everything that a state may have; its generation is the next.
    pub fn apply(&mut self, snapshot: Snapshot) -> Vec<ListenerFailure> {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToProxy::Snapshot(Snapshot { generation, ..snapshot }));
        self.acknowledged()
    }

    /// Sends a new state of [`CART`] and waits for its acknowledgement.
    pub fn update(&mut self, cluster: Cluster) {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToProxy::Cluster { generation, id: CART.into(), cluster });
        assert_eq!(self.acknowledged(), []);
    }

    /// Sends what callers are known by and waits for its acknowledgement.
    pub fn callers(&mut self, caller_cgroups: BTreeMap<u64, String>) {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToProxy::Callers { generation, callers: BTreeMap::new(), caller_cgroups });
        assert_eq!(self.acknowledged(), []);
    }

    /// Waits until `count` requests are reported in flight at a draining endpoint.
    pub fn in_flight(&mut self, address: SocketAddr, wanted: u64) {
        let of = instance(address);
        self.until("number in flight", |message| match message {
            FromProxy::InFlight { instance, count, .. } if *instance == of && *count == wanted => {
                Some(())
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
