//! A peer that has the keys and breaks the rules.

use std::io;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use keel_route::snapshot::{Challenges, ListenerTls};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};
use tokio::net::TcpStream;

use super::super::{Listeners, Tls, accept};
use super::authority::Authority;
use super::{PATIENCE, deadline, first_bytes, local, pair};

/// Writes records of its own making.
struct Forger {
    tcp: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    /// One record of TLS 1.3 (RFC 8446, 5.2).
    fn send(&mut self, kind: u8, content: &[u8]) {
        let mut inner = [content, &[kind]].concat();
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, length[0], length[1]];
        let mut nonce = self.iv;
        for (byte, n) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= n;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        let record = [&header[..], &inner].concat();
        assert_eq!(self.tcp.try_write(&record).unwrap(), record.len());
    }
}

/// A client that gives its keys away after the handshake.
async fn connected() -> (Forger, Tls) {
    let authority = Authority::new("root");
    let listeners = Listeners::default();
    listeners.set_certificates(&[authority.issue(&["a.test"])], &Challenges::default());
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(authority.file()).unwrap();
    for root in crate::tls::files::certificates(&pem, 1).unwrap() {
        roots.add(root).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    let mut client = ClientConnection::new(Arc::new(config), "a.test".try_into().unwrap()).unwrap();
    let (ours, theirs) = pair().await;
    let server = listeners.config(&ListenerTls::default()).unwrap();
    let server = tokio::task::spawn_local(async move {
        let (hello, first) = first_bytes(&theirs).await;
        let config = server.for_hello(&hello);
        accept(theirs.into(), &hello, &first, config, &deadline(PATIENCE)).await.unwrap()
    });
    while client.is_handshaking() || client.wants_write() {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        if !out.is_empty() {
            assert_eq!(ours.try_write(&out).unwrap(), out.len());
            continue;
        }
        ours.readable().await.unwrap();
        let mut room = [0; 20_000];
        match ours.try_read(&mut room) {
            Ok(n) => {
                client.read_tls(&mut &room[..n]).unwrap();
                client.process_new_packets().unwrap();
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    let server = server.await.unwrap();
    let (sequence, secrets) = client.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
    let iv = iv.as_ref().try_into().unwrap();
    (Forger { tcp: ours, key, iv, sequence }, server)
}

async fn read(tls: &Tls) -> io::Result<Vec<u8>> {
    let mut room = [0; 100];
    let deadline = deadline(PATIENCE);
    deadline.until(|cx| tls.poll_read_ready(cx)).await.unwrap();
    tls.try_read(&mut room).map(|n| room[..n].to_vec())
}

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;

/// rustls remembers how far it has looked into a message that is not whole, and has to be shown it again, by a
/// write as well.
#[test]
fn half_a_message_of_the_protocol_breaks_nothing() {
    local(async {
        let (mut forger, server) = connected().await;
        forger.send(DATA, b"before");
        assert_eq!(read(&server).await.unwrap(), b"before");
        forger.send(HANDSHAKE, &[KEY_UPDATE, 0, 0]);
        assert_eq!(read(&server).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(server.try_write(b"meanwhile", b"").unwrap(), 9);
        forger.send(HANDSHAKE, &[1]);
        assert_eq!(read(&server).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        server.close_now();
        // The rules forbid anything in between.
        forger.send(DATA, b"between");
        assert_eq!(read(&server).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
}

#[test]
fn floods_without_content_end_the_connection() {
    for (kind, content) in [(DATA, &b""[..]), (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 7])] {
        local(async {
            let (mut forger, server) = connected().await;
            for _ in 0..100 {
                forger.send(kind, content);
            }
            let error = loop {
                match read(&server).await {
                    Ok(bytes) => assert_eq!(bytes, [0; 0], "content"),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(server.try_write(b"answer", b"").is_err());
        });
    }
}
