//! The thread that writes the access log.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keel_route::access_log::AccessLog;

use crate::access::file::LogFile;
use crate::limits::{LOG_LOOK, LOG_QUEUE};

/// What became of lines.
#[derive(Debug, Default)]
pub struct Counts {
    pub written: AtomicU64,
    pub dropped: AtomicU64,
}

/// Lines on their way.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    lines: u64,
}

/// Hands lines to the thread without ever waiting.
#[derive(Clone, Debug)]
pub struct Feed {
    blocks: SyncSender<Block>,
    counts: Arc<Counts>,
}

impl Feed {
    /// Takes whole lines; they are dropped and counted if the thread does not keep up.
    pub fn give(&self, bytes: Vec<u8>, lines: u64) {
        if self.blocks.try_send(Block { bytes, lines }).is_err() {
            self.counts.dropped.fetch_add(lines, Relaxed);
        }
    }

    /// Makes the thread look; one that has something to do will anyhow.
    fn wake(&self) {
        let _ = self.blocks.try_send(Block::default());
    }
}

/// How the log is wanted, and how often that has changed.
#[derive(Debug, Default)]
struct Wanted(Mutex<(u64, Option<AccessLog>)>);

impl Wanted {
    fn set(&self, log: Option<AccessLog>) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted = (wanted.0 + 1, log);
    }

    /// How it is wanted, if that has changed since `seen`.
    fn news(&self, seen: &mut u64) -> Option<Option<AccessLog>> {
        let wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (wanted.0 != *seen).then(|| {
            *seen = wanted.0;
            wanted.1.clone()
        })
    }
}

/// The thread, as its owner sees it.
#[derive(Debug)]
pub struct Writer {
    feed: Feed,
    wanted: Arc<Wanted>,
    ended: Receiver<()>,
}

impl Writer {
    /// Starts the thread; nothing is written until [`Writer::set`].
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> io::Result<Self> {
        let (blocks, queue) = sync_channel(LOG_QUEUE);
        let (over, ended) = sync_channel(1);
        let (counts, wanted) = (Arc::new(Counts::default()), Arc::new(Wanted::default()));
        let thread = Thread {
            counts: Arc::clone(&counts),
            wanted: Arc::clone(&wanted),
            ..Thread::default()
        };
        std::thread::Builder::new().name("keel-access-log".to_owned()).spawn(move || {
            thread.run(&queue);
            // Nobody waits any more if that took too long.
            let _ = over.send(());
        })?;
        Ok(Self { feed: Feed { blocks, counts }, wanted, ended })
    }

    /// For one worker.
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// What became of lines so far: written, dropped.
    pub fn counts(&self) -> (u64, u64) {
        let Counts { written, dropped } = &*self.feed.counts;
        (written.load(Relaxed), dropped.load(Relaxed))
    }

    /// From now on so; what comes next is written there.
    pub fn set(&self, log: Option<&AccessLog>) {
        self.wanted.set(log.cloned());
        self.feed.wake();
    }

    /// Waits until everything that the workers have handed over is written, but not for long. All other feeds are
    /// to be gone.
    pub fn finish(self, patience: Duration) {
        let Self { feed, ended, .. } = self;
        drop(feed);
        let _ = ended.recv_timeout(patience);
    }
}

/// What the thread works with.
#[derive(Debug, Default)]
struct Thread {
    counts: Arc<Counts>,
    wanted: Arc<Wanted>,
    seen: u64,
    file: Option<LogFile>,
    /// Lines lost since it went wrong, if it does.
    failing: Option<u64>,
}

impl Thread {
    fn run(mut self, queue: &Receiver<Block>) {
        loop {
            let block = match &self.file {
                // With a file there may be something to see, without none.
                Some(_) => queue.recv_timeout(LOG_LOOK),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if let Some(wanted) = self.wanted.news(&mut self.seen) {
                self.file = wanted.map(LogFile::new);
                self.failing = None;
            }
            match block {
                Ok(block) => self.write(&block),
                Err(RecvTimeoutError::Timeout) => self.write(&Block::default()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write(&mut self, block: &Block) {
        let Some(file) = &mut self.file else {
            self.counts.dropped.fetch_add(block.lines, Relaxed);
            return;
        };
        let written = if block.bytes.is_empty() { file.look() } else { file.append(&block.bytes) };
        match written {
            Ok(()) => {
                self.counts.written.fetch_add(block.lines, Relaxed);
                if block.lines > 0
                    && let Some(lost) = self.failing.take()
                {
                    let path = file.path().display();
                    tracing::info!(%path, lost, "the access log is written again");
                }
            }
            Err(error) => {
                self.counts.dropped.fetch_add(block.lines, Relaxed);
                if self.failing.is_none() {
                    let path = file.path().display();
                    tracing::warn!(%path, %error, "the access log can't be written: lines are lost until it can");
                }
                *self.failing.get_or_insert(0) += block.lines;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_written_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let writer = Writer::start().unwrap();
        let feed = writer.feed();
        writer.set(Some(&AccessLog { path: path.clone(), ..AccessLog::default() }));
        for n in 0..LOG_QUEUE {
            feed.give(format!("{n}\n").into_bytes(), 1);
        }
        let counts = Arc::clone(&feed.counts);
        drop(feed);
        writer.finish(Duration::from_secs(20));
        let lines = std::fs::read_to_string(path).unwrap_or_default().lines().count() as u64;
        assert_eq!(counts.written.load(Relaxed), lines);
        assert_eq!(lines + counts.dropped.load(Relaxed), LOG_QUEUE as u64);
        assert!(lines > 0);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        // Opening a pipe that nobody reads takes for ever.
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let writer = Writer::start().unwrap();
        let feed = writer.feed();
        writer.set(Some(&AccessLog { path, ..AccessLog::default() }));
        let most = LOG_QUEUE as u64 + 10;
        for _ in 0..most {
            feed.give(b"x\n".to_vec(), 1);
        }
        let (written, dropped) = writer.counts();
        assert_eq!(written, 0);
        assert!(dropped >= 8, "{dropped}");
        drop(feed);
        writer.finish(Duration::from_millis(1));
    }

    #[test]
    fn lines_for_nobody_are_counted() {
        let writer = Writer::start().unwrap();
        let feed = writer.feed();
        feed.give(b"x\n".to_vec(), 1);
        let counts = Arc::clone(&feed.counts);
        drop(feed);
        writer.finish(Duration::from_secs(20));
        assert_eq!((counts.written.load(Relaxed), counts.dropped.load(Relaxed)), (0, 1));
    }
}
