//! What a [`Tls`] does to bytes.

use std::io;
use std::sync::Arc;

use keel_model::UpstreamTls;
use keel_route::snapshot::{Challenges, ListenerTls};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::{Listeners, Upstreams};
use super::authority::Authority;
use super::{PATIENCE, deadline, first_bytes, handshake, local, pair};
use crate::conn::Conn;
use crate::tls::{HandshakeError, Tls, accept, connect};

/// A configuration of either side that trust each other, for the name `a.test`.
fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let authority = Authority::new("root");
    let listeners = Listeners::default();
    let problems =
        listeners.set_certificates(&[authority.issue(&["a.test"])], &Challenges::default());
    assert_eq!(problems, []);
    let server = listeners.config(&ListenerTls::default()).unwrap();
    let tls = UpstreamTls { ca: Some(authority.file()), ..UpstreamTls::default() };
    let client = Upstreams::default().config(&tls, &[b"http/1.1"]).unwrap();
    (server.for_hello(&super::ClientHello::default()), client)
}

async fn connected(tcp: (TcpStream, TcpStream)) -> (Tls, Tls) {
    let (server, client) = configs();
    let (client, server) = handshake(tcp, server, client, "a.test").await;
    (client.unwrap(), server.unwrap())
}

/// Byte `n` of the stream that a side sends.
fn byte(n: usize) -> u8 {
    u8::try_from((n * 31 + n / 255) % 251).unwrap()
}

