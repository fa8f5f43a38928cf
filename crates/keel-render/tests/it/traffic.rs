//! What is more than routes: endpoints, policies, protocols, TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use keel_model::{
    ActiveCheck, Balance, ClientAuth, ClientKey, EndpointState, Protocol, ProxyVersion, RouteKind,
    Rule, StickyCookie, UpstreamTls,
};
use keel_render::Engine;
use keel_route::snapshot::{Cluster, Listener, ListenerTls, Snapshot};

use crate::echo::{Answer, Echo, PATIENCE, ask, until, value};
use crate::engine::{Running, installed, own_address};
use crate::make::{TABLE, cluster, endpoint, host, id, prefix, route, routed, with_policy};
use crate::tls::{authority, certificate};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// One listener that leads to a cluster of HTTP endpoints.
fn direct(bind: SocketAddr, protocol: Protocol, cluster: Cluster) -> Snapshot {
    let listener = Listener { bind, protocol, cluster: id("one"), ..Listener::default() };
    Snapshot {
        listeners: vec![listener],
        clusters: BTreeMap::from([(id("one"), cluster)]),
        ..Snapshot::default()
    }
}

fn get(to: SocketAddr, fields: &str) -> Answer {
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n");
    ask(to, HERE, request.as_bytes())
}

/// The names of the endpoints that answer so many requests, with how many each one did.
fn names(to: SocketAddr, fields: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for _ in 0..requests {
        *names.entry(get(to, fields).name().to_owned()).or_default() += 1;
    }
    names
}

/// curl's output, with the status in front.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-s", "-k", "-m", "10", "-w", "%{http_version} %{http_code}\n%{header_json}"])
        .args(arguments)
        .output()
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

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

#[test]
fn upgrades_pass_and_answers_are_not_held_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..read]).to_lowercase();
                if text.contains("upgrade: websocket") {
                    let _ = stream.write_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello");
                    let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                } else {
                    let _ = stream.write_all(b"HTTP/1.1 200 Go\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata\n\r\n");
                    let _ = stream.read(&mut head);
                }
            });
        }
    });
    for engine in installed() {
        let bind = own_address();
        let one = cluster(&[("ws", address)]);
        let _running = Running::start(engine, &direct(bind, Protocol::Http, one));
        let mut socket = TcpStream::connect(bind).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        read_until(&mut socket, "hello");
        socket.write_all(b"ping").unwrap();
        read_until(&mut socket, "ping");
        let mut events = TcpStream::connect(bind).unwrap();
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        events.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        read_until(&mut events, "data");
    }
}

fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

/// Greets everybody by this name, then repeats what it is told.
fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.write_all(format!("I am {name}\n").as_bytes());
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
    address
}

#[test]
fn opaque_connections_and_those_that_are_told_apart() {
    let greeter = greeter("tcp");
    let echo = Echo::new("one");
    for engine in installed() {
        let (opaque, told) = (own_address(), own_address());
        let mut tcp = cluster(&[("tcp", greeter)]);
        tcp.protocol = Protocol::Tcp;
        let mut snapshot = direct(opaque, Protocol::Tcp, tcp);
        let mut auto = cluster(&[("one", echo.address)]);
        auto.protocol = Protocol::Auto;
        snapshot.clusters.insert(id("auto"), auto);
        let listener = snapshot.listeners[0].clone();
        let (protocol, cluster) = (Protocol::Auto, id("auto"));
        snapshot.listeners.push(Listener { bind: told, protocol, cluster, ..listener.clone() });
        let first = own_address();
        snapshot.listeners.push(Listener { bind: first, protocol: Protocol::Auto, ..listener });
        let _running = Running::start(engine, &snapshot);
        for bind in [opaque, first] {
            let mut stream = TcpStream::connect(bind).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            read_until(&mut stream, "I am tcp\n");
            stream.write_all(b"hello\n").unwrap();
            read_until(&mut stream, "hello\n");
        }
        let answer = get(told, "");
        assert_eq!(answer.name(), "one", "{engine:?}");
        if engine == Engine::Haproxy {
            assert!(answer.text().to_lowercase().contains("x-forwarded-for: 127.0.0.1"));
            let answer = curl(&["--http2-prior-knowledge", &format!("http://{told}/")]);
            assert!(answer.contains("2 200"), "{answer}");
        }
    }
}

