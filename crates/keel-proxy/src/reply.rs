//! Answers of the proxy itself, in every form that callers understand.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use keel_route::breaker::Full;
use keel_route::filter::Answer;

use crate::date;
use crate::edge::Record;
use crate::http1::Refusal;
use crate::upstream::Unavailable;

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    /// One word for programs.
    reason: &'static str,
    body: String,
    /// Header fields, without the length.
    fields: Vec<(String, String)>,
}

impl Reply {
    /// With `text` for people.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        let plain = "text/plain; charset=utf-8".to_owned();
        let fields = vec![("Content-Type".to_owned(), plain)];
        Self { status, reason: "", body: text.into() + "\n", fields }
    }

    /// Why, in one word for the access log.
    pub fn because(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    /// Why, in one word.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// With the seconds after which another try makes sense.
    fn retry_after(mut self, seconds: u64) -> Self {
        self.fields.push(("Retry-After".to_owned(), seconds.to_string()));
        self
    }

    /// A proof for a certificate authority (RFC 8555, 8.3).
    pub fn proof(key_authorization: String) -> Self {
        let kind = "application/octet-stream".to_owned();
        let fields = vec![("Content-Type".to_owned(), kind)];
        Self { status: 200, reason: "proof", body: key_authorization, fields }
    }

    /// More is asked of `service` than it takes; another try makes sense after `seconds`.
    pub fn full(service: &str, full: Full, seconds: u64) -> Self {
        let text = format!("{service} is busy: {full}.");
        Self::new(503, text).because("busy").retry_after(seconds)
    }

    /// To a request that is not taken.
    pub fn refused(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => {
                Self::new(400, format!("The request was refused: {why}.")).because("malformed")
            }
            Refusal::TooLarge => {
                Self::new(431, "The head of the request is over 64 KiB or 128 fields.")
                    .because("head_too_large")
            }
            Refusal::Expectation => {
                Self::new(417, "The only expectation that can be met is 100-continue.")
                    .because("expectation")
            }
            Refusal::Method => Self::new(405, "CONNECT is not served here.").because("method"),
            Refusal::Version => {
                Self::new(505, "HTTP/1.1 and HTTP/2 are spoken here.").because("version")
            }
        }
    }

    /// The client was too slow.
    pub fn too_slow() -> Self {
        Self::new(408, "The request did not arrive in time.").because("client_too_slow")
    }

    /// The body of a request is over the limit of its route.
    pub fn too_large(most: u64) -> Self {
        Self::new(413, format!("The body of the request is over {most} bytes."))
            .because("body_too_large")
    }

    /// No route leads anywhere from here.
    pub fn no_route() -> Self {
        Self::new(404, "No route matches this request.").because("no_route")
    }

    /// There is no memory for it; another try makes sense after `seconds`.
    pub fn short_of_memory(seconds: u64) -> Self {
        let text = "The load balancer is short of memory.";
        Self::new(503, text).because("short_of_memory").retry_after(seconds)
    }

    /// Whether a password is right could not be found out.
    pub fn unverified() -> Self {
        Self::new(500, "The password could not be checked.").because("unverified")
    }

    /// There is no endpoint for `service`.
    pub fn unavailable(service: &str, why: Unavailable) -> Self {
        let text = match why {
            Unavailable::NoEndpoint => format!("{service} has no running instance."),
            Unavailable::HeldTooLong => format!("{service} had no ready instance in time."),
            Unavailable::NoTls => {
                format!("The TLS handshake with {service} failed.")
            }
            Unavailable::TooManyHeld => {
                format!("Too many requests are waiting for {service} to become ready.")
            }
            Unavailable::ClientGone => "The client has left.".to_owned(),
        };
        let reply = Self::new(503, text).because(why.reason());
        if why == Unavailable::NoEndpoint { reply } else { reply.retry_after(1) }
    }

    /// An instance of `service` broke the connection or sent something that is not HTTP.
    pub fn broken(service: &str) -> Self {
        Self::new(502, format!("An instance of {service} gave no valid answer.")).because("broken")
    }

    /// `service` speaks HTTP/2, but takes no WebSocket over it.
    pub fn no_tunnel(service: &str) -> Self {
        let text = format!(
            "{service} speaks HTTP/2 and takes no WebSocket over it (it would say so by SETTINGS_ENABLE_CONNECT_PROTOCOL)."
        );
        Self::new(502, text).because("no_websocket")
    }

    /// An instance of `service` did not answer in time.
    pub fn timed_out(service: &str) -> Self {
        Self::new(504, format!("An instance of {service} did not answer in time."))
            .because("timed_out")
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// How it is counted.
    pub fn record(&self) -> Record {
        let bytes_out = self.body.len() as u64;
        Record { status: self.status, bytes_out, ..Record::default() }
    }

    /// How it is counted as an answer to a call of gRPC: in HTTP's terms all is well then.
    pub fn grpc_record(&self) -> Record {
        Record { status: 200, grpc_status: Some(self.grpc_status()), ..Record::default() }
    }

    /// Its body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// As bytes of HTTP/1. The answer to a `HEAD` request has no body.
    pub fn write(&self, keep_alive: bool, is_head: bool) -> Vec<u8> {
        let (status, phrase, date) = (self.status, self.phrase(), date::now());
        let mut text = format!("HTTP/1.1 {status} {phrase}\r\nDate: {date}\r\n");
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = self.length() {
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
        if !is_head {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }

    fn phrase(&self) -> &'static str {
        let status = StatusCode::from_u16(self.status).ok();
        status.and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
    }

    /// Its header fields.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(length) = self.length() {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        self.add_fields(&mut headers);
        headers
    }

    /// What is said about the length of the body; nothing where there can't be any (RFC 9110, 8.6).
    fn length(&self) -> Option<usize> {
        (self.status != 204).then_some(self.body.len())
    }

    fn add_fields(&self, headers: &mut HeaderMap) {
        headers.extend(HeaderValue::from_str(&date::now()).ok().map(|date| (header::DATE, date)));
        for (name, value) in &self.fields {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
    }

    /// Its status in gRPC's terms, as the document "HTTP to gRPC Status Code Mapping" has it, but for what is known
    /// better here.
    pub fn grpc_status(&self) -> u16 {
        match self.status {
            400 | 431 => 13,
            401 => 16,
            403 => 7,
            404 | 405 => 12,
            408 | 504 => 4,
            413 => 8,
            429 | 502 | 503 => 14,
            _ => 2,
        }
    }

    /// The fields of an answer to a gRPC call (a response of trailers only).
    pub fn grpc_headers(&self) -> HeaderMap {
        let code = self.grpc_status();
        let mut headers = HeaderMap::new();
        self.add_fields(&mut headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", code.into());
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(self.body.trim_end())) {
            headers.insert("grpc-message", message);
        }
        headers
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        let reason = match answer.status {
            204 => "preflight",
            300..400 => "redirected",
            400 => "malformed",
            401 => "unauthorized",
            403 => "forbidden",
            413 => "body_too_large",
            429 => "rate_limited",
            503 => "busy",
            _ => "route",
        };
        Self { status: answer.status, reason, body: answer.body, fields: answer.headers }
    }
}

/// As `grpc-message` wants it: what is not printable ASCII, and the percent sign.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_service() {
        let reply =
            Reply::unavailable("shop/cart:80", Unavailable::TooManyHeld).write(false, false);
        let text = String::from_utf8(reply).unwrap();
        let (before, rest) = text.split_once("Date: ").unwrap();
        let (date, after) = rest.split_once("\r\n").unwrap();
        assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
        assert_eq!(
            format!("{before}{after}"),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Retry-After: 1\r\nContent-Length: 64\r\nConnection: close\r\n\r\n\
             Too many requests are waiting for shop/cart:80 to become ready.\n"
        );
        let reply = Reply::broken("a").write(true, true);
        assert!(reply.ends_with(b"\r\n\r\n") && !reply.windows(5).any(|w| w == b"close"));
    }

    #[test]
    fn speaks_grpc() {
        let headers = Reply::timed_out("größe/a:1").grpc_headers();
        assert_eq!(headers["grpc-status"], "4");
        assert!(headers.contains_key("date"));
        assert_eq!(
            headers["grpc-message"],
            "An instance of gr%C3%B6%C3%9Fe/a:1 did not answer in time."
        );
    }
}
