//! What header fields mean to a proxy, the same for requests and answers (RFC 9110, 7.6.1; RFC 9112, 6.3).

use httparse::Header;
use keel_route::request::passes_for;

use crate::http1::body::{Body, Chunks, Malformed};
use crate::limits::{MAX_BODY, MAX_NOMINATED};

/// Fields that a proxy looks at; all others pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Programs may take it for one of the others, by `_` for `-`: it does not pass.
    Alias,
    Connection,
    ContentLength,
    /// `X-Forwarded-Client-Cert`: only the proxy says it.
    ClientCertificate,
    Expect,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    /// `X-Forwarded-Port` and whatever else begins like it.
    ForwardedOther,
    ForwardedProto,
    /// Of one hop and of no interest: `Keep-Alive`, `Proxy-Connection`, `TE`, `HTTP2-Settings`.
    Hop,
    Host,
    IdempotencyKey,
    RequestId,
    TraceParent,
    TransferEncoding,
    Upgrade,
    Other,
}

impl Field {
    pub fn of(name: &str) -> Self {
        let is = |known: &str, field| {
            if name.eq_ignore_ascii_case(known) {
                field
            } else if passes_for(name, known) {
                Self::Alias
            } else {
                Self::forwarded(name)
            }
        };
        match name.len() {
            2 => is("te", Self::Hop),
            4 => is("host", Self::Host),
            6 => is("expect", Self::Expect),
            7 => is("upgrade", Self::Upgrade),
            10 if name.eq_ignore_ascii_case("connection") => Self::Connection,
            9 => is("forwarded", Self::Forwarded),
            10 => is("keep-alive", Self::Hop),
            11 => is("traceparent", Self::TraceParent),
            12 => is("x-request-id", Self::RequestId),
            14 if name.eq_ignore_ascii_case("http2-settings") => Self::Hop,
            14 => is("content-length", Self::ContentLength),
            15 if name.eq_ignore_ascii_case("idempotency-key") => Self::IdempotencyKey,
            15 => is("x-forwarded-for", Self::ForwardedFor),
            16 if name.eq_ignore_ascii_case("x-forwarded-host") => Self::ForwardedHost,
            16 => is("proxy-connection", Self::Hop),
            17 if name.eq_ignore_ascii_case("x-forwarded-proto") => Self::ForwardedProto,
            17 => is("transfer-encoding", Self::TransferEncoding),
            23 => is("x-forwarded-client-cert", Self::ClientCertificate),
            13.. => Self::forwarded(name),
            _ => Self::Other,
        }
    }

    /// By how it begins. All that do tell a service what an earlier proxy knows.
    fn forwarded(name: &str) -> Self {
        const START: &str = "x-forwarded-";
        match name.get(..START.len()) {
            Some(start) if start.eq_ignore_ascii_case(START) => Self::ForwardedOther,
            Some(start) if passes_for(start, START) => Self::Alias,
            _ => Self::Other,
        }
    }
}

/// What the `Connection` fields of a message say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection<'a> {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Other fields that are for this hop only.
    nominated: [Option<&'a str>; MAX_NOMINATED],
}

impl<'a> Connection<'a> {
    /// Reads one `Connection` field.
    pub fn add(&mut self, value: &'a [u8]) -> Result<(), Malformed> {
        let value = std::str::from_utf8(value).map_err(|_| Malformed)?;
        for option in value.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            if option.eq_ignore_ascii_case("close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case("keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case("upgrade") {
                self.upgrade = true;
            } else {
                let free = self.nominated.iter_mut().find(|n| n.is_none()).ok_or(Malformed)?;
                *free = Some(option);
            }
        }
        Ok(())
    }

    /// Whether a field of this name is for this hop only.
    pub fn nominates(&self, name: &str) -> bool {
        self.nominated.iter().flatten().any(|n| n.eq_ignore_ascii_case(name))
    }
}

/// `Content-Length` and `Transfer-Encoding` of a message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framing {
    pub length: Option<u64>,
    pub chunked: bool,
}

impl Framing {
    /// Reads a `Content-Length`; true if it repeats an earlier one. A different one is malformed.
    pub fn add_length(&mut self, value: &[u8]) -> Result<bool, Malformed> {
        // `u64::from_str` takes a sign and no bound on zeros; the grammar has digits only.
        if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
            return Err(Malformed);
        }
        let length = value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
        if length > MAX_BODY {
            return Err(Malformed);
        }
        match self.length.replace(length) {
            None => Ok(false),
            Some(earlier) if earlier == length => Ok(true),
            Some(_) => Err(Malformed),
        }
    }

    /// Reads a `Transfer-Encoding`: exactly `chunked`, once. Other codings nobody uses.
    pub fn add_coding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed);
        }
        self.chunked = true;
        Ok(())
    }

    /// The body that this announces; `absent` if it announces none.
    pub fn body(self, absent: Body) -> Body {
        match self {
            Self { chunked: true, .. } => Body::Chunked(Chunks::NEW),
            Self { length: Some(length), .. } => Body::Length(length),
            Self { .. } => absent,
        }
    }
}

/// Whether every line of `head` ends with CR LF. The parser also takes a bare LF, and a proxy that does when
/// others do not can be made to see other messages than they.
pub fn lines_end_properly(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

/// Copies header lines to `out` in runs, leaving some out.
#[derive(Debug)]
pub struct Copier<'a> {
    head: &'a [u8],
    /// What has not been copied yet begins here.
    run: usize,
}

impl<'a> Copier<'a> {
    /// A copier of the lines of `head` from `first`, the start of its first header line.
    pub fn new(head: &'a [u8], first: usize) -> Self {
        Self { head, run: first }
    }

    /// Copies up to `header` and leaves it out.
    pub fn skip(&mut self, header: &Header<'_>, out: &mut Vec<u8>) {
        let start = offset(self.head, header.name.as_bytes());
        out.extend_from_slice(&self.head[self.run..start]);
        // A value ends where its line does, give or take trailing white space.
        let from = if header.value.is_empty() {
            start + header.name.len()
        } else {
            offset(self.head, header.value) + header.value.len()
        };
        let end = memchr::memchr(b'\n', &self.head[from..]);
        self.run = end.map_or(self.head.len(), |end| from + end + 1);
    }

    /// Copies the rest, without the empty line at the end.
    pub fn finish(self, out: &mut Vec<u8>) {
        let rest = &self.head[self.run..];
        let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
        out.extend_from_slice(rest.strip_suffix(b"\r").unwrap_or(rest));
    }
}

/// Where `part`, a slice of `whole`, begins in it.
pub fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize).min(whole.len())
}
