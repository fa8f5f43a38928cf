//! No request is lost: steady traffic through everything that the platform and fate do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Error;
use super::figure::Figure;
use super::platform::{Platform, root, signal};

/// Length of the run.
const SECONDS: u64 = 60;
/// Requests per second.
const RATE: u32 = 1000;
/// Requests per second on each connection.
const RATE_OF_ONE: u32 = 20;
/// Pause of a connection between two requests, in milliseconds; the answer takes the rest of the time.
const DELAY_MS: u32 = 48;
/// The storefront.
const PORT: u16 = 18082;
/// Traffic goes on for this long between two operations.
const PAUSE: Duration = Duration::from_secs(2);
/// Something that does not come within this time does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    let mut platform = Platform::start("lossless", &root().join("examples/shop/compose.yaml"))?;
    platform.set("SHOP_PORT", &PORT.to_string());
    platform.keel(&["up", "-d", "--wait"])?;
    let paths = ["/", "/api/products", "/api/cart"];
    let script = root().join("target/bench/paced.lua");
    let client = wrk(&script, &format!("http://127.0.0.1:{PORT}"), RATE, SECONDS, &paths)?
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("wrk can't be run ({e}); `scripts/setup.sh` installs it"))?;
    let start = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", start.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(1));
    for service in ["payments", "orders", "cart", "catalog", "storefront"] {
        let (id, pid) = platform.running(service)?.first().cloned().ok_or("nothing runs")?;
        told(&format!("kill -9 {id}"));
        signal(pid, "-KILL");
        settled(&platform)?;
    }
    told("scale catalog=6");
    platform.keel(&["scale", "catalog=6"])?;
    settled(&platform)?;
    told("scale catalog=3");
    platform.keel(&["scale", "catalog=3"])?;
    settled(&platform)?;
    told("a new revision of catalog, cart and storefront");
    for service in ["CATALOG", "CART", "STOREFRONT"] {
        platform.set(&format!("{service}_VERSION"), "v2");
    }
    platform.keel(&["up", "-d", "--wait"])?;
    told("kill -9 the server");
    signal(platform.server_pid()?, "-KILL");
    std::thread::sleep(Duration::from_secs(1));
    platform.server()?;
    settled(&platform)?;
    told("all done; the client goes on to its end");
    let operations = start.elapsed().as_secs_f64();
    let report = Report::read(client)?;
    eprintln!("{}", report.text);
    #[allow(clippy::cast_precision_loss)]
    Ok(vec![
        Figure::new("failed requests", report.failed as f64, 0.0, ""),
        Figure::new("requests short of 1,000/s × 60 s, in %", report.short_percent(), 10.0, "%"),
        Figure::new("all operations done after", operations, SECONDS as f64, "s"),
    ])
}

/// Waits until every instance that should run is ready, and no other is left.
pub fn settled(platform: &Platform) -> Result<(), Error> {
    std::thread::sleep(PAUSE);
    platform
        .wait("the stack to settle", PATIENCE, |platform| {
            let listing = platform.json(&["ps", "-a"])?;
            let instances = listing.as_array().cloned().unwrap_or_default();
            Ok(!instances.is_empty()
                && instances
                    .iter()
                    .all(|instance| instance["ready"] == true && (instance["goal"] == "run")))
        })
        .map(|_| ())
}

/// wrk, asking `paths` of `origin` in turns on kept connections, about `rate` times a second for whole `seconds`.
pub fn wrk(
    script: &Path,
    origin: &str,
    rate: u32,
    seconds: u64,
    paths: &[&str],
) -> Result<Command, Error> {
    let quoted: Vec<_> = paths.iter().map(|path| format!("{path:?}")).collect();
    std::fs::write(
        script,
        format!(
            "local paths = {{{}}}\nlocal n = 0\nfunction delay() return {DELAY_MS} end\n\
             function request() n = n + 1; return wrk.format(\"GET\", paths[n % #paths + 1]) end\n\
             function done(summary)\n  local e = summary.errors\n\
             io.write(string.format(\"TOTAL %d FAILED %d\\n\", summary.requests,\n\
             e.connect + e.read + e.write + e.status + e.timeout))\nend\n",
            quoted.join(", ")
        ),
    )?;
    let mut command = Command::new("wrk");
    command
        .args(["-t1", "--latency", "--timeout", "5s"])
        .arg(format!("-c{}", rate / RATE_OF_ONE))
        .arg(format!("-d{seconds}s"))
        .arg("-s")
        .arg(script)
        .arg(origin);
    Ok(command)
}

/// What wrk said at its end.
pub struct Report {
    text: String,
    pub requests: u64,
    pub failed: u64,
}

impl Report {
    fn read(client: std::process::Child) -> Result<Self, Error> {
        let output = client.wait_with_output()?;
        Self::parse(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Reads what wrk printed.
    pub fn parse(text: String) -> Result<Self, Error> {
        let line = text.lines().find(|line| line.starts_with("TOTAL")).ok_or("no result of wrk")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| -> Result<u64, Error> {
            Ok(words.get(at).ok_or("a cut line of wrk")?.parse()?)
        };
        let (requests, failed) = (number(1)?, number(3)?);
        Ok(Self { text, requests, failed })
    }

    #[allow(clippy::cast_precision_loss)]
    fn short_percent(&self) -> f64 {
        (100.0 - self.requests as f64 / (f64::from(RATE) * SECONDS as f64) * 100.0).max(0.0)
    }
}
