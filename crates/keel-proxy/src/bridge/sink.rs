//! Who asked, and how the answer goes back.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode, Version, header};

use crate::bridge::head::write_fields;
use crate::conn::Conn;
use crate::deadline::Deadline;
use crate::edge::Record;
use crate::http1::{Next, Request};
use crate::limits::{BODY_STALL, MAX_H2_PIECE};
use crate::reply::Reply;
use crate::session::Client;
use crate::stream;

/// The caller is gone, or takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Who asked, until the head of the answer has been sent.
pub enum Caller<'a> {
    Http2(SendResponse<Bytes>),
    Http1(Http1Caller<'a>),
}

/// A client of HTTP/1.
pub struct Http1Caller<'a> {
    client: &'a Client,
    request: &'a Request,
    /// Ends when its connection is broken; made when that is first asked.
    broken: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl<'a> Http1Caller<'a> {
    pub fn new(client: &'a Client, request: &'a Request) -> Self {
        Self { client, request, broken: None }
    }
}

/// How an answer's body will lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// There is no body.
    None,
    /// There is one, of the announced length if there is any.
    Some,
}

impl<'a> Caller<'a> {
    /// Whether the caller has given up.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http2(respond) => respond.poll_reset(cx).map(|_| ()),
            // One that only ends its side may wait for an answer.
            Self::Http1(Http1Caller { client, broken, .. }) => {
                broken.get_or_insert_with(|| Box::pin(client.stream.broken())).as_mut().poll(cx)
            }
        }
    }

    /// The connection, if it is the caller's alone.
    pub fn connection(&self) -> Option<&'a Conn> {
        match self {
            Self::Http2(_) => None,
            Self::Http1(caller) => Some(&caller.client.stream),
        }
    }

    /// Passes on an announcement (1xx).
    pub async fn announce(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        deadline: &Deadline,
    ) -> Result<(), Gone> {
        match self {
            Self::Http2(respond) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                respond.send_informational(response).map_err(|_| Gone)
            }
            Self::Http1(Http1Caller { request, .. }) if request.http10 => Ok(()),
            Self::Http1(Http1Caller { client, .. }) => {
                let mut bytes = status_line(status);
                write_fields(&headers, &mut bytes);
                bytes.extend_from_slice(b"\r\n");
                stream::write_all(&client.stream, &bytes, deadline).await.map_err(|_| Gone)
            }
        }
    }

    /// Sends the head of the answer.
    pub async fn head(
        self,
        status: StatusCode,
        mut headers: HeaderMap,
        extent: Extent,
        deadline: &Deadline,
    ) -> Result<Sink<'a>, Gone> {
        match self {
            Self::Http2(mut respond) => {
                let mut response = Response::new(());
                *response.version_mut() = Version::HTTP_2;
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                let sent = respond.send_response(response, extent == Extent::None);
                Ok(Sink::Http2(sent.map_err(|_| Gone)?))
            }
            Self::Http1(caller) => {
                let Http1Caller { client, request, .. } = caller;
                let framed = headers.contains_key(header::CONTENT_LENGTH);
                let bodyless = extent == Extent::None;
                let way = match (bodyless || request.is_head, framed, request.http10) {
                    (true, ..) => Way::Nothing,
                    (_, true, _) => Way::Plain,
                    (_, false, false) => Way::Chunks,
                    (_, false, true) => Way::UntilClose,
                };
                let no_content =
                    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
                if bodyless && !framed && !request.is_head && !no_content {
                    headers.insert(header::CONTENT_LENGTH, 0.into());
                }
                let ending = client.worker.ending.get();
                let keep_alive = request.keep_alive && !ending && way != Way::UntilClose;
                let mut bytes = status_line(status);
                write_fields(&headers, &mut bytes);
                if way == Way::Chunks {
                    bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                }
                bytes.extend_from_slice(match (keep_alive, request.http10) {
                    (false, _) => b"Connection: close\r\n\r\n".as_slice(),
                    (true, true) => b"Connection: keep-alive\r\n\r\n",
                    (true, false) => b"\r\n",
                });
                let sink = Http1Sink { client, way, keep_alive, head: bytes };
                if way == Way::Nothing {
                    return sink.flush(deadline).await.map(Sink::Http1);
                }
                Ok(Sink::Http1(sink))
            }
        }
    }

    /// The status that says that a tunnel is open.
    pub fn tunnel_status(&self) -> StatusCode {
        match self {
            Self::Http2(_) => StatusCode::OK,
            Self::Http1(_) => StatusCode::SWITCHING_PROTOCOLS,
        }
    }

    /// Says that a tunnel of WebSocket is open.
    pub async fn tunnel(self, headers: HeaderMap, deadline: &Deadline) -> Result<Sink<'a>, Gone> {
        let status = self.tunnel_status();
        let Self::Http1(Http1Caller { client, .. }) = self else {
            return self.head(status, headers, Extent::Some, deadline).await;
        };
        let mut head = status_line(status);
        write_fields(&headers, &mut head);
        head.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        let sink = Http1Sink { client, way: Way::UntilClose, keep_alive: false, head };
        sink.flush(deadline).await.map(Sink::Http1)
    }

    /// How an answer of our own is counted: as it goes out here.
    pub fn record(&self, reply: &Reply, is_grpc: bool) -> Record {
        match self {
            Self::Http2(_) if is_grpc => reply.grpc_record(),
            Self::Http2(_) | Self::Http1(_) => reply.record(),
        }
    }

    /// Sends an answer of our own. What becomes of a connection of HTTP/1; `complete`: the whole request was read.
    pub async fn reply(self, reply: &Reply, is_grpc: bool, is_head: bool, complete: bool) -> Next {
        match self {
            Self::Http2(mut respond) => {
                let mut response = Response::new(());
                let body = reply.body().to_owned();
                if is_grpc {
                    *response.headers_mut() = reply.grpc_headers();
                } else {
                    let status = StatusCode::from_u16(reply.status());
                    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    *response.headers_mut() = reply.headers();
                }
                let empty = is_grpc || is_head || body.is_empty();
                // A caller that is gone does not hear it.
                if let Ok(mut stream) = respond.send_response(response, empty)
                    && !empty
                {
                    let _ = stream.send_data(body.into(), true);
                }
                Next::Close
            }
            Self::Http1(Http1Caller { client, request, .. }) => {
                let ending = client.worker.ending.get();
                let keep_alive = request.keep_alive && complete && !ending && !request.http10;
                let bytes = reply.write(keep_alive, request.is_head);
                match stream::write_all(&client.stream, &bytes, &client.deadline).await {
                    Ok(()) if keep_alive => Next::Request,
                    Ok(()) => Next::Linger,
                    Err(_) => Next::Close,
                }
            }
        }
    }
}

