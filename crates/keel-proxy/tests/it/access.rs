//! The access log, as whoever reads the file sees it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use keel_model::{EndpointState, Protocol};
use keel_route::access_log::{AccessLog, LogFormat, LogScope};
use keel_route::snapshot::{Listener, Snapshot};
use serde_json::Value;

use crate::backend::{Backend, nobody};
use crate::client::{Client, get};
use crate::proxy::{CART, Proxy, cluster, instance, listener, until};

struct Logged {
    proxy: Proxy,
    path: PathBuf,
    at: SocketAddr,
    endpoints: Vec<SocketAddr>,
}

impl Logged {
    fn new(endpoints: &[SocketAddr], log: AccessLog) -> Self {
        let mut proxy = Proxy::start();
        let path = proxy.dir.path().join("access.log");
        let at = proxy.address();
        let log = AccessLog { path: path.clone(), ..log };
        let endpoints = endpoints.to_vec();
        assert_eq!(proxy.server.apply(snapshot(at, &endpoints, Some(log))), []);
        Self { proxy, path, at, endpoints }
    }

    /// Turns the log off, or on in another way.
    fn turn(&mut self, log: Option<AccessLog>) {
        let log = log.map(|log| AccessLog { path: self.path.clone(), ..log });
        let snapshot = snapshot(self.at, &self.endpoints, log);
        assert_eq!(self.proxy.server.apply(snapshot), []);
    }

    /// The lines, once there are so many.
    fn lines(&self, count: usize) -> Vec<String> {
        until("the lines of the log", || {
            let lines = lines(&self.path);
            assert!(lines.len() <= count, "{lines:?}");
            (lines.len() == count).then_some(lines)
        })
    }

    fn values(&self, count: usize) -> Vec<Value> {
        self.lines(count).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn snapshot(at: SocketAddr, endpoints: &[SocketAddr], access_log: Option<AccessLog>) -> Snapshot {
    let ready: Vec<_> = endpoints.iter().map(|e| (*e, EndpointState::Ready)).collect();
    Snapshot {
        listeners: vec![listener(at, Protocol::Auto)],
        clusters: BTreeMap::from([(CART.to_owned(), cluster(&ready, false))]),
        access_log,
        ..Snapshot::default()
    }
}

fn json() -> AccessLog {
    AccessLog::default()
}

#[test]
fn a_line_says_what_was_asked_and_who_answered() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            connection.answer(&request.head);
        }
    });
    let logged = Logged::new(&[backend.address], json());
    let mut client = Client::connect(logged.at);
    client.send(
        "POST /pay?card=4111 HTTP/1.1\r\nHost: cart\r\nUser-Agent: me\r\nReferer: http://x/y?z=1\r\n\
         X-Request-Id: r-1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
         Content-Length: 5\r\n\r\nhello",
    );
    client.answer();
    let second = client.get("/2");
    let [first, other] = &logged.values(2)[..] else { panic!() };
    for (name, wanted) in [
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "cart"),
        ("path", "/pay"),
        ("protocol", "HTTP/1.1"),
        ("cluster", CART),
        ("instance", instance(backend.address).as_str()),
        ("user_agent", "me"),
        ("referer", "http://x/y"),
        ("request_id", "r-1"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
    ] {
        assert_eq!(first[name], wanted, "{name}: {first}");
    }
    assert_eq!((&first["status"], &first["bytes_in"]), (&200.into(), &5.into()));
    let (duration, upstream) = (first["duration_us"].as_u64(), first["upstream_us"].as_u64());
    assert!(duration >= upstream && upstream.is_some(), "{first}");
    // What the service was told is what the log says.
    let told =
        |name: &str| second.body.split(name).nth(1).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(other["request_id"], told("X-Request-Id: "));
    assert_eq!(other["trace_id"], told("traceparent: 00-")[..32]);
    assert_eq!(other["bytes_out"], second.body.len());
    assert_eq!(other.get("referer"), None);
}

