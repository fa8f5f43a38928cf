//! A client for the server's API over its Unix socket.
//!
//! One connection per call: calls are rare, and a connection that is never reused can't be stale.

mod adopt;
mod beside;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use keel_route::snapshot::Snapshot;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::images::{BuildRequest, EngineView, ImageLine, ImageSummary, PullRequest, PushRequest};
use super::types::{
    Applied, ApplyRequest, ChangeView, DownRequest, EdgesView, ErrorBody, EventsQuery,
    HistoryEntry, LacksView, LogRecord, LogsQuery, RollbackRequest, RouteView, ScaleRequest,
    ServerInfo, ServicesRequest, StackSummary, StackView,
};

/// Time for a connection and for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Largest line of a stream, in bytes.
const MAX_LINE: usize = 16 << 20;
/// Lines of a stream that wait for their reader.
const STREAM_QUEUE: usize = 256;

/// What is sent.
type Body = BoxBody<Bytes, std::io::Error>;

fn whole_body(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens on the socket.
    #[error("no keel server answers at {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Something listens on the socket, or did, but this user may not speak to it.
    #[error("no permission to use the keel server's socket at {path}")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The server said no.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The connection broke, or the answer made no sense.
    #[error("the keel server at {path} did not answer properly: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// Talks to one server.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// What an operation on services does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceOperation {
    /// Stop instances, keep them.
    Stop,
    /// Run stopped ones again.
    Start,
    /// Replace every instance, one at a time.
    Restart,
    /// Forget stopped ones.
    Remove,
}

impl ServiceOperation {
    const fn path(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Remove => "rm",
        }
    }
}

