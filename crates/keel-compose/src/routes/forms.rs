//! Short texts that stand for a part of a route or policy, shared by `x-keel` and labels: rates, shares, targets of
//! redirects, keys of clients. Each reader says what is wrong in words that fit behind a place.

use std::time::Duration;

use keel_model::{ClientKey, Encoding, PathRewrite, ProxyVersion, Redirect};

use crate::number::parse_duration;
use crate::rule::{check_host, is_header_name};

/// `100/s`, `6/m`, `5000/h`, or with any duration: `10/30s`.
pub(crate) fn rate(text: &str) -> Option<(u32, Duration)> {
    let (requests, per) = text.split_once('/')?;
    let requests: u32 = requests.trim().parse().ok().filter(|number| *number > 0)?;
    let per = match per.trim() {
        "s" | "second" => Duration::from_secs(1),
        "m" | "minute" => Duration::from_secs(60),
        "h" | "hour" => Duration::from_secs(3600),
        "d" | "day" => Duration::from_secs(86_400),
        other => {
            parse_duration(other).and_then(|n| u64::try_from(n).ok()).map(Duration::from_nanos)?
        }
    };
    (per >= Duration::from_millis(1)).then_some((requests, per))
}

/// `10%` or `2.5%` in parts per thousand; nothing finer.
pub(crate) fn share(text: &str) -> Option<u16> {
    let number = text.trim().strip_suffix('%')?.trim_end();
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u16 = whole.parse().ok()?;
    let tenth: u16 = if tenth.len() == 1 { tenth.parse().ok()? } else { return None };
    whole.checked_mul(10)?.checked_add(tenth).filter(|share| *share <= 1000)
}

/// Who shares an allowance or an endpoint: `source`, `header:NAME`, `cookie:NAME`, and what else `extra` allows.
pub(crate) fn client_key(text: &str, extra: &[ClientKey]) -> Option<ClientKey> {
    match text.split_once(':') {
        Some(("header", name)) if is_header_name(name) => Some(ClientKey::Header(name.to_owned())),
        Some(("cookie", name)) if is_header_name(name) => Some(ClientKey::Cookie(name.to_owned())),
        None if text == "source" => Some(ClientKey::Source),
        None if text == "all" => Some(ClientKey::All).filter(|key| extra.contains(key)),
        None if text == "path" => Some(ClientKey::Path).filter(|key| extra.contains(key)),
        _ => None,
    }
}

/// `https`, `https://www.example.com`, `https://www.example.com:8443/new`, `/new`.
pub(crate) fn redirect(text: &str) -> Option<Redirect> {
    let mut redirect = Redirect { scheme: None, host: None, port: None, path: None, status: 308 };
    if matches!(text, "http" | "https") {
        redirect.scheme = Some(text.to_owned());
        return Some(redirect);
    }
    let rest = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => {
            redirect.scheme = Some(scheme.to_owned());
            rest
        }
        None if text.starts_with('/') => text,
        // A bare word could be a scheme or a host, and is most probably misspelled.
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !authority.is_empty() {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (authority, None),
        };
        if host.starts_with('*') || check_host(host).is_err() {
            return None;
        }
        redirect.host = Some(host.to_owned());
        redirect.port = port;
    } else if redirect.scheme.is_some() {
        return None;
    }
    if !path.is_empty() {
        redirect.path = Some(PathRewrite::Replace(path.to_owned()));
    }
    (redirect.host.is_some() || redirect.path.is_some()).then_some(redirect)
}

/// Statuses of redirects (RFC 9110, 15.4).
pub(crate) const REDIRECT_STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// Names of content codings.
pub(crate) fn encoding(text: &str) -> Option<Encoding> {
    Some(match text.to_ascii_lowercase().as_str() {
        "zstd" => Encoding::Zstd,
        "br" => Encoding::Br,
        "gzip" => Encoding::Gzip,
        _ => return None,
    })
}

/// Versions of the PROXY protocol.
pub(crate) fn proxy_version(text: &str) -> Option<ProxyVersion> {
    Some(match text {
        "v1" | "1" => ProxyVersion::V1,
        "v2" | "2" => ProxyVersion::V2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares() {
        assert_eq!(rate("100/s"), Some((100, Duration::from_secs(1))));
        assert_eq!(rate("6 / m"), Some((6, Duration::from_secs(60))));
        assert_eq!(rate("10/30s"), Some((10, Duration::from_secs(30))));
        for bad in ["100", "/s", "0/s", "-1/s", "1/0s", "1/1us", "1/fortnight", "99999999999/s"] {
            assert_eq!(rate(bad), None, "{bad}");
        }
        assert_eq!(share("10%"), Some(100));
        assert_eq!(share("2.5 %"), Some(25));
        assert_eq!(share("100%"), Some(1000));
        for bad in ["10", "101%", "0.25%", "%", "-1%", "1e1%", "99999%"] {
            assert_eq!(share(bad), None, "{bad}");
        }
    }

    #[test]
    fn clients_and_redirects() {
        assert_eq!(client_key("header:X-Key", &[]), Some(ClientKey::Header("X-Key".to_owned())));
        assert_eq!(client_key("all", &[]), None);
        assert_eq!(client_key("all", &[ClientKey::All]), Some(ClientKey::All));
        assert_eq!(client_key("header:a b", &[]), None);
        let parts = |text: &str| {
            redirect(text)
                .map(|r| (r.scheme.unwrap_or_default(), r.host.unwrap_or_default(), r.port, r.path))
        };
        let owned = str::to_owned;
        assert_eq!(parts("https"), Some((owned("https"), owned(""), None, None)));
        assert_eq!(
            parts("https://www.a.de:8443/x"),
            Some((
                owned("https"),
                owned("www.a.de"),
                Some(8443),
                Some(PathRewrite::Replace(owned("/x")))
            ))
        );
        assert_eq!(
            parts("/login"),
            Some((owned(""), owned(""), None, Some(PathRewrite::Replace(owned("/login")))))
        );
        for bad in [
            "",
            "ftp",
            "www.a.de",
            "ftp://a",
            "https://",
            "https:///x",
            "*.a.de",
            "a b",
            "https://a:x",
        ] {
            assert_eq!(redirect(bad), None, "{bad}");
        }
    }
}
