//! Answers that are compressed on their way.

use std::io::Read;

use bytes::Bytes;
use http::HeaderMap;
use keel_model::{Compress, Filters};

use super::{Site, all, nothing};
use crate::backend::Backend;
use crate::client::Client;
use crate::http2::background::wait;
use crate::http2::client::{Http2Client, part, request};
use crate::http2::either::{Answer, Content, Endpoint, Message, Version};

fn filters(compress: Compress) -> Filters {
    Filters { compress: Some(compress), ..Filters::default() }
}

fn text() -> String {
    (0..9_000).map(|n| format!("line {n} of a text that says little\n")).collect()
}

fn decoded(coding: &str, bytes: &[u8]) -> String {
    let mut text = String::new();
    let read = match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_string(&mut text),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_string(&mut text),
        "zstd" => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_string(&mut text),
        _ => panic!("{coding}"),
    };
    read.unwrap();
    text
}

/// Answers by path, with a body of text.
fn library(version: Version) -> Endpoint {
    Endpoint::new(version, |got| {
        let body = Bytes::from(text());
        let known = |body| Message::new(Content::Known(body));
        let plain = |message: Message| message.with("content-type", "text/plain; charset=utf-8");
        let message = match got.target.as_str() {
            "/stream" => plain(Message::new(Content::Unknown(body, HeaderMap::new()))),
            "/trailers" => {
                let trailers =
                    HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
                plain(Message::new(Content::Unknown(body, trailers)))
            }
            "/small" => plain(known(body.slice(..500))),
            "/image" => known(body).with("content-type", "image/png"),
            "/coded" => plain(known(body)).with("content-encoding", "x-own"),
            "/fixed" => plain(known(body)).with("cache-control", "public, no-transform"),
            _ => plain(known(body)).with("etag", "\"abc\"").with("accept-ranges", "bytes"),
        };
        Answer { status: 200, message }
    })
}

