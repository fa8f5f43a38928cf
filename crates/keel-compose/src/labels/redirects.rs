//! Redirects. Traefik's `redirectregex` matches a whole address; what can be said here is: to another scheme, host and
//! port, with the path as it is or behind a prefix.

use keel_model::{PathRewrite, Redirect};

use super::Labels;
use super::middleware::Options;
use crate::diagnostic::Code;
use crate::routes::forms;

impl Labels<'_> {
    pub(super) fn redirect_scheme(&mut self, options: &Options<'_>) -> Option<Redirect> {
        let scheme = self.needed(options, "scheme")?;
        if !matches!(scheme.text(), "http" | "https") {
            self.reader.wrong(&scheme.value, "`http` or `https`", "");
            return None;
        }
        let port = match options.get("port") {
            Some(entry) if !entry.text().is_empty() => Some(self.reader.port(&entry.value)?),
            _ => None,
        };
        Some(Redirect {
            scheme: Some(scheme.text().to_owned()),
            host: None,
            port,
            path: None,
            status: self.status(options)?,
        })
    }

    fn status(&mut self, options: &Options<'_>) -> Option<u16> {
        self.flag(options, "permanent").map(|permanent| if permanent { 308 } else { 307 })
    }

    pub(super) fn redirect_pattern(&mut self, options: &Options<'_>) -> Option<Redirect> {
        let regex = self.needed(options, "regex")?;
        let replacement = self.needed(options, "replacement")?;
        let status = self.status(options)?;
        match simple(regex.text(), replacement.text()) {
            Some(redirect) => Some(Redirect { status, ..redirect }),
            None => {
                let message = "this redirect can't be expressed here".to_owned();
                self.reader.error(Code::Unsupported, &regex.key_place, message).help = Some(
                    "write it as `redirect` of a route in `x-keel.routes`; here only `^https?://HOST/(.*)` to \
                     `https://HOST/${1}` is read"
                        .to_owned(),
                );
                None
            }
        }
    }
}

/// `^https?://old.example.com/(.*)` → `https://new.example.com/${1}`, with any path between host and `${1}`.
fn simple(regex: &str, replacement: &str) -> Option<Redirect> {
    let rest = ["^https?://", "^http://", "^https://", "^(http|https)://"]
        .iter()
        .find_map(|scheme| regex.strip_prefix(scheme))?;
    // A group for the scheme moves the number of the one for the path.
    let group = if regex.starts_with("^(http|https)") { 2 } else { 1 };
    let rest = rest.strip_suffix('$').unwrap_or(rest);
    let host = ["/(.*)", "/?(.*)"].iter().find_map(|path| rest.strip_suffix(path))?;
    let literal = host.replace("\\.", ".");
    let is_host = matches!(host, "[^/]+" | "[^/]*" | ".*" | ".+")
        || (!literal.is_empty()
            && literal.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b)));
    if !is_host {
        return None;
    }
    let target = [format!("${{{group}}}"), format!("${group}")]
        .iter()
        .find_map(|reference| replacement.strip_suffix(reference.as_str()))?;
    if target.contains('$') {
        return None;
    }
    // `/` at the end belongs to the path that is kept.
    let target = target.strip_suffix('/')?;
    let mut redirect = forms::redirect(target)?;
    redirect.host.as_ref()?;
    redirect.path = match redirect.path {
        Some(PathRewrite::Replace(prefix)) => Some(PathRewrite::AddPrefix(prefix)),
        other => other,
    };
    Some(redirect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_move_and_nothing_else_is_guessed() {
        let moved = |regex, replacement| {
            let redirect = simple(regex, replacement)?;
            Some((redirect.scheme?, redirect.host?, redirect.port, redirect.path))
        };
        let to = |host: &str, path: Option<&str>| {
            let path = path.map(|path| PathRewrite::AddPrefix(path.to_owned()));
            Some(("https".to_owned(), host.to_owned(), None, path))
        };
        assert_eq!(moved("^https?://a\\.de/(.*)", "https://b.de/${1}"), to("b.de", None));
        assert_eq!(moved("^http://a.de/?(.*)$", "https://b.de/x/$1"), to("b.de", Some("/x")));
        assert_eq!(moved("^(http|https)://[^/]+/(.*)", "https://b.de/${2}"), to("b.de", None));
        for (regex, replacement) in [
            ("^https?://www\\.(.*)", "https://${1}"),
            ("^https?://a.de/foo/(.*)", "https://a.de/bar/${1}"),
            ("^https?://a.de/(.*)", "https://b.de/x"),
            ("^https?://a.de/(.*)", "https://b.de/${1}/x"),
            ("a.de/(.*)", "https://b.de/${1}"),
            ("^https?://(a|b).de/(.*)", "https://b.de/${1}"),
            ("^https?://a.de/(.*)", "/x/${1}"),
        ] {
            assert_eq!(moved(regex, replacement), None, "{regex} {replacement}");
        }
    }
}
