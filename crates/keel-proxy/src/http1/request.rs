//! The head of a request, judged strictly.
//!
//! Whatever two programs could understand differently is refused (RFC 9112, 11.2): length and coding together,
//! differing lengths, other codings, bare line feeds, folded lines, white space before a colon.

use std::mem::MaybeUninit;

use httparse::Header;

use crate::http1::body::Body;
use crate::http1::fields::{Connection, Field, Framing, lines_end_properly};
use crate::limits::{MAX_FIELDS, MAX_HEAD};

/// What a proxy needs to know of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Length of its head in the input.
    pub head: usize,
    /// May be sent twice with the effect of once (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Its answer has no body.
    pub is_head: bool,
    /// Of a client that knows no chunks.
    pub http10: bool,
    /// The client would use the connection again.
    pub keep_alive: bool,
    /// Wants to speak another protocol afterwards.
    pub upgrade: bool,
    /// Waits for `100 Continue`.
    pub expects_continue: bool,
    pub body: Body,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP, or open to misunderstanding.
    Malformed(&'static str),
    /// The head is too long or has too many fields.
    TooLarge,
    /// An `Expect` other than `100-continue`.
    Expectation,
    /// `CONNECT`.
    Method,
    /// Not HTTP/1.
    Version,
}

/// Memory for header fields while a head is looked at.
pub type Fields<'b> = [MaybeUninit<Header<'b>>; MAX_FIELDS];

/// No fields yet.
pub const fn fields<'b>() -> Fields<'b> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS]
}

/// The head of a request as it lies in the input.
#[derive(Debug)]
pub struct Head<'h, 'b> {
    pub method: &'b str,
    /// Path and query, or `*`.
    pub target: &'b str,
    /// Whom the request is for; absent only in HTTP/1.0.
    pub host: Option<&'b [u8]>,
    pub headers: &'h [Header<'b>],
    pub(super) bytes: &'b [u8],
    pub(super) found: Found<'b>,
}

/// Reads the head at the start of `input`. `None`: there is more to come.
pub fn read<'h, 'b>(
    input: &'b [u8],
    fields: &'h mut Fields<'b>,
) -> Result<Option<(Request, Head<'h, 'b>)>, Refusal> {
    let mut parsed = httparse::Request::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head = match config.parse_request_with_uninit_headers(&mut parsed, input, fields) {
        Ok(httparse::Status::Complete(head)) if head <= MAX_HEAD => head,
        Ok(httparse::Status::Complete(_)) => return Err(Refusal::TooLarge),
        Ok(httparse::Status::Partial) if input.len() >= MAX_HEAD => return Err(Refusal::TooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(httparse::Error::Version) if names_a_version(input) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed("it does not follow the grammar of HTTP/1.1")),
    };
    if !lines_end_properly(&input[..head]) {
        return Err(Refusal::Malformed("a line ends without a carriage return"));
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Refusal::Malformed("its first line is incomplete"));
    };
    if method == "CONNECT" {
        return Err(Refusal::Method);
    }
    let headers: &'h [Header<'b>] = parsed.headers;
    let found = Found::read(headers, version == 0)?;
    let request = found.request(method, version == 0, head);
    if target == "*" && method != "OPTIONS" {
        return Err(Refusal::Malformed("only OPTIONS is about no path"));
    }
    let (target, host) = split_target(target, found.host)?;
    if host.is_none() && version == 1 {
        return Err(Refusal::Malformed("it has no Host"));
    }
    Ok(Some((request, Head { method, target, host, headers, bytes: &input[..head], found })))
}

/// Whether the first line has three words of which the last one is a version: it is another one then. The parser takes
/// whatever follows a second space for one.
fn names_a_version(input: &[u8]) -> bool {
    let line = input.split(|b| *b == b'\n').find(|line| !line.trim_ascii().is_empty());
    let mut words = line.unwrap_or_default().trim_ascii_end().split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let whole = |word: Option<&[u8]>| word.is_some_and(|word| !word.is_empty());
    let is_version = |word: &[u8]| match word.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor]) => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    };
    whole(method) && whole(target) && version.is_some_and(is_version) && words.next().is_none()
}

/// Whether `value` can be a host with a port or without (RFC 9110, 7.2). Not the whole grammar, but nothing that one
/// program could take for the end of it and another not.
pub fn is_host(value: &[u8]) -> bool {
    value.iter().copied().all(is_of_host)
}

