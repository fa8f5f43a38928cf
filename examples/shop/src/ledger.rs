//! The orders file: append-only, one JSON object per line, shared by all replicas on a host.
//!
//! One thread owns it. Invariants: an append is acknowledged only after `fdatasync`; every write happens under an
//! exclusive lock on the file (the kernel drops it when a process dies) and after reading what others appended; a last
//! line without its newline was written by a process that died before acknowledging it, and is cut off; two orders
//! never have the same key, within the last [`INDEX_ORDERS`] orders.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::cart::Line;
use crate::http::Failure;

/// Orders whose numbers are remembered; a repetition of an older one would be a new order.
const INDEX_ORDERS: usize = 50_000;
/// Requests waiting for the thread; more are turned away with 503.
const QUEUE: usize = 256;
/// Requests answered with one lock and one sync.
const BATCH: usize = 64;
/// Orders shown in a list.
pub const RECENT: usize = 20;
const STACK_BYTES: usize = 256 << 10;

/// One order, as it stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Its number, which follows from its idempotency key.
    pub id: String,
    /// Unix time.
    pub placed_ms: u64,
    /// Who it is for.
    pub name: String,
    /// What was bought.
    pub lines: Vec<Line>,
    /// For how much.
    pub total_cents: u64,
    /// Number of the payment.
    pub payment: String,
    /// Replica that wrote it.
    pub written_by: String,
}

/// The newest orders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recent {
    /// Orders in the file.
    pub count: u64,
    /// The last [`RECENT`], newest first.
    pub orders: Vec<Order>,
}

/// A number for people, such as `7Q2MX-9DR4T`, that follows from `key`; different for each `purpose`.
pub fn number_from_key(purpose: &str, key: &str) -> String {
    const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digest = Sha256::new().chain_update(purpose).chain_update([0]).chain_update(key).finalize();
    let mut number = String::with_capacity(11);
    for (place, byte) in digest.iter().take(10).enumerate() {
        if place == 5 {
            number.push('-');
        }
        number.push(char::from(LETTERS[usize::from(byte % 32)]));
    }
    number
}

type Answer<T> = oneshot::Sender<Result<T, Failure>>;

enum Request {
    /// Answers the order that now stands in the file: this one, or an earlier one with the same number.
    Append(Box<Order>, Answer<Order>),
    Find(String, Answer<Option<Order>>),
    Recent(Answer<Recent>),
}

/// The handle on the thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Ledger {
    requests: SyncSender<Request>,
}

impl Ledger {
    /// Opens or makes `orders.jsonl` in `folder` and starts the thread.
    ///
    /// # Errors
    /// The folder or file can't be made or read.
    pub fn open(folder: &Path) -> io::Result<Ledger> {
        let path = folder.join("orders.jsonl");
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{} (DATA_DIR): {error}", path.display()))
        };
        std::fs::create_dir_all(folder).map_err(named)?;
        let file =
            File::options().read(true).append(true).create(true).open(&path).map_err(named)?;
        File::open(folder)?.sync_all().map_err(named)?;
        let mut book = Book::new(file);
        book.locked(|_| Ok(())).map_err(named)?;
        let (requests, queue) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(STACK_BYTES)
            .spawn(move || keep(&mut book, &queue))?;
        Ok(Ledger { requests })
    }

    /// Appends `order` unless its number is taken; answers what stands in the file.
    ///
    /// # Errors
    /// 503 when there is too much to do, 507 when it can't be written; it is then not in the file.
    pub async fn append(&self, order: Order) -> Result<Order, Failure> {
        self.ask(|answer| Request::Append(Box::new(order), answer)).await
    }

    /// The order with number `id`.
    ///
    /// # Errors
    /// 503 or 507 when the file can't be read now.
    pub async fn find(&self, id: String) -> Result<Option<Order>, Failure> {
        self.ask(|answer| Request::Find(id, answer)).await
    }

    /// The newest orders.
    ///
    /// # Errors
    /// 503 or 507 when the file can't be read now.
    pub async fn recent(&self) -> Result<Recent, Failure> {
        self.ask(Request::Recent).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Failure> {
        let unavailable = |why: &str| Failure::new(StatusCode::SERVICE_UNAVAILABLE, why);
        let (sender, receiver) = oneshot::channel();
        self.requests.try_send(request(sender)).map_err(|error| match error {
            TrySendError::Full(_) => unavailable("too many orders at once, please try again"),
            TrySendError::Disconnected(_) => unavailable("the ledger thread has ended"),
        })?;
        receiver.await.unwrap_or_else(|_| Err(unavailable("the ledger thread has ended")))
    }
}

