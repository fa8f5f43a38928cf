//! The name of an image: where it is kept, and which one it is.
//!
//! The grammar is that of the engine (`distribution/reference`): `[registry/]path[:tag][@digest]`. The first part
//! is a registry when it has a dot or a colon or is `localhost`; without one the image is at Docker Hub.

use std::fmt;
use std::str::FromStr;

/// The registry of names that have none.
pub const DOCKER_HUB: &str = "docker.io";
/// Most characters of a name without tag and digest (from the engine).
const MAX_NAME: usize = 255;
/// Most characters of a tag (from the engine).
const MAX_TAG: usize = 128;

/// The name of an image, complete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and port of the registry.
    registry: String,
    /// `library/redis`.
    path: String,
    /// `latest` where the name has neither a tag nor a digest.
    tag: Option<String>,
    /// `sha256:…`
    digest: Option<String>,
    text: String,
}

/// Why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of an image: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Host and port of the registry; `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The tag; `latest` where the name has neither a tag nor a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The name without tag and digest, as the engine takes it.
    #[must_use]
    pub fn repository(&self) -> String {
        match (self.registry.as_str(), self.path.strip_prefix("library/")) {
            (DOCKER_HUB, Some(name)) if !name.contains('/') => name.to_owned(),
            (DOCKER_HUB, _) => self.path.clone(),
            (registry, _) => format!("{registry}/{}", self.path),
        }
    }

    /// What says which image of the repository: the digest, or the tag.
    #[must_use]
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => {
                return Err(invalid("its digest is not `sha256:` and 64 hexadecimal digits"));
            }
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "its tag has other characters than letters, digits, `_`, `.`, `-`",
            ));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path.to_owned())
            }
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        // Another name of the same registry, from before it had one of its own.
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        if !is_registry(registry) {
            return Err(invalid("its registry is not a host name with an optional port"));
        }
        if name.len() > MAX_NAME || !path.split('/').all(is_path_part) {
            return Err(invalid(
                "it may have lower-case letters and digits, separated by `.`, `_`, `-` and `/`",
            ));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        let (registry, text) = (registry.to_owned(), text.to_owned());
        Ok(Self { registry, path, tag, digest, text })
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && text.bytes().next().is_some_and(word)
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, "0"),
    };
    let name = |host: &str| {
        let part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        host.split('.').all(part)
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = address.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    (name(host) || address) && port.parse::<u16>().is_ok()
}

/// Letters and digits with `.`, `_`, `__` or any number of `-` between them.
fn is_path_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators =
        text.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
        && separators.all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str) -> (String, String, String) {
        let it: Reference = text.parse().unwrap();
        (it.registry().to_owned(), it.repository(), it.version().to_owned())
    }

    #[test]
    fn names_are_completed_as_the_engine_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, registry, repository, version) in [
            ("redis", "docker.io", "redis", "latest"),
            ("redis:7-alpine", "docker.io", "redis", "7-alpine"),
            ("library/redis", "docker.io", "redis", "latest"),
            ("docker.io/grafana/grafana:11", "docker.io", "grafana/grafana", "11"),
            ("index.docker.io/redis", "docker.io", "redis", "latest"),
            ("localhost/app", "localhost", "localhost/app", "latest"),
            ("localhost:5000/a/b:1", "localhost:5000", "localhost:5000/a/b", "1"),
            ("ghcr.io/x/y__z-w", "ghcr.io", "ghcr.io/x/y__z-w", "latest"),
            ("[::1]:5000/a", "[::1]:5000", "[::1]:5000/a", "latest"),
            (&format!("redis:7@{digest}"), "docker.io", "redis", &digest),
        ] {
            let expected = (registry.to_owned(), repository.to_owned(), version.to_owned());
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "Redis",
            "a//b",
            "a:b:c",
            "-a",
            "a-",
            "a..b",
            "a@sha256:12",
            "a: b",
            "a/B",
            "host:x/a",
            "ho st.com/a",
            "a:\u{e9}",
            "../a",
            "a___b",
            "localhost:70000/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in "\\PC{0,40}|[a-z./:@_-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again = format!("{}:{}", reference.repository(), reference.version());
                if !reference.version().starts_with("sha256:") {
                    prop_assert_eq!(parts(&text), parts(&again));
                }
            }
        }
    }
}
