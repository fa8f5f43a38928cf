//! Chunks: their end is the same however they arrive, and the same as the plainest reading finds.

use keel_proxy::fuzz::{BodyReader, Refused};

use crate::plain;

/// Bytes taken, whether that was all, and their content.
type Taken = Result<(usize, bool, Vec<u8>), Refused>;

/// `chunked_body`.
pub fn chunked(bytes: &[u8]) {
    let whole = take(&[bytes]);
    for cut in crate::cuts(bytes, 2) {
        let (one, two) = bytes.split_at(cut);
        assert_eq!(take(&[one, two]), whole, "cut at {cut}");
    }
    let single: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(take(&single), whole, "byte by byte");

    let plainly = plain::chunks(bytes);
    match &whole {
        Ok((taken, true, content)) => {
            assert_eq!(plainly, Some((*taken, content.clone())), "an end that is none");
        }
        Ok((taken, false, _)) => {
            assert_eq!(*taken, bytes.len(), "it stopped before the end");
            assert_eq!(plainly, None, "the end was missed");
        }
        Err(Refused) => assert_eq!(plainly, None, "refused although in good form"),
    }
}

fn take(pieces: &[&[u8]]) -> Taken {
    let mut reader = BodyReader::chunked();
    let (mut taken, mut content) = (0, Vec::new());
    for piece in pieces {
        let n = reader.take(piece, &mut content)?;
        assert!(n <= piece.len());
        taken += n;
        if n < piece.len() {
            assert!(reader.is_over(), "bytes were left before the end");
            break;
        }
    }
    Ok((taken, reader.is_over(), content))
}
