//! What endpoint changes cost: how long until one is in force, and what a thousand a second take from the traffic.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::case::CONNECTIONS;
use super::configuration::{cluster, endpoint};
use super::control::Control;
use super::engine::{Doors, Running};
use super::load::Load;
use super::rig::Rig;
use super::{FULL, QUICK, Sample};
use crate::bench::Error;
use crate::bench::figure::{Figure, Outcome};
use crate::bench::options::Options;
use crate::bench::platform::{cpu_seconds, resident_mib};
use crate::bench::process::free_port;

/// The large configuration.
const LISTENERS: usize = 5_000;
/// Endpoints behind each of its listeners: 50,000 in all.
const ENDPOINTS: usize = 10;
/// Changes whose way is timed.
const CHANGES: usize = 500;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(20);
/// Requests per second meanwhile.
const RATE: f64 = 5_000.0;
/// Services of the configuration whose throughput is watched.
const SERVICES: usize = 200;
/// Changes per second meanwhile.
const CHANGES_PER_SECOND: u32 = 1_000;

/// Changes that were told and are not in force: 10 ms at this rate.
const UNDERWAY: usize = 10;

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let rig = Rig::start("proxy-change")?;
    let mut figures = Vec::new();
    if options.wants("large") {
        figures.extend(large(&rig, options)?);
    }
    if options.wants("throughput") {
        figures.extend(throughput(&rig, options)?);
    }
    Ok(figures.into())
}

/// `listeners` services at a port of many loopback addresses. The first has real backends, the others endpoints where
/// nothing listens and nobody asks.
fn snapshot(rig: &Rig, listeners: usize, port: u16) -> Value {
    let address =
        |network: usize, index: usize| format!("127.{network}.{}.{}", index / 250, index % 250 + 1);
    let id = service;
    let mut clusters = serde_json::Map::new();
    let mut all = Vec::new();
    for index in 0..listeners {
        all.push(json!({
            "bind": format!("{}:{port}", address(78, index)),
            "protocol": "auto",
            "cluster": id(index),
            "published": false,
        }));
        let endpoints = if index == 0 {
            cluster("service-0", &rig.backends.http)
        } else {
            let away = |n: usize| {
                endpoint(
                    &format!("bench-service-{index}-{n}"),
                    &format!("{}:{}", address(100 + n, index), 9),
                    "ready",
                )
            };
            json!({"endpoints": (0..ENDPOINTS).map(away).collect::<Vec<_>>(), "expected": true})
        };
        clusters.insert(id(index), endpoints);
    }
    json!({"generation": 1, "listeners": all, "clusters": clusters})
}

/// The name of a cluster.
fn service(index: usize) -> String {
    format!("bench/service-{index}:80")
}

/// What changes when service `index` gets its endpoint `back` again, and loses another (draining).
fn changed(
    snapshot: &Value,
    index: usize,
    back: Option<usize>,
    without: Option<usize>,
) -> (String, String) {
    let id = service(index);
    let endpoints = &snapshot["clusters"][&id]["endpoints"];
    let mut set: Vec<Value> = back.into_iter().map(|at| endpoints[at].clone()).collect();
    if let Some(at) = without {
        let mut endpoint = endpoints[at].clone();
        endpoint["state"] = "draining".into();
        set.push(endpoint);
    }
    (id, Value::from(set).to_string())
}

