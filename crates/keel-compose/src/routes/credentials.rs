//! Lines of htpasswd files: a name and a hash that the proxy can check.

/// Largest number of users of one route.
pub(crate) const MAX_USERS: usize = 10_000;

/// What a browser shows when a route names no realm (as in Traefik: `traefik`; ours says nothing of the software).
pub(crate) const REALM: &str = "restricted";

/// Checks `name:hash`; what is wrong, and what to do. The hash is never repeated.
pub(crate) fn check(line: &str) -> Result<(), (String, &'static str)> {
    const MAKE: &str = "make the line with `htpasswd -nbB NAME PASSWORD`";
    let Some((name, hash)) = line.split_once(':') else {
        return Err(("a user must have the form NAME:HASH".to_owned(), MAKE));
    };
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(("a user must have a name before the `:`".to_owned(), MAKE));
    }
    if is_known(hash) {
        return Ok(());
    }
    let help = if hash.starts_with('$') || hash.starts_with('{') {
        "the forms are bcrypt ($2y$…), $apr1$, $5$, $6$ and {SHA}, each complete; make the line with `htpasswd -nbB NAME \
         PASSWORD`"
    } else {
        "in a Compose file each `$` of a hash is written `$$`; make the line with `htpasswd -nbB NAME PASSWORD`"
    };
    Err((format!("the hash of the user `{name}` has no form that is known"), help))
}

/// Whether a hash is complete and of a form that `htpasswd` or `openssl passwd` writes and the proxy checks: bcrypt, Apache's
/// MD5, SHA-crypt, and SHA-1 in base64.
fn is_known(hash: &str) -> bool {
    let parts: Vec<&str> = hash.split('$').collect();
    match parts[..] {
        ["", "2y" | "2a" | "2b", cost, rest] => cost.len() == 2 && rest.len() == 53,
        ["", "apr1", salt, rest] => salt.len() <= 8 && rest.len() == 22,
        ["", "5" | "6", .., rest] => parts.len() >= 4 && !rest.is_empty(),
        [sha] => sha.strip_prefix("{SHA}").is_some_and(|rest| rest.len() == 28),
        _ => false,
    }
}

/// The users of an htpasswd file, without comments and blank lines.
pub(crate) fn lines(content: &str) -> impl Iterator<Item = (usize, &str)> {
    content
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_hashes() {
        let bcrypt = format!("ann:$2y$05${}", "a".repeat(53));
        let apr1 = format!("ann:$apr1$salt${}", "a".repeat(22));
        for good in [
            bcrypt.as_str(),
            &apr1,
            "ann:$6$salt$hash",
            "ann:$5$rounds=5000$salt$hash",
            "ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, needle) in [
            ("ann", "htpasswd"),
            (":x", "htpasswd"),
            ("ann:secret", "`$$`"),
            ("ann:y$05$abc", "`$$`"),
            ("ann:$2y$05$short", "bcrypt"),
            ("ann:$apr1$x$y", "bcrypt"),
            ("ann:$1$x$y", "bcrypt"),
        ] {
            let (message, help) = check(bad).unwrap_err();
            assert!(help.contains(needle), "{bad}: {message} {help}");
            assert!(!message.contains("secret"), "{message}");
        }
        let found: Vec<_> = lines("# users\n\n a:b \nc:d\n").collect();
        assert_eq!(found, [(3, "a:b"), (4, "c:d")]);
    }
}
