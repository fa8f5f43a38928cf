//! Which answers are compressed, and how (RFC 9110, 8.4 and 12.5.3).
//!
//! Two steps, because the request is gone by the time the answer comes: what the client accepts, and whether this answer is
//! worth it. Whoever compresses also leaves out the fields in [`DROPPED`], which speak of the bytes as they were, and
//! weakens the `ETag` ([`weak_etag`]): the two forms mean the same but are not the same bytes. Conditional requests
//! go on to work, as `If-None-Match` compares weakly (RFC 9110, 13.1.2); `If-Match` and ranges do not, for compressed
//! answers.

use keel_model::{Compress, Encoding};

use crate::request::{Headers, any_value};
use crate::rule::is_token;

/// Fields of an answer that do not hold for its compressed form (`content-encoding` and a weak `etag` come instead).
pub const DROPPED: &[&str] =
    &["content-length", "accept-ranges", "content-md5", "digest", "content-digest"];

/// How answers of a route are compressed.
#[derive(Clone, Debug)]
pub struct Compression {
    encodings: Vec<Encoding>,
    min_size: u64,
    types: Vec<MediaRange>,
}

/// What an answer says about itself.
#[derive(Clone, Copy)]
pub struct ResponseView<'a> {
    /// Its status.
    pub status: u16,
    /// It answers a `HEAD` request.
    pub head: bool,
    /// Its length in bytes, if that is known.
    pub content_length: Option<u64>,
    /// Its header fields.
    pub headers: &'a dyn Headers,
}

/// What is done to an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coding {
    /// Compressed so.
    pub encoding: Option<Encoding>,
    /// `Accept-Encoding` belongs into its `Vary`, compressed or not: another client may get another form.
    pub vary: bool,
}

#[derive(Clone, Debug)]
enum MediaRange {
    All,
    /// With its slash.
    Family(Box<str>),
    Exact(Box<str>),
}

impl MediaRange {
    fn new(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (family, subtype) = text.split_once('/')?;
        match (family, subtype) {
            ("*", "*") => Some(Self::All),
            _ if family.contains('*') => None,
            (_, "*") if is_token(family) => Some(Self::Family(format!("{family}/").into())),
            _ if is_token(family) && is_token(subtype) => Some(Self::Exact(text.into())),
            _ => None,
        }
    }

    fn has(&self, media_type: &str) -> bool {
        match self {
            // Events are sent as they happen; a compressor would sit on them until it has enough.
            Self::All => !media_type.eq_ignore_ascii_case("text/event-stream"),
            Self::Family(family) => {
                media_type.get(..family.len()).is_some_and(|f| f.eq_ignore_ascii_case(family))
                    && !media_type.eq_ignore_ascii_case("text/event-stream")
            }
            Self::Exact(exact) => media_type.eq_ignore_ascii_case(exact),
        }
    }
}

impl Compression {
    pub(crate) fn new(declared: &Compress, problems: &mut Vec<String>) -> Self {
        if declared.encodings.is_empty() {
            problems.push("compress: no encoding is named; name zstd, br or gzip".into());
        }
        let range = |text: &String| {
            let range = MediaRange::new(text);
            if range.is_none() {
                problems.push(format!(
                    "compress: {text:?} is not a media type like `application/json` or `text/*`"
                ));
            }
            range
        };
        let types = declared.types.iter().filter_map(range).collect();
        Self { encodings: declared.encodings.clone(), min_size: declared.min_size, types }
    }

    /// The best coding that the sender of these header fields accepts.
    #[must_use]
    pub fn accepted(&self, request: &dyn Headers) -> Option<Encoding> {
        let weights = Weights::of(request);
        let mut best: Option<(u16, Encoding)> = None;
        for encoding in &self.encodings {
            let weight = weights.of_coding(*encoding);
            // Only a greater weight wins over one that is named before.
            if weight > 0 && best.is_none_or(|(most, _)| weight > most) {
                best = Some((weight, *encoding));
            }
        }
        let identity = weights.identity.unwrap_or(0);
        best.filter(|(weight, _)| *weight >= identity).map(|(_, encoding)| encoding)
    }

