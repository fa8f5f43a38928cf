//! Requests that two programs could understand differently, and what the strict reading of RFC 9112 makes of them.

use super::Meant::{self, Either, Passed, Refused};

/// One request (or several), byte for byte.
pub struct Case {
    pub name: &'static str,
    pub raw: Vec<u8>,
    pub meant: Meant,
}

/// What follows a request that is smuggled, or just the next one. It is the last one on its connection.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

const FIRST: &str = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";

fn case(name: &'static str, raw: impl Into<Vec<u8>>, meant: Meant) -> Case {
    Case { name, raw: raw.into(), meant }
}

/// A `POST` with these header lines, this body, and another request behind it.
fn post(name: &'static str, lines: &str, body: &str, meant: Meant) -> Case {
    let raw = format!("POST /1 HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}{NEXT}");
    case(name, raw, meant)
}

/// A `POST` with chunks.
fn chunked(name: &'static str, body: &str, meant: Meant) -> Case {
    post(name, "Transfer-Encoding: chunked\r\n", body, meant)
}

/// A `GET` with these header lines.
fn get(name: &'static str, lines: &str, meant: Meant) -> Case {
    case(name, format!("GET /1 HTTP/1.1\r\nHost: a\r\n{lines}\r\n{NEXT}"), meant)
}

/// A first line of its own.
fn line(name: &'static str, first: &str, meant: Meant) -> Case {
    case(name, format!("{first}\r\nHost: a\r\n\r\n{NEXT}"), meant)
}

const BOTH: &[&str] = &["GET /1", "GET /next"];
const POSTED: &[&str] = &["POST /1 abc", "GET /next"];
const EMPTY: &[&str] = &["POST /1", "GET /next"];

/// All cases, by what they are about.
pub fn all() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        ("Length", lengths()),
        ("Transfer coding", codings()),
        ("Chunks", chunks()),
        ("Trailers", trailers()),
        ("Header lines", header_lines()),
        ("Host", hosts()),
        ("First line", first_lines()),
        ("Size", sizes()),
        ("Connection", connections()),
    ]
}