fn large(rig: &Rig, options: &Options) -> Result<Vec<Figure>, Error> {
    let port = free_port()?;
    let snapshot = snapshot(rig, LISTENERS, port);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let proxy = Running::keel(rig, &snapshot, None, workers)?;
    let mut control = Control::connect(&proxy.socket, &snapshot)?;
    let started = start.elapsed().as_secs_f64();
    let resident = resident_mib(proxy.process.pid());
    let first = SocketAddr::from((Ipv4Addr::new(127, 78, 0, 1), port));
    let changes = if options.quick { CHANGES / 5 } else { CHANGES };
    let seconds = PAUSE.as_secs_f64() * changes as f64 + 2.0;
    let (mut times, mut stale) = (Vec::new(), 0u32);
    let load = std::thread::scope(|scope| -> Result<_, Error> {
        let words = format!(
            "paced target={first} path=/small connections={CONNECTIONS} rate={RATE} seconds={seconds}"
        );
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let patience = Duration::from_secs_f64(seconds + 10.0);
        let load =
            scope.spawn(move || rig.kit(&words, patience).map_err(|error| error.to_string()));
        std::thread::sleep(Duration::from_millis(500));
        let mut client = Client::connect(first)?;
        let mut gone = BTreeMap::new();
        for change in 0..changes {
            // Every second change is one of the service that is asked, whose answers show whether it is in force.
            let real = change % 2 == 0;
            let index = if real { 0 } else { change % LISTENERS };
            let without = change / 2 % rig.backends.http.len();
            let back = gone.insert(index, without);
            let (id, endpoints) = changed(&snapshot, index, back, Some(without));
            let since = Instant::now();
            control.change(&id, &endpoints)?;
            times.push(since.elapsed().as_secs_f64() * 1e3);
            if real && client.ask()? == rig.backends.http[without] {
                stale += 1;
            }
            std::thread::sleep(PAUSE.saturating_sub(since.elapsed()));
        }
        Ok(load.join().map_err(|_| "the client's thread failed")??)
    })?;
    let load: Value = serde_json::from_str(&load)?;
    times.sort_by(f64::total_cmp);
    let at = |hundredths: usize| times[(times.len() * hundredths / 100).min(times.len() - 1)];
    let what = "5,000 listeners, 50,000 endpoints";
    Ok(vec![
        Figure::new(format!("{what}: resident"), resident, 300.0, "MiB"),
        Figure::told(format!("{what}: start to every listener open"), started, "s"),
        Figure {
            spread: Some((times[0], at(100))),
            ..Figure::new(
                format!("{what}: change in force on {workers} cores at {RATE} requests/s, p99"),
                at(99),
                10.0,
                "ms",
            )
        },
        Figure::told("the same, median", at(50), "ms"),
        Figure::new(
            "answers of an endpoint after its withdrawal was in force",
            stale.into(),
            0.0,
            "",
        ),
        Figure::new(
            "requests that failed meanwhile",
            load["errors"].as_f64().unwrap_or(f64::INFINITY),
            0.0,
            "",
        ),
    ])
}

fn throughput(rig: &Rig, options: &Options) -> Result<Vec<Figure>, Error> {
    let port = free_port()?;
    let snapshot = snapshot(rig, SERVICES, port);
    // The load tools ask at `localhost`; the first service listens there.
    let mut here = snapshot.clone();
    here["listeners"][0]["bind"] = format!("127.0.0.1:{port}").into();
    let proxy = Running::keel(rig, &here, Some(&rig.proxy_cores), 1)?;
    let mut control = Control::connect(&proxy.socket, &here)?;
    let doors = Doors { http: port, ..Doors::default() };
    let load = Load::Http { connections: CONNECTIONS, path: "/small", tls: false };
    let rounds = if options.quick { QUICK } else { FULL };
    let mut measure = |changing: bool| -> Result<(Sample, f64), Error> {
        let pid = proxy.process.pid();
        let before = cpu_seconds(pid);
        let ended = AtomicBool::new(!changing);
        let (count, changes) = std::thread::scope(|scope| {
            let changer = scope.spawn(|| {
                leave(&rig.proxy_cores);
                changes_until(&ended, &mut control, &snapshot).map_err(|error| error.to_string())
            });
            let count = load.run(rig, doors, rounds.seconds);
            ended.store(true, Ordering::Relaxed);
            (count, changer.join())
        });
        let cpu_seconds = cpu_seconds(pid) - before;
        let sample = Sample { count: count?, cpu_seconds };
        Ok((sample, changes.map_err(|_| "the changer's thread failed")??))
    };
    measure(true)?;
    let (mut lost, mut dearer, mut rates, mut failed) = (vec![], vec![], vec![], 0);
    for round in 0..rounds.number {
        let changing_first = round % 2 == 0;
        let one = measure(changing_first)?;
        let other = measure(!changing_first)?;
        let (with, without) = if changing_first { (one, other) } else { (other, one) };
        lost.push((1.0 - with.0.per_second() / without.0.per_second()) * 100.0);
        dearer.push((1.0 - without.0.cpu_us() / with.0.cpu_us()) * 100.0);
        rates.push(with.1);
        failed += with.0.count.errors + without.0.count.errors;
    }
    let what = format!("{CHANGES_PER_SECOND} changes/s, {SERVICES} services");
    Ok(vec![
        Figure::median(format!("{what}: throughput lost"), &lost, 5.0, "%"),
        // What is lost when the proxy's CPU is what limits.
        Figure::median(format!("{what}: requests per CPU second lost"), &dearer, 5.0, "%"),
        Figure::median(
            format!("{what}: of these not in force in time, in %"),
            &rates.iter().map(|rate| 100.0 - rate.min(100.0)).collect::<Vec<_>>(),
            1.0,
            "%",
        ),
        #[allow(clippy::cast_precision_loss)]
        Figure::new("requests that failed meanwhile", failed as f64, 0.0, ""),
    ])
}

