//! Scripts of other sites (Fetch standard, 3.2).
//!
//! The browser enforces; what is decided here is what it is told. A route with this filter speaks for its service: what
//! the service itself says about it (`Access-Control-…`) is replaced or taken out, so that two opinions never
//! meet in one answer.

use keel_model::Cors as Declared;

use crate::filter::answer::Answer;
use crate::filter::headers::is_value;
use crate::request::RequestView;
use crate::rule::is_token;

/// Methods that are allowed when none are named (the CORS-safelisted ones).
const METHODS: &str = "GET, HEAD, POST";
/// Longest list of requested header names that is sent back, in bytes.
const MAX_REQUESTED: usize = 4096;

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";

/// What is said to scripts of other sites.
#[derive(Debug)]
pub(crate) struct Cors {
    /// All may; excludes credentials.
    any_origin: bool,
    origins: Vec<Origin>,
    methods: String,
    headers: String,
    /// Whatever is asked for may be sent.
    any_header: bool,
    expose: String,
    credentials: bool,
    max_age_s: Option<u64>,
}

/// One origin, or those that differ from it in a label or in the port.
#[derive(Debug)]
enum Origin {
    Exact(String),
    Pattern { before: String, after: String, port: bool },
}

impl Origin {
    fn new(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "cors: {text:?} is not an origin; write scheme, host and port like `https://*.example.com` or `http://localhost:*`, without a path"
            )
        };
        let origin = text.to_ascii_lowercase();
        if origin == "null" {
            return Ok(Self::Exact(origin));
        }
        let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]*".contains(&b);
        if !is_token(scheme) || authority.is_empty() || !authority.bytes().all(fits) {
            return Err(wrong());
        }
        match authority.split('*').count() {
            1 => return Ok(Self::Exact(origin)),
            2 if !scheme.contains('*') => {}
            _ => return Err(wrong()),
        }
        let (before, after) = origin.split_once('*').ok_or_else(wrong)?;
        let port = after.is_empty() && before.ends_with(':') && !before.ends_with("::");
        let label = (before.ends_with("://") || before.ends_with('.')) && after.starts_with('.');
        if !port && !label {
            return Err(wrong());
        }
        Ok(Self::Pattern { before: before.to_owned(), after: after.to_owned(), port })
    }

    fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == origin,
            Self::Pattern { before, after, port } => {
                let inner = origin.strip_prefix(before.as_str());
                let Some(inner) = inner.and_then(|rest| rest.strip_suffix(after.as_str())) else {
                    return false;
                };
                let fits = |b: u8| match port {
                    true => b.is_ascii_digit(),
                    false => b.is_ascii_alphanumeric() || b == b'-' || b == b'_',
                };
                !inner.is_empty() && inner.bytes().all(fits)
            }
        }
    }
}

/// What an answer is told about scripts of other sites.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Fields set (or, without a value, taken out).
    pub fields: Vec<(&'static str, Option<String>)>,
    /// The answer depends on the request's `Origin`.
    pub vary: bool,
}

impl Cors {
    pub fn new(declared: &Declared, problems: &mut Vec<String>) -> Self {
        let any_origin = declared.origins.iter().any(|origin| origin == "*");
        if declared.origins.is_empty() {
            problems
                .push("cors: no origin is allowed; name some in `origins`, or `*` for all".into());
        }
        if any_origin && declared.credentials {
            problems.push("cors: with `credentials` browsers refuse `*`; name the origins".into());
        }
        let origins = declared.origins.iter().filter(|origin| *origin != "*");
        let origins = origins
            .filter_map(|text| Origin::new(text).map_err(|problem| problems.push(problem)).ok());
        let origins = origins.collect();
        for method in declared.methods.iter().filter(|method| !is_token(method)) {
            problems.push(format!("cors: {method:?} is not a method"));
        }
        for name in declared.headers.iter().chain(&declared.expose).filter(|name| !is_token(name)) {
            problems.push(format!("cors: {name:?} is not the name of a header field"));
        }
        let named = declared.headers.iter().filter(|name| *name != "*");
        let methods = match declared.methods.is_empty() {
            true => METHODS.to_owned(),
            false => declared.methods.join(", "),
        };
        Self {
            any_origin,
            origins,
            methods,
            headers: named.cloned().collect::<Vec<_>>().join(", "),
            any_header: declared.headers.iter().any(|name| name == "*"),
            expose: declared.expose.join(", "),
            credentials: declared.credentials,
            max_age_s: declared.max_age.map(|age| age.as_secs()),
        }
    }

