//! Scripted endpoints: a thread per connection, driven by a function.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::sockopt;

use crate::proxy::PATIENCE;

/// An endpoint that can die.
pub struct Backend {
    pub address: SocketAddr,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
    open: Arc<Mutex<HashMap<usize, TcpStream>>>,
    dead: Arc<AtomicBool>,
}

impl Backend {
    /// Serves every connection with `script`.
    pub fn new(script: impl Fn(Connection) + Send + Sync + 'static) -> Self {
        Self::at((IpAddr::V4(Ipv4Addr::LOCALHOST), 0).into(), script)
    }

    pub fn at(address: SocketAddr, script: impl Fn(Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Self {
            address,
            connections: Arc::default(),
            open: Arc::default(),
            dead: Arc::default(),
        };
        let (connections, open) = (Arc::clone(&backend.connections), Arc::clone(&backend.open));
        let (dead, script) = (Arc::clone(&backend.dead), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if dead.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                let number = connections.fetch_add(1, Ordering::SeqCst);
                open.lock().unwrap().insert(number, stream.try_clone().unwrap());
                let (script, open) = (Arc::clone(&script), Arc::clone(&open));
                thread::spawn(move || {
                    script(Connection::new(stream));
                    open.lock().unwrap().remove(&number);
                });
            }
        });
        backend
    }

    /// Answers every request with its name, keeping connections.
    pub fn named(name: &'static str) -> Self {
        Self::new(move |mut connection| {
            while let Some(request) = connection.request() {
                connection.answer(&format!("{name}:{}", request.body.len()));
            }
        })
    }

    /// As `kill -9` does: the listener closes, every open connection is reset.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, which then drops the listener.
        drop(TcpStream::connect(self.address));
        for (_, stream) in self.open.lock().unwrap().drain() {
            let _ = sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        crate::proxy::until("the killed endpoint refuses", || {
            TcpStream::connect(self.address).err()
        });
    }
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A request as an endpoint sees it.
#[derive(Debug)]
pub struct Request {
    pub head: String,
    /// As it came, chunks and all.
    pub body: Vec<u8>,
}

/// A connection as an endpoint sees it.
pub struct Connection {
    pub reader: BufReader<TcpStream>,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// The next head; `None` at the end of the connection.
    pub fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        Some(head)
    }

    /// The next request with its body.
    pub fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        let body = read_body(&mut self.reader, &head)?;
        Some(Request { head, body })
    }

    pub fn send(&mut self, bytes: &str) {
        // Whether the other side is still there is for the test to say.
        let _ = self.reader.get_mut().write_all(bytes.as_bytes());
    }

    pub fn answer(&mut self, body: &str) {
        self.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    /// Breaks the connection, as soon as the script has ended.
    pub fn reset(self) {
        let stream = self.reader.into_inner();
        sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    }
}

/// The body that `head` announces.
pub fn read_body(reader: &mut impl BufRead, head: &str) -> Option<Vec<u8>> {
    let lower = head.to_lowercase();
    let field = |name: &str| {
        lower.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()))
    };
    let mut body = Vec::new();
    if let Some(length) = field("content-length:") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).ok()?;
    } else if field("transfer-encoding:").is_some() {
        loop {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).ok()?;
            let size = std::str::from_utf8(&line).ok()?.trim().split(';').next()?.to_owned();
            body.extend(&line);
            let size = usize::from_str_radix(&size, 16).ok()?;
            if size == 0 {
                break;
            }
            let from = body.len();
            body.resize(from + size + 2, 0);
            reader.read_exact(&mut body[from..]).ok()?;
        }
        let mut line = Vec::new();
        while line != b"\r\n" {
            line.clear();
            reader.read_until(b'\n', &mut line).ok()?;
            body.extend(&line);
        }
    }
    Some(body)
}

/// The connections of a server that nobody has closed.
pub fn established(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&format!(":{port:04X}")) && row[3] == "01").count()
}
