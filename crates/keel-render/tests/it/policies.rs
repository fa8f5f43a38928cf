//! Endpoints and policies on the real engines.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use keel_model::{ActiveCheck, Balance, ClientKey, EndpointState, Protocol, StickyCookie};
use keel_render::Engine;
use keel_route::snapshot::Listener;

use crate::echo::{Echo, ask, until, value};
use crate::engine::{Running, installed, own_address};
use crate::make::{TABLE, cluster, endpoint, host, id, prefix, route, routed, with_policy};
use crate::traffic::{HERE, direct, get, names};

#[test]
fn shares_of_a_split() {
    let (one, two, three) = (Echo::new("one"), Echo::new("two"), Echo::new("three"));
    for engine in installed() {
        let bind = own_address();
        let mut split = route("split", prefix("/"), "one");
        split.clusters = vec![(id("one"), 3), (id("two"), 1), (id("three"), 0)];
        let clusters = crate::cases::clusters(&[
            ("one", one.address),
            ("two", two.address),
            ("three", three.address),
        ]);
        let _running = Running::start(engine, &routed(bind, vec![split], clusters));
        let names = names(bind, "", 400);
        // 300 and 100 are to be expected; six times the deviation is left as room.
        let count = |name: &str| names.get(name).copied().unwrap_or(0);
        assert_eq!(
            (count("one") + count("two"), count("three")),
            (400, 0),
            "{engine:?}: {names:?}"
        );
        assert!((250..=350).contains(&count("one")), "{engine:?}: {names:?}");
    }
}

#[test]
fn draining_endpoints_get_nothing_and_without_any_ready_one_there_is_503() {
    let (old, new) = (Echo::new("old"), Echo::new("new"));
    for engine in installed() {
        let (some, none) = (own_address(), own_address());
        let mut mixed = cluster(&[("new", new.address)]);
        mixed.endpoints.push(endpoint("old", old.address, EndpointState::Draining));
        let mut snapshot = direct(some, Protocol::Http, mixed.clone());
        mixed.endpoints.remove(0);
        snapshot.clusters.insert(id("gone"), mixed);
        let listener = snapshot.listeners[0].clone();
        snapshot.listeners.push(Listener { bind: none, cluster: id("gone"), ..listener });
        let _running = Running::start(engine, &snapshot);
        assert_eq!(names(some, "", 30), BTreeMap::from([("new".to_owned(), 30)]), "{engine:?}");
        assert_eq!(get(none, "").status, 503, "{engine:?}");
    }
}

#[test]
fn dead_endpoints_cost_no_request() {
    let alive = Echo::new("alive");
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for engine in installed() {
        let bind = own_address();
        let both = cluster(&[("alive", alive.address), ("dead", dead)]);
        let _running = Running::start(engine, &direct(bind, Protocol::Http, both));
        assert_eq!(names(bind, "", 40), BTreeMap::from([("alive".to_owned(), 40)]), "{engine:?}");
        let post =
            b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        for _ in 0..10 {
            assert_eq!(ask(bind, HERE, post).name(), "alive", "{engine:?}");
        }
    }
}

#[test]
fn retries_on_a_status_are_for_what_may_be_repeated() {
    let echo = Echo::new("one");
    for engine in installed() {
        let bind = own_address();
        let both = cluster(&[("a", echo.address), ("b", echo.address)]);
        let both = with_policy(both, |policy| policy.retry.on_status = vec![503]);
        let _running = Running::start(engine, &direct(bind, Protocol::Http, both));
        let before = echo.requests.load(std::sync::atomic::Ordering::SeqCst);
        assert!(get(bind, "X-Want-Status: 503\r\n").status >= 500);
        let tries = echo.requests.load(std::sync::atomic::Ordering::SeqCst) - before;
        assert!(tries > 1, "{engine:?}: {tries}");
        let post = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Want-Status: 503\r\nContent-Length: 2\r\n\r\nhi";
        ask(bind, HERE, post);
        let posts = echo.requests.load(std::sync::atomic::Ordering::SeqCst) - before - tries;
        assert_eq!(posts, 1, "{engine:?}");
    }
}

#[test]
fn a_client_with_a_cookie_stays() {
    let echoes = [Echo::new("a"), Echo::new("b"), Echo::new("c")];
    for engine in installed() {
        let bind = own_address();
        let all = cluster(&[
            ("a", echoes[0].address),
            ("b", echoes[1].address),
            ("c", echoes[2].address),
        ]);
        let sticky = StickyCookie {
            name: "KEEL".to_owned(),
            ttl: Some(Duration::from_secs(60)),
            secure: false,
            same_site: Some("lax".to_owned()),
        };
        let all = with_policy(all, |policy| policy.sticky = Some(sticky));
        let _running = Running::start(engine, &direct(bind, Protocol::Http, all));
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let first = get(bind, "");
            let cookie =
                value(&first.head, "set-cookie").unwrap_or_else(|| panic!("{}", first.head));
            assert!(cookie.contains("Max-Age=60") && cookie.contains("SameSite=Lax"), "{cookie}");
            let field = format!("Cookie: x=y; {}\r\n", cookie.split(';').next().unwrap());
            let again = names(bind, &field, 5);
            assert_eq!(again.len(), 1, "{engine:?}: {again:?}");
            seen.extend(again.into_keys());
            assert_eq!(value(&get(bind, &field).head, "set-cookie"), None);
        }
        assert!(seen.len() > 1, "{engine:?}: {seen:?}");
    }
}

