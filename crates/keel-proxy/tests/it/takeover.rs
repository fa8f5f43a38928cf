//! A new proxy takes the place of a running one: nothing is refused, cut or stopped under a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use keel_link::handover::copies;
use keel_model::{EndpointState, Protocol};

use crate::backend::Backend;
use crate::client::{Client, get};
use crate::proxy::{Process, Proxy, Server, cluster, until};

use EndpointState::{Draining, Ready};

/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(2);
const CLIENTS: usize = 8;

/// Another process takes the place of the proxy's, which ends by itself when the last client has moved.
pub fn succeed(proxy: &mut Proxy) {
    let mut old = std::mem::replace(&mut proxy.process, Process::succeed(proxy.dir.path()));
    assert!(old.wait().success());
    proxy.server = Server::connect(proxy.dir.path());
}

/// Clients that ask all the time.
pub struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<usize>>,
}

impl Load {
    pub fn start(address: std::net::SocketAddr) -> Self {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = || {
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            thread::spawn(move || load(address, &stop, &failed))
        };
        let clients = (0..CLIENTS).map(|_| client()).collect();
        Self { stop, failed, clients }
    }

    /// How many requests there were; none has failed.
    pub fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let requests = self.clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(self.failed.load(Ordering::SeqCst), 0, "of {requests}");
        assert!(requests > 0);
        requests
    }
}

/// Requests on kept connections, which are made anew when the proxy closes them; how many.
fn load(address: std::net::SocketAddr, stop: &AtomicBool, failed: &AtomicUsize) -> usize {
    let (mut client, mut count) = (Client::connect(address), 0);
    while !stop.load(Ordering::SeqCst) {
        let answer = client.get("/");
        count += 1;
        if answer.status != 200 {
            failed.fetch_add(1, Ordering::SeqCst);
            eprintln!("{answer:?}");
        }
        if count % 7 == 0 || answer.head.contains("Connection: close") {
            client = Client::connect(address);
        }
        thread::sleep(PACE);
    }
    count
}

#[test]
fn no_request_is_lost_when_a_successor_takes_over_again_and_again() {
    let backends = [Backend::named("a"), Backend::named("b")];
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backends[0].address, backends[1].address]);
    let load = Load::start(address);
    for round in 1..5 {
        succeed(&mut proxy);
        proxy.server.generation = 100 * round;
        let endpoints = [(backends[0].address, Ready), (backends[1].address, Ready)];
        proxy.server.update(cluster(&endpoints, true));
    }
    let requests = load.end();
    assert!(requests > 100, "{requests}");
}

#[test]
fn what_is_in_flight_at_the_old_proxy_is_reported_by_the_new_one() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::new(move |mut connection| {
        while connection.request().is_some() {
            wait.lock().unwrap().recv().unwrap();
            connection.answer("at last");
        }
    });
    let other = Backend::named("other");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let waiting = thread::spawn(move || get(address, "/"));
    until("it is in flight", || (proxy.stats().in_flight == 1).then_some(()));
    let mut old = std::mem::replace(&mut proxy.process, Process::succeed(proxy.dir.path()));
    assert!(proxy.server.receive_until_end(), "the old proxy lets go of its server");
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.generation = 100;
    let endpoints = [(backend.address, Draining), (other.address, Ready)];
    proxy.server.update(cluster(&endpoints, true));
    assert_eq!(get(address, "/").body, "other:0");
    proxy.server.in_flight(backend.address, 1);
    go.send(()).unwrap();
    proxy.server.in_flight(backend.address, 0);
    assert_eq!(waiting.join().unwrap().body, "at last");
    assert!(old.wait().success());
}

#[test]
fn a_successor_that_dies_on_the_way_changes_nothing() {
    use std::io::{Read, Write};
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let mut stream =
        std::os::unix::net::UnixStream::connect(proxy.dir.path().join("control")).unwrap();
    let take_over = keel_route::codec::encode(&keel_route::snapshot::ToProxy::TakeOver).unwrap();
    stream.write_all(&take_over).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    drop(stream);
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.generation = 100;
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    assert_eq!(get(address, "/").body, "a:0");
}

#[test]
fn without_a_proxy_there_is_nothing_to_take_over() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    proxy.process.child.kill().unwrap();
    proxy.process.child.wait().unwrap();
    proxy.process = Process::succeed(proxy.dir.path());
    proxy.server = Server::connect(proxy.dir.path());
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    assert_eq!(get(address, "/").body, "a:0");
}

#[test]
fn copies_of_the_sockets_go_to_who_asks_and_outlive_the_proxy() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let control = proxy.dir.path().join("control");
    let (pid, all) = copies(&control, usize::MAX).unwrap().unwrap();
    assert_eq!(pid, proxy.process.child.id());
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [address]);
    let workers = all[&address].len();
    assert!(workers > 1, "one for each worker");
    let (_, few) = copies(&control, workers - 1).unwrap().unwrap();
    assert_eq!(few[&address].len(), 1, "one of each address if there is no room for all");
    let (_, none) = copies(&control, 0).unwrap().unwrap();
    assert!(none.is_empty());
    // The server has not lost its place by it.
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    assert_eq!(get(address, "/").body, "a:0");
    proxy.process.child.kill().unwrap();
    proxy.process.child.wait().unwrap();
    std::net::TcpStream::connect(address).unwrap();
    drop((all, few));
    std::net::TcpStream::connect(address).unwrap_err();
    assert!(copies(&control, 1).unwrap().is_none());
}
