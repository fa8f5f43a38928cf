//! Passing a body on without keeping it.
//!
//! Bytes go through the worker's one scratch buffer in a read and a write; only what the other side does not take
//! at once is copied to a buffer of its own, and then nothing more is read until that is gone.

use std::cell::Cell;
use std::io;

use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::deadline::{Deadline, Idle};
use crate::http1::body::Body;
use crate::limits::SPLICE_BODY;
use crate::splice::{self, Turn};
use crate::stream;
use crate::worker::Worker;

/// Why a body did not pass whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Sink,
    /// It is not properly chunked.
    Malformed,
}

/// From one connection to another.
pub struct Relay<'a> {
    pub worker: &'a Worker,
    pub from: &'a Conn,
    pub to: &'a Conn,
    pub deadline: &'a Deadline,
    /// Between two pieces.
    pub idle: Idle<'a>,
    /// Leave the chunking out.
    pub unchunk: bool,
    /// Counts what was moved.
    pub moved: &'a Cell<u64>,
}

impl Relay<'_> {
    /// Passes on what is left of `body`. What was read beyond its end goes to `beyond`.
    pub async fn run(&mut self, body: &mut Body, beyond: &mut Buffer) -> Result<(), Broken> {
        while !body.is_over() {
            self.deadline.set(self.idle.time);
            if let Body::Length(left) = body
                && *left >= SPLICE_BODY
                && self.bulk(left).await?
            {
                continue;
            }
            self.readable().await?;
            match self.once(body, beyond)? {
                Moved::All => {}
                Moved::End if *body == Body::UntilClose => return Ok(()),
                Moved::End => return Err(Broken::Source),
                Moved::Left(left) => {
                    let written = stream::write_all(self.to, left.bytes(), self.deadline).await;
                    self.worker.buffers.give(left);
                    written.map_err(|_| Broken::Sink)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until there is something to pass on, as long as something passes at all.
    async fn readable(&self) -> Result<(), Broken> {
        let ready = self.deadline.until_idle(self.idle, |cx| self.from.poll_read_ready(cx)).await;
        ready.map_err(|_| Broken::Source)
    }

    fn count(&self, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
        if let Some(flow) = self.idle.flow {
            flow.passed();
        }
    }

    /// Lets the system move a part of what is `left`; false if it can't.
    async fn bulk(&mut self, left: &mut u64) -> Result<bool, Broken> {
        let (Some(from), Some(to)) = (self.from.plain(), self.to.plain()) else {
            return Ok(false);
        };
        let turn = splice::turn(&self.worker.pipes, from, to, *left, self.deadline).await;
        match turn {
            Ok(Turn::Moved(0)) | Err(splice::Broken::Source(_)) => Err(Broken::Source),
            Ok(Turn::Moved(n)) => {
                *left = left.saturating_sub(n as u64);
                self.count(n);
                Ok(true)
            }
            Ok(Turn::Nothing) => self.readable().await.map(|()| true),
            Ok(Turn::Unavailable) => Ok(false),
            Err(splice::Broken::Sink(_)) => Err(Broken::Sink),
        }
    }

    /// One read and one write.
    fn once(&mut self, body: &mut Body, beyond: &mut Buffer) -> Result<Moved, Broken> {
        let mut scratch = self.worker.scratch.borrow_mut();
        let most = match body {
            // What follows is not ours to read.
            Body::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(scratch.len()),
            Body::Chunked(_) | Body::UntilClose => scratch.len(),
        };
        let read = match self.from.try_read(&mut scratch[..most]) {
            Ok(0) => return Ok(Moved::End),
            Ok(n) => n,
            Err(e) if is_passing(&e) => return Ok(Moved::All),
            Err(_) => return Err(Broken::Source),
        };
        let mut content = Vec::new();
        let taken = if self.unchunk {
            body.take_content(&scratch[..read], &mut content)
        } else {
            body.take(&scratch[..read])
        };
        let taken = taken.map_err(|_| Broken::Malformed)?;
        beyond.extend(&scratch[taken..read]);
        let bytes = if self.unchunk { &content } else { &scratch[..taken] };
        self.count(bytes.len());
        if !body.is_over() {
            self.from.got_part(read);
        }
        let written = match self.to.try_write(bytes, &[]) {
            Ok(n) => n,
            Err(e) if is_passing(&e) => 0,
            Err(_) => return Err(Broken::Sink),
        };
        if written == bytes.len() {
            return Ok(Moved::All);
        }
        let mut left = self.worker.buffers.take();
        left.extend(&bytes[written..]);
        Ok(Moved::Left(left))
    }
}

enum Moved {
    All,
    /// The other side took only a part; this is the rest.
    Left(Buffer),
    /// There is nothing more to read.
    End,
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
