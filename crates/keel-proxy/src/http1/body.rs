//! Where a message's body ends (RFC 9112, 6 and 7).
//!
//! Bodies are passed on as they came, chunk boundaries included; this only says how many of the bytes at hand
//! belong to the body, and refuses what is not exactly as the grammar has it: two readers of one stream must
//! never disagree about its end.

use crate::limits::{MAX_BODY, MAX_CHUNK_EXTENSION, MAX_TRAILERS};

/// The body is not as the grammar has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What is left of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0: it is over.
    Length(u64),
    /// Chunks and a trailer section.
    Chunked(Chunks),
    /// All until the connection ends.
    UntilClose,
}

impl Body {
    /// No body, or the end of one.
    pub const EMPTY: Self = Self::Length(0);

    /// How many of `bytes` belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                Ok(n)
            }
            Self::Chunked(chunks) => chunks.take(bytes, None, None),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// As [`Body::take`], copying the content without its chunking to `content`.
    pub fn take_content(
        &mut self,
        bytes: &[u8],
        content: &mut Vec<u8>,
    ) -> Result<usize, Malformed> {
        self.take_parts(bytes, content, None)
    }

    /// As [`Body::take_content`], and copies the lines of the trailer section to `trailers`.
    pub fn take_parts(
        &mut self,
        bytes: &[u8],
        content: &mut Vec<u8>,
        trailers: Option<&mut Vec<u8>>,
    ) -> Result<usize, Malformed> {
        if let Self::Chunked(chunks) = self {
            return chunks.take(bytes, Some(content), trailers);
        }
        let n = self.take(bytes)?;
        content.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    /// Whether all of it has been taken.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == State::Over,
            Self::UntilClose => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Before or among the digits of a size.
    Size,
    /// White space after a size: an extension follows, or nothing.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Over,
}

/// A reader of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Of the size being read; then bytes left in the chunk.
    size: u64,
    digits: u8,
    /// Of this chunk's extension, or of the trailer section.
    extra: usize,
    /// The name of the trailer being read, in small letters, as far as it may be one of [`FORBIDDEN`].
    name: [u8; LONGEST_FORBIDDEN],
    name_length: usize,
}

/// Trailers that say where a message ends or whom it is for: too late, and some programs believe them all the same
/// (RFC 9110, 6.5.1).
const FORBIDDEN: &[&[u8]] = &[b"content-length", b"host", b"transfer-encoding"];
const LONGEST_FORBIDDEN: usize = "transfer-encoding".len();

impl Chunks {
    pub const NEW: Self = Self {
        state: State::Size,
        size: 0,
        digits: 0,
        extra: 0,
        name: [0; LONGEST_FORBIDDEN],
        name_length: 0,
    };

