//! The promise: no request is lost by anything that happens to endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol};

use crate::backend::Backend;
use crate::client::Client;
use crate::proxy::{Proxy, cluster};

use EndpointState::{Draining, Ready};

const CLIENTS: usize = 8;
const ROUNDS: usize = 12;
/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(4);

fn backend() -> Backend {
    Backend::new(|mut connection| {
        while connection.request().is_some() {
            // Long enough that there is always something in flight.
            thread::sleep(Duration::from_millis(2));
            connection.answer("ok");
        }
    })
}

/// Requests at a steady rate, on kept and on new connections; how many.
fn load(address: std::net::SocketAddr, stop: &AtomicBool, failed: &AtomicUsize) -> usize {
    let (mut client, mut count) = (Client::connect(address), 0);
    while !stop.load(Ordering::SeqCst) {
        if count % 10 == 9 {
            client = Client::connect(address);
        }
        let answer = client.get("/");
        if answer.status != 200 {
            failed.fetch_add(1, Ordering::SeqCst);
            eprintln!("{answer:?}");
        }
        count += 1;
        thread::sleep(PACE);
    }
    count
}

#[test]
fn no_request_is_lost_while_endpoints_drain_die_and_vanish() {
    let mut proxy = Proxy::start();
    let mut backends = vec![backend(), backend(), backend()];
    let addresses: Vec<_> = backends.iter().map(|b| b.address).collect();
    let address = proxy.serve(Protocol::Auto, &addresses);
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            thread::spawn(move || load(address, &stop, &failed))
        })
        .collect();
    let state = |backends: &[Backend], of_first: EndpointState| {
        let state = |i| if i == 0 { of_first } else { Ready };
        let endpoints: Vec<_> =
            backends.iter().enumerate().map(|(i, b)| (b.address, state(i))).collect();
        cluster(&endpoints, true)
    };
    let begun = Instant::now();
    for round in 0..ROUNDS {
        match round % 4 {
            // Replaced in order: the new one first, the old one drained, then killed.
            0 => {
                backends.push(backend());
                proxy.server.update(state(&backends, Draining));
                proxy.server.in_flight(backends[0].address, 0);
                backends.remove(0).kill();
                proxy.server.update(state(&backends, Ready));
            }
            // Killed, and the server notices a little later.
            1 => {
                backends[0].kill();
                thread::sleep(Duration::from_millis(20));
                backends.remove(0);
                proxy.server.update(state(&backends, Ready));
                backends.push(backend());
                proxy.server.update(state(&backends, Ready));
            }
            // The only one is killed, with new ones a moment later.
            2 => {
                backends.truncate(1);
                proxy.server.update(state(&backends, Ready));
                backends.remove(0).kill();
                thread::sleep(Duration::from_millis(20));
                proxy.server.update(state(&backends, Ready));
                thread::sleep(Duration::from_millis(100));
                backends.extend([backend(), backend(), backend()]);
                proxy.server.update(state(&backends, Ready));
            }
            // One is left out and comes back.
            _ => {
                proxy.server.update(state(&backends[1..], Ready));
                proxy.server.update(state(&backends, Ready));
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Ordering::SeqCst);
    let requests: usize = clients.into_iter().map(|c| c.join().unwrap()).sum();
    let stats = proxy.stats();
    eprintln!("{requests} requests in {:?}: {stats:?}", begun.elapsed());
    assert_eq!(failed.load(Ordering::SeqCst), 0, "of {requests}");
    assert_eq!((stats.failed, stats.requests as usize, stats.in_flight), (0, requests, 0));
    assert!(stats.retries > 0 && stats.held > 0, "nothing was put to the test: {stats:?}");
}
