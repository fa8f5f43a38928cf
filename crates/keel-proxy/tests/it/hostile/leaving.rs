//! Clients that leave before their answer: one that breaks its connection is given up at once, one that only ends its
//! side is answered, and what no endpoint has seen yet is given up either way.

use std::future::poll_fn;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel_model::{EndpointState, Protocol};
use rustix::net::sockopt;

use super::{before, serves};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::{CART, Proxy, cluster, listener, until};

/// Breaks the connection.
fn reset(client: Client) {
    let stream = client.reader.into_inner();
    sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
}

/// How often requests came, and how often it was seen that they are given up.
#[derive(Clone, Default)]
struct Seen {
    asked: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
}

/// Never answers but what is decent; with `hint` it says at least that it is at it.
fn stuck(seen: &Seen, hint: bool) -> Backend {
    let seen = seen.clone();
    Backend::new(move |mut connection| {
        while let Some(head) = connection.head() {
            if head.starts_with("GET /decent ") {
                connection.answer("ok");
                continue;
            }
            if hint {
                connection.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 2");
            }
            seen.asked.fetch_add(1, Ordering::SeqCst);
            let mut rest = Vec::new();
            let _ = connection.reader.read_to_end(&mut rest);
            seen.given_up.fetch_add(1, Ordering::SeqCst);
            return;
        }
    })
}

/// The statuses that were counted.
fn counted(proxy: &mut Proxy) -> Vec<(u16, u64)> {
    proxy.all_ended();
    proxy.all_stats().edges.into_iter().flat_map(|edge| edge.statuses).collect()
}

fn leaves(proxy: &mut Proxy, address: SocketAddr, seen: &Seen, requests: &str) {
    let mut client = Client::connect(address);
    let (asked, given_up) = (&seen.asked, &seen.given_up);
    let before = asked.load(Ordering::SeqCst);
    client.send(requests);
    until("the endpoint is asked", || (asked.load(Ordering::SeqCst) > before).then_some(()));
    assert_eq!(given_up.load(Ordering::SeqCst), before);
    reset(client);
    until("it is given up", || (given_up.load(Ordering::SeqCst) > before).then_some(()));
    proxy.all_ended();
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn one_that_breaks_its_connection_is_given_up_at_once() {
    let seen = Seen::default();
    for hint in [false, true] {
        let backend = stuck(&seen, hint);
        let (mut proxy, address) = before(&backend);
        leaves(&mut proxy, address, &seen, GET);
        leaves(&mut proxy, address, &seen, POST);
        // What it sends meanwhile hides nothing.
        leaves(&mut proxy, address, &seen, &[GET, GET].concat());
        leaves(&mut proxy, address, &seen, &[POST, &"x".repeat(100_000)].concat());
        assert_eq!(counted(&mut proxy), [(499, 4)]);
        let stats = proxy.stats();
        assert_eq!((stats.failed, stats.retries), (0, 0), "{stats:?}");
        serves(address);
    }
}

#[test]
fn one_that_breaks_its_connection_is_given_up_by_endpoints_of_http2() {
    let seen = Seen::default();
    let count = seen.clone();
    let endpoint = Http2Endpoint::new(move |mut exchange| {
        let seen = count.clone();
        async move {
            seen.asked.fetch_add(1, Ordering::SeqCst);
            let reset = poll_fn(|cx| exchange.respond.poll_reset(cx)).await;
            assert_eq!(reset.unwrap(), h2::Reason::CANCEL);
            seen.given_up.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut proxy = Proxy::start();
    let address = crate::http2::either::serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    for requests in [GET, POST, &[GET, GET].concat()] {
        leaves(&mut proxy, address, &seen, requests);
    }
    assert_eq!(counted(&mut proxy), [(499, 3)]);
}

#[test]
fn one_that_only_ends_its_side_is_answered() {
    let (tell, told) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let backend = Backend::new(move |mut connection| {
        while connection.request().is_some() {
            let () = told.lock().unwrap().recv().unwrap();
            connection.answer("after all");
        }
    });
    let (mut proxy, address) = before(&backend);
    for requests in [GET.to_owned(), POST.to_owned(), [GET, GET].concat()] {
        let mut client = Client::connect(address);
        client.send(&requests);
        client.end_sending();
        until("it is on its way", || (proxy.stats().in_flight == 1).then_some(()));
        for _ in 0..requests.matches("HTTP/1.1").count() {
            tell.send(()).unwrap();
            assert_eq!(client.answer().body, "after all");
        }
        assert!(client.ended());
    }
    assert_eq!(counted(&mut proxy), [(200, 4)]);
}

#[test]
fn what_waits_for_an_endpoint_is_given_up_however_its_client_leaves() {
    let backend = Backend::named("a");
    for protocol in [Protocol::Http, Protocol::Http2] {
        let mut proxy = Proxy::start();
        let bind = proxy.address();
        let held = |ready: &[_]| keel_route::snapshot::Cluster { protocol, ..cluster(ready, true) };
        let clusters = [(CART.to_owned(), held(&[]))].into();
        assert_eq!(proxy.server.replace(vec![listener(bind, protocol)], clusters), []);
        for (requests, breaks) in [
            (GET, false),
            (POST, true),
            (&[GET, GET].concat(), false),
            (&[GET, GET].concat(), true),
        ] {
            let mut client = Client::connect(bind);
            client.send(requests);
            until("it waits", || (proxy.stats().in_flight == 1).then_some(()));
            if breaks {
                reset(client);
            } else {
                drop(client);
            }
            proxy.all_ended();
        }
        assert_eq!(counted(&mut proxy), [(499, 4)], "{protocol:?}");
        proxy.server.update(held(&[(backend.address, EndpointState::Ready)]));
        assert_eq!(proxy.stats().requests, 4);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0, "nobody asked for anything");
}
