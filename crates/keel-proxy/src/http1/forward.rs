//! The head of a request as it goes to an endpoint: rewritten in one pass over the one that came.
//!
//! What is for this hop only is left out; `X-Forwarded-*`, `X-Request-Id` and `traceparent` are added; a route
//! may change the target, the host and fields; all else passes as it came.

use httparse::Header;

use crate::http1::fields::{Copier, Field, offset};
use crate::http1::request::{Head, Request};
use crate::ids::Ids;

/// What the proxy knows of where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The client's address.
    pub peer: &'a str,
    /// The address it connected to, for requests without `Host`.
    pub local: &'a str,
    /// What the client says that an earlier proxy said is believed.
    pub trusted: bool,
    /// It came over TLS.
    pub secure: bool,
    /// Further header lines that speak of the connection.
    pub lines: &'a [u8],
    /// For requests that have no ids yet.
    pub ids: Option<Ids>,
}

/// What a route changes.
#[derive(Clone, Copy, Default)]
pub struct Changes<'a> {
    /// Another path and query.
    pub target: Option<&'a str>,
    /// Another host.
    pub host: Option<&'a str>,
    /// Fields that do not pass.
    pub drops: Option<&'a dyn Fn(&str) -> bool>,
    /// Fields that are added.
    pub added: &'a [(&'a str, &'a str)],
}

impl<'a> Changes<'a> {
    /// Whether fields of this name do not pass.
    fn drops(&self, name: &str) -> bool {
        self.drops.is_some_and(|drops| drops(name))
    }

    /// What is added under this name.
    fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let same = self.added.iter().filter(move |(added, _)| added.eq_ignore_ascii_case(name));
        same.map(|(_, value)| *value)
    }
}

/// Writes the head for the endpoint to `out` (which it clears).
pub fn write(
    head: &Head<'_, '_>,
    request: &Request,
    origin: Origin<'_>,
    changes: Changes<'_>,
    out: &mut Vec<u8>,
) {
    out.clear();
    let target = changes.target.unwrap_or(head.target);
    for part in [head.method, " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    copy(head, request, origin.trusted, changes, out);
    add(head, request, origin, changes, out);
}

/// Copies what is not only for this hop.
fn copy(
    head: &Head<'_, '_>,
    request: &Request,
    trusted: bool,
    changes: Changes<'_>,
    out: &mut Vec<u8>,
) {
    let Some(first) = head.headers.first() else { return };
    let mut copier = Copier::new(head.bytes, offset(head.bytes, first.name.as_bytes()));
    let mut length_seen = false;
    let dropped = |header: &Header<'_>| changes.drops(header.name);
    for header in head.headers {
        let pass = match Field::of(header.name) {
            Field::Connection | Field::Hop | Field::ForwardedFor | Field::Host => false,
            Field::ClientCertificate | Field::Forwarded | Field::Alias => false,
            Field::Upgrade => request.upgrade,
            Field::Expect => request.expects_continue,
            Field::ContentLength => !std::mem::replace(&mut length_seen, true),
            Field::TransferEncoding => true,
            Field::ForwardedHost | Field::ForwardedProto | Field::ForwardedOther if !trusted => {
                false
            }
            Field::ForwardedHost | Field::ForwardedProto | Field::ForwardedOther => {
                !head.nominates(header.name) && !dropped(header)
            }
            Field::IdempotencyKey | Field::RequestId | Field::TraceParent | Field::Other => {
                !head.nominates(header.name) && !dropped(header)
            }
        };
        if !pass {
            copier.skip(header, out);
        }
    }
    copier.finish(out);
}

/// Adds what the proxy has to say, and the empty line.
fn add(
    head: &Head<'_, '_>,
    request: &Request,
    origin: Origin<'_>,
    changes: Changes<'_>,
    out: &mut Vec<u8>,
) {
    let asked = head.host.unwrap_or(origin.local.as_bytes());
    let host = changes.host.map_or(asked, str::as_bytes);
    let scheme: &[u8] = if origin.secure { b"https" } else { b"http" };
    let mut line = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    };
    // What the route says of it itself stands, as what an earlier proxy said does unless it has not passed.
    let said = |name: &str, found: bool| {
        let passed = found && !head.nominates(name) && !changes.drops(name);
        passed || changes.values(name).next().is_some()
    };
    let (found, trusted) = (&head.found, origin.trusted);
    line("Host: ", host);
    if !said("x-forwarded-host", trusted && found.forwarded_host) {
        line("X-Forwarded-Host: ", asked);
    }
    if !said("x-forwarded-proto", trusted && found.forwarded_proto) {
        line("X-Forwarded-Proto: ", scheme);
    }
    if request.upgrade {
        line("Connection: ", b"Upgrade");
    }
    if let Some(ids) = origin.ids {
        if !said("x-request-id", found.identified) {
            line("X-Request-Id: ", &ids.request());
        }
        if !said("traceparent", found.traced) {
            line("traceparent: ", &ids.trace());
        }
    }
    chain(head, changes, Field::ForwardedFor, b"X-Forwarded-For: ", origin.peer.as_bytes(), out);
    if said("forwarded", found.forwarded) {
        let own = forwarded(origin.peer, scheme);
        chain(head, changes, Field::Forwarded, b"Forwarded: ", own.as_bytes(), out);
    }
    out.extend_from_slice(origin.lines);
    for (name, value) in changes.added {
        if !matches!(Field::of(name), Field::ForwardedFor | Field::Forwarded) {
            for part in [*name, ": ", *value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// One field with what earlier proxies (and the route) said and our own word, as many programs read only the first or
/// the last of several fields.
fn chain(
    head: &Head<'_, '_>,
    changes: Changes<'_>,
    field: Field,
    name: &[u8],
    own: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(name);
    let same = head.headers.iter().filter(|h| Field::of(h.name) == field && !h.value.is_empty());
    let earlier = same.filter(|h| !changes.drops(h.name)).map(|h| h.value);
    let set = changes.added.iter().filter(|(name, _)| Field::of(name) == field);
    for value in earlier.chain(set.map(|(_, value)| value.as_bytes())) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(own);
    out.extend_from_slice(b"\r\n");
}

/// RFC 7239, 4. It is continued where a client or an earlier proxy has begun it.
pub fn forwarded(peer: &str, scheme: &[u8]) -> String {
    let scheme = String::from_utf8_lossy(scheme);
    if peer.contains(':') {
        format!("for=\"[{peer}]\";proto={scheme}")
    } else {
        format!("for={peer};proto={scheme}")
    }
}

/// Both steps, without a route; for tests and fuzzing.
pub fn read_and_write(
    input: &[u8],
    origin: Origin<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Request>, crate::http1::request::Refusal> {
    let mut fields = crate::http1::request::fields();
    let Some((request, head)) = crate::http1::request::read(input, &mut fields)? else {
        return Ok(None);
    };
    write(&head, &request, origin, Changes::default(), out);
    Ok(Some(request))
}
