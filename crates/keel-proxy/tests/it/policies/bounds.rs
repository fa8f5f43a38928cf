//! What is refused so that a service is not buried.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keel_model::{AdaptiveConcurrency, TrafficLimits, TrafficPolicy};
use tokio::sync::Semaphore;

use super::{BOTH, get, tally, under};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::background::{spawn, wait};
use crate::http2::client::{Http2Client, request};
use crate::http2::either::{Answer, Caller, Endpoint, Version};
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::until;
use crate::routes::{Site, all, named, nothing};

fn limits(limits: TrafficLimits) -> TrafficPolicy {
    TrafficPolicy { limits, ..TrafficPolicy::default() }
}

/// Answers as often as the semaphore allows; for `go` at once.
fn held(version: Version, permits: &Arc<Semaphore>) -> Endpoint {
    let permits = Arc::clone(permits);
    match version {
        Version::One => Endpoint::One(Backend::new(move |mut connection| {
            while connection.request().is_some() {
                while permits.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_err() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                connection.answer("held");
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(move |exchange| {
            let permits = Arc::clone(&permits);
            async move {
                permits.acquire().await.unwrap().forget();
                exchange.answer("held");
            }
        })),
    }
}

fn is_busy(answer: &Answer, what: &str) {
    let after = answer.field("retry-after").map(|s| s.parse::<u64>().unwrap());
    assert_eq!(answer.status, 503);
    assert!(after.is_some_and(|s| (1..60).contains(&s)), "{after:?}");
    assert!(answer.text().contains(what), "{}", answer.text());
}

#[test]
fn more_requests_than_are_allowed_are_told_to_come_back() {
    let policy = limits(TrafficLimits { max_requests: Some(2), ..TrafficLimits::default() });
    wait(all(async |client, version| {
        let permits = Arc::new(Semaphore::new(0));
        let endpoint = held(version, &permits);
        let mut site = Site::bare(under(&policy, &[&endpoint]));
        let address = site.address;
        let first = Http2Client::connect(address).await;
        let calls = [
            first.begin(request("GET", "/"), true).await,
            first.begin(request("GET", "/"), true).await,
        ];
        until("both are in flight", || (site.proxy.stats().in_flight == 2).then_some(()));
        let mut caller = Caller::connect(client, address).await;
        for _ in 0..3 {
            is_busy(&get(&mut caller).await, "2 requests in flight");
        }
        let grpc = request("POST", "/a/b").header("content-type", "application/grpc");
        let answer = first.begin(grpc, true).await.answer().await.unwrap();
        assert_eq!(answer.headers["grpc-status"], "14");
        permits.add_permits(3);
        for call in calls {
            assert_eq!(call.answer().await.unwrap().text(), "held");
        }
        until("both have ended", || (site.proxy.stats().in_flight == 0).then_some(()));
        assert_eq!(get(&mut caller).await.text(), "held");
        assert_eq!(site.proxy.stats().failed, 4);
    }));
}

#[test]
fn more_that_wait_than_are_allowed_are_told_to_come_back() {
    let policy = limits(TrafficLimits { max_pending: Some(1), ..TrafficLimits::default() });
    wait(async {
        for version in BOTH {
            let mut site = Site::bare(under(&policy, &[]));
            let address = site.address;
            let waiting = spawn(async move {
                let client = Http2Client::connect(address).await;
                client.get("/").await.text().to_owned()
            });
            until("one waits", || (site.proxy.stats().held == 1).then_some(()));
            let mut caller = Caller::connect(version, address).await;
            is_busy(&get(&mut caller).await, "Too many requests are waiting");
            let endpoint = named(Version::One, "in");
            site.proxy.server.update(under(&policy, &[&endpoint]));
            assert_eq!(waiting.await.unwrap(), "in");
            assert_eq!(get(&mut caller).await.text(), "in");
        }
    });
}

#[test]
fn endpoints_get_no_more_connections_than_they_may() {
    let policy = limits(TrafficLimits { max_connections: Some(2), ..TrafficLimits::default() });
    let most = Arc::new(AtomicUsize::new(0));
    let (seen, open) = (Arc::clone(&most), Mutex::new(Vec::new()));
    let endpoint = Endpoint::One(Backend::new(move |mut connection| {
        {
            let mut open = open.lock().unwrap();
            open.retain(|stream| !has_ended(stream));
            open.push(connection.reader.get_ref().try_clone().unwrap());
            seen.fetch_max(open.len(), SeqCst);
        }
        while connection.request().is_some() {
            std::thread::sleep(Duration::from_millis(5));
            connection.answer("in");
        }
    }));
    wait(async {
        let site = Site::bare(under(&policy, &[&endpoint]));
        let address = site.address;
        let all = (0..20).map(|n| {
            spawn(async move {
                match BOTH[n % 2] {
                    // A thread that blocks belongs to nobody else.
                    Version::One => {
                        let get = move || crate::client::get(address, "/").status;
                        tokio::task::spawn_blocking(get).await.unwrap()
                    }
                    Version::Two => {
                        let client = Http2Client::connect(address).await;
                        client.get("/").await.status.as_u16()
                    }
                }
            })
        });
        let statuses = futures_util::future::join_all(all).await;
        let statuses: Vec<_> = statuses.into_iter().map(Result::unwrap).collect();
        assert_eq!(statuses, [200; 20]);
    });
    // An old one is closed before its place is given to a new one.
    assert!((1..=2).contains(&most.load(SeqCst)), "{most:?}");
}

/// Whether the other side has closed the connection.
fn has_ended(stream: &std::net::TcpStream) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut [0u8; 1][..], flags) {
        Ok((read, _)) => read == 0,
        Err(error) => error != rustix::io::Errno::AGAIN,
    }
}

#[test]
fn those_who_wait_for_a_connection_are_served_in_the_order_in_which_they_came() {
    let policy = limits(TrafficLimits { max_connections: Some(1), ..TrafficLimits::default() });
    let (asked, arrived) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let endpoint = Endpoint::One(Backend::new(move |mut connection| {
        while let Some(request) = connection.request() {
            asked.send(request.head.split(' ').nth(1).unwrap().to_owned()).unwrap();
            let () = gate.lock().unwrap().recv().unwrap();
            connection.answer("in");
        }
    }));
    let mut site = Site::bare(under(&policy, &[&endpoint]));
    let arrived = || arrived.recv_timeout(crate::proxy::PATIENCE).unwrap();
    let mut clients = Vec::new();
    let mut send = |path: String| {
        // Each on a connection of its own: they meet both workers.
        let mut client = Client::connect(site.address);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        clients.push(client);
    };
    send("/0".to_owned());
    assert_eq!(arrived(), "/0");
    for n in 1..=12 {
        send(format!("/{n}"));
        until("it waits", || (site.proxy.stats().held == n).then_some(()));
    }
    for n in 1..=12 {
        // As it ends, somebody comes who has not waited.
        send(format!("/{}", n + 12));
        go.send(()).unwrap();
        assert_eq!(arrived(), format!("/{n}"));
    }
    (0..13).for_each(|_| go.send(()).unwrap());
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_connection_that_one_worker_keeps_does_not_starve_the_others() {
    let policy = limits(TrafficLimits { max_connections: Some(1), ..TrafficLimits::default() });
    wait(all(async |client, version| {
        let endpoint = named(version, "in");
        let mut cluster = under(&policy, &[&endpoint]);
        cluster.expected = false;
        let site = Site::bare(cluster);
        // One after the other, and each on a connection of its own: mostly they meet both workers.
        for _ in 0..6 {
            let begun = Instant::now();
            let answer = site.ask(client, "GET", "a.test/", &nothing()).await;
            assert_eq!((answer.status, &*answer.text()), (200, "in"));
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        }
    }));
}

#[test]
fn a_service_is_found_to_be_overloaded_and_left_alone_at_rest() {
    let adaptive = AdaptiveConcurrency { min: 1, max: 10 };
    let policy = TrafficPolicy { adaptive: Some(adaptive), ..TrafficPolicy::default() };
    wait(async {
        let one_at_a_time = Arc::new(Mutex::new(()));
        let endpoint = Endpoint::One(Backend::new(move |mut connection| {
            while connection.request().is_some() {
                let turn = one_at_a_time.lock().unwrap();
                std::thread::sleep(Duration::from_millis(2));
                drop(turn);
                connection.answer("in");
            }
        }));
        let site = Site::bare(under(&policy, &[&endpoint]));
        for version in BOTH {
            let mut caller = Caller::connect(version, site.address).await;
            let counts = tally(&mut caller, "GET", 100).await;
            assert_eq!(super::of(&counts, 200, "in"), 100, "{counts:?}");
        }
        let client = Http2Client::connect(site.address).await;
        let mut refused = 0;
        for _ in 0..10 {
            let all = (0..40).map(|_| client.get("/"));
            for answer in futures_util::future::join_all(all).await {
                match answer.status.as_u16() {
                    200 => {}
                    503 if answer.headers.contains_key("retry-after") => refused += 1,
                    _ => panic!("{answer:?}"),
                }
            }
        }
        assert!((100..400).contains(&refused), "{refused}");
        let mut caller = Caller::connect(Version::One, site.address).await;
        let counts = tally(&mut caller, "GET", 100).await;
        assert_eq!(super::of(&counts, 200, "in"), 100, "{counts:?}");
    });
}
