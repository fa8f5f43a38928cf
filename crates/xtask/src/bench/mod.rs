//! `cargo xtask bench NAME`: runs the real binary, prints a table, and keeps the figures in `docs/benchmarks.md`.
//!
//! Every figure ends in one line `name value bar ok` or `… short`; the exit code is 1 if any is short.

mod cleanup;
mod config;
mod containers;
mod figure;
mod heal;
mod idle;
pub mod kit;
mod lossless;
mod options;
mod platform;
mod process;
mod protocols;
mod proxy;
mod record;
mod start;

use std::process::ExitCode;

use figure::{Figure, Outcome};
use options::Options;

/// Why a bench could not be run to its end.
pub type Error = Box<dyn std::error::Error>;

#[derive(Clone, Copy)]
enum Run {
    /// Always the same.
    Fixed(fn() -> Result<Vec<Figure>, Error>),
    /// As the options say.
    Varied(fn(&Options) -> Result<Outcome, Error>),
    /// As the options say, and only when it is named: it needs what not every machine has.
    Named(fn(&Options) -> Result<Outcome, Error>),
}

struct Bench {
    name: &'static str,
    about: &'static str,
    run: Run,
}

/// Every bench, in the order in which `all` runs them.
const BENCHES: &[Bench] = &[
    Bench {
        name: "config",
        about: "`keel config` on long and on hostile files",
        run: Run::Fixed(config::run),
    },
    Bench {
        name: "start",
        about: "`keel up -d --wait`: 3 replicas, and 50 services with 2 each",
        run: Run::Fixed(start::run),
    },
    Bench {
        name: "idle",
        about: "memory and CPU of server, proxy and shims with the shop at rest",
        run: Run::Fixed(idle::run),
    },
    Bench {
        name: "heal",
        about: "a killed instance: out of the load balancer, replaced, ready; a killed proxy: replaced",
        run: Run::Fixed(heal::run),
    },
    Bench {
        name: "lossless",
        about: "1,000 requests/s for 60 s through kills, scaling, rollouts, a dead server",
        run: Run::Fixed(lossless::run),
    },
    Bench {
        name: "containers",
        about: "`keel up` beside `docker-compose up`, and 1,000 requests/s to containers (starts dockerd, as root)",
        run: Run::Named(containers::run),
    },
    Bench {
        name: "lossless-protocols",
        about: "2,000 requests/s of four protocols through all that the platform does",
        run: Run::Varied(protocols::run),
    },
    Bench {
        name: "proxy",
        about: "the load balancer's CPU per request and p99 latency, divided by HAProxy's",
        run: Run::Varied(proxy::run),
    },
    Bench {
        name: "proxy-size",
        about: "memory of the load balancer with 10,000 idle connections",
        run: Run::Varied(proxy::size::run),
    },
    Bench {
        name: "proxy-change",
        about: "a large configuration, endpoint changes until they are in force, and what 1,000/s cost",
        run: Run::Varied(proxy::change::run),
    },
    Bench {
        name: "proxy-syscalls",
        about: "system calls per request of the load balancer, HAProxy and nginx (needs perf, as root)",
        run: Run::Named(proxy::syscalls::run),
    },
];

/// Runs the benches that `arguments` name.
pub fn main(arguments: &[String]) -> ExitCode {
    let (names, options) = match Options::parse(arguments) {
        Ok(parsed) => parsed,
        Err(problem) => return usage(&problem),
    };
    if names.is_empty() {
        return usage("which bench?");
    }
    let all = names.iter().any(|name| name == "all");
    let known = |name: &String| name == "all" || BENCHES.iter().any(|bench| bench.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        return usage(&format!("no bench {unknown:?}"));
    }
    let chosen = BENCHES.iter().filter(|bench| {
        let by_all = all && !matches!(bench.run, Run::Named(_));
        by_all || names.iter().any(|name| name == bench.name)
    });
    let fixed = |bench: &Bench| matches!(bench.run, Run::Fixed(_));
    if let Some(bench) = chosen.clone().find(|bench| fixed(bench))
        && !options.is_whole()
    {
        return usage(&format!("bench {} takes no options", bench.name));
    }
    if let Err(error) = cleanup::on_interrupt() {
        eprintln!("warning: Ctrl-C will leave processes behind: {error}");
    }
    let mut short = false;
    for bench in chosen {
        short |= !run(bench, &options);
        cleanup::wait_if_interrupted();
    }
    ExitCode::from(u8::from(short))
}

/// Runs one bench; true if every bar is met.
fn run(Bench { name, about, run }: &Bench, options: &Options) -> bool {
    eprintln!("== {name}: {about}");
    let outcome = match run {
        Run::Fixed(run) => run().map(Outcome::from),
        Run::Varied(run) | Run::Named(run) => run(options),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            cleanup::wait_if_interrupted();
            eprintln!("error: bench {name}: {error}");
            return false;
        }
    };
    figure::print(&outcome.figures);
    if options.is_whole()
        && let Err(error) = record::keep(name, about, &outcome)
    {
        eprintln!("warning: docs/benchmarks.md was not updated: {error}");
    }
    if !options.is_whole() && !outcome.appendix.is_empty() {
        println!("\n{}", outcome.appendix);
    }
    outcome.figures.iter().all(Figure::holds)
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("xtask bench: {problem}\n");
    eprintln!("usage: cargo xtask bench NAME… [--quick] [--case CASE]…\n");
    for bench in BENCHES {
        eprintln!("  {:<20} {}", bench.name, bench.about);
    }
    eprintln!("  {:<20} all of them but proxy-syscalls", "all");
    eprintln!("\n--quick: short rounds; --case: cases whose name begins so. Neither is recorded.");
    ExitCode::from(2)
}
