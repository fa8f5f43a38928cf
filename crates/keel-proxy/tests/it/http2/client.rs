//! A client that speaks HTTP/2 by the library.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::request::Builder as RequestBuilder;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::background::spawn;

/// One connection.
pub struct Http2Client {
    pub send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// A request on its way.
pub struct Call {
    pub head: ResponseFuture,
    pub body: SendStream<Bytes>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Http2Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Http2Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A request of the usual form.
pub fn request(method: &str, path: &str) -> RequestBuilder {
    Request::builder().method(method).uri(format!("http://cart{path}"))
}

impl Http2Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::with(address, &Builder::new()).await
    }

    pub async fn with(address: SocketAddr, builder: &Builder) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Self { send, driver: spawn(connection) }
    }

    /// Begins a request when the connection takes one; with `end` there is no body.
    pub async fn try_begin(&self, request: RequestBuilder, end: bool) -> Result<Call, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (head, body) = send.send_request(request.body(()).unwrap(), end)?;
        Ok(Call { head, body })
    }

    /// As [`Http2Client::try_begin`] on a connection that surely takes it.
    pub async fn begin(&self, request: RequestBuilder, end: bool) -> Call {
        self.try_begin(request, end).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Http2Answer {
        self.begin(request("GET", path), true).await.answer().await.unwrap()
    }

    /// A request with a body that is at hand.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Http2Answer {
        let mut call = self.begin(request("POST", path), false).await;
        // The answer may be faster.
        let _ = call.send(body, true).await;
        call.answer().await.unwrap()
    }

    /// Waits for the end that the other side makes.
    pub async fn ended_by_peer(&mut self) -> Result<(), h2::Error> {
        (&mut self.driver).await.unwrap()
    }
}

impl Call {
    /// Sends a part of the body as the peer takes it.
    pub async fn send(&mut self, data: impl Into<Bytes>, end: bool) -> Result<(), h2::Error> {
        send(&mut self.body, data.into(), end).await
    }

    /// The head of the answer.
    pub async fn head(&mut self) -> Result<Response<RecvStream>, h2::Error> {
        (&mut self.head).await
    }

    /// The next announcement (1xx).
    pub async fn announcement(&mut self) -> Option<Response<()>> {
        poll_fn(|cx| self.head.poll_informational(cx)).await.map(Result::unwrap)
    }

    /// The whole answer.
    pub async fn answer(mut self) -> Result<Http2Answer, h2::Error> {
        let (parts, mut body) = self.head().await?.into_parts();
        let (body, trailers) = read(&mut body).await?;
        Ok(Http2Answer { status: parts.status, headers: parts.headers, body, trailers })
    }
}

/// The next part of a body, taken: as much more may come.
pub async fn part(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let part = body.data().await;
    if let Some(Ok(data)) = &part {
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    part
}

/// The rest of a body.
pub async fn read(body: &mut RecvStream) -> Result<(Bytes, HeaderMap), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = part(body).await {
        all.extend_from_slice(&data?);
    }
    Ok((all.into(), body.trailers().await?.unwrap_or_default()))
}

/// Sends a part of a body as the peer takes it.
pub async fn send(
    body: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        body.reserve_capacity(data.len());
        let capacity = poll_fn(|cx| body.poll_capacity(cx)).await;
        // A stream that is closed has none; sending says why.
        let n = capacity.transpose()?.unwrap_or(data.len()).min(data.len());
        let part = data.split_to(n);
        body.send_data(part, end && data.is_empty())?;
        if data.is_empty() && end {
            return Ok(());
        }
    }
    if end { body.send_data(Bytes::new(), true) } else { Ok(()) }
}
