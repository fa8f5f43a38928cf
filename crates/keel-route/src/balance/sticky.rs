//! What a client keeps (in a cookie) to come back to the same endpoint.

use std::fmt;
use std::str::FromStr;

/// Names an endpoint without telling which instance it is: the stable hash of the instance's id, in text 16
/// hexadecimal digits. Good at every proxy and after every restart, for as long as the instance exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// A text that is not a token: from elsewhere, or forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an endpoint")]
pub struct NotAToken;

impl Token {
    pub(super) fn new(id: u64) -> Self {
        Self(id)
    }

    pub(super) fn is_of(self, id: u64) -> bool {
        self.0 == id
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or(NotAToken)
    }
}
