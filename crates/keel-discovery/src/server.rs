//! The DNS server: sockets around [`respond`](crate::respond).
//!
//! Answers from the last table it was given, also after whoever gave it is gone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::forward::{Forwarder, frame};
use crate::respond::{Carrier, MAX_QUERY_BYTES, Verdict, failure, respond};
use crate::table::Table;
use crate::zone::Zone;

/// TCP connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a TCP client may take to send a query or to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a socket error that is not about one client, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Attempts to find a port that is free for both protocols when any will do.
const MAX_PORT_ATTEMPTS: usize = 16;

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error(
        "can't answer DNS queries at {address}: {reason}\n  hint: see what listens there with: ss -lntup 'sport = :{}'",
        address.port()
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        reason: io::Error,
    },
}

/// A bound DNS server.
#[derive(Debug)]
pub struct DnsServer {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

/// What every query needs.
struct Context {
    zone: watch::Receiver<Arc<Zone>>,
    forwarder: Forwarder,
}

impl DnsServer {
    /// Binds UDP and TCP at `address`, which should not be the unspecified one: answers must come from the address
    /// that was asked. Port 0 finds one that is free for both.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let attempts = if address.port() == 0 { MAX_PORT_ATTEMPTS } else { 1 };
        let mut result = Self::try_bind(address).await;
        for _ in 1..attempts {
            if result.is_ok() {
                break;
            }
            result = Self::try_bind(address).await;
        }
        result.map_err(|reason| Error::Bind { address, reason })
    }

    async fn try_bind(address: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address).await?;
        let address = udp.local_addr()?;
        let tcp = TcpListener::bind(address).await?;
        Ok(Self { udp, tcp, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` completes. Names outside the zone are put to `upstream`, which should not lead back
    /// here; with none they are refused.
    pub async fn serve(
        self,
        table: watch::Receiver<Arc<Table>>,
        upstream: Vec<SocketAddr>,
        shutdown: impl Future<Output = ()>,
    ) {
        let zone = Zone::new(&table.borrow());
        let (publish, zone) = watch::channel(Arc::new(zone));
        let forwarder = Forwarder::new(upstream, self.address);
        let context = Arc::new(Context { zone, forwarder });
        tokio::select! {
            () = shutdown => {}
            () = follow(table, publish) => {}
            () = serve_datagrams(self.udp, Arc::clone(&context)) => {}
            () = serve_streams(self.tcp, context) => {}
        }
    }
}

/// Turns each table into a zone, once.
async fn follow(mut table: watch::Receiver<Arc<Table>>, publish: watch::Sender<Arc<Zone>>) {
    // The zone was made from a table that may have been replaced since.
    table.mark_changed();
    while table.changed().await.is_ok() {
        let next = Arc::clone(&table.borrow_and_update());
        publish.send_replace(Arc::new(Zone::new(&next)));
    }
    // The last table stays in force.
    std::future::pending::<()>().await;
}

impl Context {
    fn respond(&self, bytes: &[u8], carrier: Carrier) -> Verdict {
        let zone = Arc::clone(&self.zone.borrow());
        respond(&zone, bytes, carrier)
    }
}

async fn serve_datagrams(socket: UdpSocket, context: Arc<Context>) {
    let socket = Arc::new(socket);
    // The forwarder bounds how many of these wait; the others end at once.
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a DNS query could not be received");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while forwards.try_join_next().is_some() {}
        match context.respond(&buffer[..length], Carrier::Udp) {
            Verdict::Reply(answer) => reply(&socket, &answer, client).await,
            Verdict::Forward(query) => {
                let (socket, context) = (Arc::clone(&socket), Arc::clone(&context));
                let bytes = buffer[..length].to_vec();
                forwards.spawn(async move {
                    let answer = context.forwarder.ask(&query, &bytes, Carrier::Udp).await;
                    let answer =
                        answer.or_else(|code| failure(&query, code, Carrier::Udp).ok_or(()));
                    if let Ok(answer) = answer {
                        reply(&socket, &answer, client).await;
                    }
                });
            }
            Verdict::Ignore => {}
        }
    }
}

async fn reply(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    // The client asks again when an answer is lost on its way.
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "a DNS answer could not be sent");
    }
}

async fn serve_streams(listener: TcpListener, context: Arc<Context>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let context = Arc::clone(&context);
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = serve_stream(stream, &context).await {
                        tracing::debug!(%client, %error, "a DNS connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Answers the queries of one client, one after the other.
async fn serve_stream(mut stream: TcpStream, context: &Context) -> io::Result<()> {
    loop {
        let bytes = timeout(CLIENT_TIMEOUT, read_query(&mut stream)).await;
        let Some(bytes) = bytes.map_err(|_| io::ErrorKind::TimedOut)?? else { return Ok(()) };
        let answer = match context.respond(&bytes, Carrier::Tcp) {
            Verdict::Reply(answer) => Some(answer),
            Verdict::Forward(query) => {
                let answer = context.forwarder.ask(&query, &bytes, Carrier::Tcp).await;
                answer.map_or_else(|code| failure(&query, code, Carrier::Tcp), Some)
            }
            Verdict::Ignore => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        let sent = timeout(CLIENT_TIMEOUT, stream.write_all(&frame(&answer)?)).await;
        sent.map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

/// The next query; none when the client is done.
async fn read_query(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_QUERY_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the query is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
