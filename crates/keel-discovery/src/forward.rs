//! Asks the resolvers of the machine about names that are not ours.
//!
//! Passes bytes through unchanged but for the id, which is drawn at random, as is the port: an answer has to match
//! both and the question. Remembers which resolver answered last and asks it first, so that a dead one costs its
//! timeout once and not with every query. Caches nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::respond::Carrier;

/// Queries under way to upstream resolvers; more are answered with "server failure" at once.
const MAX_UNDER_WAY: usize = 1024;
/// Resolvers that are asked, as in resolv.conf(5).
const MAX_UPSTREAMS: usize = 3;
/// How long one resolver may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The way to the outside.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    preferred: AtomicUsize,
    under_way: Semaphore,
}

impl Forwarder {
    /// A forwarder to the first few of `upstreams` other than `own`, which would ask itself for ever.
    pub(crate) fn new(upstreams: Vec<SocketAddr>, own: SocketAddr) -> Self {
        let others = upstreams.into_iter().filter(|upstream| *upstream != own);
        Self {
            upstreams: others.take(MAX_UPSTREAMS).collect(),
            preferred: AtomicUsize::new(0),
            under_way: Semaphore::new(MAX_UNDER_WAY),
        }
    }

    /// The answer of the first resolver that gives one, or the code to answer with instead.
    pub(crate) async fn ask(
        &self,
        query: &Message,
        bytes: &[u8],
        carrier: Carrier,
    ) -> Result<Vec<u8>, ResponseCode> {
        if self.upstreams.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let _slot = self.under_way.try_acquire().map_err(|_| ResponseCode::ServFail)?;
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0..self.upstreams.len() {
            let at = (first + turn) % self.upstreams.len();
            let upstream = self.upstreams[at];
            match timeout(TIMEOUT, exchange(upstream, query, bytes, carrier)).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "a resolver failed"),
                Err(_) => tracing::debug!(%upstream, "a resolver did not answer in time"),
            }
        }
        Err(ResponseCode::ServFail)
    }
}

async fn exchange(
    upstream: SocketAddr,
    query: &Message,
    bytes: &[u8],
    carrier: Carrier,
) -> io::Result<Vec<u8>> {
    // The codec draws ids from a cryptographically strong generator.
    let id = Message::query().metadata.id;
    let mut request = bytes.to_vec();
    request[..2].copy_from_slice(&id.to_be_bytes());
    let mut answer = match carrier {
        Carrier::Udp => exchange_datagrams(upstream, query, id, &request).await?,
        Carrier::Tcp => exchange_stream(upstream, query, id, &request).await?,
    };
    answer[..2].copy_from_slice(&query.metadata.id.to_be_bytes());
    Ok(answer)
}

async fn exchange_datagrams(
    upstream: SocketAddr,
    query: &Message,
    id: u16,
    request: &[u8],
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; usize::from(query.max_payload())];
    // Bounded by the caller's timeout.
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], query, id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn exchange_stream(
    upstream: SocketAddr,
    query: &Message,
    id: u16,
    request: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(&frame(request)?).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    if answers(&buffer, query, id) {
        Ok(buffer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not to this question"))
    }
}

/// A message with its length before it, as streams carry them.
pub(crate) fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))?;
    Ok([&length.to_be_bytes(), message].concat())
}

fn answers(bytes: &[u8], query: &Message, id: u16) -> bool {
    Message::from_vec(bytes).is_ok_and(|answer| {
        answer.metadata.id == id
            && answer.metadata.message_type == MessageType::Response
            && answer.queries == query.queries
    })
}
