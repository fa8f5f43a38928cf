//! `shop load URL`: sends requests at a fixed rate or as fast as it can, bounded in time and number, and prints one JSON
//! object with what came back. Exit code 1 if any request failed.
//!
//! With a rate, latency counts from the moment when a request was due, so that a stalled server can't hide behind a
//! stalled client. A pooled connection that the other side has closed is replaced as in any HTTP client; `resent` counts
//! that.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep_until;

use crate::client::{MAX_IN_FLIGHT, Message, Target, Url};
use crate::http::X_INSTANCE;
use crate::knobs::Dice;

const USAGE: &str = "\
Send HTTP requests and print one JSON object: requests, failed, latency, and who answered.

Usage: shop load URL [FLAGS]

  --rate N          requests per second; 0, the default: as fast as the connections allow
  --connections N   at the same time, 1 to 256 [16]
  --seconds N       stop after so long [10]
  --requests N      stop after so many; 0: no limit [0]
  --checkout        buy a mug with every request (POST URL/api/checkout) instead of GET URL
  --acks FILE       with --checkout: append the number of every acknowledged order to FILE
  --progress        a line on stderr every second

Ends early on SIGINT or SIGTERM and prints what it has. Exit code: 0 if no request failed, else 1.";

/// Longest run.
const MAX_SECONDS: u64 = 86_400;
/// Different failures that are listed.
const MAX_FAILURE_KINDS: usize = 20;
/// Different instances that are listed.
const MAX_INSTANCES: usize = 1000;

#[derive(Debug, Clone)]
struct Plan {
    url: Url,
    rate: u64,
    connections: usize,
    time: Duration,
    requests: u64,
    checkout: bool,
    acks: Option<PathBuf>,
    progress: bool,
}

/// Sends the load that `arguments` describe.
pub fn run(arguments: &[&str]) -> ExitCode {
    if arguments.contains(&"--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let outcome = Plan::parse(arguments).map_err(|why| (2, why)).and_then(|plan| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| (1, error.to_string()))?;
        runtime.block_on(send(plan)).map_err(|error| (1, error.to_string()))
    });
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err((code, why)) => {
            eprintln!("shop load: {why}\nsee shop load --help");
            ExitCode::from(code)
        }
    }
}

impl Plan {
    fn parse(arguments: &[&str]) -> Result<Plan, String> {
        let mut words = arguments.iter();
        let url = words.next().ok_or("which URL?")?;
        let url = url.parse().map_err(|why| format!("{url}: {why}"))?;
        let mut plan = Plan {
            url,
            rate: 0,
            connections: 16,
            time: Duration::from_secs(10),
            requests: 0,
            checkout: false,
            acks: None,
            progress: false,
        };
        while let Some(&flag) = words.next() {
            let mut value = || words.next().ok_or(format!("{flag} needs a value"));
            match flag {
                "--rate" => plan.rate = number(flag, value()?, 0, 1_000_000)?,
                "--connections" => plan.connections = number(flag, value()?, 1, MAX_IN_FLIGHT)?,
                "--seconds" => {
                    plan.time = Duration::from_secs(number(flag, value()?, 1, MAX_SECONDS)?);
                }
                "--requests" => plan.requests = number(flag, value()?, 0, u64::MAX)?,
                "--checkout" => plan.checkout = true,
                "--acks" => plan.acks = Some(value()?.into()),
                "--progress" => plan.progress = true,
                other => return Err(format!("there is no flag {other}")),
            }
        }
        if plan.acks.is_some() && !plan.checkout {
            return Err("--acks needs --checkout".into());
        }
        Ok(plan)
    }
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    flag: &str,
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    text.parse()
        .ok()
        .filter(|number| (&least..=&most).contains(&number))
        .ok_or_else(|| format!("{flag} is a number from {least} to {most}, not '{text}'"))
}

#[derive(Default)]
struct Tally {
    /// Requests that have been given out.
    begun: u64,
    requests: u64,
    failed: u64,
    failures: BTreeMap<String, u64>,
    statuses: BTreeMap<String, u64>,
    instances: BTreeMap<String, u64>,
    latency: Histogram,
    acks: Option<std::fs::File>,
}

struct Run {
    plan: Plan,
    target: Target,
    begin: tokio::time::Instant,
    tally: Mutex<Tally>,
}

