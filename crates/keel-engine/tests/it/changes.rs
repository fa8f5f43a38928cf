//! Changes under load cost no request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use keel_model::EndpointState::{Draining, Ready};
use keel_model::TrafficPolicy;
use keel_render::Engine;
use keel_route::snapshot::{Lacking, Snapshot};

use crate::driver::{CART, Driver, cluster, installed, listener, until};
use crate::endpoint::Endpoint;
use crate::load::{Load, get};

/// Requests between two changes.
const BETWEEN: usize = 60;

fn ready(endpoints: &[Endpoint]) -> keel_route::snapshot::Cluster {
    let all: Vec<_> = endpoints.iter().map(|endpoint| (endpoint.address, Ready)).collect();
    cluster(&all)
}

#[test]
fn endpoints_are_replaced_one_after_the_other() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let mut endpoints = vec![Endpoint::new("0"), Endpoint::new("0")];
        assert_eq!(driver.server.serve(&[bind], ready(&endpoints)), []);
        let load = Load::start(bind);
        for round in 1..=4 {
            load.settle(BETWEEN);
            endpoints.push(Endpoint::new(&round.to_string()));
            driver.server.update(ready(&endpoints));
            let mut state: Vec<_> = endpoints.iter().map(|e| (e.address, Ready)).collect();
            state[0].1 = Draining;
            driver.server.update(cluster(&state));
            driver.server.in_flight(endpoints[0].address, |count| count == 0);
            // Only after that the platform ends it.
            endpoints.remove(0).stop();
            driver.server.update(ready(&endpoints));
        }
        load.settle(BETWEEN);
        let (requests, failed) = load.end();
        assert_eq!(failed, 0, "{engine:?}: of {requests}\n{}", driver.log());
        let names: BTreeSet<_> = (0..20).map(|_| get(bind).unwrap()).collect();
        assert!(names.is_subset(&["3", "4"].map(str::to_owned).into()), "{engine:?}: {names:?}");
    }
}

#[test]
fn a_service_grows_and_shrinks() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let mut endpoints = vec![Endpoint::new("first")];
        driver.server.serve(&[bind], ready(&endpoints));
        let load = Load::start(bind);
        // More than there are spare servers for.
        for _ in 0..12 {
            endpoints.push(Endpoint::new("more"));
            driver.server.update(ready(&endpoints));
        }
        load.settle(BETWEEN);
        while endpoints.len() > 1 {
            let mut state: Vec<_> = endpoints.iter().map(|e| (e.address, Ready)).collect();
            let last = state.len() - 1;
            state[last].1 = Draining;
            driver.server.update(cluster(&state));
            driver.server.in_flight(state[last].0, |count| count == 0);
            endpoints.pop().unwrap().stop();
            driver.server.update(ready(&endpoints));
        }
        load.settle(BETWEEN);
        let (requests, failed) = load.end();
        assert_eq!(failed, 0, "{engine:?}: of {requests}\n{}", driver.log());
        assert_eq!(get(bind).unwrap(), "first");
    }
}

#[test]
fn listeners_come_and_go() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let (stays, comes) = (driver.address(80), driver.address(81));
        let endpoints = [Endpoint::new("a")];
        driver.server.serve(&[stays], ready(&endpoints));
        let load = Load::start(stays);
        for _ in 0..4 {
            assert_eq!(driver.server.serve(&[stays, comes], ready(&endpoints)), []);
            assert_eq!(get(comes).unwrap(), "a");
            load.settle(BETWEEN);
            assert_eq!(driver.server.serve(&[stays], ready(&endpoints)), []);
            until("nobody listens there", || get(comes).err());
        }
        let (requests, failed) = load.end();
        assert_eq!(failed, 0, "{engine:?}: of {requests}\n{}", driver.log());
    }
}

