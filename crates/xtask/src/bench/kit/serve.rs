//! The backends: HTTP/1.1 answers made beforehand, an echo, and 1 MiB for each message. One thread.
//!
//! `serve http=PORT,… echo=PORT bulk=PORT`. HTTP knows requests without a body only. The port that was asked is
//! named in each answer, so that a client can tell the backends apart.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;

use super::poll::{Interest, Poll, Progress};
use super::{Arguments, Error};

/// Bytes read at once.
const READ: usize = 64 * 1024;
/// Longest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of one request of the bulk protocol.
const BULK_REQUEST: usize = 64;
/// Bytes of its answer.
const BULK_ANSWER: usize = 1 << 20;
/// What is asked for, and how long its body is; the first is the default.
const BODIES: [(&str, usize); 3] = [("/small", 128), ("/16k", 16 << 10), ("/1m", 1 << 20)];

/// What is spoken on a port.
#[derive(Clone)]
enum Service {
    Http(Rc<Vec<Rc<[u8]>>>),
    Echo,
    Bulk(Rc<[u8]>),
}

struct Connection {
    stream: TcpStream,
    service: Service,
    /// The beginning of a request.
    partial: Vec<u8>,
    owed: VecDeque<Rc<[u8]>>,
    /// Bytes of the first of these that are sent.
    sent: usize,
    waits_to_write: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut services = Vec::new();
    for port in arguments.list::<u16>("http")? {
        let answers = BODIES.iter().map(|(_, length)| answer(port, *length)).collect();
        services.push((port, Service::Http(Rc::new(answers))));
    }
    services.extend(arguments.list("echo")?.into_iter().map(|port| (port, Service::Echo)));
    let bulk: Rc<[u8]> = vec![b'b'; BULK_ANSWER].into();
    let bulk_ports = arguments.list("bulk")?.into_iter();
    services.extend(bulk_ports.map(|port| (port, Service::Bulk(Rc::clone(&bulk)))));
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for (port, service) in services {
        // In a container others do not come by its loopback address.
        let ip = std::env::var("LISTEN").ok().and_then(|text| text.parse().ok());
        let listener = TcpListener::bind((ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port))?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, listeners.len() as u64, Interest::Read)?;
        listeners.push((listener, service));
    }
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next = listeners.len() as u64;
    let mut scratch = vec![0; READ];
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready, None)?;
        for number in &ready {
            let listener = usize::try_from(*number).ok().and_then(|index| listeners.get(index));
            if let Some((listener, service)) = listener {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    poll.add(&stream, next, Interest::Read)?;
                    connections.insert(next, Connection::new(stream, service.clone()));
                    next += 1;
                }
            } else if let Some(connection) = connections.get_mut(number)
                && !connection.turn(*number, &poll, &mut scratch)?
            {
                connections.remove(number);
            }
        }
    }
}

fn answer(port: u16, length: usize) -> Rc<[u8]> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: bench\r\nX-Port: {port}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.resize(bytes.len() + length, b'x');
    bytes.into()
}

impl Connection {
    fn new(stream: TcpStream, service: Service) -> Self {
        let (partial, owed) = (Vec::new(), VecDeque::new());
        Self { stream, service, partial, owed, sent: 0, waits_to_write: false }
    }

    /// Reads and writes once; false when the connection is over.
    fn turn(&mut self, number: u64, poll: &Poll, scratch: &mut [u8]) -> Result<bool, Error> {
        if self.owed.is_empty() {
            match Progress::of(self.stream.read(scratch)) {
                Progress::Bytes(n) if self.received(&scratch[..n]) => {}
                Progress::Blocked => return Ok(true),
                Progress::Bytes(_) | Progress::Over => return Ok(false),
            }
        }
        while let Some(first) = self.owed.front() {
            match Progress::of(self.stream.write(&first[self.sent..])) {
                Progress::Bytes(n) => self.sent += n,
                Progress::Blocked => break,
                Progress::Over => return Ok(false),
            }
            if self.sent == first.len() {
                self.owed.pop_front();
                self.sent = 0;
            }
        }
        let waits_to_write = !self.owed.is_empty();
        if waits_to_write != self.waits_to_write {
            self.waits_to_write = waits_to_write;
            let interest = if waits_to_write { Interest::Write } else { Interest::Read };
            poll.change(&self.stream, number, interest)?;
        }
        Ok(true)
    }

    /// Notes what is owed for `bytes`; false if they are not understood.
    fn received(&mut self, bytes: &[u8]) -> bool {
        match &self.service {
            Service::Echo => self.owed.push_back(bytes.into()),
            Service::Bulk(answer) => {
                self.partial.extend_from_slice(bytes);
                let requests = self.partial.len() / BULK_REQUEST;
                self.partial.drain(..requests * BULK_REQUEST);
                self.owed.extend(std::iter::repeat_n(Rc::clone(answer), requests));
            }
            Service::Http(answers) => {
                self.partial.extend_from_slice(bytes);
                while let Some(end) = self.partial.windows(4).position(|end| end == b"\r\n\r\n") {
                    let wanted = BODIES.iter().position(|(path, _)| asks(&self.partial, path));
                    self.owed.push_back(Rc::clone(&answers[wanted.unwrap_or(0)]));
                    self.partial.drain(..end + 4);
                }
                return self.partial.len() <= MAX_HEAD;
            }
        }
        true
    }
}

fn asks(head: &[u8], path: &str) -> bool {
    head.strip_prefix(b"GET ").is_some_and(|rest| rest.starts_with(path.as_bytes()))
}
