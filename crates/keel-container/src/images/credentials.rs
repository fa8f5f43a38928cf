//! What a registry is shown. A secret is never in a `Debug` form, a message or a log.

use std::fmt;

use bollard::auth::DockerCredentials;
use serde::{Deserialize, Serialize};

/// A text that only [`Secret::expose`] shows.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What one registry is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// The server that they are for, as the user's configuration calls it.
    pub server: String,
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// A token in the place of name and password.
    pub identity_token: Secret,
}

impl Credentials {
    pub(super) fn for_engine(&self) -> DockerCredentials {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        DockerCredentials {
            username: filled(&self.username),
            password: filled(self.password.expose()),
            serveraddress: filled(&self.server),
            identitytoken: filled(self.identity_token.expose()),
            ..DockerCredentials::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = Credentials {
            server: "localhost:5000".into(),
            username: "me".into(),
            password: Secret::new("hunter2"),
            identity_token: Secret::new("tok3n"),
        };
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(!shown.contains("hunter2") && !shown.contains("tok3n"), "{shown}");
        assert!(shown.contains("localhost:5000"));
        let sent = serde_json::to_string(&credentials).unwrap();
        assert_eq!(serde_json::from_str::<Credentials>(&sent).unwrap(), credentials);
    }
}