#[test]
fn proxy_protocol_in_and_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let shower = listener.local_addr().unwrap();
    // Answers with the first line that it gets.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let first = String::from_utf8_lossy(&head[..read]);
            let first = first.lines().next().unwrap_or_default().to_owned();
            let _ = stream.write_all(first.as_bytes());
        }
    });
    let echo = Echo::new("one");
    for engine in installed() {
        let (inwards, outwards) = (own_address(), own_address());
        let mut snapshot = direct(inwards, Protocol::Http, cluster(&[("one", echo.address)]));
        snapshot.listeners[0].accept_proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
        let mut tcp = cluster(&[("show", shower)]);
        tcp.protocol = Protocol::Tcp;
        let tcp = with_policy(tcp, |policy| policy.send_proxy = Some(ProxyVersion::V1));
        snapshot.clusters.insert(id("show"), tcp);
        let listener = Listener { bind: outwards, protocol: Protocol::Tcp, ..Listener::default() };
        snapshot.listeners.push(Listener { cluster: id("show"), ..listener });
        let _running = Running::start(engine, &snapshot);
        let request = "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let answer = ask(inwards, HERE, request.as_bytes());
        let text = answer.text().to_lowercase();
        assert!(text.contains("x-forwarded-for: 203.0.113.9"), "{engine:?}: {text}");
        let mut stream = TcpStream::connect(outwards).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"hi").unwrap();
        read_until(&mut stream, "PROXY TCP4 127.0.0.1 ");
    }
}

/// A listener with TLS for a table.
fn secure(mut snapshot: Snapshot, tls: ListenerTls) -> Snapshot {
    snapshot.listeners[0].tls = Some(tls);
    snapshot
}

