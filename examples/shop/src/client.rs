//! Calls to another service over pooled keep-alive connections.
//!
//! Bounded in connections, waiting time and answer size. Does not retry: that is the platform's task. The one exception
//! is what any keep-alive client must do: when a connection from the pool turns out to have been closed before a byte
//! of the answer came, an idempotent request goes once more over a fresh connection; a request of which nothing was
//! sent yet may always do that.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::http::{Failure, Hop, Trail, X_INSTANCE, X_REVISION, X_TRAIL};

/// Calls in flight to one target.
pub const MAX_IN_FLIGHT: usize = 256;
/// Unused connections kept for one target.
const MAX_IDLE: usize = 64;
/// A connection unused for longer is not used again; servers close theirs later than this.
const MAX_IDLE_AGE: Duration = Duration::from_secs(15);
/// A request that must not be sent twice uses only connections that were in use just now.
const MAX_IDLE_AGE_UNSAFE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From sending to the end of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The address of a service: `http://host[:port][/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    authority: String,
    prefix: String,
}

impl Url {
    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path, as written.
    pub fn path(&self) -> &str {
        &self.prefix
    }
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or("it has to start with http://")?;
        let (authority, prefix) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let port_start = authority.rfind(']').map_or(0, |bracket| bracket);
        let authority = match authority[port_start..].rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
            Some(_) => return Err("the port is not a number from 0 to 65535"),
            None => format!("{authority}:80"),
        };
        if authority.starts_with(':') {
            return Err("it names no host");
        }
        Ok(Url { authority, prefix: prefix.to_owned() })
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection; nothing was sent.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// Too slow.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// The request can't be written down as HTTP.
    #[error("not a request: {0}")]
    Malformed(hyper::http::Error),
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    fn header(&self, name: &hyper::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Message {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Message {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Message {
        Message {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A POST of JSON that may be repeated under `key`.
    pub fn post(path: impl Into<String>, key: &str, body: &impl serde::Serialize) -> Message {
        let body = serde_json::to_vec(body).expect("our messages have string keys only");
        let mut headers = HeaderMap::new();
        headers.insert(
            hyper::header::CONTENT_TYPE,
            hyper::header::HeaderValue::from_static("application/json"),
        );
        if let Ok(key) = key.parse() {
            headers.insert(crate::http::IDEMPOTENCY_KEY, key);
        }
        Message { method: Method::POST, path: path.into(), headers, body: body.into() }
    }

    fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// Another service, with the connections to it.
#[derive(Debug)]
pub struct Target {
    service: &'static str,
    url: Url,
    /// Most recently used last.
    idle: Mutex<VecDeque<(Connection, Instant)>>,
    in_flight: Semaphore,
    resent: AtomicU64,
}

impl Target {
    /// A target that has not been called yet; opens nothing.
    pub fn new(service: &'static str, url: Url) -> Target {
        Target {
            service,
            url,
            idle: Mutex::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            resent: AtomicU64::new(0),
        }
    }

    /// Requests that went over a second connection because a pooled one had been closed.
    pub fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    /// Calls the service and expects success; notes in `trail` who answered.
    ///
    /// # Errors
    /// Words and a status for the original caller: what the service said if it refused (4xx), 502 if it failed, 503 if
    /// it could not be reached, 504 if it was too slow.
    pub async fn ask(&self, message: Message, trail: &mut Trail) -> Result<Bytes, Failure> {
        let begun = Instant::now();
        let answer = self.call(message).await.map_err(|error| {
            let status = match error {
                CallError::Connect(_) => StatusCode::SERVICE_UNAVAILABLE,
                CallError::Timeout => StatusCode::GATEWAY_TIMEOUT,
                CallError::Broken(_) | CallError::Malformed(_) => StatusCode::BAD_GATEWAY,
            };
            Failure::new(status, format!("{}: {error}", self.service))
        })?;
        let hop = Hop {
            service: self.service.to_owned(),
            instance: non_empty(answer.header(&X_INSTANCE)),
            revision: non_empty(answer.header(&X_REVISION)),
            milliseconds: begun.elapsed().as_secs_f64() * 1000.0,
        };
        trail.add(hop, answer.header(&X_TRAIL));
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let said = serde_json::from_slice::<serde_json::Value>(&answer.body)
            .ok()
            .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
            .unwrap_or_default();
        if answer.status.is_client_error() {
            return Err(Failure::new(answer.status, said));
        }
        Err(Failure::new(
            StatusCode::BAD_GATEWAY,
            format!("{} answered {}: {said}", self.service, answer.status.as_u16()),
        ))
    }

    /// Calls the service.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub async fn call(&self, message: Message) -> Result<Answer, CallError> {
        let _permit = self.in_flight.acquire().await.expect("the semaphore is never closed");
        timeout(ANSWER_TIMEOUT, self.exchange(message)).await.unwrap_or(Err(CallError::Timeout))
    }

    async fn exchange(&self, message: Message) -> Result<Answer, CallError> {
        if let Some(mut connection) = self.take_idle(message.is_idempotent()) {
            match connection.try_send_request(self.request(&message)?).await {
                Ok(response) => return self.finish(connection, response).await,
                Err(mut error) => {
                    let unsent = error.take_message().is_some();
                    if !unsent && !message.is_idempotent() {
                        return Err(CallError::Broken(error.into_error().into()));
                    }
                    self.resent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let mut connection = self.connect().await.map_err(CallError::Connect)?;
        let response = connection
            .send_request(self.request(&message)?)
            .await
            .map_err(|error| CallError::Broken(error.into()))?;
        self.finish(connection, response).await
    }

    fn request(&self, message: &Message) -> Result<Request<Full<Bytes>>, CallError> {
        let prefix = self.url.prefix.trim_end_matches('/');
        let path = match (prefix, message.path.as_str()) {
            ("", "") => "/".to_owned(),
            (prefix, path) => format!("{prefix}{path}"),
        };
        let mut request = Request::builder()
            .method(message.method.clone())
            .uri(path)
            .header(hyper::header::HOST, &self.url.authority)
            .body(Full::new(message.body.clone()))
            .map_err(CallError::Malformed)?;
        request.headers_mut().extend(message.headers.clone());
        Ok(request)
    }

    async fn finish(
        &self,
        connection: Connection,
        response: hyper::Response<hyper::body::Incoming>,
    ) -> Result<Answer, CallError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(CallError::Broken)?
            .to_bytes();
        self.put_idle(connection);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    fn take_idle(&self, idempotent: bool) -> Option<Connection> {
        let max_age = if idempotent { MAX_IDLE_AGE } else { MAX_IDLE_AGE_UNSAFE };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while idle.front().is_some_and(|(connection, since)| {
            connection.is_closed() || since.elapsed() > MAX_IDLE_AGE
        }) {
            idle.pop_front();
        }
        // From the most recently used on: the others grow old and are closed when the traffic falls.
        let newest = idle.iter().rposition(|(connection, _)| connection.is_ready())?;
        let (connection, since) = idle.remove(newest)?;
        if since.elapsed() > max_age {
            idle.insert(newest, (connection, since));
            return None;
        }
        Some(connection)
    }

    fn put_idle(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < MAX_IDLE {
            idle.push_back((connection, Instant::now()));
        }
    }

    async fn connect(&self) -> std::io::Result<Connection> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.url.authority))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        // Ends by itself when the sender is dropped or the other side closes.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn non_empty(text: &str) -> String {
    if text.is_empty() { "?".to_owned() } else { text.replace([' ', ','], "_") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_port_and_a_prefix() {
        let url: Url = "http://cart".parse().unwrap();
        assert_eq!((url.authority(), url.path()), ("cart:80", ""));
        let url: Url = "http://10.77.0.3:8080/api/".parse().unwrap();
        assert_eq!((url.authority(), url.path()), ("10.77.0.3:8080", "/api/"));
        let url: Url = "http://[::1]".parse().unwrap();
        assert_eq!(url.authority(), "[::1]:80");
        for bad in ["cart", "https://cart", "http://", "http://cart:http", "http://:80"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
