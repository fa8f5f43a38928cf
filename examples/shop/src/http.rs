//! The values that services receive and answer, free of sockets: `Call`, `Reply`, `Failure`, and the trail of instances
//! that took part in an answer.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names the instance that answered.
pub const X_INSTANCE: HeaderName = HeaderName::from_static("x-instance");
/// Names the version of the instance that answered.
pub const X_REVISION: HeaderName = HeaderName::from_static("x-revision");
/// The instances that helped with the answer, see [`Hop`].
pub const X_TRAIL: HeaderName = HeaderName::from_static("x-trail");
/// Makes a repeated POST harmless.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key that is accepted.
const MAX_KEY_BYTES: usize = 100;

/// One request, read completely.
#[derive(Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query, without the question mark, still encoded.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Call {
    /// The body as JSON.
    ///
    /// # Errors
    /// 400 with the place of the fault.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
    }

    /// The `Idempotency-Key`, if it is there and sensible.
    pub fn idempotency_key(&self) -> Option<String> {
        let key = self.headers.get(IDEMPOTENCY_KEY)?.to_str().ok()?.trim();
        (!key.is_empty() && key.len() <= MAX_KEY_BYTES).then(|| key.to_owned())
    }

    /// The value of the cookie `name`.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .get_all(hyper::header::COOKIE)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
    }
}

/// One answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers beside those that `server` adds.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Who helped.
    pub trail: Trail,
}

impl Reply {
    /// An answer in JSON.
    pub fn json(value: &impl Serialize) -> Reply {
        let body = serde_json::to_vec(value).expect("our answers have string keys only");
        Reply::bytes("application/json", body)
    }

    /// A page or a piece of one.
    pub fn html(text: String) -> Reply {
        Reply::bytes("text/html; charset=utf-8", text)
    }

    /// An answer of any type.
    pub fn bytes(content_type: &'static str, body: impl Into<Bytes>) -> Reply {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Reply { status: StatusCode::OK, headers, body: body.into(), trail: Trail::default() }
    }

    /// The same with a header; a value that can't be one is left out.
    pub fn header(mut self, name: HeaderName, value: &str) -> Reply {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    /// The same with another status.
    pub fn status(mut self, status: StatusCode) -> Reply {
        self.status = status;
        self
    }

    /// The same with the instances that helped.
    pub fn trail(mut self, trail: Trail) -> Reply {
        self.trail = trail;
        self
    }
}

/// Why a request was not fulfilled, in words for its sender.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{status}: {message}")]
pub struct Failure {
    /// What to answer.
    pub status: StatusCode,
    /// What happened and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its words.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    /// Nothing lives at that address.
    pub fn not_found(path: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Reply {
        Reply::json(&serde_json::json!({ "error": failure.message })).status(failure.status)
    }
}

/// The instances that took part in an answer, in the order in which they were asked.
#[derive(Debug, Default, Clone)]
pub struct Trail(Vec<Hop>);

/// One instance that took part: written `service instance revision milliseconds` in `X-Trail`, hops separated by commas.
#[derive(Debug, Clone)]
pub struct Hop {
    /// Service that was called.
    pub service: String,
    /// Instance that answered.
    pub instance: String,
    /// Its version.
    pub revision: String,
    /// How long the call took for the caller.
    pub milliseconds: f64,
}

impl Trail {
    /// Adds `hop`, and after it the hops that it reported itself.
    pub fn add(&mut self, hop: Hop, reported: &str) {
        self.0.push(hop);
        self.0.extend(reported.split(',').filter_map(Hop::parse));
    }

    /// The hops of both.
    pub fn join(&mut self, other: Trail) {
        self.0.extend(other.0);
    }

    /// The header's value.
    pub fn to_header(&self) -> String {
        let hops: Vec<String> = self
            .0
            .iter()
            .map(|hop| {
                format!("{} {} {} {:.1}", hop.service, hop.instance, hop.revision, hop.milliseconds)
            })
            .collect();
        hops.join(", ")
    }
}

impl Hop {
    fn parse(text: &str) -> Option<Hop> {
        let mut words = text.split_whitespace();
        let mut word = || words.next().map(str::to_owned);
        Some(Hop {
            service: word()?,
            instance: word()?,
            revision: word()?,
            milliseconds: word()?.parse().ok()?,
        })
    }
}

/// Decodes `application/x-www-form-urlencoded` text (also a query) and returns the value of `name`.
pub fn form_value(form: &str, name: &str) -> Option<String> {
    form.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(other),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_decode() {
        assert_eq!(form_value("a=1&name=J%C3%B6+B&x", "name").as_deref(), Some("Jö B"));
        assert_eq!(form_value("a=1", "b"), None);
        assert_eq!(form_value("a=100%", "a").as_deref(), Some("100%"));
        assert_eq!(form_value("a=%zz%4", "a").as_deref(), Some("%zz%4"));
    }

    #[test]
    fn a_trail_is_read_back_as_it_was_written() {
        let hop = |service: &str| Hop {
            service: service.into(),
            instance: format!("{service}-1"),
            revision: "v1".into(),
            milliseconds: 1.25,
        };
        let mut inner = Trail::default();
        inner.add(hop("catalog"), "");
        let mut outer = Trail::default();
        outer.add(hop("cart"), &inner.to_header());
        assert_eq!(outer.to_header(), "cart cart-1 v1 1.2, catalog catalog-1 v1 1.2");
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("a=b; cart=x.y; cartier=z"));
        let call = Call {
            method: Method::GET,
            path: "/".into(),
            query: String::new(),
            headers,
            body: Bytes::new(),
        };
        assert_eq!(call.cookie("cart"), Some("x.y"));
        assert_eq!(call.cookie("none"), None);
    }
}
