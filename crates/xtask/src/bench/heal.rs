//! What happens after `kill -9` of an instance, from the platform's own record of events.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::Error;
use super::figure::Figure;
use super::platform::{Platform, root, signal};

/// Instances killed.
const KILLS: usize = 15;
/// The first restart after a quiet time is immediate; so long is quiet for the bench's file.
const QUIET: Duration = Duration::from_millis(1200);
/// A replacement that takes longer than this does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    let file = root().join("target/bench/heal.yaml");
    std::fs::create_dir_all(root().join("target/bench"))?;
    std::fs::write(&file, FILE)?;
    let platform = Platform::start("heal", &file)?;
    platform.keel(&["up", "-d", "--wait"])?;
    let (mut withdrawn, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        std::thread::sleep(QUIET);
        let (id, pid) = platform.running("web")?.first().cloned().ok_or("nothing runs")?;
        let killed_at = now_ms();
        signal(pid, "-KILL");
        let mut events = Vec::new();
        platform.wait("the replacement", PATIENCE, |platform| {
            events = seen(platform, killed_at)?;
            Ok(find(&events, "instance_ready", &id).is_some()
                && find(&events, "endpoint_withdrawn", &id).is_some())
        })?;
        let after = |kind: &str| {
            find(&events, kind, &id).map_or(f64::INFINITY, |at| at.saturating_sub(killed_at) as f64)
        };
        withdrawn.push(after("endpoint_withdrawn"));
        ready.push(after("instance_ready"));
    }
    Ok(vec![
        Figure::median("killed → out of the load balancer, median", &withdrawn, 20.0, "ms"),
        Figure::median("killed → replaced and ready, median", &ready, 500.0, "ms"),
    ])
}

const FILE: &str = "name: heal
services:
  web:
    command: [\"${SHOP_BIN}\", \"payments\"]
    expose: [\"80\"]
    restart: always
    deploy: {replicas: 3}
    x-keel: {restart_backoff: {reset_after: 1s}}
";

fn seen(platform: &Platform, since: u64) -> Result<Vec<Value>, Error> {
    let since = Timestamp::from_millisecond(i64::try_from(since)?)?.to_string();
    platform.json_lines(&["events", "--since", &since])
}

fn find(events: &[Value], kind: &str, id: &str) -> Option<u64> {
    let event = events.iter().find(|event| event["kind"] == kind && event["instance"] == id)?;
    let at: Timestamp = event["at"].as_str()?.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}