impl Head<'_, '_> {
    /// Whether a field is for this hop only.
    pub fn is_of_this_hop(&self, header: &Header<'_>) -> bool {
        match Field::of(header.name) {
            Field::Connection | Field::Hop | Field::TransferEncoding | Field::Upgrade => true,
            Field::Host | Field::Expect | Field::Alias => true,
            Field::ContentLength => false,
            _ => self.found.connection.nominates(header.name),
        }
    }

    /// Whether the client says that fields of this name are for this hop only.
    pub fn nominates(&self, name: &str) -> bool {
        self.found.connection.nominates(name)
    }

    /// Whether it asks to go on in HTTP/2 (RFC 7540, 3.2).
    pub fn asks_for_http2(&self) -> bool {
        self.found.h2c && self.found.connection.upgrade && self.found.http2_settings
    }
}

/// The target for the endpoint and the host it means. A target with a host of its own has to name the same as `Host`:
/// a client must see to that (RFC 9112, 3.2.2), and what came before us may have gone by the other one.
fn split_target<'a>(
    target: &'a str,
    host: Option<&'a [u8]>,
) -> Result<(&'a str, Option<&'a [u8]>), Refusal> {
    if !is_of_target_characters(target) {
        return Err(Refusal::Malformed("its target has a character that belongs in none"));
    }
    if target.starts_with('/') || target == "*" {
        return Ok((target, host));
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let rest = rest.ok_or(Refusal::Malformed("its target is neither a path nor an address"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() || !authority.bytes().all(is_of_host) || path.starts_with('?') {
        return Err(Refusal::Malformed("its target is neither a path nor an address"));
    }
    if host.is_some_and(|host| !host.eq_ignore_ascii_case(authority.as_bytes())) {
        return Err(Refusal::Malformed("its Host is not the host of its target"));
    }
    Ok((if path.is_empty() { "/" } else { path }, Some(authority.as_bytes())))
}

/// Whether `target` has only characters of a target. `{|}^[]\` belong in none either, nor the backtick in a query, but
/// browsers send them and all understand them alike.
fn is_of_target_characters(target: &str) -> bool {
    let mut in_query = false;
    target.bytes().all(|byte| {
        in_query |= byte == b'?';
        byte.is_ascii_graphic() && !b"\"#<>".contains(&byte) && (byte != b'`' || in_query)
    })
}

/// Characters of a host and its port, whether from `Host` or from the target.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"/?#@\\,".contains(&byte)
}

/// What the header fields say.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    pub connection: Connection<'a>,
    pub framing: Framing,
    host: Option<&'a [u8]>,
    expects_continue: bool,
    pub upgrade: bool,
    /// HTTP/2 is among the protocols to upgrade to, and what follows would pass unseen: there is no other upgrade.
    http2: bool,
    h2c: bool,
    http2_settings: bool,
    pub forwarded_for: bool,
    pub forwarded_proto: bool,
    pub forwarded_host: bool,
    pub forwarded: bool,
    pub traced: bool,
    pub identified: bool,
    keyed: bool,
}

impl<'a> Found<'a> {
    fn read(headers: &[Header<'a>], http10: bool) -> Result<Self, Refusal> {
        let mut found = Self::default();
        for header in headers {
            found.field(header)?;
        }
        if found.framing.chunked && found.framing.length.is_some() {
            return Err(Refusal::Malformed("it has both a Content-Length and a Transfer-Encoding"));
        }
        if found.framing.chunked && http10 {
            return Err(Refusal::Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        Ok(found)
    }

    fn field(&mut self, header: &Header<'a>) -> Result<(), Refusal> {
        match Field::of(header.name) {
            Field::Connection => self
                .connection
                .add(header.value)
                .map_err(|_| Refusal::Malformed("its Connection field is not understood"))?,
            Field::ContentLength => {
                self.framing
                    .add_length(header.value)
                    .map_err(|_| Refusal::Malformed("its Content-Length is not one number"))?;
            }
            Field::TransferEncoding => self
                .framing
                .add_coding(header.value)
                .map_err(|_| Refusal::Malformed("its Transfer-Encoding is not just chunked"))?,
            Field::Host => {
                if self.host.replace(header.value).is_some() {
                    return Err(Refusal::Malformed("it has more than one Host"));
                }
                if !is_host(header.value) {
                    return Err(Refusal::Malformed("its Host is not a host"));
                }
            }
            Field::Expect if header.value.eq_ignore_ascii_case(b"100-continue") => {
                self.expects_continue = true;
            }
            Field::Expect => return Err(Refusal::Expectation),
            Field::Upgrade => {
                self.upgrade = true;
                let mut protocols = header.value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
                self.h2c |= protocols.clone().any(|p| p.eq_ignore_ascii_case(b"h2c"));
                self.http2 |= protocols
                    .any(|p| p.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"h2")));
            }
            Field::ForwardedFor => self.forwarded_for = true,
            Field::ForwardedProto => self.forwarded_proto = true,
            Field::ForwardedHost => self.forwarded_host = true,
            Field::Forwarded => self.forwarded = true,
            Field::TraceParent => self.traced = true,
            Field::RequestId => self.identified = true,
            Field::IdempotencyKey => self.keyed = true,
            Field::Hop if header.name.eq_ignore_ascii_case("http2-settings") => {
                self.http2_settings = true;
            }
            Field::ClientCertificate | Field::Hop | Field::ForwardedOther => {}
            Field::Alias | Field::Other => {}
        }
        Ok(())
    }

    fn request(&self, method: &str, http10: bool, head: usize) -> Request {
        let body = self.framing.body(Body::EMPTY);
        // With an Idempotency-Key the client says that its request may come twice
        // (draft-ietf-httpapi-idempotency-key-header).
        let idempotent =
            self.keyed || ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"].contains(&method);
        let upgrade = self.upgrade && !self.http2;
        let upgrade = upgrade && self.connection.upgrade && !http10 && body.is_over();
        Request {
            head,
            idempotent: idempotent && !upgrade,
            is_head: method == "HEAD",
            http10,
            keep_alive: if http10 { self.connection.keep_alive } else { !self.connection.close },
            upgrade,
            expects_continue: self.expects_continue && !http10 && !body.is_over(),
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::body::Chunks;
    use crate::http1::forward::Origin;

    const ORIGIN: Origin<'static> = Origin {
        peer: "10.0.0.9",
        local: "127.0.0.1:80",
        trusted: true,
        secure: false,
        lines: b"",
        ids: None,
    };

    fn parse(
        input: &[u8],
        origin: Origin<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Request>, Refusal> {
        crate::http1::forward::read_and_write(input, origin, out)
    }

    fn read(input: &str) -> Result<(Request, String), Refusal> {
        let mut out = Vec::new();
        let request = parse(input.as_bytes(), ORIGIN, &mut out)?.expect("complete");
        Ok((request, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn a_plain_request_gets_its_forwarding_fields() {
        let (request, out) =
            read("GET /a?b=c HTTP/1.1\r\nHost: shop\r\nAccept: */*\r\n\r\nrest").unwrap();
        assert_eq!(
            out,
            "GET /a?b=c HTTP/1.1\r\nAccept: */*\r\nHost: shop\r\nX-Forwarded-Host: shop\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-For: 10.0.0.9\r\n\r\n"
        );
        assert!(request.idempotent && request.keep_alive && request.body.is_over());
        assert_eq!(request.head, 48);
    }

    #[test]
    fn fields_of_one_hop_are_left_out_and_earlier_proxies_kept() {
        let (request, out) = read(
            "POST / HTTP/1.1\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nHost: a\r\nKeep-Alive: 5\r\n\
             X-Forwarded-For: 1.1.1.1\r\nTE: trailers\r\nX-Forwarded-Proto: https\r\nContent-Length: 3\r\n\
             X-Forwarded-For: 2.2.2.2\r\nUpgrade: h2c\r\nContent-Length: 3\r\nEmpty:\r\nX-Forwarded-Host: b\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            out,
            "POST / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nContent-Length: 3\r\nEmpty:\r\n\
             X-Forwarded-Host: b\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.9\r\n\r\n"
        );
        assert!(!request.idempotent && !request.keep_alive && !request.upgrade);
        assert_eq!(request.body, Body::Length(3));
    }

    #[test]
    fn kinds_of_requests() {
        let (request, out) =
            read("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .unwrap();
        assert!(request.upgrade && !request.idempotent, "a tunnel can't be repeated");
        assert!(out.contains("Upgrade: websocket\r\n") && out.contains("Connection: Upgrade\r\n"));

        for protocols in ["h2c", "websocket, H2C", "h2c\r\nUpgrade: websocket"] {
            let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: ";
            let (request, out) = read(&format!("{head}{protocols}\r\n\r\n")).unwrap();
            assert!(!request.upgrade && !out.contains("Upgrade"), "{protocols}: {out}");
        }

        let (request, _) =
            read("POST /pay HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"k1\"\r\n\r\n").unwrap();
        assert!(request.idempotent, "its client says that it may come twice");

        let (request, out) =
            read("GET http://other:81/x HTTP/1.1\r\nHost: OTHER:81\r\n\r\n").unwrap();
        assert!(out.starts_with("GET /x HTTP/1.1\r\nHost: other:81\r\n"), "{out}");
        let (_, out) = read("GET http://other HTTP/1.0\r\n\r\n").unwrap();
        assert!(out.starts_with("GET / HTTP/1.1\r\nHost: other\r\n"), "{out}");
        assert!(!request.http10);

        let (_, out) = read("GET /{a|b}^[c]?`d\\ HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(out.starts_with("GET /{a|b}^[c]?`d\\ "), "{out}");

        let (request, out) = read("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(request.http10 && !request.keep_alive);
        assert!(out.contains("\r\nHost: 127.0.0.1:80\r\n"), "{out}");
        let (request, _) = read("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        assert!(request.keep_alive);

        let (request, out) = read(
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n",
        )
        .unwrap();
        assert!(request.expects_continue && request.idempotent);
        assert_eq!(request.body, Body::Chunked(Chunks::NEW));
        assert!(out.contains("Transfer-Encoding: Chunked\r\n") && out.contains("Expect"), "{out}");
    }

    fn malformed(input: &str) {
        let result = read(input);
        assert!(matches!(result, Err(Refusal::Malformed(_))), "{input:?}: {result:?}");
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "it is a table")]
    fn smuggling_table() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: -3\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 9223372036854775807\r\n",
            "Content-Length: 4503599627370496\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length : 3\r\n",
            " Content-Length: 3\r\n",
            "A: b\r\n folded\r\n",
            "A: b\n",
            "A: b\r\nB: c\n",
            "A: b\0c\r\n",
            "A: b\rc\r\n",
            "A\0: b\r\n",
            "A b: c\r\n",
            ": c\r\n",
            "no colon\r\n",
            "Host: b\r\n",
            "Connection: a,b,c,d,e,f,g,h,i\r\n",
        ] {
            malformed(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        }
    }

    #[test]
    fn first_lines_and_hosts_that_are_none() {
        malformed("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
        malformed("GET / HTTP/1.1\r\n\r\n");
        malformed("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n");
        malformed("GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
        malformed("GET / HTTP/1.1\nHost: a\n\n");
        malformed("GET * HTTP/1.1\r\nHost: a\r\n\r\n");
        malformed("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n");
        malformed("GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n");
        malformed("GET  / HTTP/1.1\r\nHost: a\r\n\r\n");
        malformed("GET a HTTP/1.1\r\nHost: a\r\n\r\n");
        for target in [
            "http://u@h/",
            "http://a#b/",
            "http://a,b/",
            "http://a\\b/",
            "http:///",
            "http://?",
            "/a#b",
            "/<a",
            "/a>",
            "/a?\"",
            "/`",
            "/\u{e4}",
            "/\x7f",
            "//a\tb",
        ] {
            malformed(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        malformed("G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(read("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Refusal::Method));
        for line in ["GET /a b HTTP/1.1", "GET /a  HTTP/1.1", "GET /a b HTTP/3.0", "GET / HTTP/1"] {
            malformed(&format!("{line}\r\nHost: a\r\n\r\n"));
        }
        assert_eq!(read("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Err(Refusal::Version));
        assert_eq!(
            read("GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"),
            Err(Refusal::Expectation)
        );
        let fields = "A: b\r\n".repeat(MAX_FIELDS + 1);
        assert_eq!(
            read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")),
            Err(Refusal::TooLarge)
        );
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(MAX_HEAD));
        assert_eq!(read(&long), Err(Refusal::TooLarge));
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(
            lines in prop::collection::vec("[ -~\t]{0,30}(\r\n|\n|\r|)", 0..10),
            bytes in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let mut out = Vec::new();
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines.concat());
            let _ = parse(head.as_bytes(), ORIGIN, &mut out);
            let _ = parse(&bytes, ORIGIN, &mut out);
        }

        #[test]
        fn what_is_passed_on_reads_the_same_again(
            fields in prop::collection::vec(
                "(Content-Length: [0-9]{1,3}|Transfer-Encoding: chunked|X-[a-z]{1,5}:[ -~]{0,9}|\
                 Connection: (close|keep-alive|x-a)|X-Forwarded-For: [0-9.]{0,7})", 0..6),
            method in "(GET|POST|HEAD)",
        ) {
            let head = format!("{method} /x HTTP/1.1\r\nHost: a\r\n{}\r\n",
                fields.iter().map(|f| format!("{f}\r\n")).collect::<String>());
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            if let Ok(Some(first)) = parse(head.as_bytes(), ORIGIN, &mut once) {
                let second = parse(&once, ORIGIN, &mut twice).unwrap().unwrap();
                prop_assert_eq!(second.head, once.len());
                prop_assert_eq!(second.body, first.body);
                prop_assert!(second.keep_alive);
            }
        }
    }
}
