//! Endpoints that speak HTTP/2 by the library, each request driven by a function.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::background::spawn;
use super::client::{read, send};

/// An endpoint; it is gone when dropped.
pub struct Http2Endpoint {
    pub address: SocketAddr,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// A request as an endpoint sees it, to be answered.
pub struct Exchange {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

impl Http2Endpoint {
    /// Answers every request by `handler`.
    pub fn new<F, H>(handler: H) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        H: Fn(Exchange) -> F + Clone + Send + Sync + 'static,
    {
        Self::with(Builder::new(), handler)
    }

    /// As [`Http2Endpoint::new`], with settings of its own.
    pub fn with<F, H>(builder: Builder, handler: H) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        H: Fn(Exchange) -> F + Clone + Send + Sync + 'static,
    {
        Self::scripted(builder, move |connection| serve(connection, handler.clone()))
    }

    /// Drives every connection by `script`.
    pub fn scripted<F, S>(builder: Builder, script: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Connection<TcpStream, Bytes>) -> F + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let accepting = spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let script = Arc::new(script);
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (builder, script) = (builder.clone(), Arc::clone(&script));
                open.spawn(async move {
                    if let Ok(connection) = builder.handshake(stream).await {
                        script(connection).await;
                    }
                });
            }
        });
        Self { address, connections, accepting }
    }

    /// Answers every request with its name and the length of its body.
    pub fn named(name: &'static str) -> Self {
        Self::new(move |mut exchange| async move {
            if let Ok((body, _)) = exchange.body().await {
                exchange.answer(format!("{name}:{}", body.len()));
            }
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Http2Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves the requests of one connection until it ends.
pub async fn serve<F, H>(mut connection: Connection<TcpStream, Bytes>, handler: H)
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(Exchange) -> F,
{
    let mut open = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        open.spawn(handler(Exchange { request, respond }));
    }
}

impl Exchange {
    /// What is left of the body of the request.
    pub async fn body(&mut self) -> Result<(Bytes, HeaderMap), h2::Error> {
        read(self.request.body_mut()).await
    }

    /// Begins an answer.
    pub fn begin(&mut self, response: http::response::Builder) -> SendStream<Bytes> {
        self.respond.send_response(response.body(()).unwrap(), false).unwrap()
    }

    /// A whole answer.
    pub fn answer(mut self, body: impl Into<Bytes>) {
        let body = body.into();
        // Whether the other side is still there is for the test to say.
        let response = Response::builder().header("content-length", body.len()).body(()).unwrap();
        if let Ok(mut stream) = self.respond.send_response(response, false) {
            spawn(async move { send(&mut stream, body, true).await });
        }
    }

    pub fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    pub fn path(&self) -> &str {
        self.request.uri().path()
    }
}