#[test]
fn apaches_format_and_no_way_out_of_a_field() {
    let logged = Logged::new(
        &[Backend::named("a").address],
        AccessLog { format: LogFormat::Combined, query: true, ..json() },
    );
    let mut client = Client::connect(logged.at);
    client.send("GET /a?b=c HTTP/1.1\r\nHost: x\r\nUser-Agent: \"\tme\\ é\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    let line = logged.lines(1).remove(0);
    let (start, end) = line.split_once(" +0000] ").unwrap();
    assert!(start.starts_with("127.0.0.1 - - ["), "{line}");
    assert_eq!(end, r#""GET /a?b=c HTTP/1.1" 200 3 "-" "\"\x09me\\ \xc3\xa9""#);
}

#[test]
fn the_log_is_turned_on_and_off_while_requests_come() {
    let backend = Backend::named("a");
    let mut logged = Logged::new(&[backend.address], json());
    let mut client = Client::connect(logged.at);
    client.get("/1");
    logged.values(1);
    logged.turn(None);
    client.get("/2");
    logged.turn(Some(AccessLog { format: LogFormat::Combined, ..json() }));
    client.get("/3");
    let lines = logged.lines(2);
    assert!(lines[0].contains("\"/1\"") && lines[1].contains("GET /3 HTTP/1.1"), "{lines:?}");
    let stats = logged.proxy.all_stats().proxy;
    assert_eq!((stats.log_lines, stats.log_dropped), (2, 0));
    assert_eq!(stats.connections, 1);
}

#[test]
fn of_a_sample_failures_and_slow_requests_are_never_left_out() {
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            if request.head.contains("/fail") {
                connection.send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            if request.head.contains("/slow") {
                std::thread::sleep(std::time::Duration::from_millis(60));
            }
            connection.answer("");
        }
    });
    let log = AccessLog { sample_per_mille: 0, slow_ms: 50, ..json() };
    let logged = Logged::new(&[backend.address], log);
    let mut client = Client::connect(logged.at);
    for path in ["/fine", "/fail", "/fine", "/slow", "/fine", "/fail"] {
        client.get(path);
    }
    let paths: Vec<_> = logged.values(3).iter().map(|line| line["path"].clone()).collect();
    assert_eq!(paths, ["/fail", "/slow", "/fail"]);
}

#[test]
fn the_proxys_own_answers_have_a_reason() {
    let logged = Logged::new(&[], json());
    assert_eq!(get(logged.at, "/x").status, 503);
    let mut client = Client::connect(logged.at);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    let lines = logged.values(2);
    let of = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    assert_eq!((&of(503)["reason"], &of(503)["path"]), (&"no_endpoint".into(), &"/x".into()));
    assert_eq!((&of(400)["reason"], of(400).get("path")), (&"malformed".into(), None));
    assert_ne!(of(400)["bytes_out"], 0);
}

#[test]
fn an_instance_that_breaks_and_the_one_that_answers_instead() {
    let broken = Backend::new(|mut connection| {
        connection.request();
    });
    let logged = Logged::new(&[broken.address], json());
    let mut client = Client::connect(logged.at);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().status, 502);
    let line = logged.values(1).remove(0);
    assert_eq!(line["reason"], "broken");
    assert_eq!(line["instance"], instance(broken.address).as_str());
    let good = Backend::named("good");
    let logged = Logged::new(&[nobody(), good.address], json());
    for _ in 0..8 {
        get(logged.at, "/");
    }
    let lines = logged.values(8);
    assert!(lines.iter().all(|line| line["instance"] == instance(good.address).as_str()));
    assert!(lines.iter().any(|line| line["retries"] == 1), "{lines:?}");
}

#[test]
fn tunnels_are_logged_at_their_end() {
    let backend = Backend::new(|mut connection| {
        let mut first = String::new();
        connection.reader.read_line(&mut first).unwrap();
        if first.starts_with("GET") {
            connection.head();
            connection.send("HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
            connection.reader.read_line(&mut first).unwrap();
        }
        connection.send("hello\n");
        let mut rest = String::new();
        while connection.reader.read_line(&mut rest).unwrap_or(0) > 0 {}
    });
    let mut logged = Logged::new(&[backend.address], json());
    let mut client = Client::connect(logged.at);
    client
        .send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.send("hi there\n");
    assert_eq!(client.line(), "hello\n");
    assert_eq!(lines(&logged.path).len(), 0, "it has not ended");
    drop(client);
    let line = logged.values(1).remove(0);
    assert_eq!((&line["status"], &line["path"]), (&101.into(), &"/chat".into()));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&9.into(), &6.into()));

    let mut client = Client::connect(logged.at);
    client.send("\x01opaque\n");
    assert_eq!(client.line(), "hello\n");
    drop(client);
    let line = logged.values(2).remove(1);
    assert_eq!((&line["protocol"], &line["status"]), (&"TCP".into(), &0.into()));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&8.into(), &6.into()));
    let edges = logged.proxy.all_stats().edges;
    assert_eq!(edges[0].statuses, [(0, 1), (101, 1)].into());
    assert_eq!((edges[0].bytes_in, edges[0].bytes_out), (17, 12));
}

#[test]
fn bodies_are_counted_however_they_travel() {
    let large = 600_000;
    let backend = Backend::new(move |mut connection| {
        while let Some(request) = connection.request() {
            match request.head.split(' ').nth(1).unwrap() {
                "/length" => connection.answer(&"x".repeat(large)),
                _ => connection.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                ),
            }
        }
    });
    let logged = Logged::new(&[backend.address], json());
    let mut client = Client::connect(logged.at);
    let body = "y".repeat(large);
    client
        .send(format!("PUT /length HTTP/1.1\r\nHost: a\r\nContent-Length: {large}\r\n\r\n{body}"));
    assert_eq!(client.answer().body.len(), large);
    client.send(
        "PUT /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);
    let lines = logged.values(2);
    assert_eq!((&lines[0]["bytes_in"], &lines[0]["bytes_out"]), (&large.into(), &large.into()));
    // As they lie on the wire, chunks and all.
    assert_eq!((&lines[1]["bytes_in"], &lines[1]["bytes_out"]), (&11.into(), &13.into()));
}

