//! What an endpoint of HTTP/1 has sent of its answer, and the heads in it.

use std::io;

use bytes::{Buf, Bytes};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::http1::{self, Body, Request, response};
use crate::limits::{BUFFER, MAX_HEAD};
use crate::worker::Worker;

/// The head of an answer of HTTP/1.
pub struct Answer {
    /// Its length.
    pub head: usize,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    /// The endpoint takes another request on this connection.
    pub reusable: bool,
}

/// Bytes that were read and not yet used. Mostly a single read brings the whole answer: its fields and its body are
/// then parts of one piece of memory. Only a head that comes in pieces takes a buffer.
#[derive(Debug, Default)]
pub struct Received {
    pub ahead: Bytes,
    pub buffer: Buffer,
}

impl Received {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.ahead.len() + self.buffer.len()
    }

    /// Reads once; how much.
    pub fn read(&mut self, conn: &Conn, worker: &Worker) -> io::Result<usize> {
        if self.is_empty() {
            let mut scratch = worker.scratch.borrow_mut();
            let n = conn.try_read(&mut scratch[..BUFFER])?;
            self.ahead = Bytes::copy_from_slice(&scratch[..n]);
            return Ok(n);
        }
        if self.buffer.is_empty() {
            self.buffer = worker.buffers.take();
            self.buffer.extend(&std::mem::take(&mut self.ahead));
        }
        let n = conn.try_read(self.buffer.room(MAX_HEAD))?;
        self.buffer.filled(n);
        Ok(n)
    }

    /// Takes the head at the start, once it is complete.
    pub fn head(&mut self, request: &Request) -> Result<Option<Answer>, ()> {
        if self.buffer.is_empty() {
            let read = read_head(&self.ahead, request)?;
            return Ok(read.inspect(|answer| self.ahead.advance(answer.head)));
        }
        let read = read_head(&Bytes::copy_from_slice(self.buffer.bytes()), request)?;
        Ok(read.inspect(|answer| self.buffer.consume(answer.head)))
    }
}

/// The head at the start of `input`, once it is complete.
fn read_head(input: &Bytes, request: &Request) -> Result<Option<Answer>, ()> {
    let mut fields = http1::request::fields();
    let read = response::read(input, request, true, &mut fields).map_err(|_| ())?;
    let Some((response, head)) = read else { return Ok(None) };
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers.iter().filter(|field| !head.is_of_this_hop(field)) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ())?;
        let value = HeaderValue::from_maybe_shared(input.slice_ref(field.value)).map_err(|_| ())?;
        if name == header::CONTENT_LENGTH && headers.contains_key(&name) {
            continue;
        }
        headers.append(name, value);
    }
    let status = StatusCode::from_u16(response.status).map_err(|_| ())?;
    let response::Response { head, body, reusable, .. } = response;
    Ok(Some(Answer { head, status, headers, body, reusable }))
}
