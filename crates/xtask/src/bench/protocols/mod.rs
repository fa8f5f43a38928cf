//! No request is lost, whatever is spoken: each protocol at a quarter of 2,000 requests/s while the platform works.
//!
//! HTTP/1.1 is asked by wrk, HTTP/2 by h2load, gRPC streams by grpcio, WebSocket by Python's `websockets`. Of protocols
//! with sessions (streams, connections) a request is a message, and a session lasts a second. A session that breaks
//! off counts as failed, save when the instance that it led to was killed: nothing can save it then, and the next
//! one must work at once.

mod client;

use std::time::{Duration, Instant};

use client::{Answers, PROTOCOLS, Protocol};

use super::Error;
use super::figure::{Figure, Outcome};
use super::lossless::settled;
use super::options::Options;
use super::platform::{Platform, binary, root, signal};
use super::process::free_port;

/// The clients are under way this long before anything happens.
const LEAD: Duration = Duration::from_secs(1);
/// Whether a protocol is served is tried for so long.
const TRIAL_SECONDS: u64 = 1;
/// Services of the stack; each runs two instances.
const SERVICES: [&str; 3] = ["web", "grpc", "websocket"];

type Act = fn(&mut Platform) -> Result<(), Error>;

/// Something that must not cost a request.
struct Operation {
    name: &'static str,
    /// The clients ask for so long, which is longer than it takes.
    seconds: u64,
    /// Sessions may break off.
    cuts: bool,
    /// `None`: not there yet.
    act: Option<Act>,
}

const OPERATIONS: &[Operation] = &[
    Operation { name: "endpoint killed", seconds: 12, cuts: true, act: Some(kill) },
    Operation { name: "scaled up and down", seconds: 25, cuts: false, act: Some(scale) },
    Operation { name: "rolling update", seconds: 75, cuts: false, act: Some(update) },
    Operation { name: "server killed", seconds: 12, cuts: false, act: Some(kill_server) },
    Operation { name: "proxy replaced", seconds: 12, cuts: false, act: None },
    Operation { name: "route changed", seconds: 12, cuts: false, act: None },
    Operation { name: "certificate changed", seconds: 12, cuts: false, act: None },
];

/// What is known of one protocol under one operation.
enum Cell {
    Answers(Answers),
    NotRun,
}

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let directory = root().join("target/bench/protocols");
    std::fs::create_dir_all(&directory)?;
    client::write_scripts(&directory)?;
    let file = directory.join("compose.yaml");
    std::fs::write(&file, STACK)?;
    let mut platform = Platform::start("protocols-state", &file)?;
    platform.set("XTASK", &binary("xtask").to_string_lossy());
    platform.set("SCRIPTS", &directory.to_string_lossy());
    let mut ports = Vec::new();
    for service in SERVICES {
        let port = free_port()?;
        platform.set(&format!("{}_PORT", service.to_uppercase()), &port.to_string());
        ports.push(port);
    }
    platform.keel(&["up", "-d", "--wait"])?;
    let port_of = |protocol: &Protocol| {
        let at = SERVICES.iter().position(|service| *service == protocol.service);
        at.map_or(0, |at| ports[at])
    };
    let mut served = Vec::new();
    for protocol in PROTOCOLS {
        let answers = protocol.ask(&directory, port_of(protocol), TRIAL_SECONDS);
        let works = answers.as_ref().is_ok_and(|answers| answers.requests > answers.failed);
        if !works {
            let why = answers.err().map_or("most requests fail".into(), |error| error.to_string());
            eprintln!("{}: not served: {}", protocol.name, why.lines().next().unwrap_or(""));
        }
        served.push(works);
    }
    let mut columns = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| options.wants(operation.name)) {
        let Some(act) = operation.act else {
            columns.push((operation, PROTOCOLS.iter().map(|_| Cell::NotRun).collect()));
            continue;
        };
        eprintln!("{}, {} s", operation.name, operation.seconds);
        let cells = under_load(operation, act, &mut platform, |at| {
            let protocol = &PROTOCOLS[at];
            served[at].then(|| protocol.ask(&directory, port_of(protocol), operation.seconds))
        })?;
        columns.push((operation, cells));
    }
    Ok(Outcome { figures: figures(&columns), appendix: matrix(&columns) })
}

