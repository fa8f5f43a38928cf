//! Clients that everybody uses, through the proxy: curl, h2load, nghttp, the library of gRPC, one of WebSocket.
//!
//! `scripts/setup.sh` installs them; where one is missing its test says so and is skipped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol, TrafficPolicy};
use keel_route::snapshot::{Cluster, Listener};

use crate::http2::either::{Answer, Content, Endpoint, Message, Version};
use crate::proxy::{CART, Proxy, cluster, listener, until};

/// A script takes at most this long.
const SCRIPT: Duration = Duration::from_secs(60);

/// Whether `program` can be started.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed (scripts/setup.sh installs it)");
    }
    found
}

/// An interpreter that knows `module`: the first of the path, or that of the system, which the packages are for.
fn python(module: &str) -> Option<&'static str> {
    let knows = |python: &&str| {
        let import = format!("import {module}");
        let status = Command::new(python).args(["-c", &import]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(knows);
    if found.is_none() {
        eprintln!("skipped: no Python with {module} is installed (scripts/setup.sh installs it)");
    }
    found
}

/// Runs `command` to its end, which must be a success.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

/// Runs a script that serves as well as calls: it tells the port of its service and is told `addresses`.
fn talk(python: &str, script: &str, addresses: impl FnOnce(SocketAddr) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/official").join(script);
    let mut child = Command::new(python)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = thread::spawn(move || {
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said);
        said
    });
    let mut port = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
    if let Ok(port) = port.trim().parse::<u16>() {
        let line = addresses(([127, 0, 0, 1], port).into());
        // One that ended says why below.
        let _ = child.stdin.take().unwrap().write_all(format!("{line}\n").as_bytes());
    }
    let status = ended(child);
    assert!(status.is_some_and(|status| status.success()), "{script}: {}", said.join().unwrap());
}

/// Waits for the end of a script, or kills it.
fn ended(mut child: Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + SCRIPT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// Answers with what it got, and the method and length of it.
fn mirror(version: Version) -> Endpoint {
    Endpoint::new(version, |got| {
        let content = got.message.content.bytes();
        let about = format!("{} {} {}", got.method, got.target, content.len());
        let message = Message::new(Content::Known(content)).with("x-about", &about);
        Answer { status: 200, message }
    })
}

#[test]
fn curl_is_served_in_every_version() {
    if !installed("curl") {
        return;
    }
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (mut proxy, address) = endpoint.behind();
        let body = proxy.dir.path().join("body");
        let large: String = (0..200_000).map(|n| format!("{n}\n")).collect();
        std::fs::write(&body, &large).unwrap();
        let out = proxy.dir.path().join("out");
        let curl = |way: &str, arguments: &[&str]| {
            let write = "%{http_version} %{http_code} %header{x-about}";
            let mut command = Command::new("curl");
            command.args(["-sS", "--max-time", "30", way, "-w", write]).args(arguments);
            let told = run(command.arg("-o").arg(&out).arg(format!("http://{address}/a?b=c")));
            (told, std::fs::read_to_string(&out).unwrap_or_default())
        };
        let file = format!("@{}", body.display());
        let put = body.display().to_string();
        let length = large.len();
        // The upgrade is asked for, and given where the request has no body.
        for (way, plain, with_body) in [
            ("--http1.1", "1.1", "1.1"),
            ("--http2", "2", "1.1"),
            ("--http2-prior-knowledge", "2", "2"),
        ] {
            let (told, got) = curl(way, &[]);
            assert_eq!((told, got), (format!("{plain} 200 GET /a?b=c 0"), String::new()));
            let (told, got) = curl(way, &["--data-binary", &file]);
            assert_eq!(told, format!("{with_body} 200 POST /a?b=c {length}"), "{way} {version:?}");
            assert_eq!(got, large);
            // Waits for permission.
            let (told, got) = curl(way, &["-T", &put, "-H", "Expect: 100-continue"]);
            assert_eq!(told, format!("{with_body} 200 PUT /a?b=c {length}"), "{way} {version:?}");
            assert_eq!(got, large);
            let (told, _) = curl(way, &["-T", &put, "-H", "Transfer-Encoding: chunked"]);
            assert_eq!(told, format!("{with_body} 200 PUT /a?b=c {length}"), "{way} {version:?}");
            let (told, _) = curl(way, &["--head"]);
            assert_eq!(told, format!("{plain} 200 HEAD /a?b=c 0"), "{way} {version:?}");
        }
        assert_eq!(proxy.stats().failed, 0);
    }
}