    /// What is done to an answer for a client that accepts `accepted`.
    #[must_use]
    pub fn choose(&self, accepted: Option<Encoding>, response: &ResponseView<'_>) -> Coding {
        if !self.is_worth_it(response) {
            return Coding::default();
        }
        // The answer to `HEAD` has no body, and its length is that of a body as it is.
        Coding { encoding: accepted.filter(|_| !response.head), vary: true }
    }

    fn is_worth_it(&self, response: &ResponseView<'_>) -> bool {
        let ResponseView { status, content_length, headers, .. } = *response;
        let may_have_body = status >= 200 && !matches!(status, 204 | 205 | 206 | 304);
        if !may_have_body || content_length.is_some_and(|length| length < self.min_size) {
            return false;
        }
        let coded = any_value(headers, "content-encoding", &mut |value| {
            !value.trim_ascii().eq_ignore_ascii_case(b"identity")
        });
        let forbidden = any_value(headers, "cache-control", &mut |value| {
            let mut directives = value.split(|byte| *byte == b',');
            directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
        });
        if coded || forbidden || headers.get("content-range").is_some() {
            return false;
        }
        let media_type =
            headers.get("content-type").and_then(|value| std::str::from_utf8(value).ok());
        let media_type = media_type.and_then(|value| value.split(';').next()).map(str::trim);
        media_type.is_some_and(|media_type| self.types.iter().any(|range| range.has(media_type)))
    }
}

/// How much a client likes each coding, in thousandths.
#[derive(Debug, Default)]
struct Weights {
    zstd: Option<u16>,
    br: Option<u16>,
    gzip: Option<u16>,
    identity: Option<u16>,
    others: Option<u16>,
}

impl Weights {
    fn of(request: &dyn Headers) -> Self {
        let mut weights = Self::default();
        any_value(request, "accept-encoding", &mut |value| {
            let value = std::str::from_utf8(value).unwrap_or_default();
            for element in value.split(',') {
                let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
                if let (Some(slot), Some(weight)) = (weights.slot(name.trim()), weight(parameters))
                {
                    *slot = Some(weight);
                }
            }
            false
        });
        weights
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<u16>> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("zstd") => Some(&mut self.zstd),
            () if is("br") => Some(&mut self.br),
            () if is("gzip") || is("x-gzip") => Some(&mut self.gzip),
            () if is("identity") => Some(&mut self.identity),
            () if is("*") => Some(&mut self.others),
            () => None,
        }
    }

    /// 0: not accepted.
    fn of_coding(&self, encoding: Encoding) -> u16 {
        let named = match encoding {
            Encoding::Zstd => self.zstd,
            Encoding::Br => self.br,
            Encoding::Gzip => self.gzip,
        };
        named.or(self.others).unwrap_or(0)
    }
}

/// The weight in the parameters of an element (RFC 9110, 12.4.2), in thousandths; nothing if it is malformed.
fn weight(parameters: &str) -> Option<u16> {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return Some(1000);
    }
    let (name, value) = parameters.split_once('=')?;
    let (whole, rest) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    let fits = name.trim().eq_ignore_ascii_case("q") && rest.len() <= 3;
    let digits = rest.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" if fits && digits => Some(thousandths),
        "1" if fits && thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// The name of a coding in `Content-Encoding`.
#[must_use]
pub fn coding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Zstd => "zstd",
        Encoding::Br => "br",
        Encoding::Gzip => "gzip",
    }
}

