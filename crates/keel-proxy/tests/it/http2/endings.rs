//! Endpoints that drain, proxies that end, proxies that are replaced: what is open is finished.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::Response;
use keel_model::{EndpointState, Protocol};
use tokio::sync::mpsc;

use super::background::{spawn, wait};
use super::client::{Call, Http2Client, part, read, request};
use super::either::{Endpoint, serve};
use super::endpoint::{Exchange, Http2Endpoint};
use super::websocket;
use crate::frames::{ACK, Frame, Frames, GOAWAY, PING};
use crate::proxy::{Process, Proxy, Server, cluster, until};

use EndpointState::{Draining, Ready};

/// Tells its name at once and then returns what it gets, piece by piece, until that ends.
async fn echo(name: &'static str, mut exchange: Exchange) {
    let mut down = exchange.begin(Response::builder());
    down.send_data(name.into(), false).unwrap();
    while let Some(Ok(piece)) = part(exchange.request.body_mut()).await {
        if down.send_data(piece, false).is_err() {
            return;
        }
    }
    let _ = down.send_data(Bytes::new(), true);
}

/// An endpoint of [`echo`]; the end of each connection is told.
fn echoing(name: &'static str, closed: &mpsc::UnboundedSender<&'static str>) -> Http2Endpoint {
    let closed = closed.clone();
    Http2Endpoint::scripted(h2::server::Builder::new(), move |connection| {
        let closed = closed.clone();
        async move {
            super::endpoint::serve(connection, move |exchange| echo(name, exchange)).await;
            // Nobody waits for it in the tests that look at something else.
            let _ = closed.send(name);
        }
    })
}

/// A stream that goes on until it is told to end.
struct Open {
    up: SendStream<Bytes>,
    down: RecvStream,
}

impl Open {
    /// Opens one and returns the name of who answered.
    async fn begin(client: &Http2Client) -> (Self, Bytes) {
        let Call { head, body } = client.begin(request("POST", "/"), false).await;
        let mut down = head.await.unwrap().into_body();
        let name = part(&mut down).await.unwrap().unwrap();
        (Self { up: body, down }, name)
    }

    async fn says(&mut self, word: &'static str) {
        self.up.send_data(word.into(), false).unwrap();
        assert_eq!(part(&mut self.down).await.unwrap().unwrap(), word);
    }

    async fn end(mut self) {
        self.up.send_data("last".into(), true).unwrap();
        assert_eq!(read(&mut self.down).await.unwrap().0, "last");
    }
}

fn state(endpoints: &[(SocketAddr, EndpointState)]) -> keel_route::snapshot::Cluster {
    keel_route::snapshot::Cluster { protocol: Protocol::Http2, ..cluster(endpoints, true) }
}

#[test]
fn a_draining_endpoint_gets_no_new_streams_and_finishes_what_it_has() {
    let (close, mut closed) = mpsc::unbounded_channel();
    let (old, new) = (echoing("old", &close), echoing("new", &close));
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[old.address]);
    wait(async {
        let (one, other) =
            (Http2Client::connect(address).await, Http2Client::connect(address).await);
        let (mut first, name) = Open::begin(&one).await;
        let (mut second, _) = Open::begin(&other).await;
        assert_eq!(name, "old");
        proxy.server.update(state(&[(old.address, Draining), (new.address, Ready)]));
        proxy.server.in_flight(old.address, 2);
        // From the acknowledgement on, also on the connections that have a stream there.
        for _ in 0..10 {
            for client in [&one, &other] {
                let (open, name) = Open::begin(client).await;
                assert_eq!(name, "new");
                open.end().await;
            }
        }
        first.says("still here").await;
        first.end().await;
        proxy.server.in_flight(old.address, 1);
        second.says("here too").await;
        second.end().await;
        proxy.server.in_flight(old.address, 0);
        // Its connections end with their last streams.
        for _ in 0..old.connections() {
            assert_eq!(closed.recv().await, Some("old"));
        }
    });
    assert_eq!(proxy.stats().failed, 0);
}

#[test]
fn idle_connections_to_an_endpoint_end_when_it_drains() {
    let (close, mut closed) = mpsc::unbounded_channel();
    let endpoint = echoing("a", &close);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        Open::begin(&client).await.0.end().await;
        proxy.server.update(state(&[(endpoint.address, Draining)]));
        assert_eq!(closed.recv().await, Some("a"));
    });
}

#[test]
fn requests_wait_for_an_endpoint_to_be_ready() {
    let endpoint = Http2Endpoint::named("late");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[]);
    wait(async {
        let client = Http2Client::connect(address).await;
        let mut calls = Vec::new();
        for n in 0..50 {
            let mut call = client.begin(request("POST", "/"), false).await;
            call.send(vec![b'x'; n], true).await.unwrap();
            calls.push(call);
        }
        until("they are held", || (proxy.stats().held == 50).then_some(()));
        proxy.server.update(state(&[(endpoint.address, Ready)]));
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.answer().await.unwrap().text(), format!("late:{n}"));
        }
    });
    assert_eq!(proxy.stats().failed, 0);
}

