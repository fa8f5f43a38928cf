//! Answers that two programs could understand differently, and what the strict reading of RFC 9112 makes of them.

use super::Meant::{self, Either, Passed, Refused};
use crate::recorder::Then::{self, Close, Keep};

/// What an endpoint sends, byte for byte, and then.
pub struct Case {
    pub name: &'static str,
    pub raw: Vec<u8>,
    pub then: Then,
    pub meant: Meant,
}

/// An answer that nobody asked for.
const EXTRA: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEXTRA";

fn case(name: &'static str, raw: impl Into<Vec<u8>>, then: Then, meant: Meant) -> Case {
    Case { name, raw: raw.into(), then, meant }
}

/// 200 with these header lines and this body.
fn ok(name: &'static str, lines: &str, body: &str, meant: Meant) -> Case {
    case(name, format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}"), Keep, meant)
}

/// 200 with chunks. The connection ends afterwards, so that nobody waits for more.
fn chunked(name: &'static str, body: &str, meant: Meant) -> Case {
    let raw = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    case(name, raw, Close, meant)
}

/// A first line of its own.
fn line(name: &'static str, first: &str, meant: Meant) -> Case {
    case(name, format!("{first}\r\nContent-Length: 3\r\n\r\nabc"), Keep, meant)
}

const ABC: &[&str] = &["200 abc"];

/// All cases, by what they are about.
pub fn all() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        ("Where they end", ends()),
        ("Their chunks", chunks()),
        ("Their heads", heads()),
        ("Announcements", announcements()),
        ("More than one", more()),
    ]
}

fn ends() -> Vec<Case> {
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let te = |name, lines: &str, meant| ok(name, lines, body, meant);
    vec![
        ok("plain", "Content-Length: 3\r\n", "abc", Passed(ABC)),
        ok(
            "length, twice the same",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "abc",
            Either(ABC),
        ),
        ok("length, a list of the same", "Content-Length: 3, 3\r\n", "abc", Either(ABC)),
        ok("length, different", "Content-Length: 3\r\nContent-Length: 0\r\n", "abc", Refused),
        ok("length with a sign", "Content-Length: +3\r\n", "abc", Refused),
        ok("length that is none", "Content-Length: x\r\n", "abc", Refused),
        ok("length of 2^64 + 3", "Content-Length: 18446744073709551619\r\n", "abc", Refused),
        te("chunked", "Transfer-Encoding: chunked\r\n", Passed(ABC)),
        te("both lengths", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", Either(ABC)),
        te(
            "both lengths, the other first",
            "Transfer-Encoding: chunked\r\nContent-Length: 99\r\n",
            Either(ABC),
        ),
        te("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n", Refused),
        te("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", Either(ABC)),
        te("a coding that is none", "Transfer-Encoding: xchunked\r\n", Refused),
        te("space before the colon of the coding", "Transfer-Encoding : chunked\r\n", Refused),
        case(
            "chunked with HTTP/1.0",
            format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
            Close,
            Refused,
        ),
        case("until the connection ends", "HTTP/1.1 200 OK\r\n\r\nabc", Close, Passed(ABC)),
        case("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nabc", Close, Passed(ABC)),
        case("cut off", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Close, Refused),
        case(
            "chunked, cut off",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            Close,
            Refused,
        ),
    ]
}

fn chunks() -> Vec<Case> {
    vec![
        chunked("extension", "3;a=b\r\nabc\r\n0\r\n\r\n", Passed(ABC)),
        chunked("trailer", "3\r\nabc\r\n0\r\nX: y\r\n\r\n", Passed(ABC)),
        chunked("0x", "0x3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("two sizes", "3 3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^64 + 3", "10000000000000003\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("bare LF after the size", "3\nabc\r\n0\r\n\r\n", Refused),
        chunked("bare LF after the data", "3\r\nabc\n0\r\n\r\n", Refused),
        chunked("data longer than the size", "3\r\nabcd\r\n0\r\n\r\n", Refused),
        chunked("a length as a trailer", "3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n", Refused),
    ]
}

fn heads() -> Vec<Case> {
    let field =
        |name, lines: &str, meant| ok(name, &format!("{lines}Content-Length: 3\r\n"), "abc", meant);
    vec![
        line("no reason", "HTTP/1.1 200 ", Passed(ABC)),
        line("no space before the missing reason", "HTTP/1.1 200", Either(ABC)),
        line("status of two digits", "HTTP/1.1 20 OK", Refused),
        line("status of four digits", "HTTP/1.1 2000 OK", Refused),
        line("status 099", "HTTP/1.1 099 OK", Refused),
        line("status 999", "HTTP/1.1 999 What", Either(&["999 abc"])),
        line("status in letters", "HTTP/1.1 OK", Refused),
        line("two spaces", "HTTP/1.1  200 OK", Refused),
        line("tab", "HTTP/1.1\t200 OK", Refused),
        line("HTTP/2.0", "HTTP/2.0 200 OK", Refused),
        line("http/1.1", "http/1.1 200 OK", Refused),
        line("an empty line before", "\r\nHTTP/1.1 200 OK", Refused),
        case("no head at all", "hello\r\n", Close, Refused),
        case("nothing", "", Close, Refused),
        case("a head without an end", "HTTP/1.1 200 OK\r\nX: y\r\n", Close, Refused),
        field("folded", "X: y\r\n z\r\n", Refused),
        field("space before the colon", "X : y\r\n", Refused),
        field("no colon", "X\r\n", Refused),
        field("NUL", "X: \0\r\n", Refused),
        field("bare CR", "X: y\rZ: z\r\n", Refused),
        field("bare LF", "X: y\nZ: z\r\n", Either(ABC)),
        case("bare LF only", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", Keep, Either(ABC)),
        field("value of 70,000 bytes", &format!("X: {}\r\n", "y".repeat(70_000)), Refused),
        field("1,000 header lines", &"X: y\r\n".repeat(1_000), Refused),
    ]
}

fn announcements() -> Vec<Case> {
    let then = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    vec![
        case("one", format!("{hint}{then}"), Keep, Passed(ABC)),
        case(
            "with a length",
            format!("HTTP/1.1 103 Early Hints\r\nContent-Length: 99\r\n\r\n{then}"),
            Keep,
            Passed(ABC),
        ),
        case("1,000 of them", format!("{}{then}", hint.repeat(1_000)), Keep, Refused),
        case("and then nothing", hint, Close, Refused),
        case(
            "another protocol that nobody wanted",
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n{then}"
            ),
            Keep,
            Refused,
        ),
    ]
}

fn more() -> Vec<Case> {
    vec![
        ok("an answer too many", "Content-Length: 3\r\n", &format!("abc{EXTRA}"), Passed(ABC)),
        ok("body longer than its length", "Content-Length: 3\r\n", "abcdefghi", Passed(ABC)),
        ok(
            "an answer too many behind chunks",
            "Transfer-Encoding: chunked\r\n",
            &format!("3\r\nabc\r\n0\r\n\r\n{EXTRA}"),
            Passed(ABC),
        ),
        case(
            "an answer too many behind 204",
            format!("HTTP/1.1 204 No Content\r\n\r\n{EXTRA}"),
            Keep,
            Passed(&["204"]),
        ),
        case(
            "204 with a body",
            "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
            Keep,
            Either(&["204"]),
        ),
        case(
            "204 with chunks",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            Keep,
            Either(&["204"]),
        ),
        case(
            "304 with a body",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc",
            Keep,
            Passed(&["304"]),
        ),
    ]
}
