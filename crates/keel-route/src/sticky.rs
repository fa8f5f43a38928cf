//! Cookies that bring a client back to its endpoint (RFC 6265bis).

use std::fmt;
use std::hash::Hasher as _;
use std::str::FromStr;

use keel_model::{InstanceId, StickyCookie};
use siphasher::sip::SipHasher13;

/// Says which form of token this is; a new form gets a new text.
const FORM: &[u8; 16] = b"keel sticky key1";

/// Stands for an endpoint in a cookie: a hash of the instance's name, the same in every proxy. It gives away neither the
/// name nor the address; it is no secret, and whoever makes one up gets to an endpoint that others get to by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// The token of an instance.
    #[must_use]
    pub fn of(instance: &InstanceId) -> Self {
        let mut hasher = SipHasher13::new_with_key(FORM);
        hasher.write(instance.as_str().as_bytes());
        Self(hasher.finish())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the token of an endpoint")]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits {
            return Err(NoToken);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| NoToken)
    }
}

/// The value of the `Set-Cookie` field that binds a client to an endpoint. For a cookie that [`check`] found good.
#[must_use]
pub fn set_cookie(cookie: &StickyCookie, token: Token) -> String {
    let mut out = format!("{}={token}; Path=/; HttpOnly", cookie.name);
    if let Some(ttl) = cookie.ttl {
        // 0 would delete it at once.
        out.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
    }
    let same_site = cookie.same_site.as_deref().and_then(same_site);
    // Browsers take `SameSite=None` only together with `Secure`.
    if cookie.secure || same_site == Some("None") {
        out.push_str("; Secure");
    }
    if let Some(same_site) = same_site {
        out.push_str("; SameSite=");
        out.push_str(same_site);
    }
    out
}

fn same_site(text: &str) -> Option<&'static str> {
    ["Strict", "Lax", "None"].into_iter().find(|known| known.eq_ignore_ascii_case(text))
}

/// What is wrong with a declared cookie.
#[must_use]
pub fn check(cookie: &StickyCookie) -> Vec<String> {
    let mut problems = Vec::new();
    if !crate::rule::is_token(&cookie.name) {
        problems.push(format!("sticky: {:?} is not the name of a cookie", cookie.name));
    }
    if let Some(text) = cookie.same_site.as_deref().filter(|text| same_site(text).is_none()) {
        problems.push(format!("sticky: `same_site` is strict, lax or none, not {text:?}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cookie() -> StickyCookie {
        StickyCookie { name: "keel".into(), ttl: None, secure: false, same_site: None }
    }

    #[test]
    fn tokens_never_change_and_can_be_read_back() {
        let instance = InstanceId::new("shop-cart-1").unwrap();
        let token = Token::of(&instance);
        // By another implementation of SipHash; a change would move every client.
        assert_eq!(token.to_string(), "1ecfee28f6ac7619");
        assert_eq!(token.to_string().parse(), Ok(token));
        for bad in ["", "0", "00000000000000000", "+000000000000000", "é00000000000000"] {
            assert_eq!(bad.parse::<Token>(), Err(NoToken), "{bad}");
        }
    }

    #[test]
    fn attributes() {
        let token = Token(1);
        let ttl = Some(Duration::from_secs(3600));
        let none = Some("none".to_owned());
        for (cookie, expected) in [
            (cookie(), "keel=0000000000000001; Path=/; HttpOnly"),
            (
                StickyCookie { ttl, ..cookie() },
                "keel=0000000000000001; Path=/; HttpOnly; Max-Age=3600",
            ),
            (
                StickyCookie { secure: true, ..cookie() },
                "keel=0000000000000001; Path=/; HttpOnly; Secure",
            ),
            (
                StickyCookie { same_site: none, ..cookie() },
                "keel=0000000000000001; Path=/; HttpOnly; Secure; SameSite=None",
            ),
        ] {
            assert_eq!(set_cookie(&cookie, token), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(check(&cookie()), [""; 0]);
        assert_eq!(check(&StickyCookie { name: "a=b".into(), ..cookie() }).len(), 1);
        assert_eq!(check(&StickyCookie { same_site: Some("x".into()), ..cookie() }).len(), 1);
    }
}
