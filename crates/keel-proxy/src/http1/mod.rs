//! HTTP/1: a client's connection, request after request.
//!
//! Requests on one connection are answered strictly in order; the next one is not looked at before the answer to
//! the one before it is complete. Idle connections hold no buffers.

mod body;
mod exchange;
pub mod fields;
pub mod forward;
mod relay;
pub mod request;
pub mod response;

use std::io;
use std::net::SocketAddr;

use keel_model::Protocol;

use crate::access::Entry;
use crate::bridge::head::RequestHead;
use crate::buffer::Buffer;
pub use crate::http1::body::Body;
use crate::http1::forward::{Changes, Origin};
pub use crate::http1::request::{Head, Refusal, Request, is_host};
use crate::http2::{self, Upgrade};
use crate::ids::Ids;
use crate::limits::{CLIENT_IDLE, CLIENT_IDLE_ENDING, MAX_HEAD, REQUEST_HEAD};
use crate::reply::Reply;
use crate::session::Client;
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
    /// Read from the client and not yet used.
    input: Buffer,
    /// The request as it goes to the endpoint: its head, and its body as far as it may have to be repeated.
    request: Vec<u8>,
    /// The head of the answer, if it had to be rewritten.
    response: Vec<u8>,
    /// The request in the form for a service of HTTP/2, if that is what it goes to.
    bridged: Option<Box<RequestHead>>,
    /// The request, as the first of a connection of HTTP/2.
    upgrade: Option<Box<Upgrade>>,
    /// The request's line in the access log, if that is on.
    log: Option<Box<Entry>>,
}

/// Serves a connection until it ends; `first` was read from it already.
pub async fn serve(client: Client, first: Buffer) {
    let mut connection = Connection {
        client,
        input: first,
        request: Vec::new(),
        response: Vec::new(),
        bridged: None,
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
        Next::Request | Next::Close => {}
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
            Ok(Some(request)) => {
                self.input.consume(request.head);
                if self.upgrade.is_some() {
                    return Next::Upgrade;
                }
                exchange::run(self, request).await
            }
            Ok(None) => Next::Close,
            Err(reply) => self.last_words(&reply).await,
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
    async fn head(&mut self) -> Result<Option<Request>, Reply> {
        self.client.deadline.set(REQUEST_HEAD);
        let mut looked_at = 0;
        loop {
            self.skip_empty_lines();
            // Whole heads mostly come in one piece; of others only the end is looked for until it is there.
            if may_be_complete(self.input.bytes(), looked_at)
                && let Some(request) = self.take_head()?
            {
                return Ok(Some(request));
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

    /// Reads the head in the input, if it is complete, and writes the one for the endpoint.
    fn take_head(&mut self) -> Result<Option<Request>, Reply> {
        let mut fields = request::fields();
        let read = request::read(self.input.bytes(), &mut fields).map_err(Reply::refused)?;
        let Some((request, head)) = read else { return Ok(None) };
        let session = &self.client.session;
        if !session.is_secure()
            && let Some(upgrade) = http2::wanted(&request, &head)
        {
            self.upgrade = Some(Box::new(upgrade));
            return Ok(Some(request));
        }
        let local = match head.host {
            Some(_) => String::new(),
            None => self.client.stream.local_addr().map_or_else(|_| "localhost".into(), text),
        };
        let ids = Ids::new(&mut session.worker.random.borrow_mut());
        let origin = Origin {
            peer: &session.peer_text,
            local: &local,
            secure: session.is_secure(),
            lines: session.secure.as_ref().map_or(&[][..], |secure| &secure.lines),
            ids: Some(ids),
        };
        if session.target.cluster().protocol() == Protocol::Http2 && !request.upgrade {
            self.bridged = Some(Box::new(RequestHead::from_http1(&request, &head, &local)));
            return Ok(Some(request));
        }
        self.log = Entry::of_http1(session, &request, &head, &ids);
        forward::write(&head, &request, origin, Changes::default(), &mut self.request);
        Ok(Some(request))
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
        if let Some(entry) = Entry::of_connection(&self.client.session, "HTTP/1.1") {
            entry.replied(reply);
        }
        let bytes = reply.write(false, false);
        match stream::write_all(&self.client.stream, &bytes, &self.client.deadline).await {
            Ok(()) => Next::Linger,
            Err(_) => Next::Close,
        }
    }
}

fn text(address: SocketAddr) -> String {
    address.to_string()
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