impl Client {
    /// A client of the server that listens on `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who the server is.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn info(&self) -> Result<ServerInfo, Error> {
        self.get("/v1/version").await
    }

    /// What the data plane was told last, with keys and password hashes.
    ///
    /// # Errors
    /// [`Error`]; code `no_snapshot` if it was told nothing yet.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.get("/v1/traffic/snapshot").await
    }

    /// All stacks.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn stacks(&self) -> Result<Vec<StackSummary>, Error> {
        self.get("/v1/stacks").await
    }

    /// The routes of all stacks.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn routes(&self) -> Result<Vec<RouteView>, Error> {
        self.get("/v1/routes").await
    }

    /// One stack.
    ///
    /// # Errors
    /// [`Error`]; code `no_such_stack` when there is none of that name.
    pub async fn stack(&self, name: &str) -> Result<StackView, Error> {
        self.get(&format!("/v1/stacks/{name}")).await
    }

    /// What the engine in the place of the server's own proxy lacks of what a stack wants.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn lacks(&self, stack: &str) -> Result<LacksView, Error> {
        self.get(&format!("/v1/stacks/{stack}/lacks")).await
    }

    /// One stack, again with each change, until it is gone or the receiver is dropped.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn watch(&self, name: &str) -> Result<Lines<StackView>, Error> {
        self.stream(&format!("/v1/stacks/{name}/watch")).await
    }

    /// What was counted on each edge.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn edges(&self) -> Result<EdgesView, Error> {
        self.get("/v1/edges").await
    }

    /// Makes the stack as described.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn apply(&self, request: &ApplyRequest) -> Result<Applied, Error> {
        let path = format!("/v1/stacks/{}", request.stack.name);
        self.send(Method::PUT, &path, Some(request)).await
    }

    /// What [`Self::apply`] would change.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn diff(&self, request: &ApplyRequest) -> Result<Vec<ChangeView>, Error> {
        let path = format!("/v1/stacks/{}/diff", request.stack.name);
        self.send(Method::POST, &path, Some(request)).await
    }

    /// Changes the number of instances.
    ///
    /// # Errors
    /// [`Error`]; code `no_such_service` with the nearest name as hint.
    pub async fn scale(&self, stack: &str, request: &ScaleRequest) -> Result<Applied, Error> {
        self.send(Method::POST, &format!("/v1/stacks/{stack}/scale"), Some(request)).await
    }

    /// Stops, starts, restarts or forgets services.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn operate(
        &self,
        stack: &str,
        operation: ServiceOperation,
        request: &ServicesRequest,
    ) -> Result<Applied, Error> {
        let path = format!("/v1/stacks/{stack}/{}", operation.path());
        self.send(Method::POST, &path, Some(request)).await
    }

    /// Stops everything of a stack and forgets it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn down(&self, stack: &str, request: &DownRequest) -> Result<Applied, Error> {
        self.send(Method::POST, &format!("/v1/stacks/{stack}/down"), Some(request)).await
    }

    /// Returns to an earlier generation of the definition.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rollback(&self, stack: &str, request: &RollbackRequest) -> Result<Applied, Error> {
        self.send(Method::POST, &format!("/v1/stacks/{stack}/rollback"), Some(request)).await
    }

    /// Past changes, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn history(&self, stack: &str) -> Result<Vec<HistoryEntry>, Error> {
        self.get(&format!("/v1/stacks/{stack}/history")).await
    }

    /// Output of instances, merged in order of time.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn logs(&self, stack: &str, query: &LogsQuery) -> Result<Lines<LogRecord>, Error> {
        let mut path =
            format!("/v1/stacks/{stack}/logs?services={}&follow={}", query.services, query.follow);
        push_number(&mut path, "since", query.since);
        push_number(&mut path, "until", query.until);
        push_number(&mut path, "tail", query.tail.map(|n| n as u64));
        self.stream(&path).await
    }

    /// What happened.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn events(&self, query: &EventsQuery) -> Result<Lines<keel_model::Event>, Error> {
        let mut path = format!("/v1/events?follow={}", query.follow);
        if let Some(stack) = &query.stack {
            path.push_str("&stack=");
            path.push_str(stack);
        }
        push_number(&mut path, "since", query.since);
        push_number(&mut path, "until", query.until);
        self.stream(&path).await
    }

    /// How to enter an instance (`keel exec`): see `keel_runtime::ExecSpec`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn exec_spec<T: DeserializeOwned>(&self, instance: &str) -> Result<T, Error> {
        self.get(&format!("/v1/instances/{instance}/exec")).await
    }

    /// The container engine of the server.
    ///
    /// # Errors
    /// [`Error`]; code `engine_away` when there is none or it does not answer.
    pub async fn engine(&self) -> Result<EngineView, Error> {
        self.get("/v1/engine").await
    }

    /// The images of the server's engine that have a name.
    ///
    /// # Errors
    /// [`Error`]; code `engine_away` when there is no engine or it does not answer.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, Error> {
        self.get("/v1/images").await
    }

    /// Makes images present; the last line of each says how it ended.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pull(&self, request: &PullRequest) -> Result<Lines<ImageLine>, Error> {
        self.post_lines("/v1/images/pull", request).await
    }

    /// Pushes images; the last line of each says how it ended.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn push(&self, request: &PushRequest) -> Result<Lines<ImageLine>, Error> {
        self.post_lines("/v1/images/push", request).await
    }

    /// Builds an image from the archive of its context; the last line says how it ended.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn build(
        &self,
        request: &BuildRequest,
        context: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Result<Lines<ImageLine>, Error> {
        let mut head = serde_json::to_vec(request).map_err(|e| self.broken(e))?;
        head.push(b'\n');
        let pieces = stream::iter([Ok(Bytes::from(head))]).chain(context);
        let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data)));
        self.lines(Method::POST, "/v1/images/build", BoxBody::new(body)).await
    }

    async fn post_lines<B: Serialize, T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<Lines<T>, Error> {
        let body = serde_json::to_vec(body).map_err(|e| self.broken(e))?;
        self.lines(Method::POST, path, whole_body(body)).await
    }

    /// Ends the server. Instances run on, and so does the proxy while there is a stack to serve.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.send::<(), serde_json::Value>(Method::POST, "/v1/shutdown", None).await.map(|_| ())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send::<(), T>(Method::GET, path, None).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| self.broken(e))?,
            None => Vec::new(),
        };
        let response = self.call(method, path, whole_body(body)).await?;
        let bytes = self.whole(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.broken(e))
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<Lines<T>, Error> {
        self.lines(Method::GET, path, whole_body(Vec::new())).await
    }

    async fn lines<T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Lines<T>, Error> {
        let response = self.call(method, path, body).await?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(read_lines(response.into_body(), sender, self.socket.clone()));
        Ok(Lines { receiver })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "keel")
            .header("content-type", "application/json")
            .body(body)
            .map_err(|e| self.broken(e))?;
        let response = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|_| self.broken(format!("no answer within {ANSWER_TIMEOUT:?}")))?
            .map_err(|e| self.broken(e))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.whole(response.into_body()).await?;
        Err(serde_json::from_slice(&bytes).map_or_else(
            |_| self.broken(format!("status {status}: {}", String::from_utf8_lossy(&bytes))),
            Error::Refused,
        ))
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, Error> {
        http_body_util::Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|e| self.broken(e))
    }

    fn unreachable(&self, error: &std::io::Error) -> Error {
        let path = self.socket.clone();
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Error::Denied { path },
            _ => Error::NotRunning { path },
        }
    }

    fn broken(&self, reason: impl ToString) -> Error {
        Error::Broken { path: self.socket.clone(), reason: reason.to_string() }
    }
}

/// The values of a stream as they arrive.
#[derive(Debug)]
pub struct Lines<T> {
    receiver: mpsc::Receiver<Result<T, Error>>,
}

impl<T> Lines<T> {
    /// The next value; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        self.receiver.recv().await
    }
}

async fn read_lines<T: DeserializeOwned>(
    mut body: Incoming,
    sender: mpsc::Sender<Result<T, Error>>,
    path: PathBuf,
) {
    let broken = |reason: String| Error::Broken { path: path.clone(), reason };
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(e) => {
                let _ = sender.send(Err(broken(e.to_string()))).await;
                return;
            }
        };
        buffer.extend_from_slice(&data);
        let mut start = 0;
        while let Some(end) = buffer[start..].iter().position(|byte| *byte == b'\n') {
            let value = serde_json::from_slice(&buffer[start..start + end])
                .map_err(|e| broken(e.to_string()));
            start += end + 1;
            if sender.send(value).await.is_err() {
                return;
            }
        }
        buffer.drain(..start);
        if buffer.len() > MAX_LINE {
            let _ = sender.send(Err(broken("a line is too long".to_owned()))).await;
            return;
        }
    }
}

fn push_number(path: &mut String, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        path.push_str(&format!("&{key}={value}"));
    }
}
