//! The promise for HTTP/2: no call is lost while endpoints and proxies are replaced, and what is a stream (of gRPC, a
//! WebSocket) lives on where it is until it ends by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use keel_model::{EndpointState, Protocol};
use keel_route::snapshot::Cluster;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::http2::background::{spawn, wait};
use crate::http2::client::{Http2Client, part, read, request};
use crate::http2::either::serve;
use crate::http2::endpoint::{Exchange, Http2Endpoint};
use crate::http2::websocket;
use crate::proxy::{Process, Proxy, Server, cluster, until};

use EndpointState::{Draining, Ready};

/// Connections of clients, and calls at a time on each.
const CLIENTS: usize = 6;
const CALLS: usize = 4;
const ROUNDS: usize = 15;

/// Answers a call in trailers, as gRPC does, after a moment: there is always something in flight.
fn unary() -> Http2Endpoint {
    Http2Endpoint::new(|mut exchange: Exchange| async move {
        let Ok((body, _)) = exchange.body().await else { return };
        tokio::time::sleep(Duration::from_millis(2)).await;
        let mut stream = exchange.begin(Response::builder());
        let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
        // Whether the caller is still there is for the test to say.
        if stream.send_data(body, false).is_ok() {
            let _ = stream.send_trailers(trailers.into_iter().collect());
        }
    })
}

#[derive(Default)]
struct Score {
    stop: AtomicBool,
    calls: AtomicUsize,
    failed: AtomicUsize,
    /// Calls that were begun anew because a farewell said that nobody had looked at them.
    again: AtomicUsize,
}

