//! Moved addresses (RFC 9110, 15.4).

use keel_model::Redirect as Declared;

use crate::filter::answer::Answer;
use crate::filter::rewrite::Rewrite;
use crate::host;
use crate::path::{self, Forms};
use crate::request::RequestView;

/// Where requests of a route are sent instead.
#[derive(Debug)]
pub(crate) struct Redirect {
    tls: Option<bool>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<Rewrite>,
    status: u16,
}

/// An address without its path.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin<'a> {
    tls: bool,
    host: &'a str,
    port: u16,
}

impl Origin<'_> {
    fn text(self) -> String {
        let Self { tls, host, port } = self;
        let scheme = if tls { "https" } else { "http" };
        if port == standard_port(tls) {
            return format!("{scheme}://{host}");
        }
        format!("{scheme}://{host}:{port}")
    }
}

fn standard_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl Redirect {
    pub fn new(declared: &Declared, problems: &mut Vec<String>) -> Self {
        let mut problem = |text: String| problems.push(format!("redirect: {text}"));
        let tls = match declared.scheme.as_deref() {
            None => None,
            Some("http") => Some(false),
            Some("https") => Some(true),
            Some(other) => {
                problem(format!("the scheme {other:?} is neither http nor https"));
                None
            }
        };
        if declared
            .host
            .as_deref()
            .is_some_and(|name| host::usable(name).is_none_or(|(_, port)| port.is_some()))
        {
            problem(
                "`host` must be the name of a host without a port; the port is given with `port`"
                    .into(),
            );
        }
        if !matches!(declared.status, 301 | 302 | 303 | 307 | 308) {
            problem(format!(
                "the status {} is not 301, 302, 303, 307 or 308; 308 moves for good and keeps the method",
                declared.status
            ));
        }
        if declared.port == Some(0) {
            problem("the port may not be 0".into());
        }
        let changes =
            declared.scheme.is_some() || declared.host.is_some() || declared.port.is_some();
        if !changes && declared.path.is_none() {
            problem("it says nothing that changes; give a scheme, host, port or path".into());
        }
        let path = declared.path.as_ref().map(|path| Rewrite::new([path], problems));
        let host = declared.host.as_deref().map(Box::from);
        Self { tls, host, port: declared.port, path, status: declared.status }
    }

    /// The answer, or `None` for a request that is already where it is to be.
    pub fn answer(&self, view: &RequestView<'_>, forms: &Forms<'_>) -> Option<Answer> {
        let Some((name, port)) = host::usable(view.host) else {
            return Some(Answer::text(
                400,
                "The request has no Host that could stand in an address.",
            ));
        };
        let port = port.unwrap_or(standard_port(view.tls));
        let from = Origin { tls: view.tls, host: name, port };
        let tls = self.tls.unwrap_or(view.tls);
        let moved = tls != view.tls || self.host.as_deref().is_some_and(|host| host != name);
        let to = Origin {
            tls,
            host: self.host.as_deref().unwrap_or(name),
            port: self.port.unwrap_or(if moved { standard_port(tls) } else { port }),
        };
        let path = self.path.as_ref().map(|rewrite| rewrite.apply(forms).path);
        // An address that is its own target would be asked for again and again.
        let same_path = path.as_ref().is_none_or(|path| *path == path::fit(&forms.forwarded));
        if to == from && same_path {
            return None;
        }
        Some(answer(self.status, to, path.as_deref(), view, forms))
    }
}

/// To `https` at `port`, as it stands otherwise (308).
pub(crate) fn to_https(port: u16, view: &RequestView<'_>) -> Answer {
    let Some((host, _)) = host::usable(view.host) else {
        return Answer::text(400, "The request has no Host that could stand in an address.");
    };
    answer(308, Origin { tls: true, host, port }, None, view, &Forms::of(view.path))
}

fn answer(
    status: u16,
    to: Origin<'_>,
    path: Option<&str>,
    view: &RequestView<'_>,
    forms: &Forms<'_>,
) -> Answer {
    let mut location = to.text();
    match path {
        Some(path) => location.push_str(path),
        // Not made fit as a whole: slashes at its start stay, as host and port stand before them.
        None if forms.forwarded.starts_with('/') => {
            location.push_str(&path::encoded(&forms.forwarded));
        }
        // `OPTIONS *` has no path.
        None => location.push('/'),
    }
    if let Some(query) = view.query {
        location.push('?');
        location.push_str(&path::encoded_query(query));
    }
    Answer::empty(status).with("location", location)
}