#[test]
fn told_to_end_it_says_farewell_and_finishes_what_is_open() {
    let (close, _closed) = mpsc::unbounded_channel();
    let endpoint = echoing("a", &close);
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        let mut idle = Http2Client::connect(address).await;
        Open::begin(&idle).await.0.end().await;
        let mut busy = Http2Client::connect(address).await;
        let (mut open, _) = Open::begin(&busy).await;
        proxy.process.signal("-TERM");
        // The idle one ends at once, without an error.
        idle.ended_by_peer().await.unwrap();
        open.says("still here").await;
        assert!(busy.try_begin(request("GET", "/"), true).await.is_err(), "no more requests");
        assert!(proxy.process.child.try_wait().unwrap().is_none());
        let begun = Instant::now();
        open.end().await;
        busy.ended_by_peer().await.unwrap();
        assert!(proxy.process.wait().success());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
#[ignore = "takes as long as a client may be idle: 75 s"]
fn an_idle_connection_ends_with_a_farewell() {
    let endpoint = Http2Endpoint::named("a");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let begun = Instant::now();
    let mut client = Frames::connect(address, &[]);
    client.get(1);
    client.until("an answer", Frame::is_ok);
    client.stream().set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    // First without a last stream, so that nothing under way is lost; then the end.
    let farewell = client.until("a farewell", |frame| frame.kind == GOAWAY);
    assert_eq!(
        (farewell.error(), &farewell.payload[..4]),
        (Some(0), &[0x7f, 0xff, 0xff, 0xff][..])
    );
    let question = client.until("the question", |frame| frame.kind == PING && frame.flags != ACK);
    client.get(3);
    client.send(PING, ACK, 0, &question.payload);
    client.until("an answer to what was under way", |frame| frame.stream == 3 && frame.is_ok());
    client.end();
    assert!((70..90).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_hears_no_farewell_does_not_keep_the_proxy() {
    let endpoint = Http2Endpoint::named("a");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    let mut deaf = Frames::connect(address, &[]);
    deaf.get(1);
    deaf.until("an answer", |frame| frame.is_ok());
    proxy.process.signal("-TERM");
    // The farewell, and the question whether it was heard, which is not answered.
    let farewell = deaf.until("the farewell", |frame| frame.kind == GOAWAY);
    assert_eq!(farewell.error(), Some(0));
    deaf.until("the question", |frame| frame.kind == PING && frame.flags != ACK);
    // Idle clients are closed after three seconds then.
    assert!(proxy.process.wait().success());
}

#[test]
fn streams_and_websockets_live_on_in_the_old_proxy_while_a_new_one_serves() {
    let backend = websocket::echo();
    let (mut proxy, address) = Endpoint::One(backend).behind();
    let mut old = wait(async {
        // One over HTTP/1.1, one over HTTP/2.
        let mut one = websocket::open_http1(address);
        let client = websocket::client(address).await;
        let mut two = client.begin(websocket::connect("/chat?x=y", "websocket"), false).await;
        let mut down = two.head().await.unwrap().into_body();
        assert_eq!(part(&mut down).await.unwrap().unwrap(), "first\n");
        let mut old = std::mem::replace(&mut proxy.process, Process::succeed(proxy.dir.path()));
        assert!(proxy.server.receive_until_end(), "the old proxy lets go of its server");
        proxy.server = Server::connect(proxy.dir.path());
        // New clients are the new one's.
        let fresh = websocket::client(address).await;
        assert_eq!(proxy.stats().requests, 1);
        for n in 0..10 {
            one.send(format!("one {n}\n"));
            assert_eq!(one.line(), format!("one {n}\n"));
            two.send(format!("two {n}\n"), false).await.unwrap();
            assert_eq!(part(&mut down).await.unwrap().unwrap(), format!("two {n}\n"));
        }
        let begun = client.try_begin(request("GET", "/"), true).await;
        assert!(begun.is_err(), "the old connection takes no more");
        assert!(old.child.try_wait().unwrap().is_none(), "it lives as long as they do");
        one.end_sending();
        assert_eq!(one.rest(), b"");
        two.send(Bytes::new(), true).await.unwrap();
        assert_eq!(read(&mut down).await.unwrap().0, "");
        drop(fresh);
        old
    });
    assert!(old.wait().success());
}

#[test]
fn streams_at_the_old_proxy_count_for_the_new_ones_draining() {
    let (close, _closed) = mpsc::unbounded_channel();
    let (old, new) = (echoing("old", &close), echoing("new", &close));
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[old.address]);
    wait(async {
        let client = Http2Client::connect(address).await;
        let (mut open, _) = Open::begin(&client).await;
        let mut elder = std::mem::replace(&mut proxy.process, Process::succeed(proxy.dir.path()));
        assert!(proxy.server.receive_until_end());
        proxy.server = Server::connect(proxy.dir.path());
        proxy.server.generation = 100;
        proxy.server.update(state(&[(old.address, Draining), (new.address, Ready)]));
        proxy.server.in_flight(old.address, 1);
        let fresh = Http2Client::connect(address).await;
        assert_eq!(Open::begin(&fresh).await.1, "new");
        open.says("still here").await;
        open.end().await;
        proxy.server.in_flight(old.address, 0);
        assert!(elder.wait().success());
    });
}

#[test]
fn what_was_sent_before_the_farewell_is_answered() {
    let endpoint = Arc::new(Http2Endpoint::named("a"));
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    wait(async {
        // Clients that ask one thing after the other, on a connection that is made anew when it takes no more.
        let asking: Vec<_> = (0..8)
            .map(|_| {
                spawn(async move {
                    let client = Http2Client::connect(address).await;
                    let mut answered = 0;
                    while let Ok(call) = client.try_begin(request("POST", "/"), true).await {
                        match call.answer().await {
                            Ok(answer) => assert_eq!(answer.text(), "a:0"),
                            // Beyond the last stream of the farewell: not looked at, and the client may ask again.
                            Err(error) if error.is_go_away() => break,
                            Err(error) => panic!("{error:?} after {answered}"),
                        }
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        until("they are at it", || (proxy.stats().requests > 200).then_some(()));
        proxy.process.signal("-TERM");
        for client in asking {
            assert!(client.await.unwrap() > 0);
        }
        assert!(proxy.process.wait().success());
    });
}
