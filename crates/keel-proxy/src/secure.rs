//! Connections that begin with a ClientHello: passed through by the name in it, or ended here.

use std::rc::Rc;

use crate::accept::{Speaks, read_more};
use crate::buffer::Buffer;
use crate::limits::REQUEST_HEAD;
use crate::route::RouteAt;
use crate::session::{Client, Secure, Session};
use crate::tls::{
    self, CLIENT_CERTIFICATE_HEADER, ClientCertificate, ClientHello, Detail, ListenerConfig,
    MAX_HELLO, Peeked, Tls, peek_client_hello,
};
use crate::tunnel;
use keel_model::{Protocol, RouteKind};

/// Ends the TLS of a connection to a listener where it ends; `None` if there is nothing to serve. What serves it then is
/// not in here, so that an open connection does not hold the memory of its handshake.
pub async fn begin(
    client: Client,
    mut first: Buffer,
    config: ListenerConfig,
) -> Option<(Client, Buffer, Speaks)> {
    let hello = hello(&client, &mut first).await?;
    let route = wanted_by(&client, hello.server_name.as_deref());
    if let Some(route) = &route
        && route.route().kind() == RouteKind::Passthrough
    {
        return Some((client, first, Speaks::Bytes(Some(route.clone()))));
    }
    let Client { stream, deadline, session } = client;
    let tcp = stream.into_plain()?;
    let config = config.for_hello(&hello);
    let accepted = tls::accept(tcp, &hello, first.bytes(), config, &deadline).await;
    session.worker.buffers.give(first);
    let tls = match accepted {
        Ok(tls) => tls,
        Err(error) => {
            tracing::debug!(peer = %session.peer, %error, "no TLS with a client");
            return None;
        }
    };
    if hello.is_acme_challenge() {
        // The handshake was the proof (RFC 8737, 3).
        tls.close_now();
        return None;
    }
    let speaks_http2 = tls.alpn().as_deref() == Some(b"h2");
    let mut secured = Session::new(
        session.peer,
        session.local,
        Rc::clone(&session.target),
        Rc::clone(&session.worker),
        Some(facts(&tls)),
    );
    secured.trusted = session.trusted;
    let client = Client { stream: tls.into(), deadline, session: Rc::new(secured) };
    let within = match route {
        Some(route) => Speaks::Bytes(Some(route)),
        None if client.target.protocol() == Protocol::Tcp => Speaks::Bytes(None),
        None if speaks_http2 => Speaks::Http2,
        None => Speaks::Http1,
    };
    Some((client, Buffer::default(), within))
}

/// Serves a connection that began with TLS at a listener that does not end it: only routes that pass it through
/// want it.
pub async fn pass_through(client: Client, mut first: Buffer) {
    let Some(hello) = hello(&client, &mut first).await else { return };
    match wanted_by(&client, hello.server_name.as_deref()) {
        Some(route) if route.route().kind() == RouteKind::Passthrough => {
            tunnel::serve_route(client, first, &route).await;
        }
        Some(_) | None if client.target.cluster().id().is_empty() => {}
        Some(_) | None => tunnel::serve(client, first).await,
    }
}

/// The route of connections that wants this one, if it asks for a server by its name or not.
pub fn wanted_by(client: &Client, server_name: Option<&str>) -> Option<RouteAt> {
    let table = client.target.table()?;
    let ip = client.peer.ip().to_canonical();
    let route = table.table.find_tcp(server_name, ip)?;
    Some(RouteAt::new(&table, route))
}

/// Reads until the ClientHello is complete; `None` if none comes.
async fn hello(client: &Client, first: &mut Buffer) -> Option<ClientHello> {
    client.deadline.set(REQUEST_HEAD);
    loop {
        match peek_client_hello(first.bytes()) {
            Peeked::Hello(hello) => return Some(hello),
            Peeked::NotTls => return None,
            Peeked::Incomplete => read_more(client, first, MAX_HELLO).await.ok()?,
        }
    }
}

fn facts(tls: &Tls) -> Secure {
    let chain = tls.peer_certificates();
    let certificate = chain.as_ref().and_then(|chain| chain.first());
    let lines = certificate.and_then(ClientCertificate::from_der).map_or_else(Vec::new, |c| {
        format!("{CLIENT_CERTIFICATE_HEADER}: {}\r\n", c.forwarded(Detail::Facts)).into_bytes()
    });
    Secure {
        sni: tls.sni().map(str::to_owned),
        version: tls.version().and_then(|v| v.as_str()),
        lines,
    }
}
