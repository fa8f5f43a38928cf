//! Waiting for many sockets at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// Events taken at once.
const BATCH: usize = 256;

/// What a socket is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
}

/// Sockets by number.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(BATCH) })
    }

    pub fn add(&self, source: impl AsFd, number: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.epoll, source, data, flags(interest))?)
    }

    pub fn change(&self, source: impl AsFd, number: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::modify(&self.epoll, source, data, flags(interest))?)
    }

    /// Waits and puts the numbers of sockets that are ready into `ready`. With `patience` for that long at most.
    pub fn wait(&mut self, ready: &mut Vec<u64>, patience: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let patience = patience.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.drain(..).map(|event| event.data.u64()));
        Ok(())
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    match interest {
        Interest::Read => epoll::EventFlags::IN,
        Interest::Write => epoll::EventFlags::OUT,
    }
}

/// What a read or write on a socket that does not block came to.
pub enum Progress {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Blocked,
    /// The connection is over.
    Over,
}

impl Progress {
    pub fn of(result: io::Result<usize>) -> Self {
        match result {
            Ok(0) => Self::Over,
            Ok(n) => Self::Bytes(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Self::Blocked,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Self::Blocked,
            Err(_) => Self::Over,
        }
    }
}
