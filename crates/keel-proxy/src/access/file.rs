//! The file of the access log: appended to, moved aside when full, made anew when somebody moved it away.
//!
//! Others may rotate it as well. Every block is appended whole in one go where the system takes it (`O_APPEND`), so
//! that a proxy that drains and its successor can share the file, and one that is copied and truncated goes on at
//! its new end. Of a block that does not fit on the disk no part stays: a line is whole or not there.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::Instant;

use keel_route::access_log::AccessLog;

use crate::limits::LOG_LOOK;

/// Lines may tell of people: not for everybody.
const MODE: u32 = 0o640;

/// The file, open or to be opened.
#[derive(Debug)]
pub struct LogFile {
    log: AccessLog,
    open: Option<Open>,
    /// When it was last looked whether the file is still the one at its path, or tried to be opened.
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode of a regular file; others (pipes, terminals) are only written to.
    identity: Option<(u64, u64)>,
}

impl LogFile {
    /// Not open yet.
    pub fn new(log: AccessLog) -> Self {
        Self { log, open: None, looked: None }
    }

    /// Its place.
    pub fn path(&self) -> &std::path::Path {
        &self.log.path
    }

    /// Opens it, if it is not open or no longer the one at its path. Looks at most once in [`LOG_LOOK`].
    pub fn look(&mut self) -> io::Result<()> {
        if self.looked.is_some_and(|at| at.elapsed() < LOG_LOOK) {
            return match self.open {
                Some(_) => Ok(()),
                None => Err(io::Error::other("it will be tried again in a moment")),
            };
        }
        self.looked = Some(Instant::now());
        let replaced = self.open.as_ref().is_some_and(|open| {
            open.identity.is_some() && identity(fs::metadata(&self.log.path)) != open.identity
        });
        if replaced {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(self.opened()?);
        }
        Ok(())
    }

