//! Request smuggling and its like: what we take, HAProxy and hyper take too, endpoints never see more requests than the
//! client meant, and clients never get an answer that is not theirs.
//!
//! Every case is sent, byte for byte, through our proxy, through HAProxy, and to a server (or client) made with hyper. The
//! results are in `docs/smuggling.md` ([`page`]).

mod answers;
mod page;
mod requests;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keel_model::Protocol;

use crate::proxy::{PATIENCE, Proxy};
use crate::recorder::{Recorder, Then};
use crate::rivals::{Haproxy, Hyper, hyper_hears};
use page::Part;

/// A client that hears nothing for so long ends its side, so that nobody waits for the rest of what has none. All that
/// is to get through says itself that it is the last.
const SILENCE: Duration = Duration::from_millis(500);

/// What is right.
#[derive(Clone, Copy, Debug)]
pub enum Meant {
    /// Nothing whole may get through.
    Refused,
    /// Exactly these get through.
    Passed(&'static [&'static str]),
    /// Exactly these, or it is refused.
    Either(&'static [&'static str]),
}

impl Meant {
    fn text(self) -> String {
        match self {
            Self::Refused => "refuse",
            Self::Passed(_) => "pass",
            Self::Either(_) => "either",
        }
        .to_owned()
    }

    /// What gets through, if anything does.
    fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Refused => &[],
            Self::Passed(wanted) | Self::Either(wanted) => wanted,
        }
    }
}

/// What somebody made of a case.
#[derive(Debug)]
struct Outcome {
    /// What got through whole.
    passed: Vec<String>,
    /// The answers that a client got.
    heard: Vec<String>,
    /// It was told that something is wrong, or nothing at all.
    refused: bool,
}

impl Outcome {
    fn judge(&self, meant: Meant, rivals: &[(&str, &Self)]) -> Vec<String> {
        let wanted = meant.wanted();
        let mut problems = Vec::new();
        let right = match meant {
            Meant::Passed(_) => self.passed == wanted,
            Meant::Refused | Meant::Either(_) => self.passed.is_empty() || self.passed == wanted,
        };
        if !right {
            problems.push(format!("meant: {meant:?}"));
        }
        if self.passed.is_empty() && !self.refused {
            problems.push("refused without saying so".to_owned());
        }
        for (name, rival) in rivals {
            if rival.refused && rival.passed.len() < self.passed.len() {
                problems.push(format!("more lenient than {name}: {rival:?}"));
            }
        }
        problems.iter().map(|problem| format!("{problem}; ours: {self:?}")).collect()
    }

    fn cell(&self, meant: Meant) -> String {
        let refusal = self.heard.iter().find(|a| !a.ends_with('…') && a.as_str() >= "4");
        match (&self.passed[..], refusal) {
            ([], Some(answer)) => format!("refuses ({})", &answer[..3]),
            ([], None) => "ends the connection".to_owned(),
            (passed, _) if passed == meant.wanted() => "passes".to_owned(),
            (passed, _) => format!("**passes `{}`**", passed.join("`, `")),
        }
    }
}

/// Sends `raw` on a connection of its own; all that comes back until its end.
fn exchange(address: SocketAddr, raw: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // It may be refused before all of it is sent, and the connection may be reset after the answer.
    let _ = stream.write_all(raw);
    let mut heard = Vec::new();
    // Not at once: HAProxy answers nothing more to a client that has ended its side.
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    if stream.read_to_end(&mut heard).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
        let _ = stream.shutdown(Shutdown::Write);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.read_to_end(&mut heard);
    }
    heard
}

/// The same with all of them at once.
fn exchanges(addresses: [SocketAddr; 3], raw: &[u8]) -> [Vec<u8>; 3] {
    std::thread::scope(|scope| {
        let clients = addresses.map(|address| scope.spawn(move || exchange(address, raw)));
        clients.map(|client| client.join().unwrap())
    })
}

/// The answers in what a client heard, in the strict reading: `status content`. With `…` at its end one was not complete.
fn answers(mut bytes: &[u8], mut is_head: bool) -> Vec<String> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else {
            answers.push(format!("{}…", String::from_utf8_lossy(&bytes[..bytes.len().min(20)])));
            break;
        };
        let status = head.code.unwrap();
        let value = |name: &str| {
            let field = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
            field.map(|h| String::from_utf8_lossy(h.value).into_owned())
        };
        let rest = &bytes[length..];
        let empty = std::mem::take(&mut is_head) || status < 200 || [204, 304].contains(&status);
        let body = match (value("transfer-encoding"), value("content-length")) {
            _ if empty => Some((0, Vec::new())),
            (Some(coding), None) if coding == "chunked" => crate::recorder::chunks(rest),
            (None, Some(announced)) => {
                let announced = announced.parse().ok();
                announced.and_then(|n| rest.get(..n).map(|body| (n, body.to_vec())))
            }
            (None, None) => Some((rest.len(), rest.to_vec())),
            both => panic!("a client was sent {both:?}"),
        };
        let Some((taken, content)) = body else {
            answers.push(format!("{status:03} {}…", rest.escape_ascii()));
            break;
        };
        answers.push(format!("{status:03} {}", content.escape_ascii()).trim_end().to_owned());
        bytes = &rest[taken..];
    }
    answers
}

