//! The head of a request in a form that every version of HTTP can be made from.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, request, uri};
use keel_route::request::RequestView;

use crate::http1::fields::Field;
use crate::http1::forward::{self, Origin};
use crate::http1::{self, Refusal};
use crate::limits::MAX_FIELDS;
use crate::route::{self, MappedFields, Way};
use crate::session::Session;

/// A request without its body. Fields that are for one hop only are not in it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    /// Path and query, or `*`.
    pub target: String,
    /// Whom the request is for, as the caller said it.
    pub host: String,
    fields: MappedFields,
    /// Length of the body, where it is announced.
    pub length: Option<u64>,
    /// Wants to speak this protocol from here on (`websocket`).
    pub protocol: Option<String>,
    /// A caller of HTTP/2 waits for `100 Continue`.
    pub expects_continue: bool,
}

impl RequestHead {
    /// From a request of HTTP/2, whose framing and pseudo-fields the library has checked.
    pub fn from_http2(parts: request::Parts) -> Result<Self, Refusal> {
        let request::Parts { method, uri, mut headers, mut extensions, .. } = parts;
        let protocol = extensions.remove::<h2::ext::Protocol>().map(|p| p.as_str().to_owned());
        if method == Method::CONNECT && protocol.as_deref() != Some("websocket") {
            return Err(Refusal::Method);
        }
        join_cookies(&mut headers);
        if headers.len() > MAX_FIELDS {
            return Err(Refusal::TooLarge);
        }
        let uri::Parts { authority, path_and_query, .. } = uri.into_parts();
        let target = path_and_query.as_ref().map_or("/", |path| path.as_str()).to_owned();
        if !target.starts_with('/') && target != "*" {
            return Err(Refusal::Malformed("its path does not begin with a slash"));
        }
        let named = headers.remove(header::HOST);
        let host = match (authority, named) {
            (Some(authority), _) => authority.as_str().to_owned(),
            (None, Some(host)) => text(&host),
            (None, None) => return Err(Refusal::Malformed("it names no host")),
        };
        if !http1::is_host(host.as_bytes()) {
            return Err(Refusal::Malformed("its host is not a host"));
        }
        let length = length(&headers)?;
        let expectation = headers.remove(header::EXPECT);
        if expectation.as_ref().is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        {
            return Err(Refusal::Expectation);
        }
        for name in [header::TE, header::CONNECTION, header::TRANSFER_ENCODING] {
            headers.remove(name);
        }
        let expects_continue = expectation.is_some();
        let fields = MappedFields(headers);
        Ok(Self { method, target, host, fields, length, protocol, expects_continue })
    }

    /// From a request of HTTP/1.
    pub fn from_http1(
        request: &http1::Request,
        head: &http1::request::Head<'_, '_>,
        local: &str,
    ) -> Self {
        let mut headers = HeaderMap::with_capacity(head.headers.len());
        let mut protocol = None;
        for field in head.headers {
            // What else a client would like to speak is not passed on.
            if request.upgrade
                && Field::of(field.name) == Field::Upgrade
                && field.value.eq_ignore_ascii_case(b"websocket")
            {
                protocol = Some("websocket".to_owned());
            }
            if head.is_of_this_hop(field) {
                continue;
            }
            // The parser let pass only what these take as well.
            let name = HeaderName::from_bytes(field.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
                headers.append(name, value);
            }
        }
        let host = head
            .host
            .map_or_else(|| local.to_owned(), |host| String::from_utf8_lossy(host).into_owned());
        Self {
            method: Method::from_bytes(head.method.as_bytes()).unwrap_or(Method::GET),
            target: head.target.to_owned(),
            host,
            length: length(&headers).ok().flatten(),
            fields: MappedFields(headers),
            protocol,
            expects_continue: false,
        }
    }