    fn opened(&self) -> io::Result<Open> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(MODE).open(&self.log.path)?;
        let identity = identity(file.metadata());
        Ok(Open { file, identity })
    }

    /// Appends whole lines, all or none.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.look()?;
        self.rotate_for(lines.len() as u64)?;
        match &mut self.open {
            Some(open) => open.append(lines),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Moves the file aside if `more` bytes would be too much for it.
    fn rotate_for(&mut self, more: u64) -> io::Result<()> {
        let Some(Open { file, identity: Some(own) }) = &self.open else { return Ok(()) };
        let size = file.metadata()?.len();
        if self.log.max_size == 0 || size == 0 || size + more <= self.log.max_size {
            return Ok(());
        }
        // A proxy that drains may find it full at the same moment: whoever comes second must not move the new file over
        // the one that was full. The lock goes with the file. Where there are no locks, one proxy is the rule.
        let _ = file.lock();
        if identity(fs::metadata(&self.log.path)) == Some(*own)
            && let Err(error) = self.move_aside()
        {
            // Better too large than lost.
            let path = self.log.path.display();
            tracing::warn!(%path, %error, "the access log can't be moved aside and grows on");
            self.log.max_size = 0;
            let _ = file.unlock();
            return Ok(());
        }
        self.open = None;
        self.open = Some(self.opened()?);
        Ok(())
    }

    fn move_aside(&self) -> io::Result<()> {
        for number in (1..self.log.keep).rev() {
            match fs::rename(self.aside(number), self.aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.log.keep {
            0 => fs::remove_file(&self.log.path),
            _ => fs::rename(&self.log.path, self.aside(1)),
        }
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.log.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Open {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let mut left = lines;
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(n @ 1..) => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => {
                    return self.undo(
                        before,
                        lines.len() - left.len(),
                        io::ErrorKind::WriteZero.into(),
                    );
                }
                Err(e) => return self.undo(before, lines.len() - left.len(), e),
            }
        }
        Ok(())
    }

    /// Takes back what was written of a block, unless somebody else has written since.
    fn undo(&mut self, before: u64, written: usize, error: io::Error) -> io::Result<()> {
        let now = self.file.metadata().map_or(0, |metadata| metadata.len());
        if written > 0 && self.identity.is_some() && now == before + written as u64 {
            // If this fails too, a line stays cut.
            let _ = self.file.set_len(before);
        }
        Err(error)
    }
}

fn identity(metadata: io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    let metadata = metadata.ok().filter(fs::Metadata::is_file)?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(max_size: u64, keep: u32) -> (tempfile::TempDir, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let log =
            AccessLog { path: dir.path().join("a.log"), max_size, keep, ..AccessLog::default() };
        (dir, LogFile::new(log))
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> Option<String> {
        fs::read_to_string(dir.path().join(name)).ok()
    }

    #[test]
    fn full_files_are_moved_aside_and_the_last_ones_kept() {
        let (dir, mut file) = log(8, 2);
        for line in ["aaa\n", "bbb\n", "ccc\n", "ddd\n", "eee\n", "fff\n", "ggg\n"] {
            file.append(line.as_bytes()).unwrap();
        }
        let wanted = ["ggg\n", "eee\nfff\n", "ccc\nddd\n"].map(|text| Some(text.to_owned()));
        assert_eq!(["a.log", "a.log.1", "a.log.2"].map(|name| read(&dir, name)), wanted);
        assert_eq!(read(&dir, "a.log.3"), None);
    }

    #[test]
    fn two_proxies_that_share_a_file_move_only_full_ones_aside() {
        const LINES: usize = 800;
        let (dir, file) = log(40, 500);
        let log = &file.log;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut file = LogFile::new(log.clone());
                    (0..LINES).for_each(|_| file.append(b"line\n").unwrap());
                });
            }
        });
        let mut sizes = Vec::new();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "a.log" {
                sizes.push(entry.metadata().unwrap().len());
            }
        }
        let all = sizes.iter().sum::<u64>() + fs::metadata(file.path()).unwrap().len();
        assert_eq!(all, 2 * 5 * LINES as u64, "lines are lost");
        assert!(sizes.iter().all(|size| *size >= 40), "{sizes:?}");
    }

    #[test]
    fn none_is_kept_if_none_is_wanted() {
        let (dir, mut file) = log(4, 0);
        file.append(b"aaa\n").unwrap();
        file.append(b"bbb\n").unwrap();
        assert_eq!(read(&dir, "a.log").unwrap(), "bbb\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_was_moved_or_truncated_by_others_goes_on() {
        let (dir, mut file) = log(0, 1);
        file.append(b"one\n").unwrap();
        // As `copytruncate` does.
        File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
        file.append(b"two\n").unwrap();
        assert_eq!(read(&dir, "a.log").unwrap(), "two\n");
        fs::rename(file.path(), dir.path().join("old")).unwrap();
        file.looked = None;
        file.append(b"three\n").unwrap();
        assert_eq!(read(&dir, "a.log").unwrap(), "three\n");
        assert_eq!(read(&dir, "old").unwrap(), "two\n");
    }

    #[test]
    fn what_cannot_be_opened_is_tried_again() {
        let (dir, mut file) = log(0, 1);
        file.log.path = dir.path().join("none/a.log");
        assert!(file.append(b"one\n").is_err());
        fs::create_dir(dir.path().join("none")).unwrap();
        assert!(file.append(b"two\n").is_err(), "it is not tried with every line");
        file.looked = None;
        file.append(b"three\n").unwrap();
        assert_eq!(read(&dir, "none/a.log").unwrap(), "three\n");
    }

    #[test]
    fn pipes_and_terminals_are_only_written_to() {
        let (_dir, mut file) = log(4, 1);
        file.log.path = "/dev/null".into();
        for _ in 0..3 {
            file.append(b"some line\n").unwrap();
            file.looked = None;
        }
        assert!(file.open.is_some_and(|open| open.identity.is_none()));
    }
}
