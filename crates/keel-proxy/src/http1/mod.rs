//! HTTP/1: a client's connection, request after request.
//!
//! Requests on one connection are answered strictly in order; the next one is not looked at before the answer to
//! the one before it is complete. Idle connections hold no buffers.

pub mod body;
mod exchange;
pub mod fields;
pub mod forward;
mod relay;
pub mod request;
pub mod response;
mod upload;

use std::io;

use keel_model::Protocol;
use keel_route::filter::{AuthCheck, Verified};
use keel_route::request::RequestView;

use crate::access::Entry;
use crate::bridge::head::RequestHead;
use crate::buffer::Buffer;
use crate::deadline::Deadline;
pub use crate::http1::body::Body;
use crate::http1::forward::{Changes, Origin};
pub use crate::http1::request::{Refusal, Request, is_host};
use crate::http2::{self, Upgrade};
use crate::ids::Ids;
use crate::limits::{CLIENT_IDLE, CLIENT_IDLE_ENDING, MAX_HEAD, REQUEST_HEAD};
use crate::reply::Reply;
use crate::route::{Decided, Http1Fields, Way};
use crate::session::{Client, Session};
use crate::stream;

/// What becomes of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another request may come.
    Request,
    /// Its last answer has been sent completely.
    Close,
    /// As `Close`, but the client may still be sending.
    Linger,
    /// It goes on in HTTP/2.
    Upgrade,
    /// It is broken, or an answer could not be completed: the client must notice.
    Reset,
}

/// A client's connection that speaks HTTP/1.
struct Connection {
    client: Client,
    /// For waiting on endpoints.
    waiting: Deadline,
    /// Read from the client and not yet used.
    input: Buffer,
    /// The request as it goes to the endpoint: its head, and its body as far as it may have to be repeated.
    request: Vec<u8>,
    /// The request in the form for a service of HTTP/2, if that is what it goes to.
    bridged: Option<Box<RequestHead>>,
    /// Where it goes.
    way: Option<Way>,
    /// The request, as the first of a connection of HTTP/2.
    upgrade: Option<Box<Upgrade>>,
    /// The request's line in the access log, if that is on.
    log: Option<Box<Entry>>,
}

/// Serves a connection until it ends; `first` was read from it already.
pub async fn serve(client: Client, first: Buffer) {
    let mut connection = Connection {
        waiting: Deadline::new(&client.worker.deadlines),
        client,
        input: first,
        request: Vec::new(),
        bridged: None,
        way: None,
        upgrade: None,
        log: None,
    };
    let next = loop {
        match connection.turn().await {
            Next::Request => {}
            next => break next,
        }
    };
    let client = &connection.client;
    match next {
        Next::Request | Next::Close => stream::close(&client.stream, &client.deadline).await,
        Next::Linger => {
            let worker = &client.worker;
            Box::pin(stream::linger(&client.stream, &worker.scratch, &client.deadline)).await;
        }
        Next::Reset => client.stream.reset_on_close(),
        Next::Upgrade => return Box::pin(connection.go_on_in_http2()).await,
    }
    client.worker.buffers.give(std::mem::take(&mut connection.input));
}

impl Connection {
    /// One request and its answer.
    async fn turn(&mut self) -> Next {
        if self.input.is_empty() && self.idle().await.is_err() {
            return Next::Close;
        }
        match self.head().await {
            Ok(Some(Taken::Request(request))) => {
                self.input.consume(request.head);
                if self.upgrade.is_some() {
                    return Next::Upgrade;
                }
                exchange::run(self, request).await
            }
            Ok(Some(Taken::Answered(request, reply))) => {
                self.input.consume(request.head);
                let complete = request.body.is_over();
                exchange::reply(&self.client, &request, complete, &reply).await
            }
            Ok(None) => Next::Close,
            Err(reply) => {
                let entry = Entry::of_connection(&self.client.session, "HTTP/1.1");
                self.client.answered_here(&reply, reply.record(), None, entry);
                self.last_words(&reply).await
            }
        }
    }

