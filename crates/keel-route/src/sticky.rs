//! Cookies that bring a client back to its endpoint (RFC 6265bis).

use keel_model::StickyCookie;

use crate::balance::Token;

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
    fn attributes() {
        let token: Token = "0000000000000001".parse().unwrap();
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
