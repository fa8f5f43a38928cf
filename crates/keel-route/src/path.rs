//! Paths of requests: how rules read them, and what the service gets.
//!
//! Two spellings of one path must not lead to two routes, or a rule could be walked around: if `/admin` asks for a
//! password and `/` does not, then `//admin`, `/%61dmin` and `/x/../admin` must ask too. Three forms:
//!
//! - **Forwarded**: the path as sent, byte for byte, except that dot segments (also written `%2e`) are resolved as in
//!   RFC 3986, 5.2.4. That is the only change that a service could not undo safely: in `/admin/../x` one that
//!   resolves dots and one that does not see two different places. Slashes and percent-encoding stay, because to
//!   services they can matter (object keys, addresses inside of paths) and no reading of them leaves a prefix.
//! - **Matched**: the forwarded form with unreserved characters decoded, all others that may not stand in a path
//!   encoded, hexadecimal digits in capitals (RFC 3986, 6.2.2) and repeated slashes as one.
//! - **Other readings**: services differ on whether `%2F`, `%5C` and `\` part segments, on whether `;x` (or `%3Bx`)
//!   belongs to its segment, and on the order in which they see to it. A path with one of these is looked up under each
//!   reading; where the routes differ, whichever we took could be the wrong one, and the request is refused (400).
//!   A route whose own rule names such a character is taken at its word.
//!
//! Compared: Envoy with `normalize_path` and `merge_slashes` (both off unless asked for) and Traefik 3 (`sanitizePath`, on
//! by default) forward a normalised path, merged slashes included; HAProxy, and nginx with a `proxy_pass` without
//! a path, forward the path as sent, dots included. For encoded slashes Envoy and Traefik have a switch that keeps
//! or refuses them all, which either opens the gap or breaks services that rely on them; comparing the
//! readings needs no switch. Not covered: services that decode twice (`%252e`) or ignore case.
//!
//! Nothing is allocated for a path that is in the matched form already.

use std::borrow::Cow;

use crate::request::percent_decoded;

/// Longest path of which other readings are looked at, in bytes. A longer one is refused if it has any.
const MAX_DOUBTFUL: usize = 4096;

/// The forms of one path.
#[derive(Debug)]
pub(crate) struct Forms<'a> {
    /// What the service gets if nothing rewrites it.
    pub forwarded: Cow<'a, str>,
    /// What rules see.
    pub matched: Cow<'a, str>,
    /// There are other readings of it.
    pub doubtful: bool,
}

/// What a path has in it.
#[derive(Clone, Copy, Debug, Default)]
struct Signs {
    dot_segment: bool,
    unmatched: bool,
    doubtful: bool,
}

/// What a byte means in a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Slash,
    Percent,
    /// Reserved, and not read alike by all services.
    Semicolon,
    /// May not stand in a path as it is (RFC 3986, 3.3).
    Foreign,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Foreign; 256];
    let plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,=:@";
    let mut at = 0;
    while at < plain.len() {
        classes[plain[at] as usize] = Class::Plain;
        at += 1;
    }
    classes[b'/' as usize] = Class::Slash;
    classes[b'%' as usize] = Class::Percent;
    classes[b';' as usize] = Class::Semicolon;
    classes
};

fn class(byte: u8) -> Class {
    CLASSES[usize::from(byte)]
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

impl<'a> Forms<'a> {
    /// The forms of `path` as sent. An empty path is `/` (RFC 9110, 4.2.3); one that does not begin with a slash (`*`)
    /// is left alone.
    pub fn of(path: &'a str) -> Self {
        if path.is_empty() {
            return Self::of("/");
        }
        let signs = if path.starts_with('/') { scan(path.as_bytes()) } else { Signs::default() };
        let forwarded = match signs.dot_segment {
            true => Cow::Owned(without_dot_segments(path)),
            false => Cow::Borrowed(path),
        };
        let matched = match &forwarded {
            forwarded if signs.unmatched => Cow::Owned(matched(forwarded, Slashes::Merged)),
            Cow::Borrowed(path) => Cow::Borrowed(*path),
            Cow::Owned(path) => Cow::Owned(path.clone()),
        };
        Self { forwarded, matched, doubtful: signs.doubtful }
    }
}

/// The path that the service gets for `path` as sent, if no filter rewrites it. See the head of this module.
#[must_use]
pub fn forwarded(path: &str) -> Cow<'_, str> {
    Forms::of(path).forwarded
}