    /// Waits for a request without holding on to memory.
    async fn idle(&mut self) -> io::Result<()> {
        let worker = &self.client.worker;
        worker.buffers.give(std::mem::take(&mut self.input));
        if self.request.capacity() > MAX_HEAD {
            self.request = Vec::new();
        }
        self.client.deadline.set_idle(if worker.ending.get() {
            CLIENT_IDLE_ENDING
        } else {
            CLIENT_IDLE
        });
        stream::readable(&self.client.stream, &self.client.deadline).await?;
        self.input = worker.buffers.take();
        Ok(())
    }

    /// The head of the next request; `None` if there is none.
    async fn head(&mut self) -> Result<Option<Taken>, Reply> {
        self.client.deadline.set(REQUEST_HEAD);
        let mut looked_at = 0;
        loop {
            self.skip_empty_lines();
            // Whole heads mostly come in one piece; of others only the end is looked for until it is there.
            if may_be_complete(self.input.bytes(), looked_at) {
                match self.take_head(None)? {
                    Head::Incomplete => {}
                    Head::Taken(taken) => return Ok(Some(taken)),
                    Head::Verify(check) => return self.verified(check).await,
                }
            }
            looked_at = self.input.len();
            if looked_at >= MAX_HEAD {
                return Err(Reply::refused(Refusal::TooLarge));
            }
            let room = self.input.room(MAX_HEAD);
            match stream::read(&self.client.stream, room, &self.client.deadline).await {
                Ok(0) => return Ok(None),
                Ok(n) => self.input.filled(n),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Reply::too_slow()),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Reads the head in the input, if it is complete, decides what becomes of the request, and writes the head for
    /// the endpoint.
    fn take_head(&mut self, verified: Option<&Verified>) -> Result<Head, Reply> {
        let mut fields = request::fields();
        let read = request::read(self.input.bytes(), &mut fields).map_err(Reply::refused)?;
        let Some((request, head)) = read else { return Ok(Head::Incomplete) };
        let session = &self.client.session;
        let ids = Ids::new(&mut session.worker.random.borrow_mut());
        let entry = || Entry::of_http1(session, &request, &head, &ids);
        if let Some(reply) = session.shed() {
            session.answered_here(&reply, reply.record(), None, entry());
            return Ok(Head::Taken(Taken::Answered(request, reply)));
        }
        if !session.is_secure()
            && let Some(upgrade) = http2::wanted(&request, &head)
        {
            self.upgrade = Some(Box::new(upgrade));
            return Ok(Head::Taken(Taken::Request(request)));
        }
        let way = match session.straight() {
            Some(way) => way,
            None => match decide(session, &request, &head, verified) {
                Decided::Go(way) => way,
                Decided::Verify(check) => return Ok(Head::Verify(check)),
                Decided::Answer(reply, route) => {
                    session.answered_here(&reply, reply.record(), route.as_ref(), entry());
                    return Ok(Head::Taken(Taken::Answered(request, reply)));
                }
            },
        };
        let local = match head.host {
            Some(_) => String::new(),
            None => session.local.to_string(),
        };
        if is_bridged(&way, &request) {
            self.bridged = Some(Box::new(RequestHead::from_http1(&request, &head, &local)));
            self.way = Some(way);
            return Ok(Head::Taken(Taken::Request(request)));
        }
        let origin = Origin {
            peer: &session.peer_text,
            local: &local,
            trusted: session.trusted,
            secure: session.is_secure(),
            lines: session.secure.as_ref().map_or(&[][..], |secure| &secure.lines),
            ids: Some(ids),
        };
        self.log = entry();
        if way.changes_nothing() {
            forward::write(&head, &request, origin, Changes::default(), &mut self.request);
        } else {
            let added = way.request_fields();
            let changes = Changes {
                target: way.target(),
                host: way.host(),
                drops: Some(&|name: &str| way.drops(name)),
                added: &added,
            };
            forward::write(&head, &request, origin, changes, &mut self.request);
        }
        self.way = Some(way);
        Ok(Head::Taken(Taken::Request(request)))
    }

    /// Checks a password where it holds up nobody, and decides again.
    async fn verified(&mut self, check: AuthCheck) -> Result<Option<Taken>, Reply> {
        let checked = tokio::task::spawn_blocking(move || check.run()).await;
        let checked = checked.map_err(|_| Reply::unverified())?;
        match self.take_head(Some(&checked))? {
            Head::Taken(taken) => Ok(Some(taken)),
            // The same head, and a password that was checked a moment ago.
            Head::Incomplete | Head::Verify(_) => Err(Reply::unverified()),
        }
    }

    /// Clients may send an empty line before a request (RFC 9112, 2.2).
    fn skip_empty_lines(&mut self) {
        while self.input.bytes().starts_with(b"\r\n") {
            self.input.consume(2);
        }
    }

    /// Agrees to speak HTTP/2 from here on.
    async fn go_on_in_http2(mut self) {
        let Some(mut upgrade) = self.upgrade.take() else { return };
        upgrade.input = std::mem::take(&mut self.input);
        let agreed =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        let client = self.client;
        if stream::write_all(&client.stream, agreed, &client.deadline).await.is_ok() {
            http2::serve_upgraded(client, *upgrade).await;
        }
    }

    async fn last_words(&mut self, reply: &Reply) -> Next {
        let bytes = reply.write(false, false);
        match stream::write_all(&self.client.stream, &bytes, &self.client.deadline).await {
            Ok(()) => Next::Linger,
            Err(_) => Next::Close,
        }
    }
}

/// What has become of a head.
enum Head {
    Incomplete,
    Taken(Taken),
    /// A password has to be checked first.
    Verify(AuthCheck),
}

/// A request, and what was decided about it.
enum Taken {
    Request(Request),
    /// It is answered by the proxy itself.
    Answered(Request, Reply),
}

fn decide(
    session: &Session,
    request: &Request,
    head: &request::Head<'_, '_>,
    verified: Option<&Verified>,
) -> Decided {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (head.target, None),
    };
    let length = match &request.body {
        Body::Length(length) => Some(*length),
        Body::Chunked(_) | Body::UntilClose => None,
    };
    let fields = Http1Fields(head.headers);
    let view = RequestView {
        method: head.method,
        host: head.host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default(),
        path,
        query,
        client: session.peer.ip().to_canonical(),
        tls: session.is_secure(),
        sni: session.secure.as_ref().and_then(|secure| secure.sni.as_deref()),
        headers: &fields,
    };
    session.decide(&view, length, verified)
}

/// Whether a request goes the slower way, on which bodies are looked at and services speak other versions.
fn is_bridged(way: &Way, request: &Request) -> bool {
    if request.upgrade && way.cluster.protocol() != Protocol::Http2 {
        return false;
    }
    let counts_body = way.max_body().is_some() && matches!(request.body, Body::Chunked(_));
    way.cluster.protocol() == Protocol::Http2 || way.compresses() || counts_body
}

/// Whether `input`, of which the first `looked_at` bytes were no complete head, may be one now.
fn may_be_complete(input: &[u8], looked_at: usize) -> bool {
    if looked_at == 0 {
        return !input.is_empty();
    }
    let from = looked_at.saturating_sub(2);
    // An empty line, however it is ended: bad line ends are for the parser to find.
    memchr::memchr_iter(b'\n', &input[from..]).any(|at| {
        let before = &input[..from + at];
        let before = before.strip_suffix(b"\r").unwrap_or(before);
        before.ends_with(b"\n")
    })
}

#[cfg(test)]
mod tests {
    use super::may_be_complete;

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut() {
        for head in ["GET / HTTP/1.1\r\nA: b\r\n\r\n", "GET / HTTP/1.1\nA: b\n\n"] {
            let bytes = head.as_bytes();
            for looked_at in 1..bytes.len() {
                assert!(may_be_complete(bytes, looked_at), "{looked_at}");
                for end in looked_at + 1..bytes.len() {
                    assert!(!may_be_complete(&bytes[..end], looked_at), "{looked_at} {end}");
                }
            }
        }
    }
}
