//! The head of an answer: passed on as it came where nothing has to change, else rewritten in one pass.

use httparse::Header;

use crate::http1::body::{Body, Malformed};
use crate::http1::fields::{Connection, Copier, Field, Framing, lines_end_properly, offset};
use crate::http1::request::{Fields, Request, fields};
use crate::limits::MAX_HEAD;
use crate::route::AnswerChanges;

/// What a proxy needs to know of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Length of its head in the input.
    pub head: usize,
    pub status: u16,
    pub body: Body,
    /// The endpoint takes another request on this connection.
    pub reusable: bool,
    /// The client's connection can go on after it.
    pub keep_alive: bool,
    /// The head in `out` is to be sent instead of the one in the input.
    pub rewritten: bool,
    /// The client knows no chunks: send the content without them.
    pub unchunk: bool,
}

impl Response {
    /// It only announces another answer (RFC 9110, 15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// The head of an answer as it lies in the input.
#[derive(Debug)]
pub struct Head<'h, 'b> {
    pub headers: &'h [Header<'b>],
    bytes: &'b [u8],
    found: Found<'b>,
}

/// Reads the head at the start of `input`, the answer to `request`. The client's connection is to end after it
/// unless `keep_alive`. `None`: there is more to come.
pub fn read<'h, 'b>(
    input: &'b [u8],
    request: &Request,
    keep_alive: bool,
    fields: &'h mut Fields<'b>,
) -> Result<Option<(Response, Head<'h, 'b>)>, Malformed> {
    // The parser skips empty lines, which only a server may do (RFC 9112, 2.2). Here they would be what is left of
    // another answer.
    if input.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(Malformed);
    }
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head = match config.parse_response_with_uninit_headers(&mut parsed, input, fields) {
        Ok(httparse::Status::Complete(head)) if head <= MAX_HEAD => head,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(_) => return Err(Malformed),
    };
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Malformed);
    };
    let headers: &'h [Header<'b>] = parsed.headers;
    let mut found = Found::read(&input[..head], headers)?;
    found.empty = status < 200 || status == 204;
    found.must_change |= found.says_length_of_nothing();
    let upgrade = status == 101;
    let http10 = version == 0;
    if status < 100 || (upgrade && !request.upgrade) || (found.framing.chunked && http10) {
        return Err(Malformed);
    }
    let body = body_of(status, request, found.framing);
    let unchunk = request.http10 && found.framing.chunked;
    let keep_alive = keep_alive && body != Body::UntilClose && (!unchunk || body.is_over());
    let lasting = if http10 { found.connection.keep_alive } else { !found.connection.close };
    let response = Response {
        head,
        status,
        reusable: lasting
            && body != Body::UntilClose
            && !found.both_lengths()
            && !found.says_length_of_nothing()
            && !upgrade,
        keep_alive,
        rewritten: found.must_change || http10 || request.http10 || (!keep_alive && status >= 200),
        unchunk,
        body,
    };
    Ok(Some((response, Head { headers, bytes: &input[..head], found })))
}

impl Head<'_, '_> {
    /// Whether a field is for this hop only, or says how the body lies on it.
    pub fn is_of_this_hop(&self, header: &Header<'_>) -> bool {
        match Field::of(header.name) {
            Field::Connection | Field::Hop | Field::TransferEncoding | Field::Upgrade => true,
            Field::ContentLength => self.found.framing.chunked,
            _ => self.found.connection.nominates(header.name),
        }
    }

    fn write(
        &self,
        response: &Response,
        request: &Request,
        changes: Option<&AnswerChanges>,
        out: &mut Vec<u8>,
    ) {
        self.found.write(self.bytes, self.headers, response, changes, out);
        if let Some(changes) = changes {
            out.extend_from_slice(&changes.lines());
        }
        out.extend_from_slice(match (response.status, response.keep_alive) {
            (101, _) => b"Connection: Upgrade\r\n\r\n".as_slice(),
            (200.., false) => b"Connection: close\r\n\r\n",
            (_, true) if request.http10 => b"Connection: keep-alive\r\n\r\n",
            _ => b"\r\n",
        });
    }
}

