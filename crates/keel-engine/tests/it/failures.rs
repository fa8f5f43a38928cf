//! What dies is replaced, and what is wrong is told.

use std::io::ErrorKind::{ConnectionRefused, NotFound};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use keel_link::handover;
use keel_model::EndpointState::{Draining, Ready};
use keel_model::RouteKind;
use keel_render::Engine;
use keel_route::snapshot::{Certificate, ListenerTls, Snapshot};

use crate::driver::{Driver, cluster, has, installed, listener, signal, until};
use crate::endpoint::Endpoint;
use crate::load::{Load, get};

#[test]
fn a_killed_engine_is_started_again() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("a");
        driver.server.serve(&[bind], cluster(&[(endpoint.address, Ready)]));
        for _ in 0..2 {
            let before = driver.engine_pid();
            signal(before, "-KILL");
            until("another engine serves", || {
                (driver.engine_pid() != before && get(bind).ok()? == "a").then_some(())
            });
            let told = driver.notices();
            let expected = format!(
                "{} (process {before}) ended by signal 9; it is started again",
                engine.command()
            );
            assert_eq!(told, [expected], "{engine:?}");
        }
        // The server hears of nothing, and its next change is taken.
        let other = Endpoint::new("b");
        driver.server.update(cluster(&[(other.address, Ready)]));
        until("the change is there", || (get(bind).ok()? == "b").then_some(()));
    }
}

