//! HAProxy and nginx in the place of keel's proxy, with the real binary: requests while endpoints change, and what
//! happens when the engine, its driver or the server dies.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use support::{DEADLINE, Running, free_port, is_alive, responder, wait_for};

/// Clients of each kind.
const CLIENTS: usize = 2;
/// Requests that are answered before and after each change.
const SETTLED: usize = 60;
/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(5);

fn two_free_ports() -> (u16, u16) {
    let first = free_port();
    // The system may give the same one again.
    let mut others = std::iter::repeat_with(free_port).take(100);
    (first, others.find(|port| *port != first).unwrap())
}

fn is_installed(engine: &str) -> bool {
    let there = Command::new(engine).arg("-v").output().is_ok();
    if !there {
        eprintln!("skipped: no {engine}");
    }
    there
}

/// A service at a published port and behind a route. It declares no protocol.
fn compose(published: u16, routed: u16) -> String {
    format!(
        "name: demo
x-keel:
  entrypoints: {{ web: '127.0.0.1:{routed}' }}
services:
  web:
    command: {}
    ports: ['{published}:80']
    deploy: {{ replicas: 2 }}
    x-keel: {{ routes: [shop.test] }}
",
        responder("here")
    )
}

type Connection = BufReader<TcpStream>;

/// Status and body of the answer to one request.
fn exchange(connection: &mut Connection) -> std::io::Result<(u16, String)> {
    connection.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head)? == 0 {
            return Err(std::io::Error::other(format!("no answer but {head:?}")));
        }
    }
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.and_then(|l| l.trim().parse().ok()).unwrap_or(0)];
    connection.read_exact(&mut body)?;
    let status = head[9..12].parse().map_err(std::io::Error::other)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn connect(port: u16) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(BufReader::new(stream))
}

fn get(port: u16) -> Option<String> {
    let (status, body) = exchange(&mut connect(port).ok()?).ok()?;
    Some(if status == 200 { body } else { status.to_string() })
}

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// New connections to both ports, and kept ones to that of the route.
    fn start(published: u16, routed: u16) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            clients: Vec::new(),
        };
        for (port, keeps) in [(published, false), (routed, false), (routed, true)] {
            for _ in 0..CLIENTS {
                let (stop, done) = (Arc::clone(&load.stop), Arc::clone(&load.done));
                let failed = Arc::clone(&load.failed);
                load.clients.push(thread::spawn(move || {
                    let mut kept = None;
                    while !stop.load(Ordering::SeqCst) {
                        if !is_answered(port, &mut kept) {
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                        kept = kept.filter(|_| keeps);
                        done.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(PACE);
                    }
                }));
            }
        }
        load
    }

    fn settle(&self) {
        let from = self.done.load(Ordering::SeqCst);
        wait_for("more answers", || {
            (self.done.load(Ordering::SeqCst) >= from + SETTLED).then_some(())
        });
    }

    /// Stops; how many requests failed.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        self.failed.load(Ordering::SeqCst)
    }
}

/// Asks once. A kept connection may be closed just now, and a request that crosses with that is repeated on a new one
/// (RFC 9112, 9.3.1); there it must be answered.
fn is_answered(port: u16, kept: &mut Option<Connection>) -> bool {
    if let Some(connection) = kept
        && let Ok((200, _)) = exchange(connection)
    {
        return true;
    }
    let answer = connect(port).and_then(|mut connection| {
        let answer = exchange(&mut connection)?;
        *kept = Some(connection);
        Ok(answer)
    });
    let is_good = matches!(answer, Ok((200, _)));
    if !is_good {
        eprintln!("port {port}: {answer:?}");
    }
    is_good
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    wait_for("the end of a process", || (!is_alive(pid)).then_some(()));
}

/// The process id in a file of the engine's directory.
fn noted(keel: &Running, engine: &str, file: &str) -> u32 {
    let path = keel.sandbox.state_dir().join("engine").join(engine).join(file);
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn changes_lose_nothing(keel: &Running, published: u16, routed: u16) {
    let load = Load::start(published, routed);
    load.settle();
    for count in [3, 1, 2] {
        keel.run(&["scale", &format!("web={count}")]).ok();
        load.settle();
    }
    let before = keel.pids();
    let compose = compose(published, routed).replace("b'here'", "b'there'");
    let soon = "    deploy: { replicas: 2, update_config: { monitor: 0s } }\n";
    let compose = compose.replace("    deploy: { replicas: 2 }\n", soon);
    keel.sandbox.write("compose.yaml", &compose);
    keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]).ok();
    load.settle();
    assert_eq!(load.end(), 0, "requests were lost");
    assert!(keel.pids().values().all(|pid| !before.values().any(|old| old == pid)));
}

