//! Clients and endpoints of HTTP/2 that mean harm: each is cut off or held in bounds, and nobody else notices.

mod endpoints;
mod floods;
mod rules;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use keel_model::Protocol;

use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{END_HEADERS, Frames, HEADERS, RST_STREAM, block, fields, frame};
use crate::http2::background::wait;
use crate::http2::client::Http2Client;
use crate::http2::either::serve;
use crate::proxy::{Proxy, until};

const MIB: usize = 1 << 20;

/// A proxy before an endpoint that is told how many requests reach it.
struct Target {
    proxy: Proxy,
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
    _backend: Backend,
}

impl Target {
    fn new() -> Self {
        Self::answering(100)
    }

    /// The endpoint answers with so many bytes.
    fn answering(bytes: usize) -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reached);
        let body = "a".repeat(bytes);
        let backend = Backend::new(move |mut connection| {
            while connection.request().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"));
                connection.send(&body);
            }
        });
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http, &[backend.address]);
        Self { proxy, address, reached, _backend: backend }
    }

    fn connect(&self) -> Frames {
        Frames::connect(self.address, &[])
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// Runs `attack` again and again while others are served, in either version and by either worker; then returns
    /// how much memory the proxy has gained.
    fn under(&self, attack: impl Fn(SocketAddr) + Send + Sync + 'static) -> usize {
        let before = self.proxy.process.memory();
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let attacker = {
            let (address, stop, begun) = (self.address, Arc::clone(&stop), Arc::clone(&begun));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    begun.fetch_add(1, Ordering::SeqCst);
                    attack(address);
                }
            })
        };
        until("the attack has begun", || (begun.load(Ordering::SeqCst) > 0).then_some(()));
        wait(async {
            for _ in 0..4 {
                let client = Http2Client::connect(self.address).await;
                let mut old = Client::connect(self.address);
                for _ in 0..10 {
                    assert_eq!(client.get("/").await.status, 200);
                    assert_eq!(old.get("/").status, 200);
                }
            }
        });
        stop.store(true, Ordering::SeqCst);
        attacker.join().unwrap();
        let gained = self.proxy.process.memory().saturating_sub(before);
        eprintln!("{} attacks, {} KiB gained", begun.load(Ordering::SeqCst), gained >> 10);
        gained
    }
}

/// The head of a request as a frame.
fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&fields("GET", &[])))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}