/// One pass over a path that begins with a slash.
fn scan(path: &[u8]) -> Signs {
    let mut signs = Signs::default();
    let mut previous = b' ';
    for (at, byte) in path.iter().enumerate() {
        match class(*byte) {
            Class::Plain => {}
            Class::Slash => {
                signs.unmatched |= previous == b'/';
                signs.dot_segment |= dots(&path[at + 1..]).is_some();
            }
            Class::Semicolon => signs.doubtful = true,
            Class::Foreign => {
                signs.unmatched = true;
                signs.doubtful |= matches!(*byte, b'\\' | b'#');
            }
            Class::Percent => {
                let digits = path[at + 1..].iter().take(2);
                let lower = digits.clone().any(u8::is_ascii_lowercase);
                let decoded = percent_decoded(&path[at..]);
                signs.unmatched |= lower || decoded.is_none_or(is_unreserved);
                signs.doubtful |= matches!(decoded, Some(b'/' | b'\\' | b';' | 0));
            }
        }
        previous = *byte;
    }
    // What is left when dot segments go can have two slashes where there was one.
    signs.unmatched |= signs.dot_segment;
    signs
}

/// How many dots (1 or 2, also as `%2e`) the segment at the start of `bytes` is made of, if of nothing else.
fn dots(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    for count in 0..=2 {
        match rest {
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => rest = tail,
            [] | [b'/', ..] => return (count > 0).then_some(count),
            _ => return None,
        }
    }
    None
}

/// RFC 3986, 5.2.4, for a path that begins with a slash.
fn without_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut open = false;
    for segment in path[1..].split('/') {
        open = true;
        match dots(segment.as_bytes()) {
            None => {
                out.push(segment);
                open = false;
            }
            Some(1) => {}
            Some(_) => {
                out.pop();
            }
        }
    }
    if open {
        out.push("");
    }
    format!("/{}", out.join("/"))
}

/// What becomes of slashes that follow one another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slashes {
    Merged,
    Kept,
}

/// The matched form of a path without dot segments.
fn matched(path: &str, slashes: Slashes) -> String {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len() + 16);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (class(*byte), percent_decoded(&bytes[at..])) {
            (Class::Slash, _) if slashes == Slashes::Merged && out.ends_with('/') => {}
            (Class::Percent, Some(decoded)) => {
                if is_unreserved(decoded) {
                    out.push(char::from(decoded));
                } else {
                    push_encoded(&mut out, decoded);
                }
                at += 2;
            }
            (Class::Percent | Class::Foreign, _) => push_encoded(&mut out, *byte),
            (Class::Plain | Class::Slash | Class::Semicolon, _) => out.push(char::from(*byte)),
        }
        at += 1;
    }
    out
}

fn push_encoded(out: &mut String, byte: u8) {
    let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value & 15)]);
    out.extend(['%', digit(byte >> 4), digit(byte)]);
}

/// What services may take a doubtful path for, in its forwarded form: with some or all of what could part segments parting
/// them, with and without parameters (left out before or after), and dot segments that this makes kept, resolved
/// before or resolved after slashes are merged. Each reading once, in the matched form; `None` for a path that is too
/// long to be read so often, and for one with a NUL or a fragment, at which some stop and for which there is no use.
pub(crate) fn other_readings(forwarded: &str) -> Option<Vec<String>> {
    if forwarded.len() > MAX_DOUBTFUL || forwarded.contains('#') || forwarded.contains("%00") {
        return None;
    }
    // A backslash as it is may part segments where an encoded one does not.
    let parted = forwarded.contains('\\').then(|| forwarded.replace('\\', "/"));
    let mut readings = Vec::new();
    for path in std::iter::once(forwarded).chain(parted.as_deref()) {
        let plain = matched(path, Slashes::Kept);
        // To those who decode first.
        let decoded = plain.contains("%3B").then(|| plain.replace("%3B", ";"));
        for plain in std::iter::once(plain).chain(decoded) {
            add_readings(&plain, &mut readings);
        }
    }
    Some(readings)
}

fn add_readings(plain: &str, readings: &mut Vec<String>) {
    let parted: [fn(&str) -> String; 4] = [
        str::to_owned,
        |path| path.replace("%2F", "/"),
        |path| path.replace("%5C", "/"),
        |path| path.replace("%2F", "/").replace("%5C", "/"),
    ];
    for parted in parted {
        for path in [parted(plain), bare(&parted(plain)), parted(&bare(plain))] {
            let merged = |path: &str| matched(path, Slashes::Merged);
            let kept = merged(&path);
            let resolved = merged(&without_dot_segments(&path));
            let resolved_after = merged(&without_dot_segments(&kept));
            for reading in [kept, resolved, resolved_after] {
                if !readings.contains(&reading) {
                    readings.push(reading);
                }
            }
        }
    }
}

/// The path without what follows semicolons in its segments.
fn bare(path: &str) -> String {
    let bare = |segment: &'_ str| segment.split(';').next().unwrap_or_default().to_owned();
    path.split('/').map(bare).collect::<Vec<_>>().join("/")
}

