//! What a proxy does with what is published: shows proofs on two ports, and says since when.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use keel_acme::Published;
use keel_route::snapshot::Certificate;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How proofs are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Honest,
    /// Shows something else.
    Wrong,
}

pub struct Proxy {
    pub published: watch::Receiver<Published>,
    pub mood: watch::Sender<Mood>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub fn start(
        published: watch::Receiver<Published>,
        acknowledge: watch::Sender<u64>,
        (http, tls): (u16, u16),
    ) -> Self {
        let mood = watch::channel(Mood::Honest).0;
        // What the proxy shows; it learns of it a little later than it is published.
        let (take, shown) = watch::channel(Published::default());
        let mut news = published.clone();
        let task = tokio::spawn(async move {
            loop {
                let latest = news.borrow_and_update().clone();
                let revision = latest.revision;
                take.send_replace(latest);
                acknowledge.send_replace(revision);
                if news.changed().await.is_err() {
                    return;
                }
            }
        });
        let at = |port, show: fn(TcpStream, &Published, Mood)| {
            let (shown, mood) = (shown.clone(), mood.subscribe());
            let listener = bind(port);
            std::thread::spawn(move || {
                while mood.has_changed().is_ok() {
                    match listener.accept() {
                        Ok((stream, _)) => show(stream, &shown.borrow().clone(), *mood.borrow()),
                        Err(_) => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            });
        };
        at(http, show_http);
        at(tls, show_tls);
        Self { published, mood, task }
    }

    pub fn certificates(&self) -> Vec<Certificate> {
        self.published.borrow().certificates.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The one before may be about to close it.
fn bind(port: u16) -> TcpListener {
    for _ in 0..500 {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            listener.set_nonblocking(true).unwrap();
            return listener;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("port {port} is taken");
}

fn prepare(stream: &TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
}

/// RFC 8555, 8.3.
fn show_http(mut stream: TcpStream, published: &Published, mood: Mood) {
    prepare(&stream);
    let mut request = [0; 2000];
    let n = stream.read(&mut request).unwrap_or(0);
    let request = String::from_utf8_lossy(&request[..n]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default();
    let (status, body) = match published.challenges.http.get(token) {
        Some(_) if mood == Mood::Wrong => ("200 OK", "something else"),
        Some(proof) => ("200 OK", proof.as_str()),
        None => ("404 Not Found", ""),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all((head + body).as_bytes());
}

/// RFC 8737, 3.
fn show_tls(mut stream: TcpStream, published: &Published, _: Mood) {
    prepare(&stream);
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        if acceptor.read_tls(&mut stream).unwrap_or(0) == 0 {
            return;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err(_) => return,
        }
    };
    let hello = accepted.client_hello();
    let name = hello.server_name().unwrap_or_default().to_owned();
    let asked = hello.alpn().is_some_and(|mut protocols| protocols.any(|p| p == b"acme-tls/1"));
    let proof = published.challenges.tls_alpn.iter().find(|proof| proof.names.contains(&name));
    let Some(proof) = proof.filter(|_| asked) else { return };
    let chain = vec![CertificateDer::from_pem_slice(proof.chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(proof.key.as_bytes()).unwrap();
    // Not checked against each other: that fails for extensions that rustls does not know, as the one of the proof.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    if let Ok(mut connection) = accepted.into_connection(Arc::new(config)) {
        let _ = connection.complete_io(&mut stream);
    }
}