/// Runs every client while `act` is done.
fn under_load(
    operation: &Operation,
    act: Act,
    platform: &mut Platform,
    ask: impl Fn(usize) -> Option<Result<Answers, Error>> + Sync,
) -> Result<Vec<Cell>, Error> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..PROTOCOLS.len())
            .map(|at| scope.spawn(move || ask(at).map(|r| r.map_err(|error| error.to_string()))))
            .collect();
        std::thread::sleep(LEAD);
        let start = Instant::now();
        let done = act(platform);
        let took = start.elapsed() + LEAD;
        let mut cells = Vec::new();
        for client in clients {
            let answers = client.join().map_err(|_| "a client's thread failed")?;
            cells.push(answers.transpose()?.map_or(Cell::NotRun, Cell::Answers));
        }
        done?;
        if took > Duration::from_secs(operation.seconds) {
            return Err(format!("{} took {took:?}, longer than the traffic", operation.name).into());
        }
        Ok(cells)
    })
}

fn kill(platform: &mut Platform) -> Result<(), Error> {
    for service in SERVICES {
        let (_, pid) = platform.running(service)?.first().cloned().ok_or("nothing runs")?;
        signal(pid, "-KILL");
    }
    settled(platform)
}

fn scale(platform: &mut Platform) -> Result<(), Error> {
    for number in [4, 2] {
        let wanted = SERVICES.map(|service| format!("{service}={number}"));
        let mut words = vec!["scale"];
        words.extend(wanted.iter().map(String::as_str));
        platform.keel(&words)?;
        settled(platform)?;
    }
    Ok(())
}

fn update(platform: &mut Platform) -> Result<(), Error> {
    platform.set("REVISION", "two");
    platform.keel(&["up", "-d", "--wait"])?;
    settled(platform)
}

fn kill_server(platform: &mut Platform) -> Result<(), Error> {
    signal(platform.server_pid()?, "-KILL");
    std::thread::sleep(LEAD);
    platform.server()?;
    settled(platform)
}

type Column<'a> = (&'a Operation, Vec<Cell>);

/// One figure for each protocol and one for each operation that cannot be tried yet.
fn figures(columns: &[Column]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (at, protocol) in PROTOCOLS.iter().enumerate() {
        let tried = columns.iter().filter_map(|(operation, cells)| match &cells[at] {
            Cell::Answers(answers) => Some(answers.lost(operation.cuts)),
            Cell::NotRun => None,
        });
        let lost: Vec<u64> = tried.collect();
        let name = format!("{}: failed requests under {} operations", protocol.name, lost.len());
        #[allow(clippy::cast_precision_loss)]
        figures.push(if lost.is_empty() {
            Figure::missing(
                format!("{}: failed requests", protocol.name),
                0.0,
                "",
                "not served yet",
            )
        } else {
            Figure::new(name, lost.iter().sum::<u64>() as f64, 0.0, "")
        });
    }
    for (operation, _) in columns.iter().filter(|(operation, _)| operation.act.is_none()) {
        let name = format!("{}: failed requests", operation.name);
        figures.push(Figure::missing(name, 0.0, "", "not there yet"));
    }
    figures
}

/// Failed of all requests, for each protocol and operation.
fn matrix(columns: &[Column]) -> String {
    let mut text = String::from(
        "Failed requests of all, with sessions that broke off in brackets (allowed only where their instance was \
         killed).\n\n| |",
    );
    for (operation, _) in columns {
        text += &format!(" {} |", operation.name);
    }
    text += &format!("\n|---|{}\n", "---:|".repeat(columns.len()));
    for (at, protocol) in PROTOCOLS.iter().enumerate() {
        text += &format!("| {} |", protocol.name);
        for (_, cells) in columns {
            text += &match &cells[at] {
                Cell::Answers(Answers { requests, failed, cut: 0 }) => {
                    format!(" {failed} of {requests} |")
                }
                Cell::Answers(Answers { requests, failed, cut }) => {
                    format!(" {failed} of {requests} ({cut}) |")
                }
                Cell::NotRun => " not run |".to_owned(),
            };
        }
        text += "\n";
    }
    text
}

const STACK: &str = r#"name: protocols
x-service: &service
  restart: always
  environment: { REVISION: "${REVISION:-one}" }
  deploy: { replicas: 2, update_config: { order: start-first, parallelism: 1, monitor: 2s } }
services:
  web:
    <<: *service
    command: ["${XTASK}", "bench-kit", "serve", "http=${PORT}"]
    ports: ["127.0.0.1:${WEB_PORT}:80"]
  grpc:
    <<: *service
    command: ["/usr/bin/python3", "${SCRIPTS}/grpc_echo.py", "serve"]
    ports: ["127.0.0.1:${GRPC_PORT}:80"]
  websocket:
    <<: *service
    command: ["/usr/bin/python3", "${SCRIPTS}/websocket_echo.py", "serve"]
    ports: ["127.0.0.1:${WEBSOCKET_PORT}:80"]
"#;
