//! `cargo xtask bench NAME`: runs the real binary, prints a table, and keeps the figures in `docs/benchmarks.md`.
//!
//! Every figure ends in one line `name value bar ok` or `… short`; the exit code is 1 if any is short.

mod config;
mod figure;
mod heal;
mod idle;
mod lossless;
mod platform;
mod record;
mod start;

use std::process::ExitCode;

use figure::Figure;

/// Why a bench could not be run to its end.
pub type Error = Box<dyn std::error::Error>;

type Bench = fn() -> Result<Vec<Figure>, Error>;

/// Every bench, in the order in which `all` runs them.
const BENCHES: [(&str, &str, Bench); 5] = [
    ("config", "`keel config` on long and on hostile files", config::run),
    ("start", "`keel up -d --wait`: 3 replicas, and 50 services with 2 each", start::run),
    ("idle", "memory and CPU of server, proxy and shims with the shop at rest", idle::run),
    ("heal", "a killed instance: out of the load balancer, replaced, ready", heal::run),
    (
        "lossless",
        "1,000 requests/s for 60 s through kills, scaling, rollouts, a dead server",
        lossless::run,
    ),
];

/// Runs the benches that `arguments` name.
pub fn main(arguments: &[String]) -> ExitCode {
    let all = arguments.first().is_some_and(|name| name == "all");
    let chosen: Vec<_> = BENCHES
        .iter()
        .filter(|(name, _, _)| all || arguments.iter().any(|argument| argument == name))
        .collect();
    let unknown = arguments
        .iter()
        .find(|name| *name != "all" && !BENCHES.iter().any(|(known, _, _)| known == *name));
    if chosen.is_empty() || unknown.is_some() {
        eprintln!("usage: cargo xtask bench NAME…\n");
        for (name, about, _) in BENCHES {
            eprintln!("  {name:<10} {about}");
        }
        eprintln!("  {:<10} all of them", "all");
        return ExitCode::from(2);
    }
    let mut short = false;
    for (name, about, bench) in chosen {
        eprintln!("== {name}: {about}");
        let figures = match bench() {
            Ok(figures) => figures,
            Err(error) => {
                eprintln!("error: bench {name}: {error}");
                short = true;
                continue;
            }
        };
        figure::print(&figures);
        short |= figures.iter().any(|figure| !figure.holds());
        if let Err(error) = record::keep(name, about, &figures) {
            eprintln!("warning: docs/benchmarks.md was not updated: {error}");
        }
    }
    ExitCode::from(u8::from(short))
}
