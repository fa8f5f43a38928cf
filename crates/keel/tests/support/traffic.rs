//! Requests without pause.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

/// How many at the same time.
const CLIENTS: usize = 4;

/// Failures that are printed.
const TOLD: usize = 5;

/// Requests without pause until it ends.
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

fn ask(address: &str) -> Result<(), String> {
    let mut answer = Vec::new();
    let asked = std::net::TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(super::DEADLINE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        stream.read_to_end(&mut answer)
    });
    let text = String::from_utf8_lossy(&answer);
    match asked {
        Ok(_) if text.starts_with("HTTP/1.1 200") && text.ends_with("end\n") => Ok(()),
        asked => Err(format!("{asked:?}: {text:?}")),
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
    }
}

impl Traffic {
    /// To `address`, where each answer ends with the line `end`.
    pub fn to(address: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let client = |_| {
            let (shared, address) = (shared.clone(), address.to_owned());
            std::thread::spawn(move || {
                while !shared.over.load(SeqCst) {
                    match ask(&address) {
                        Ok(()) => shared.answered.fetch_add(1, SeqCst),
                        Err(why) => {
                            let before = shared.failed.fetch_add(1, SeqCst);
                            if before < TOLD {
                                println!("{address}: {why}");
                            }
                            before
                        }
                    };
                }
            })
        };
        Self { threads: (0..CLIENTS).map(client).collect(), shared }
    }

    /// How many were answered so far.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(SeqCst)
    }

    /// How many were answered, and how many not.
    pub fn end(mut self) -> (usize, usize) {
        self.shared.over.store(true, SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        (self.shared.answered.load(SeqCst), self.shared.failed.load(SeqCst))
    }
}