/// Answers requests in batches until all senders are gone.
fn keep(book: &mut Book, queue: &Receiver<Request>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        batch.extend(queue.try_iter().take(BATCH - 1));
        let mut answers = Vec::with_capacity(batch.len());
        let outcome = book.locked(|book| {
            for request in &batch {
                answers.push(book.prepare(request)?);
            }
            book.commit()
        });
        let failure = outcome.err().map(|error| {
            eprintln!("ledger: {error}");
            Failure::new(StatusCode::INSUFFICIENT_STORAGE, format!("not written: {error}"))
        });
        let mut answers = answers.into_iter();
        for request in batch {
            // A caller who no longer waits needs no answer.
            match (request, answers.next(), &failure) {
                (Request::Append(_, to), _, Some(failure)) => drop(to.send(Err(failure.clone()))),
                (Request::Find(_, to), _, Some(failure)) => drop(to.send(Err(failure.clone()))),
                (Request::Recent(to), _, Some(failure)) => drop(to.send(Err(failure.clone()))),
                (Request::Append(_, to), Some(Prepared::Order(Some(order))), None) => {
                    drop(to.send(Ok(*order)));
                }
                (Request::Find(_, to), Some(Prepared::Order(order)), None) => {
                    drop(to.send(Ok(order.map(|order| *order))));
                }
                (Request::Recent(to), Some(Prepared::Recent(recent)), None) => {
                    drop(to.send(Ok(recent)));
                }
                _ => unreachable!("each request was prepared with an answer of its kind"),
            }
        }
    }
}

enum Prepared {
    Order(Option<Box<Order>>),
    Recent(Recent),
}

/// The file and what is known about it.
struct Book {
    file: File,
    /// Everything before it has been read.
    end: u64,
    count: u64,
    /// Where each remembered order begins.
    offsets: HashMap<u64, u64>,
    /// Fingerprints and offsets, oldest first.
    order: VecDeque<(u64, u64)>,
    /// Lines to be appended by the next commit, and the orders in them.
    pending: Vec<u8>,
    pending_orders: Vec<Order>,
}

impl Book {
    fn new(file: File) -> Book {
        Book {
            file,
            end: 0,
            count: 0,
            offsets: HashMap::new(),
            order: VecDeque::new(),
            pending: Vec::new(),
            pending_orders: Vec::new(),
        }
    }

    /// Runs `work` while no other process writes, on an up-to-date book.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Book) -> io::Result<T>) -> io::Result<T> {
        self.file.lock()?;
        let result = self.catch_up().and_then(|()| work(self));
        self.pending.clear();
        self.pending_orders.clear();
        self.file.unlock()?;
        result
    }

    fn catch_up(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.end))?;
        let mut reader = BufReader::new(&self.file);
        let mut line = Vec::new();
        let mut learned = Vec::new();
        let mut end = self.end;
        let torn = loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break length > 0;
            }
            if let Ok(order) = serde_json::from_slice::<Order>(&line) {
                learned.push((fingerprint(&order.id), end));
            }
            end += length as u64;
            if learned.len() >= INDEX_ORDERS {
                for (id, offset) in learned.drain(..) {
                    remember(&mut self.offsets, &mut self.order, id, offset);
                    self.count += 1;
                }
            }
        };
        for (id, offset) in learned {
            remember(&mut self.offsets, &mut self.order, id, offset);
            self.count += 1;
        }
        self.end = end;
        if torn {
            self.file.set_len(end)?;
        }
        Ok(())
    }

    fn prepare(&mut self, request: &Request) -> io::Result<Prepared> {
        match request {
            Request::Append(order, _) => {
                let standing = match self.pending_orders.iter().find(|other| other.id == order.id) {
                    Some(other) => Some(other.clone()),
                    None => self.find(&order.id)?,
                };
                if let Some(standing) = standing {
                    return Ok(Prepared::Order(Some(Box::new(standing))));
                }
                serde_json::to_writer(&mut self.pending, order)?;
                self.pending.push(b'\n');
                self.pending_orders.push(Order::clone(order));
                Ok(Prepared::Order(Some(order.clone())))
            }
            Request::Find(id, _) => Ok(Prepared::Order(self.find(id)?.map(Box::new))),
            Request::Recent(_) => {
                let newest: Vec<u64> =
                    self.order.iter().rev().take(RECENT).map(|&(_, offset)| offset).collect();
                let orders = newest
                    .into_iter()
                    .map(|offset| self.read(offset))
                    .collect::<io::Result<Vec<Order>>>()?;
                Ok(Prepared::Recent(Recent { count: self.count, orders }))
            }
        }
    }

    fn find(&mut self, id: &str) -> io::Result<Option<Order>> {
        match self.offsets.get(&fingerprint(id)).copied() {
            Some(offset) => Ok(Some(self.read(offset)?).filter(|order| order.id == id)),
            None => Ok(None),
        }
    }

    fn read(&mut self, offset: u64) -> io::Result<Order> {
        self.file.seek(SeekFrom::Start(offset))?;
        let mut line = Vec::new();
        BufReader::new(&self.file).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    fn commit(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.pending).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Nothing of it was acknowledged: take it back, so that a repetition finds no half of it.
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.catch_up()
    }
}