    /// What the answer to an ordinary request is told.
    pub fn told(&self, view: &RequestView<'_>) -> Told {
        let Some(origin) = self.allowed(view) else {
            let gone = [ALLOW_ORIGIN, ALLOW_CREDENTIALS, EXPOSE_HEADERS].map(|name| (name, None));
            return Told { fields: gone.to_vec(), vary: !self.any_origin };
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let fields = vec![
            (ALLOW_ORIGIN, Some(origin.to_owned())),
            (ALLOW_CREDENTIALS, self.credentials.then(|| "true".to_owned())),
            (EXPOSE_HEADERS, some(&self.expose)),
        ];
        Told { fields, vary: !self.any_origin }
    }

    /// The answer to a preflight request; `None` for all others.
    pub fn preflight(&self, view: &RequestView<'_>) -> Option<Answer> {
        if view.method != "OPTIONS" || view.headers.get("origin").is_none() {
            return None;
        }
        view.headers.get("access-control-request-method")?;
        let mut answer = Answer::empty(204)
            .with("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
        // To others nothing is allowed, which needs no words.
        let Some(origin) = self.allowed(view) else { return Some(answer) };
        answer =
            answer.with(ALLOW_ORIGIN, origin).with("access-control-allow-methods", &*self.methods);
        if let Some(headers) = self.allowed_headers(view) {
            answer = answer.with("access-control-allow-headers", headers);
        }
        if self.credentials {
            answer = answer.with(ALLOW_CREDENTIALS, "true");
        }
        if let Some(age) = self.max_age_s {
            answer = answer.with("access-control-max-age", age.to_string());
        }
        Some(answer)
    }

    /// What is said to be allowed for the request's origin.
    fn allowed<'v>(&self, view: &RequestView<'v>) -> Option<&'v str> {
        if self.any_origin {
            return Some("*");
        }
        let origin = std::str::from_utf8(view.headers.get("origin")?).ok()?;
        let known = self.origins.iter().any(|known| known.matches(origin));
        (known && is_value(origin)).then_some(origin)
    }

