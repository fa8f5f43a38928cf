//! No request to containers is lost: steady traffic through deaths, scaling, a new revision, a dead server.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::super::Error;
use super::super::figure::Figure;
use super::super::lossless::{Report, settled, wrk};
use super::super::platform::{root, signal};
use super::docker::{Docker, IMAGE};
use super::{PORT, platform, written};

/// Length of the run.
const SECONDS: u64 = 60;
/// Requests per second.
const RATE: u32 = 1000;
/// Where they go.
pub const ENTRY: u16 = 18084;

/// Failed requests, and whether there were as many as meant.
pub fn figures(docker: &Docker) -> Result<Vec<Figure>, Error> {
    let file = written("lossless", &stack())?;
    let mut platform = platform("containers-lossless", &file, docker)?;
    platform.keel(&["up", "-d", "--wait"])?;
    let script = root().join("target/bench/containers.lua");
    let url = format!("http://127.0.0.1:{ENTRY}");
    let paths = ["/products", "/healthz"];
    let client = wrk(&script, &url, RATE, SECONDS, &paths)?.stdout(Stdio::piped()).spawn()?;
    let start = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", start.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..2 {
        let (id, pid) = platform.running("web")?.first().cloned().ok_or("nothing runs")?;
        told(&format!("kill -9 {id}"));
        signal(pid, "-KILL");
        settled(&platform)?;
    }
    for scale in ["web=5", "web=2"] {
        told(&format!("scale {scale}"));
        platform.keel(&["scale", scale])?;
        settled(&platform)?;
    }
    told("a new revision");
    platform.set("VERSION", "v2");
    platform.keel(&["up", "-d", "--wait"])?;
    settled(&platform)?;
    told("kill -9 the server");
    signal(platform.server_pid()?, "-KILL");
    std::thread::sleep(Duration::from_secs(1));
    platform.server()?;
    settled(&platform)?;
    told("all done; the client goes on to its end");
    let operations = start.elapsed().as_secs_f64();
    let output = client.wait_with_output()?;
    let report = Report::parse(String::from_utf8_lossy(&output.stdout).into_owned())?;
    #[allow(clippy::cast_precision_loss)]
    let (failed, answered) = (report.failed as f64, report.requests as f64);
    #[allow(clippy::cast_precision_loss)]
    let short = (100.0 - answered / (f64::from(RATE) * SECONDS as f64) * 100.0).max(0.0);
    #[allow(clippy::cast_precision_loss)]
    let seconds = SECONDS as f64;
    Ok(vec![
        Figure::new(
            "failed requests through deaths, scaling, a revision, a dead server",
            failed,
            0.0,
            "",
        ),
        Figure::new("– requests short of 1,000/s × 60 s, in %", short, 10.0, "%"),
        Figure::new("– all operations done after", operations, seconds, "s"),
    ])
}

/// A service that answers, and whose revision is the variable `VERSION`.
pub fn stack() -> String {
    format!(
        "name: lossless\nservices:\n  web:\n    image: {IMAGE}\n    command: [/shop, catalog]\n    \
         environment: {{PORT: '{PORT}', SHOP_VERSION: \"${{VERSION:-v1}}\"}}\n    \
         ports: ['{ENTRY}:{PORT}']\n    stop_grace_period: 10s\n    restart: unless-stopped\n    \
         healthcheck: {{test: [CMD, /shop, check, 'http://127.0.0.1:{PORT}/healthz'], interval: 2s, \
         start_period: 10s, start_interval: 200ms}}\n    \
         deploy: {{replicas: 2, update_config: {{order: start-first, monitor: 2s}}}}\n    \
         x-keel: {{rollout: {{min_healthy_time: 2s}}}}\n"
    )
}
