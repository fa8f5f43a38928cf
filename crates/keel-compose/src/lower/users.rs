//! Users of routes: those in the Compose file, in htpasswd files and in secrets.

use std::path::{Path, PathBuf};

use keel_model::BasicAuth;

use super::Lower;
use crate::diagnostic::{Code, Span, nearest};
use crate::loader::join;
use crate::routes::{AuthDraft, credentials};
use crate::value::Node;

/// Largest htpasswd file, in bytes.
const MAX_AUTH_FILE: usize = 1 << 20;

impl Lower<'_> {
    pub(super) fn basic_auth(&mut self, draft: AuthDraft) -> Option<BasicAuth> {
        let mut auth = draft.auth;
        if let Some(file) = &draft.file {
            let path = join(&self.project.directory, &file.value.to_string_lossy());
            match self.source.read(&path) {
                Ok(bytes) => auth.users.extend(self.users(&bytes, &path, &file.span)?),
                Err(error) => {
                    let message = format!("cannot read the users from {}: {error}", path.display());
                    self.error(
                        Code::File,
                        &file.span,
                        message,
                        "create the file, or correct its path",
                    );
                    return None;
                }
            }
        }
        if let Some(secret) = &draft.secret {
            let Some(definition) = self.project.model.at(&["secrets", &secret.value]) else {
                let secrets = self.project.model.get("secrets");
                let names = secrets.into_iter().flat_map(Node::entries);
                let help = nearest(&secret.value, names.map(|(name, _)| name)).map_or_else(
                    || "define it under the top-level `secrets`".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                let message = format!("there is no secret `{}`", secret.value);
                self.error(Code::UndefinedReference, &secret.span, message, help);
                return None;
            };
            let content = self.secret(&secret.value, definition)?;
            let place = PathBuf::from(format!("the secret {}", secret.value));
            auth.users.extend(self.users(content.expose(), &place, &secret.span)?);
        }
        if auth.users.is_empty() {
            self.error(
                Code::MissingKey,
                &draft.span,
                "nobody is let in: there are no users",
                "add a user with `htpasswd -B FILE NAME`",
            );
            return None;
        }
        if auth.users.len() > credentials::MAX_USERS {
            let message = format!("a route can have at most {} users", credentials::MAX_USERS);
            self.error(
                Code::Budget,
                &draft.span,
                message,
                "let the service check its users itself",
            );
            return None;
        }
        Some(auth)
    }

    /// The lines of an htpasswd file.
    fn users(&mut self, bytes: &[u8], path: &Path, span: &Span) -> Option<Vec<String>> {
        let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_AUTH_FILE)
        else {
            let message = format!("{} is no htpasswd file", path.display());
            self.error(
                Code::InvalidValue,
                span,
                message,
                "make it with `htpasswd -B -c FILE NAME`",
            );
            return None;
        };
        let mut users = Vec::new();
        for (line, user) in credentials::lines(text) {
            match credentials::check(user) {
                Ok(()) => users.push(user.to_owned()),
                Err((message, _)) => {
                    let message = format!("{}, line {line}: {message}", path.display());
                    self.error(
                        Code::InvalidValue,
                        span,
                        message,
                        "make it with `htpasswd -B FILE NAME`",
                    );
                    return None;
                }
            }
        }
        Some(users)
    }
}