/// One call after the other, on a connection that is made anew when it takes no more.
async fn calls(address: SocketAddr, mut client: Arc<Http2Client>, score: Arc<Score>) {
    while !score.stop.load(Ordering::SeqCst) {
        let asking = request("POST", "/").header("content-type", "application/grpc");
        let Ok(mut call) = client.try_begin(asking, false).await else {
            client = Arc::new(Http2Client::connect(address).await);
            continue;
        };
        let _ = call.send("message", true).await;
        match call.answer().await {
            Ok(answer) => {
                score.calls.fetch_add(1, Ordering::SeqCst);
                let fine =
                    answer.text() == "message" && answer.trailers.contains_key("grpc-status");
                if !fine {
                    eprintln!("{answer:?}");
                    score.failed.fetch_add(1, Ordering::SeqCst);
                }
            }
            Err(error) if error.is_go_away() && error.is_remote() => {
                score.again.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                eprintln!("{error:?}");
                score.failed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn state(endpoints: &[Http2Endpoint], of_first: EndpointState) -> Cluster {
    let state = |i| if i == 0 { of_first } else { Ready };
    let endpoints: Vec<_> =
        endpoints.iter().enumerate().map(|(i, e)| (e.address, state(i))).collect();
    Cluster { protocol: Protocol::Http2, ..cluster(&endpoints, true) }
}

#[test]
fn no_call_is_lost_while_endpoints_and_proxies_are_replaced() {
    let mut proxy = Proxy::start();
    let mut endpoints = vec![unary(), unary()];
    let addresses: Vec<_> = endpoints.iter().map(|e| e.address).collect();
    let address = serve(&mut proxy, Protocol::Http2, &addresses);
    let score = Arc::new(Score::default());
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    for _ in 0..CLIENTS {
        let client = wait(async { Arc::new(Http2Client::connect(address).await) });
        for _ in 0..CALLS {
            clients.push(spawn(calls(address, Arc::clone(&client), Arc::clone(&score))));
        }
    }
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let before = score.calls.load(Ordering::SeqCst);
        match round % 3 {
            // Replaced in order: the new one first, the old one drained, then gone.
            0 | 1 => {
                endpoints.push(unary());
                proxy.server.update(state(&endpoints, Draining));
                proxy.server.in_flight(endpoints[0].address, 0);
                endpoints.remove(0);
                proxy.server.update(state(&endpoints, Ready));
            }
            // The proxy itself.
            _ => {
                let successor = Process::succeed(proxy.dir.path());
                let mut old = std::mem::replace(&mut proxy.process, successor);
                assert!(proxy.server.receive_until_end());
                let generation = proxy.server.generation;
                proxy.server = Server::connect(proxy.dir.path());
                proxy.server.generation = generation + 100;
                proxy.server.update(state(&endpoints, Ready));
                assert!(old.wait().success());
            }
        }
        until("the calls go on", || {
            let now = score.calls.load(Ordering::SeqCst);
            (now >= before + 5 * CLIENTS * CALLS).then_some(())
        });
    }
    score.stop.store(true, Ordering::SeqCst);
    wait(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    let (calls, again) = (score.calls.load(Ordering::SeqCst), score.again.load(Ordering::SeqCst));
    eprintln!("{calls} calls in {:?}, {again} begun anew: {:?}", begun.elapsed(), proxy.stats());
    assert_eq!(score.failed.load(Ordering::SeqCst), 0, "of {calls}");
    assert_eq!(proxy.stats().failed, 0);
}

/// Messages that a stream exchanges before it ends by itself.
const TALK: usize = 30;

/// Returns what it gets, message by message, and says its name first.
fn stream(name: &'static str) -> Http2Endpoint {
    Http2Endpoint::new(move |mut exchange: Exchange| async move {
        let mut down = exchange.begin(Response::builder());
        let mut sent = down.send_data(name.into(), false);
        while let (Ok(()), Some(Ok(message))) = (&sent, part(exchange.request.body_mut()).await) {
            sent = down.send_data(message, false);
        }
        let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
        let _ = down.send_trailers(trailers.into_iter().collect());
    })
}

/// A talk of [`TALK`] messages, the second half of which waits for `go`; the name of the endpoint.
async fn talk(address: SocketAddr, mut go: tokio::sync::watch::Receiver<bool>) -> String {
    let client = Http2Client::connect(address).await;
    let mut call = client.begin(request("POST", "/"), false).await;
    let mut down = call.head().await.unwrap().into_body();
    let name = part(&mut down).await.unwrap().unwrap();
    for n in 0..TALK {
        if n == TALK / 2 {
            go.wait_for(|go| *go).await.unwrap();
        }
        let message = format!("message {n}");
        call.send(message.clone(), false).await.unwrap();
        assert_eq!(part(&mut down).await.unwrap().unwrap(), message);
    }
    call.send("", true).await.unwrap();
    let (rest, trailers) = read(&mut down).await.unwrap();
    assert_eq!((rest.len(), &trailers["grpc-status"]), (0, &"0".parse().unwrap()));
    String::from_utf8(name.to_vec()).unwrap()
}

#[test]
fn streams_live_on_at_a_draining_endpoint_until_they_end() {
    let (old, new) = (stream("old"), stream("new"));
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[old.address]);
    let (go, goes) = tokio::sync::watch::channel(false);
    let talks =
        |n: usize| -> Vec<_> { (0..n).map(|_| spawn(talk(address, goes.clone()))).collect() };
    let first = talks(20);
    until("they are in flight", || (proxy.stats().in_flight == 20).then_some(()));
    let endpoints = [(old.address, Draining), (new.address, Ready)];
    let state = Cluster { protocol: Protocol::Http2, ..cluster(&endpoints, true) };
    proxy.server.update(state);
    proxy.server.in_flight(old.address, 20);
    let second = talks(20);
    until("they are in flight too", || (proxy.stats().in_flight == 40).then_some(()));
    // Nothing but their end makes them fewer.
    proxy.server.in_flight(old.address, 20);
    go.send(true).unwrap();
    wait(async {
        for (talks, name) in [(first, "old"), (second, "new")] {
            for talk in talks {
                assert_eq!(talk.await.unwrap(), name);
            }
        }
    });
    proxy.server.in_flight(old.address, 0);
    assert_eq!((proxy.stats().failed, proxy.stats().retries), (0, 0));
}

#[test]
fn websockets_live_on_at_a_draining_endpoint_until_they_end() {
    let (old, new) = (websocket::echo(), websocket::echo());
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http, &[old.address]);
    wait(async {
        let mut ones: Vec<_> = (0..5).map(|_| websocket::open_http1(address)).collect();
        let client = websocket::client(address).await;
        let mut twos = Vec::new();
        for _ in 0..5 {
            let mut call = client.begin(websocket::connect("/chat?x=y", "websocket"), false).await;
            let down = call.head().await.unwrap().into_body();
            twos.push((call, down));
        }
        for (_, down) in &mut twos {
            assert_eq!(part(down).await.unwrap().unwrap(), "first\n");
        }
        let endpoints = [(old.address, Draining), (new.address, Ready)];
        proxy.server.update(Cluster { protocol: Protocol::Http, ..cluster(&endpoints, true) });
        proxy.server.in_flight(old.address, 10);
        let mut fresh: Vec<Client> = (0..5).map(|_| websocket::open_http1(address)).collect();
        assert_eq!(new.connections.load(Ordering::SeqCst), 5);
        for n in 0..TALK {
            for client in ones.iter_mut().chain(&mut fresh) {
                client.send(format!("line {n}\n"));
                assert_eq!(client.line(), format!("line {n}\n"));
            }
            for (call, down) in &mut twos {
                call.send(format!("line {n}\n"), false).await.unwrap();
                assert_eq!(part(down).await.unwrap().unwrap(), format!("line {n}\n"));
            }
        }
        for client in &mut ones {
            client.end_sending();
            assert_eq!(client.rest(), b"");
        }
        proxy.server.in_flight(old.address, 5);
        for (mut call, mut down) in twos {
            call.send("", true).await.unwrap();
            assert_eq!(read(&mut down).await.unwrap().0, "");
        }
        proxy.server.in_flight(old.address, 0);
    });
    assert_eq!(proxy.stats().failed, 0);
}
