//! Paths as rules hold them: in the form in which the engines are told to compare them.
//!
//! Requests can spell one path in many ways (`/%61dmin`, `//admin`, `/x/../admin`). Rules see it with unreserved
//! characters decoded, all others that may not stand in a path encoded, hexadecimal digits in capitals, repeated
//! slashes as one and dot segments resolved (RFC 3986, 6.2.2).

/// Whether a character may stand in a path as it is (RFC 3986, 3.3).
pub(crate) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The byte that a percent-encoded triplet at the start of `bytes` stands for.
pub(crate) fn triplet(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let [b'%', ..] = bytes else { return None };
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

fn push_encoded(out: &mut String, byte: u8) {
    let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value & 15)]);
    out.extend(['%', digit(byte >> 4), digit(byte)]);
}

/// A path of a rule in the form of comparison; `None` if no request can have it.
pub(crate) fn of_rule(path: &str) -> Option<String> {
    let odd = |c: char| matches!(c, '?' | '#') || c.is_control();
    if !path.starts_with('/') || path.contains(odd) {
        return None;
    }
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match triplet(&bytes[at..]) {
            _ if *byte == b'/' && out.ends_with('/') => {}
            Some(decoded) => {
                if is_unreserved(decoded) {
                    out.push(char::from(decoded));
                } else {
                    push_encoded(&mut out, decoded);
                }
                at += 2;
            }
            None if is_plain(*byte) => out.push(char::from(*byte)),
            None => push_encoded(&mut out, *byte),
        }
        at += 1;
    }
    let dots = out.split('/').any(|segment| segment == "." || segment == "..");
    (!dots).then_some(out)
}

/// A prefix in the form of comparison, without slashes at its end: empty for `/`.
pub(crate) fn prefix_of_rule(path: &str) -> Option<String> {
    of_rule(path).map(|path| path.trim_end_matches('/').to_owned())
}

/// The bytes that a path in the form of comparison stands for.
pub(crate) fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let decoded = triplet(&bytes[at..]);
        out.push(decoded.unwrap_or(*byte));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    out
}

/// Text of a rewrite fit to be part of a path that is sent: what may not stand in a path is encoded.
pub(crate) fn fit(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if is_plain(*byte) || triplet(&bytes[at..]).is_some() {
            out.push(char::from(*byte));
        } else {
            push_encoded(&mut out, *byte);
        }
    }
    out
}

/// [`fit`], with one slash in front.
pub(crate) fn fit_whole(text: &str) -> String {
    format!("/{}", fit(text).trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (path, expected) in [
            ("/", Some("/")),
            ("/a//b/", Some("/a/b/")),
            ("/%61 %2f", Some("/a%20%2F")),
            ("/ä\"", Some("/%C3%A4%22")),
            ("/a%zz", Some("/a%25zz")),
            ("a", None),
            ("/a?b", None),
            ("/a/../b", None),
            ("/a\nb", None),
        ] {
            assert_eq!(of_rule(path).as_deref(), expected, "{path}");
        }
        assert_eq!(prefix_of_rule("/api/").as_deref(), Some("/api"));
        assert_eq!(prefix_of_rule("/").as_deref(), Some(""));
        assert_eq!(decoded("/a%20%C3%A4"), "/a ä".as_bytes());
        assert_eq!(fit("a b%20;\r\n\"?"), "a%20b%20;%0D%0A%22%3F");
        assert_eq!(fit_whole("//x"), "/x");
    }
}