#[test]
fn certificates_by_name_and_http2_by_alpn() {
    let echo = Echo::new("one");
    let authority = authority();
    for engine in installed() {
        let bind = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let snapshot = routed(bind, vec![route("all", prefix("/"), "one")], clusters);
        let mut snapshot = secure(snapshot, ListenerTls::default());
        snapshot.certificates.push(certificate(&authority, &["first.example"]));
        snapshot.certificates.push(certificate(&authority, &["a.example", "*.b.example"]));
        let running = Running::start(engine, &snapshot);
        let ca = running.directory.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let port = bind.port();
        for (name, good) in [
            ("a.example", true),
            ("x.b.example", true),
            ("first.example", true),
            ("c.example", false),
        ] {
            let output = Command::new("curl")
                .args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
                .arg("--cacert")
                .arg(&ca)
                .args(["--resolve", &format!("{name}:{port}:{}", bind.ip())])
                .arg(format!("https://{name}:{port}/"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said == "2 200", good, "{engine:?}, {name}: {said}");
        }
    }
}

#[test]
fn certificates_of_clients_and_the_oldest_version() {
    let echo = Echo::new("one");
    let authority = authority();
    let client = certificate(&authority, &["client"]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, cert, key) = (
        file("ca.pem", &authority.pem()),
        file("cert.pem", &client.chain),
        file("key.pem", &client.key),
    );
    for engine in installed() {
        let bind = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let snapshot = routed(bind, vec![route("all", prefix("/"), "one")], clusters);
        let tls = ListenerTls {
            min: keel_model::TlsVersion::V1_3,
            client_auth: Some(ClientAuth { ca: ca.clone().into(), optional: false }),
        };
        let mut snapshot = secure(snapshot, tls);
        snapshot.certificates.push(certificate(&authority, &["a.example"]));
        let _running = Running::start(engine, &snapshot);
        let url = format!("https://{bind}/");
        assert!(curl(&["--cert", &cert, "--key", &key, &url]).contains("2 200"), "{engine:?}");
        assert!(!curl(&[&url]).contains(" 200"), "{engine:?}: without a certificate");
        let old = curl(&["--cert", &cert, "--key", &key, "--tls-max", "1.2", &url]);
        assert!(!old.contains(" 200"), "{engine:?}: {old}");
    }
}

#[test]
fn tls_towards_services() {
    let echo = Echo::new("one");
    let (good, bad) = (authority(), authority());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = certificate(&good, &["proxy"]);
    let (ca, other) = (file("good.pem", &good.pem()), file("bad.pem", &bad.pem()));
    let (cert, key) = (file("cert.pem", &identity.chain), file("key.pem", &identity.key));
    for engine in installed() {
        // The service is an engine as well: it ends TLS, and wants to see a certificate.
        let inner = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let behind = routed(inner, vec![route("all", prefix("/"), "one")], clusters);
        let auth = ClientAuth { ca: ca.clone(), optional: false };
        let tls = ListenerTls { client_auth: Some(auth), ..ListenerTls::default() };
        let mut behind = secure(behind, tls);
        behind.certificates.push(certificate(&good, &["service.example"]));
        let _behind = Running::start(engine, &behind);
        for (trusted, name, status) in [
            (&ca, "service.example", 200),
            (&other, "service.example", 502),
            (&ca, "wrong.example", 502),
        ] {
            let bind = own_address();
            let tls = UpstreamTls {
                server_name: Some(name.to_owned()),
                ca: Some(trusted.clone()),
                identity: Some((cert.clone(), key.clone())),
                insecure: false,
            };
            let one = with_policy(cluster(&[("one", inner)]), |policy| policy.tls = Some(tls));
            let _running = Running::start(engine, &direct(bind, Protocol::Http, one));
            // nginx wants the host of a request to be that of the handshake where it asks for certificates.
            let request = b"GET / HTTP/1.1\r\nHost: service.example\r\nConnection: close\r\n\r\n";
            let found = ask(bind, HERE, request).status;
            let refused = status == 502 && (found == 502 || found == 503);
            assert!(found == status || refused, "{engine:?}, {name}: {found}");
        }
    }
}

#[test]
fn connections_by_server_name_beside_requests() {
    let echo = Echo::new("web");
    let (passed, ended) = (own_address(), greeter("ended"));
    let authority = authority();
    for engine in installed() {
        // What is passed through ends its TLS itself, with a certificate of its own.
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let inner = routed(passed, vec![route("inner", prefix("/"), "one")], clusters);
        let mut inner = secure(inner, ListenerTls::default());
        inner.certificates.push(certificate(&authority, &["pass.example"]));
        let _inner = Running::start(engine, &inner);

        let bind = own_address();
        let mut clusters = crate::cases::clusters(&[("one", echo.address)]);
        for (name, address) in [("pass", passed), ("tcp", ended)] {
            let mut one = cluster(&[(name, address)]);
            one.protocol = Protocol::Tcp;
            clusters.insert(id(name), one);
        }
        let mut pass = route("pass", Rule::Sni("pass.example".to_owned()), "pass");
        pass.kind = RouteKind::Passthrough;
        let mut tcp = route("tcp", Rule::Sni("*.tcp.example".to_owned()), "tcp");
        tcp.kind = RouteKind::Tcp;
        let routes = vec![pass, tcp, route("web", host("web.example"), "one")];
        let mut snapshot = secure(routed(bind, routes, clusters), ListenerTls::default());
        snapshot.certificates.push(certificate(&authority, &["web.example", "*.tcp.example"]));
        let running = Running::start(engine, &snapshot);
        let ca = running.directory.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let ca = ca.to_str().unwrap();
        let port = bind.port();
        let ip = bind.ip();
        for name in ["web.example", "pass.example"] {
            let resolve = format!("{name}:{port}:{ip}");
            let url = format!("https://{name}:{port}/");
            let output = Command::new("curl")
                .args(["-s", "-m", "10", "--cacert", ca, "--resolve", &resolve, &url])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
            assert!(text.starts_with("web\n"), "{engine:?}, {name}: {text}\n{}", running.config());
            if name == "web.example" {
                assert!(text.contains("x-forwarded-for: 127.0.0.1"), "{engine:?}: {text}");
            }
        }
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", ca])
            .args(["-servername", "x.tcp.example", "-verify_hostname", "x.tcp.example"])
            .args(["-connect", &bind.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = [0; 11];
        let read = client.stdout.take().unwrap().read_exact(&mut said);
        let _ = client.kill();
        client.wait().unwrap();
        assert!(read.is_ok() && said == *b"I am ended\n", "{engine:?}: {}", running.config());
    }
}

#[test]
fn http2_without_tls_where_it_is_declared() {
    let echo = Echo::new("one");
    for engine in installed() {
        // The service is an engine as well: what comes in as HTTP/2 goes on as HTTP/1.1.
        let inner = own_address();
        let _inner = Running::start(
            engine,
            &direct(inner, Protocol::Http2, cluster(&[("one", echo.address)])),
        );
        let bind = own_address();
        let mut one = cluster(&[("one", inner)]);
        one.protocol = Protocol::Http2;
        let _running = Running::start(engine, &direct(bind, Protocol::Http2, one));
        let answer = curl(&["--http2-prior-knowledge", &format!("http://{bind}/a%20b?c=d")]);
        assert!(answer.contains("2 200"), "{engine:?}: {answer}");
        assert!(answer.contains("GET /a%20b?c=d HTTP/1.1"), "{engine:?}: {answer}");
    }
}
