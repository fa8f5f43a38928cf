//! Ids by which a request is found again in the logs of every service that it passes.
//!
//! `X-Request-Id` is 32 hexadecimal digits; `traceparent` is that of W3C Trace Context, level 1. Both pass
//! unchanged where a request has them. A trace that begins here is marked as sampled: that is what the tracing
//! libraries of services do by default where no trace reaches them.

use keel_route::balance::Random;

/// Digits of an id.
const DIGITS: usize = 32;
/// Length of a `traceparent`.
const TRACE: usize = 55;

/// Ids for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    id: [u8; 16],
    span: [u8; 8],
}

impl Ids {
    /// New ones.
    pub fn new(random: &mut Random) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random.bits().to_be_bytes());
        id[8..].copy_from_slice(&random.bits().to_be_bytes());
        // All zeros are no valid id.
        id[15] |= 1;
        let mut span = random.bits().to_be_bytes();
        span[7] |= 1;
        Self { id, span }
    }

    /// The value of `X-Request-Id`.
    pub fn request(&self) -> [u8; DIGITS] {
        let mut text = [0; DIGITS];
        hex(&self.id, &mut text);
        text
    }

    /// The value of `traceparent`.
    pub fn trace(&self) -> [u8; TRACE] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        hex(&self.id, &mut text[3..35]);
        hex(&self.span, &mut text[36..52]);
        text
    }
}

fn hex(bytes: &[u8], text: &mut [u8]) {
    const DIGIT: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGIT[usize::from(byte >> 4)];
        pair[1] = DIGIT[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_form_of_their_standards() {
        let ids = Ids { id: [0xAB; 16], span: [0x0C; 8] };
        assert_eq!(ids.request(), *b"abababababababababababababababab");
        assert_eq!(ids.trace(), *b"00-abababababababababababababababab-0c0c0c0c0c0c0c0c-01");
        let mut random = Random::new(1);
        assert_ne!(Ids::new(&mut random), Ids::new(&mut random));
    }
}
