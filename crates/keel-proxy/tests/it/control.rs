//! The proxy and its server: state, acknowledgements, restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use keel_model::{Endpoint, EndpointState, Generation, Protocol};
use keel_route::codec::encode;
use keel_route::snapshot::{Cluster, FromProxy, Listener, Snapshot, ToProxy};

use crate::backend::Backend;
use crate::client::{Client, get};
use crate::proxy::{CART, Process, Proxy, Server, cluster, instance, listener, until};

use EndpointState::{Draining, Ready};

fn clusters(
    endpoints: &[(SocketAddr, EndpointState)],
) -> BTreeMap<String, keel_route::snapshot::Cluster> {
    BTreeMap::from([(CART.to_owned(), cluster(endpoints, true))])
}

/// Answers when told to.
fn patient() -> (Backend, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::new(move |mut connection| {
        while connection.request().is_some() {
            wait.lock().unwrap().recv().unwrap();
            connection.answer("at last");
        }
    });
    (backend, go)
}

#[test]
fn nothing_new_goes_to_a_draining_endpoint_and_what_is_there_is_reported() {
    let ((old, go), new) = (patient(), Backend::named("new"));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[old.address]);
    let waiting: Vec<_> = (0..3).map(|_| std::thread::spawn(move || get(address, "/"))).collect();
    until("all are in flight", || (proxy.stats().in_flight == 3).then_some(()));
    proxy.server.update(cluster(&[(old.address, Draining), (new.address, Ready)], true));
    proxy.server.in_flight(old.address, 3);
    for _ in 0..20 {
        assert_eq!(get(address, "/").body, "new:0");
    }
    for left in (0..3).rev() {
        go.send(()).unwrap();
        proxy.server.in_flight(old.address, left);
    }
    for answer in waiting {
        assert_eq!(answer.join().unwrap().body, "at last");
    }
}

#[test]
fn a_removed_endpoint_ends_what_it_has() {
    let ((old, go), new) = (patient(), Backend::named("new"));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[old.address]);
    let waiting = std::thread::spawn(move || get(address, "/"));
    until("it is in flight", || (proxy.stats().in_flight == 1).then_some(()));
    proxy.server.update(cluster(&[(new.address, Ready)], true));
    assert_eq!(get(address, "/").body, "new:0");
    go.send(()).unwrap();
    assert_eq!(waiting.join().unwrap().body, "at last");
}

#[test]
fn idle_connections_to_a_draining_endpoint_are_closed() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    let backend = Backend::new(move |mut connection| {
        while connection.request().is_some() {
            connection.answer("ok");
        }
        seen.store(true, Ordering::SeqCst);
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    get(address, "/");
    proxy.server.update(cluster(&[(backend.address, Draining)], true));
    until("the connection is closed", || closed.load(Ordering::SeqCst).then_some(()));
    proxy.server.in_flight(backend.address, 0);
}

#[test]
fn listeners_come_and_go_without_touching_the_others() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let (one, two) = (proxy.address(), proxy.address());
    let both = vec![listener(one, Protocol::Auto), listener(two, Protocol::Auto)];
    let state = clusters(&[(backend.address, Ready)]);
    assert_eq!(proxy.server.replace(both.clone(), state.clone()), []);
    let mut client = Client::connect(one);
    assert_eq!(client.get("/").status, 200);

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let load = std::thread::spawn(move || {
        let mut count = 0;
        while !stopped.load(Ordering::SeqCst) {
            assert_eq!(get(one, "/").status, 200);
            count += 1;
        }
        count
    });
    for _ in 0..20 {
        assert_eq!(proxy.server.replace(vec![both[0].clone()], state.clone()), []);
        assert!(TcpStream::connect(two).is_err());
        assert_eq!(proxy.server.replace(both.clone(), state.clone()), []);
        assert_eq!(get(two, "/").status, 200);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(load.join().unwrap() > 0);
    assert_eq!(client.get("/").status, 200, "its connection was left alone");
    assert_eq!(proxy.stats().failed, 0);
}

#[test]
fn a_listener_may_lead_elsewhere() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let mut proxy = Proxy::start();
    let bind = proxy.serve(Protocol::Auto, &[a.address]);
    let mut client = Client::connect(bind);
    assert_eq!(client.get("/").body, "a:0");
    let other = Listener { cluster: "shop/other:80".into(), ..listener(bind, Protocol::Auto) };
    let mut clusters = clusters(&[(a.address, Ready)]);
    clusters.insert("shop/other:80".into(), cluster(&[(b.address, Ready)], true));
    assert_eq!(proxy.server.replace(vec![other], clusters), []);
    assert_eq!(client.get("/").body, "b:0");
}