/// The form in which rules and rewrites hold a path: as matched, without a slash at the end for a prefix.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn of_rule(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("the path {path:?} must begin with a slash"));
    }
    if let Some(sign) = path.chars().find(|c| matches!(c, '?' | '#') || c.is_control()) {
        return Err(format!("the path {path:?} may not have {sign:?} in it"));
    }
    let forms = Forms::of(path);
    if matches!(forms.forwarded, Cow::Owned(_)) {
        return Err(format!(
            "the path {path:?} has `.` or `..` in it, which no request has; resolve it"
        ));
    }
    Ok(forms.matched.into_owned())
}

/// The matched form of a prefix, without slashes at its end: empty for `/`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn prefix_of_rule(path: &str) -> Result<String, String> {
    of_rule(path).map(|path| path.trim_end_matches('/').to_owned())
}

/// Whether `matched` begins with the whole segments of `prefix`, a path from [`prefix_of_rule`].
pub(crate) fn has_prefix(matched: &str, prefix: &str) -> bool {
    let rest = matched.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.starts_with('/') || (rest.is_empty() && !prefix.is_empty()))
}

/// What follows the segments of `prefix` in a forwarded path, empty or from the next slash on; `None` if it does not
/// begin with them in its matched form.
pub(crate) fn after_prefix<'p>(forwarded: &'p str, prefix: &str) -> Option<&'p str> {
    let mut rest = forwarded;
    for wanted in prefix.split('/').filter(|segment| !segment.is_empty()) {
        let start = rest.trim_start_matches('/');
        if start.len() == rest.len() {
            return None;
        }
        let end = start.find('/').unwrap_or(start.len());
        if start[..end] != *wanted && matched(&start[..end], Slashes::Merged) != wanted {
            return None;
        }
        rest = &start[end..];
    }
    Some(rest)
}

/// A path fit to be sent: begins with one slash, has no dot segments and only characters that may stand in a path.
pub(crate) fn fit(path: &str) -> String {
    let rooted = format!("/{}", encoded(path.trim_start_matches('/')));
    // Resolving dots can bring slashes to the front again (`/.//x`).
    format!("/{}", forwarded(&rooted).trim_start_matches('/'))
}

/// `path` with what may not stand in a path percent-encoded, but for triplets that are so already.
pub(crate) fn encoded(path: &str) -> String {
    encode(path, "")
}

/// The same for a query, in which `?` may stand too (RFC 3986, 3.4); its percent signs are the client's own affair.
pub(crate) fn encoded_query(query: &str) -> String {
    encode(query, "?%")
}

