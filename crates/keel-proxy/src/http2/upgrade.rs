//! HTTP/2 on a connection that began otherwise: with bytes read already, or with a request of HTTP/1.1 that asked
//! for the change (`Upgrade: h2c`, RFC 7540, 3.2).
//!
//! RFC 9113 gave the upgrade up, but old clients still ask for it. The library knows only connections that begin
//! with the preface. So the request that asked is put in as what it has become by the protocol: a HEADERS frame of
//! stream 1, right behind the client's own preface and settings. Its fields are written as literals without
//! indexing, which leave the compression state alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::http1::Request;
use crate::http1::request::Head;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes in front of every frame.
const FRAME_HEAD: usize = 9;
/// Longest frame of settings that a client may begin with.
const MAX_SETTINGS: usize = 1024;
/// What one frame may hold unless both sides agree on more (RFC 9113, 4.2).
const MAX_FRAME: usize = 16 * 1024;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM_AND_HEADERS: u8 = 0x1 | 0x4;

/// A request that becomes the first of a connection of HTTP/2.
#[derive(Debug)]
pub struct Upgrade {
    /// The frame that it becomes.
    frame: Vec<u8>,
    /// Read behind the request.
    pub input: Buffer,
}

impl Upgrade {
    /// The frame alone.
    pub fn into_frame(self) -> Vec<u8> {
        self.frame
    }
}

/// The frame that `head` becomes, if it asks for HTTP/2 and can have it: it has no body, and names its settings.
/// Anything else is served as HTTP/1.1, which the client has to reckon with.
pub fn wanted(request: &Request, head: &Head<'_, '_>) -> Option<Upgrade> {
    if !head.asks_for_http2() || !request.body.is_over() {
        return None;
    }
    let mut block = Vec::new();
    let host = std::str::from_utf8(head.host?).ok()?;
    for (name, value) in [
        (":method", head.method),
        (":scheme", "http"),
        (":path", head.target),
        (":authority", host),
    ] {
        literal(name.as_bytes(), value.as_bytes(), &mut block);
    }
    for field in head.headers.iter().filter(|field| !head.is_of_this_hop(field)) {
        let name = field.name.to_ascii_lowercase();
        if name != "host" {
            literal(name.as_bytes(), field.value, &mut block);
        }
    }
    // A longer one would need several frames; nobody asks for an upgrade with so large a head.
    if block.len() > MAX_FRAME {
        return None;
    }
    let length = u32::try_from(block.len()).ok()?.to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[HEADERS, END_STREAM_AND_HEADERS, 0, 0, 0, 1]);
    frame.extend_from_slice(&block);
    Some(Upgrade { frame, input: Buffer::default() })
}

/// A literal field without indexing and with a new name (RFC 7541, 6.2.2), not compressed.
fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    for text in [name, value] {
        length(text.len(), out);
        out.extend_from_slice(text);
    }
}

/// An integer with a prefix of 7 bits (RFC 7541, 5.1).
fn length(mut n: usize, out: &mut Vec<u8>) {
    if n < 127 {
        out.push(u8::try_from(n).unwrap_or(126));
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push(u8::try_from(n % 128).unwrap_or(0) | 128);
        n /= 128;
    }
    out.push(u8::try_from(n).unwrap_or(0));
}

/// What is put in behind the client's settings.
#[derive(Debug)]
struct Insertion {
    frame: Vec<u8>,
    /// The client's preface and settings, as far as they have come.
    seen: Vec<u8>,
}

/// A connection with bytes in front of what comes from it.
#[derive(Debug)]
pub struct Begun {
    conn: Conn,
    first: Buffer,
    insertion: Option<Insertion>,
}

impl Begun {
    /// `first` was read from `conn` already.
    pub fn new(conn: Conn, first: Buffer) -> Self {
        Self { conn, first, insertion: None }
    }

    /// The connection was upgraded by a request.
    pub fn upgraded(conn: Conn, upgrade: Upgrade) -> Self {
        let Upgrade { frame, input } = upgrade;
        Self { conn, first: input, insertion: Some(Insertion { frame, seen: Vec::new() }) }
    }

    /// Reads until the client's preface and settings are whole, and puts the request behind them.
    fn poll_insert(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(insertion) = &mut self.insertion {
            insertion.seen.extend_from_slice(self.first.bytes());
            self.first.consume(self.first.len());
            if let Some(end) = settings_end(&insertion.seen)? {
                let rest = insertion.seen.split_off(end);
                self.first.extend(&insertion.seen);
                self.first.extend(&insertion.frame);
                self.first.extend(&rest);
                self.insertion = None;
                break;
            }
            let mut room = [0; 1024];
            let mut buffer = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.conn).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.first.extend(buffer.filled());
        }
        Poll::Ready(Ok(()))
    }
}

/// Where the settings behind the preface end, once they are there.
pub fn settings_end(seen: &[u8]) -> io::Result<Option<usize>> {
    let preface = seen.len().min(PREFACE.len());
    if seen[..preface] != PREFACE[..preface] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(frame) = seen.get(PREFACE.len()..PREFACE.len() + FRAME_HEAD) else { return Ok(None) };
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if frame[3] != SETTINGS || length > MAX_SETTINGS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let end = PREFACE.len() + FRAME_HEAD + length;
    Ok((seen.len() >= end).then_some(end))
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_insert(cx))?;
        if !self.first.is_empty() {
            let n = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.bytes()[..n]);
            self.first.consume(n);
            if self.first.is_empty() {
                // Its memory is not needed any more.
                self.first = Buffer::default();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.conn), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_however_they_are_cut() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(&[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        for end in 0..bytes.len() {
            assert_eq!(settings_end(&bytes[..end]).unwrap(), None);
        }
        bytes.push(1);
        assert_eq!(settings_end(&bytes).unwrap(), Some(bytes.len() - 1));
        assert!(settings_end(b"GET / HTTP/1.1").is_err());
        bytes[PREFACE.len() + 3] = HEADERS;
        assert!(settings_end(&bytes).is_err());
    }

    #[test]
    fn lengths_are_those_of_the_rfc() {
        let written = |n| {
            let mut out = Vec::new();
            length(n, &mut out);
            out
        };
        assert_eq!(written(10), [10]);
        assert_eq!(written(127), [127, 0]);
        assert_eq!(written(1464), [127, 0b1011_1001, 0b0000_1010]);
    }
}
