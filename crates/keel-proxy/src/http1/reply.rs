//! Answers of the proxy itself.

use crate::http1::request::Refusal;
use crate::upstream::Unavailable;

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    reason: &'static str,
    text: String,
    retry_after: bool,
}

impl Reply {
    fn new(status: u16, reason: &'static str, text: String) -> Self {
        Self { status, reason, text, retry_after: false }
    }

    /// To a request that is not taken.
    pub fn refused(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => {
                Self::new(400, "Bad Request", format!("The request was refused: {why}."))
            }
            Refusal::TooLarge => Self::new(
                431,
                "Request Header Fields Too Large",
                "The head of the request is over 64 KiB or 128 fields.".into(),
            ),
            Refusal::Expectation => Self::new(
                417,
                "Expectation Failed",
                "The only expectation that can be met is 100-continue.".into(),
            ),
            Refusal::Method => {
                Self::new(405, "Method Not Allowed", "CONNECT is not served here.".into())
            }
            Refusal::Version => {
                Self::new(505, "HTTP Version Not Supported", "HTTP/1.1 is spoken here.".into())
            }
        }
    }

    /// The client was too slow.
    pub fn too_slow() -> Self {
        Self::new(408, "Request Timeout", "The request did not arrive in time.".into())
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
        let retry_after = why != Unavailable::NoEndpoint;
        Self { retry_after, ..Self::new(503, "Service Unavailable", text) }
    }

    /// An instance of `service` broke the connection or sent something that is not HTTP.
    pub fn broken(service: &str) -> Self {
        let text = format!("An instance of {service} gave no valid answer.");
        Self::new(502, "Bad Gateway", text)
    }

    /// An instance of `service` did not answer in time.
    pub fn timed_out(service: &str) -> Self {
        let text = format!("An instance of {service} did not answer in time.");
        Self::new(504, "Gateway Timeout", text)
    }

    /// As bytes. The answer to a `HEAD` request has no body.
    pub fn write(&self, keep_alive: bool, is_head: bool) -> Vec<u8> {
        let Self { status, reason, text, retry_after } = self;
        let length = text.len() + 1;
        let retry = if *retry_after { "Retry-After: 1\r\n" } else { "" };
        let close = if keep_alive { "" } else { "Connection: close\r\n" };
        let body = if is_head { String::new() } else { format!("{text}\n") };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n{retry}{close}\r\n{body}"
        )
        .into_bytes()
    }
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
}
