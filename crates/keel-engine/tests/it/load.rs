//! Clients that ask all the time and count what fails.
//!
//! A connection that was kept open may be closed by the other side at any time. A request that crosses with that gets no
//! answer, and clients repeat it on a new connection (RFC 9112, 9.3.1), as these do. On a new connection every
//! request must be answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::driver::PATIENCE;

const CLIENTS: usize = 8;
/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(4);

type Connection = BufReader<TcpStream>;

fn connect(to: SocketAddr) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// An answer: its status, its body, and whether the connection stays open.
fn exchange(connection: &mut Connection) -> std::io::Result<(u16, String, bool)> {
    connection.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n")?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head)? == 0 {
            return Err(std::io::Error::other(format!("no answer but {head:?}")));
        }
    }
    let lower = head.to_lowercase();
    let field = |name: &str| {
        lower.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()))
    };
    let length = field("content-length:").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    let status = head[9..12].parse().map_err(std::io::Error::other)?;
    let open = field("connection:").as_deref() != Some("close");
    Ok((status, String::from_utf8_lossy(&body).into_owned(), open))
}

/// The body of the answer to one request on a connection of its own; its status if that is not 200.
pub fn get(to: SocketAddr) -> std::io::Result<String> {
    let (status, body, _) = exchange(&mut connect(to)?)?;
    Ok(if status == 200 { body } else { status.to_string() })
}

pub struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts asking at `to`.
    pub fn start(to: SocketAddr) -> Self {
        let (stop, failed, done) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stop, failed, done, clients: Vec::new() };
        for number in 0..CLIENTS {
            let (stop, failed) = (Arc::clone(&load.stop), Arc::clone(&load.failed));
            let done = Arc::clone(&load.done);
            // Half of them keep their connections.
            let keeps = number % 2 == 0;
            load.clients.push(thread::spawn(move || client(to, keeps, &stop, &failed, &done)));
        }
        load
    }

    /// Waits until so many more requests have been answered.
    pub fn settle(&self, requests: usize) {
        let from = self.done.load(Ordering::SeqCst);
        crate::driver::until("more requests", || {
            (self.done.load(Ordering::SeqCst) >= from + requests).then_some(())
        });
    }

    /// Stops; how many were answered, and how many failed.
    pub fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        (self.done.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst))
    }
}

fn client(
    to: SocketAddr,
    keeps: bool,
    stop: &AtomicBool,
    failed: &AtomicUsize,
    done: &AtomicUsize,
) {
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::SeqCst) {
        let first = kept.take().map(|mut connection| (exchange(&mut connection), connection));
        let (answer, connection) = match first {
            Some((Ok(answer), connection)) => (Ok(answer), Some(connection)),
            // None yet, or it was closed: once more on a new one.
            _ => match connect(to) {
                Ok(mut connection) => (exchange(&mut connection), Some(connection)),
                Err(error) => (Err(error), None),
            },
        };
        match answer {
            Ok((200, _, open)) => kept = connection.filter(|_| keeps && open),
            other => {
                eprintln!("{other:?}");
                failed.fetch_add(1, Ordering::SeqCst);
            }
        }
        done.fetch_add(1, Ordering::SeqCst);
        thread::sleep(PACE);
    }
}