fn status_line(status: StatusCode) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    bytes
}

/// How the body of an answer goes to a client of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Nothing,
    Plain,
    Chunks,
    UntilClose,
}

/// Where the body of an answer goes.
pub enum Sink<'a> {
    Http2(SendStream<Bytes>),
    Http1(Http1Sink<'a>),
}

/// Where the body of an answer to a client of HTTP/1 goes.
pub struct Http1Sink<'a> {
    client: &'a Client,
    way: Way,
    keep_alive: bool,
    /// The head, until it goes out with the first of the body.
    head: Vec<u8>,
}

impl Sink<'_> {
    /// Whether the caller has given up.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http2(stream) => stream.poll_reset(cx).map(|_| ()),
            Self::Http1(_) => Poll::Pending,
        }
    }

    /// Ends the body with `data`, where that needs no waiting. A stream that is gone shows to who looks.
    pub fn takes_last(&mut self, data: &Bytes) -> bool {
        match self {
            Self::Http2(stream) if data.len() <= MAX_H2_PIECE => {
                stream.send_data(data.clone(), true).is_ok()
            }
            Self::Http2(_) | Self::Http1(_) => false,
        }
    }

    /// Sends a part of the body; with `last` it is the end.
    pub async fn data(&mut self, data: Bytes, last: bool, deadline: &Deadline) -> Result<(), Gone> {
        match self {
            Self::Http2(stream) => send_http2(stream, data, last, deadline).await,
            Self::Http1(sink) => {
                sink.data(&data, deadline).await?;
                if last { sink.finish(None, deadline).await } else { Ok(()) }
            }
        }
    }

    /// Sends what is ready to go: nothing more comes for now.
    pub async fn flush(&mut self, deadline: &Deadline) -> Result<(), Gone> {
        match self {
            Self::Http1(sink) if !sink.head.is_empty() => sink.write(&[], deadline).await,
            Self::Http1(_) | Self::Http2(_) => Ok(()),
        }
    }

    /// Ends the body.
    pub async fn finish(
        &mut self,
        trailers: Option<HeaderMap>,
        deadline: &Deadline,
    ) -> Result<(), Gone> {
        match self {
            Self::Http2(stream) => {
                let ended = match trailers {
                    Some(trailers) => stream.send_trailers(trailers),
                    None => stream.send_data(Bytes::new(), true),
                };
                ended.map_err(|_| Gone)
            }
            Self::Http1(sink) => sink.finish(trailers, deadline).await,
        }
    }

    /// The answer can't be completed: the caller must notice.
    pub async fn abort(self) -> Next {
        if let Self::Http2(mut stream) = self {
            // A reset throws away what waits to be sent. The connection's own task gets a turn before that.
            tokio::task::yield_now().await;
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
            return Next::Close;
        }
        Next::Reset
    }

    /// The answer is complete. What becomes of a connection of HTTP/1; `complete`: the whole request was read.
    pub fn done(self, complete: bool) -> Next {
        match self {
            // What is not wanted of a request the library says itself (RFC 9113, 8.1: `NO_ERROR`), once the answer is
            // out and the stream is dropped. A reset of ours would throw away what waits to be sent.
            Self::Http2(_) => Next::Close,
            Self::Http1(_) if !complete => Next::Linger,
            Self::Http1(sink) if sink.keep_alive => Next::Request,
            Self::Http1(_) => Next::Close,
        }
    }
}