/// The weak form of a strong `ETag`; nothing for one that is weak already.
#[must_use]
pub fn weak_etag(etag: &[u8]) -> Option<Vec<u8>> {
    etag.starts_with(b"\"").then(|| [b"W/", etag].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::tests::Fields;

    fn compression() -> Compression {
        let mut problems = Vec::new();
        let compression = Compression::new(&Compress::default(), &mut problems);
        assert_eq!(problems, [""; 0]);
        compression
    }

    #[test]
    fn what_clients_accept() {
        use Encoding::{Br, Gzip, Zstd};
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Br)),
            ("gzip", Some(Gzip)),
            ("GZIP", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("deflate", None),
            ("", None),
            ("*", Some(Zstd)),
            ("*;q=0.5, gzip", Some(Gzip)),
            ("zstd;q=0, *", Some(Br)),
            ("gzip;q=0.9, br;q=0.8", Some(Gzip)),
            ("gzip;q=0.001", Some(Gzip)),
            ("gzip;q=0", None),
            ("gzip;q=0.000, br ; q = 1.000", Some(Br)),
            ("gzip;q=0.5, identity", None),
            ("gzip;q=0.5, identity;q=0.5", Some(Gzip)),
            ("identity;q=0, *;q=0", None),
            ("gzip;q=2, br;q=x, zstd;q=0.1234", None),
            ("gzip;level=1", None),
        ] {
            let headers: Fields<'_> = &[("Accept-Encoding", accept)];
            assert_eq!(compression().accepted(&headers), expected, "{accept}");
        }
        let none: Fields<'_> = &[];
        assert_eq!(compression().accepted(&none), None);
        let two: Fields<'_> = &[("accept-encoding", "gzip"), ("accept-encoding", "br")];
        assert_eq!(compression().accepted(&two), Some(Br));
    }

    #[test]
    fn which_answers_are_compressed() {
        let html = ("content-type", "text/html; charset=utf-8");
        for (status, length, headers, expected) in [
            (200, None, &[html] as Fields<'_>, true),
            (200, Some(1024), &[html], true),
            (200, Some(1023), &[html], false),
            (404, None, &[("Content-Type", "APPLICATION/JSON")], true),
            (200, None, &[("content-type", "image/png")], false),
            (200, None, &[("content-type", "text")], false),
            (200, None, &[("content-type", "text/event-stream")], false),
            (200, None, &[("content-type", "application/grpc")], false),
            (200, None, &[], false),
            (204, None, &[html], false),
            (206, None, &[html], false),
            (304, None, &[html], false),
            (101, None, &[html], false),
            (200, None, &[html, ("content-encoding", "gzip")], false),
            (200, None, &[html, ("content-encoding", "identity")], true),
            (200, None, &[html, ("cache-control", "public, No-Transform")], false),
            (200, None, &[html, ("content-range", "bytes 0-1/2")], false),
        ] {
            let view =
                ResponseView { status, head: false, content_length: length, headers: &headers };
            let chosen = compression().choose(Some(Encoding::Br), &view);
            let encoding = expected.then_some(Encoding::Br);
            assert_eq!(chosen, Coding { encoding, vary: expected }, "{status} {headers:?}");
            let plain = compression().choose(None, &view);
            assert_eq!(plain, Coding { encoding: None, vary: expected });
            let head =
                compression().choose(Some(Encoding::Br), &ResponseView { head: true, ..view });
            assert_eq!(head, Coding { encoding: None, vary: expected });
        }
    }

    #[test]
    fn events_are_compressed_only_by_name() {
        let types = vec!["text/event-stream".to_owned()];
        let by_name = Compression::new(&Compress { types, ..Compress::default() }, &mut Vec::new());
        let all = Compress { types: vec!["*/*".to_owned()], ..Compress::default() };
        let all = Compression::new(&all, &mut Vec::new());
        let headers: Fields<'_> = &[("content-type", "text/event-stream")];
        let view =
            ResponseView { status: 200, head: false, content_length: None, headers: &headers };
        assert!(by_name.choose(None, &view).vary);
        assert!(!all.choose(None, &view).vary);
    }

    #[test]
    fn etags_become_weak() {
        assert_eq!(weak_etag(b"\"a\"").as_deref(), Some(b"W/\"a\"".as_slice()));
        assert_eq!(weak_etag(b"W/\"a\""), None);
        assert_eq!(weak_etag(b"a"), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (encodings, types) in
            [(vec![], "text/*"), (vec![Encoding::Br], "text"), (vec![Encoding::Br], "*/x")]
        {
            let declared = Compress { encodings, min_size: 0, types: vec![types.to_owned()] };
            let mut problems = Vec::new();
            Compression::new(&declared, &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn random_fields_never_panic(accept in "[a-z*;,q=.0-9 ]{0,40}|\\PC{0,20}", media in "\\PC{0,20}") {
            let headers: Fields<'_> = &[("accept-encoding", &accept), ("content-type", &media)];
            let accepted = compression().accepted(&headers);
            let view = ResponseView { status: 200, head: false, content_length: None, headers: &headers };
            let _ = compression().choose(accepted, &view);
        }
    }
}
