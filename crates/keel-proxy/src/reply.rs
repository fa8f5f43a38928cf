//! Answers of the proxy itself, in every form that callers understand.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::http1::Refusal;
use crate::upstream::Unavailable;

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    /// One word for programs.
    reason: &'static str,
    text: String,
    /// Seconds after which another try makes sense.
    retry_after: Option<u64>,
    /// Further header fields.
    fields: Vec<(String, String)>,
}

impl Reply {
    /// With `text` for people, if there is any.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, reason: "", text, retry_after: None, fields: Vec::new() }
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

    /// With further header fields.
    pub fn with(mut self, fields: Vec<(String, String)>) -> Self {
        self.fields.extend(fields);
        self
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

    /// There is no endpoint for `service`.
    pub fn unavailable(service: &str, why: Unavailable) -> Self {
        let text = match why {
            Unavailable::NoEndpoint => format!("{service} has no running instance."),
            Unavailable::HeldTooLong => format!("{service} had no ready instance in time."),
            Unavailable::TooManyHeld => {
                format!("Too many requests are waiting for {service} to become ready.")
            }
        };
        let retry_after = (why != Unavailable::NoEndpoint).then_some(1);
        Self { retry_after, ..Self::new(503, text).because(why.reason()) }
    }

    /// An instance of `service` broke the connection or sent something that is not HTTP.
    pub fn broken(service: &str) -> Self {
        Self::new(502, format!("An instance of {service} gave no valid answer.")).because("broken")
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

    /// Its body.
    pub fn body(&self) -> String {
        if self.text.is_empty() { String::new() } else { format!("{}\n", self.text) }
    }

    /// As bytes of HTTP/1. The answer to a `HEAD` request has no body.
    pub fn write(&self, keep_alive: bool, is_head: bool) -> Vec<u8> {
        let body = self.body();
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, self.phrase());
        if !body.is_empty() {
            text.push_str("Content-Type: text/plain; charset=utf-8\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        if let Some(seconds) = self.retry_after {
            text.push_str(&format!("Retry-After: {seconds}\r\n"));
        }
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
        if !is_head {
            text.push_str(&body);
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
        let body = self.body();
        if !body.is_empty() {
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.insert(header::CONTENT_TYPE, plain);
        }
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        self.add_fields(&mut headers);
        headers
    }

    fn add_fields(&self, headers: &mut HeaderMap) {
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
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", code.into());
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.text)) {
            headers.insert("grpc-message", message);
        }
        self.add_fields(&mut headers);
        headers
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
        assert_eq!(
            String::from_utf8(reply).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 64\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
             Too many requests are waiting for shop/cart:80 to become ready.\n"
        );
        let reply = Reply::broken("a").write(true, true);
        assert!(reply.ends_with(b"\r\n\r\n") && !reply.windows(5).any(|w| w == b"close"));
    }

    #[test]
    fn speaks_grpc() {
        let headers = Reply::timed_out("größe/a:1").grpc_headers();
        assert_eq!(headers["grpc-status"], "4");
        assert_eq!(
            headers["grpc-message"],
            "An instance of gr%C3%B6%C3%9Fe/a:1 did not answer in time."
        );
    }
}
