//! How long `keel up -d --wait` takes once the server runs.

use std::time::Instant;

use super::Error;
use super::figure::Figure;
use super::platform::{Platform, root};

/// Runs of the small stack.
const RUNS: usize = 7;

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    let directory = root().join("target/bench");
    std::fs::create_dir_all(&directory)?;
    let small = directory.join("small.yaml");
    std::fs::write(&small, stack("small", 1, 3))?;
    let platform = Platform::start("start-small", &small)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        times.push(up(&platform)?);
        platform.keel(&["down"])?;
    }
    drop(platform);
    let large = directory.join("large.yaml");
    std::fs::write(&large, stack("large", 50, 2))?;
    let platform = Platform::start("start-large", &large)?;
    let whole = up(&platform)?;
    let again = up(&platform)?;
    Ok(vec![
        Figure::median("up --wait, 1 service × 3, median", &times, 1.0, "s"),
        Figure::new("up --wait, 50 services × 2", whole, 15.0, "s"),
        Figure::new("up --wait again, nothing changed", again, 1.0, "s"),
    ])
}

fn up(platform: &Platform) -> Result<f64, Error> {
    let start = Instant::now();
    platform.keel(&["up", "-d", "--wait"])?;
    Ok(start.elapsed().as_secs_f64())
}

/// Services that start at once and answer at `/healthz`.
fn stack(name: &str, services: usize, replicas: usize) -> String {
    let mut text = format!("name: {name}\nservices:\n");
    for index in 0..services {
        text.push_str(&format!(
            "  web{index}:\n    command: [\"${{SHOP_BIN}}\", \"payments\"]\n    expose: [\"80\"]\n    \
             deploy: {{replicas: {replicas}}}\n"
        ));
    }
    text
}