/// Sends it all; answers the number of failures.
async fn send(plan: Plan) -> std::io::Result<u64> {
    let acks = match &plan.acks {
        Some(path) => Some(std::fs::File::options().append(true).create(true).open(path)?),
        None => None,
    };
    let run = Arc::new(Run {
        target: Target::new("target", plan.url.clone()),
        begin: tokio::time::Instant::now(),
        tally: Mutex::new(Tally { acks, ..Tally::default() }),
        plan,
    });
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..run.plan.connections {
        let run = Arc::clone(&run);
        workers.spawn(async move { run.work().await });
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut reported = 0;
    loop {
        tokio::select! {
            done = workers.join_next() => if done.is_none() { break },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = second.tick(), if run.plan.progress => {
                let tally = run.lock();
                let (now, failed) = (tally.requests, tally.failed);
                eprintln!("{:>6} requests/s  {now:>9} in all  {failed} failed", now - reported);
                reported = now;
            }
        }
    }
    drop(workers);
    let elapsed = run.begin.elapsed().as_secs_f64();
    let tally = run.lock();
    let report = json!({
        "requests": tally.requests,
        "failed": tally.failed,
        "seconds": (elapsed * 1000.0).round() / 1000.0,
        "per_second": (tally.requests as f64 / elapsed).round(),
        "resent": run.target.resent(),
        "latency_ms": tally.latency.summary(),
        "statuses": tally.statuses,
        "failures": tally.failures,
        "instances": tally.instances,
    });
    println!("{report:#}");
    Ok(tally.failed)
}

impl Run {
    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next request, if there is to be one.
    fn next(&self) -> Option<u64> {
        let mut tally = self.lock();
        let number = tally.begun;
        if (self.plan.requests > 0 && number >= self.plan.requests)
            || self.due(number).saturating_duration_since(self.begin) >= self.plan.time
        {
            return None;
        }
        tally.begun += 1;
        Some(number)
    }

    fn due(&self, number: u64) -> tokio::time::Instant {
        match self.plan.rate {
            0 => tokio::time::Instant::now(),
            rate => self.begin + Duration::from_secs_f64(number as f64 / rate as f64),
        }
    }

    async fn work(&self) {
        let mut dice = Dice::new();
        while let Some(number) = self.next() {
            let due = self.due(number);
            sleep_until(due).await;
            let message = match self.plan.checkout {
                true => {
                    let key = format!("{:016x}{:016x}", dice.next_u64(), dice.next_u64());
                    let items = json!([{ "sku": "mug", "quantity": 1 }]);
                    let body = json!({ "name": "load", "items": items });
                    Message::post("/api/checkout", &key, &body)
                }
                false => Message::get(""),
            };
            let outcome = self.target.call(message).await;
            self.record(due.into_std().elapsed(), outcome);
        }
    }

    fn record(
        &self,
        latency: Duration,
        outcome: Result<crate::client::Answer, crate::client::CallError>,
    ) {
        let mut tally = self.lock();
        tally.requests += 1;
        tally.latency.add(latency);
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                tally.failed += 1;
                return count(&mut tally.failures, &error.to_string(), MAX_FAILURE_KINDS);
            }
        };
        count(&mut tally.statuses, answer.status.as_str(), MAX_FAILURE_KINDS);
        if let Some(instance) = answer.headers.get(X_INSTANCE).and_then(|it| it.to_str().ok()) {
            count(&mut tally.instances, instance, MAX_INSTANCES);
        }
        if !answer.status.is_success() {
            tally.failed += 1;
            let text: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
            let kind = format!("{}: {text}", answer.status.as_u16());
            return count(&mut tally.failures, &kind, MAX_FAILURE_KINDS);
        }
        if let Some(mut file) = tally.acks.take() {
            let order: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let written = match order.get("id").and_then(serde_json::Value::as_str) {
                Some(id) => writeln!(file, "{id}").map_err(|error| error.to_string()),
                None => Err("an acknowledged order without a number".to_owned()),
            };
            if let Err(why) = written {
                tally.failed += 1;
                count(&mut tally.failures, &why, MAX_FAILURE_KINDS);
            }
            tally.acks = Some(file);
        }
    }
}

fn count(counts: &mut BTreeMap<String, u64>, kind: &str, limit: usize) {
    if let Some(count) = counts.get_mut(kind) {
        *count += 1;
    } else if counts.len() < limit {
        counts.insert(kind.to_owned(), 1);
    } else {
        *counts.entry("others".to_owned()).or_default() += 1;
    }
}

/// Latencies in microseconds, in buckets that are 1/32 of their value wide: constant memory, error up to 3 %.
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets for each power of two.
const STEPS: u64 = 32;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; (64 * STEPS) as usize], count: 0, max: 0 }
    }
}

impl Histogram {
    fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// The latency that `fraction` of the requests did not exceed.
    fn quantile(&self, fraction: f64) -> u64 {
        let rank = (self.count as f64 * fraction).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return upper(index).min(self.max);
            }
        }
        self.max
    }

    fn summary(&self) -> serde_json::Value {
        let ms = |micros: u64| micros as f64 / 1000.0;
        json!({
            "p50": ms(self.quantile(0.50)),
            "p90": ms(self.quantile(0.90)),
            "p99": ms(self.quantile(0.99)),
            "p999": ms(self.quantile(0.999)),
            "max": ms(self.max),
        })
    }
}

fn bucket(micros: u64) -> usize {
    let shift = micros.max(1).ilog2().saturating_sub(STEPS.ilog2());
    (u64::from(shift) * STEPS + (micros >> shift)) as usize
}

/// The largest value in a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    let base = index - shift * STEPS;
    ((base + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_and_bounded() {
        let plan = Plan::parse(&["http://x/a", "--rate", "50", "--connections", "4"]).unwrap();
        assert_eq!((plan.rate, plan.connections, plan.url.path()), (50, 4, "/a"));
        for bad in [
            &["http://x", "--connections", "0"][..],
            &["http://x", "--rate"],
            &["http://x", "--rte", "1"],
            &["http://x", "--acks", "f"],
            &["x"],
            &[],
        ] {
            assert!(Plan::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for micros in (0..5000).chain([1 << 20, (1 << 20) + 77, u64::MAX >> 1]) {
            let index = bucket(micros);
            assert!(micros <= upper(index), "{micros}");
            assert!(index == 0 || micros > upper(index - 1), "{micros}");
        }
    }

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|micros| histogram.add(Duration::from_micros(micros)));
        for (fraction, exact) in [(0.5, 5000.0), (0.99, 9900.0), (1.0, 10_000.0)] {
            let found = histogram.quantile(fraction) as f64;
            assert!((found / exact - 1.0).abs() < 0.04, "{fraction}: {found}");
        }
    }
}