/// A process that this one has started.
fn worker_of(pid: u32) -> u32 {
    let is_child = |stat: &String| {
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        parent == Some(pid.to_string().as_str())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let child = stats.into_iter().find(is_child).unwrap();
    child.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn who_connects_while_haproxy_is_dead_waits_for_the_next_one() {
    if !has(Engine::Haproxy) {
        return;
    }
    let mut driver = Driver::start(Engine::Haproxy);
    let (bind, other) = (driver.address(80), driver.address(81));
    let endpoint = Endpoint::new("a");
    let cart = || cluster(&[(endpoint.address, Ready)]);
    driver.server.serve(&[bind, other], cart());
    let (end, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (end, refused) = (Arc::clone(&end), Arc::clone(&refused));
            std::thread::spawn(move || {
                while !end.load(SeqCst) {
                    // What the dead one had accepted is lost.
                    if let Err(error) = get(bind)
                        && error.kind() == ConnectionRefused
                    {
                        refused.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    for round in 0..5 {
        let before = driver.engine_pid();
        // Without a worker HAProxy ends by itself.
        signal(if round % 2 == 0 { before } else { worker_of(before) }, "-KILL");
        for _ in 0..20 {
            let answer = get(bind);
            assert!(!answer.is_err_and(|e| e.kind() == ConnectionRefused), "round {round}");
        }
        until("another engine serves", || {
            (driver.engine_pid() != before && get(bind).ok()? == "a").then_some(())
        });
    }
    end.store(true, SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(refused.load(SeqCst), 0, "{}", driver.log());
    for _ in 0..50 {
        assert_eq!(get(bind).unwrap(), "a", "each socket has somebody who accepts");
    }
    // Nobody holds open what is closed then.
    assert_eq!(driver.server.serve(&[bind], cart()), []);
    until("nobody listens there", || get(other).err());
    assert_eq!(get(bind).unwrap(), "a");
}

#[test]
fn a_killed_driver_leaves_the_engine_to_the_next_one() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("a");
        driver.server.serve(&[bind], cluster(&[(endpoint.address, Ready)]));
        until("the state is in its file", || {
            driver.dir.path().join("snapshot.json").exists().then_some(())
        });
        let load = Load::start(bind);
        load.settle(50);
        let pid = driver.engine_pid();
        driver.kill();
        load.settle(50);
        driver.succeed(false);
        load.settle(50);
        let other = Endpoint::new("b");
        driver.server.update(cluster(&[(endpoint.address, Ready), (other.address, Ready)]));
        load.settle(50);
        assert_eq!(driver.engine_pid(), pid, "{engine:?}");
        // The same when a new driver asks the old one for its place.
        driver.succeed(true);
        driver.server.update(cluster(&[(other.address, Ready)]));
        load.settle(50);
        assert_eq!(driver.engine_pid(), pid, "{engine:?}");
        let (requests, failed) = load.end();
        assert_eq!(failed, 0, "{engine:?}: of {requests}\n{}", driver.log());
        assert_eq!(get(bind).unwrap(), "b");
    }
}

#[test]
fn told_to_end_it_lets_requests_end() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("a");
        driver.server.serve(&[bind], cluster(&[(endpoint.address, Ready)]));
        endpoint.answers(false);
        let waiting = std::thread::spawn(move || get(bind));
        until("it is in flight", || {
            (endpoint.busy.load(std::sync::atomic::Ordering::SeqCst) == 1).then_some(())
        });
        signal(driver.child.id(), "-TERM");
        until("it takes no more", || std::net::TcpStream::connect(bind).err());
        let control = driver.dir.path().join("control");
        until("its place is free", || UnixStream::connect(&control).err());
        endpoint.answers(true);
        assert_eq!(waiting.join().unwrap().unwrap(), "a", "{engine:?}");
        assert_eq!(driver.wait().code(), Some(0), "{engine:?}");
    }
}

#[test]
fn a_listener_that_cannot_be_opened_is_reported_and_tried_again() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let taken = TcpListener::bind((driver.ip, 0)).unwrap();
        let other = taken.local_addr().unwrap();
        let endpoint = Endpoint::new("a");
        let cart = || cluster(&[(endpoint.address, Ready)]);
        let failed = driver.server.serve(&[bind, other], cart());
        assert_eq!(failed.len(), 1, "{engine:?}: {failed:?}");
        assert_eq!(failed[0].reason, format!("{other} is in use by another process"));
        assert_eq!(get(bind).unwrap(), "a", "the others are there");
        drop(taken);
        assert_eq!(driver.server.serve(&[bind, other], cart()), []);
        assert_eq!(get(other).unwrap(), "a");
    }
}

/// A certificate whose key is that of another.
fn mismatched() -> Certificate {
    let signed = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["a.example".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    Certificate { names: Vec::new(), chain: signed().0, key: signed().1 }
}

#[test]
fn what_the_engine_does_not_accept_leaves_the_last_good_state_with_the_endpoints_of_now() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let (bind, bad) = (driver.address(80), driver.address(443));
        let (old, new) = (Endpoint::new("old"), Endpoint::new("new"));
        driver.server.serve(&[bind], cluster(&[(old.address, Ready)]));
        let mut secure = listener(bad);
        secure.tls = Some(ListenerTls::default());
        let snapshot = Snapshot {
            listeners: vec![listener(bind), secure],
            clusters: [(crate::driver::CART.to_owned(), cluster(&[(new.address, Ready)]))].into(),
            certificates: vec![mismatched()].into(),
            ..Snapshot::default()
        };
        let failed = driver.server.replace(snapshot.clone());
        assert_eq!(failed.len(), 1, "{engine:?}: {failed:?}");
        assert_eq!(failed[0].bind, bad);
        assert!(failed[0].reason.contains("does not accept"), "{failed:?}");
        assert_eq!(get(bind).unwrap(), "new", "{engine:?}");
        let good = Snapshot { certificates: Vec::new().into(), ..snapshot };
        assert_eq!(driver.server.replace(good), []);
        assert_eq!(get(bind).unwrap(), "new");
    }
}

#[test]
fn inner_sockets_survive_changes_and_deaths() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("web");
        let id = crate::driver::CART.to_owned();
        let entry = |name: &str, rule, kind| keel_route::snapshot::RouteEntry {
            name: name.to_owned(),
            rule,
            priority: 1,
            kind,
            clusters: vec![(id.clone(), 1)],
            filters: keel_model::Filters::default(),
            timeout_ms: None,
        };
        let pass = keel_model::Rule::Sni("pass.example".to_owned());
        let table = keel_route::snapshot::RouteTable {
            routes: vec![
                entry("pass", pass, RouteKind::Passthrough),
                entry("web", keel_model::Rule::default(), RouteKind::Http),
            ],
            redirect_https: None,
        };
        let mut routed = listener(bind);
        (routed.table, routed.cluster) = (Some("t".to_owned()), String::new());
        let mut snapshot = Snapshot {
            listeners: vec![routed],
            clusters: [(id.clone(), cluster(&[(endpoint.address, Ready)]))].into(),
            tables: [("t".to_owned(), table)].into(),
            ..Snapshot::default()
        };
        assert_eq!(driver.server.replace(snapshot.clone()), [], "{}", driver.log());
        assert_eq!(get(bind).unwrap(), "web", "{engine:?}: {}", driver.log());
        let before = driver.engine_pid();
        signal(before, "-KILL");
        until("another engine serves", || {
            (driver.engine_pid() != before && get(bind).ok()? == "web").then_some(())
        });
        snapshot.listeners.push(listener(driver.address(81)));
        assert_eq!(driver.server.replace(snapshot), []);
        assert_eq!(get(bind).unwrap(), "web", "{engine:?}");
    }
}