/// Sends as the peer lets us. A last piece is left to the library, which keeps it until it may go.
pub async fn send_http2(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    deadline: &Deadline,
) -> Result<(), Gone> {
    if last && data.len() <= MAX_H2_PIECE {
        return stream.send_data(data, true).map_err(|_| Gone);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if stream.capacity() == 0 {
            deadline.set(BODY_STALL);
            let capacity = deadline.until(|cx| match stream.poll_capacity(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(n))) => Poll::Ready(Ok(n)),
                Poll::Ready(Some(Err(_)) | None) => {
                    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
                }
            });
            capacity.await.map_err(|_| Gone)?;
        }
        let n = stream.capacity().min(data.len());
        let part = data.split_to(n);
        stream.send_data(part, last && data.is_empty()).map_err(|_| Gone)?;
    }
    Ok(())
}

impl Http1Sink<'_> {
    async fn data(&mut self, data: &[u8], deadline: &Deadline) -> Result<(), Gone> {
        match self.way {
            Way::Nothing => Ok(()),
            Way::Plain | Way::UntilClose => self.write(data, deadline).await,
            Way::Chunks if data.is_empty() => Ok(()),
            Way::Chunks => {
                self.head.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                let mut chunk = data.to_vec();
                chunk.extend_from_slice(b"\r\n");
                self.write(&chunk, deadline).await
            }
        }
    }

    async fn finish(
        &mut self,
        trailers: Option<HeaderMap>,
        deadline: &Deadline,
    ) -> Result<(), Gone> {
        if self.way == Way::Chunks {
            let mut end = b"0\r\n".to_vec();
            write_fields(&trailers.unwrap_or_default(), &mut end);
            end.extend_from_slice(b"\r\n");
            self.head.extend_from_slice(&end);
        }
        if self.head.is_empty() { Ok(()) } else { self.write(&[], deadline).await }
    }

    async fn write(&mut self, data: &[u8], deadline: &Deadline) -> Result<(), Gone> {
        let head = std::mem::take(&mut self.head);
        let written = stream::write_both(&self.client.stream, &head, data, deadline).await;
        written.map_err(|_| Gone)
    }

    async fn flush(mut self, deadline: &Deadline) -> Result<Self, Gone> {
        self.write(&[], deadline).await?;
        Ok(self)
    }
}