fn encode(text: &str, also: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    for (at, byte) in bytes.iter().enumerate() {
        match class(*byte) {
            _ if also.as_bytes().contains(byte) => out.push(char::from(*byte)),
            Class::Percent if percent_decoded(&bytes[at..]).is_some() => out.push('%'),
            Class::Percent | Class::Foreign => push_encoded(&mut out, *byte),
            Class::Plain | Class::Slash | Class::Semicolon => out.push(char::from(*byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        for (path, forwarded, matched, doubtful) in [
            ("/", "/", "/", false),
            ("", "/", "/", false),
            ("*", "*", "*", false),
            ("/a/b.c/.well-known/...", "/a/b.c/.well-known/...", "/a/b.c/.well-known/...", false),
            ("//a///b//", "//a///b//", "/a/b/", false),
            ("/%61%7e%2D", "/%61%7e%2D", "/a~-", false),
            ("/a%20b%c3%a4", "/a%20b%c3%a4", "/a%20b%C3%A4", false),
            ("/ä b", "/ä b", "/%C3%A4%20b", false),
            ("/a%zz%4", "/a%zz%4", "/a%25zz%254", false),
            ("/a/../b", "/b", "/b", false),
            ("/a/%2e%2E/b", "/b", "/b", false),
            ("/a/.%2e", "/", "/", false),
            ("/a/./b/.", "/a/b/", "/a/b/", false),
            ("/../../x", "/x", "/x", false),
            ("/a//../b", "/a/b", "/a/b", false),
            ("/.//x", "//x", "/x", false),
            ("/a/...", "/a/...", "/a/...", false),
            ("/a/..b", "/a/..b", "/a/..b", false),
            ("/a%2fb", "/a%2fb", "/a%2Fb", true),
            ("/a\\b", "/a\\b", "/a%5Cb", true),
            ("/a;x=1/b", "/a;x=1/b", "/a;x=1/b", true),
            ("/a%3bx=1/b", "/a%3bx=1/b", "/a%3Bx=1/b", true),
            ("/a%252fb", "/a%252fb", "/a%252fb", false),
            ("/a#b", "/a#b", "/a%23b", true),
            ("/a%23b%00", "/a%23b%00", "/a%23b%00", true),
        ] {
            let forms = Forms::of(path);
            let found = (&*forms.forwarded, &*forms.matched, forms.doubtful);
            assert_eq!(found, (forwarded, matched, doubtful), "{path}");
        }
    }

    #[test]
    fn what_needs_no_change_is_not_copied() {
        for path in ["/", "/api/users/17", "/.well-known/acme-challenge/x", "/a%20b", "/a;b", "*"] {
            let forms = Forms::of(path);
            assert!(matches!(forms.forwarded, Cow::Borrowed(_)), "{path}");
            assert!(matches!(forms.matched, Cow::Borrowed(_)), "{path}");
        }
    }

    #[test]
    fn readings() {
        for (path, expected) in [
            ("/a%2Fb", vec!["/a%2Fb", "/a/b"]),
            ("/%2fadmin", vec!["/%2Fadmin", "/admin"]),
            (
                "/x%2F..%5Cadmin",
                vec!["/x%2F..%5Cadmin", "/x/..%5Cadmin", "/x%2F../admin", "/x/../admin", "/admin"],
            ),
            ("/x/..;y=1/admin;z", vec!["/x/..;y=1/admin;z", "/x/../admin", "/admin"]),
            ("/;x%2Fadmin/a", vec!["/;x%2Fadmin/a", "/a", "/;x/admin/a", "/admin/a"]),
            ("/admin%3bx", vec!["/admin%3Bx", "/admin;x", "/admin"]),
            ("/x/..;/a//..;/b", vec!["/x/..;/a/..;/b", "/x/../a/../b", "/a/b", "/b"]),
        ] {
            assert_eq!(other_readings(path).unwrap(), expected, "{path}");
        }
        let long = format!("/{};", "a".repeat(MAX_DOUBTFUL));
        assert_eq!(other_readings(&long), None);
        assert_eq!(["/a%00", "/a#b"].map(other_readings), [None, None]);
    }

    #[test]
    fn prefixes_are_whole_segments() {
        for (path, prefix, in_rule, rest) in [
            ("/api", "/api", true, Some("")),
            ("/api/", "/api/", true, Some("/")),
            ("/api", "/api/", true, Some("")),
            ("/api/x", "/api", true, Some("/x")),
            ("/apis", "/api", false, None),
            ("//api//x", "/api", true, Some("//x")),
            ("/%61pi/%78", "/api", true, Some("/%78")),
            ("/", "/", true, Some("/")),
            ("/x", "/", true, Some("/x")),
            ("*", "/", false, Some("*")),
            ("/a/b/c", "/a/b", true, Some("/c")),
            ("/a", "/a/b", false, None),
        ] {
            let prefix = prefix_of_rule(prefix).unwrap();
            let forms = Forms::of(path);
            assert_eq!(has_prefix(&forms.matched, &prefix), in_rule, "{path} {prefix}");
            assert_eq!(after_prefix(&forms.forwarded, &prefix), rest, "{path} {prefix}");
        }
        for bad in ["api", "", "/a/../b", "/a?b", "/a#b", "/a\nb"] {
            assert!(prefix_of_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fit_paths() {
        for (path, expected) in [
            ("", "/"),
            ("a", "/a"),
            ("//evil.example/x", "/evil.example/x"),
            ("/a/../../b c", "/b%20c"),
            ("/a?b#c%41%", "/a%3Fb%23c%41%25"),
            ("/.//x", "/x"),
        ] {
            assert_eq!(fit(path), expected, "{path}");
        }
    }

    fn awkward() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "//", ".", "..", "a", "b", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%61", "%", "ä",
            " ",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn forms_are_stable_and_have_nothing_left_to_resolve(path in awkward()) {
            let forms = Forms::of(&path);
            prop_assert_eq!(&Forms::of(&forms.forwarded).forwarded, &forms.forwarded);
            let again = Forms::of(&forms.matched);
            prop_assert_eq!(&again.matched, &forms.matched);
            prop_assert_eq!(&Forms::of(&forms.forwarded).matched, &forms.matched);
            prop_assert!(!forms.matched.contains("//"));
            prop_assert!(!forms.matched.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(forms.matched.is_ascii());
        }

        #[test]
        fn a_prefix_matches_alike_in_both_forms(
            path in awkward(),
            prefix in "(/[ab]){0,2}",
        ) {
            let forms = Forms::of(&path);
            let rest = after_prefix(&forms.forwarded, &prefix);
            prop_assert_eq!(rest.is_some(), has_prefix(&forms.matched, &prefix));
            if let Some(rest) = rest {
                prop_assert!(rest.is_empty() || rest.starts_with('/'));
            }
        }

        #[test]
        fn fit_paths_stay(path in "\\PC{0,30}|[/.%a2e]{0,20}") {
            let fitted = fit(&path);
            prop_assert!(fitted.starts_with('/') && !fitted.starts_with("//"));
            prop_assert_eq!(fit(&fitted), fitted);
        }
    }
}
