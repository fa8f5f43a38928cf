//! What can go wrong with an image, told apart by what the user can do about it.
//!
//! The engine passes on what registries say as text, with hardly a status: the texts are those of Docker 20.10 to
//! 29, of Podman, and of the distribution registry.

use super::reference::InvalidReference;

/// Why something could not be done with an image.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The text is no name.
    #[error(transparent)]
    Name(#[from] InvalidReference),
    /// The registry has no such image.
    #[error("{registry} has no image {image}: {message}")]
    NotFound {
        /// Its name.
        image: String,
        /// Where it was looked for.
        registry: String,
        /// What was answered.
        message: String,
    },
    /// It is not on this machine.
    #[error("image {image} is not on this machine")]
    Absent {
        /// Its name.
        image: String,
    },
    /// The registry gives it only to those who may have it.
    #[error("{registry} does not give {image} to {whom}: {message}")]
    Denied {
        /// Its name.
        image: String,
        /// The registry.
        registry: String,
        /// `somebody without credentials`, or the user's name.
        whom: String,
        /// What was answered.
        message: String,
    },
    /// The registry wants a pause.
    #[error("{registry} gives no more images for now ({image}): {message}")]
    TooMany {
        /// Its name.
        image: String,
        /// The registry.
        registry: String,
        /// What was answered.
        message: String,
    },
    /// There is none for this kind of machine.
    #[error("image {image} is not made for {platform}: {message}")]
    WrongPlatform {
        /// Its name.
        image: String,
        /// What was asked for.
        platform: String,
        /// What was answered.
        message: String,
    },
    /// The registry can't be reached, or went away.
    #[error("the registry {registry} can't be reached for {image}: {message}")]
    RegistryAway {
        /// Its name.
        image: String,
        /// The registry.
        registry: String,
        /// What happened.
        message: String,
    },
    /// The engine does not trust the registry.
    #[error("the engine does not trust the registry {registry} ({image}): {message}")]
    Untrusted {
        /// Its name.
        image: String,
        /// The registry.
        registry: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing moved for a long time.
    #[error("image {image}: nothing came for {seconds} s, after {last:?}")]
    Stalled {
        /// Its name.
        image: String,
        /// How long.
        seconds: u64,
        /// What happened last.
        last: String,
    },
    /// The engine has no room for it.
    #[error("the engine's disk is full ({image}): {message}")]
    DiskFull {
        /// Its name.
        image: String,
        /// What was written.
        message: String,
    },
    /// A build could not read its files.
    #[error("the build's context can't be read: {message}")]
    Context {
        /// Which file, and why.
        message: String,
    },
    /// A step of a build failed.
    #[error("image {image} could not be built{}: {message}", at_step(step))]
    Build {
        /// Its name.
        image: String,
        /// The step that failed (`Step 2/5 : RUN make`).
        step: String,
        /// What is wrong.
        message: String,
        /// Its last lines.
        output: Vec<String>,
    },
    /// The engine can't be used.
    #[error(transparent)]
    Engine(#[from] crate::Error),
    /// The engine refused.
    #[error("image {image}: {message}")]
    Refused {
        /// Its name.
        image: String,
        /// What it says.
        message: String,
    },
}

fn at_step(step: &str) -> String {
    if step.is_empty() { String::new() } else { format!(" ({step})") }
}

/// What to install for what the engine's own builder can't do.
pub(super) const NEEDS_BUILDX: &str = "install Docker's plugin `buildx` (Debian: apt install docker-buildx, with Docker's \
     packages docker-buildx-plugin), then try again";

/// What is being done with which image: what an error is about.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) image: String,
    pub(super) registry: String,
    pub(super) platform: Option<String>,
    /// Who asks, if it said so.
    pub(super) user: Option<String>,
}

/// Parts of messages, in lower case, that mean the same.
const PLATFORM: &[&str] = &[
    "no matching manifest for",
    "does not match the specified platform",
    "no match for platform",
    "no image found in manifest list for architecture",
    "no image found in image index for architecture",
];
const UNTRUSTED: &[&str] =
    &["x509:", "server gave http response to https client", "tls: failed to verify"];
const DENIED: &[&str] = &[
    "no basic auth credentials",
    "unauthorized",
    "authentication required",
    "pull access denied",
    "access to the resource is denied",
    "invalid username/password",
    "incorrect username or password",
    "denied:",
    "status code 401",
    "403 forbidden",
    "403 (forbidden)",
];
const NOT_FOUND: &[&str] = &["manifest unknown", "name unknown", "not found", "no such image"];
const FULL: &[&str] = &["no space left on device", "disk quota exceeded"];
const TOO_MANY: &[&str] = &["toomanyrequests", "too many requests"];
const AWAY: &[&str] = &[
    "connection refused",
    "no such host",
    "i/o timeout",
    "dial tcp",
    "handshake timeout",
    "context deadline exceeded",
    "client.timeout",
    "eof",
    "connection reset",
    "network is unreachable",
    "no route to host",
    "server misbehaving",
    "temporary failure in name resolution",
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway timeout",
];

impl About {
    /// What a refusal of the engine means.
    pub(super) fn explain(&self, error: crate::Error) -> Error {
        match &error {
            crate::Error::NotFound { message }
            | crate::Error::Conflict { message }
            | crate::Error::Refused { message, .. } => self.explain_text(message),
            _ => Error::Engine(error),
        }
    }

    pub(super) fn explain_text(&self, message: &str) -> Error {
        let lower = message.to_ascii_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let (image, registry) = (self.image.clone(), self.registry.clone());
        let message = message.trim().to_owned();
        // In this order: a message may have several of them, and the first is the cause.
        if says(FULL) {
            Error::DiskFull { image, message }
        } else if says(PLATFORM) {
            let platform = self.platform.clone().unwrap_or_else(|| "this machine".to_owned());
            Error::WrongPlatform { image, platform, message }
        } else if says(TOO_MANY) {
            Error::TooMany { image, registry, message }
        } else if says(UNTRUSTED) {
            Error::Untrusted { image, registry, message }
        } else if says(DENIED) {
            let nobody = || "somebody without credentials".to_owned();
            let whom = self.user.as_ref().map_or_else(nobody, |user| format!("user {user:?}"));
            Error::Denied { image, registry, whom, message }
        } else if says(AWAY) {
            Error::RegistryAway { image, registry, message }
        } else if says(NOT_FOUND) {
            Error::NotFound { image, registry, message }
        } else {
            Error::Refused { image, message }
        }
    }
}

impl Error {
    /// For programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "invalid",
            Self::NotFound { .. } => "image_not_found",
            Self::Absent { .. } => "image_absent",
            Self::Denied { .. } => "image_denied",
            Self::TooMany { .. } => "image_rate_limited",
            Self::WrongPlatform { .. } => "image_platform",
            Self::RegistryAway { .. } | Self::Stalled { .. } => "registry_away",
            Self::Untrusted { .. } => "registry_untrusted",
            Self::DiskFull { .. } => "disk_full",
            Self::Context { .. } => "build_context",
            Self::Build { .. } => "build_failed",
            Self::Engine(error) if error.is_away() => "engine_away",
            Self::Engine(_) | Self::Refused { .. } => "image_failed",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => "check the name and the tag, and that it was pushed".to_owned(),
            Self::Absent { .. } => "`keel pull` brings it, `keel build` makes it".to_owned(),
            Self::Denied { registry, .. } => {
                format!("check the name; `docker login {registry}`, then try again")
            }
            Self::TooMany { registry, .. } => {
                format!("wait, or `docker login {registry}`: known users may have more")
            }
            Self::WrongPlatform { .. } => {
                "leave out `platform`, or choose a tag that is made for it".to_owned()
            }
            Self::RegistryAway { registry, .. } => {
                format!("check the network and that {registry} is up, then try again")
            }
            Self::Untrusted { registry, .. } => format!(
                "give the engine the registry's certificate (/etc/docker/certs.d/{registry}/ca.crt), or name it \
                 in `insecure-registries` of /etc/docker/daemon.json"
            ),
            Self::Stalled { .. } => "try again; what came is kept".to_owned(),
            Self::DiskFull { .. } => {
                "make room: `docker system df` shows what takes it, `docker image prune` removes what nothing uses"
                    .to_owned()
            }
            Self::Build { message, .. } if message.contains("BuildKit") => NEEDS_BUILDX.to_owned(),
            Self::Name(_)
            | Self::Context { .. }
            | Self::Build { .. }
            | Self::Engine(_)
            | Self::Refused { .. } => return None,
        };
        Some(hint)
    }

    /// Whether another try may end better.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::RegistryAway { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_and_engines_say_is_told_apart() {
        let about = About { image: "a:1".into(), registry: "r".into(), ..About::default() };
        for (message, code) in [
            (
                "manifest for localhost:5000/x:1 not found: manifest unknown: manifest unknown",
                "image_not_found",
            ),
            (
                "pull access denied for x, repository does not exist or may require 'docker login'",
                "image_denied",
            ),
            (
                "Head \"http://localhost:1/v2/a/manifests/1\": no basic auth credentials",
                "image_denied",
            ),
            ("no matching manifest for linux/arm64 in the manifest list entries", "image_platform"),
            (
                "Get \"http://localhost:1/v2/\": dial tcp [::1]:1: connect: connection refused",
                "registry_away",
            ),
            (
                "Get \"https://nowhere.invalid/v2/\": dial tcp: lookup nowhere.invalid: no such host",
                "registry_away",
            ),
            (
                "failed to register layer: Error processing tar file: write /x: no space left on device",
                "disk_full",
            ),
            ("toomanyrequests: You have reached your pull rate limit.", "image_rate_limited"),
            (
                "Get \"https://r/v2/\": x509: certificate signed by unknown authority",
                "registry_untrusted",
            ),
            // A port or a digest may look like a status.
            (
                "failed to resolve reference \"localhost:40199/x:1\": localhost:40199/x:1: not found",
                "image_not_found",
            ),
            (
                "unexpected status from HEAD request to http://r/v2/x: 401 Unauthorized",
                "image_denied",
            ),
            ("invalid status code from registry 403 (Forbidden)", "image_denied"),
            ("something else", "image_failed"),
        ] {
            assert_eq!(about.explain_text(message).code(), code, "{message}");
        }
    }
}