fn is_driven(engine: &str) {
    if !is_installed(engine) {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    keel.run(&["server", "--detach", "--proxy-engine", engine]).ok();
    keel.run(&["up", "-d", "--wait"]).ok();
    for port in [published, routed] {
        assert_eq!(get(port).as_deref(), Some("here"), "as soon as `up` says so");
    }
    let checked = keel.run(&["render", engine, "--check", "--out", "conf"]);
    assert!(checked.stderr.contains("accepts it"), "{}", checked.all());

    changes_lose_nothing(&keel, published, routed);

    let both = || (get(published)? == "there" && get(routed)? == "there").then_some(());
    let first = noted(&keel, engine, "engine.pid");
    kill(first);
    wait_for("another engine that serves", || {
        (noted(&keel, engine, "engine.pid") != first).then(both)
    });
    wait_for("answers", both);

    let second = noted(&keel, engine, "engine.pid");
    kill(keel.server_pid());
    both().expect("a dead server stops no traffic");
    keel.run(&["server", "--detach", "--proxy-engine", engine]).ok();
    both().expect("nor does a new one");
    let driver = noted(&keel, engine, "driver.pid");
    kill(driver);
    both().expect("a dead driver stops no traffic");
    wait_for("another driver", || (noted(&keel, engine, "driver.pid") != driver).then_some(()));
    keel.run(&["scale", "web=1"]).ok();
    both().expect("the new driver tells the engine that was there of changes");
    assert_eq!(noted(&keel, engine, "engine.pid"), second, "the engine ran all the time");
}

/// Ends the server and starts another one, whose proxy is to be of this kind; waits until that one serves.
fn switch(keel: &Running, options: &[&str]) {
    kill(keel.server_pid());
    keel.run(&[&["server", "--detach"], options].concat()).ok();
    let started = wait_for("a proxy that takes over", || {
        let events = keel.run(&["events"]).ok();
        let line = events.lines().rev().find(|line| line.contains("started to take over"))?;
        let pid = line.split_once("process ")?.1.trim_end_matches(')').parse::<u32>().ok()?;
        is_alive(pid).then_some(pid)
    });
    let socket = keel.sandbox.state_dir().join("proxy.sock");
    wait_for("it to serve", || {
        let incumbent = keel_link::incumbent(&socket).ok()??;
        (incumbent.pid == started).then_some(())
    });
}

/// The sockets that listen at a port, by their numbers.
fn listening(port: u16) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let here = rows.filter(|row| row[1].ends_with(&format!(":{port:04X}")) && row[3] == "0A");
    here.map(|row| row[9].to_owned()).collect()
}

