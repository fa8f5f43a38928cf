//! The body of a request on its way to an endpoint, kept as far as it may have to be sent again.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use crate::bridge::head::write_fields;
use crate::bridge::sink::send_http2;
use crate::bridge::source::{Cut, Piece, Source};
use crate::conn::Conn;
use crate::deadline::{Deadline, Flow, Idle};
use crate::limits::MAX_REPEATABLE_BODY;
use crate::stream;

/// Why a body did not reach the endpoint whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The caller is gone.
    Source,
    /// The caller sent something that is not a body.
    Malformed,
    /// The body is over this many bytes.
    TooLarge(u64),
    /// The endpoint takes no more.
    Sink,
}

/// The body of a request.
#[derive(Debug)]
pub struct Upload<'a> {
    pub source: Source<'a>,
    /// What was read so far, unless it was too much to be kept.
    kept: Vec<Bytes>,
    kept_size: usize,
    whole: bool,
    /// What of it this attempt has sent.
    at: usize,
    end: Option<Option<HeaderMap>>,
    /// Bytes read.
    pub total: u64,
    /// How many there may be.
    most: Option<u64>,
    /// Between two pieces nothing may pass for so long, either way.
    idle: Duration,
    /// What passes, if there is something to wait for.
    pub flow: Option<Rc<Flow>>,
}

impl<'a> Upload<'a> {
    /// Of `most` bytes, if there is a bound.
    pub fn new(source: Source<'a>, most: Option<u64>, idle: Duration) -> Self {
        let end = source.is_over().then_some(None);
        let flow = end.is_none().then(Rc::default);
        let (kept, whole) = (Vec::new(), true);
        Self { source, kept, kept_size: 0, whole, at: 0, end, total: 0, most, idle, flow }
    }

    /// Nothing more is to be read from the caller.
    pub fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// There is no body at all.
    pub fn is_none(&self) -> bool {
        self.kept.is_empty() && matches!(self.end, Some(None)) && self.total == 0
    }

    /// Everything that was read is still at hand.
    pub fn is_repeatable(&self) -> bool {
        self.whole
    }

    /// Begins anew.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Cut>> {
        if let Some(piece) = self.kept.get(self.at) {
            self.at += 1;
            return Poll::Ready(Ok(Piece::Data(piece.clone())));
        }
        if let Some(end) = &self.end {
            return Poll::Ready(Ok(end.clone().map_or(Piece::End, Piece::Trailers)));
        }
        let polled = self.source.poll_next(cx);
        match &polled {
            Poll::Ready(Ok(Piece::Data(data))) => {
                self.keep(data);
                if let Some(most) = self.most.filter(|most| self.total > *most) {
                    return Poll::Ready(Err(Cut::TooLarge(most)));
                }
            }
            Poll::Ready(Ok(Piece::Trailers(trailers))) => self.end = Some(Some(trailers.clone())),
            Poll::Ready(Ok(Piece::End)) => self.end = Some(None),
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        if self.end.is_none() && self.source.is_over() {
            self.end = Some(None);
        }
        polled
    }

    fn keep(&mut self, data: &Bytes) {
        self.total += data.len() as u64;
        self.kept_size += data.len();
        self.whole &= self.kept_size <= MAX_REPEATABLE_BODY;
        if self.whole {
            self.kept.push(data.clone());
            self.at += 1;
        } else {
            self.kept.clear();
            self.at = 0;
        }
    }

    /// Adds what is at hand to the head of a request of HTTP/1, so that both go out together. True if that is all.
    pub async fn begin_http1(&mut self, chunked: bool, first: &mut Vec<u8>) -> Result<bool, Cut> {
        if self.is_none() {
            return Ok(true);
        }
        let at_hand = poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(piece) => Poll::Ready(Some(piece)),
            Poll::Pending => Poll::Ready(None),
        });
        let (data, last) = match at_hand.await {
            None => return Ok(false),
            Some(piece) => match piece? {
                Piece::Data(data) => {
                    let over = self.end == Some(None) && self.at >= self.kept.len();
                    (data, over.then(HeaderMap::new))
                }
                Piece::Trailers(trailers) => (Bytes::new(), Some(trailers)),
                Piece::End => (Bytes::new(), Some(HeaderMap::new())),
            },
        };
        if chunked {
            chunk(&data, last.as_ref(), first);
        } else {
            first.extend_from_slice(&data);
        }
        self.source.passed(data.len());
        Ok(last.is_some())
    }

    async fn next(&mut self, deadline: &Deadline) -> Result<Piece, Broken> {
        let flow = self.flow.clone();
        let idle = Idle { time: self.idle, flow: flow.as_deref() };
        let piece = deadline.until_idle(idle, |cx| self.poll_next(cx).map(Ok)).await;
        if let Some(flow) = flow {
            flow.passed();
        }
        match piece {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(Cut::Malformed)) => Err(Broken::Malformed),
            Ok(Err(Cut::TooLarge(most))) => Err(Broken::TooLarge(most)),
            Ok(Err(Cut::Gone)) | Err(_) => Err(Broken::Source),
        }
    }

    /// Sends what is left to an endpoint of HTTP/1.
    pub async fn send_http1(
        &mut self,
        conn: &Conn,
        chunked: bool,
        deadline: &Deadline,
    ) -> Result<(), Broken> {
        loop {
            let piece = self.next(deadline).await?;
            let mut bytes = Vec::new();
            let (data, last) = match piece {
                Piece::Data(data) => (data, None),
                Piece::Trailers(trailers) => (Bytes::new(), Some(trailers)),
                Piece::End => (Bytes::new(), Some(HeaderMap::new())),
            };
            if chunked {
                chunk(&data, last.as_ref(), &mut bytes);
                self.source.beside(write(conn, &bytes, &[], deadline)).await?;
            } else {
                self.source.beside(write(conn, &data, &[], deadline)).await?;
            }
            self.source.passed(data.len());
            if last.is_some() {
                return Ok(());
            }
        }
    }

    /// Sends what is left to an endpoint of HTTP/2.
    pub async fn send_http2(
        &mut self,
        to: &mut SendStream<Bytes>,
        deadline: &Deadline,
    ) -> Result<(), Broken> {
        loop {
            let piece = self.next(deadline).await?;
            let last = self.end == Some(None) && self.at >= self.kept.len();
            match piece {
                Piece::Data(data) => {
                    let n = data.len();
                    let sent = self.source.beside(send_http2(to, data, last, deadline)).await;
                    sent.map_err(|_| Broken::Sink)?;
                    self.source.passed(n);
                    if last {
                        return Ok(());
                    }
                }
                Piece::Trailers(trailers) => {
                    return to.send_trailers(trailers).map_err(|_| Broken::Sink);
                }
                Piece::End => return to.send_data(Bytes::new(), true).map_err(|_| Broken::Sink),
            }
        }
    }
}

/// A chunk with `data`, or the last one with `trailers`.
pub fn chunk(data: &[u8], last: Option<&HeaderMap>, out: &mut Vec<u8>) {
    if !data.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(trailers) = last {
        out.extend_from_slice(b"0\r\n");
        write_fields(trailers, out);
        out.extend_from_slice(b"\r\n");
    }
}

async fn write(
    conn: &Conn,
    first: &[u8],
    second: &[u8],
    deadline: &Deadline,
) -> Result<(), Broken> {
    let written: Result<(), (usize, io::Error)> =
        stream::write_both(conn, first, second, deadline).await;
    written.map_err(|_| Broken::Sink)
}
