//! How a line of the access log looks. Pure.
//!
//! What a client says is escaped so that it can neither end its field nor its line, nor reach a terminal as a control
//! sequence; a field longer than [`MAX_LOG_FIELD`] is cut.

use std::io::Write as _;

use keel_route::access_log::LogFormat;

use crate::access::stamp::Stamps;
use crate::limits::MAX_LOG_FIELD;

/// What is known of a request at its end. Text that is empty is not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line<'a> {
    /// When it began, in milliseconds since 1970.
    pub at_ms: u64,
    pub client: &'a str,
    pub caller: &'a str,
    pub method: &'a [u8],
    pub host: &'a [u8],
    pub path: &'a [u8],
    pub protocol: &'a str,
    /// 0: there was none.
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_us: u64,
    pub upstream_us: Option<u64>,
    pub retries: u32,
    pub route: &'a str,
    pub cluster: &'a str,
    pub instance: &'a str,
    pub request_id: &'a [u8],
    pub trace_id: &'a [u8],
    pub agent: &'a [u8],
    pub referer: &'a [u8],
    pub tls: &'a str,
    pub sni: &'a str,
    /// Why the proxy answered by itself or broke off.
    pub reason: &'a str,
}

impl Line<'_> {
    /// Appends the line with its end.
    pub fn write(&self, format: LogFormat, stamps: &mut Stamps, out: &mut Vec<u8>) {
        match format {
            LogFormat::Json => self.json(stamps, out),
            LogFormat::Combined => self.combined(stamps, out),
        }
        out.push(b'\n');
    }

    fn json(&self, stamps: &mut Stamps, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        stamps.rfc3339(self.at_ms, out);
        out.push(b'"');
        let texts: [(&str, &[u8]); 6] = [
            ("client", self.client.as_bytes()),
            ("caller", self.caller.as_bytes()),
            ("method", self.method),
            ("host", self.host),
            ("path", self.path),
            ("protocol", self.protocol.as_bytes()),
        ];
        texts.iter().for_each(|(name, value)| text(name, value, out));
        number("status", Some(u64::from(self.status)), out);
        number("grpc_status", self.grpc_status.map(u64::from), out);
        number("bytes_in", Some(self.bytes_in), out);
        number("bytes_out", Some(self.bytes_out), out);
        number("duration_us", Some(self.duration_us), out);
        number("upstream_us", self.upstream_us, out);
        number("retries", Some(u64::from(self.retries)), out);
        let texts: [(&str, &[u8]); 10] = [
            ("route", self.route.as_bytes()),
            ("cluster", self.cluster.as_bytes()),
            ("instance", self.instance.as_bytes()),
            ("request_id", self.request_id),
            ("trace_id", self.trace_id),
            ("user_agent", self.agent),
            ("referer", self.referer),
            ("tls_version", self.tls.as_bytes()),
            ("sni", self.sni.as_bytes()),
            ("reason", self.reason.as_bytes()),
        ];
        texts.iter().for_each(|(name, value)| text(name, value, out));
        out.push(b'}');
    }

    /// `%h - - [%t] "%r" %>s %b "%{Referer}i" "%{User-agent}i"` of Apache's `mod_log_config`.
    fn combined(&self, stamps: &mut Stamps, out: &mut Vec<u8>) {
        out.extend_from_slice(self.client.as_bytes());
        out.extend_from_slice(b" - - [");
        stamps.apache(self.at_ms, out);
        out.extend_from_slice(b"] \"");
        if self.method.is_empty() {
            out.push(b'-');
        } else {
            for (part, gap) in
                [(self.method, " "), (self.path, " "), (self.protocol.as_bytes(), "")]
            {
                apache(part, out);
                out.extend_from_slice(gap.as_bytes());
            }
        }
        put(out, format_args!("\" {:03} ", self.status));
        match self.bytes_out {
            0 => out.push(b'-'),
            n => put(out, format_args!("{n}")),
        }
        for value in [self.referer, self.agent] {
            out.extend_from_slice(b" \"");
            apache(if value.is_empty() { b"-" } else { value }, out);
            out.push(b'"');
        }
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

/// Nothing in it has to be escaped.
fn is_plain(value: &[u8]) -> bool {
    value.iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'))
}

fn number(name: &str, value: Option<u64>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        put(out, format_args!(",\"{name}\":{value}"));
    }
}