async fn send(tls: &Tls, total: usize, piece: usize) {
    let deadline = deadline(PATIENCE);
    let mut sent = 0;
    while sent < total {
        let bytes: Vec<u8> = (sent..total.min(sent + piece)).map(byte).collect();
        let (first, second) = bytes.split_at(bytes.len() / 5);
        match tls.try_write(first, second) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                deadline.until(|cx| tls.poll_write_ready(cx)).await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads `total` bytes in pieces, pausing for the other side now and then.
async fn receive(tls: &Tls, total: usize, piece: usize) {
    let deadline = deadline(PATIENCE);
    let (mut room, mut got) = (vec![0; piece], 0);
    while got < total {
        match tls.try_read(&mut room) {
            Ok(0) => panic!("ended after {got} bytes"),
            Ok(n) => {
                assert!(room[..n].iter().enumerate().all(|(i, b)| *b == byte(got + i)), "at {got}");
                got += n;
                if got % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                deadline.until(|cx| tls.poll_read_ready(cx)).await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn end(tls: &Tls) -> io::Result<usize> {
    let deadline = deadline(PATIENCE);
    loop {
        match tls.try_read(&mut [0; 10]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        deadline.until(|cx| tls.poll_read_ready(cx)).await?;
    }
}

#[test]
fn both_directions_at_once_through_small_buffers_and_slow_readers() {
    local(async {
        let tcp = pair().await;
        for end in [&tcp.0, &tcp.1] {
            let socket = socket2::SockRef::from(end);
            socket.set_recv_buffer_size(16 << 10).unwrap();
            socket.set_send_buffer_size(16 << 10).unwrap();
        }
        let (client, server) = connected(tcp).await;
        const UP: usize = 3_000_001;
        const DOWN: usize = 4_000_003;
        tokio::join!(
            send(&client, UP, 100_000),
            receive(&client, DOWN, 16_000),
            send(&server, DOWN, 70_000),
            receive(&server, UP, 333),
        );
    });
}

#[test]
fn small_pieces_go_in_one_record() {
    local(async {
        let tcp = pair().await;
        let (client, server) = connected(tcp).await;
        for piece in [1, 100, 16_384, 16_385] {
            tokio::join!(send(&client, 40_000, piece), receive(&server, 40_000, 65_536));
        }
        assert_eq!(client.try_write(b"head", b"body").unwrap(), 8);
        let mut room = [0; 100];
        server.tcp().ready(tokio::io::Interest::READABLE).await.unwrap();
        let (read, _) =
            rustix::net::recv(server.tcp(), &mut room, rustix::net::RecvFlags::PEEK).unwrap();
        assert_eq!(read, 5 + 8 + 1 + 16, "one record of TLS 1.3");
    });
}

#[test]
fn the_announced_end_is_an_end_and_the_other_direction_goes_on() {
    local(async {
        let (client, server) = connected(pair().await).await;
        send(&client, 1000, 1000).await;
        let deadline = deadline(PATIENCE);
        deadline.until(|cx| client.poll_shutdown(cx)).await.unwrap();
        receive(&server, 1000, 64).await;
        assert_eq!(end(&server).await.unwrap(), 0);
        assert!(server.saw_close_notify());
        tokio::join!(send(&server, 200_000, 50_000), receive(&client, 200_000, 9000));
        assert!(client.try_write(b"too late", b"").is_err());
        server.close_now();
        drop(server);
        assert_eq!(end(&client).await.unwrap(), 0);
    });
}

#[test]
fn a_cut_off_stream_is_no_end() {
    local(async {
        let (client, server) = connected(pair().await).await;
        send(&client, 1000, 1000).await;
        client.tcp().socket().set_nodelay(true).unwrap();
        rustix::net::shutdown(client.tcp(), rustix::net::Shutdown::Write).unwrap();
        receive(&server, 1000, 64).await;
        let error = end(&server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(!server.saw_close_notify());
        assert_eq!(end(&server).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_changed_record_is_an_error_after_what_came_before_it() {
    local(async {
        let (from_client, to_relay) = pair().await;
        let (from_relay, to_server) = pair().await;
        let (server, client) = configs();
        tokio::task::spawn_local(relay(to_relay, from_relay, 1 << 16, Some(b"flip")));
        let (client, server) = handshake((from_client, to_server), server, client, "a.test").await;
        let (client, server) = (client.unwrap(), server.unwrap());
        send(&client, 10, 10).await;
        receive(&server, 10, 10).await;
        assert_eq!(client.try_write(b"flip", &[0; 3000]).unwrap(), 3004);
        let error = end(&server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(server.try_write(b"answer", b"").is_err());
        let told = end(&client).await.unwrap_err();
        assert!(told.to_string().contains("BadRecordMac"), "{told}");
    });
}

/// Passes bytes on in pieces. With `flip`, changes a bit in each large one.
async fn relay(a: TcpStream, b: TcpStream, piece: usize, flip: Option<&'static [u8]>) {
    let (mut a_read, mut a_write) = a.into_split();
    let (mut b_read, mut b_write) = b.into_split();
    let up = async {
        let mut room = vec![0; piece];
        while let Ok(n) = a_read.read(&mut room).await {
            if n == 0 {
                break;
            }
            if flip.is_some() && n > 3000 {
                room[100] ^= 1;
            }
            if b_write.write_all(&room[..n]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut room = vec![0; piece];
        while let Ok(n) = b_read.read(&mut room).await {
            if n == 0 || a_write.write_all(&room[..n]).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(up, down);
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    local(async {
        let (from_client, to_relay) = pair().await;
        let (from_relay, to_server) = pair().await;
        for end in [&to_relay, &from_relay] {
            end.set_nodelay(true).unwrap();
        }
        tokio::task::spawn_local(relay(to_relay, from_relay, 1, None));
        let (client, server) = connected((from_client, to_server)).await;
        tokio::join!(send(&client, 5000, 5000), receive(&server, 5000, 5000));
        assert_eq!(server.sni(), Some("a.test"));
        assert_eq!(server.alpn().as_deref(), Some(&b"http/1.1"[..]));
    });
}

#[test]
fn a_slow_client_does_not_hold_a_handshake_for_ever() {
    local(async {
        let (client, server) = pair().await;
        let (config, client_config) = configs();
        let short = deadline(std::time::Duration::from_millis(1));
        let name = "a.test".try_into().unwrap();
        let long = deadline(PATIENCE);
        let connecting = connect(client.into(), client_config, name, &long);
        let mut connecting = std::pin::pin!(connecting);
        let (hello, first) = tokio::select! {
            _ = &mut connecting => unreachable!("nobody has answered"),
            first = first_bytes(&server) => first,
        };
        // The client says nothing more because nobody polls it.
        let result = accept(server.into(), &hello, &first, config, &short).await;
        assert!(matches!(result, Err(HandshakeError::TimedOut)), "{result:?}");
    });
}

#[test]
fn what_is_no_handshake_is_refused_with_an_alert() {
    local(async {
        for garbage in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0, 5, 1, 0, 0, 1, 9], &[22; 600]]
        {
            let (mut client, server) = pair().await;
            let (config, _) = configs();
            let deadline = deadline(PATIENCE);
            let hello = super::ClientHello::default();
            let result = accept(server.into(), &hello, garbage, config, &deadline).await;
            assert!(matches!(result, Err(HandshakeError::Refused(_))), "{result:?}");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!((answer[0], answer[5], answer.len()), (21, 2, 7), "a fatal alert");
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_handshake_breaks_it() {
    local(async {
        let (client, server) = pair().await;
        let (config, client_config) = configs();
        let long = deadline(PATIENCE);
        let name = "a.test".try_into().unwrap();
        let (hello, first) = tokio::select! {
            _ = connect(client.into(), client_config, name, &long) => unreachable!(),
            first = first_bytes(&server) => first,
        };
        let result = accept(server.into(), &hello, &first, config, &long).await;
        assert!(matches!(result, Err(HandshakeError::Broken(_))), "{result:?}");
    });
}

#[test]
fn libraries_can_use_it() {
    local(async {
        let (mut client, mut server) = connected(pair().await).await;
        let data: Vec<u8> = (0..500_000).map(byte).collect();
        let expected = data.clone();
        let writing = async move {
            client.write_all(&data).await.unwrap();
            client.flush().await.unwrap();
            client.shutdown().await.unwrap();
            client
        };
        let reading = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        };
        let (_client, got) = tokio::join!(writing, reading);
        assert!(got == expected);
    });
}

#[test]
fn an_idle_connection_keeps_no_buffer() {
    local(async {
        let (client, server) = connected(pair().await).await;
        tokio::join!(send(&client, 300_000, 70_000), receive(&server, 300_000, 100));
        tokio::join!(send(&server, 300_000, 70_000), receive(&client, 300_000, 100));
        assert_eq!((client.kept(), server.kept()), (0, 0));
        let size = size_of::<Tls>();
        assert!(size < 1500, "{size} bytes");
    });
}

#[test]
fn the_end_is_announced_although_the_peer_takes_nothing_for_now() {
    local(async {
        for closes in [false, true] {
            let (client, server) = connected(pair().await).await;
            let server = Conn::from(server);
            let bytes: Vec<u8> = (0..100_000).map(byte).collect();
            let mut sent = 0;
            loop {
                match server.try_write(&bytes, &[]) {
                    Ok(n) => sent += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let deadline = deadline(PATIENCE);
            let ending = async {
                if closes {
                    assert!(!server.close(), "there is no room for it");
                    crate::stream::close(&server, &deadline).await;
                } else {
                    server.end(&deadline).await.unwrap();
                }
            };
            let reading = async {
                let (mut room, mut got) = (vec![0; 100_000], 0);
                loop {
                    match client.try_read(&mut room) {
                        Ok(0) => return got,
                        Ok(n) => got += n,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            client.tcp().ready(tokio::io::Interest::READABLE).await.unwrap();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            };
            let ((), got) = tokio::join!(ending, reading);
            assert!(got >= sent, "{got} of {sent}");
            assert!(client.saw_close_notify());
        }
    });
}
