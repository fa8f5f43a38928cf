//! Where a body comes from: pieces, then perhaps trailers.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, HeaderName};

use crate::bridge::head::lines_of;
use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::http1::Body;
use crate::http1::body::Malformed;
use crate::http1::fields::Field;
use crate::limits::SMALL_PIECE;
use crate::worker::Worker;

/// A part of a body.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// The last part.
    Trailers(HeaderMap),
    /// The body is over.
    End,
}

/// A body did not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its sender is gone.
    Gone,
    /// It is not properly chunked.
    Malformed,
    /// It is over this many bytes.
    TooLarge(u64),
}

/// A body on its way in.
#[derive(Debug)]
pub enum Source<'a> {
    /// There is none, or nothing more of it.
    Empty,
    Http2(Http2Source),
    Http1(Http1Source<'a>),
}

/// A body on a stream of HTTP/2.
#[derive(Debug)]
pub struct Http2Source {
    stream: RecvStream,
    /// Read before it was asked for.
    ahead: VecDeque<Bytes>,
    /// Small pieces behind that, made one.
    small: BytesMut,
}

/// A body on a connection of HTTP/1.
#[derive(Debug)]
pub struct Http1Source<'a> {
    pub worker: &'a Worker,
    pub conn: &'a Conn,
    pub body: Body,
    /// Read already, before what is in `input`.
    pub ahead: Bytes,
    /// Read already; at the end what was read beyond the body.
    pub input: Buffer,
    /// The trailer section so far.
    pub trailers: Vec<u8>,
}

impl Source<'_> {
    /// The body on `stream`.
    pub fn http2(stream: RecvStream) -> Self {
        if stream.is_end_stream() {
            return Self::Empty;
        }
        Self::Http2(Http2Source { stream, ahead: VecDeque::new(), small: BytesMut::new() })
    }

    /// Reads what is there already, while nobody takes it. The library keeps small frames at many times their size
    /// and ends the connection, with all that is on it, when there are too many. How much there can be the window of
    /// the stream says, which does not move before [`Source::passed`].
    pub fn read_ahead(&mut self, cx: &mut Context<'_>) {
        if let Self::Http2(source) = self {
            source.read_ahead(cx);
        }
    }

    /// Waits for `work`, reading ahead.
    pub async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.read_ahead(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// The next part.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Cut>> {
        match self {
            Self::Empty => Poll::Ready(Ok(Piece::End)),
            Self::Http2(source) => source.poll_next(cx),
            Self::Http1(source) => source.poll_next(cx),
        }
    }

    /// `n` bytes have gone on: as many more may come.
    pub fn passed(&mut self, n: usize) {
        if let Self::Http2(source) = self {
            // Fails only when the stream is gone, which the next read tells.
            let _ = source.stream.flow_control().release_capacity(n);
        }
    }

    /// Whether nothing more comes, as far as that is known without asking.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http2(source) => source.is_over(),
            Self::Http1(source) => source.body.is_over() && source.trailers.len() <= 2,
        }
    }
}

impl Http2Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Cut>> {
        if let Some(data) = self.ahead.pop_front() {
            return Poll::Ready(Ok(Piece::Data(data)));
        }
        if !self.small.is_empty() {
            return Poll::Ready(Ok(Piece::Data(self.small.split().freeze())));
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => return Poll::Ready(Ok(Piece::Data(data))),
            Some(Err(error)) => return Poll::Ready(ended(&error)),
            None => {}
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(mut trailers)) => {
                let bad: Vec<_> =
                    trailers.keys().filter(|name| !is_trailer(name)).cloned().collect();
                for name in &bad {
                    trailers.remove(name);
                }
                Ok(Piece::Trailers(trailers))
            }
            Ok(None) => Ok(Piece::End),
            Err(error) => ended(&error),
        })
    }

    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        // The end and errors stay where they are, for the next read.
        while let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(cx) {
            if data.len() < SMALL_PIECE {
                self.small.extend_from_slice(&data);
                continue;
            }
            if !self.small.is_empty() {
                self.ahead.push_back(self.small.split().freeze());
            }
            self.ahead.push_back(data);
        }
    }

    fn is_over(&self) -> bool {
        self.ahead.is_empty() && self.small.is_empty() && self.stream.is_end_stream()
    }
}