#[test]
fn a_listener_that_cannot_be_opened_is_reported_and_tried_again() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let taken = TcpListener::bind((proxy.ip, 0)).unwrap();
    let bind = taken.local_addr().unwrap();
    let state = clusters(&[(backend.address, Ready)]);
    let listeners = vec![listener(bind, Protocol::Auto)];
    let failed = proxy.server.replace(listeners.clone(), state.clone());
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (failed[0].bind, failed[0].reason.as_str()),
        (bind, &*format!("{bind} is in use by another process"))
    );
    drop(taken);
    assert_eq!(proxy.server.replace(listeners, state), []);
    assert_eq!(get(bind, "/").body, "a:0");

    // Another proxy of the same user shares nothing silently.
    let mut other = Proxy::start();
    let failed = other.server.replace(vec![listener(bind, Protocol::Auto)], BTreeMap::new());
    assert!(failed[0].reason.ends_with("is in use by another process"), "{}", failed[0].reason);
}

#[test]
fn a_wildcard_and_an_address_share_a_port() {
    let (public, internal) = (Backend::named("public"), Backend::named("internal"));
    let mut proxy = Proxy::start();
    let vip = proxy.address();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, vip.port()));
    let published = Listener {
        published: true,
        cluster: "shop/web:80".into(),
        ..listener(any, Protocol::Auto)
    };
    let mut clusters = clusters(&[(internal.address, Ready)]);
    clusters.insert("shop/web:80".into(), cluster(&[(public.address, Ready)], true));
    let outside = SocketAddr::from((Ipv4Addr::LOCALHOST, vip.port()));
    // In both orders.
    let mut listeners = vec![published, listener(vip, Protocol::Auto)];
    for _ in 0..2 {
        assert_eq!(proxy.server.replace(listeners.clone(), clusters.clone()), []);
        for _ in 0..20 {
            assert_eq!(get(vip, "/").body, "internal:0");
            assert_eq!(get(outside, "/").body, "public:0");
        }
        assert_eq!(proxy.server.replace(Vec::new(), clusters.clone()), []);
        listeners.reverse();
    }
}

#[test]
fn both_families_are_listened_on() {
    let backend = Backend::named("a");
    let Ok(free) = TcpListener::bind("[::1]:0") else { return };
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut proxy = Proxy::start();
    let listeners = ["[::]", "0.0.0.0"].map(|ip| Listener {
        published: true,
        ..listener(format!("{ip}:{port}").parse().unwrap(), Protocol::Auto)
    });
    let failed = proxy.server.replace(listeners.to_vec(), clusters(&[(backend.address, Ready)]));
    assert_eq!(failed, []);
    for ip in ["[::1]", "127.0.0.1"] {
        assert_eq!(get(format!("{ip}:{port}").parse().unwrap(), "/").body, "a:0");
    }
}

#[test]
fn the_last_state_stays_in_force_without_the_server_and_after_a_restart() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let bind = proxy.serve(Protocol::Auto, &[backend.address]);
    proxy.server.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(get(bind, "/").body, "a:0");
    let file = proxy.dir.path().join("snapshot.json");
    until("the state is in its file", || file.exists().then_some(()));
    proxy.restart();
    until("the restarted proxy serves", || TcpStream::connect(bind).ok());
    assert_eq!(get(bind, "/").body, "a:0");
    // A server with a memory of its own has the last word.
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.update_generation_from_scratch();
    let other = proxy.serve(Protocol::Auto, &[backend.address]);
    assert_eq!(get(other, "/").body, "a:0");
    assert!(other == bind || TcpStream::connect(bind).is_err());
}

impl Server {
    fn update_generation_from_scratch(&mut self) {
        self.generation = 0;
    }
}

#[test]
fn a_full_disk_costs_no_request() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    // A directory in the file's place: no write can succeed.
    std::fs::create_dir(proxy.dir.path().join("snapshot.json")).unwrap();
    for _ in 0..3 {
        let bind = proxy.serve(Protocol::Auto, &[backend.address]);
        assert_eq!(get(bind, "/").body, "a:0");
        std::thread::sleep(Duration::from_millis(250));
    }
}

