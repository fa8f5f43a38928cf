//! Who calls whom, as `keel edges`, Prometheus and the access log tell it of a stack of real processes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use support::{DEADLINE, Running, free_port, get, is_alive, responder, wait_for};

/// Calls the service `api` again and again.
const CALLER: &str = r#"["python3", "-c", "import os, time, urllib.request\nwhile True:\n  try: urllib.request.urlopen(os.environ['API_URL'] + '/from-caller?secret=1').read()\n  except OSError: pass\n  time.sleep(0.02)"]"#;

fn compose(port: u16) -> String {
    format!(
        "name: demo\nservices:\n  api:\n    command: {}\n    ports: [\"{port}:80\"]\n  web:\n    command: {CALLER}\n    depends_on: [api]\n",
        responder("here")
    )
}

fn scrape(port: u16, accept: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Whether the kernel can tell host processes apart for us.
fn callers_are_known(keel: &Running) -> bool {
    let pids = keel.pids();
    let pid = pids.iter().find(|(name, _)| name.starts_with("demo-web")).unwrap().1;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().any(|line| line.starts_with("0::/keel/"))
}

#[test]
fn calls_between_services_are_seen_everywhere() {
    let (port, metrics) = (free_port(), free_port());
    let keel = Running::new(&compose(port));
    let log = keel.sandbox.app().join("access.log");
    let mut up = keel.command(&["up", "-d", "--wait"]);
    up.env("KEEL_METRICS_LISTEN", metrics.to_string()).env("KEEL_ACCESS_LOG", &log);
    keel.sandbox.done(up.output().unwrap()).ok();
    assert_eq!(get(port).as_deref(), Some("here"));
    let caller = if callers_are_known(&keel) { "demo/web" } else { "" };

    let edge = wait_for("an edge", || {
        let edges = keel.json(&["edges", "--interval", "200ms", "web", "api"]);
        let edges = edges.as_array().unwrap().clone();
        edges.into_iter().find(|e| e["caller"] == caller && e["requests"].as_u64() > Some(1))
    });
    assert_eq!((&edge["service"], &edge["port"]), (&"demo/api".into(), &80.into()));
    assert_eq!((&edge["errors"], &edge["statuses"]["200"]), (&0.into(), &edge["requests"]));
    assert!(edge["requests_per_second"].as_f64() > Some(1.0), "{edge}");
    assert!(
        edge["p50_us"].as_u64() > Some(0) && edge["p99_us"].as_u64() >= edge["p50_us"].as_u64()
    );
    let table = keel.run(&["edges", "--total"]).ok();
    assert!(table.starts_with("CALLER ") && table.contains("demo/api:80"), "{table}");
    assert_eq!(keel.json(&["edges", "--total", "nobody"]), serde_json::json!([]));

    let page = scrape(metrics, "*/*").unwrap();
    let series = format!(
        r#"keel_proxy_requests_total{{stack="demo",service="api",port="80",route="",caller="{caller}",code="200"}} "#
    );
    assert!(page.contains(&series), "{page}");
    assert!(
        page.contains(
            r#"keel_proxy_endpoints{stack="demo",service="api",port="80",state="ready"} 1"#
        )
    );
    assert!(page.contains("\nkeel_proxy_up 1\n"));
    let open = scrape(metrics, "application/openmetrics-text; version=1.0.0").unwrap();
    assert!(open.trim_end().ends_with("# EOF") || open.contains("\n# EOF\n"), "{open}");
    let status = keel.run(&["server", "status"]).ok();
    assert!(status.contains(&format!("http://127.0.0.1:{metrics}/metrics")), "{status}");
    let named = |line: &str| line.starts_with("access log  ") && line.ends_with("access.log");
    assert!(status.lines().any(named), "{status}");

    let line = wait_for("a line of the log", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().find(|line| line.contains("/from-caller")).map(str::to_owned)
    });
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["path"], "/from-caller", "without its query");
    assert_eq!(
        (&line["cluster"], &line["instance"]),
        (&"demo/api:80".into(), &"demo-api-1".into())
    );
    assert_eq!(line.get("caller").and_then(|c| c.as_str()).unwrap_or(""), caller);
}

#[test]
fn another_server_changes_the_log_of_a_proxy_that_runs() {
    let port = free_port();
    let keel = Running::new(&compose(port));
    keel.run(&["up", "-d", "--wait"]).ok();
    let proxy = keel.json(&["edges", "--total"]);
    assert!(proxy.is_array());
    let server = keel.server_pid();
    let killed = Command::new("kill").args(["-9", &server.to_string()]).status().unwrap();
    assert!(killed.success());
    wait_for("the end of the server", || (!is_alive(server)).then_some(()));
    let log = keel.sandbox.app().join("later.log");
    let path = log.to_string_lossy().into_owned();
    let combined = ["--access-log-format", "combined"];
    let start = ["server", "--detach", "--access-log", &path];
    keel.run(&[&start[..], &combined].concat()).ok();
    let line = wait_for("a line of the log", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().find(|line| line.contains("/from-caller")).map(str::to_owned)
    });
    assert!(line.contains("\"GET /from-caller HTTP/1.1\" 200 4 \"-\" \"Python-urllib/"), "{line}");
    let events = keel.run(&["events", "--all"]).ok();
    assert_eq!(events.matches("proxy started").count(), 1, "{events}");
}

#[test]
fn what_cannot_be_is_said_at_the_start() {
    let keel = Running::new("name: demo\nservices: {}\n");
    let done = keel.run(&["server", "--detach", "--access-log", "none/such.log"]);
    assert_eq!(done.code, 2, "{}", done.all());
    assert!(done.stderr.contains("none/such.log can't be a file"), "{}", done.stderr);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let done = keel.run(&["server", "run", "--metrics-listen", &port]);
    assert_eq!(done.code, 4, "{}", done.all());
    assert!(done.stderr.contains("can't serve metrics at 127.0.0.1:"), "{}", done.stderr);
    let done = keel.run(&["edges", "--interval", "1ms"]);
    assert_eq!(done.code, 2, "{}", done.all());
}