fn text(name: &str, value: &[u8], out: &mut Vec<u8>) {
    if value.is_empty() {
        return;
    }
    put(out, format_args!(",\"{name}\":\""));
    let (value, cut) = cut(value);
    if is_plain(value) {
        out.extend_from_slice(value);
    } else {
        for part in value.utf8_chunks() {
            part.valid().chars().for_each(|c| json_char(c, out));
            if !part.invalid().is_empty() {
                out.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
    }
    if cut {
        out.extend_from_slice("…".as_bytes());
    }
    out.push(b'"');
}

/// Besides what JSON demands: control characters beyond ASCII, and what some readers take for the end of a line.
fn json_char(c: char, out: &mut Vec<u8>) {
    match c {
        '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
        ' '..='~' => out.push(c as u8),
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
            put(out, format_args!("\\u{:04x}", u32::from(c)));
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// As Apache does: a backslash before quotes and backslashes, `\xhh` for all that is not printable ASCII.
fn apache(value: &[u8], out: &mut Vec<u8>) {
    let (value, cut) = cut(value);
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b' '..=b'~' => out.push(*byte),
            byte => put(out, format_args!("\\x{byte:02x}")),
        }
    }
    if cut {
        out.extend_from_slice(b"...");
    }
}

fn cut(value: &[u8]) -> (&[u8], bool) {
    (&value[..value.len().min(MAX_LOG_FIELD)], value.len() > MAX_LOG_FIELD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(line: &Line<'_>, format: LogFormat) -> String {
        let mut out = Vec::new();
        line.write(format, &mut Stamps::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn whole<'a>() -> Line<'a> {
        Line {
            at_ms: 1_700_000_000_250,
            client: "203.0.113.7",
            caller: "shop/web",
            method: b"GET",
            host: b"cart:80",
            path: b"/a",
            protocol: "HTTP/1.1",
            status: 200,
            grpc_status: Some(0),
            bytes_in: 1,
            bytes_out: 20,
            duration_us: 300,
            upstream_us: Some(250),
            retries: 1,
            route: "shop/front",
            cluster: "shop/cart:80",
            instance: "shop-cart-1",
            request_id: b"r",
            trace_id: b"t",
            agent: b"curl/8",
            referer: b"http://x/",
            tls: "TLSv1.3",
            sni: "cart.example",
            reason: "broken",
        }
    }

    #[test]
    fn a_whole_line_in_json() {
        assert_eq!(
            written(&whole(), LogFormat::Json),
            concat!(
                r#"{"time":"2023-11-14T22:13:20.250Z","client":"203.0.113.7","caller":"shop/web","method":"GET","#,
                r#""host":"cart:80","path":"/a","protocol":"HTTP/1.1","status":200,"grpc_status":0,"bytes_in":1,"#,
                r#""bytes_out":20,"duration_us":300,"upstream_us":250,"retries":1,"route":"shop/front","#,
                r#""cluster":"shop/cart:80","instance":"shop-cart-1","request_id":"r","trace_id":"t","#,
                r#""user_agent":"curl/8","referer":"http://x/","tls_version":"TLSv1.3","sni":"cart.example","#,
                r#""reason":"broken"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn lines_of_apache() {
        assert_eq!(
            written(&whole(), LogFormat::Combined),
            "203.0.113.7 - - [14/Nov/2023:22:13:20 +0000] \"GET /a HTTP/1.1\" 200 20 \"http://x/\" \"curl/8\"\n"
        );
        let nothing = Line { client: "::1", ..Line::default() };
        assert_eq!(
            written(&nothing, LogFormat::Combined),
            "::1 - - [01/Jan/1970:00:00:00 +0000] \"-\" 000 - \"-\" \"-\"\n"
        );
    }

    #[test]
    fn what_clients_say_stays_in_its_field() {
        let hostile = b"\"} \\ \r\n\x1b[2J\x00\x7f\xc2\x9b\xe2\x80\xa8\xff\"";
        let line = Line { path: hostile, agent: hostile, method: b"GET", ..Line::default() };
        let json = written(&line, LogFormat::Json);
        assert!(
            json.contains(r#""path":"\"} \\ \u000d\u000a\u001b[2J\u0000\u007f\u009b\u2028�\"""#),
            "{json}"
        );
        let combined = written(&line, LogFormat::Combined);
        let escaped = r#""\"} \\ \x0d\x0a\x1b[2J\x00\x7f\xc2\x9b\xe2\x80\xa8\xff\"""#;
        assert!(combined.ends_with(&format!(" {escaped}\n")), "{combined}");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_one_line_that_can_be_read(
            path in prop::collection::vec(any::<u8>(), 0..200),
            long in MAX_LOG_FIELD - 2..MAX_LOG_FIELD + 3,
        ) {
            let agent = "ä".repeat(long);
            let line = Line { method: b"GET", path: &path, agent: agent.as_bytes(), ..Line::default() };
            let json = written(&line, LogFormat::Json);
            prop_assert_eq!(json.lines().count(), 1);
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let valid = String::from_utf8_lossy(&path);
            prop_assert_eq!(value["path"].as_str().unwrap_or(""), valid);
            prop_assert!(json.len() < 4 * MAX_LOG_FIELD);
            let combined = written(&line, LogFormat::Combined);
            prop_assert!(combined.strip_suffix('\n').unwrap().bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }
}