/// As [`read`], and writes the head to `out` if it has to be rewritten, for our own reasons or for the `changes`.
pub fn parse(
    input: &[u8],
    request: &Request,
    keep_alive: bool,
    changes: Option<&AnswerChanges>,
    out: &mut Vec<u8>,
) -> Result<Option<Response>, Malformed> {
    let mut fields = fields();
    let Some((mut response, head)) = read(input, request, keep_alive, &mut fields)? else {
        return Ok(None);
    };
    let changes = changes.filter(|_| !response.is_interim());
    response.rewritten |= changes.is_some();
    if response.rewritten {
        head.write(&response, request, changes, out);
    }
    Ok(Some(response))
}

/// What the header fields say.
#[derive(Debug, Default)]
struct Found<'a> {
    connection: Connection<'a>,
    framing: Framing,
    /// Something in them is not to be passed on.
    must_change: bool,
    /// Lines end with a bare line feed: some home-made servers do that, and it is put right.
    bare: bool,
    /// The status is of an answer that can have no body (RFC 9110, 15.2 and 15.3.5).
    empty: bool,
}

impl<'a> Found<'a> {
    fn read(head: &[u8], headers: &[Header<'a>]) -> Result<Self, Malformed> {
        let bare = !lines_end_properly(head);
        let mut found = Self { bare, must_change: bare, ..Self::default() };
        for header in headers {
            match Field::of(header.name) {
                Field::Connection => {
                    found.connection.add(header.value)?;
                    found.must_change = true;
                }
                Field::ContentLength => {
                    found.must_change |= found.framing.add_length(header.value)?;
                }
                Field::TransferEncoding => found.framing.add_coding(header.value)?,
                Field::Hop => found.must_change = true,
                _ => {}
            }
        }
        found.must_change |= found.both_lengths();
        Ok(found)
    }

    fn both_lengths(&self) -> bool {
        self.framing.chunked && self.framing.length.is_some()
    }

    /// It says how long a body is that it cannot have. Somebody might believe it, and the endpoint itself might send
    /// one.
    fn says_length_of_nothing(&self) -> bool {
        self.empty && (self.framing.chunked || self.framing.length.is_some())
    }

    /// Writes the head without the empty line at its end.
    fn write(
        &self,
        head: &[u8],
        headers: &[Header<'_>],
        response: &Response,
        changes: Option<&AnswerChanges>,
        out: &mut Vec<u8>,
    ) {
        out.clear();
        let first = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
        let line = head[..first].trim_ascii_end();
        out.extend_from_slice(b"HTTP/1.1");
        out.extend_from_slice(&line[b"HTTP/1.1".len().min(line.len())..]);
        out.extend_from_slice(b"\r\n");
        let mut length_seen = false;
        let mut passes = |header: &Header<'_>| match Field::of(header.name) {
            Field::Connection | Field::Hop => false,
            Field::ContentLength | Field::TransferEncoding if self.empty => false,
            Field::ContentLength => {
                !std::mem::replace(&mut length_seen, true) && !self.framing.chunked
            }
            Field::TransferEncoding => !response.unchunk,
            Field::Upgrade => true,
            _ => {
                !self.connection.nominates(header.name)
                    && !changes.is_some_and(|changes| changes.drops(header.name))
            }
        };
        if self.bare {
            for header in headers.iter().filter(|h| passes(h)) {
                for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
            return;
        }
        let start = headers.first().map_or(first, |h| offset(head, h.name.as_bytes()));
        let mut copier = Copier::new(head, start);
        for header in headers.iter().filter(|h| !passes(h)) {
            copier.skip(header, out);
        }
        copier.finish(out);
    }
}

/// RFC 9112, 6.3.
fn body_of(status: u16, request: &Request, framing: Framing) -> Body {
    if request.is_head || status < 200 || status == 204 || status == 304 {
        return Body::EMPTY;
    }
    framing.body(Body::UntilClose)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::body::Chunks;

    fn request(head: &str) -> Request {
        let mut fields = super::super::request::fields();
        super::super::request::read(head.as_bytes(), &mut fields).unwrap().unwrap().0
    }

    fn get() -> Request {
        request("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    }

    fn read(
        request: &Request,
        keep_alive: bool,
        input: &str,
    ) -> Result<(Response, String), Malformed> {
        let mut out = Vec::new();
        let response =
            parse(input.as_bytes(), request, keep_alive, None, &mut out)?.expect("complete");
        let head =
            if response.rewritten { out } else { input.as_bytes()[..response.head].to_vec() };
        Ok((response, String::from_utf8(head).unwrap()))
    }

    #[test]
    fn the_usual_answer_passes_untouched() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n";
        let (response, _) = read(&get(), true, head).unwrap();
        assert!(!response.rewritten && response.reusable && response.keep_alive);
        assert_eq!(response.body, Body::Length(2));
    }

    #[test]
    fn what_is_of_one_hop_is_left_out() {
        let head = "HTTP/1.1 404 Not Found\r\nConnection: close, x\r\nx: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n";
        let (response, out) = read(&get(), true, head).unwrap();
        assert_eq!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n");
        assert!(!response.reusable && response.keep_alive);
        let (_, out) = read(&get(), false, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn where_bodies_end() {
        let body = |request: &Request, head: &str| read(request, true, head).unwrap().0.body;
        let chunked = Body::Chunked(Chunks::NEW);
        assert_eq!(body(&get(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), chunked);
        assert_eq!(body(&get(), "HTTP/1.1 200 OK\r\n\r\n"), Body::UntilClose);
        assert_eq!(body(&get(), "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n"), Body::EMPTY);
        assert_eq!(body(&get(), "HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n"), Body::EMPTY);
        assert_eq!(body(&get(), "HTTP/1.1 100 Continue\r\n\r\n"), Body::EMPTY);
        let head = request("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(body(&head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), Body::EMPTY);
    }

    #[test]
    fn both_lengths_become_one() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (response, out) = read(&get(), true, head).unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(!response.reusable);
    }

    #[test]
    fn what_has_no_body_has_no_length() {
        for length in ["Content-Length: 0", "Content-Length: 3", "Transfer-Encoding: chunked"] {
            for status in ["100 Continue", "103 Early Hints", "204 No Content"] {
                let head = format!("HTTP/1.1 {status}\r\n{length}\r\nA: b\r\n\r\n");
                let (response, out) = read(&get(), true, &head).unwrap();
                assert_eq!(out, format!("HTTP/1.1 {status}\r\nA: b\r\n\r\n"));
                assert!(!response.reusable && response.body.is_over());
            }
        }
        let (response, out) =
            read(&get(), true, "HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert!(
            response.reusable && out.contains("Content-Length"),
            "the length of another answer"
        );
    }

    #[test]
    fn old_clients_and_old_servers() {
        let old = request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let (response, out) =
            read(&old, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert!(response.unchunk && !response.keep_alive);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let (response, out) =
            read(&old, true, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n").unwrap();
        assert!(response.keep_alive);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n");
        let (response, out) =
            read(&get(), true, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n").unwrap();
        assert!(!response.reusable && response.keep_alive);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n");
    }

    #[test]
    fn home_made_line_ends_are_put_right() {
        let (_, out) = read(&get(), true, "HTTP/1.1 200 OK\nA: b\nContent-Length:1\n\n").unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 1\r\n\r\n");
    }

    #[test]
    fn upgrades() {
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(read(&get(), true, head), Err(Malformed), "nobody asked");
        let asked = request(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        let (_, out) = read(&asked, true, head).unwrap();
        assert_eq!(
            out,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        );
    }

    #[test]
    fn bad_ones() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\nHTTP/1.1 200 OK\n\n",
            " HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "hello\r\n\r\n",
        ] {
            assert_eq!(read(&get(), true, head), Err(Malformed), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(
            lines in prop::collection::vec("[ -~\t]{0,30}(\r\n|\n|\r|)", 0..10),
            keep_alive: bool,
        ) {
            let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", lines.concat());
            let _ = parse(head.as_bytes(), &get(), keep_alive, None, &mut Vec::new());
            let _ = parse(lines.concat().as_bytes(), &get(), keep_alive, None, &mut Vec::new());
        }
    }
}
