//! A container's output, as the engine keeps it.
//!
//! Reading goes on over restarts of the container: a new attempt writes into the same log.

use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::{LogsOptions, LogsOptionsBuilder};
use futures_util::StreamExt as _;
use keel_model::{InstanceId, Timestamp};
use keel_runtime::{LogLine, LogQuery, LogStream, steps};
use tokio::sync::{mpsc, watch};

use super::Inner;
use crate::Error;

/// Lines on their way to a reader.
const QUEUE: usize = 256;
/// Pause before the engine is asked for more after it ended a log that goes on.
const PAUSE: Duration = Duration::from_millis(100);
/// The form of a time in front of a line takes at most so many bytes.
const STAMP: usize = 40;

/// Reads the log of an instance.
pub(super) fn read(inner: Arc<Inner>, id: InstanceId, query: LogQuery) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        // The engine cuts before it leaves out what is too early or too late.
        let has_steps = steps::are_kept(&inner.dir(&id));
        let cuts =
            query.tail.is_some() && (query.since.is_some() || query.until.is_some() || has_steps);
        let told = query.since;
        let reading = Reading { inner, id, query, last: None, cuts, told };
        tokio::select! {
            () = reading.run(&sender) => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

struct Reading {
    inner: Arc<Inner>,
    id: InstanceId,
    query: LogQuery,
    /// Time of the last line as the engine wrote it, and how many lines of that time were given.
    last: Option<(String, usize)>,
    /// There is no end yet to what is cut first: the last lines of those that are not too early.
    cuts: bool,
    /// From this time on steps have not been told.
    told: Option<Timestamp>,
}

/// How a pass over the log ended.
enum Passed {
    /// There is no more for now, or the engine is away.
    Over,
    /// The engine keeps no log of it, for this reason.
    NotKept(String),
}

impl Reading {
    async fn run(mut self, sender: &mpsc::Sender<LogLine>) {
        let mut changed = self.inner.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.query.tail.is_none() {
                for line in self.steps().await {
                    self.told = Some(Timestamp(line.at.0 + 1));
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
            }
            let Ok(kept) = self.inner.kept(&self.id) else { return };
            let ended = kept.exit.is_some();
            let cuts = self.cuts;
            let Ok(passed) = self.pass(&kept.container, sender).await else { return };
            if let Passed::NotKept(reason) = passed {
                return self.tell_once(reason, sender, changed).await;
            }
            if !self.query.follow {
                return;
            }
            if cuts && !self.cuts {
                // From here on as it comes.
                continue;
            }
            if ended {
                // Until it is started again or goes.
                if changed.changed().await.is_err() {
                    return;
                }
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// What steps have said since they were told.
    async fn steps(&self) -> Vec<LogLine> {
        let query = LogQuery { since: self.told, until: self.query.until, ..LogQuery::default() };
        let mut lines = steps::read(&self.inner.dir(&self.id), query);
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(line);
        }
        all
    }

    /// Says that there will be nothing to read, and waits for the end of the instance.
    async fn tell_once(
        self,
        reason: String,
        sender: &mpsc::Sender<LogLine>,
        mut changed: watch::Receiver<u64>,
    ) {
        let at =
            Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default());
        // Whoever goes on from some time has been told.
        let told = self.query.follow && self.query.since.is_some();
        let text = format!("(the container engine keeps no output of this service: {reason})");
        let line = LogLine { at, stream: LogStream::Stderr, text, partial: false };
        if (!told && sender.send(line).await.is_err()) || !self.query.follow {
            return;
        }
        while self.inner.kept(&self.id).is_ok() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// What the engine is asked for.
    fn options(&self) -> LogsOptions {
        // The engine takes whole seconds; what is too early is left out here.
        let since = match &self.last {
            Some((stamp, _)) => stamp.parse::<jiff::Timestamp>().ok().map(|time| time.as_second()),
            None => self.query.since.map(|since| i64::try_from(since.0 / 1000).unwrap_or(0)),
        };
        // A second more, as Podman gives only what is later.
        let since = since.and_then(|since| i32::try_from(since - 1).ok()).unwrap_or(0).max(0);
        let tail = match self.query.tail {
            Some(tail) if !self.cuts && self.last.is_none() && self.query.since.is_none() => {
                tail.to_string()
            }
            _ => "all".to_owned(),
        };
        LogsOptionsBuilder::default()
            .follow(self.query.follow && !self.cuts)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .tail(&tail)
            .build()
    }

    /// Reads what there is, and while the container runs what comes. An error means that nobody wants more.
    async fn pass(
        &mut self,
        container: &str,
        sender: &mpsc::Sender<LogLine>,
    ) -> Result<Passed, ()> {
        let Ok(client) = self.inner.engine.client().await else {
            return if self.query.follow { Ok(Passed::Over) } else { Err(()) };
        };
        // A tail is of what is left after leaving out, so that it is cut here where anything is.
        let keep = self.query.tail.filter(|_| self.cuts);
        let options = self.options();
        let mut output = client.logs(container, Some(options));
        let mut lines = Lines::default();
        let mut skip = self.last.clone();
        let mut ring = std::collections::VecDeque::new();
        let mut is_over = false;
        'all: while let Some(part) = output.next().await {
            let part = match part {
                Ok(part) => part,
                Err(error) => match self.inner.engine.failed(&error) {
                    Error::Refused { message, .. } if is_not_kept(&message) => {
                        return Ok(Passed::NotKept(message));
                    }
                    _ => break,
                },
            };
            for (stamp, line) in lines.add(&part) {
                if self.query.until.is_some_and(|until| line.at > until) {
                    is_over = true;
                    break 'all;
                }
                if already(&mut skip, &stamp)
                    || self.query.since.is_some_and(|since| latest(&stamp, line.at) < since)
                {
                    continue;
                }
                match &mut self.last {
                    Some((last, count)) if *last == stamp => *count += 1,
                    last => *last = Some((stamp, 1)),
                }
                match keep {
                    Some(keep) => {
                        ring.push_back(line);
                        if ring.len() > keep {
                            ring.pop_front();
                        }
                    }
                    None => sender.send(line).await.map_err(drop)?,
                }
            }
        }
        if let Some(room) = keep.map(|keep| keep - ring.len()).filter(|room| *room > 0) {
            let steps = self.steps().await;
            for line in steps.into_iter().rev().take(room) {
                ring.push_front(line);
            }
        }
        for line in ring {
            sender.send(line).await.map_err(drop)?;
        }
        self.cuts = false;
        if is_over { Err(()) } else { Ok(Passed::Over) }
    }
}

/// Whether an engine says by this that a container's logging driver lets nobody read: Docker, Podman.
fn is_not_kept(message: &str) -> bool {
    ["does not support reading", "cannot read logs", "log driver", "logging driver"]
        .iter()
        .any(|words| message.contains(words))
}

/// The latest time that a line may be of: Podman tells whole seconds.
fn latest(stamp: &str, at: Timestamp) -> Timestamp {
    if stamp.contains('.') { at } else { Timestamp(at.0 + 999) }
}

/// Whether a line was given in an earlier pass.
fn already(skip: &mut Option<(String, usize)>, stamp: &str) -> bool {
    let Some((last, count)) = skip else { return false };
    match stamp.cmp(last.as_str()) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

/// Joins what the engine sends to lines. Each part of a stream begins with a time; one of a terminal may hold several
/// lines, or end within one.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn add(&mut self, part: &LogOutput) -> Vec<(String, LogLine)> {
        let (stream, terminal) = match part {
            LogOutput::StdErr { .. } => (LogStream::Stderr, false),
            LogOutput::Console { .. } => (LogStream::Stdout, true),
            LogOutput::StdOut { .. } | LogOutput::StdIn { .. } => (LogStream::Stdout, false),
        };
        if !terminal {
            return line(part.as_ref(), stream).into_iter().collect();
        }
        self.rest.extend_from_slice(part.as_ref());
        let mut all = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let bytes: Vec<u8> = self.rest.drain(..=end).collect();
            all.extend(line(&bytes, stream));
        }
        all
    }
}

fn line(bytes: &[u8], stream: LogStream) -> Option<(String, LogLine)> {
    let space = bytes.iter().take(STAMP).position(|byte| *byte == b' ')?;
    let stamp = std::str::from_utf8(&bytes[..space]).ok()?;
    let time: jiff::Timestamp = stamp.parse().ok()?;
    let text = &bytes[space + 1..];
    let partial = !text.ends_with(b"\n");
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let at = Timestamp(u64::try_from(time.as_millisecond()).unwrap_or(0));
    let text = String::from_utf8_lossy(text).into_owned();
    Some((stamp.to_owned(), LogLine { at, stream, text, partial }))
}
