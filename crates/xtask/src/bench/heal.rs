//! What happens after `kill -9`: of an instance, from the platform's own record of events; of the proxy, as a client
//! sees it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::Error;
use super::figure::Figure;
use super::platform::{Platform, root, signal};
use super::process::free_port;

/// Instances killed, and proxies.
const KILLS: usize = 15;
/// The first restart after a quiet time is immediate; so long is quiet for the bench's file.
const QUIET: Duration = Duration::from_millis(1200);
/// A replacement that takes longer than this does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two tries of a client.
const TRY: Duration = Duration::from_millis(1);

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    let port = free_port()?;
    let file = root().join("target/bench/heal.yaml");
    std::fs::create_dir_all(root().join("target/bench"))?;
    std::fs::write(&file, FILE)?;
    let mut platform = Platform::start("heal", &file)?;
    platform.set("WEB_PORT", &port.to_string());
    platform.keel(&["up", "-d", "--wait"])?;
    let mut figures = instances(&platform)?;
    figures.extend(proxies(&platform, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?);
    Ok(figures)
}

fn instances(platform: &Platform) -> Result<Vec<Figure>, Error> {
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

/// The server notices, and starts another one with the last state.
fn proxies(platform: &Platform, address: SocketAddr) -> Result<Vec<Figure>, Error> {
    let (mut answering, mut failed) = (Vec::new(), 0.0);
    for _ in 0..KILLS {
        // By then the server is linked to the one that came last.
        std::thread::sleep(QUIET);
        let proxies = platform.processes(" proxy ");
        let [pid] = proxies[..] else { return Err(format!("proxies: {proxies:?}").into()) };
        let killed = Instant::now();
        signal(pid, "-KILL");
        // Until it is gone it could still answer.
        while is_running(pid) && killed.elapsed() < PATIENCE {
            std::thread::sleep(TRY);
        }
        while !answers(address) {
            failed += 1.0;
            if killed.elapsed() > PATIENCE {
                return Err("no proxy came after the one that was killed".into());
            }
            std::thread::sleep(TRY);
        }
        answering.push(killed.elapsed().as_secs_f64() * 1000.0);
    }
    let worst = answering.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Figure::median("proxy killed → another answers, median", &answering, 100.0, "ms"),
        Figure::new("proxy killed → another answers, worst", worst, 100.0, "ms"),
        Figure::new("proxy killed → requests that failed until then", failed, 0.0, ""),
    ])
}

/// Whether a request is answered by the service.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: heal\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

/// Whether a process is there and not a zombie.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

const FILE: &str = "name: heal
services:
  web:
    command: [\"${SHOP_BIN}\", \"payments\"]
    ports: [\"127.0.0.1:${WEB_PORT}:80\"]
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
