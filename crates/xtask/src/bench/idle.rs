//! What the platform itself costs while the shop runs and nobody shops.

use std::time::{Duration, Instant};

use super::Error;
use super::figure::Figure;
use super::platform::{Platform, cpu_seconds, parent, resident_mib, root};

/// How long the CPU is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// The start is over after this.
const SETTLE: Duration = Duration::from_secs(5);

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    let mut platform = Platform::start("idle", &root().join("examples/shop/compose.yaml"))?;
    platform.set("SHOP_PORT", "18081");
    platform.keel(&["up", "-d", "--wait"])?;
    std::thread::sleep(SETTLE);
    let server = platform.server_pid()?;
    let proxy = *platform.processes(" proxy ").first().ok_or("no proxy process found")?;
    let mut shims = Vec::new();
    for service in ["storefront", "catalog", "cart", "orders", "payments"] {
        let instances = platform.running(service)?;
        shims.extend(instances.into_iter().filter_map(|(_, pid)| parent(pid)));
    }
    if shims.is_empty() {
        return Err("no shim processes found".into());
    }
    let before = cpu_seconds(server) + cpu_seconds(proxy);
    let start = Instant::now();
    std::thread::sleep(WATCHED);
    let used = cpu_seconds(server) + cpu_seconds(proxy) - before;
    let share = used / start.elapsed().as_secs_f64() * 100.0;
    let shim_sizes: Vec<f64> = shims.iter().map(|pid| resident_mib(*pid)).collect();
    let largest = shim_sizes.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Figure::new(
            "server + proxy resident",
            resident_mib(server) + resident_mib(proxy),
            60.0,
            "MiB",
        ),
        Figure::new("server + proxy CPU of one core", share, 1.0, "%"),
        Figure::new(format!("largest of {} shims resident", shims.len()), largest, 2.0, "MiB"),
    ])
}