/// Whether a field may come behind a body. Those that say how a message lies on its hop, or that are to be known before
/// it, do not pass (RFC 9110, 6.5.1).
fn is_trailer(name: &HeaderName) -> bool {
    let passes = matches!(Field::of(name.as_str()), Field::Other | Field::RequestId);
    passes && name != http::header::CONTENT_ENCODING
}

/// A server that has answered may reset the rest of the request with `NO_ERROR`: that is no failure of the answer.
fn ended(error: &h2::Error) -> Result<Piece, Cut> {
    match error.reason() {
        Some(h2::Reason::NO_ERROR) if error.is_reset() => Ok(Piece::End),
        _ => Err(Cut::Gone),
    }
}

impl Http1Source<'_> {
    /// Whether nothing has been read beyond the body.
    pub fn is_drained(&self) -> bool {
        self.ahead.is_empty() && self.input.is_empty()
    }

    /// What `ahead` has of the body.
    fn take_ahead(&mut self) -> Result<Bytes, Malformed> {
        if !matches!(self.body, Body::Chunked(_)) {
            let taken = self.body.take(&self.ahead)?;
            return Ok(self.ahead.split_to(taken));
        }
        let mut content = Vec::new();
        let taken = self.body.take_parts(&self.ahead, &mut content, Some(&mut self.trailers))?;
        self.ahead.advance(taken);
        Ok(content.into())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Cut>> {
        loop {
            if !self.ahead.is_empty() && !self.body.is_over() {
                let content = self.take_ahead().map_err(|_| Cut::Malformed)?;
                if !content.is_empty() {
                    return Poll::Ready(Ok(Piece::Data(content)));
                }
                continue;
            }
            if !self.input.is_empty() && !self.body.is_over() {
                let mut content = Vec::new();
                let bytes = self.input.bytes();
                let taken = self.body.take_parts(bytes, &mut content, Some(&mut self.trailers));
                self.input.consume(taken.map_err(|_| Cut::Malformed)?);
                if !content.is_empty() {
                    return Poll::Ready(Ok(Piece::Data(content.into())));
                }
                continue;
            }
            if self.body.is_over() {
                return Poll::Ready(Ok(self.end()));
            }
            match self.read() {
                Ok(Some(piece)) => return Poll::Ready(Ok(piece)),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.conn.poll_read_ready(cx)).map_err(|_| Cut::Gone)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return Poll::Ready(Err(Cut::Malformed));
                }
                Err(_) => return Poll::Ready(Err(Cut::Gone)),
            }
        }
    }

    /// One read, through the worker's scratch buffer.
    fn read(&mut self) -> io::Result<Option<Piece>> {
        let mut scratch = self.worker.scratch.borrow_mut();
        let most = match self.body {
            Body::Length(left) => usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len()),
            Body::Chunked(_) | Body::UntilClose => scratch.len(),
        };
        let n = match self.conn.try_read(&mut scratch[..most])? {
            0 if self.body == Body::UntilClose => {
                self.body = Body::EMPTY;
                return Ok(Some(Piece::End));
            }
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => n,
        };
        let mut content = Vec::new();
        let taken = self
            .body
            .take_parts(&scratch[..n], &mut content, Some(&mut self.trailers))
            .map_err(|_| io::ErrorKind::InvalidData)?;
        if !self.body.is_over() {
            self.conn.got_part(n);
        }
        if taken < n {
            self.input.extend(&scratch[taken..n]);
        }
        Ok((!content.is_empty()).then(|| Piece::Data(content.into())))
    }

    fn end(&mut self) -> Piece {
        let lines = std::mem::take(&mut self.trailers);
        // The section ends with an empty line.
        let lines = lines.strip_suffix(b"\r\n").unwrap_or(&lines);
        if lines.is_empty() {
            return Piece::End;
        }
        Piece::Trailers(lines_of(lines).into_iter().filter(|(name, _)| is_trailer(name)).collect())
    }
}