    fn take(
        &mut self,
        bytes: &[u8],
        mut content: Option<&mut Vec<u8>>,
        mut trailers: Option<&mut Vec<u8>>,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Over {
            if self.state == State::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let n = left.min(bytes.len() - at);
                if let Some(content) = content.as_deref_mut() {
                    content.extend_from_slice(&bytes[at..at + n]);
                }
                at += n;
                self.size -= n as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            if self.state >= State::TrailerStart
                && let Some(trailers) = trailers.as_deref_mut()
            {
                trailers.push(bytes[at]);
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (State::Size, b'\r') if self.digits > 0 => Ok(State::SizeLf),
            (State::Size, b';') if self.digits > 0 => Ok(State::Extension),
            (State::Size | State::SizeSpace, b' ' | b'\t') if self.digits > 0 => {
                self.count(MAX_CHUNK_EXTENSION, State::SizeSpace)
            }
            (State::SizeSpace, b';') => Ok(State::Extension),
            (State::SizeSpace | State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Extension, _) if is_text(byte) => {
                self.count(MAX_CHUNK_EXTENSION, State::Extension)
            }
            (State::SizeLf, b'\n') => {
                (self.digits, self.extra) = (0, 0);
                Ok(if self.size == 0 { State::TrailerStart } else { State::Data })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::TrailerStart, b'\r') => Ok(State::LastLf),
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                if let Some(place) = self.name.get_mut(self.name_length) {
                    *place = byte.to_ascii_lowercase();
                }
                self.name_length += 1;
                self.count(MAX_TRAILERS, State::TrailerName)
            }
            (State::TrailerName, b':') => {
                let name = self.name.get(..std::mem::take(&mut self.name_length));
                let forbidden = name.is_some_and(|name| FORBIDDEN.contains(&name));
                if forbidden { Err(Malformed) } else { Ok(State::TrailerValue) }
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_text(byte) => {
                self.count(MAX_TRAILERS, State::TrailerValue)
            }
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::LastLf, b'\n') => Ok(State::Over),
            _ => Err(Malformed),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        let value = char::from(byte).to_digit(16).ok_or(Malformed)?;
        self.digits += 1;
        // 16 digits cannot overflow; leading zeros are bounded too.
        if self.digits > 16 {
            return Err(Malformed);
        }
        self.size = self.size << 4 | u64::from(value);
        if self.size > MAX_BODY { Err(Malformed) } else { Ok(State::Size) }
    }

    fn count(&mut self, most: usize, next: State) -> Result<State, Malformed> {
        self.extra += 1;
        if self.extra > most { Err(Malformed) } else { Ok(next) }
    }
}

/// A character of a field value or an extension: no control characters but the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A character of a token (RFC 9110, 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8], piece: usize) -> Result<(usize, bool, Vec<u8>), Malformed> {
        let mut body = Body::Chunked(Chunks::NEW);
        let (mut taken, mut content) = (0, Vec::new());
        for bytes in bytes.chunks(piece) {
            let n = body.take_content(bytes, &mut content)?;
            taken += n;
            if n < bytes.len() {
                break;
            }
        }
        Ok((taken, body.is_over(), content))
    }

    #[test]
    fn good_ones() {
        for (wire, content) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("05;a=b;c=\"d\"\r\nhello\r\n00\r\n\r\n", "hello"),
            ("1 \r\nx\r\n0\r\nTrail: er\r\nx:\r\n\r\n", "x"),
            ("1\r\nx\r\n0\r\nHosts: a\r\nHos: b\r\nTransfer-Encodings: c\r\n\r\n", "x"),
            ("1\t ; a = b\r\nx\r\n0\r\n\r\n", "x"),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
            ("0000000000000001\r\nx\r\n0\r\n\r\n", "x"),
        ] {
            for piece in 1..=wire.len() {
                let followed = [wire.as_bytes(), b"GET"].concat();
                let (taken, over, seen) = all(&followed, piece).unwrap();
                assert!(over, "{wire:?}");
                assert_eq!((taken, seen.as_slice()), (wire.len(), content.as_bytes()), "{wire:?}");
            }
        }
    }

    #[test]
    fn bad_ones() {
        let long = format!("5;{}\r\n", "x".repeat(MAX_CHUNK_EXTENSION + 1));
        let wide = format!("5{}\r\n", " ".repeat(MAX_CHUNK_EXTENSION + 1));
        for wire in [
            "\r\n",
            "5\n",
            "5\rx",
            ";\r\n",
            "-5\r\n",
            "+5\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5 x\r\n",
            "5 5\r\n",
            "5\t;\n",
            "g\r\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0\r\n",
            "5\r\nhello\r0",
            "11112222333344445\r\n",
            "10000000000000\r\n",
            "ffffffffffffffff\r\n",
            "0\r\nHost: x\r\n\r\n",
            "0\r\nA: b\r\ncontent-Length:5\r\n\r\n",
            "0\r\nTRANSFER-ENCODING: chunked\r\n\r\n",
            "0\r\n folded: x\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\na b: x\r\n\r\n",
            "0\r\na: \0\r\n\r\n",
            "0\r\na: x\n\r\n",
            "5;\0\r\n",
            "5;a\nb\r\n",
            &long,
            &wide,
        ] {
            assert_eq!(all(wire.as_bytes(), 1), Err(Malformed), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_end_is_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
            piece in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n\r\n");
            let length = wire.len();
            wire.extend(b"next");
            prop_assert_eq!(all(&wire, piece), Ok((length, true, chunks.concat())));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes, 7);
        }
    }
}
