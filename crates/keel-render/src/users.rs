//! Lines of htpasswd files.

use keel_model::BasicAuth;

/// The lines that are meant as users, with their place.
pub(crate) fn lines(auth: &BasicAuth) -> impl Iterator<Item = (usize, &str)> {
    let lines = auth.users.iter().map(|line| line.trim()).enumerate();
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// The user and the hash of a line; `None` if it is not of this form, or has in it what would not come out as it is.
pub(crate) fn parse(line: &str) -> Option<(&str, &str)> {
    let (user, hash) = line.split_once(':')?;
    let of_user = |c: char| c == ' ' || c.is_ascii_graphic();
    let of_hash = |c: char| c.is_ascii_graphic() && !":#'\"\\".contains(c);
    let fit = !user.is_empty() && user.chars().all(of_user);
    (fit && !hash.is_empty() && hash.chars().all(of_hash)).then_some((user, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_what_is_none() {
        assert_eq!(parse("bob:$2y$05$x/.y"), Some(("bob", "$2y$05$x/.y")));
        for bad in ["bob", ":x", "bob:", "b\nb:x", "bob:a:b", "bob:a b", "bob:a'b"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let users = ["# comment", " ", "bob:x "].map(str::to_owned).to_vec();
        let auth =
            BasicAuth { realm: String::new(), users, user_header: None, remove_header: false };
        assert_eq!(lines(&auth).collect::<Vec<_>>(), [(2, "bob:x")]);
    }
}