fn remember(
    offsets: &mut HashMap<u64, u64>,
    order: &mut VecDeque<(u64, u64)>,
    id: u64,
    offset: u64,
) {
    if order.len() >= INDEX_ORDERS
        && let Some((oldest, _)) = order.pop_front()
    {
        offsets.remove(&oldest);
    }
    offsets.insert(id, offset);
    order.push_back((id, offset));
}

fn fingerprint(id: &str) -> u64 {
    let digest = Sha256::digest(id);
    u64::from_le_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(key: &str) -> Order {
        Order {
            id: number_from_key("order", key),
            placed_ms: 1,
            name: "Ada".into(),
            lines: vec![],
            total_cents: 100,
            payment: "P".into(),
            written_by: "test".into(),
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn replicas_share_one_file_and_keys_stay_unique() {
        let folder = tempfile::tempdir().unwrap();
        let one = Ledger::open(folder.path()).unwrap();
        let two = Ledger::open(folder.path()).unwrap();
        block_on(async {
            one.append(order("a")).await.unwrap();
            two.append(order("b")).await.unwrap();
            let again = Order { written_by: "two".into(), ..order("a") };
            assert_eq!(two.append(again).await.unwrap().written_by, "test");
            assert_eq!(one.recent().await.unwrap().count, 2);
            let newest = &one.recent().await.unwrap().orders[0];
            assert_eq!(newest.id, order("b").id);
            assert!(one.find(order("b").id).await.unwrap().is_some());
            assert!(one.find("none".into()).await.unwrap().is_none());
        });
    }

    #[test]
    fn a_line_torn_by_a_crash_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.jsonl");
        let ledger = Ledger::open(folder.path()).unwrap();
        block_on(ledger.append(order("a"))).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"id\":\"ha").unwrap();
        block_on(ledger.append(order("b"))).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| serde_json::from_str::<Order>(line).is_ok()), "{text}");
        let reopened = Ledger::open(folder.path()).unwrap();
        assert_eq!(block_on(reopened.recent()).unwrap().count, 2);
    }

    #[test]
    fn many_writers_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let ledgers: Vec<Ledger> = (0..3).map(|_| Ledger::open(folder.path()).unwrap()).collect();
        std::thread::scope(|scope| {
            for (writer, ledger) in ledgers.iter().enumerate() {
                scope.spawn(move || {
                    for number in 0..50 {
                        block_on(ledger.append(order(&format!("{writer}/{number}")))).unwrap();
                    }
                });
            }
        });
        assert_eq!(block_on(ledgers[0].recent()).unwrap().count, 150);
    }

    #[test]
    fn numbers_follow_from_keys() {
        assert_eq!(number_from_key("order", "k"), number_from_key("order", "k"));
        assert_ne!(number_from_key("order", "k"), number_from_key("payment", "k"));
        assert_eq!(number_from_key("order", "k").len(), 11);
    }
}