#[test]
fn endpoints_see_what_the_client_meant_and_nothing_that_others_refuse() {
    let (recorder, behind_haproxy, hyper) = (Recorder::new(), Recorder::new(), Hyper::start());
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[recorder.address]);
    let haproxy = Haproxy::before(behind_haproxy.address);
    let outcome = |heard: &[u8], raw: &[u8], seen: Vec<String>| {
        let heard = answers(heard, raw.starts_with(b"HEAD "));
        let refused = heard.is_empty() || heard.iter().any(|a| a.as_str() >= "4");
        let passed = seen.into_iter().filter(|request| !request.ends_with('…')).collect();
        Outcome { passed, heard, refused }
    };
    let mut part = Part::new("requests");
    let mut problems = Vec::new();
    for (about, cases) in requests::all() {
        part.section(about);
        for case in cases {
            let [one, two, three] = exchanges([address, haproxy.address, hyper.address], &case.raw);
            let ours = outcome(&one, &case.raw, recorder.take());
            let haproxys = outcome(&two, &case.raw, behind_haproxy.take());
            let hypers = outcome(&three, &case.raw, hyper.take());
            let rivals = [("HAProxy", &haproxys), ("hyper", &hypers)];
            let found = ours.judge(case.meant, &rivals);
            problems.extend(found.iter().map(|p| format!("{about} / {}: {p}", case.name)));
            let cells = [&ours, &haproxys, &hypers].map(|outcome| outcome.cell(case.meant));
            let [keel, haproxy, hyper] = cells;
            part.row(case.name, [case.meant.text(), keel, haproxy, hyper]);
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    // Still alive, and nothing hangs.
    assert_eq!(crate::client::get(address, "/").status, 200);
    proxy.all_ended();
    part.check();
}

/// An endpoint that sends what it is told to `/1`, and something decent to all others.
fn treacherous(answer: &Arc<Mutex<(Vec<u8>, Then)>>) -> Recorder {
    let answer = Arc::clone(answer);
    Recorder::answering(move |request| match request {
        "GET /1" => answer.lock().unwrap().clone(),
        _ => (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond".to_vec(), Then::Keep),
    })
}

#[test]
fn clients_get_the_answers_to_their_requests_and_none_that_others_refuse() {
    const BOTH: &[u8] = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    const SECOND: &[u8] = b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = Arc::new(Mutex::new((Vec::new(), Then::Keep)));
    let endpoints = [treacherous(&answer), treacherous(&answer), treacherous(&answer)];
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[endpoints[0].address]);
    let haproxy = Haproxy::before(endpoints[1].address);
    let mut part = Part::new("answers");
    let mut problems = Vec::new();
    for (about, cases) in answers::all() {
        part.section(about);
        for case in cases {
            *answer.lock().unwrap() = (case.raw.clone(), case.then);
            let ours = first_of(answers(&exchange(address, BOTH), false));
            let haproxys = first_of(answers(&exchange(haproxy.address, BOTH), false));
            let hypers = first_of(hyper_hears(endpoints[2].address));
            let rivals = [("HAProxy", &haproxys), ("hyper", &hypers)];
            let mut found = ours.judge(case.meant, &rivals);
            // Nobody else gets what was left on the endpoint's connection, whichever worker serves him.
            for _ in 0..4 {
                let heard = answers(&exchange(address, SECOND), false);
                if heard != ["200 second"] {
                    found.push(format!("another client heard {heard:?}"));
                }
            }
            problems.extend(found.iter().map(|p| format!("{about} / {}: {p}", case.name)));
            let [keel, haproxy, hyper] =
                [&ours, &haproxys, &hypers].map(|outcome| outcome.cell(case.meant));
            part.row(case.name, [case.meant.text(), keel, haproxy, hyper]);
            endpoints.iter().for_each(|endpoint| drop(endpoint.take()));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    proxy.all_ended();
    part.check();
}

/// The first of two answers; the second one has to be the second one, if it came.
fn first_of(mut heard: Vec<String>) -> Outcome {
    if heard.last().is_some_and(|last| last == "200 second") {
        heard.pop();
    }
    // Announcements may be passed on or not.
    heard.retain(|answer| !answer.starts_with("10") || answer.starts_with("101"));
    let whole = |answer: &&String| !answer.ends_with('…') && !answer.starts_with('5');
    let passed: Vec<_> = heard.iter().filter(whole).cloned().collect();
    let refused = passed.is_empty();
    Outcome { passed, heard, refused }
}
