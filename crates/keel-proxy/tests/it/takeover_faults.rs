//! A proxy takes the place of another while one of the two dies or hangs, the disk is full, or the access log is rotated.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol};
use keel_route::access_log::AccessLog;
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, Snapshot, ToProxy};

use crate::access::SmallDisk;
use crate::backend::Backend;
use crate::client::get;
use crate::proxy::{CART, PATIENCE, Process, Proxy, Server, cluster, listener, until};
use crate::takeover::{Load, succeed};

use EndpointState::Ready;

const DIR: &str = "KEEL_TEST_ELDER_DIR";
const FAILS: &str = "KEEL_TEST_ELDER_FAILS";
/// A step of a handover may take this long, and then the other side counts as hanging.
const STEP: Duration = Duration::from_secs(10);
/// As long as nobody hangs, all is done well within a step.
const SOON: Duration = Duration::from_secs(5);

/// How an elder fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    /// It dies when it is asked for its place.
    Asked,
    /// It gives its place, and dies when it is told to retire.
    Told,
    /// It gives its place and hangs then.
    Hangs,
}

/// The other end of [`Elder::start`].
pub fn fail_as_told() {
    let dir = std::env::var(DIR).expect("set by the test that starts this");
    let dir = Path::new(&dir);
    let fails = std::env::var(FAILS).unwrap();
    let lock = File::create(dir.join("control.lock")).unwrap();
    lock.lock().unwrap();
    let socket = UnixListener::bind(dir.join("control")).unwrap();
    let (mut stream, _) = socket.accept().unwrap();
    let mut decoder = Decoder::default();
    let mut hear = |stream: &mut UnixStream| loop {
        if let Some(message) = decoder.decode::<ToProxy>().unwrap() {
            return message;
        }
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes).unwrap();
        assert_ne!(n, 0, "the successor is gone");
        decoder.push(&bytes[..n]);
    };
    let hello = FromProxy::Hello { pid: std::process::id(), version: "test".into() };
    stream.write_all(&encode(&hello).unwrap()).unwrap();
    assert!(matches!(hear(&mut stream), ToProxy::TakeOver));
    if fails == "Asked" {
        return;
    }
    let snapshot = serde_json::from_slice(&fs::read(dir.join("snapshot.json")).unwrap()).unwrap();
    let place = FromProxy::Place { snapshot, sockets: Vec::new() };
    stream.write_all(&encode(&place).unwrap()).unwrap();
    assert!(matches!(hear(&mut stream), ToProxy::Retire));
    if fails == "Hangs" {
        loop {
            std::thread::park();
        }
    }
}

/// A process that has the control socket as a proxy has, and fails.
struct Elder {
    dir: tempfile::TempDir,
    child: Child,
    /// Where its listener would be.
    address: SocketAddr,
}

impl Elder {
    fn start(fails: Fails, backend: &Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        let snapshot = Snapshot {
            listeners: vec![listener(address, Protocol::Auto)],
            clusters: BTreeMap::from([(
                CART.to_owned(),
                cluster(&[(backend.address, Ready)], true),
            )]),
            ..Snapshot::default()
        };
        fs::write(dir.path().join("snapshot.json"), serde_json::to_vec(&snapshot).unwrap())
            .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "elder_process", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(FAILS, format!("{fails:?}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let elder = Self { dir, child, address };
        until("the elder", || elder.dir.path().join("control").exists().then_some(()));
        elder
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        until("the end of the elder", || self.child.try_wait().unwrap())
    }
}

impl Drop for Elder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy in the place of `elder` is told what to do, and does it.
fn obeys(elder: &Elder, backend: &Backend) {
    let mut server = Server::connect(elder.dir.path());
    server.generation = 100;
    server.update(cluster(&[(backend.address, Ready)], true));
    assert_eq!(get(elder.address, "/").body.split(':').next(), Some("b"));
}

#[test]
fn an_elder_that_dies_on_the_way_is_soon_done_without() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    for fails in [Fails::Asked, Fails::Told] {
        let mut elder = Elder::start(fails, &a);
        let _successor = Process::succeed(elder.dir.path());
        assert!(elder.wait().success(), "{fails:?}");
        let dead = Instant::now();
        obeys(&elder, &b);
        assert!(dead.elapsed() < SOON, "{fails:?}: {:?}", dead.elapsed());
    }
}

#[test]
fn an_elder_that_hangs_with_its_place_given_away_is_killed() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let mut elder = Elder::start(Fails::Hangs, &a);
    let _successor = Process::succeed(elder.dir.path());
    until("an answer of the successor", || {
        let stream = std::net::TcpStream::connect(elder.address).ok()?;
        drop(stream);
        (get(elder.address, "/").status == 200).then_some(())
    });
    // Nothing waits for the one that hangs but the server.
    assert!(elder.child.try_wait().unwrap().is_none());
    assert_eq!(elder.wait().signal(), Some(9));
    obeys(&elder, &b);
}

