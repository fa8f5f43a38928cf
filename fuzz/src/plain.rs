//! The plainest possible reading of RFC 9112, to compare the fast ones with. It takes nothing in bad form.

/// A header field: its name in small letters, its value without white space around it.
pub type Field = (String, Vec<u8>);

/// The first line of a head and its fields.
///
/// Panics if the head is not lines that end in CR LF, the last one empty, or if a field is not a token, a colon and
/// text.
pub fn head(bytes: &[u8]) -> (String, Vec<Field>) {
    let text = bytes.strip_suffix(b"\r\n\r\n").expect("an empty line at the end");
    let mut lines = lines(text).into_iter();
    let first = lines.next().expect("a first line");
    // Only a reason, which nobody reads, may have bytes that are no text.
    let first = String::from_utf8_lossy(first).into_owned();
    (first, lines.map(field).collect())
}

/// Splits at CR LF; neither may stand alone.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        match text[at] {
            b'\r' => {
                assert_eq!(text.get(at + 1), Some(&b'\n'), "a bare CR: {}", text.escape_ascii());
                lines.push(&text[start..at]);
                (start, at) = (at + 2, at + 2);
            }
            b'\n' => panic!("a bare LF: {}", text.escape_ascii()),
            _ => at += 1,
        }
    }
    lines.push(&text[start..]);
    lines
}

fn field(line: &[u8]) -> Field {
    let shown = line.escape_ascii();
    let colon = line.iter().position(|b| *b == b':').unwrap_or_else(|| panic!("no colon: {shown}"));
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    assert!(!name.is_empty() && name.iter().all(is_token), "not a name: {shown}");
    let is_text = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    assert!(value.iter().all(is_text), "control characters: {shown}");
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    (name, trim(value).to_vec())
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The values of a field.
pub fn values<'a>(fields: &'a [Field], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|f| f.0 == name).map(|f| f.1.as_slice()).collect()
}

/// How a message says that its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its last chunk.
    Chunked,
    /// After so many bytes.
    Length(u64),
    /// It does not.
    Nothing,
}

/// RFC 9112, 6.3. Panics if it is said in a way that can be misunderstood.
pub fn framing(fields: &[Field]) -> Framing {
    let codings = values(fields, "transfer-encoding");
    let lengths = values(fields, "content-length");
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Framing::Nothing,
        ([coding], []) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"), "{}", coding.escape_ascii());
            Framing::Chunked
        }
        ([], [first, rest @ ..]) => {
            let length = length(first);
            assert!(rest.iter().all(|other| self::length(other) == length), "different lengths");
            Framing::Length(length)
        }
        _ => panic!("a coding and something else"),
    }
}

fn length(value: &[u8]) -> u64 {
    assert!(value.iter().all(u8::is_ascii_digit), "{}", value.escape_ascii());
    String::from_utf8_lossy(value).parse().expect("a length that fits")
}

/// Chunks: how long they are with all that belongs to them, and their content. `None`: they do not end here, or are in
/// bad form.
pub fn chunks(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let line = line(&bytes[at..])?;
        at += line.len() + 2;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, rest) = line.split_at(digits);
        // An extension may have 256 bytes, with the white space before it and without the semicolon.
        let extra = rest.len() - usize::from(rest.contains(&b';'));
        if size.is_empty() || size.len() > 16 || extra > 256 {
            return None;
        }
        if !rest.is_empty() && !trim(rest).starts_with(b";") && !trim(rest).is_empty() {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size >= 1 << 52 {
            return None;
        }
        if size == 0 {
            break;
        }
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        content.extend_from_slice(bytes.get(at..end)?);
        if bytes.get(end..end.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at = end + 2;
    }
    loop {
        let line = line(&bytes[at..])?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((at, content));
        }
        let colon = line.iter().position(|b| *b == b':')?;
        let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let name = line[..colon].to_ascii_lowercase();
        if name.is_empty() || !name.iter().all(is_token) {
            return None;
        }
        if [&b"content-length"[..], b"host", b"transfer-encoding"].contains(&&name[..]) {
            return None;
        }
    }
}

/// A line without its end, if it is text.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")?;
    let is_text = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    bytes[..end].iter().all(is_text).then_some(&bytes[..end])
}
