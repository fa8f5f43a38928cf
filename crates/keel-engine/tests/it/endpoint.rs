//! Endpoints that answer after a moment, and refuse once they are stopped.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::driver::{PATIENCE, until};

/// Long enough that there is always something in flight under load.
const WORK: Duration = Duration::from_millis(2);

pub struct Endpoint {
    pub address: SocketAddr,
    /// Requests that it has.
    pub busy: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Endpoint {
    pub fn new(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let endpoint = Self {
            address: listener.local_addr().unwrap(),
            busy: Arc::default(),
            stopped: Arc::default(),
            gate: Arc::new((Mutex::new(true), Condvar::new())),
        };
        let (busy, stopped) = (Arc::clone(&endpoint.busy), Arc::clone(&endpoint.stopped));
        let gate = Arc::clone(&endpoint.gate);
        let name = name.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (name, busy) = (name.clone(), Arc::clone(&busy));
                let (stopped, gate) = (Arc::clone(&stopped), Arc::clone(&gate));
                thread::spawn(move || serve(stream, &name, &busy, &stopped, &gate));
            }
        });
        endpoint
    }

    /// Holds answers back, or lets them go.
    pub fn answers(&self, open: bool) {
        *self.gate.0.lock().unwrap() = open;
        self.gate.1.notify_all();
    }

    /// As a service that gets SIGTERM without a grace: it must have nothing any more. Connections that are kept open
    /// are closed, and nobody listens.
    pub fn stop(self) {
        assert_eq!(self.busy.load(Ordering::SeqCst), 0, "stopped in the middle of a request");
        let address = self.address;
        drop(self);
        until("the stopped endpoint refuses", || TcpStream::connect(address).err());
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.answers(true);
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, which then drops the listener.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(
    stream: TcpStream,
    name: &str,
    busy: &AtomicUsize,
    stopped: &AtomicBool,
    gate: &(Mutex<bool>, Condvar),
) -> Option<()> {
    // Looked at often, so that a stopped endpoint closes what is idle.
    stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match reader.read_until(b'\n', &mut head) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(_) if head.is_empty() && stopped.load(Ordering::SeqCst) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        busy.fetch_add(1, Ordering::SeqCst);
        thread::sleep(WORK);
        let open = gate.0.lock().unwrap();
        drop(gate.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap());
        let length = name.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        let sent = reader.get_mut().write_all(answer.as_bytes());
        busy.fetch_sub(1, Ordering::SeqCst);
        sent.ok()?;
    }
}