#[test]
fn h2load_loses_no_request() {
    if !installed("h2load") {
        return;
    }
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (mut proxy, address) = endpoint.behind();
        let body = proxy.dir.path().join("body");
        std::fs::write(&body, "x".repeat(3000)).unwrap();
        let uri = format!("http://{address}/");
        let data = format!("--data={}", body.display());
        for arguments in [&["-m32"][..], &["-m8", &data], &["--h1"]] {
            let mut command = Command::new("h2load");
            command.args(["-n2000", "-c10", "-t2"]).args(arguments).arg(&uri);
            let told = run(&mut command);
            let all = "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored";
            assert!(told.contains(all), "{arguments:?} {version:?}: {told}");
            assert!(told.contains("status codes: 2000 2xx"), "{arguments:?} {version:?}: {told}");
        }
        let stats = proxy.stats();
        assert_eq!((stats.requests, stats.failed), (6000, 0));
    }
}

#[test]
fn nghttp_is_served_after_an_upgrade() {
    if !installed("nghttp") {
        return;
    }
    let endpoint = mirror(Version::One);
    let (_proxy, address) = endpoint.behind();
    let uris: Vec<_> = (0..5).map(|n| format!("http://{address}/{n}")).collect();
    // Streams that depend on each other, padded heads, small windows.
    for way in [&["--upgrade"][..], &["--no-dep"], &["--padding=100", "--window-bits=10"]] {
        let told = run(Command::new("nghttp").args(["-vn"]).args(way).args(&uris));
        assert_eq!(told.matches(":status: 200").count(), 5, "{way:?}: {told}");
        assert_eq!(told.matches("x-about: GET /").count(), 5, "{way:?}: {told}");
    }
}

/// Listeners of [`CART`], of the same with a limit for each request, and of a service without instances.
fn three_listeners(proxy: &mut Proxy, endpoint: SocketAddr) -> [SocketAddr; 3] {
    let binds = [(); 3].map(|()| proxy.address());
    let ready = cluster(&[(endpoint, EndpointState::Ready)], true);
    let plain = Cluster { protocol: Protocol::Http2, ..ready };
    let mut policy = TrafficPolicy::default();
    policy.timeouts.request = Some(Duration::from_millis(500));
    let limited = Cluster { policy: Some(Box::new(policy)), ..plain.clone() };
    let empty = Cluster { protocol: Protocol::Http2, ..cluster(&[], false) };
    let ids = [CART, "shop/limited:80", "shop/empty:80"];
    let listeners = binds.iter().zip(ids);
    let listeners = listeners
        .map(|(bind, id)| Listener { cluster: id.into(), ..listener(*bind, Protocol::Http2) });
    let clusters: BTreeMap<_, _> =
        ids.into_iter().map(String::from).zip([plain, limited, empty]).collect();
    assert_eq!(proxy.server.replace(listeners.collect(), clusters), []);
    binds
}

#[test]
fn calls_of_grpc_pass_with_everything_that_belongs_to_them() {
    let Some(python) = python("grpc") else { return };
    let mut proxy = Proxy::start();
    talk(python, "grpc_calls.py", |service| {
        three_listeners(&mut proxy, service).map(|bind| bind.to_string()).join(" ")
    });
    until("nothing is in flight", || (proxy.stats().in_flight == 0).then_some(()));
    // The call that its client gives up after a time: the proxy knows that time too, and may be faster.
    assert!(proxy.stats().failed <= 1);
}

#[test]
fn websockets_of_a_library_pass_unchanged() {
    let Some(python) = python("websockets") else { return };
    let mut proxy = Proxy::start();
    talk(python, "websocket_talk.py", |service| {
        proxy.serve(Protocol::Http, &[service]).to_string()
    });
    until("nothing is in flight", || (proxy.stats().in_flight == 0).then_some(()));
}