    /// As routes see it.
    pub fn view<'v>(&'v self, session: &'v Session) -> RequestView<'v> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target.as_str(), None),
        };
        RequestView {
            method: self.method.as_str(),
            host: &self.host,
            path,
            query,
            client: session.peer.ip().to_canonical(),
            tls: session.is_secure(),
            sni: session.secure.as_ref().and_then(|secure| secure.sni.as_deref()),
            headers: &self.fields,
        }
    }

    /// Takes out what nobody but a proxy says, where the client is not believed to be one.
    pub fn distrust(&mut self, session: &Session) {
        let headers = &mut self.fields.0;
        let passes = |name: &HeaderName| match Field::of(name.as_str()) {
            Field::Alias | Field::ClientCertificate => false,
            Field::ForwardedHost | Field::ForwardedProto | Field::ForwardedOther => session.trusted,
            _ => true,
        };
        let dropped: Vec<_> = headers.keys().filter(|name| !passes(name)).cloned().collect();
        dropped.iter().for_each(|name| drop(headers.remove(name)));
    }

    /// Changes what its route changes. The caller's host stays known by `X-Forwarded-Host`.
    pub fn change(&mut self, way: &Way) {
        if way.changes_nothing() {
            return;
        }
        let headers = &mut self.fields.0;
        let dropped: Vec<_> =
            headers.keys().filter(|name| way.drops(name.as_str())).cloned().collect();
        dropped.iter().for_each(|name| drop(headers.remove(name)));
        route::append(&way.request_fields(), headers);
        if let Some(target) = way.target() {
            self.target = target.to_owned();
        }
        if let Some(host) = way.host() {
            if !headers.contains_key("x-forwarded-host")
                && let Ok(asked) = HeaderValue::from_str(&self.host)
            {
                headers.insert("x-forwarded-host", asked);
            }
            self.host = host.to_owned();
        }
    }

    /// End-to-end fields, without `Host`.
    pub fn headers(&self) -> &HeaderMap {
        &self.fields.0
    }

    /// The same, to be changed.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.fields.0
    }

    /// May be sent twice with the effect of once (RFC 9110, 9.2.2; `Idempotency-Key`).
    pub fn is_idempotent(&self) -> bool {
        let idempotent =
            self.method.is_idempotent() || self.headers().contains_key("idempotency-key");
        idempotent && self.protocol.is_none()
    }

    /// Whether it is a call of gRPC.
    pub fn is_grpc(&self) -> bool {
        let content = self.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        content.is_some_and(|content| content.starts_with(b"application/grpc"))
    }

    /// Writes it as HTTP/1.1 to `out`, with `framing` lines that say where the body ends.
    pub fn to_http1(&self, framing: &[u8], origin: &Origin<'_>, out: &mut Vec<u8>) {
        for part in [self.method.as_str(), " ", &self.target, " HTTP/1.1\r\nHost: ", &self.host] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        let mut line = |name: &str, value: &[u8]| {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        };
        let mut said = Said::default();
        for (name, value) in self.headers() {
            if said.passes(Field::of(name.as_str())) {
                line(name.as_str(), value.as_bytes());
            }
        }
        each_added(self, said, origin, &mut line);
        out.extend_from_slice(framing);
        out.extend_from_slice(b"\r\n");
    }

    /// As a request of HTTP/2.
    ///
    /// # Errors
    /// When target and host make no address.
    pub fn to_http2(
        &self,
        secure: bool,
        origin: &Origin<'_>,
    ) -> Result<http::Request<()>, http::Error> {
        let uri = uri::Builder::new()
            .scheme(if secure { "https" } else { "http" })
            .authority(self.host.as_str())
            .path_and_query(self.target.as_str())
            .build()?;
        let mut request = http::Request::builder().method(&self.method).uri(uri).body(())?;
        let headers = request.headers_mut();
        headers.clone_from(self.headers());
        let mut said = Said::default();
        for name in self.headers().keys() {
            if !said.passes(Field::of(name.as_str())) {
                headers.remove(name);
            }
        }
        each_added(self, said, origin, &mut |name, value| {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
            {
                headers.append(name, value);
            }
        });
        if self.is_grpc() {
            // What servers of gRPC look for to tell that trailers will be understood.
            let trailers = HeaderValue::from_static("trailers");
            headers.insert(header::TE, trailers);
        }
        Ok(request)
    }
}

/// What of the proxy's own fields a request has already.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    forwarded: bool,
    forwarded_for: bool,
    forwarded_host: bool,
    forwarded_proto: bool,
    request_id: bool,
    trace: bool,
}

impl Said {
    /// Notes a field. Whether it passes as it is: some are made one with our own word.
    fn passes(&mut self, field: Field) -> bool {
        match field {
            Field::ForwardedFor => {
                self.forwarded_for = true;
                return false;
            }
            Field::Forwarded => {
                self.forwarded = true;
                return false;
            }
            Field::ForwardedHost => self.forwarded_host = true,
            Field::ForwardedProto => self.forwarded_proto = true,
            Field::RequestId => self.request_id = true,
            Field::TraceParent => self.trace = true,
            _ => {}
        }
        true
    }
}

