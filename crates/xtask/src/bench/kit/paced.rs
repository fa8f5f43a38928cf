//! A client that asks at a constant rate whatever the answers do, and counts time from when it meant to ask.
//!
//! `paced target=ADDRESS path=PATH connections=N rate=PER_SECOND seconds=S`; prints JSON. A request whose time has
//! come while every connection waits for an answer is late from that moment on (no coordinated omission): a client
//! that asks again only after the answer would leave out just the requests that a stall delays.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde_json::json;

use super::poll::{Interest, Poll, Progress};
use super::{Arguments, Error};

/// Bytes read at once.
const READ: usize = 64 * 1024;
/// The clock is looked at this often at most; requests that are due by then go out together.
const TICK: Duration = Duration::from_micros(50);
/// Answers to the last requests are awaited for this long.
const PATIENCE: Duration = Duration::from_secs(2);
/// The beginning is not measured: connections to backends are opened.
const WARM_UP: Duration = Duration::from_millis(300);
/// The number of the timer.
const TIMER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    /// When the request that is being answered was meant to be sent.
    since: Option<Instant>,
    answer: Answer,
}

/// An answer that is being received.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    /// Bytes of the body still to come, once the head is complete.
    missing: Option<usize>,
}

struct Client {
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// Requests whose time has come while no connection was idle.
    late: VecDeque<Instant>,
    request: Vec<u8>,
    measured_from: Instant,
    micros: Vec<u32>,
    answered: u64,
    errors: u64,
}

pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let rate: f64 = arguments.get("rate")?;
    let seconds = arguments.seconds()?;
    let mut poll = Poll::new()?;
    let mut client = Client::connect(arguments, &poll)?;
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    let interval = Duration::from_secs_f64(1.0 / rate).max(TICK).try_into()?;
    let clock = Itimerspec { it_interval: interval, it_value: interval };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &clock)?;
    poll.add(&timer, TIMER, Interest::Read)?;
    let start = Instant::now();
    client.measured_from = start + WARM_UP;
    let end = client.measured_from + seconds;
    let mut asked = 0u32;
    let mut scratch = vec![0; READ];
    let mut ready = Vec::new();
    let due = |asked: u32| start + Duration::from_secs_f64(f64::from(asked) / rate);
    while due(asked) < end || (client.waits() && Instant::now() < end + PATIENCE) {
        poll.wait(&mut ready, Some(PATIENCE))?;
        for number in &ready {
            if *number == TIMER {
                let _ = rustix::io::read(&timer, &mut scratch[..8]);
            } else if let Ok(index) = usize::try_from(*number) {
                client.turn(index, &mut scratch)?;
            }
        }
        let now = Instant::now();
        while due(asked) <= now && due(asked) < end {
            client.ask(due(asked))?;
            asked += 1;
        }
    }
    println!("{}", client.report(seconds, rate));
    Ok(())
}

impl Client {
    fn connect(arguments: &Arguments, poll: &Poll) -> Result<Self, Error> {
        let target = arguments.target()?;
        let path: String = arguments.get("path")?;
        let mut connections = Vec::new();
        for number in 0..arguments.get::<u64>("connections")? {
            let stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            poll.add(&stream, number, Interest::Read)?;
            connections.push(Connection { stream, since: None, answer: Answer::default() });
        }
        Ok(Self {
            idle: (0..connections.len()).collect(),
            connections,
            late: VecDeque::new(),
            request: format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
            measured_from: Instant::now(),
            micros: Vec::new(),
            answered: 0,
            errors: 0,
        })
    }

    fn waits(&self) -> bool {
        self.idle.len() < self.connections.len()
    }

    /// Sends a request that was due at `due`, now or as soon as a connection is idle.
    fn ask(&mut self, due: Instant) -> Result<(), Error> {
        match self.idle.pop() {
            Some(index) => self.send(index, due),
            None => {
                self.late.push_back(due);
                Ok(())
            }
        }
    }

    fn send(&mut self, index: usize, due: Instant) -> Result<(), Error> {
        let connection = &mut self.connections[index];
        connection.since = Some(due);
        connection.stream.write_all(&self.request)?;
        Ok(())
    }

    fn turn(&mut self, index: usize, scratch: &mut [u8]) -> Result<(), Error> {
        let connection = &mut self.connections[index];
        let n = match Progress::of(connection.stream.read(scratch)) {
            Progress::Bytes(n) => n,
            Progress::Blocked => return Ok(()),
            Progress::Over => return Err("the proxy closed a connection".into()),
        };
        if !connection.answer.received(&scratch[..n])? {
            return Ok(());
        }
        let answer = std::mem::take(&mut connection.answer);
        let since = connection.since.take().ok_or("an answer that nobody asked for")?;
        if since >= self.measured_from {
            self.answered += 1;
            self.errors += u64::from(!answer.head.starts_with(b"HTTP/1.1 200"));
            self.micros.push(u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        match self.late.pop_front() {
            Some(due) => self.send(index, due),
            None => {
                self.idle.push(index);
                Ok(())
            }
        }
    }

    fn report(mut self, seconds: Duration, rate: f64) -> serde_json::Value {
        self.micros.sort_unstable();
        let percentile = |thousandths: usize| {
            let at = (self.micros.len() * thousandths / 1000).min(self.micros.len().max(1) - 1);
            self.micros.get(at).copied()
        };
        let unanswered = self.connections.iter().filter(|c| c.since.is_some()).count();
        json!({
            "requests": self.answered,
            "errors": self.errors + unanswered as u64 + self.late.len() as u64,
            "seconds": seconds.as_secs_f64(),
            "bytes": 0,
            "rate": rate,
            "p50_us": percentile(500),
            "p99_us": percentile(990),
            "p999_us": percentile(999),
        })
    }
}

impl Answer {
    /// Takes in a piece; true when the answer is complete.
    fn received(&mut self, mut bytes: &[u8]) -> Result<bool, Error> {
        if self.missing.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|end| end == b"\r\n\r\n") else {
                return Ok(false);
            };
            bytes = &bytes[(end + 4).saturating_sub(before)..];
            self.head.truncate(end + 4);
            self.missing = Some(content_length(&self.head).ok_or("an answer without a length")?);
        }
        let missing = self.missing.get_or_insert(0);
        *missing = missing.checked_sub(bytes.len()).ok_or("more than was announced")?;
        Ok(*missing == 0)
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if !name.eq_ignore_ascii_case("content-length") {
            return None;
        }
        value.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::Answer;

    #[test]
    fn an_answer_is_complete_with_its_last_byte_however_it_is_cut() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        for cut in 1..whole.len() {
            let mut answer = Answer::default();
            assert!(!answer.received(&whole[..cut]).unwrap(), "cut at {cut}");
            assert!(answer.received(&whole[cut..]).unwrap(), "cut at {cut}");
        }
        let too_much = [&whole[..], b"!"].concat();
        assert!(Answer::default().received(&too_much).is_err());
        assert!(Answer::default().received(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
