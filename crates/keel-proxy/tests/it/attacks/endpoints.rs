//! Endpoints that mean harm.

use std::sync::mpsc;
use std::thread;

use keel_model::{EndpointState, Protocol};

use super::MIB;
use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{CONTINUATION, DATA, END_HEADERS, Frames, HEADERS, OK, block, fields, frame};
use crate::http2::background::wait;
use crate::http2::client::{Http2Client, request};
use crate::http2::either::serve;
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::{PATIENCE, Proxy, cluster};

/// What an endpoint does to the proxy when it has a request on this stream.
type Harm = fn(&mut Frames, u32) -> std::io::Result<()>;

#[test]
fn endpoints_that_mean_harm_harm_only_their_own_requests() {
    let harms: [(&str, Harm); 6] = [
        ("a head that never ends", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, 0, stream, OK))?;
            for _ in 0..100_000 {
                endpoint.write(&frame(CONTINUATION, 0, stream, &[]))?;
            }
            Ok(())
        }),
        ("announcements without end", |endpoint, stream| {
            let early = block(&[(":status", "103"), ("link", "</a>")]);
            for _ in 0..100_000 {
                endpoint.write(&frame(HEADERS, END_HEADERS, stream, &early))?;
            }
            Ok(())
        }),
        ("pushes", |endpoint, stream| {
            let promise = [&[0, 0, 0, 2][..], &block(&fields("GET", &[]))].concat();
            endpoint.write(&frame(5, END_HEADERS, stream, &promise))
        }),
        ("more than the window", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, END_HEADERS, stream, OK))?;
            for _ in 0..10_000 {
                endpoint.write(&frame(DATA, 0, stream, &[b'x'; 16_384]))?;
            }
            Ok(())
        }),
        ("data before the head", |endpoint, stream| endpoint.write(&frame(DATA, 0, stream, b"x"))),
        ("nothing but empty data", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, END_HEADERS, stream, OK))?;
            for _ in 0..100_000 {
                endpoint.write(&frame(DATA, 0, stream, &[]))?;
            }
            Ok(())
        }),
    ];
    for (what, harm) in harms {
        let bad = Backend::new(move |connection| {
            let mut endpoint = Frames::serve(connection, &[]);
            while let Some(frame) = endpoint.next() {
                if frame.kind == HEADERS && harm(&mut endpoint, frame.stream).is_err() {
                    return;
                }
            }
        });
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http2, &[bad.address]);
        let before = proxy.process.memory();
        let (told, tells) = mpsc::channel();
        let asking = thread::spawn(move || {
            wait(async {
                let client = Http2Client::connect(address).await;
                let call = client.begin(request("POST", "/"), true).await;
                let answer = call.answer().await;
                assert!(answer.as_ref().map_or(true, |a| a.status == 502), "{what}: {answer:?}");
            });
            told.send(()).unwrap();
        });
        tells.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} is borne without end"));
        asking.join().unwrap();
        let gained = proxy.process.memory().saturating_sub(before);
        assert!(gained < 8 * MIB, "{what}: {gained} bytes");
        // The next request gets an answer too: from another endpoint.
        let good = Http2Endpoint::named("good");
        let mut state = cluster(&[(good.address, EndpointState::Ready)], true);
        state.protocol = Protocol::Http2;
        proxy.server.update(state);
        assert_eq!(Client::connect(address).get("/").body, "good:0", "{what}");
    }
}