#[test]
fn a_second_driver_on_the_same_socket_says_so() {
    for engine in installed() {
        let driver = Driver::start(engine);
        let mut second = Driver::second(&driver);
        assert_eq!(second.wait().unwrap().code(), Some(1));
        let mut said = String::new();
        std::io::Read::read_to_string(second.stderr.as_mut().unwrap(), &mut said).unwrap();
        assert!(said.contains("a proxy already serves"), "{said}");
        if engine == Engine::Haproxy {
            assert!(said.contains("kill -TERM"), "{said}");
        }
    }
}

#[test]
fn a_successor_gets_the_place_and_hears_what_is_still_in_flight() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("a");
        driver.server.serve(&[bind], cluster(&[(endpoint.address, Ready)]));
        endpoint.answers(false);
        let waiting = std::thread::spawn(move || get(bind));
        until("it is in flight", || {
            (endpoint.busy.load(std::sync::atomic::Ordering::SeqCst) == 1).then_some(())
        });

        let control = driver.dir.path().join("control");
        let place = handover::take_over(&control).unwrap().expect("somebody serves");
        assert_eq!(place.incumbent.engine(), Some(engine.command()));
        assert!(place.snapshot.clusters.contains_key(crate::driver::CART));
        let sockets = place.sockets.get(&bind).map_or(0, Vec::len);
        assert_eq!(sockets, if engine == Engine::Haproxy { 2 } else { 0 }, "one per thread");
        let mut stream = place.stream;
        handover::retire(&mut stream).unwrap();
        assert_eq!(UnixStream::connect(&control).err().map(|e| e.kind()), Some(NotFound));
        if engine == Engine::Haproxy {
            // Nobody accepts, but nobody is turned away either.
            std::net::TcpStream::connect(bind).unwrap();
        }

        stream.set_read_timeout(Some(crate::driver::PATIENCE)).unwrap();
        driver.server.stream = stream;
        driver.server.update(cluster(&[(endpoint.address, Draining)]));
        driver.server.in_flight(endpoint.address, |count| count == 1);
        endpoint.answers(true);
        assert_eq!(waiting.join().unwrap().unwrap(), "a", "{engine:?}");
        assert_eq!(driver.wait().code(), Some(0), "{engine:?}");
    }
}

#[test]
fn a_successor_that_dies_leaves_the_place_to_the_one_before() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let endpoint = Endpoint::new("a");
        driver.server.serve(&[bind], cluster(&[(endpoint.address, Ready)]));
        let control = driver.dir.path().join("control");
        drop(handover::take_over(&control).unwrap().expect("somebody serves"));
        // Its server finds it again.
        driver.server.stream = UnixStream::connect(&control).unwrap();
        driver.server.update(cluster(&[(endpoint.address, Ready)]));
        assert_eq!(get(bind).unwrap(), "a", "{engine:?}");
    }
}
