//! From the workload's output to rotated, bounded log files.
//!
//! One line of a file is `<RFC 3339 with nanoseconds> <stdout|stderr> <F|P> <text>`, the format that Kubernetes'
//! container runtimes write; `P` marks a piece of a line longer than [`MAX_LINE`]. A full disk loses lines, never
//! the workload: lost lines are counted and the count is written once there is room again. What was written is
//! always whole lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keel_model::LogPolicy;

use crate::stamp;

/// Longest text of one line of a log file; the value that container runtimes use.
pub(crate) const MAX_LINE: usize = 16 << 10;
/// Bytes taken from a pipe at once.
const CHUNK: usize = 16 << 10;
/// The smallest size at which a file is rotated, whatever the policy says.
const MIN_FILE: u64 = 4 << 10;
/// The name of the youngest file; older ones have `.1`, `.2`, … after it.
pub(crate) const NAME: &str = "log";

/// One of the workload's two outputs.
pub(crate) struct Output {
    name: &'static str,
    fifo: File,
    line: Vec<u8>,
}

impl Output {
    /// Opens the reading side. It is opened for writing too, so that it never reports an end.
    pub(crate) fn open(dir: &Path, name: &'static str) -> io::Result<Self> {
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(dir.join(name))?;
        Ok(Self { name, fifo, line: Vec::new() })
    }

    /// The pipe, to wait on.
    pub(crate) fn pipe(&self) -> &File {
        &self.fifo
    }

    /// Moves what is there, at most one chunk; says how many bytes.
    pub(crate) fn pump(&mut self, log: &mut Log) -> usize {
        let mut chunk = [0u8; CHUNK];
        match self.fifo.read(&mut chunk) {
            Ok(count) => {
                self.take(&chunk[..count], log);
                count
            }
            Err(_) => 0,
        }
    }

    fn take(&mut self, bytes: &[u8], log: &mut Log) {
        let stamp = stamp::now_text();
        let mut out = Vec::with_capacity(bytes.len() * 2);
        let mut lines = 0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MAX_LINE - self.line.len();
            let window = &rest[..rest.len().min(room + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.line.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                self.end_line(&mut out, &stamp, "F");
                lines += 1;
            } else if rest.len() > room {
                self.line.extend_from_slice(&rest[..room]);
                rest = &rest[room..];
                self.end_line(&mut out, &stamp, "P");
                lines += 1;
            } else {
                self.line.extend_from_slice(rest);
                rest = &[];
            }
        }
        log.append(&out, lines);
    }

    fn end_line(&mut self, out: &mut Vec<u8>, stamp: &str, tag: &str) {
        for part in [stamp, " ", self.name, " ", tag, " "] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(&self.line);
        out.push(b'\n');
        self.line.clear();
        // An occasional long line must not cost its size for ever.
        self.line.shrink_to(512);
    }

    /// Writes a last line that has no end.
    pub(crate) fn finish(&mut self, log: &mut Log) {
        if !self.line.is_empty() {
            let mut out = Vec::new();
            self.end_line(&mut out, &stamp::now_text(), "F");
            log.append(&out, 1);
        }
    }
}

/// The log files of one instance.
pub(crate) struct Log {
    dir: PathBuf,
    policy: LogPolicy,
    file: Option<File>,
    size: u64,
    dropped: u64,
}

impl Log {
    /// Goes on with the files in `dir`.
    pub(crate) fn new(dir: &Path, policy: LogPolicy) -> Self {
        Self { dir: dir.to_owned(), policy, file: None, size: 0, dropped: 0 }
    }

    /// Adds what somebody else said before the workload began, each line marked with who that was.
    pub(crate) fn add(&mut self, mark: &str, text: &str) {
        let stamp = stamp::now_text();
        let (mut out, mut lines) = (String::new(), 0);
        for line in text.lines() {
            let end = (0..=line.len().min(MAX_LINE)).rev().find(|at| line.is_char_boundary(*at));
            let line = &line[..end.unwrap_or(0)];
            out.push_str(&format!("{stamp} stdout F [{mark}] {line}\n"));
            lines += 1;
        }
        self.append(out.as_bytes(), lines);
    }