/// Keeps this thread off a core whose time is measured.
fn leave(core: &str) {
    let mut cores = CpuSet::new();
    let others = 0..std::thread::available_parallelism().map_or(1, usize::from);
    others.filter(|other| core != other.to_string()).for_each(|other| cores.set(other));
    if let Err(error) = sched_setaffinity(None, &cores) {
        eprintln!("the changes take some of the proxy's time: {error}");
    }
}

/// Makes changes at the wanted rate until `ended`; how many were in force by then, in percent of those wanted.
fn changes_until(
    ended: &AtomicBool,
    control: &mut Control,
    snapshot: &Value,
) -> Result<f64, Error> {
    let interval = Duration::from_secs(1) / CHANGES_PER_SECOND;
    let mut reader = control.reader()?;
    // Each service loses an endpoint and gets it back in turns. Written before, as the time for it would be the clients'.
    let texts = |index| {
        [(None, Some(1)), (Some(1), None)]
            .map(|(back, without)| changed(snapshot, index, back, without).1)
    };
    let texts: Vec<_> = (0..SERVICES).map(|index| (service(index), texts(index))).collect();
    let start = Instant::now();
    let mut made = 0u32;
    let mut underway = VecDeque::new();
    while !ended.load(Ordering::Relaxed) {
        let due = start + interval * made;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let turn = usize::try_from(made)?;
        let (id, texts) = &texts[turn % SERVICES];
        let generation = control.announce(id, &texts[turn / SERVICES % 2])?;
        // As the server does it: changes are told when they come, whether or not earlier ones are in force.
        underway.push_back(generation);
        if underway.len() > UNDERWAY {
            reader.acknowledged(underway.pop_front().unwrap_or_default())?;
        }
        made += 1;
    }
    let wanted = start.elapsed().as_secs_f64() * f64::from(CHANGES_PER_SECOND);
    if let Some(last) = underway.back() {
        reader.acknowledged(*last)?;
    }
    Ok(f64::from(made) / wanted * 100.0)
}

/// A client on one kept connection.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    /// Asks for something small; the port of the backend that answered.
    fn ask(&mut self) -> Result<u16, Error> {
        self.0.write_all(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        // The body of a small answer is 128 times the letter x.
        while !answer.ends_with(&[b'x'; 128]) {
            let n = self.0.read(&mut piece)?;
            if n == 0 {
                return Err("the proxy closed a connection".into());
            }
            answer.extend_from_slice(&piece[..n]);
        }
        let head = String::from_utf8_lossy(&answer).into_owned();
        let port = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("x-port") { value.trim().parse().ok() } else { None }
        });
        port.ok_or_else(|| format!("an answer without a port: {head}").into())
    }
}
