//! The real engines serve what the routes say.

use keel_render::Engine;
use keel_route::snapshot::Snapshot;

use crate::cases::{self, Ask, Case, Expect};
use crate::echo::{Answer, Echo, ask};
use crate::engine::{Running, installed, own_address};
use crate::make::routed;

/// The bytes of a request.
fn request(ask: &Ask) -> String {
    let (method, target) = ask.line.split_once(' ').unwrap();
    let (host, path) = target.split_at(target.find('/').unwrap());
    let fields = ask.fields;
    let fields = fields.strip_prefix("Host:").unwrap_or(fields);
    let (fields, body) = fields.split_once("\r\n\r\n").unwrap_or((fields.trim_end(), ""));
    let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n{body}")
}

fn holds(answer: &Answer, expected: Expect) -> bool {
    let text = answer.text();
    let line = |text: &str, wanted: &str| {
        text.lines().any(|line| {
            let same = line == wanted;
            let (Some((name, value)), Some((wanted, v))) =
                (line.split_once(": "), wanted.split_once(": "))
            else {
                return same;
            };
            same || (name.eq_ignore_ascii_case(wanted) && value == v)
        })
    };
    let named = |text: &str, name: &str| {
        text.lines().any(|line| line.to_lowercase().starts_with(&format!("{name}:")))
    };
    match expected {
        Expect::Status(status) => answer.status == status,
        Expect::From(name) => {
            answer.status == 200 && text.starts_with(&format!("{name}\n")) || answer.name() == name
        }
        Expect::Sees(wanted) => line(&text, wanted),
        Expect::SeesNo(name) => !named(&text, name) && text.contains(" HTTP/1.1\n"),
        Expect::Field(wanted) => line(&answer.head, wanted),
        Expect::NoField(name) => !named(&answer.head, name),
    }
}

/// What does not come as it must.
fn failures(engine: Engine, case: &Case, echoes: &[(&'static str, Echo)]) -> Vec<String> {
    let bind = own_address();
    let addresses: Vec<_> = echoes.iter().map(|(name, echo)| (*name, echo.address)).collect();
    let snapshot: Snapshot = routed(bind, case.routes.clone(), cases::clusters(&addresses));
    let running = Running::start(engine, &snapshot);
    let mut failures = Vec::new();
    for wanted in &case.asks {
        let answer = ask(bind, wanted.from, request(wanted).as_bytes());
        for expected in wanted.expected {
            if !holds(&answer, *expected) {
                failures.push(format!(
                    "{engine:?}, {}: {} {:?} wants {expected:?}\n{}{}",
                    case.name,
                    wanted.line,
                    wanted.fields,
                    answer.head,
                    answer.text()
                ));
            }
        }
    }
    if !failures.is_empty() {
        failures.push(format!("{}\n{}", running.config(), running.log()));
    }
    failures
}

#[test]
fn the_table_of_cases() {
    let echoes = ["one", "two", "three"].map(|name| (name, Echo::new(name)));
    let mut found = Vec::new();
    for engine in installed() {
        for case in cases::cases() {
            if case.only.is_none_or(|only| only == engine) {
                found.extend(failures(engine, &case, &echoes));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}