#[test]
fn an_elder_that_is_stopped_keeps_its_place_and_serves_again() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    proxy.process.signal("-STOP");
    let asked = Instant::now();
    let mut successor = Process::succeed(proxy.dir.path());
    assert!(!successor.wait().success());
    assert!((STEP..PATIENCE).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    proxy.process.signal("-CONT");
    assert_eq!(get(address, "/").body, "a:0");
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.generation = 100;
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    succeed(&mut proxy);
    assert_eq!(get(address, "/").body, "a:0");
}

/// A successor that was given the place and the sockets, and has read `most` bytes of them.
fn successor_that_read(proxy: &Proxy, most: u64) -> UnixStream {
    let mut stream = UnixStream::connect(proxy.dir.path().join("control")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&encode(&ToProxy::TakeOver).unwrap()).unwrap();
    let mut read = Vec::new();
    std::io::Read::by_ref(&mut stream).take(most).read_to_end(&mut read).unwrap();
    assert_eq!(read.len() as u64, most);
    stream
}

#[test]
fn successors_that_die_at_any_byte_cost_nothing() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let load = Load::start(address);
    for (round, bytes) in [0, 1, 10, 60, 100, 200, 300].into_iter().enumerate() {
        drop(successor_that_read(&proxy, bytes));
        proxy.server = Server::connect(proxy.dir.path());
        proxy.server.generation = 100 * (round as u64 + 1);
        proxy.server.update(cluster(&[(backend.address, Ready)], true));
    }
    succeed(&mut proxy);
    load.end();
}

#[test]
fn a_successor_that_hangs_is_given_up() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let load = Load::start(address);
    let asked = Instant::now();
    let mut stream = successor_that_read(&proxy, 200);
    // It is not heard until then.
    proxy.server = Server::connect(proxy.dir.path());
    assert!((STEP / 2..PATIENCE).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    proxy.server.generation = 100;
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    // Too late.
    let _ = stream.write_all(&encode(&ToProxy::Retire).unwrap());
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    succeed(&mut proxy);
    load.end();
}

#[test]
fn a_full_disk_does_not_stop_a_successor() {
    let backend = Backend::named("a");
    let mut disk = None;
    let mut proxy = Proxy::start_as(|dir| {
        disk = SmallDisk::new(dir.to_owned());
        Process::start(dir, Duration::from_secs(20))
    });
    // Declared after the proxy, so that it is taken away before the directory.
    let Some(disk) = disk else { return };
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let kept = disk.0.join("snapshot.json");
    until("the state in its file", || kept.exists().then_some(()));
    let load = Load::start(address);
    let ballast = disk.fill();
    for round in 1..4 {
        succeed(&mut proxy);
        proxy.server.generation = 100 * round;
        proxy.server.update(cluster(&[(backend.address, Ready)], true));
    }
    load.end();
    ballast.remove();
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    until("the newest state in the file", || {
        let snapshot: Snapshot = serde_json::from_slice(&fs::read(&kept).ok()?).ok()?;
        (snapshot.generation.0 == proxy.server.generation).then_some(())
    });
}

#[test]
fn no_line_of_the_access_log_is_lost_when_it_is_rotated_meanwhile() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.address();
    let path = proxy.dir.path().join("access.log");
    let log = AccessLog { path, max_size: 8 * 1024, keep: 1000, ..AccessLog::default() };
    let snapshot = Snapshot {
        listeners: vec![listener(address, Protocol::Auto)],
        clusters: BTreeMap::from([(CART.to_owned(), cluster(&[(backend.address, Ready)], true))]),
        access_log: Some(log),
        ..Snapshot::default()
    };
    assert_eq!(proxy.server.apply(snapshot), []);
    let load = Load::start(address);
    for _ in 0..3 {
        succeed(&mut proxy);
    }
    let requests = load.end();
    proxy.process.signal("-TERM");
    assert!(proxy.process.wait().success());
    let (mut lines, mut files) = (0, 0);
    for entry in fs::read_dir(proxy.dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("access.log") {
            let text = fs::read_to_string(entry.path()).unwrap();
            assert!(
                text.lines().all(|line| line.starts_with('{') && line.ends_with('}')),
                "{text}"
            );
            (lines, files) = (lines + text.lines().count(), files + 1);
        }
    }
    assert!(files > 3, "it was not rotated");
    assert_eq!(lines, requests);
}

#[test]
fn a_successor_keeps_what_the_elder_had_still_to_write() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let kept = proxy.dir.path().join("snapshot.json");
    proxy.serve(Protocol::Auto, &[backend.address]);
    until("the state in its file", || kept.exists().then_some(()));
    // Taken over before the change is written.
    proxy.server.update(cluster(&[(backend.address, Ready)], false));
    let generation = proxy.server.generation;
    fs::remove_file(&kept).unwrap();
    succeed(&mut proxy);
    until("the state of the successor", || {
        let snapshot: Snapshot = serde_json::from_slice(&fs::read(&kept).ok()?).ok()?;
        (snapshot.generation.0 == generation).then_some(())
    });
}
