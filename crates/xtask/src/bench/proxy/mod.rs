//! Ours against HAProxy and nginx: CPU per request and latency, case by case.
//!
//! The proxy under test has one core for itself; clients and backends share the others, so that whatever they do, the
//! proxy's CPU time is its own. Rounds are interleaved and their order turns, so that a disturbance of the machine meets
//! all alike. Each begins with a new process, which warms up: where the pages of a program come to lie makes it up to a
//! tenth faster or slower for all its life. A figure is the median over rounds of the ratio within a round.

mod case;
pub mod change;
mod configuration;
mod control;
mod engine;
mod load;
mod plot;
mod rig;
pub mod size;
pub mod syscalls;
mod table;

use case::{CASES, CONNECTIONS, Case, LATENCY_LOAD, Measure, PEAK};
use engine::{Engine, Proxy};
use load::{Count, Load};
use rig::Rig;

use super::Error;
use super::figure::{Outcome, median};
use super::options::Options;
use super::platform::cpu_seconds;
use super::process::tool;

/// How often and how long each proxy is measured in each case.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    number: usize,
    seconds: u32,
}

const FULL: Rounds = Rounds { number: 7, seconds: 2 };
const QUICK: Rounds = Rounds { number: 2, seconds: 2 };
/// Each proxy is tried and warmed up for so long before it is measured.
const WARM_UP_SECONDS: u32 = 1;

/// What is needed, and the Debian package that brings it: looked for before half of the work is done.
const TOOLS: [(&str, &str); 5] = [
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light libnginx-mod-stream"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("ab", "apache2-utils"),
];

/// One measurement of one proxy.
#[derive(Clone, Copy, Debug)]
struct Sample {
    count: Count,
    /// CPU time of the proxy, all its threads, while it was asked.
    cpu_seconds: f64,
}

impl Sample {
    #[allow(clippy::cast_precision_loss)]
    fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.count.requests as f64
    }

    #[allow(clippy::cast_precision_loss)]
    fn per_second(&self) -> f64 {
        self.count.requests as f64 / self.count.seconds
    }

    fn measured(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Cpu => self.cpu_us(),
            Measure::P99 => self.count.p99_us.unwrap_or(f64::INFINITY),
        }
    }
}

/// What was measured of one proxy in one case.
#[derive(Clone, Debug)]
enum Measured {
    /// One sample per round.
    Samples(Vec<Sample>),
    /// The proxy does not serve it, with the reason.
    NotServed(String),
}

impl Measured {
    fn samples(&self) -> &[Sample] {
        match self {
            Self::Samples(samples) => samples,
            Self::NotServed(_) => &[],
        }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.samples().iter().map(of).collect();
        if values.is_empty() { None } else { Some(median(&values)) }
    }
}

/// One row of the result, proxies in the order of [`Engine::ALL`].
#[derive(Clone, Debug)]
struct Row {
    case: Case,
    proxies: Vec<Measured>,
}

impl Row {
    fn of(&self, engine: Engine) -> &Measured {
        let at = Engine::ALL.iter().position(|known| *known == engine).unwrap_or(0);
        &self.proxies[at]
    }

    /// The ratio of `engine` to HAProxy in each round.
    fn ratios(&self, engine: Engine) -> Vec<f64> {
        let pairs = self.of(engine).samples().iter().zip(self.of(Engine::Haproxy).samples());
        let measure = self.case.measure;
        pairs.map(|(one, other)| one.measured(measure) / other.measured(measure)).collect()
    }
}

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let rounds = if options.quick { QUICK } else { FULL };
    for (program, package) in TOOLS {
        tool(program, package)?;
    }
    let rig = Rig::start("proxy")?;
    let mut proxies = Engine::ALL
        .iter()
        .map(|engine| Proxy::start(*engine, &rig))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<Row> = Vec::new();
    for case in CASES.iter().filter(|case| options.wants(case.name)) {
        let mut case = *case;
        if let Load::Paced { .. } = case.load {
            let rate = LATENCY_LOAD * peak(&rows, &rig, &proxies)?;
            case.load = Load::Paced { connections: CONNECTIONS, rate: rate.floor() };
        }
        let row = compare(case, rounds, &rig, &mut proxies)?;
        eprintln!("{}", table::line(&row));
        rows.push(row);
    }
    let appendix = table::markdown(&rows) + &compared(&rig, &proxies)?;
    if options.is_whole() {
        plot::write(&rows)?;
    }
    Ok(Outcome { figures: table::figures(&rows), appendix })
}