    fn append(&mut self, bytes: &[u8], lines: u64) {
        if !self.policy.keep || bytes.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(bytes) {
            if self.dropped == 0 {
                self.file = None;
            }
            self.dropped += lines;
            let _ = error;
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.ready(bytes.len() as u64)?;
        if self.dropped > 0 {
            let note = format!(
                "{} stderr F [keel] {} lines were lost: the log could not be written\n",
                stamp::now_text(),
                self.dropped
            );
            self.write_whole(note.as_bytes())?;
            self.dropped = 0;
        }
        self.write_whole(bytes)
    }

    /// Writes all or nothing.
    fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = self.file.as_mut() else {
            return Err(io::Error::other("the log is not open"));
        };
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                let _ = file.set_len(self.size);
                Err(error)
            }
        }
    }

    fn ready(&mut self, more: u64) -> io::Result<()> {
        if self.file.is_none() {
            let path = self.dir.join(NAME);
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        if self.size > 0 && self.size + more > self.policy.max_size.max(MIN_FILE) {
            self.rotate()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = |number: u32| match number {
            0 => self.dir.join(NAME),
            n => self.dir.join(format!("{NAME}.{n}")),
        };
        let last = self.policy.max_files.max(1) - 1;
        if last == 0 {
            fs::remove_file(path(0))?;
        }
        for number in (0..last).rev() {
            match fs::rename(path(number), path(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = None;
        self.ready(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(dir: &Path) -> Output {
        let fifo = File::create(dir.join("in")).unwrap();
        Output { name: "stdout", fifo, line: Vec::new() }
    }

    fn texts(dir: &Path, file: &str) -> Vec<String> {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().map(|line| line[stamp::LEN + 1..].to_owned()).collect()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), LogPolicy::default());
        let mut output = output(dir.path());
        for piece in ["a", "b\nc\n\n", "d"] {
            output.take(piece.as_bytes(), &mut log);
        }
        output.finish(&mut log);
        assert_eq!(
            texts(dir.path(), NAME),
            ["stdout F ab", "stdout F c", "stdout F ", "stdout F d"]
        );
    }

    #[test]
    fn a_long_line_is_split_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), LogPolicy::default());
        let mut output = output(dir.path());
        let long = "x".repeat(2 * MAX_LINE + 5);
        for piece in format!("{long}\n").as_bytes().chunks(1000) {
            output.take(piece, &mut log);
        }
        let exact = "y".repeat(MAX_LINE);
        output.take(format!("{exact}\n").as_bytes(), &mut log);
        let lines = texts(dir.path(), NAME);
        let tags: Vec<&str> = lines.iter().map(|line| &line[7..8]).collect();
        assert_eq!(tags, ["P", "P", "F", "F"]);
        assert_eq!(lines[2], "stdout F xxxxx");
        assert_eq!(lines[3].len(), "stdout F ".len() + MAX_LINE);
    }

    #[test]
    fn files_are_rotated_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let policy = LogPolicy { keep: true, max_size: MIN_FILE, max_files: 3 };
        let mut log = Log::new(dir.path(), policy);
        let mut output = output(dir.path());
        for number in 0..1000 {
            output.take(format!("line {number:04}\n").as_bytes(), &mut log);
        }
        assert!(!dir.path().join("log.3").exists());
        let all: Vec<String> =
            ["log.2", "log.1", "log"].iter().flat_map(|file| texts(dir.path(), file)).collect();
        assert_eq!(all.last().unwrap(), "stdout F line 0999");
        let first: usize = all[0].split_whitespace().last().unwrap().parse().unwrap();
        assert_eq!(all.len(), 1000 - first);
        for file in ["log", "log.1", "log.2"] {
            assert!(fs::metadata(dir.path().join(file)).unwrap().len() <= MIN_FILE);
        }
    }
}
