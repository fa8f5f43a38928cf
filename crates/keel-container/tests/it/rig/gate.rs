//! A way to a registry that breaks down after a number of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What happens when the bytes are used up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Every connection is closed, and no new one is taken.
    Gone,
    /// Every connection is closed; then all is well again.
    Again,
    /// Nothing moves any more.
    Silent,
}

/// The way to a registry.
pub struct Gate {
    port: u16,
    task: JoinHandle<()>,
    /// Connections that were made through it.
    pub connections: Arc<AtomicU32>,
}

impl Gate {
    /// Opens one at `own` (any port for 0) to `port` that lets `bytes` through.
    pub async fn open_at(own: u16, port: u16, bytes: i64, then: Then) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU32::new(0));
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            let left = Arc::new(AtomicI64::new(bytes));
            let broken = Arc::new(Notify::new());
            let mut going = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    taken = listener.accept() => {
                        let Ok((near, _)) = taken else { return };
                        counted.fetch_add(1, Ordering::SeqCst);
                        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                        going.spawn(pass(near, far, left.clone(), broken.clone()));
                    }
                    () = broken.notified() => match then {
                        Then::Gone => return,
                        Then::Again => {
                            going.shutdown().await;
                            left.store(i64::MAX / 2, Ordering::SeqCst);
                        }
                        Then::Silent => std::future::pending().await,
                    }
                }
            }
        });
        Self { port: own, task, connections }
    }

    /// As images are named after the registry behind it.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(near: TcpStream, far: TcpStream, left: Arc<AtomicI64>, broken: Arc<Notify>) {
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
        (near.into_split(), far.into_split());
    let questions = tokio::io::copy(&mut from_near, &mut to_far);
    let answers = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from_far.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            let count_signed = i64::try_from(count).unwrap();
            if left.fetch_sub(count_signed, Ordering::SeqCst) < count_signed {
                broken.notify_one();
                std::future::pending::<()>().await;
            }
            if to_near.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = questions => {}
        () = answers => {}
    }
}
