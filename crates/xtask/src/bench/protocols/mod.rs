//! No request is lost, whatever is spoken: each protocol at a quarter of 2,000 requests/s while the platform works.
//!
//! HTTP/1.1 is asked by wrk, HTTP/2 by curl, gRPC streams by grpcio, WebSocket by Python's `websockets`. Of protocols
//! with sessions (streams, connections) a request is a message, and a session lasts a second. A session that breaks
//! off counts as failed, save when the instance that it led to was killed: nothing can save it then, and the next
//! one must work at once.

mod certificate;
mod client;
mod operation;
mod stack;

use std::path::Path;
use std::time::{Duration, Instant};

use client::{Answers, PROTOCOLS};
use operation::{OPERATIONS, Operation};
use stack::{Stack, Way};

use super::Error;
use super::figure::{Figure, Outcome};
use super::options::Options;
use super::platform::Platform;

/// The clients are under way this long before anything happens.
const LEAD: Duration = Duration::from_secs(1);
/// Whether a protocol is served is tried for so long.
const TRIAL_SECONDS: u64 = 1;
/// What is known of one protocol under one operation.
enum Cell {
    Answers(Answers),
    NotRun,
}

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    table(&mut Stack::start()?, |operation| options.wants(operation))
}

/// The same with containers of `image`.
pub fn with_containers(
    image: &str,
    platform: impl FnOnce(&str, &Path) -> Result<Platform, Error>,
) -> Result<Outcome, Error> {
    table(&mut Stack::start_in(image, platform)?, |_| true)
}

/// Does the operations that are wanted.
fn table(stack: &mut Stack, wants: impl Fn(&str) -> bool) -> Result<Outcome, Error> {
    let served: Vec<bool> = PROTOCOLS
        .iter()
        .map(|protocol| {
            let ways = [Way::Published, Way::Routed, Way::Secure];
            ways.into_iter().all(|way| {
                let answers = stack.ask(protocol, way, TRIAL_SECONDS);
                let works = answers.as_ref().is_ok_and(|answers| answers.requests > answers.failed);
                if !works {
                    let why = answers.err().map_or("most requests fail".into(), |e| e.to_string());
                    let why = why.lines().next().unwrap_or_default();
                    eprintln!("{}: not served, {way:?}: {why}", protocol.name);
                }
                works
            })
        })
        .collect();
    let mut columns = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| wants(operation.name)) {
        eprintln!("{}, {} s", operation.name, operation.seconds);
        columns.push((operation, under_load(operation, stack, &served)?));
    }
    Ok(Outcome { figures: figures(&columns), appendix: matrix(&columns) })
}

/// Runs every client while the operation is done.
fn under_load(
    operation: &Operation,
    stack: &mut Stack,
    served: &[bool],
) -> Result<Vec<Cell>, Error> {
    let asking: Vec<_> =
        PROTOCOLS.iter().map(|protocol| stack.asks(protocol, operation.way)).collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = asking
            .into_iter()
            .zip(served)
            .map(|(ask, served)| {
                scope.spawn(move || {
                    let answers = served.then(|| ask(operation.seconds));
                    answers.map(|answers| answers.map_err(|error| error.to_string()))
                })
            })
            .collect();
        std::thread::sleep(LEAD);
        let start = Instant::now();
        let done = (operation.act)(stack);
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

type Column<'a> = (&'a Operation, Vec<Cell>);

/// One figure for each protocol.
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