/// Each field that says where a request came from, beside those that `head` has.
fn each_added(
    head: &RequestHead,
    said: Said,
    origin: &Origin<'_>,
    field: &mut dyn FnMut(&str, &[u8]),
) {
    let scheme: &[u8] = if origin.secure { b"https" } else { b"http" };
    if !said.forwarded_host {
        field("x-forwarded-host", head.host.as_bytes());
    }
    if !said.forwarded_proto {
        field("x-forwarded-proto", scheme);
    }
    if let Some(ids) = origin.ids {
        if !said.request_id {
            field("x-request-id", &ids.request());
        }
        if !said.trace {
            field("traceparent", &ids.trace());
        }
    }
    if said.forwarded_for {
        chain(head.headers(), "x-forwarded-for", origin.peer.as_bytes(), field);
    } else {
        field("x-forwarded-for", origin.peer.as_bytes());
    }
    if said.forwarded {
        let own = forward::forwarded(origin.peer, scheme);
        chain(head.headers(), "forwarded", own.as_bytes(), field);
    }
    if !origin.lines.is_empty() {
        for (name, value) in lines_of(origin.lines) {
            field(name.as_str(), value.as_bytes());
        }
    }
}

/// Field lines as HTTP/1 writes them.
pub fn write_fields(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

/// Reads header lines of our own making, or a trailer section.
pub fn lines_of(lines: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut whole = lines.to_vec();
    whole.extend_from_slice(b"\r\n");
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&whole, &mut storage)
    else {
        return Vec::new();
    };
    let pair = |field: &httparse::Header<'_>| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    };
    fields.iter().filter_map(pair).collect()
}

/// One length, however often it is said.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut framing = http1::fields::Framing::default();
    for value in headers.get_all(header::CONTENT_LENGTH) {
        framing
            .add_length(value.as_bytes())
            .map_err(|_| Refusal::Malformed("its Content-Length is not one number"))?;
    }
    Ok(framing.length)
}

/// HTTP/2 may cut cookies into several fields, which other versions do not understand (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// One field with what earlier proxies said and our own word.
fn chain(headers: &HeaderMap, name: &'static str, own: &[u8], field: &mut dyn FnMut(&str, &[u8])) {
    let mut earlier = headers.get_all(name).iter().filter(|value| !value.is_empty()).peekable();
    if earlier.peek().is_none() {
        return field(name, own);
    }
    let mut all = Vec::new();
    for value in earlier {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(own);
    field(name, &all);
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin<'_> = Origin {
        peer: "192.0.2.1",
        local: "",
        secure: false,
        trusted: true,
        lines: b"",
        ids: None,
    };

    fn to_http1(head: &RequestHead, framing: &[u8]) -> String {
        let mut out = Vec::new();
        head.to_http1(framing, &ORIGIN, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_earlier_proxies_said_stays() {
        let fields = [
            ("x-forwarded-for", "203.0.113.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.1"),
            ("x-forwarded-for", "203.0.113.2"),
        ];
        let head = head("http://a/", &fields).unwrap();
        let text = to_http1(&head, b"");
        let request = head.to_http2(false, &ORIGIN).unwrap();
        for (name, value) in [
            ("x-forwarded-for", "203.0.113.1, 203.0.113.2, 192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a"),
            ("forwarded", "for=203.0.113.1, for=192.0.2.1;proto=http"),
        ] {
            assert_eq!(text.matches(&format!("\r\n{name}: {value}\r\n")).count(), 1, "{text}");
            let all: Vec<_> = request.headers().get_all(name).iter().collect();
            assert_eq!(all, [value]);
        }
    }

    fn head(uri: &str, fields: &[(&str, &str)]) -> Result<RequestHead, Refusal> {
        let mut request = http::Request::builder().method("GET").uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        RequestHead::from_http2(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn from_one_version_to_the_other() {
        let fields = [("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2"), ("x", "y")];
        let head = head("http://shop:81/a?b=c", &fields).unwrap();
        assert_eq!(
            to_http1(&head, b"Content-Length: 3\r\n"),
            "GET /a?b=c HTTP/1.1\r\nHost: shop:81\r\ncookie: a=1; b=2\r\nx: y\r\nx-forwarded-host: shop:81\r\n\
             x-forwarded-proto: http\r\nx-forwarded-for: 192.0.2.1\r\nContent-Length: 3\r\n\r\n"
        );
        let again = head.to_http2(true, &ORIGIN).unwrap();
        assert_eq!(again.headers()["x-forwarded-for"], "192.0.2.1");
        assert_eq!(again.uri(), "https://shop:81/a?b=c");
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        assert!(head("/a", &[]).is_err(), "no host");
        assert!(head("/a", &[("host", "a b")]).is_err());
        let twice = [("host", "a"), ("content-length", "1"), ("content-length", "2")];
        assert!(head("/a", &twice).is_err());
        assert!(head("/a", &[("host", "a"), ("content-length", "1, 1")]).is_err());
        assert_eq!(head("/a", &[("host", "a")]).unwrap().host, "a");
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let call = head("http://a/x", &[("content-type", "application/grpc+proto")]).unwrap();
        assert!(call.is_grpc());
        assert_eq!(call.to_http2(false, &ORIGIN).unwrap().headers()["te"], "trailers");
    }
}
