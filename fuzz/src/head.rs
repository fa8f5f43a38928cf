//! Heads of requests and answers: what is passed on means what came in, and can be read in one way only.

use keel_proxy::fuzz::{Ends, MAX_FIELDS, MAX_HEAD, RequestHead, ResponseHead};

use crate::plain::{self, Framing, values};

/// Of one hop: never passed on.
const HOP: &[&str] = &["keep-alive", "proxy-connection", "te", "http2-settings"];
/// Written by the proxy.
const OURS: &[&str] =
    &["host", "connection", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// `request_head`.
pub fn request(bytes: &[u8]) {
    let whole = RequestHead::read(bytes);
    for cut in crate::cuts(bytes, 3) {
        crate::stands(&whole, &RequestHead::read(&bytes[..cut]), RequestHead::length, cut);
    }
    if let Ok(Some(head)) = whole {
        accepted_request(bytes, &head);
    }
}

fn accepted_request(bytes: &[u8], head: &RequestHead) {
    assert!(head.length() <= bytes.len().min(MAX_HEAD));
    let came = bytes[..head.length()].trim_ascii_start();
    let (first, fields) = plain::head(came);
    let (passed_first, passed) = plain::head(&head.passed_on);
    assert!(fields.len() <= MAX_FIELDS);

    let words: Vec<_> = first.split(' ').collect();
    let passed_words: Vec<_> = passed_first.split(' ').collect();
    assert_eq!((words.len(), passed_words.len()), (3, 3), "{first:?} {passed_first:?}");
    assert_eq!((words[0], "HTTP/1.1"), (passed_words[0], passed_words[2]));
    assert!(passed_words[1].starts_with('/') || passed_words[1] == "*", "{passed_first:?}");

    let framing = plain::framing(&fields);
    assert_eq!(plain::framing(&passed), framing);
    let expected = match framing {
        Framing::Chunked => Ends::Chunked,
        Framing::Length(length) => Ends::After(length),
        Framing::Nothing => Ends::After(0),
    };
    assert_eq!(head.body(), expected);
    assert!(values(&passed, "content-length").len() <= 1);
    assert_eq!(values(&passed, "host").len(), 1);
    assert_eq!(values(&passed, "x-forwarded-for").len(), 1);
    for field in &passed {
        assert!(!HOP.contains(&field.0.as_str()), "{} was passed on", field.0);
        let ours = OURS.contains(&field.0.as_str());
        assert!(ours || fields.contains(field), "{} came from nowhere", field.0);
    }
    let connections = values(&passed, "connection");
    assert_eq!(connections, if head.upgrade() { vec![&b"Upgrade"[..]] } else { vec![] });
    let upgrades = values(&passed, "upgrade");
    assert_eq!(head.upgrade(), !upgrades.is_empty());
    for protocol in upgrades.iter().flat_map(|value| value.split(|b| *b == b',')) {
        let protocol = protocol.trim_ascii().to_ascii_lowercase();
        assert!(!protocol.starts_with(b"h2"), "HTTP/2 was asked for unseen");
    }

    if passed.len() > MAX_FIELDS {
        return; // Those that were added are too many for ourselves.
    }
    let again = RequestHead::read(&head.passed_on);
    let Ok(Some(again)) = again else { panic!("what is passed on is not read again: {again:?}") };
    assert_eq!(again.length(), head.passed_on.len());
    assert_eq!((again.body(), again.upgrade()), (head.body(), head.upgrade()));
    assert!(again.keep_alive());
}

/// `response_head`. The first byte chooses what was asked and how.
pub fn response(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let asked: &[u8] = match choice % 4 {
        0 => b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        1 => b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        2 => b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        _ => b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    };
    let Ok(Some(asked)) = RequestHead::read(asked) else { panic!("a good request") };
    let keep_alive = choice & 4 == 0;
    let whole = ResponseHead::read(bytes, &asked, keep_alive);
    for cut in crate::cuts(bytes, 3) {
        let part = ResponseHead::read(&bytes[..cut], &asked, keep_alive);
        crate::stands(&whole, &part, |head| head.length, cut);
    }
    if let Ok(Some(head)) = whole {
        accepted_response(*choice, &head, bytes.len());
    }
}

fn accepted_response(choice: u8, head: &ResponseHead, length: usize) {
    let (is_head, http10, keep_alive) = (choice % 4 == 1, choice % 4 == 2, choice & 4 == 0);
    assert!(head.length <= length.min(MAX_HEAD));
    let (first, fields) = plain::head(&head.passed_on);
    let line = first.strip_prefix("HTTP/1.1 ").expect("the version is ours");
    let (status, reason) = line.split_at(3.min(line.len()));
    assert_eq!(status.parse(), Ok(head.status), "{first:?}");
    assert!(reason.is_empty() || reason.starts_with(' '), "{first:?}");
    assert!(head.status >= 100);

    let framing = plain::framing(&fields);
    let interim = head.status < 200;
    let without = is_head || interim || matches!(head.status, 204 | 304);
    let expected = match framing {
        _ if without => Ends::After(0),
        Framing::Chunked => Ends::Chunked,
        Framing::Length(length) => Ends::After(length),
        Framing::Nothing if head.unchunk => Ends::Chunked,
        Framing::Nothing => Ends::WithConnection,
    };
    assert_eq!(head.body, expected, "{first:?}");
    if interim || head.status == 204 {
        assert_eq!(framing, Framing::Nothing, "a length where there is no body");
    }
    assert!(values(&fields, "content-length").len() <= 1);
    assert!(!http10 || framing != Framing::Chunked, "chunks for a client that knows none");
    if head.body == Ends::WithConnection || (head.unchunk && head.body == Ends::Chunked) {
        assert!(!head.keep_alive, "nobody could tell the end");
        assert!(head.body != Ends::WithConnection || !head.reusable);
    }
    assert!(keep_alive || !head.keep_alive);
    let connections = values(&fields, "connection");
    let closes = connections.iter().any(|value| value.eq_ignore_ascii_case(b"close"));
    assert!(connections.len() <= 1 && (interim || closes != head.keep_alive), "{connections:?}");
    for name in HOP {
        assert!(values(&fields, name).is_empty(), "{name} was passed on");
    }
}
