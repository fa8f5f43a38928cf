//! The engine's process: started so that it outlives the driver, found again by the next one, watched until it ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::files;
use crate::limits::{LOG_TAIL, MAX_LOG, REAPED};

/// A process that is not necessarily our child.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    has_ended: watch::Receiver<bool>,
    /// How it ended, if it is our child.
    status: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Process {
    /// Watches a process that runs.
    ///
    /// # Errors
    /// When there is none with this id.
    pub fn watch(pid: Pid) -> io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        let (ended, has_ended) = watch::channel(false);
        // A thread that does nothing else, and ends with the process: it need not be our child to be waited for so.
        std::thread::Builder::new().name("keel-engine-watch".to_owned()).spawn(move || {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
            ended.send_replace(true);
        })?;
        Ok(Self { pid, has_ended, status: None })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it has ended, as the end of a sentence, if that is to be known. Its end is seen a little before that.
    pub async fn how(&self) -> Option<String> {
        use std::os::unix::process::ExitStatusExt as _;
        let mut status = self.status.clone()?;
        let known = timeout(REAPED, status.wait_for(Option::is_some)).await;
        let status = (*known.ok()?.ok()?)?;
        Some(match (status.signal(), status.code()) {
            (Some(signal), _) => format!(" by signal {signal}"),
            (None, Some(code)) => format!(" with code {code}"),
            (None, None) => return None,
        })
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.has_ended.borrow()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // An error means that the thread has ended, and so has the process.
        let _ = self.has_ended.clone().wait_for(|ended| *ended).await;
    }

    /// Sends a signal to it and all that it has started, also after its end.
    pub fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Sends it a signal. That it has ended is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }
}

/// Where the process is noted, and what it says.
#[derive(Clone, Debug)]
pub struct Files {
    note: PathBuf,
    pub log: PathBuf,
}

impl Files {
    pub fn new(directory: &Path) -> Self {
        Self { note: directory.join("engine.pid"), log: directory.join("engine.log") }
    }

    /// Starts a program in a process group of its own, so that no terminal ends it, and notes it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, program: &Path, arguments: &[std::ffi::OsString]) -> io::Result<Process> {
        use std::os::unix::process::CommandExt as _;
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > MAX_LOG) {
            fs::remove_file(&self.log)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut child = tokio::process::Command::from(command).kill_on_drop(false).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("it ended at once"))?;
        let mut process = Process::watch(pid)?;
        // Waited for so that it leaves no zombie.
        let (how, status) = watch::channel(None);
        tokio::spawn(async move { how.send_replace(child.wait().await.ok()) });
        process.status = Some(status);
        let note = format!("{} {}", pid.as_raw_nonzero(), started_at(pid).unwrap_or_default());
        files::put(&self.note, note.as_bytes(), files::PLAIN)?;
        Ok(process)
    }

    /// The process that an earlier driver noted, if it still runs.
    pub fn find(&self) -> Option<Process> {
        let note = fs::read_to_string(&self.note).ok()?;
        let (pid, since) = note.split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        // The same number may be another process by now.
        (started_at(pid)? == since).then(|| Process::watch(pid).ok()).flatten()
    }

    /// Takes the note away: a process that is leaving is not to be found.
    pub fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.note) {
            tracing::warn!(%error, "cannot remove the note of an engine that is leaving");
        }
    }

    /// How long the log is.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// What was logged since it was `from` bytes long: the end of it.
    pub fn logged_since(&self, from: u64) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL))))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

/// When a process started, in the system's own measure; `None` if it has ended.
fn started_at(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in the second field may have spaces and brackets in it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    // A zombie has ended.
    let state = fields.next()?;
    (!["Z", "X"].contains(&state)).then(|| fields.nth(18).map(str::to_owned)).flatten()
}

/// The children of a process.
pub fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    // One list for each thread that has started some.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let list = lists.collect::<io::Result<Vec<_>>>().map(|lists| lists.concat());
    let list = list.unwrap_or_else(|_| scan(pid.get()));
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The same where the kernel keeps no list.
fn scan(parent: i32) -> String {
    let mut list = String::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        if of == Some(parent.to_string().as_str()) {
            list.push_str(&entry.file_name().to_string_lossy());
            list.push(' ');
        }
    }
    list
}

/// The command line of a process, which nginx uses to say what each one is.
pub fn title(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_again_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path());
        assert!(files.find().is_none());
        let process = files.start(Path::new("/bin/sleep"), &["60".into()]).unwrap();
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(children(own).contains(&process.pid()));
        assert!(
            scan(own.as_raw_nonzero().get()).contains(&process.pid().as_raw_nonzero().to_string())
        );
        let found = files.find().unwrap();
        assert_eq!(found.pid(), process.pid());
        found.signal(Signal::KILL);
        found.ended().await;
        process.ended().await;
        assert!(files.find().is_none());
    }

    #[tokio::test]
    async fn another_process_with_its_number_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path());
        fs::write(&files.note, format!("{} 1", std::process::id())).unwrap();
        assert!(files.find().is_none());
    }
}
