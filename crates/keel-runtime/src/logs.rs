//! Reads an instance's log files: the last lines, a span of time, and whatever comes.
//!
//! The reader keeps the file that it reads open. When the file has been rotated away it is read to its end and then
//! its younger neighbour is opened, found by inode, so that no line is lost or seen twice unless the files rotate
//! faster than they are read. New lines are looked for by polling, more slowly while nothing comes: an inotify
//! descriptor per reader would exhaust the kernel's small default.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::shim::pump::NAME;
use crate::stamp;
use crate::types::{LogLine, LogQuery, LogStream};

/// Lines in the channel.
const QUEUE: usize = 256;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Shortest and longest pause between two looks for new lines.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));
/// How often opening all files is tried while they are being rotated.
const OPEN_ROUNDS: usize = 20;
/// More files than anybody keeps.
const MAX_FILES: u32 = 1000;

/// Starts to read the files in `dir`.
pub(crate) fn read(dir: PathBuf, query: LogQuery) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let begin = tokio::task::spawn_blocking(move || Cursor::begin(dir, query.tail)).await;
        if let Ok(Ok(cursor)) = begin {
            run(cursor, query, &sender).await;
        }
    });
    receiver
}

async fn run(mut cursor: Cursor, query: LogQuery, sender: &mpsc::Sender<LogLine>) {
    let mut pause = PAUSE.0;
    loop {
        let step = tokio::task::spawn_blocking(move || {
            let lines = cursor.next();
            (cursor, lines)
        });
        let Ok((back, lines)) = step.await else { return };
        cursor = back;
        let Ok(lines) = lines else { return };
        let nothing = lines.is_empty();
        for line in lines {
            if query.since.is_some_and(|since| line.at < since) {
                continue;
            }
            if query.until.is_some_and(|until| line.at > until) {
                return;
            }
            if sender.send(line).await.is_err() {
                return;
            }
        }
        if !nothing {
            pause = PAUSE.0;
            continue;
        }
        let passed = query.until.is_some_and(|until| stamp::now() > until);
        if !query.follow || passed {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn path(dir: &Path, number: u32) -> PathBuf {
    match number {
        0 => dir.join(NAME),
        n => dir.join(format!("{NAME}.{n}")),
    }
}

/// An open file with its inode.
type Opened = (File, u64);

fn open_one(dir: &Path, number: u32) -> io::Result<Option<Opened>> {
    match File::open(path(dir, number)) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All files, the youngest first, as they were at one moment: if they are rotated meanwhile, once more.
fn open_all(dir: &Path) -> io::Result<Vec<Opened>> {
    let mut files = Vec::new();
    for _ in 0..OPEN_ROUNDS {
        files.clear();
        while let Some(opened) = open_one(dir, u32::try_from(files.len()).unwrap_or(MAX_FILES))? {
            files.push(opened);
        }
        let now = |n: usize| {
            let number = u32::try_from(n).unwrap_or(MAX_FILES);
            fs::metadata(path(dir, number)).map(|meta| meta.ino()).ok()
        };
        let same = files.iter().enumerate().all(|(n, (_, inode))| now(n) == Some(*inode));
        if same && now(files.len()).is_none() {
            break;
        }
    }
    Ok(files)
}

/// A place in the sequence of files.
struct Cursor {
    dir: PathBuf,
    file: Option<Opened>,
    /// The begin of a line whose end was not there yet.
    rest: Vec<u8>,
}

impl Cursor {
    /// At the oldest line, or `tail` lines before the end.
    fn begin(dir: PathBuf, tail: Option<usize>) -> io::Result<Self> {
        let mut files = open_all(&dir)?;
        let mut cursor = Self { dir, file: None, rest: Vec::new() };
        let Some(wanted) = tail else {
            cursor.file = files.pop();
            return Ok(cursor);
        };
        let mut missing = wanted;
        for (mut file, inode) in files {
            let found = seek_back(&mut file, missing)?;
            cursor.file = Some((file, inode));
            if found == missing {
                break;
            }
            missing -= found;
        }
        Ok(cursor)
    }

    /// The next lines; none when there are none now. An error when the instance is gone.
    fn next(&mut self) -> io::Result<Vec<LogLine>> {
        if self.file.is_none() {
            // All there is now, because the first file may have been rotated before we saw it.
            self.file = open_all(&self.dir)?.pop();
        }
        if self.file.is_none() {
            let gone = || io::ErrorKind::NotFound.into();
            return if self.dir.exists() { Ok(Vec::new()) } else { Err(gone()) };
        }
        loop {
            let lines = self.read_chunk()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            let current = fs::metadata(path(&self.dir, 0)).map(|meta| meta.ino()).ok();
            let Some((_, inode)) = &self.file else { return Ok(Vec::new()) };
            if current == Some(*inode) {
                return Ok(Vec::new());
            }
            if !self.dir.exists() {
                return Err(io::ErrorKind::NotFound.into());
            }
            // Rotated: what was written between our last read and the rotation first, then the next file.
            let last = self.read_chunk()?;
            let moved = self.advance()?;
            if !last.is_empty() || !moved {
                return Ok(last);
            }
        }
    }

    /// Opens the file that follows ours.
    fn advance(&mut self) -> io::Result<bool> {
        let Some((_, inode)) = self.file else { return Ok(false) };
        let inodes: Vec<Option<u64>> = (0..MAX_FILES)
            .map(|n| fs::metadata(path(&self.dir, n)).map(|meta| meta.ino()).ok())
            // A file may be missing for a moment while a rotation is under way.
            .scan(0, |missing, inode| {
                *missing = if inode.is_some() { 0 } else { *missing + 1 };
                (*missing < 3).then_some(inode)
            })
            .collect();
        let ours = inodes.iter().position(|found| *found == Some(inode));
        let next = match ours {
            Some(0) => return Ok(false),
            Some(position) => position - 1,
            None => match inodes.iter().rposition(Option::is_some) {
                Some(oldest) => oldest,
                None => return Ok(false),
            },
        };
        // In the middle of a rotation there may be a gap; then we stay where we are and look again.
        let number = u32::try_from(next).unwrap_or(0);
        let Some(opened) = open_one(&self.dir, number)? else { return Ok(false) };
        self.file = Some(opened);
        self.rest.clear();
        Ok(true)
    }

    fn read_chunk(&mut self) -> io::Result<Vec<LogLine>> {
        let Some((file, _)) = &mut self.file else { return Ok(Vec::new()) };
        let mut chunk = vec![0u8; CHUNK];
        let mut lines = Vec::new();
        let count = file.read(&mut chunk)?;
        self.rest.extend_from_slice(&chunk[..count]);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(lines);
        };
        for line in self.rest[..end].split(|byte| *byte == b'\n') {
            lines.extend(parse(line));
        }
        self.rest.drain(..=end);
        Ok(lines)
    }
}

/// Moves to `wanted` lines before the end, or to the begin when there are fewer; says how many there are after that
/// place. Pieces of a long line count as one.
fn seek_back(file: &mut File, wanted: usize) -> io::Result<usize> {
    let size = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok(0);
    }
    let mut span = CHUNK as u64;
    loop {
        let start = size.saturating_sub(span);
        file.seek(SeekFrom::Start(start))?;
        let mut text = Vec::new();
        file.by_ref().take(size - start).read_to_end(&mut text)?;
        let mut found = 0;
        let mut place = text.len();
        let mut end = text.len();
        // Backwards over lines; `place` is the begin of the earliest one that is wanted.
        while end > 0 {
            let begin = text[..end - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let cut = begin == 0 && start > 0;
            if cut {
                break;
            }
            let whole = !text[begin..end].get(stamp::LEN..).is_some_and(|rest| {
                rest.starts_with(b" stdout P ") || rest.starts_with(b" stderr P ")
            });
            if whole && found == wanted {
                break;
            }
            found += usize::from(whole);
            place = begin;
            end = begin;
        }
        if end > 0 && found == wanted || start == 0 {
            file.seek(SeekFrom::Start(start + place as u64))?;
            return Ok(found);
        }
        span *= 4;
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let at = stamp::parse(line.get(..stamp::LEN)?)?;
    let rest = &line[stamp::LEN..];
    let (stream, rest) = if let Some(rest) = rest.strip_prefix(b" stdout ") {
        (LogStream::Stdout, rest)
    } else {
        (LogStream::Stderr, rest.strip_prefix(b" stderr ")?)
    };
    let partial = match rest.get(..2)? {
        b"F " => false,
        b"P " => true,
        _ => return None,
    };
    let text = String::from_utf8_lossy(&rest[2..]).into_owned();
    Some(LogLine { at, stream, text, partial })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(number: usize, tag: char) -> String {
        format!("2026-11-23T12:00:00.{number:09}Z stdout {tag} line {number}\n")
    }

    fn texts(dir: &Path, tail: Option<usize>) -> Vec<String> {
        let mut cursor = Cursor::begin(dir.to_owned(), tail).unwrap();
        let mut all = Vec::new();
        loop {
            let lines = cursor.next().unwrap();
            if lines.is_empty() {
                return all;
            }
            all.extend(lines.into_iter().map(|line| line.text));
        }
    }

    #[test]
    fn the_last_lines_are_found_across_files_and_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<String> = (0..30_000).map(|n| line(n, 'F')).collect();
        fs::write(dir.path().join("log.2"), all[..10_000].concat()).unwrap();
        fs::write(dir.path().join("log.1"), all[10_000..20_000].concat()).unwrap();
        fs::write(dir.path().join("log"), all[20_000..].concat()).unwrap();
        for tail in [0, 1, 5, 9_999, 10_000, 10_001, 25_000, 30_000, 40_000] {
            let found = texts(dir.path(), Some(tail));
            let first = 30_000usize.saturating_sub(tail);
            assert_eq!(found.len(), 30_000 - first, "tail {tail}");
            if tail > 0 {
                assert_eq!(found[0], format!("line {first}"));
                assert_eq!(found.last().unwrap(), "line 29999");
            }
        }
        assert_eq!(texts(dir.path(), None).len(), 30_000);
    }

    #[test]
    fn pieces_of_a_long_line_stay_together() {
        let dir = tempfile::tempdir().unwrap();
        let text = [line(0, 'F'), line(1, 'P'), line(2, 'P'), line(3, 'F'), line(4, 'F')].concat();
        fs::write(dir.path().join("log"), text).unwrap();
        assert_eq!(texts(dir.path(), Some(2)), ["line 1", "line 2", "line 3", "line 4"]);
    }

    #[test]
    fn a_rotation_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, line(0, 'F')).unwrap();
        let mut cursor = Cursor::begin(dir.path().to_owned(), None).unwrap();
        assert_eq!(cursor.next().unwrap().len(), 1);
        let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(line(1, 'F').as_bytes()).unwrap();
        fs::rename(&log, dir.path().join("log.1")).unwrap();
        fs::rename(dir.path().join("log.1"), dir.path().join("log.2")).unwrap();
        fs::write(dir.path().join("log.1"), line(2, 'F')).unwrap();
        fs::write(&log, line(3, 'F')).unwrap();
        let mut seen = Vec::new();
        loop {
            let lines = cursor.next().unwrap();
            if lines.is_empty() {
                break;
            }
            seen.extend(lines.into_iter().map(|line| line.text));
        }
        assert_eq!(seen, ["line 1", "line 2", "line 3"]);
    }

    #[test]
    fn a_rotation_under_way_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("log.1"), line(0, 'F')).unwrap();
        fs::write(at("log"), line(1, 'F')).unwrap();
        let mut cursor = Cursor::begin(dir.path().to_owned(), None).unwrap();
        assert_eq!(cursor.next().unwrap()[0].text, "line 0");
        fs::rename(at("log.1"), at("log.2")).unwrap();
        let log = fs::read(at("log")).unwrap();
        fs::rename(at("log"), at("aside")).unwrap();
        assert_eq!(cursor.next().unwrap(), []);
        fs::write(at("log"), &log).unwrap();
        assert_eq!(cursor.next().unwrap(), [], "the file between is missing");
        fs::rename(at("log"), at("log.1")).unwrap();
        fs::write(at("log"), line(2, 'F')).unwrap();
        assert_eq!(cursor.next().unwrap()[0].text, "line 1");
        assert_eq!(cursor.next().unwrap()[0].text, "line 2");
    }

    #[test]
    fn what_is_no_log_line_is_skipped() {
        for bad in ["", "x", "2026-11-23T12:00:00.000000000Z stdnix F a"] {
            assert_eq!(parse(bad.as_bytes()), None);
        }
    }
}