/// Who was compared, and what a TLS client agreed upon with each; it should be the same.
fn compared(rig: &Rig, proxies: &[Proxy]) -> Result<String, Error> {
    let mut text = String::from("\nCompared, with what a TLS client agreed upon:\n\n");
    for proxy in proxies.iter().filter(|proxy| Engine::SHOWN.contains(&proxy.engine)) {
        let (name, version) = (proxy.engine.name(), engine::version(proxy.engine)?);
        let tls = rig.negotiated(proxy.doors.https).unwrap_or_else(|_| "no TLS".into());
        text += &format!("- {name} {version}: {tls}\n");
    }
    Ok(text)
}

/// Requests per second that HAProxy can do: from this run's rows, or measured now.
fn peak(rows: &[Row], rig: &Rig, proxies: &[Proxy]) -> Result<f64, Error> {
    let known = rows.iter().find(|row| row.case.name == CASES[0].name);
    if let Some(peak) = known.and_then(|row| row.of(Engine::Haproxy).median(Sample::per_second)) {
        return Ok(peak);
    }
    let haproxy = proxies.iter().find(|proxy| proxy.engine == Engine::Haproxy);
    let doors = haproxy.ok_or("HAProxy does not run")?.doors;
    let count = PEAK.run(rig, doors, QUICK.seconds)?;
    Ok(Sample { count, cpu_seconds: 0.0 }.per_second())
}

fn compare(case: Case, rounds: Rounds, rig: &Rig, proxies: &mut Vec<Proxy>) -> Result<Row, Error> {
    let mut measured: Vec<Measured> = Vec::new();
    for proxy in proxies.iter() {
        if proxy.engine == Engine::HaproxySplice && !case.is_bulk() {
            measured.push(Measured::NotServed("not asked".into()));
            continue;
        }
        measured.push(match tried(case.load, rig, proxy) {
            Ok(()) => Measured::Samples(Vec::new()),
            Err(why) if proxy.engine == Engine::Haproxy => {
                return Err(format!("{}: HAProxy: {why}", case.name).into());
            }
            Err(why) => Measured::NotServed(why),
        });
    }
    for round in 0..rounds.number {
        for turn in 0..proxies.len() {
            let at = (round + turn) % proxies.len();
            let Measured::Samples(samples) = &mut measured[at] else { continue };
            renew(proxies, at, rig)?;
            let proxy = &mut proxies[at];
            if let Err(why) = tried(case.load, rig, proxy) {
                eprintln!("{}: {} while it warms up: {why}", case.name, proxy.engine.name());
            }
            // A tool may stumble on a busy machine: once is forgiven, and the others' rounds are not thrown away.
            let tried = sample(case.load, rounds.seconds, rig, proxy)
                .or_else(|_| sample(case.load, rounds.seconds, rig, proxy));
            match tried {
                Ok(sample) => samples.push(sample),
                Err(why) => {
                    proxy.process.alive()?;
                    eprintln!("{}: {}: {why}", case.name, proxy.engine.name());
                    measured[at] = Measured::NotServed(why.to_string());
                }
            }
        }
    }
    Ok(Row { case, proxies: measured })
}

/// Starts a proxy anew.
fn renew(proxies: &mut Vec<Proxy>, at: usize, rig: &Rig) -> Result<(), Error> {
    let before = proxies.remove(at);
    let engine = before.engine;
    // It ends before the other one takes its files.
    drop(before);
    proxies.insert(at, Proxy::start(engine, rig)?);
    Ok(())
}

/// Whether the proxy serves this at all, and without an error.
fn tried(load: Load, rig: &Rig, proxy: &Proxy) -> Result<(), String> {
    let count = load.run(rig, proxy.doors, WARM_UP_SECONDS).map_err(|error| error.to_string())?;
    let least = load.body().saturating_mul(count.requests);
    if count.requests == 0 {
        Err("no request was answered".into())
    } else if count.errors > count.requests {
        Err(format!("{} of {} failed", count.errors, count.errors + count.requests))
    } else if count.bytes < least {
        Err(format!("{} bytes came instead of {least}", count.bytes))
    } else {
        Ok(())
    }
}

fn sample(load: Load, seconds: u32, rig: &Rig, proxy: &mut Proxy) -> Result<Sample, Error> {
    let pid = proxy.process.pid();
    let before = cpu_seconds(pid);
    let count = load.run(rig, proxy.doors, seconds);
    let used = cpu_seconds(pid) - before;
    proxy.process.alive()?;
    Ok(Sample { count: count?, cpu_seconds: used })
}