#[test]
fn what_is_in_flight_at_a_draining_endpoint_is_waited_for() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let bind = driver.address(80);
        let (old, new) = (Endpoint::new("old"), Endpoint::new("new"));
        driver.server.serve(&[bind], cluster(&[(old.address, Ready)]));
        old.answers(false);
        let waiting: Vec<_> = (0..3).map(|_| std::thread::spawn(move || get(bind))).collect();
        until("all are in flight", || (old.busy.load(Ordering::SeqCst) == 3).then_some(()));
        driver.server.update(cluster(&[(old.address, Draining), (new.address, Ready)]));
        driver.server.in_flight(old.address, |count| count > 0);
        for _ in 0..10 {
            assert_eq!(get(bind).unwrap(), "new");
        }
        // Also over a change that needs a reload.
        let more = driver.address(81);
        let both = cluster(&[(old.address, Draining), (new.address, Ready)]);
        assert_eq!(driver.server.serve(&[bind, more], both), []);
        driver.server.in_flight(old.address, |count| count > 0);
        old.answers(true);
        for answer in waiting {
            assert_eq!(answer.join().unwrap().unwrap(), "old", "{engine:?}");
        }
        driver.server.in_flight(old.address, |count| count == 0);
    }
}

#[test]
fn changes_of_endpoints_need_no_new_worker_of_haproxy() {
    if !crate::driver::has(Engine::Haproxy) {
        return;
    }
    let mut driver = Driver::start(Engine::Haproxy);
    let bind = driver.address(80);
    let endpoints = [Endpoint::new("a"), Endpoint::new("b")];
    driver.server.serve(&[bind], ready(&endpoints));
    let before = driver.log();
    for _ in 0..5 {
        driver.server.update(ready(&endpoints[..1]));
        assert_eq!(get(bind).unwrap(), "a");
        driver.server.update(ready(&endpoints[1..]));
        assert_eq!(get(bind).unwrap(), "b");
    }
    let forked = |log: &str| log.matches("New worker").count();
    assert_eq!(forked(&driver.log()), forked(&before));
    let numbers = driver.stats();
    assert_eq!((numbers.requests, numbers.failed, numbers.in_flight), (10, 0, 0));
    // They go on over a reload.
    driver.server.serve(&[bind, driver.address(81)], ready(&endpoints));
    get(bind).unwrap();
    until("the numbers of both workers", || (driver.stats().requests == 11).then_some(()));
    assert!(forked(&driver.log()) > forked(&before), "{CART}");
}

#[test]
fn what_an_engine_lacks_is_told_once_on_each_connection() {
    for engine in installed() {
        let mut driver = Driver::start(engine);
        let endpoint = Endpoint::new("here");
        let mut snapshot = Snapshot {
            listeners: vec![listener(driver.address(80))],
            clusters: BTreeMap::from([(CART.to_owned(), ready(&[endpoint]))]),
            ..Snapshot::default()
        };
        let adapting = |lacks: &[Lacking]| {
            let mut found = lacks.iter().filter(|lacking| lacking.what.contains("adapt"));
            found.next().map(|lacking| (lacking.engine.clone(), lacking.places.clone()))
        };
        let always = driver.server.lacks(snapshot.clone()).unwrap();
        assert_eq!(adapting(&always), None);
        let ids = always.iter().find(|lacking| lacking.what.contains("X-Request-Id")).unwrap();
        assert_eq!(ids.places, ["all traffic"]);

        let adaptive = Some(keel_model::AdaptiveConcurrency { min: 1, max: 2 });
        let policy = TrafficPolicy { adaptive, ..TrafficPolicy::default() };
        snapshot.clusters.get_mut(CART).unwrap().policy = Some(Box::new(policy));
        let expected = Some((engine.command().to_owned(), vec![format!("cluster {CART}")]));
        let first = driver.server.lacks(snapshot.clone());
        assert_eq!(adapting(first.as_ref().unwrap()), expected);
        assert_eq!(driver.server.lacks(snapshot.clone()), None, "nothing new");
        // Without a new configuration, too: whoever has just connected knows nothing yet.
        driver.reconnect();
        assert_eq!(driver.server.lacks(snapshot.clone()), first);
        driver.succeed(true);
        assert_eq!(driver.server.lacks(snapshot.clone()), first);
        snapshot.clusters.get_mut(CART).unwrap().policy = None;
        assert_eq!(driver.server.lacks(snapshot), Some(always));
    }
}