#[test]
fn the_newest_connection_of_the_server_wins() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    proxy.serve(Protocol::Auto, &[backend.address]);
    let mut newer = Server::connect(proxy.dir.path());
    newer.generation = 5;
    newer.update(cluster(&[], true));
    until("the older connection is closed", || proxy.server.receive().is_none().then_some(()));
    let mode = std::fs::metadata(proxy.dir.path().join("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_outdated_change_is_not_applied() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let mut proxy = Proxy::start();
    let bind = proxy.serve(Protocol::Auto, &[a.address]);
    let outdated = cluster(&[(b.address, Ready)], true);
    let generation = Generation(proxy.server.generation);
    proxy.server.send(&ToProxy::Cluster { generation, id: CART.into(), cluster: outdated });
    proxy.stats();
    assert_eq!(get(bind, "/").body, "a:0");
}

#[test]
fn a_part_changes_the_endpoints_that_it_names() {
    use std::io::Write as _;
    let mut backends = ["a", "b", "c"].map(Backend::named);
    backends.sort_by_key(|backend| instance(backend.address));
    let [first, second, third] = backends;
    let mut proxy = Proxy::start();
    let bind = proxy.serve(Protocol::Auto, &[first.address, second.address, third.address]);
    let before = proxy.server.generation;
    let endpoint = |backend: &Backend, state| Endpoint {
        instance: instance(backend.address),
        address: backend.address,
        state,
    };
    let part = |after, set, gone: &[&Backend]| ToProxy::Endpoints {
        generation: Generation(before + after),
        id: CART.to_owned(),
        set,
        gone: gone.iter().map(|backend| instance(backend.address)).collect(),
    };
    let answers = || (0..20).map(|_| get(bind, "/").body).collect::<BTreeSet<_>>().len();
    // Each is understood as if the one before was in force, also when they come together.
    let frames = [
        part(1, vec![endpoint(&first, Draining)], &[]),
        part(2, Vec::new(), &[&second]),
        part(2, Vec::new(), &[&third]),
    ];
    let frames: Vec<_> = frames.iter().map(|frame| encode(frame).unwrap()).collect();
    proxy.server.stream.write_all(&frames.concat()).unwrap();
    assert_eq!(proxy.server.acknowledged_at(Generation(before + 2)), []);
    assert_eq!(answers(), 1, "the last part was outdated");
    proxy.server.in_flight(first.address, 0);
    let back = vec![endpoint(&first, Ready), endpoint(&second, Ready)];
    proxy.server.send(&part(3, back, &[&third]));
    assert_eq!(proxy.server.acknowledged_at(Generation(before + 3)), []);
    assert_eq!(answers(), 2);
    proxy.server.send(&part(4, Vec::new(), &[&first, &second]));
    assert_eq!(proxy.server.acknowledged_at(Generation(before + 4)), []);
    assert_eq!(proxy.stats().endpoints.ready, 0);
}

#[test]
fn a_server_that_talks_nonsense_is_cut_off_and_may_come_back() {
    let mut proxy = Proxy::start();
    for nonsense in [b"\xff\xff\xff\xff".as_slice(), b"\x00\x00\x00\x02{]"] {
        std::io::Write::write_all(&mut proxy.server.stream, nonsense).unwrap();
        assert_eq!(proxy.server.receive(), None);
        proxy.server = Server::connect(proxy.dir.path());
    }
    let snapshot = Snapshot { generation: Generation(9), ..Snapshot::default() };
    proxy.server.send(&ToProxy::Snapshot(snapshot));
    proxy.server.generation = 9;
    proxy.server.update(cluster(&[], true));
}

#[test]
fn a_second_proxy_on_the_same_socket_says_so() {
    let proxy = Proxy::start();
    let mut second = Process::start(proxy.dir.path(), Duration::from_secs(1));
    assert_eq!(second.wait().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(second.child.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(said.contains("a proxy already serves") && said.contains("control"), "{said}");
    // The first one still has its socket.
    Server::connect(proxy.dir.path());
}

#[test]
fn told_to_end_it_ends_what_it_has_and_takes_no_more() {
    let (backend, go) = patient();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let mut idle = Client::connect(address);
    go.send(()).unwrap();
    assert_eq!(idle.get("/").body, "at last");
    let mut busy = Client::connect(address);
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    until("it is in flight", || (proxy.stats().in_flight == 1).then_some(()));
    proxy.process.signal("-TERM");
    until("it takes no more", || TcpStream::connect(address).err());
    // A successor takes over while it ends what it has.
    let _successor = Process::start(proxy.dir.path(), Duration::from_secs(1));
    until("the successor serves", || TcpStream::connect(address).ok());
    Server::connect(proxy.dir.path());
    go.send(()).unwrap();
    let answer = busy.answer();
    assert_eq!(answer.body, "at last");
    assert!(answer.head.contains("Connection: close\r\n"), "{}", answer.head);
    assert!(busy.ended() && idle.ended());
    assert_eq!(proxy.process.wait().code(), Some(0));
}

#[test]
fn numbers_are_kept() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            match request.head.starts_with("GET /500") {
                true => connection.send("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
                false => connection.answer("fine"),
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let mut client = Client::connect(address);
    client.get("/");
    assert_eq!(client.get("/500").status, 500);
    // The client may have its answer a moment before it is counted.
    let stats = until("both have ended", || Some(proxy.stats()).filter(|s| s.in_flight == 0));
    assert_eq!((stats.requests, stats.server_errors, stats.failed), (2, 1, 0));
    assert!(stats.total_us > 0 && stats.held == 0);
}

/// With hundreds of services being released at once there would be hundreds of answers to each change.
#[test]
fn after_a_change_of_one_service_the_others_are_not_reported_again() {
    let (a, b, both) = (Backend::named("a"), Backend::named("b"), Backend::named("both"));
    let mut proxy = Proxy::start();
    proxy.serve(Protocol::Auto, &[a.address]);
    let draining =
        |own: &Backend| cluster(&[(own.address, Draining), (both.address, Draining)], true);
    let clusters = [("a", draining(&a)), ("b", draining(&b))];
    let clusters = clusters.map(|(id, cluster)| (id.to_owned(), cluster));
    proxy.server.apply(Snapshot { clusters: clusters.clone().into(), ..Snapshot::default() });
    let mut all = BTreeSet::from([&a, &b, &both].map(|backend| instance(backend.address)));
    proxy.server.until("all to be reported", |message| match message {
        FromProxy::InFlight { instance, .. } => {
            all.remove(instance);
            all.is_empty().then_some(())
        }
        _ => None,
    });
    let (id, cluster) = clusters.into_iter().next_back().unwrap();
    let cluster = Cluster { expected: false, ..cluster };
    proxy.server.generation += 1;
    let wanted = Generation(proxy.server.generation);
    proxy.server.send(&ToProxy::Cluster { generation: wanted, id, cluster });
    proxy.server.send(&ToProxy::Stats);
    let mut reported = Vec::new();
    proxy.server.until("the answer to the next question", |message| match message {
        FromProxy::InFlight { generation, instance, count } if *generation == wanted => {
            reported.push((instance.clone(), *count));
            None
        }
        FromProxy::Stats(_) => Some(()),
        _ => None,
    });
    reported.sort();
    let mut expected = [b.address, both.address].map(|address| (instance(address), 0));
    expected.sort();
    assert_eq!(reported, expected);
}

#[test]
fn changes_that_come_together_are_brought_into_force_together() {
    use std::io::Write as _;
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[old.address]);
    let before = proxy.server.generation;
    let changes = (1..=40).map(|n| ToProxy::Cluster {
        generation: Generation(before + n),
        id: CART.to_owned(),
        cluster: cluster(&[(if n == 40 { &new } else { &old }.address, Ready)], n % 2 == 0),
    });
    let frames: Vec<_> = changes.map(|change| encode(&change).unwrap()).collect();
    proxy.server.stream.write_all(&frames.concat()).unwrap();
    let (mut acknowledged, wanted) = (Vec::new(), Generation(before + 40));
    proxy.server.until("the last acknowledgement", |message| match message {
        FromProxy::Ack { generation, .. } => {
            acknowledged.push(*generation);
            (*generation == wanted).then_some(())
        }
        _ => None,
    });
    assert!(acknowledged.len() < 5, "{acknowledged:?}");
    assert_eq!(get(address, "/").body, "new:0");
    // One that comes at once is not told before what came before it.
    proxy.server.generation = before + 41;
    let generation = Generation(proxy.server.generation);
    let change = cluster(&[(old.address, Ready)], true);
    proxy.server.send(&ToProxy::Cluster { generation, id: CART.to_owned(), cluster: change });
    proxy.server.callers(BTreeMap::new());
    assert_eq!(get(address, "/").body, "old:0");
}
