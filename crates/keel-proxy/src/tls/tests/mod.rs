//! Real sockets on the loopback interface: our server against our client, OpenSSL and curl.

mod authority;
mod certificates;
mod foreign;
mod hostile;
mod mutual;
mod streams;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};

use super::hello::{ClientHello, Peeked, peek_client_hello};
use super::{HandshakeError, Tls, accept, connect};
use crate::deadline::{Deadline, Deadlines};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A deadline that passes in real time; must be made on a `LocalSet`.
fn deadline(time: Duration) -> Deadline {
    let deadlines = Rc::new(Deadlines::default());
    let deadline = Deadline::new(&deadlines);
    deadline.set(time);
    tokio::task::spawn_local(async move {
        let since = tokio::time::Instant::now();
        while Rc::strong_count(&deadlines) > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            deadlines.tick(u64::try_from(since.elapsed().as_millis()).unwrap());
        }
    });
    deadline
}

/// Runs a test whose futures share a thread, as in a worker.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let set = tokio::task::LocalSet::new();
    runtime.block_on(async {
        let in_time = tokio::time::timeout(PATIENCE, set.run_until(test));
        in_time.await.expect("the test took too long");
    });
}

/// Two ends of a TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(connecting, listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// Reads until a whole ClientHello is there.
async fn first_bytes(tcp: &TcpStream) -> (ClientHello, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        tcp.readable().await.unwrap();
        match tcp.try_read_buf(&mut bytes) {
            Ok(0) => panic!("the client ended"),
            Ok(_) => match peek_client_hello(&bytes) {
                Peeked::Hello(hello) => return (hello, bytes),
                Peeked::Incomplete => {}
                Peeked::NotTls => panic!("no ClientHello"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Both handshakes over `tcp`.
async fn handshake(
    tcp: (TcpStream, TcpStream),
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: &str,
) -> (Result<Tls, HandshakeError>, Result<Tls, HandshakeError>) {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (for_client, for_server) = (deadline(PATIENCE), deadline(PATIENCE));
    let serve = async {
        let (hello, first) = first_bytes(&tcp.1).await;
        accept(tcp.1.into(), &hello, &first, server, &for_server).await
    };
    tokio::join!(connect(tcp.0.into(), client, name, &for_client), serve)
}
