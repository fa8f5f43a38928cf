//! The access log: one line for each request, put together by the workers and written by a thread of its own.
//!
//! No worker ever waits for the disk: lines are collected in a block and handed over through a bounded queue; when
//! that is full they are dropped and counted. While the log is off a request costs one look at an empty cell.

mod entry;
mod file;
mod line;
mod stamp;
mod switch;
mod writer;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use keel_route::access_log::AccessLog;

pub use entry::{Ended, Entry};
pub use switch::Switch;
pub use writer::{Feed, Writer};

use crate::access::line::Line;
use crate::access::stamp::Stamps;
use crate::limits::LOG_BLOCK;

/// One worker's end of the log.
#[derive(Debug)]
pub struct Log {
    on: RefCell<Option<Rc<AccessLog>>>,
    feed: Feed,
    block: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    stamps: RefCell<Stamps>,
}

impl Log {
    /// Off, until told otherwise.
    pub fn new(feed: Feed) -> Self {
        Self {
            on: RefCell::default(),
            feed,
            block: RefCell::default(),
            lines: Cell::default(),
            stamps: RefCell::default(),
        }
    }

    /// From now on so.
    pub fn set(&self, log: Option<&Arc<AccessLog>>) {
        self.flush();
        self.on.replace(log.map(|log| Rc::new(AccessLog::clone(log))));
    }

    /// How a request at a listener is logged; `None` if it is not.
    pub fn wanted(&self, published: bool) -> Option<Rc<AccessLog>> {
        self.on.borrow().as_ref().filter(|log| log.covers(published)).map(Rc::clone)
    }

    /// Takes a line.
    pub fn write(&self, log: &AccessLog, line: &Line<'_>) {
        let mut block = self.block.borrow_mut();
        if block.capacity() == 0 {
            block.reserve_exact(LOG_BLOCK);
        }
        line.write(log.format, &mut self.stamps.borrow_mut(), &mut block);
        self.lines.set(self.lines.get() + 1);
        let full = block.len() >= LOG_BLOCK / 2;
        drop(block);
        if full {
            self.flush();
        }
    }

    /// Hands over what has been collected.
    pub fn flush(&self) {
        let lines = self.lines.take();
        if lines > 0 {
            self.feed.give(self.block.take(), lines);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}