#[test]
fn texts_are_compressed_as_the_client_likes_it() {
    wait(all(async |client, endpoint| {
        let endpoint = library(endpoint);
        let site = Site::filtered(&endpoint, filters(Compress::default()));
        for (accepted, coding) in [
            ("gzip", "gzip"),
            ("br", "br"),
            ("zstd", "zstd"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip;q=0.5, br;q=0.9", "br"),
        ] {
            for path in ["/", "/stream"] {
                let sent = nothing().with("accept-encoding", accepted);
                let answer = site.ask(client, "GET", &format!("a.test{path}"), &sent).await;
                assert_eq!(answer.field("content-encoding"), Some(coding), "{accepted} {path}");
                assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
                assert_eq!(answer.field("accept-ranges"), None);
                assert_eq!(answer.field("content-length"), None);
                let etag = (path == "/").then_some("W/\"abc\"");
                assert_eq!(answer.field("etag"), etag);
                let bytes = answer.message.content.bytes();
                assert!(bytes.len() * 3 < text().len(), "{}", bytes.len());
                assert!(decoded(coding, &bytes) == text(), "{accepted} {path}");
            }
        }
    }));
}

#[test]
fn trailers_follow_a_compressed_body() {
    wait(all(async |client, endpoint| {
        let endpoint = library(endpoint);
        let site = Site::filtered(&endpoint, filters(Compress::default()));
        let sent = nothing().with("accept-encoding", "gzip").with("te", "trailers");
        let answer = site.ask(client, "GET", "a.test/trailers", &sent).await;
        let Content::Unknown(bytes, trailers) = answer.message.content else {
            panic!("{answer:?}")
        };
        assert!(decoded("gzip", &bytes) == text());
        assert_eq!(trailers.get("x-sum").map(|sum| sum.to_str().unwrap()), Some("1"));
    }));
}

#[test]
fn what_gains_nothing_stays_as_it_is() {
    wait(all(async |client, endpoint| {
        let endpoint = library(endpoint);
        let mut site = Site::filtered(&endpoint, filters(Compress::default()));
        for (path, accepted, vary) in [
            ("/small", "gzip", None),
            ("/image", "gzip", None),
            ("/coded", "gzip", None),
            ("/fixed", "gzip", None),
            ("/", "identity", Some("Accept-Encoding")),
            ("/", "gzip;q=0", Some("Accept-Encoding")),
            ("/", "deflate", Some("Accept-Encoding")),
        ] {
            let sent = nothing().with("accept-encoding", accepted);
            let answer = site.ask(client, "GET", &format!("a.test{path}"), &sent).await;
            let coding = (path == "/coded").then_some("x-own");
            assert_eq!(answer.field("content-encoding"), coding, "{path} {accepted}");
            assert_eq!(answer.field("vary"), vary, "{path} {accepted}");
            let body = answer.text();
            assert!(body == text()[..body.len()]);
            assert_eq!(answer.field("content-length"), Some(&*body.len().to_string()));
        }
        let sent = nothing().with("accept-encoding", "gzip");
        let head = site.ask(client, "HEAD", "a.test/", &sent).await;
        assert_eq!((head.field("content-encoding"), head.text()), (None, String::new()));
        assert_eq!(head.field("vary"), Some("Accept-Encoding"));
        // The counters tell the bytes that went over the wire.
        let edges = site.edges("shop/all");
        let out: u64 = edges.iter().map(|edge| edge.bytes_out).sum();
        let wire = (text().len() * 6 + 500) as u64;
        assert!((wire..wire + wire / 10).contains(&out), "{out} of {wire}");
    }));
}

#[test]
fn events_come_one_by_one_through_compression() {
    let types = vec!["text/event-stream".to_owned()];
    for endpoint_sends_next in ["gzip", "br", "zstd"] {
        let (next, wanted) = std::sync::mpsc::channel::<()>();
        let wanted = std::sync::Mutex::new(wanted);
        let backend = Backend::new(move |mut connection| {
            while connection.request().is_some() {
                connection.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
                for n in 0..3 {
                    if wanted.lock().unwrap().recv_timeout(crate::proxy::PATIENCE).is_err() {
                        return;
                    }
                    connection.send(&format!("9\r\ndata: {n}\n\n\r\n"));
                }
                connection.send("0\r\n\r\n");
            }
        });
        let endpoint = Endpoint::One(backend);
        let compress = Compress { types: types.clone(), ..Compress::default() };
        let site = Site::filtered(&endpoint, filters(compress));
        events(&site, endpoint_sends_next, &next);
    }
}

/// The next event is sent only when the one before has come.
fn events(site: &Site, coding: &str, next: &std::sync::mpsc::Sender<()>) {
    let mut client = Client::connect(site.address);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"));
    next.send(()).unwrap();
    let head = client.head().to_lowercase();
    assert!(head.contains(&format!("content-encoding: {coding}\r\n")), "{head}");
    let mut raw = Vec::new();
    for n in 0..3 {
        let expected: String = (0..=n).map(|n| format!("data: {n}\n\n")).collect();
        while partly(coding, &raw) != expected {
            let size = client.line();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            client.reader.read_exact(&mut chunk).unwrap();
            raw.extend_from_slice(&chunk[..size]);
        }
        next.send(()).unwrap();
    }
    wait(async {
        let client = Http2Client::connect(site.address).await;
        let ask = request("GET", "/").header("accept-encoding", coding);
        let mut call = client.begin(ask, true).await;
        let mut body = call.head().await.unwrap().into_body();
        let mut raw = Vec::new();
        for n in 0..3 {
            let expected: String = (0..=n).map(|n| format!("data: {n}\n\n")).collect();
            while partly(coding, &raw) != expected {
                raw.extend_from_slice(&part(&mut body).await.unwrap().unwrap());
            }
            next.send(()).unwrap();
        }
    });
}

/// As much as can be decoded of the beginning of a body.
fn partly(coding: &str, bytes: &[u8]) -> String {
    let mut reader: Box<dyn Read> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(bytes)),
        "br" => Box::new(brotli::Decompressor::new(bytes, 4096)),
        _ => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
    };
    let (mut all, mut byte) = (Vec::new(), [0]);
    while let Ok(1) = reader.read(&mut byte) {
        all.push(byte[0]);
    }
    String::from_utf8(all).unwrap()
}