#[test]
fn only_published_ports_if_that_is_wanted() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let path = proxy.dir.path().join("access.log");
    let (inside, outside) = (proxy.address(), proxy.address());
    let log = AccessLog { path: path.clone(), scope: LogScope::Published, ..json() };
    let mut snapshot = snapshot(inside, &[backend.address], Some(log));
    snapshot.listeners.push(Listener { published: true, ..listener(outside, Protocol::Auto) });
    assert_eq!(proxy.server.apply(snapshot), []);
    get(inside, "/inside");
    get(outside, "/outside");
    proxy.process.signal("-TERM");
    proxy.process.wait();
    let lines = lines(&path);
    assert!(lines.len() == 1 && lines[0].contains("/outside"), "{lines:?}");
}

#[test]
fn the_last_lines_are_written_before_the_end() {
    let backend = Backend::named("a");
    let mut logged = Logged::new(&[backend.address], json());
    for _ in 0..20 {
        get(logged.at, "/");
    }
    logged.proxy.process.signal("-TERM");
    logged.proxy.process.wait();
    assert_eq!(lines(&logged.path).len(), 20);
}

#[test]
fn the_log_goes_on_after_it_was_rotated_by_others() {
    let backend = Backend::named("a");
    let logged = Logged::new(&[backend.address], json());
    let mut client = Client::connect(logged.at);
    client.get("/before");
    logged.lines(1);
    let aside = logged.path.with_extension("old");
    fs::rename(&logged.path, &aside).unwrap();
    // Lines go to the old file until the new one is looked for; none is lost.
    let mut sent = 1;
    until("a new file", || {
        client.get("/after");
        sent += 1;
        logged.path.exists().then_some(())
    });
    until("every line", || (lines(&logged.path).len() + lines(&aside).len() == sent).then_some(()));
}

/// A small file system, taken away when dropped.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    /// `None` without the right to mount.
    pub fn new(path: PathBuf) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&path)
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(path))
    }

    /// Fills it up to the last page with a file.
    pub fn fill(&self) -> Ballast {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        Ballast(path)
    }
}

/// What fills a disk.
pub struct Ballast(PathBuf);

impl Ballast {
    pub fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let Some(disk) = SmallDisk::new(proxy.dir.path().join("disk")) else { return };
    let path = disk.0.join("access.log");
    let ballast = disk.fill();
    let at = proxy.address();
    let log = AccessLog { path: path.clone(), ..json() };
    assert_eq!(proxy.server.apply(snapshot(at, &[backend.address], Some(log))), []);
    let mut client = Client::connect(at);
    let mut sent = 0;
    let dropped = until("dropped lines", || {
        for _ in 0..50 {
            assert_eq!(client.get("/").status, 200);
        }
        sent += 50;
        Some(proxy.all_stats().proxy.log_dropped).filter(|dropped| *dropped > 0)
    });
    assert!(dropped <= sent);
    ballast.remove();
    until("lines again", || {
        assert_eq!(client.get("/again").status, 200);
        sent += 1;
        (!lines(&path).is_empty()).then_some(())
    });
    let stats = until("every line", || {
        let stats = proxy.all_stats().proxy;
        (stats.log_lines + stats.log_dropped == sent).then_some(stats)
    });
    let written = lines(&path);
    assert_eq!(written.len() as u64, stats.log_lines);
    assert!(written.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "cut lines");
}

/// A service of gRPC whose calls end as their path says, and a client of it.
#[test]
fn calls_of_grpc_end_with_their_own_status() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let status = request.uri().path()[1..].parse::<http::HeaderValue>().unwrap();
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"data"), false).unwrap();
                let trailers = [("grpc-status".parse().unwrap(), status)].into_iter().collect();
                body.send_trailers(trailers).unwrap();
            }
        });
        let mut logged = Logged::new(&[service], AccessLog { sample_per_mille: 0, ..json() });
        let stream = tokio::net::TcpStream::connect(logged.at).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        for status in ["0", "5", "14"] {
            let request = http::Request::post(format!("http://cart/{status}"))
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let (answer, _) = client.send_request(request, true).unwrap();
            let mut body = answer.await.unwrap().into_body();
            while body.data().await.is_some() {}
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], status);
        }
        // Neither OK nor NOT_FOUND is a failure of the service.
        let line = logged.values(1).remove(0);
        assert_eq!((&line["status"], &line["grpc_status"]), (&200.into(), &14.into()));
        assert_eq!((&line["protocol"], &line["bytes_out"]), (&"HTTP/2.0".into(), &4.into()));
        let edge = &logged.proxy.all_stats().edges[0];
        assert_eq!(edge.grpc_statuses, [(0, 1), (5, 1), (14, 1)].into());
        assert_eq!((edge.requests(), edge.errors()), (3, 1));
    });
}