#[cfg(test)]
mod tests {
    use keel_model::PathRewrite;
    use proptest::prelude::*;

    use super::*;
    use crate::request::tests::{Fields, get};

    fn unchanged() -> Declared {
        Declared { scheme: None, host: None, port: None, path: None, status: 308 }
    }

    const NONE: Fields<'static> = &[];

    fn view<'a>(host: &'a str, target: &'a str, tls: bool) -> RequestView<'a> {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        RequestView { host, path, query, tls, ..get(&NONE) }
    }

    fn location(declared: &Declared, view: &RequestView<'_>) -> Option<String> {
        let mut problems = Vec::new();
        let redirect = Redirect::new(declared, &mut problems);
        assert_eq!(problems, [""; 0]);
        let answer = redirect.answer(view, &Forms::of(view.path))?;
        assert_eq!(answer.status, declared.status);
        answer.headers.into_iter().find(|(name, _)| name == "location").map(|(_, value)| value)
    }

    #[test]
    fn addresses() {
        let https = Declared { scheme: Some("https".into()), ..unchanged() };
        let www = Declared { host: Some("www.example".into()), ..unchanged() };
        let port = Declared { port: Some(8443), ..https.clone() };
        let strip = PathRewrite::StripPrefix(vec!["/old".into()]);
        let path = Declared { path: Some(strip), ..unchanged() };
        for (declared, host, asked, tls, expected) in [
            (&https, "a.example:80", "/x?y=1", false, Some("https://a.example/x?y=1")),
            (&https, "a.example:8080", "/x", false, Some("https://a.example/x")),
            (&https, "a.example", "/x", true, None),
            (&https, "a.example", "*", false, Some("https://a.example/")),
            (&https, "[::1]:80", "/?", false, Some("https://[::1]/?")),
            (&www, "example:8080", "/x", false, Some("http://www.example/x")),
            (&www, "www.example", "/x", true, None),
            (&port, "a.example", "/", false, Some("https://a.example:8443/")),
            (&port, "a.example:8443", "/", true, None),
            (&path, "a.example:81", "/old/x?q", false, Some("http://a.example:81/x?q")),
            (&path, "a.example", "/new", false, None),
            (
                &https,
                "a.example",
                "//evil.example/é|?\"",
                false,
                Some("https://a.example//evil.example/%C3%A9%7C?%22"),
            ),
        ] {
            let found = location(declared, &view(host, asked, tls));
            assert_eq!(found.as_deref(), expected, "{declared:?} {host} {asked}");
        }
    }

    #[test]
    fn a_host_that_is_none_is_not_sent_back() {
        let https = Declared { scheme: Some("https".into()), ..unchanged() };
        let redirect = Redirect::new(&https, &mut Vec::new());
        for host in ["", "a@evil.example", "a/b", "a b"] {
            let view = view(host, "/", false);
            let answer = redirect.answer(&view, &Forms::of("/")).unwrap();
            assert_eq!((answer.status, to_https(443, &view).status), (400, 400));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (declared, part) in [
            (unchanged(), "nothing that changes"),
            (Declared { scheme: Some("ftp".into()), ..unchanged() }, "neither"),
            (Declared { host: Some("a:80".into()), ..unchanged() }, "without a port"),
            (Declared { host: Some("a/b".into()), ..unchanged() }, "name of a host"),
            (Declared { port: Some(1), status: 200, ..unchanged() }, "status 200"),
        ] {
            let mut problems = Vec::new();
            Redirect::new(&declared, &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(part), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn locations_can_stand_in_a_header_and_keep_the_query(
            path in "/\\PC{0,20}", query in prop::option::of("[a-z0-9=&%+]{0,20}"), port in 1u16..,
        ) {
            let view =
                RequestView { path: &path, query: query.as_deref(), ..get(&NONE) };
            let answer = to_https(port, &view);
            let location = &answer.headers[0].1;
            prop_assert!(location.bytes().all(|b| b.is_ascii_graphic()), "{location}");
            prop_assert_eq!(location.split_once('?').map(|(_, q)| q), query.as_deref());
        }
    }
}
