//! Moving bytes from socket to socket inside the kernel, for bulk.
//!
//! A pipe in between holds pages, not copies. It costs two system calls a turn and more per call than copying, so
//! that it pays only when much comes at once: callers begin by copying and change over when a read fills the
//! worker's whole scratch buffer.
//!
//! The pipe is emptied before it is filled again. Otherwise "would block" could mean that the pipe is full, and
//! the socket's readiness would be forgotten although it has more.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use crate::deadline::Deadline;
use crate::limits::{PIPE, SPARE_PIPES};
use crate::tcp::Tcp;

/// A pipe, and how much is in it.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

/// Unused pipes of a worker.
#[derive(Debug, Default)]
pub struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.borrow_mut().pop() {
            return Ok(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A smaller one, where the user's pipes are limited, works as well.
        let _ = fcntl_setpipe_size(&into, PIPE);
        Ok(Pipe { out, into, held: 0 })
    }

    fn give(&self, pipe: Pipe) {
        let mut spare = self.0.borrow_mut();
        if pipe.held == 0 && spare.len() < SPARE_PIPES {
            spare.push(pipe);
        }
    }
}

/// Which side failed.
#[derive(Debug)]
pub enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// How one turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// So many bytes were moved; 0: nothing more comes.
    Moved(usize),
    /// There is nothing at the moment.
    Nothing,
    /// The system has no pipe for us: copy instead.
    Unavailable,
}

/// Moves at most `most` bytes that are there already, waiting only for `to` to take them.
///
/// # Errors
/// When a side is broken or `deadline` passes while `to` takes nothing.
pub async fn turn(
    pipes: &Pipes,
    from: &Tcp,
    to: &Tcp,
    most: u64,
    deadline: &Deadline,
) -> Result<Turn, Broken> {
    let Ok(mut pipe) = pipes.take() else { return Ok(Turn::Unavailable) };
    let most = usize::try_from(most).unwrap_or(PIPE).min(PIPE);
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let filled =
        from.try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.into, None, most, flags)?));
    let n = match filled {
        Ok(n) => n,
        Err(e) if is_passing(&e) => {
            pipes.give(pipe);
            return Ok(Turn::Nothing);
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(Turn::Unavailable),
        Err(e) => return Err(Broken::Source(e)),
    };
    pipe.held = n;
    while pipe.held > 0 {
        let drained = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&pipe.out, None, to, None, pipe.held, flags)?)
        });
        match drained {
            Ok(0) => return Err(Broken::Sink(io::ErrorKind::WriteZero.into())),
            Ok(n) => pipe.held -= n.min(pipe.held),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let ready = deadline.until(|cx| to.poll_write_ready(cx)).await;
                ready.map_err(Broken::Sink)?;
            }
            Err(e) => return Err(Broken::Sink(e)),
        }
    }
    pipes.give(pipe);
    Ok(Turn::Moved(n))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
