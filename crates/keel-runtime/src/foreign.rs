//! A process that somebody else starts, such as a container engine, and that is to be watched.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::record::{boot_id, stat};
use crate::types::Resources;

/// A process of this machine, told from every later one with the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignProcess {
    /// Its id.
    pub pid: u32,
    start_ticks: u64,
    boot_id: String,
}

impl ForeignProcess {
    /// The process that has this id now, if one has.
    #[must_use]
    pub fn find(pid: u32) -> Option<Self> {
        let stat = stat(i32::try_from(pid).ok()?).filter(|stat| !stat.zombie)?;
        Some(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id() })
    }

    /// Whether it lives: the same process, in the same boot, not a zombie.
    #[must_use]
    pub fn alive(&self) -> bool {
        let pid = i32::try_from(self.pid).unwrap_or(0);
        self.boot_id == boot_id()
            && stat(pid).is_some_and(|s| s.start_ticks == self.start_ticks && !s.zombie)
    }

    fn pinned(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        if self.alive() { Ok(process) } else { Err(gone()) }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it can't be watched.
    pub async fn ended(&self) -> io::Result<()> {
        match self.pinned().and_then(crate::sys::watchable) {
            Ok(process) => process.readable().await.map(drop),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended, or may not be signalled.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        crate::sys::pidfd_signal(self.pinned()?.as_fd(), signal)
    }

    /// What the control groups that it is in use, where they can be read here.
    #[must_use]
    pub fn resources(&self) -> Option<Resources> {
        let group = crate::cgroup::Group::of_process(self.pid)?;
        Some(Resources {
            cpu_usec: group.cpu_usec()?,
            memory_bytes: group.memory_bytes()?,
            pids: group.pids()?,
            network: crate::traffic::network(self.pid),
            block: group.block(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_once_and_for_good() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ForeignProcess::find(child.id()).unwrap();
        assert!(process.alive());
        let waiting = tokio::spawn({
            let process = process.clone();
            async move { process.ended().await }
        });
        process.signal(15).unwrap();
        waiting.await.unwrap().unwrap();
        child.wait().unwrap();
        assert!(!process.alive());
        process.ended().await.unwrap();
        assert!(process.signal(15).is_err());
    }
}
