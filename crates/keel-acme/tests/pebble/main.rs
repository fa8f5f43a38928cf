//! Against Pebble, the test authority of Let's Encrypt, on the loopback interface. It rejects every twentieth nonce, looks
//! at proofs through real connections and knows names from a DNS server of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod authority;
mod crashes;
mod issuance;
mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use keel_acme::{Notice, Renewals, Wanted};
use keel_model::{AcmeChallenge, Timestamp};
use keel_store::{RedbStore, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use authority::Pebble;
use proxy::Proxy;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the records are.
const PREFIX: &str = "acme/";

/// A clock that tests move on. Each test has one of its own.
macro_rules! clock {
    ($name:ident) => {
        mod $name {
            pub static AHEAD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            pub fn now() -> keel_model::Timestamp {
                crate::ahead(&AHEAD)
            }
        }
    };
}
pub(crate) use clock;

fn ahead(by: &AtomicU64) -> Timestamp {
    let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(real.as_millis()).unwrap() + by.load(Ordering::Relaxed))
}

fn move_on(clock: &AtomicU64, by: Duration) {
    clock.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
}

/// Renewals at work, with a proxy that shows what they publish.
struct Server {
    proxy: Proxy,
    notices: mpsc::UnboundedReceiver<Notice>,
    wanted: watch::Sender<Vec<Wanted>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(
        store: Arc<dyn Store>,
        ports: (u16, u16),
        wanted: Vec<Wanted>,
        now: fn() -> Timestamp,
    ) -> Self {
        let (acknowledge, acknowledged) = watch::channel(0);
        let (wanted, wanting) = watch::channel(wanted);
        let (tell, notices) = mpsc::unbounded_channel();
        let renewals = Renewals::open(store, PREFIX, None, wanting, acknowledged, now).await;
        let renewals = renewals.unwrap().telling(move |notice| drop(tell.send(notice.clone())));
        let proxy = Proxy::start(renewals.published(), acknowledge, ports);
        Self { proxy, notices, wanted, task: tokio::spawn(renewals.run()) }
    }

    async fn notice(&mut self) -> Notice {
        let notice = tokio::time::timeout(PATIENCE, self.notices.recv()).await;
        notice.expect("nothing happened").unwrap()
    }

    /// Wakes the loop, as a change of the world does.
    fn wake(&self) {
        self.wanted.send_modify(|_| {});
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn store() -> Arc<dyn Store> {
    Arc::new(RedbStore::in_memory().unwrap())
}

fn wanted(pebble: &Pebble, challenge: AcmeChallenge, names: &[&str]) -> Wanted {
    Wanted {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        acme: pebble.acme(challenge),
    }
}