    fn allowed_headers(&self, view: &RequestView<'_>) -> Option<String> {
        let asked = view.headers.get("access-control-request-headers");
        let asked = asked.and_then(|asked| std::str::from_utf8(asked).ok());
        let echo = asked.filter(|asked| {
            let are_names = asked.split(',').all(|name| is_token(name.trim_matches([' ', '\t'])));
            self.any_header && asked.len() <= MAX_REQUESTED && are_names
        });
        match echo {
            Some(asked) => Some(asked.to_owned()),
            None => (!self.headers.is_empty()).then(|| self.headers.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::{Fields, get};

    fn cors(origins: &[&str]) -> Declared {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Declared { origins, ..Declared::default() }
    }

    fn compiled(declared: &Declared) -> Cors {
        let mut problems = Vec::new();
        let cors = Cors::new(declared, &mut problems);
        assert_eq!(problems, [""; 0]);
        cors
    }

    fn names(text: &[&str]) -> Vec<String> {
        text.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn origins() {
        for (allowed, origin, expected) in [
            ("https://a.example", "https://a.example", true),
            ("https://A.example", "https://a.example", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://a.b.example", false),
            ("https://*.example", "https://.example", false),
            ("https://*.example", "https://a.example.evil", false),
            ("https://*.example:81", "https://a.example:81", true),
            ("http://localhost:*", "http://localhost:3000", true),
            ("http://localhost:*", "http://localhost:", false),
            ("http://localhost:*", "http://localhost:1.evil", false),
            ("http://a.*.example", "http://a.b.example", true),
            ("null", "null", true),
            ("https://a.example", "null", false),
        ] {
            let cors = compiled(&cors(&[allowed]));
            let headers: Fields<'_> = &[("Origin", origin)];
            let told = cors.told(&get(&headers));
            let expected = expected.then(|| origin.to_owned());
            assert_eq!(told.fields[0], (ALLOW_ORIGIN, expected), "{allowed} {origin}");
            assert!(told.vary);
        }
    }

    #[test]
    fn all_origins_make_one_answer_for_all() {
        let cors = compiled(&cors(&["*"]));
        for headers in [&[("origin", "https://a.example")] as Fields<'_>, &[]] {
            let told = cors.told(&get(&headers));
            assert_eq!(told.fields[0], (ALLOW_ORIGIN, Some("*".into())));
            assert!(!told.vary);
        }
    }

    #[test]
    fn preflight_requests_are_answered() {
        let cors = compiled(&Declared {
            methods: names(&["PUT", "DELETE"]),
            headers: names(&["X-A"]),
            expose: names(&["X-B"]),
            credentials: true,
            max_age: Some(std::time::Duration::from_secs(600)),
            ..cors(&["https://a.example"])
        });
        let asked: Fields<'_> = &[
            ("origin", "https://a.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a"),
        ];
        let options = RequestView { method: "OPTIONS", ..get(&asked) };
        let answer = cors.preflight(&options).unwrap();
        assert_eq!(answer.status, 204);
        let expected = [
            ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
            (ALLOW_ORIGIN, "https://a.example"),
            ("access-control-allow-methods", "PUT, DELETE"),
            ("access-control-allow-headers", "X-A"),
            (ALLOW_CREDENTIALS, "true"),
            ("access-control-max-age", "600"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(answer.headers, expected);
        assert_eq!(cors.preflight(&get(&asked)), None, "not OPTIONS");
        let plain: Fields<'_> = &asked[..1];
        let plain = RequestView { method: "OPTIONS", ..get(&plain) };
        assert_eq!(cors.preflight(&plain), None, "an OPTIONS request of the service's own");
        let foreign: Fields<'_> = &[("origin", "https://b.example"), asked[1]];
        let foreign = RequestView { method: "OPTIONS", ..get(&foreign) };
        assert_eq!(cors.preflight(&foreign).unwrap().headers.len(), 1, "nothing is allowed");
    }

    #[test]
    fn what_is_asked_for_is_sent_back_only_if_it_is_names() {
        let cors = compiled(&Declared { headers: names(&["*", "X-A"]), ..cors(&["*"]) });
        let long = format!("x-{}", "a".repeat(MAX_REQUESTED));
        for (asked, expected) in [
            ("x-b,content-type", "x-b,content-type"),
            ("x-b, \tx-c", "x-b, \tx-c"),
            ("x-b\r\nevil: 1", "X-A"),
            ("", "X-A"),
            (&long, "X-A"),
        ] {
            let headers: Fields<'_> = &[
                ("origin", "https://a.example"),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", asked),
            ];
            let answer = cors.preflight(&RequestView { method: "OPTIONS", ..get(&headers) });
            let found = answer.unwrap().headers;
            let found = found.iter().find(|(name, _)| name == "access-control-allow-headers");
            assert_eq!(found.unwrap().1, expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (declared, part) in [
            (cors(&[]), "no origin"),
            (Declared { credentials: true, ..cors(&["*"]) }, "browsers refuse"),
            (cors(&["a.example"]), "not an origin"),
            (cors(&["https://a.example/"]), "not an origin"),
            (cors(&["https://*"]), "not an origin"),
            (cors(&["https://a*.example"]), "not an origin"),
            (cors(&["https://*.*.example"]), "not an origin"),
            (Declared { methods: names(&["G T"]), ..cors(&["*"]) }, "not a method"),
            (Declared { headers: names(&["a:"]), ..cors(&["*"]) }, "header field"),
            (Declared { expose: names(&["a\r\n"]), ..cors(&["*"]) }, "header field"),
        ] {
            let mut problems = Vec::new();
            Cors::new(&declared, &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(part), "{problems:?}");
        }
    }
}