#[test]
fn haproxy_and_our_proxy_take_over_from_each_other_without_loss() {
    if !is_installed("haproxy") {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    keel.run(&["up", "-d", "--wait"]).ok();
    let load = Load::start(published, routed);
    load.settle();
    let sockets = listening(published);
    let mut engines = Vec::new();
    for engine in [Some("haproxy"), None, Some("haproxy"), None] {
        match engine {
            Some(engine) => {
                switch(&keel, &["--proxy-engine", engine]);
                engines.push(noted(&keel, engine, "engine.pid"));
            }
            None => switch(&keel, &[]),
        }
        load.settle();
        // Nobody who is connecting notices anything if the same sockets go on.
        assert_eq!(listening(published), sockets, "{engine:?}");
    }
    let lost = load.end();
    let said = std::fs::read_to_string(keel.sandbox.state_dir().join("proxy.log"));
    let events = keel.run(&["events"]).ok();
    assert_eq!(lost, 0, "requests were lost\n{events}\n{}", said.unwrap_or_default());
    for engine in engines {
        wait_for("the end of haproxy", || (!is_alive(engine)).then_some(()));
    }
}

/// A program in the place of HAProxy; for a server that is to use it, the variables of its environment.
fn replaced(keel: &Running, script: &str) -> [(&'static str, String); 2] {
    use std::os::unix::fs::PermissionsExt as _;
    let other = keel.sandbox.write("bin/haproxy", script);
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let directories = path.split(':').chain(["/usr/sbin"]).map(|d| format!("{d}/haproxy"));
    let real = directories.into_iter().find(|real| std::fs::exists(real).unwrap()).unwrap();
    [("PATH", format!("{}:{path}", other.parent().unwrap().display())), ("REAL_HAPROXY", real)]
}

/// A HAProxy that starts and never gets ready.
const STUCK: &str = r#"#!/bin/sh
for argument; do
    if [ "$argument" = -x ]; then
        echo $$ >> "$STUCK_PIDS"
        exec sleep 100000
    fi
done
exec "$REAL_HAPROXY" "$@"
"#;

#[test]
fn a_haproxy_that_does_not_get_ready_is_ended_and_our_proxy_goes_on() {
    if !is_installed("haproxy") {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    keel.run(&["up", "-d", "--wait"]).ok();
    let variables = replaced(&keel, STUCK);
    let pids = keel.sandbox.app().join("pids");
    kill(keel.server_pid());
    let mut server = keel.command(&["server", "--detach", "--proxy-engine", "haproxy"]);
    server.envs(variables).env("STUCK_PIDS", &pids);
    assert!(server.status().unwrap().success());
    let started: u32 = wait_for("a haproxy that is stuck", || {
        std::fs::read_to_string(&pids).ok()?.lines().next()?.parse().ok()
    });
    wait_for("its end", || {
        assert_eq!(get(published).as_deref(), Some("here"));
        (!is_alive(started)).then_some(())
    });
    assert_eq!(get(routed).as_deref(), Some("here"));

    // Another try is under way. All is ended with the server when there is nothing to serve.
    wait_for("another try", || {
        (std::fs::read_to_string(&pids).ok()?.lines().count() > 1).then_some(())
    });
    let events = keel.run(&["events"]).ok();
    let proxies = events.lines().filter(|line| line.contains("proxy") && line.contains("started"));
    let proxies: Vec<u32> = proxies
        .map(|line| line.split_once("process ").unwrap().1.trim_end_matches(')').parse().unwrap())
        .collect();
    keel.run(&["down"]).ok();
    keel.run(&["server", "stop"]).ok();
    wait_for("the end of every proxy", || {
        proxies.iter().all(|proxy| !is_alive(*proxy)).then_some(())
    });
}

/// A HAProxy that does not start while there is a file.
const ABSENT: &str = r#"#!/bin/sh
[ -e "$NO_HAPROXY" ] && exit 1
exec "$REAL_HAPROXY" "$@"
"#;

/// To wait for one that does not come would be worse than to be refused.
#[test]
fn connections_are_refused_when_haproxy_cannot_be_started_again() {
    if !is_installed("haproxy") {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    let absent = keel.sandbox.app().join("absent");
    let mut server = keel.command(&["server", "--detach", "--proxy-engine", "haproxy"]);
    server.envs(replaced(&keel, ABSENT)).env("NO_HAPROXY", &absent);
    assert!(server.status().unwrap().success());
    keel.run(&["up", "-d", "--wait"]).ok();
    std::fs::write(&absent, "").unwrap();
    kill(noted(&keel, "haproxy", "engine.pid"));
    wait_for("to be refused", || TcpStream::connect(("127.0.0.1", published)).err());
    // A driver without an engine has no connections to wait for.
    let driver = noted(&keel, "haproxy", "driver.pid");
    let told = Instant::now();
    assert!(Command::new("kill").arg(driver.to_string()).status().unwrap().success());
    wait_for("its end", || (!is_alive(driver)).then_some(()));
    assert!(told.elapsed() < Duration::from_secs(20), "connections are waited for 30 s");
    std::fs::remove_file(&absent).unwrap();
    for port in [published, routed] {
        wait_for("an answer", || (get(port).as_deref() == Some("here")).then_some(()));
    }
}

#[test]
fn what_nginx_still_has_for_a_moment_is_no_reason_for_a_warning() {
    if !is_installed("nginx") {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    keel.run(&["server", "--detach", "--proxy-engine", "nginx"]).ok();
    keel.run(&["up", "-d", "--wait"]).ok();
    switch(&keel, &[]);
    for port in [published, routed] {
        assert_eq!(get(port).as_deref(), Some("here"));
    }
    let said = std::fs::read_to_string(keel.sandbox.state_dir().join("proxy.log")).unwrap();
    assert!(said.contains("cannot listen yet"), "{said}");
    assert!(
        !said.lines().any(|line| line.contains("WARN") && line.contains("cannot listen")),
        "{said}"
    );
}

#[test]
fn haproxy_serves_in_the_place_of_our_proxy() {
    is_driven("haproxy");
}

#[test]
fn nginx_serves_in_the_place_of_our_proxy() {
    is_driven("nginx");
}

/// What is told of things that an engine lacks: events by their message, and how often.
fn lacks_told(keel: &Running) -> Vec<serde_json::Value> {
    let events = keel.run(&["events", "--all", "--output", "json"]).ok();
    let events = events.lines().map(|line| serde_json::from_str(line).unwrap());
    events.filter(|event: &serde_json::Value| event["kind"] == "engine_lacks").collect()
}

#[test]
fn what_haproxy_lacks_is_told_where_people_look() {
    if !is_installed("haproxy") {
        return;
    }
    let (published, routed) = two_free_ports();
    let keel = Running::new(&compose(published, routed));
    keel.run(&["server", "--detach", "--proxy-engine", "haproxy"]).ok();
    let up = keel.run(&["up", "-d", "--wait"]);
    assert!(!up.stderr.contains("does not do"), "{}", up.stderr);
    let locked =
        "{ rule: Host(`shop.test`), basic_auth: ['ann:$$apr1$$abcdefgh$$5VEbMkemELfbhC5ck.U.z1'] }";
    let compose = compose(published, routed).replace("[shop.test]", &format!("[{locked}]"));
    keel.sandbox.write("compose.yaml", &compose);
    let up = keel.run(&["up", "-d"]);
    assert!(up.stderr.contains("haproxy does not do 1 thing that demo asks for:"), "{}", up.all());
    assert!(up.stderr.contains("route demo/web, user 1   `$apr1$`"), "{}", up.stderr);
    keel.run(&["scale", "web=3"]).ok();
    keel.run(&["scale", "web=2"]).ok();

    let told = lacks_told(&keel);
    let of_stack: Vec<_> = told.iter().filter(|event| event["stack"] == "demo").collect();
    assert_eq!(of_stack.len(), 1, "{told:?}");
    let message = of_stack[0]["message"].as_str().unwrap();
    assert!(message.starts_with("haproxy lacks `$apr1$`"), "{message}");
    assert!(message.contains("the user can't log in"), "{message}");
    let always = told.iter().filter(|event| event["stack"].is_null()).count();
    assert_eq!(always, told.len() - 1);

    let status = keel.json(&["server", "status"]);
    assert_eq!(status["proxy_engine"], "haproxy");
    let lacks = status["lacks"].as_array().unwrap();
    assert!(lacks.iter().any(|l| l["places"] == serde_json::json!(["route demo/web, user 1"])));
    assert!(lacks.iter().any(|l| l["places"] == serde_json::json!(["all traffic"])));
    let text = keel.run(&["server", "status"]).ok();
    assert_eq!(text.lines().filter(|line| line.starts_with("lacks ")).count(), lacks.len());

    // Another server has the same engine, which lacks the same.
    kill(keel.server_pid());
    keel.run(&["server", "--detach", "--proxy-engine", "haproxy"]).ok();
    let up = keel.run(&["up", "-d", "--wait"]);
    assert!(up.stderr.contains("haproxy does not do 1 thing that demo asks for:"), "{}", up.all());
    assert_eq!(keel.json(&["server", "status"])["lacks"].as_array().unwrap(), lacks);
    assert_eq!(lacks_told(&keel).len(), told.len());

    // What is mended is not told any more.
    let open = compose.replace(locked, "shop.test");
    keel.sandbox.write("compose.yaml", &open);
    let up = keel.run(&["up", "-d", "--wait"]);
    assert!(!up.stderr.contains("does not do"), "{}", up.stderr);
    assert_eq!(lacks_told(&keel).len(), told.len());
    assert_eq!(keel.json(&["server", "status"])["lacks"].as_array().unwrap().len(), always);
}
