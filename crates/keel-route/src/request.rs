//! A request as routes see it: borrowed from wherever the proxy holds it.
//!
//! Header fields come through [`Headers`], so that the HTTP/1 and the HTTP/2 side need not agree on a type. Also
//! here: what is read from single fields and parts by more than one rule (cookies, query parameters).

use std::net::IpAddr;
use std::ops::ControlFlow;

/// Header fields, wherever they lie.
pub trait Headers {
    /// Shows the value of each field with this name, in order, until told to stop. Names do not know case.
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8]) -> ControlFlow<()>);

    /// The value of the first field with this name.
    fn get<'a>(&'a self, name: &str) -> Option<&'a [u8]> {
        let mut found = None;
        self.each(name, &mut |value| {
            found = Some(value);
            ControlFlow::Break(())
        });
        found
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for &[(N, V)] {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8]) -> ControlFlow<()>) {
        for (_, value) in self.iter().filter(|(n, _)| n.as_ref().eq_ignore_ascii_case(name)) {
            if visit(value.as_ref()).is_break() {
                return;
            }
        }
    }
}

/// Whether a program may take `name` for the field `known`: the same but for case, or with `_` for `-`, between which
/// CGI and its like know no difference (RFC 3875, 4.1.18).
#[must_use]
pub fn passes_for(name: &str, known: &str) -> bool {
    let alike = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(alike)
}

/// Whether any field `name` has a value that `wanted` accepts.
pub(crate) fn any_value(
    headers: &dyn Headers,
    name: &str,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> bool {
    let mut found = false;
    headers.each(name, &mut |value| {
        found = wanted(value);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// The parts of a request that routes look at.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// The method as sent.
    pub method: &'a str,
    /// `Host` or `:authority` as sent, with its port; empty if there is none.
    pub host: &'a str,
    /// The path as sent, up to the `?`; of a target in absolute form only the path (it may be empty). `*` for
    /// `OPTIONS *`. All others begin with a slash, which is for the caller to see to.
    pub path: &'a str,
    /// What follows the first `?`, if there is one.
    pub query: Option<&'a str>,
    /// The client, as far as the proxy believes what it was told about it.
    pub client: IpAddr,
    /// The client speaks TLS, to this proxy or to one in front that is believed.
    pub tls: bool,
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
    /// The header fields.
    pub headers: &'a dyn Headers,
}

impl std::fmt::Debug for RequestView<'_> {
    /// Without header fields, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestView")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("path", &self.path)
            .field("query", &self.query)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// The value of the first cookie `name` in any `Cookie` field (RFC 6265, 4.2.1; HTTP/2 sends several, RFC 9113,
/// 8.2.3).
#[must_use]
pub fn cookie_value<'a>(headers: &'a dyn Headers, name: &str) -> Option<&'a str> {
    let mut found = None;
    headers.each("cookie", &mut |field| {
        found = field.split(|byte| *byte == b';').find_map(|pair| {
            let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
            (key.trim_ascii() == name).then_some(value.trim_ascii())
        });
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// Whether the query has the parameter `name`, with this value if one is given. Both are compared decoded (`+` is a
/// space), as services read them.
pub(crate) fn has_parameter(query: &str, name: &str, value: Option<&str>) -> bool {
    query.split('&').any(|pair| {
        let (key, given) = pair.split_once('=').unwrap_or((pair, ""));
        !pair.is_empty()
            && form_decoded(key).eq(name.bytes())
            && value.is_none_or(|value| form_decoded(given).eq(value.bytes()))
    })
}

/// The bytes that stand for `text` in a form (URL standard, 5.1).
fn form_decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        let decoded = if byte == b'%' { percent_decoded(&bytes[at..]) } else { None };
        at += if decoded.is_some() { 3 } else { 1 };
        Some(decoded.unwrap_or(if byte == b'+' { b' ' } else { byte }))
    })
}

/// The byte that a percent-encoded triplet at the start of `bytes` stands for.
pub(crate) fn percent_decoded(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let [b'%', ..] = bytes else { return None };
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Header fields for tests.
    pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];

    /// `GET http://shop.example/` with these header fields.
    pub(crate) fn get<'a>(headers: &'a dyn Headers) -> RequestView<'a> {
        RequestView {
            method: "GET",
            host: "shop.example",
            path: "/",
            query: None,
            client: [10, 1, 2, 3].into(),
            tls: false,
            sni: None,
            headers,
        }
    }

    #[test]
    fn cookies() {
        let headers: Fields<'_> =
            &[("Cookie", "a=1; b = 2 ;c;=x"), ("X", "d=9"), ("cookie", "a=3; d=\"4\"; e=; f=g=h")];
        for (name, expected) in [
            ("a", Some("1")),
            ("b", Some("2")),
            ("c", None),
            ("d", Some("\"4\"")),
            ("e", Some("")),
            ("f", Some("g=h")),
            ("A", None),
        ] {
            assert_eq!(cookie_value(&headers, name), expected, "{name}");
        }
        let foreign: &[(&str, &[u8])] = &[("cookie", b"x=\xff; a=1")];
        assert_eq!(cookie_value(&foreign, "x"), None);
        assert_eq!(cookie_value(&foreign, "a"), Some("1"));
    }

    #[test]
    fn parameters() {
        for (query, name, value, expected) in [
            ("a=1&b=2", "b", Some("2"), true),
            ("a=1&b=2", "b", Some("1"), false),
            ("a=1&a=2", "a", Some("2"), true),
            ("a", "a", None, true),
            ("a", "a", Some(""), true),
            ("ab=1", "a", None, false),
            ("%61=x+y%21", "a", Some("x y!"), true),
            ("a=%zz%4", "a", Some("%zz%4"), true),
            ("", "", None, false),
            ("&&", "", None, false),
            ("=1", "", Some("1"), true),
        ] {
            assert_eq!(has_parameter(query, name, value), expected, "{query} {name} {value:?}");
        }
    }

    #[test]
    fn what_passes_for_a_field() {
        for (name, known, expected) in [
            ("X_User", "x-user", true),
            ("x-USER", "x-user", true),
            ("x-user", "x_user", false),
            ("x_use", "x-user", false),
            ("xxuser", "x-user", false),
        ] {
            assert_eq!(passes_for(name, known), expected, "{name} {known}");
        }
    }

    #[test]
    fn the_first_field_of_a_name_and_all_of_them() {
        let fields: Fields<'_> = &[("X-A", "1"), ("x-b", "2"), ("x-a", "3")];
        let headers: &dyn Headers = &fields;
        assert_eq!(headers.get("x-A"), Some(b"1".as_slice()));
        assert_eq!(headers.get("x-c"), None);
        assert!(any_value(headers, "x-a", &mut |value| value == b"3"));
        assert!(!any_value(headers, "x-a", &mut |value| value == b"2"));
    }

    proptest! {
        #[test]
        fn random_text_never_panics(
            query in "[%a-f0-9&=+]{0,40}|\\PC{0,20}",
            cookie in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            has_parameter(&query, "a", Some("b"));
            let _ = cookie_value(&[("cookie", cookie)].as_slice(), "a");
        }
    }
}