fn lengths() -> Vec<Case> {
    vec![
        post("plain", "Content-Length: 3\r\n", "abc", Passed(POSTED)),
        post("twice the same", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc", Either(POSTED)),
        post("a list of the same", "Content-Length: 3, 3\r\n", "abc", Either(POSTED)),
        post("twice, different", "Content-Length: 3\r\nContent-Length: 0\r\n", "abc", Refused),
        post("a list of different ones", "Content-Length: 3, 0\r\n", "abc", Refused),
        post("an empty list element", "Content-Length: 3,\r\n", "abc", Refused),
        post("plus sign", "Content-Length: +3\r\n", "abc", Refused),
        post("minus sign", "Content-Length: -3\r\n", "abc", Refused),
        post("hexadecimal", "Content-Length: 0x3\r\n", "abc", Refused),
        post("with a point", "Content-Length: 3.0\r\n", "abc", Refused),
        post("with an exponent", "Content-Length: 3e0\r\n", "abc", Refused),
        post("in quotes", "Content-Length: \"3\"\r\n", "abc", Refused),
        post("space inside", "Content-Length: 3 3\r\n", "abc", Refused),
        post("leading zeros", "Content-Length: 003\r\n", "abc", Either(POSTED)),
        post("white space around", "Content-Length: \t 3 \t\r\n", "abc", Passed(POSTED)),
        post("no value", "Content-Length:\r\n", "abc", Refused),
        post("2^64", "Content-Length: 18446744073709551616\r\n", "abc", Refused),
        post("2^64 + 3", "Content-Length: 18446744073709551619\r\n", "abc", Refused),
        post("2^63", "Content-Length: 9223372036854775808\r\n", "abc", Refused),
        post("2^63 - 1", "Content-Length: 9223372036854775807\r\n", "abc", Refused),
        post("vertical tab before", "Content-Length: \x0b3\r\n", "abc", Refused),
        post(
            "underscore in the name",
            "Content_Length: 3\r\nContent-Length: 0\r\n",
            "",
            Passed(EMPTY),
        ),
        case(
            "on GET, not all of it",
            "GET /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
            Refused,
        ),
        case(
            "on GET, with a request for a body",
            format!("GET /1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{NEXT}", NEXT.len()),
            Passed(&["GET /1 50 bytes"]),
        ),
        case(
            "on HEAD",
            format!("HEAD /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc{NEXT}"),
            Either(&["HEAD /1 abc", "GET /next"]),
        ),
        case(
            "the body ends early",
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
            Refused,
        ),
    ]
}

fn codings() -> Vec<Case> {
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let te = |name, lines: &str, meant| post(name, lines, body, meant);
    vec![
        te("plain", "Transfer-Encoding: chunked\r\n", Passed(POSTED)),
        te("in capitals", "TRANSFER-ENCODING: CHUNKED\r\n", Passed(POSTED)),
        te("with a length before", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", Refused),
        te("with a length after", "Transfer-Encoding: chunked\r\nContent-Length: 13\r\n", Refused),
        te("with a length of 0", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", Refused),
        te("a coding that is none", "Transfer-Encoding: xchunked\r\n", Refused),
        te("identity", "Transfer-Encoding: identity\r\nContent-Length: 13\r\n", Refused),
        te("identity first", "Transfer-Encoding: identity, chunked\r\n", Refused),
        te("identity last", "Transfer-Encoding: chunked, identity\r\n", Refused),
        te("gzip", "Transfer-Encoding: gzip\r\n", Refused),
        te(
            "gzip first",
            "Transfer-Encoding: gzip, chunked\r\n",
            Either(&["POST /1 abc", "GET /next"]),
        ),
        te("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n", Refused),
        te(
            "two fields, both chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Refused,
        ),
        te(
            "two fields, one unknown",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
            Refused,
        ),
        te("in quotes", "Transfer-Encoding: \"chunked\"\r\n", Refused),
        te("with a parameter", "Transfer-Encoding: chunked;q=1\r\n", Refused),
        te("an empty list element", "Transfer-Encoding: ,chunked\r\n", Either(POSTED)),
        te("no value", "Transfer-Encoding:\r\nContent-Length: 13\r\n", Refused),
        te("white space around", "Transfer-Encoding: \t chunked \t\r\n", Passed(POSTED)),
        te("no white space", "Transfer-Encoding:chunked\r\n", Passed(POSTED)),
        te("space before the colon", "Transfer-Encoding : chunked\r\n", Refused),
        te("tab before the colon", "Transfer-Encoding\t: chunked\r\n", Refused),
        te("space before the name", " Transfer-Encoding: chunked\r\n", Refused),
        te("vertical tab before the value", "Transfer-Encoding: \x0bchunked\r\n", Refused),
        te("NUL after the value", "Transfer-Encoding: chunked\0\r\n", Refused),
        te("value on a folded line", "Transfer-Encoding:\r\n chunked\r\n", Refused),
        te("bare CR before the value", "Transfer-Encoding: \rchunked\r\n", Refused),
        te("hidden behind a bare LF", "X: y\nTransfer-Encoding: chunked\r\n", Refused),
        te("hidden behind a bare CR", "X: y\rTransfer-Encoding: chunked\r\n", Refused),
        te(
            "underscore in the name",
            "Transfer_Encoding: x\r\nTransfer-Encoding: chunked\r\n",
            Passed(POSTED),
        ),
        case(
            "with HTTP/1.0",
            format!("POST /1 HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
            Refused,
        ),
        case(
            "with HTTP/1.0 and a length",
            format!(
                "POST /1 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 13\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{body}{NEXT}"
            ),
            Refused,
        ),
        case(
            "on GET",
            format!("GET /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{NEXT}"),
            Either(&["GET /1 abc", "GET /next"]),
        ),
    ]
}

fn chunks() -> Vec<Case> {
    vec![
        chunked(
            "size in capitals",
            "A\r\n0123456789\r\n0\r\n\r\n",
            Passed(&["POST /1 0123456789", "GET /next"]),
        ),
        chunked("leading zeros", "00003\r\nabc\r\n000\r\n\r\n", Either(POSTED)),
        chunked(
            "very many leading zeros",
            &format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(40)),
            Either(POSTED),
        ),
        chunked("extension", "3;a=b;c=\"d e\"\r\nabc\r\n0;x\r\n\r\n", Passed(POSTED)),
        chunked("white space before an extension", "3 ;a\r\nabc\r\n0\r\n\r\n", Either(POSTED)),
        chunked("white space after the size", "3 \r\nabc\r\n0\r\n\r\n", Either(POSTED)),
        chunked("white space before the size", " 3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("a word after the size", "3 x\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("two sizes", "3 3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("plus sign", "+3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("minus sign", "-3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("0x", "0x3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("underscore", "0_3\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("no size", "\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("no size, but an extension", ";a\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^64", "10000000000000000\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^64 + 3", "10000000000000003\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^64 - 1", "ffffffffffffffff\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^63", "8000000000000000\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^60", "1000000000000000\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("2^52", "10000000000000\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("bare LF after the size", "3\nabc\r\n0\r\n\r\n", Refused),
        chunked("bare CR after the size", "3\rabc\r\n0\r\n\r\n", Refused),
        chunked("bare LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("bare CR in an extension", "3;a\rb\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("NUL in an extension", "3;a\0b\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("open quotes in an extension", "3;a=\"\r\nabc\r\n0\r\n\r\n", Either(POSTED)),
        chunked(
            "long extension",
            &format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20_000)),
            Either(POSTED),
        ),
        chunked("bare LF after the data", "3\r\nabc\n0\r\n\r\n", Refused),
        chunked("data longer than the size", "3\r\nabcd\r\n0\r\n\r\n", Refused),
        chunked("data shorter than the size", "5\r\nabc\r\n0\r\n\r\n", Refused),
        chunked("two bytes instead of CR LF", "3\r\nabcXX0\r\n\r\n", Refused),
        chunked("bare LF after the last size", "3\r\nabc\r\n0\n\r\n", Refused),
        chunked("bare LF at the end", "3\r\nabc\r\n0\r\n\n", Refused),
        case(
            "no end",
            "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            Refused,
        ),
    ]
}

fn trailers() -> Vec<Case> {
    let trailer =
        |name, lines: &str, meant| chunked(name, &format!("3\r\nabc\r\n0\r\n{lines}\r\n"), meant);
    vec![
        trailer("plain", "X-Sum: 1\r\n", Passed(POSTED)),
        trailer("Content-Length", "Content-Length: 99\r\n", Refused),
        trailer("Transfer-Encoding", "Transfer-Encoding: chunked\r\n", Refused),
        trailer("Host", "Host: b\r\n", Refused),
        trailer("Connection", "Connection: close\r\n", Either(POSTED)),
        trailer("folded", "X: y\r\n z\r\n", Refused),
        trailer("space before the colon", "X : y\r\n", Refused),
        trailer("no colon", "GET /smuggled HTTP/1.1\r\n", Refused),
        trailer("bare LF", "X: y\nZ: z\r\n", Refused),
        trailer("bare CR", "X: y\rZ: z\r\n", Refused),
        trailer("NUL", "X: \0\r\n", Refused),
        trailer("very many", &"X: y\r\n".repeat(3000), Refused),
    ]
}

fn header_lines() -> Vec<Case> {
    vec![
        get("folded", "X: y\r\n z\r\n", Refused),
        get("folded with a tab", "X: y\r\n\tz\r\n", Refused),
        get("folded first line", " X: y\r\n", Refused),
        get("space before the colon", "X : y\r\n", Refused),
        get("space in the name", "X Y: z\r\n", Refused),
        get("no name", ": y\r\n", Refused),
        get("no colon", "X\r\n", Refused),
        get("NUL in the name", "X\0: y\r\n", Refused),
        get("NUL in the value", "X: \0\r\n", Refused),
        get("control character in the value", "X: \x01\r\n", Refused),
        get("DEL in the value", "X: \x7f\r\n", Refused),
        get("control character in the name", "X\x01: y\r\n", Refused),
        get("brackets in the name", "X[1]: y\r\n", Refused),
        get("bare LF", "X: y\nZ: z\r\n", Refused),
        get("bare CR", "X: y\rZ: z\r\n", Refused),
        get("CR CR LF", "X: y\r\r\n", Refused),
        case("bare LF only", "GET /1 HTTP/1.1\nHost: a\n\n", Refused),
        case(
            "bare LF at the end of the head",
            format!("GET /1 HTTP/1.1\r\nHost: a\r\n\n{NEXT}"),
            Refused,
        ),
        case(
            "bytes beyond ASCII in a value",
            [&b"GET /1 HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\xff\r\n\r\n"[..], NEXT.as_bytes()]
                .concat(),
            Passed(BOTH),
        ),
        case(
            "bytes beyond ASCII in a name",
            [&b"GET /1 HTTP/1.1\r\nHost: a\r\nX\xc3\xa4: y\r\n\r\n"[..], NEXT.as_bytes()].concat(),
            Refused,
        ),
        get("empty value", "X:\r\n", Passed(BOTH)),
    ]
}

fn hosts() -> Vec<Case> {
    let hosts = |name, lines: &str, meant| {
        case(name, format!("GET /1 HTTP/1.1\r\n{lines}\r\n{NEXT}"), meant)
    };
    let target = |name, target: &str, host: &str, meant| {
        case(name, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n{NEXT}"), meant)
    };
    vec![
        hosts("none", "", Refused),
        hosts("two different", "Host: a\r\nHost: b\r\n", Refused),
        hosts("two the same", "Host: a\r\nHost: a\r\n", Refused),
        hosts("empty", "Host:\r\n", Either(BOTH)),
        hosts("a list", "Host: a, b\r\n", Refused),
        hosts("with a path", "Host: a/b\r\n", Refused),
        hosts("with a user", "Host: u@a\r\n", Refused),
        hosts("with a space", "Host: a b\r\n", Refused),
        hosts("with a fragment", "Host: a#b\r\n", Refused),
        hosts("with a port", "Host: a:80\r\n", Passed(BOTH)),
        hosts("of IPv6", "Host: [::1]:80\r\n", Passed(BOTH)),
        target("in the target, the same", "http://a/1", "a", Passed(BOTH)),
        target("in the target, another", "http://b/1", "a", Refused),
        target("in the target, in capitals", "http://A/1", "a", Passed(BOTH)),
        target("in the target, with a port", "http://a:80/1", "a", Either(BOTH)),
        target("in the target, with a user", "http://u@a/1", "a", Refused),
        target("in the target, with a fragment", "http://a#b/1", "a#b", Refused),
        target("in the target, empty", "http:///1", "a", Refused),
        target("in the target, without a path", "http://a", "a", Either(&["GET /", "GET /next"])),
        target("in the target, a query only", "http://a?x", "a", Either(&["GET /?x", "GET /next"])),
        target("another scheme", "ftp://a/1", "a", Refused),
        target("two slashes", "//b/1", "a", Passed(&["GET //b/1", "GET /next"])),
    ]
}

fn first_lines() -> Vec<Case> {
    vec![
        case("HTTP/0.9", "GET /1\r\n\r\n", Refused),
        case("HTTP/0.9 with header lines", "GET /1\r\nHost: a\r\n\r\n", Refused),
        line("HTTP/1.2", "GET /1 HTTP/1.2", Either(BOTH)),
        line("HTTP/2.0", "GET /1 HTTP/2.0", Refused),
        line("HTTP/1", "GET /1 HTTP/1", Refused),
        line("HTTP/1.10", "GET /1 HTTP/1.10", Refused),
        line("HTTP/01.1", "GET /1 HTTP/01.1", Refused),
        line("http/1.1", "GET /1 http/1.1", Refused),
        line("HTTP/1.1 and more", "GET /1 HTTP/1.1 x", Refused),
        line("space after the version", "GET /1 HTTP/1.1 ", Refused),
        line("two spaces", "GET  /1 HTTP/1.1", Refused),
        line("two spaces before the version", "GET /1  HTTP/1.1", Refused),
        line("tab", "GET\t/1 HTTP/1.1", Refused),
        line("tab before the version", "GET /1\tHTTP/1.1", Refused),
        line("space before the method", " GET /1 HTTP/1.1", Refused),
        line("space in the target", "GET /1 2 HTTP/1.1", Refused),
        line("method in small letters", "get /1 HTTP/1.1", Either(&["get /1", "GET /next"])),
        line("unknown method", "PURGE /1 HTTP/1.1", Passed(&["PURGE /1", "GET /next"])),
        line("method with a control character", "G\x01T /1 HTTP/1.1", Refused),
        line("method with a colon", "GE:T /1 HTTP/1.1", Refused),
        line("no target", "GET  HTTP/1.1", Refused),
        line("target without a slash", "GET 1 HTTP/1.1", Refused),
        line("asterisk", "OPTIONS * HTTP/1.1", Passed(&["OPTIONS *", "GET /next"])),
        line("asterisk on GET", "GET * HTTP/1.1", Refused),
        line("fragment in the target", "GET /1#2 HTTP/1.1", Refused),
        line("NUL in the target", "GET /1\0 HTTP/1.1", Refused),
        line("DEL in the target", "GET /1\x7f HTTP/1.1", Refused),
        line("bytes beyond ASCII in the target", "GET /\u{e4} HTTP/1.1", Refused),
        line("angle brackets in the target", "GET /<1> HTTP/1.1", Refused),
        line("bare CR in the target", "GET /1\r2 HTTP/1.1", Refused),
        line("CONNECT", "CONNECT a:80 HTTP/1.1", Refused),
        line("TRACE", "TRACE /1 HTTP/1.1", Either(&["TRACE /1", "GET /next"])),
        line("PRI", "PRI * HTTP/2.0", Refused),
        case("an empty line before", format!("\r\n{NEXT}"), Passed(&["GET /next"])),
        case("a bare LF before", format!("\n{NEXT}"), Refused),
        case("a bare CR before", format!("\r{NEXT}"), Refused),
    ]
}

fn sizes() -> Vec<Case> {
    vec![
        line("target of 70,000 bytes", &format!("GET /{} HTTP/1.1", "x".repeat(70_000)), Refused),
        get("name of 70,000 bytes", &format!("{}: y\r\n", "x".repeat(70_000)), Refused),
        get("value of 70,000 bytes", &format!("X: {}\r\n", "y".repeat(70_000)), Refused),
        get("100 header lines", &"X: y\r\n".repeat(96), Either(BOTH)),
        get("1,000 header lines", &"X: y\r\n".repeat(1_000), Refused),
        case("no end of 70,000 empty lines", "\r\n".repeat(70_000), Refused),
    ]
}

fn connections() -> Vec<Case> {
    let h2c = "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    vec![
        post(
            "names Content-Length",
            "Connection: Content-Length\r\nContent-Length: 3\r\n",
            "abc",
            Passed(POSTED),
        ),
        post(
            "names Transfer-Encoding",
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            Passed(POSTED),
        ),
        get("names Host", "Connection: Host\r\n", Passed(BOTH)),
        get("close", "Connection: close\r\n", Passed(&["GET /1"])),
        get("close and keep-alive", "Connection: close, keep-alive\r\n", Passed(&["GET /1"])),
        get(
            "upgrade to h2c without settings",
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            Passed(BOTH),
        ),
        post(
            "upgrade to h2c with a body",
            &format!("Connection: Upgrade, HTTP2-Settings\r\n{h2c}Content-Length: 3\r\n"),
            "abc",
            Passed(POSTED),
        ),
        post(
            "upgrade to websocket with a body",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
            "abc",
            Either(POSTED),
        ),
        get(
            "upgrade to websocket and h2c",
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            Either(BOTH),
        ),
        post(
            "Expect: 100-continue",
            "Expect: 100-continue\r\nContent-Length: 3\r\n",
            "abc",
            Passed(POSTED),
        ),
        post("Expect: something else", "Expect: wonders\r\nContent-Length: 3\r\n", "abc", Refused),
        get("Expect without a body", "Expect: 100-continue\r\n", Passed(BOTH)),
        case(
            "Expect with HTTP/1.0",
            "POST /1 HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            Passed(&["POST /1 abc"]),
        ),
        case(
            "pipelined, the second malformed",
            format!("{FIRST}GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n{NEXT}"),
            Passed(&["GET /1"]),
        ),
        case("pipelined, empty lines between", format!("{FIRST}\r\n\r\n{NEXT}"), Passed(BOTH)),
        case(
            "HTTP/1.0, another request behind it",
            format!("GET /1 HTTP/1.0\r\nHost: a\r\n\r\n{NEXT}"),
            Passed(&["GET /1"]),
        ),
    ]
}
