//! Endpoints that answer with what they saw, and clients that say exactly what they are told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Everything that a test waits for comes within this time, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// An endpoint. It answers with its name, the request line and the fields of the request, one a line. Fields of the
/// request tell it what to do: `X-Want-Status`, `X-Want-Size`, `X-Want-Type`, `X-Want-Field`.
pub struct Echo {
    pub address: SocketAddr,
    /// Requests so far.
    pub requests: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Echo {
    pub fn new(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let echo = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            stopped: Arc::default(),
        };
        let (requests, stopped) = (Arc::clone(&echo.requests), Arc::clone(&echo.stopped));
        let name = name.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (name, requests) = (name.clone(), Arc::clone(&requests));
                let Ok(stream) = stream else { continue };
                thread::spawn(move || serve(stream, &name, &requests));
            }
        });
        echo
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(stream: TcpStream, name: &str, requests: &AtomicUsize) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let head = read_head(&mut reader)?;
        let body = read_body(&mut reader, &head)?;
        requests.fetch_add(1, Ordering::SeqCst);
        let want = |field: &str| value(&head, field);
        let status = want("x-want-status").unwrap_or("200");
        let kind = want("x-want-type").unwrap_or("text/plain");
        let size = want("x-want-size").and_then(|size| size.parse().ok()).unwrap_or(0);
        let extra = want("x-want-field").map_or_else(String::new, |field| format!("{field}\r\n"));
        let head = head.replace("\r\n", "\n");
        let answer = format!("{name}\n{head}body {}\n{}", body.len(), "x".repeat(size));
        let out = format!(
            "HTTP/1.1 {status} Fine\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nX-Name: {name}\r\n{extra}\r\n{answer}",
            answer.len()
        );
        reader.get_mut().write_all(out.as_bytes()).ok()?;
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).ok()? == 0 {
            return None;
        }
        head.push_str(&String::from_utf8_lossy(&line));
    }
    Some(head)
}

/// The value of a field of a head.
pub fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn read_body(reader: &mut impl BufRead, head: &str) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = value(head, "content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if value(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).ok()?;
            body.extend(&piece[..size]);
            if size == 0 {
                break;
            }
        }
    }
    Some(body)
}

/// An answer as a client sees it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The endpoint that answered.
    pub fn name(&self) -> &str {
        value(&self.head, "x-name").unwrap_or_default()
    }
}

/// Sends one request on a connection of its own from `from` and reads its answer; an empty one if there is none.
pub fn ask(to: SocketAddr, from: Ipv4Addr, request: &[u8]) -> Answer {
    try_ask(to, from, request).unwrap_or_default()
}

fn try_ask(to: SocketAddr, from: Ipv4Addr, request: &[u8]) -> Option<Answer> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).ok()?;
    socket.connect(&to.into()).ok()?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut reader = BufReader::new(stream);
    reader.get_mut().write_all(request).ok()?;
    let head = read_head(&mut reader)?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let bare = request.starts_with(b"HEAD ") || status == 204 || status == 304;
    let body = match bare {
        true => Vec::new(),
        false if value(&head, "content-length").is_some() => read_body(&mut reader, &head)?,
        false if value(&head, "transfer-encoding").is_some() => read_body(&mut reader, &head)?,
        false => {
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).ok()?;
            rest
        }
    };
    Some(Answer { status, head, body })
}

/// Waits for `find` to find something.
pub fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
