//! Buffers: fixed-size windows over reused memory.
//!
//! A connection holds a buffer only while a request is on its way; idle connections hold none. Memory is
//! initialised once and recycled within the worker.

use std::cell::RefCell;

use crate::limits::{BUFFER, SPARE_BUFFERS};

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// How much is in it.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room to read into; grows towards `most` bytes in all when full. Empty when `most` are in it.
    pub fn room(&mut self, most: usize) -> &mut [u8] {
        if self.end == self.memory.len() {
            if self.start > 0 {
                self.memory.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else if self.memory.len() < most {
                let size = (self.memory.len() * 2).clamp(BUFFER, most);
                self.memory.resize(size, 0);
            }
        }
        &mut self.memory[self.end..]
    }

    /// `n` bytes were read into the room.
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.memory.len());
    }

    /// Adds bytes behind those that are in it.
    pub fn extend(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        if end > self.memory.len() {
            self.memory.resize(end, 0);
        }
        self.memory[self.end..end].copy_from_slice(bytes);
        self.end = end;
    }
}

/// Memory for buffers, recycled.
#[derive(Debug, Default)]
pub struct Buffers(RefCell<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer of [`BUFFER`] bytes.
    pub fn take(&self) -> Buffer {
        let memory = self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER]);
        Buffer { memory, start: 0, end: 0 }
    }

    /// Takes a buffer back. Those that have grown are not kept.
    pub fn give(&self, buffer: Buffer) {
        let mut spare = self.0.borrow_mut();
        if buffer.memory.len() == BUFFER && spare.len() < SPARE_BUFFERS {
            spare.push(buffer.memory);
        }
    }
}

/// Memory for heads while they are written, recycled.
#[derive(Debug, Default)]
pub struct Heads(RefCell<Vec<u8>>);

impl Heads {
    /// Empty memory.
    pub fn take(&self) -> Vec<u8> {
        self.0.take()
    }

    /// Takes memory back, unless it has grown large.
    pub fn give(&self, mut memory: Vec<u8>) {
        if memory.capacity() <= BUFFER {
            memory.clear();
            self.0.replace(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_moves_up_before_it_grows() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        assert_eq!(buffer.room(BUFFER * 4).len(), BUFFER);
        buffer.filled(BUFFER);
        buffer.consume(10);
        assert_eq!(buffer.room(BUFFER * 4).len(), 10);
        buffer.filled(10);
        assert_eq!(buffer.room(BUFFER * 4).len(), BUFFER);
        buffer.filled(BUFFER);
        assert_eq!(buffer.room(BUFFER * 2).len(), 0);
        buffer.consume(BUFFER * 2);
        assert!(buffer.is_empty());
        buffer.extend(b"abc");
        assert_eq!(buffer.bytes(), b"abc");
        buffers.give(buffer);
        assert!(buffers.0.borrow().is_empty());
    }
}
