//! The same request and answer in either version of HTTP, so that one test can say what all four combinations do.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use keel_model::{EndpointState, Protocol};

use super::client::Http2Client;
use super::endpoint::{Exchange, Http2Endpoint};
use crate::backend::{Backend, Connection, read_body};
use crate::client::Client;
use crate::proxy::{CART, Proxy, cluster, listener};

/// What is spoken on one side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// Clients and endpoints, each of either version.
pub const ALL: [(Version, Version); 4] = [
    (Version::One, Version::One),
    (Version::One, Version::Two),
    (Version::Two, Version::One),
    (Version::Two, Version::Two),
];

/// A message after its first line, as it is to be sent or was received.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub fields: HeaderMap,
    pub content: Content,
}

/// How a body lies in its message.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Content {
    #[default]
    None,
    /// Of an announced length.
    Known(Bytes),
    /// Until its end, which may have trailers.
    Unknown(Bytes, HeaderMap),
}

/// A request as the endpoint got it.
#[derive(Debug)]
pub struct Got {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub host: String,
    pub message: Message,
}

/// An answer as it is to be sent or was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub message: Message,
}

impl Message {
    pub fn new(content: Content) -> Self {
        Self { fields: HeaderMap::new(), content }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Content {
    pub fn bytes(&self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::Known(bytes) | Self::Unknown(bytes, _) => bytes.clone(),
        }
    }

    /// What was received: an announced length makes it known, nothing at all makes it none.
    fn received(fields: &HeaderMap, bytes: Bytes, trailers: HeaderMap) -> Self {
        let nothing = bytes.is_empty() && trailers.is_empty();
        match fields.contains_key("content-length") {
            true => Self::Known(bytes),
            false if nothing => Self::None,
            false => Self::Unknown(bytes, trailers),
        }
    }
}

/// An endpoint of either version.
pub enum Endpoint {
    One(Backend),
    Two(Http2Endpoint),
}

impl Endpoint {
    /// Answers every request by `respond`.
    pub fn new(
        version: Version,
        respond: impl Fn(Got) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        match version {
            Version::One => Self::One(Backend::new(move |mut connection| {
                while let Some(got) = got_http1(&mut connection) {
                    let is_head = got.method == "HEAD";
                    let Answer { status, message } = respond(got);
                    let bodiless = is_head || matches!(status, 204 | 304);
                    let length = match message.content {
                        Content::None if !bodiless => "content-length: 0\r\n",
                        _ => "",
                    };
                    let head = format!("HTTP/1.1 {status} X\r\n{length}");
                    let bytes = to_http1(head, &message, bodiless);
                    if std::io::Write::write_all(connection.reader.get_mut(), &bytes).is_err() {
                        return;
                    }
                }
            })),
            Version::Two => Self::Two(Http2Endpoint::new(move |exchange| {
                answer_http2(exchange, respond.clone())
            })),
        }
    }

    pub fn address(&self) -> SocketAddr {
        match self {
            Self::One(backend) => backend.address,
            Self::Two(endpoint) => endpoint.address,
        }
    }

    pub fn protocol(&self) -> Protocol {
        match self {
            Self::One(_) => Protocol::Http,
            Self::Two(_) => Protocol::Http2,
        }
    }

    /// A proxy in front of it, and where that listens.
    pub fn behind(&self) -> (Proxy, SocketAddr) {
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, self.protocol(), &[self.address()]);
        (proxy, address)
    }
}

/// One listener before endpoints that declare what they speak; its address. A client may take its time there, as it
/// does on a busy machine.
pub fn serve(proxy: &mut Proxy, protocol: Protocol, endpoints: &[SocketAddr]) -> SocketAddr {
    let bind = proxy.address();
    let ready: Vec<_> = endpoints.iter().map(|e| (*e, EndpointState::Ready)).collect();
    let mut cluster = cluster(&ready, true);
    cluster.protocol = protocol;
    let clusters = [(CART.to_owned(), cluster)].into();
    assert_eq!(proxy.server.replace(vec![listener(bind, protocol)], clusters), []);
    bind
}

/// A client's connection of either version.
pub enum Caller {
    One(Client),
    Two(Http2Client),
}

