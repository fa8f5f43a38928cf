//! Names of hosts in requests, handshakes and rules: compared without case, port and final dot.

/// Longest name of a host in characters (RFC 1035, 2.3.4, without the final dot). A longer one is as good as none.
pub(crate) const MAX_NAME: usize = 253;

/// A host, or a family of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamePattern {
    /// This one, in lower case.
    Exact(Box<str>),
    /// One label before this parent, in lower case.
    Below(Box<str>),
    /// All, also none.
    Any,
}

impl NamePattern {
    /// Reads `example.com` or `*.example.com`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if let Some(parent) = name.strip_prefix("*.") {
            check(parent, text)?;
            return Ok(Self::Below(parent.into()));
        }
        check(&name, text)?;
        Ok(Self::Exact(name.into()))
    }

    /// Whether `name`, as [`with_name`] gives it, is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Below(parent) => parent_of(name) == Some(parent),
            Self::Any => true,
        }
    }
}

/// What follows the first label of `name`.
pub(crate) fn parent_of(name: &str) -> Option<&str> {
    let (label, parent) = name.split_once('.')?;
    (!label.is_empty()).then_some(parent)
}

/// Whether `name` can be the name or address of a host.
fn check(name: &str, text: &str) -> Result<(), String> {
    if name.contains(':') && !name.starts_with('[') {
        return Err(format!("the host {text:?} is written without a port"));
    }
    if !name.is_ascii() {
        return Err(format!(
            "write the host {text:?} in its ASCII form (xn--…), as clients send it"
        ));
    }
    if !is_host(name) {
        return Err(format!(
            "{text:?} is not the name of a host; `*` may only stand first, as in `*.example.com`"
        ));
    }
    Ok(())
}

/// Whether `name` has only what names and addresses of hosts have. Underscores are in no host name but in use.
fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

/// The host and the port of `Host` or `:authority`.
pub(crate) fn split(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, "")) if !name.ends_with(':') => (name, None),
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

/// Host and port of a request, if they can stand in an address.
pub(crate) fn usable(host: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = split(host);
    is_host(name.strip_suffix('.').unwrap_or(name)).then_some((name, port))
}

/// Calls `f` with `name` in lower case and without a final dot, without allocating; with nothing if it is longer
/// than any name.
pub(crate) fn with_name<R>(name: &str, f: impl FnOnce(&str) -> R) -> R {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > MAX_NAME {
        return f("");
    }
    if !name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return f(name);
    }
    let mut copy = [0; MAX_NAME];
    let copy = &mut copy[..name.len()];
    copy.copy_from_slice(name.as_bytes());
    copy.make_ascii_lowercase();
    f(std::str::from_utf8(copy).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_left_out() {
        for (host, expected) in [
            ("a.example", ("a.example", None)),
            ("a.example:80", ("a.example", Some(80))),
            ("a.example:", ("a.example", None)),
            ("a.example:99999", ("a.example:99999", None)),
            ("a.example:x", ("a.example:x", None)),
            ("[::1]", ("[::1]", None)),
            ("[::1]:80", ("[::1]", Some(80))),
            ("", ("", None)),
        ] {
            assert_eq!(split(host), expected, "{host}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, host, expected) in [
            ("a.example", "A.Example", true),
            ("A.example.", "a.example", true),
            ("a.example", "a.example.", true),
            ("a.example", "b.a.example", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", ".example", false),
            ("*.example", "example", false),
            ("[::1]", "[::1]", true),
        ] {
            let pattern = NamePattern::new(pattern).unwrap();
            assert_eq!(
                with_name(host, |name| pattern.matches(name)),
                expected,
                "{pattern:?} {host}"
            );
        }
        for bad in
            ["", "*", "a.*", "a b", "a:80", "ä.example", "a..b", "*.", "a/b", &"a".repeat(254)]
        {
            assert!(NamePattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_real_names_can_stand_in_addresses() {
        assert_eq!(usable("a.example:81"), Some(("a.example", Some(81))));
        assert_eq!(usable("[::1]:81"), Some(("[::1]", Some(81))));
        for bad in ["", "a@b", "a/b", "a\\b", "[::1", "a b:80", "[x]"] {
            assert_eq!(usable(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(host in "\\PC{0,30}|[a.:\\[\\]0-9]{0,12}") {
            split(&host);
            usable(&host);
            let lower = |name: &str| !name.bytes().any(|byte| byte.is_ascii_uppercase());
            prop_assert!(with_name(&host, lower));
            let _ = NamePattern::new(&host);
        }
    }
}
