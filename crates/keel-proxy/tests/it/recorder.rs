//! An endpoint that notes exactly which requests it gets.
//!
//! One thread serves all connections, so that [`Recorder::take`] can tell when everything that was sent has been read:
//! on the loopback interface what was written is there to be read at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long it sleeps at most before it looks whether it is asked for something.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The endpoint. Ends with the process.
pub struct Recorder {
    pub address: SocketAddr,
    asked: Sender<()>,
    answers: Receiver<Vec<String>>,
}

impl Recorder {
    /// An endpoint that answers every request with `answer`, byte for byte.
    pub fn answering(answer: impl Fn(&str) -> (Vec<u8>, Then) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, requests) = channel();
        let (sender, answers) = channel();
        thread::spawn(move || serve(&listener, &answer, &requests, &sender));
        Self { address, asked, answers }
    }

    /// An endpoint that is content with everything.
    pub fn new() -> Self {
        Self::answering(|request| {
            let body = if request.starts_with("HEAD ") { "" } else { "ok" };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
            (answer.into_bytes(), Then::Keep)
        })
    }

    /// What has come since the last time: `METHOD target content`. With `…` at its end it was not complete.
    pub fn take(&self) -> Vec<String> {
        self.asked.send(()).unwrap();
        self.answers.recv_timeout(crate::proxy::PATIENCE).expect("the recorder lives")
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Keep,
    Close,
}

struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
    ended: bool,
}

fn serve(
    listener: &TcpListener,
    answer: &impl Fn(&str) -> (Vec<u8>, Then),
    asked: &Receiver<()>,
    answers: &Sender<Vec<String>>,
) {
    let mut connections: Vec<Connection> = Vec::new();
    let mut log = Vec::new();
    loop {
        if is_quiet(listener, &connections) && asked.try_recv().is_ok() {
            connections.retain(|c| {
                log.extend(incomplete(&c.bytes));
                c.bytes.is_empty()
            });
            if answers.send(std::mem::take(&mut log)).is_err() {
                return;
            }
        }
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            connections.push(Connection { stream, bytes: Vec::new(), ended: false });
        }
        for connection in &mut connections {
            connection.read(answer, &mut log);
        }
        connections.retain(|c| {
            if c.ended {
                log.extend(incomplete(&c.bytes));
            }
            !c.ended
        });
    }
}

/// Waits a little for something to read.
fn is_quiet(listener: &TcpListener, connections: &[Connection]) -> bool {
    let sockets = connections.iter().map(|c| c.stream.as_fd()).chain([listener.as_fd()]);
    let mut waiting: Vec<_> = sockets.map(|s| PollFd::from_borrowed_fd(s, PollFlags::IN)).collect();
    poll(&mut waiting, Some(&NAP)) == Ok(0)
}

fn incomplete(bytes: &[u8]) -> Option<String> {
    let text: String = String::from_utf8_lossy(bytes).chars().take(60).collect();
    (!bytes.is_empty()).then(|| {
        let first = text.lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
        let content = text.split("\r\n\r\n").nth(1).unwrap_or_default();
        format!("{first} {}…", content.escape_default())
    })
}

impl Connection {
    fn read(&mut self, answer: &impl Fn(&str) -> (Vec<u8>, Then), log: &mut Vec<String>) {
        let mut room = [0; 16 * 1024];
        match self.stream.read(&mut room) {
            Ok(0) => self.ended = true,
            Ok(n) => self.bytes.extend_from_slice(&room[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => self.ended = true,
        }
        while let Some((length, request)) = request(&self.bytes) {
            self.bytes.drain(..length);
            let (answer, then) = answer(&request);
            // Answers are short: they fit into the socket's buffer.
            let _ = self.stream.write_all(&answer);
            log.push(request);
            self.ended |= then == Then::Close;
        }
    }
}

/// The request at the start of `bytes` and how long it is, in the strict reading. What is not one stays incomplete.
fn request(bytes: &[u8]) -> Option<(usize, String)> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut head = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else { return None };
    let values = |name: &str| -> Vec<&str> {
        let named = head.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        named.map(|h| std::str::from_utf8(h.value).unwrap_or("?")).collect()
    };
    let rest = &bytes[length..];
    let (body, content) = match (&values("transfer-encoding")[..], &values("content-length")[..]) {
        ([], []) => (0, Vec::new()),
        ([], [announced]) => {
            let announced = announced.parse().ok()?;
            (announced, rest.get(..announced)?.to_vec())
        }
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => chunks(rest)?,
        (codings, lengths) => panic!("an endpoint was sent {codings:?} and {lengths:?}"),
    };
    let content = if content.len() > 40 {
        format!("{} bytes", content.len())
    } else {
        content.escape_ascii().to_string()
    };
    let (method, target) = (head.method?, head.path?);
    // HAProxy leaves the host in.
    let path = target.strip_prefix("http://").map(|t| t.find('/').map_or("/", |at| &t[at..]));
    let target = path.unwrap_or(target);
    Some((length + body, format!("{method} {target} {content}").trim_end().to_owned()))
}

/// The length of chunks, and their content; `None` if they are not complete.
pub fn chunks(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (mut at, mut content) = (0, Vec::new());
    loop {
        let httparse::Status::Complete((line, size)) =
            httparse::parse_chunk_size(&bytes[at..]).expect("an endpoint is sent good chunks")
        else {
            return None;
        };
        at += line;
        if size == 0 {
            break;
        }
        let end = at.checked_add(usize::try_from(size).unwrap())?;
        content.extend_from_slice(bytes.get(at..end)?);
        at = end + 2;
    }
    let end = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
    if end == 0 {
        return Some((at + 2, content));
    }
    let end = bytes[at..].windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((at + end + 4, content))
}