impl Caller {
    pub async fn connect(version: Version, address: SocketAddr) -> Self {
        match version {
            Version::One => Self::One(Client::connect(address)),
            Version::Two => Self::Two(Http2Client::connect(address).await),
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(&mut self, method: &str, path: &str, message: &Message) -> Answer {
        self.ask_host("cart", method, path, message).await
    }

    /// As [`Caller::ask`], of another host.
    pub async fn ask_host(
        &mut self,
        host: &str,
        method: &str,
        path: &str,
        message: &Message,
    ) -> Answer {
        match self {
            Self::One(client) => {
                let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
                client.send(to_http1(head, message, false));
                answer_of_http1(client, method == "HEAD")
            }
            Self::Two(client) => {
                let mut request =
                    http::Request::builder().method(method).uri(format!("http://{host}{path}"));
                for (name, value) in announced(message, false) {
                    request = request.header(name, value);
                }
                let end = message.content == Content::None;
                let mut call = client.begin(request, end).await;
                // A stream that was answered before its end takes no more: what counts is the answer.
                match &message.content {
                    Content::None => {}
                    Content::Known(body) => drop(call.send(body.clone(), true).await),
                    Content::Unknown(body, trailers) => {
                        if call.send(body.clone(), false).await.is_ok() {
                            drop(call.body.send_trailers(trailers.clone()));
                        }
                    }
                }
                let answer = call.answer().await.unwrap();
                let content = Content::received(&answer.headers, answer.body, answer.trailers);
                let message = Message { fields: answer.headers, content };
                Answer { status: answer.status.as_u16(), message }
            }
        }
    }
}

/// The fields of a message with those that say how its body lies.
fn announced(message: &Message, chunked: bool) -> Vec<(String, HeaderValue)> {
    let mut fields: Vec<_> =
        message.fields.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    match &message.content {
        Content::None => {}
        Content::Known(body) => fields.push(("content-length".into(), body.len().into())),
        Content::Unknown(..) if chunked => {
            fields.push(("transfer-encoding".into(), HeaderValue::from_static("chunked")));
        }
        Content::Unknown(..) => {}
    }
    fields
}

/// `head`, the first lines of a message, and what follows them in HTTP/1.
fn to_http1(head: String, message: &Message, bodiless: bool) -> Vec<u8> {
    let mut bytes = head.into_bytes();
    let lines = |fields: &[(String, HeaderValue)], bytes: &mut Vec<u8>| {
        for (name, value) in fields {
            bytes.extend([name.as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
    };
    lines(&announced(message, true), &mut bytes);
    if bodiless {
        return bytes;
    }
    match &message.content {
        Content::None => {}
        Content::Known(body) => bytes.extend_from_slice(body),
        Content::Unknown(body, trailers) => {
            for chunk in body.chunks(10_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n");
            lines(
                &announced(&Message { fields: trailers.clone(), ..Message::default() }, true),
                &mut bytes,
            );
        }
    }
    bytes
}

/// The header lines of a head or trailer section.
pub fn fields_of<'a>(lines: impl Iterator<Item = &'a str>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value.trim().as_bytes()).unwrap());
    }
    fields
}

/// Content and trailers of a chunked body.
pub fn dechunk(mut raw: &[u8]) -> (Bytes, HeaderMap) {
    let mut content = Vec::new();
    let line = |raw: &[u8]| raw.windows(2).position(|w| w == b"\r\n").unwrap();
    loop {
        let end = line(raw);
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..end]).unwrap(), 16).unwrap();
        raw = &raw[end + 2..];
        if size == 0 {
            let trailers = std::str::from_utf8(raw).unwrap();
            return (content.into(), fields_of(trailers.lines()));
        }
        content.extend_from_slice(&raw[..size]);
        raw = &raw[size + 2..];
    }
}

/// Fields and content of a message of HTTP/1 whose `head` was read.
fn received_http1(head: &str, raw: Vec<u8>) -> Message {
    let mut fields = fields_of(head.lines().skip(1));
    let chunked = fields.remove("transfer-encoding").is_some();
    let (bytes, trailers) = if chunked { dechunk(&raw) } else { (raw.into(), HeaderMap::new()) };
    let content = Content::received(&fields, bytes, trailers);
    Message { fields, content }
}

fn got_http1(connection: &mut Connection) -> Option<Got> {
    let head = connection.head()?;
    if head.to_lowercase().contains("expect: 100-continue\r\n") {
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
    }
    let body = read_body(&mut connection.reader, &head)?;
    let mut words = head.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut message = received_http1(&head, body);
    let host = message.fields.remove("host")?.to_str().unwrap().to_owned();
    Some(Got { method, target, host, message })
}

fn answer_of_http1(client: &mut Client, is_head: bool) -> Answer {
    let head = client.head();
    let status = head[9..12].parse().unwrap();
    let bodiless = is_head || matches!(status, 204 | 304);
    let raw = if bodiless { Vec::new() } else { read_body(&mut client.reader, &head).unwrap() };
    Answer { status, message: received_http1(&head, raw) }
}

async fn answer_http2(mut exchange: Exchange, respond: impl Fn(Got) -> Answer) {
    let Ok((body, trailers)) = exchange.body().await else { return };
    let parts = exchange.request.into_parts().0;
    let content = Content::received(&parts.headers, body, trailers);
    let got = Got {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().unwrap().to_string(),
        host: parts.uri.authority().unwrap().to_string(),
        message: Message { fields: parts.headers, content },
    };
    let bodiless = got.method == "HEAD";
    let answer = respond(got);
    let bodiless = bodiless || matches!(answer.status, 204 | 304);
    let mut response = http::Response::builder().status(answer.status);
    for (name, value) in announced(&answer.message, false) {
        response = response.header(name, value);
    }
    let end = bodiless || answer.message.content == Content::None;
    let sent = exchange.respond.send_response(response.body(()).unwrap(), end);
    let Ok(mut stream) = sent else { return };
    // Whether the other side is still there is for the test to say.
    let _ = match answer.message.content {
        _ if end => Ok(()),
        Content::None => Ok(()),
        Content::Known(body) => super::client::send(&mut stream, body, true).await,
        Content::Unknown(body, trailers) => {
            let sent = super::client::send(&mut stream, body, trailers.is_empty()).await;
            if trailers.is_empty() { sent } else { sent.and(stream.send_trailers(trailers)) }
        }
    };
}