#[test]
fn one_key_leads_to_one_endpoint() {
    let echoes = [Echo::new("a"), Echo::new("b"), Echo::new("c")];
    for engine in installed() {
        let bind = own_address();
        let all = cluster(&[
            ("a", echoes[0].address),
            ("b", echoes[1].address),
            ("c", echoes[2].address),
        ]);
        let balance = Balance::RingHash(ClientKey::Header("X-Key".to_owned()));
        let all = with_policy(all, |policy| policy.balance = balance);
        let _running = Running::start(engine, &direct(bind, Protocol::Http, all));
        let mut seen = BTreeSet::new();
        for key in 0..20 {
            let names = names(bind, &format!("X-Key: k{key}\r\n"), 4);
            assert_eq!(names.len(), 1, "{engine:?}: {names:?}");
            seen.extend(names.into_keys());
        }
        assert!(seen.len() > 1, "{engine:?}");
    }
}

#[test]
fn an_endpoint_that_fails_its_check_is_left_out() {
    let (ill, well) = (Echo::new("ill"), Echo::new("well"));
    if !installed().contains(&Engine::Haproxy) {
        return;
    }
    // The check asks for `/`, and what stands on the way turns the answers of one endpoint bad.
    let broken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = broken.local_addr().unwrap();
    let behind = ill.address;
    thread::spawn(move || {
        for stream in broken.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let Ok(read) = stream.read(&mut head) else { continue };
            let answer = match head[..read].starts_with(b"GET /health") {
                true => {
                    b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                }
                false => ask(behind, HERE, &head[..read]).head.into_bytes(),
            };
            let _ = stream.write_all(&answer);
        }
    });
    let bind = own_address();
    let both = cluster(&[("ill", address), ("well", well.address)]);
    let check = ActiveCheck {
        path: "/health".to_owned(),
        interval: Duration::from_millis(50),
        timeout: Duration::from_secs(1),
        failures: 1,
        successes: 2,
    };
    let both = with_policy(both, |policy| policy.check = Some(check));
    let _running = Running::start(Engine::Haproxy, &direct(bind, Protocol::Http, both));
    until("the ill one is left out", || {
        let names = names(bind, "", 10);
        (names == BTreeMap::from([("well".to_owned(), 10)])).then_some(())
    });
}

#[test]
fn bounds_on_requests_and_time() {
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = slow.local_addr().unwrap();
    // Takes everything and never answers.
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in slow.incoming() {
            open.push(stream);
        }
    });
    for engine in installed() {
        let (bounded, timed) = (own_address(), own_address());
        let one = with_policy(cluster(&[("slow", address)]), |p| p.limits.max_requests = Some(1));
        let mut snapshot = direct(bounded, Protocol::Http, one);
        let quick = with_policy(cluster(&[("slow", address)]), |policy| {
            policy.timeouts.response = Duration::from_millis(100);
            policy.retry.attempts = 0;
        });
        let mut by_route = route("quick", prefix("/"), "quick");
        by_route.timeout_ms = Some(100);
        snapshot.clusters.insert(id("timed"), quick);
        snapshot.clusters.insert(id("quick"), cluster(&[("slow", address)]));
        let listener = snapshot.listeners[0].clone();
        snapshot.listeners.push(Listener { bind: timed, cluster: id("timed"), ..listener });
        let routes = own_address();
        let table = routed(routes, vec![by_route], BTreeMap::new());
        snapshot.listeners.extend(table.listeners);
        snapshot.tables = table.tables;
        let _running = Running::start(engine, &snapshot);
        let waiting = TcpStream::connect(bounded).unwrap();
        (&waiting).write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        until("one more is refused", || (get(bounded, "").status == 503).then_some(()));
        assert_eq!(get(timed, "").status, 504, "{engine:?}");
        assert_eq!(get(routes, "").status, 504, "{engine:?}");
    }
}

#[test]
fn what_no_route_wants() {
    let echo = Echo::new("one");
    for engine in installed() {
        let (moved, other) = (own_address(), own_address());
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let mut snapshot = routed(moved, vec![route("a", host("a"), "one")], clusters);
        snapshot.tables.get_mut(TABLE).unwrap().redirect_https = Some(8443);
        snapshot.challenges.http.insert("tok-en_1".to_owned(), "tok-en_1.key".to_owned());
        snapshot.challenges.http.insert("a\"; }".to_owned(), "x".to_owned());
        snapshot.tables.insert("else".to_owned(), Default::default());
        let listener = Listener { table: Some("else".to_owned()), ..Listener::default() };
        snapshot.listeners.push(Listener { bind: other, cluster: id("one"), ..listener });
        let _running = Running::start(engine, &snapshot);
        let answer =
            ask(moved, HERE, b"GET /x?y HTTP/1.1\r\nHost: B:80\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.status, 308);
        assert_eq!(value(&answer.head, "location"), Some("https://b:8443/x?y"), "{engine:?}");
        let proof = b"GET /.well-known/acme-challenge/tok-en_1 HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n";
        assert_eq!(ask(moved, HERE, proof).text(), "tok-en_1.key", "{engine:?}");
        assert_eq!(get(other, "").name(), "one", "{engine:?}");
    }
}
