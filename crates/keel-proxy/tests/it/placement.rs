//! Which endpoint gets a request, and what happens when it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol};
use keel_route::snapshot::FromProxy;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::backend::{Backend, established, nobody};
use crate::client::{Client, get};
use crate::proxy::{Proxy, cluster, instance, until};

use EndpointState::{Draining, Ready};

/// Takes a request and breaks the connection; counts what it took.
fn breaker(taken: &Arc<AtomicUsize>) -> Backend {
    let taken = Arc::clone(taken);
    Backend::new(move |mut connection| {
        if connection.request().is_some() {
            taken.fetch_add(1, Ordering::SeqCst);
            connection.reset();
        }
    })
}

#[test]
fn a_refused_connection_is_not_noticed_by_the_client_but_by_the_server() {
    let (backend, dead) = (Backend::named("alive"), nobody());
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[dead, backend.address]);
    for _ in 0..20 {
        assert_eq!(get(address, "/").body, "alive:0");
        assert_eq!(Client::connect(address).post("x").body, "alive:1");
    }
    let refused = proxy.server.until("refusal", |message| match message {
        FromProxy::Refused { instance } => Some(instance.clone()),
        _ => None,
    });
    assert_eq!(refused, instance(dead));
    let stats = proxy.stats();
    assert_eq!((stats.requests, stats.failed), (40, 0));
    assert!((1..20).contains(&stats.retries), "left out after the first refusals: {stats:?}");
}

#[test]
fn the_last_endpoint_is_never_left_out() {
    let dead = nobody();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[dead]);
    let waiting = std::thread::spawn(move || get(address, "/"));
    until("it has been refused several times", || (proxy.stats().retries > 3).then_some(()));
    let _backend = Backend::at(dead, |mut connection| {
        while connection.request().is_some() {
            connection.answer("back");
        }
    });
    assert_eq!(waiting.join().unwrap().body, "back");
}

#[test]
fn an_idempotent_request_that_is_cut_off_goes_to_another_endpoint() {
    let taken = Arc::default();
    let (backend, breaker) = (Backend::named("good"), breaker(&taken));
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address, breaker.address]);
    for _ in 0..20 {
        assert_eq!(get(address, "/").body, "good:0");
        let mut client = Client::connect(address);
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n");
        client.send([b'x'; 30_000]);
        assert_eq!(client.answer().body, "good:30000", "with its body");
    }
    assert!(taken.load(Ordering::SeqCst) > 0);
    let stats = proxy.stats();
    assert_eq!(stats.retries as usize, taken.load(Ordering::SeqCst));
    assert_eq!(stats.failed, 0);
}

#[test]
fn a_request_that_may_have_been_carried_out_is_never_repeated() {
    let taken = Arc::default();
    let breakers = [breaker(&taken), breaker(&taken)];
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &breakers.each_ref().map(|b| b.address));
    for n in 1..=10 {
        let answer = Client::connect(address).post("once");
        assert_eq!(answer.status, 502);
        assert!(answer.body.contains("shop/cart:80"), "{}", answer.body);
        assert_eq!(taken.load(Ordering::SeqCst), n);
    }
    // Idempotent ones are repeated once.
    taken.store(0, Ordering::SeqCst);
    assert_eq!(get(address, "/").status, 502);
    assert_eq!(taken.load(Ordering::SeqCst), 2);
}

#[test]
fn a_long_body_is_not_kept_to_be_repeated() {
    let taken = Arc::default();
    let breaker = breaker(&taken);
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[breaker.address]);
    let mut client = Client::connect(address);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n");
    client.send([b'x'; 70_000]);
    assert_eq!(client.answer().status, 502);
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[test]
fn connections_closed_by_the_endpoint_meanwhile_are_not_noticed() {
    // Answers once per connection without saying that it will close.
    let backend = Backend::new(|mut connection| {
        connection.request();
        connection.answer("one");
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[backend.address]);
    let mut client = Client::connect(address);
    for _ in 0..200 {
        assert_eq!(client.get("/").body, "one");
    }
    for _ in 0..50 {
        // A request that may not be repeated must not race with the endpoint's close.
        until("the endpoint has closed", || {
            (established(backend.address.port()) == 0).then_some(())
        });
        assert_eq!(client.post("x").body, "one");
    }
    assert_eq!(proxy.stats().failed, 0);
}

#[test]
fn requests_are_held_until_an_endpoint_is_ready() {
    let backend = Backend::named("late");
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[]);
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            std::thread::spawn(move || match n % 2 {
                0 => get(address, "/"),
                _ => Client::connect(address).post("x"),
            })
        })
        .collect();
    until("all are held", || (proxy.stats().held == 20).then_some(()));
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    for answer in waiting {
        assert!(answer.join().unwrap().body.starts_with("late:"));
    }
}

#[test]
fn holding_ends_with_an_answer() {
    let mut proxy = Proxy::start_holding(Duration::from_millis(300));
    let address = proxy.serve(Protocol::Auto, &[]);
    let begun = Instant::now();
    let answer = get(address, "/");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("Retry-After: 1\r\n"), "{}", answer.head);
    assert_eq!(answer.body, "shop/cart:80 had no ready instance in time.\n");
    // Not expected: at once, and the connection can go on.
    proxy.server.update(cluster(&[], false));
    let mut client = Client::connect(address);
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (503, "shop/cart:80 has no running instance.\n")
        );
    }
}

#[test]
fn only_so_many_requests_are_held() {
    // Both ends of the connections need descriptors.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[]);
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held: Vec<_> = (0..1024)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send(request);
            client
        })
        .collect();
    until("1024 are held", || (proxy.stats().held == 1024).then_some(()));
    let answer = get(address, "/");
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("Retry-After"), "{}", answer.head);
    let backend = Backend::named("at last");
    proxy.server.update(cluster(&[(backend.address, Ready)], true));
    for client in &mut held {
        assert_eq!(client.answer().body, "at last:0");
    }
}

#[test]
fn an_endpoint_that_drains_is_the_last_resort() {
    let (ready, draining) = (Backend::named("ready"), Backend::named("draining"));
    let mut proxy = Proxy::start();
    let endpoints = [(ready.address, Ready), (draining.address, Draining)];
    let address = proxy.listen(Protocol::Auto, &endpoints);
    for _ in 0..20 {
        assert_eq!(get(address, "/").body, "ready:0");
    }
    proxy.server.update(cluster(&[(draining.address, Draining)], false));
    assert_eq!(get(address, "/").body, "draining:0");
    // Expected back: better to wait for the new one.
    proxy.server.update(cluster(&[(draining.address, Draining)], true));
    let waiting = std::thread::spawn(move || get(address, "/"));
    until("it is held", || (proxy.stats().held == 1).then_some(()));
    proxy.server.update(cluster(&endpoints, true));
    assert_eq!(waiting.join().unwrap().body, "ready:0");
}

#[test]
fn a_slow_endpoint_gets_fewer_requests() {
    let (fast, slow) = (
        Backend::named("fast"),
        Backend::new(|mut connection| {
            while connection.request().is_some() {
                std::thread::sleep(Duration::from_millis(20));
                connection.answer("slow");
            }
        }),
    );
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Auto, &[fast.address, slow.address]);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                (0..100).filter(|_| client.get("/").body == "slow").count()
            })
        })
        .collect();
    let slow: usize = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(slow < 150, "{slow} of 400 at the slow one");
}
