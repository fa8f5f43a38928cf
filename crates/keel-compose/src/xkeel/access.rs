//! Who may ask, and how often: other sites, names and passwords, rates.

use keel_model::{BasicAuth, ClientKey, Cors, RateLimit};

use super::reader::Reader;
use crate::diagnostic::Code;
use crate::routes::{AuthDraft, Located, credentials, forms};
use crate::value::{Node, Value};

/// Keys of `cors`.
pub(crate) const CORS_KEYS: [&str; 6] =
    ["origins", "methods", "headers", "expose", "credentials", "max_age"];
/// Keys of `basic_auth`.
pub(crate) const AUTH_KEYS: [&str; 6] =
    ["users", "file", "secret", "realm", "user_header", "remove_header"];
/// Keys of `rate_limit`.
pub(crate) const RATE_KEYS: [&str; 3] = ["rate", "burst", "by"];

impl Reader {
    pub(super) fn cors(&mut self, node: &Node) -> Option<Cors> {
        let mistakes = self.errors.len();
        let mut cors = Cors::default();
        match &node.value {
            Value::Bool(true) => cors.origins = vec!["*".to_owned()],
            Value::String(_) | Value::Seq(_) => cors.origins = self.origins(node),
            _ => {
                for (key, value) in self.keys(node, "x-keel.routes[].cors", &CORS_KEYS) {
                    match key {
                        "origins" => cors.origins = self.origins(value),
                        "methods" => cors.methods = self.strings(value, "a method"),
                        "headers" => cors.headers = self.strings(value, "the name of a header"),
                        "expose" => cors.expose = self.strings(value, "the name of a header"),
                        "credentials" => cors.credentials = self.flag(value).unwrap_or_default(),
                        _ => cors.max_age = self.duration(value),
                    }
                }
                if cors.origins.is_empty() && self.errors.len() == mistakes {
                    self.error(
                        Code::MissingKey,
                        &node.span,
                        "`cors` allows no origin".to_owned(),
                    )
                    .help = Some("add `origins: [https://app.example.com]`".to_owned());
                }
            }
        }
        if cors.credentials && cors.origins.iter().any(|origin| origin == "*") {
            let message =
                "`credentials` together with the origin `*` would open the service to every site";
            self.error(Code::Conflict, &node.span, message.to_owned()).help =
                Some("name the origins".to_owned());
        }
        Some(cors)
    }

    fn origins(&mut self, node: &Node) -> Vec<String> {
        let origins = self.texts(node, "an origin");
        let mut good = Vec::with_capacity(origins.len());
        for origin in origins {
            match check_origin(&origin.value) {
                Ok(()) => good.push(origin.value.to_ascii_lowercase()),
                Err(message) => {
                    self.error(Code::InvalidValue, &origin.span, message).help = Some(
                        "write for example https://app.example.com, https://*.example.com or *"
                            .to_owned(),
                    );
                }
            }
        }
        good
    }

    pub(super) fn basic_auth(&mut self, node: &Node) -> Option<AuthDraft> {
        let mistakes = self.errors.len();
        let auth = BasicAuth {
            realm: credentials::REALM.to_owned(),
            users: Vec::new(),
            user_header: None,
            remove_header: false,
        };
        let mut draft = AuthDraft { span: node.span.clone(), auth, file: None, secret: None };
        if node.as_seq().is_some() || node.as_str().is_some() {
            draft.auth.users = self.users(node);
            return Some(draft);
        }
        for (key, value) in self.keys(node, "x-keel.routes[].basic_auth", &AUTH_KEYS) {
            match key {
                "users" => draft.auth.users = self.users(value),
                "file" => {
                    draft.file = self
                        .text(value, "the path of an htpasswd file")
                        .map(|path| Located::new(path.into(), &value.span));
                }
                "secret" => {
                    draft.secret = self
                        .text(value, "the name of a secret")
                        .map(|name| Located::new(name, &value.span));
                }
                "realm" => draft.auth.realm = self.text(value, "a text").unwrap_or_default(),
                "user_header" => {
                    let name = self.text(value, "the name of a header");
                    draft.auth.user_header =
                        name.and_then(|name| self.header_name(&name, &value.span));
                }
                _ => draft.auth.remove_header = self.flag(value).unwrap_or_default(),
            }
        }
        if draft.auth.realm.contains(['"', '\\']) || draft.auth.realm.chars().any(char::is_control)
        {
            self.error(
                Code::InvalidValue,
                &node.span,
                "`realm` cannot have quotes or control characters".to_owned(),
            );
        }
        if draft.auth.users.is_empty()
            && draft.file.is_none()
            && draft.secret.is_none()
            && self.errors.len() == mistakes
        {
            self.error(Code::MissingKey, &node.span, "`basic_auth` lets nobody in".to_owned())
                .help = Some("give it `users`, a `file` or a `secret`".to_owned());
        }
        Some(draft)
    }

    fn users(&mut self, node: &Node) -> Vec<String> {
        let users = self.texts(node, "a user with the hash of a password");
        users.into_iter().filter_map(|user| self.user(user)).collect()
    }

    fn user(&mut self, user: Located<String>) -> Option<String> {
        match credentials::check(&user.value) {
            Ok(()) => Some(user.value),
            Err((message, help)) => {
                self.error(Code::InvalidValue, &user.span, message).help = Some(help.to_owned());
                None
            }
        }
    }

    pub(super) fn rate_limit(&mut self, node: &Node) -> Option<RateLimit> {
        let mistakes = self.errors.len();
        let (mut rate, mut burst, mut key) = (None, None, ClientKey::Source);
        if node.as_map().is_none() {
            rate = self.rate(node);
        } else {
            for (name, value) in self.keys(node, "x-keel.routes[].rate_limit", &RATE_KEYS) {
                match name {
                    "rate" => rate = self.rate(value),
                    "burst" => burst = self.amount(value, 1),
                    _ => key = self.client_key(value, &[ClientKey::All]).unwrap_or(key),
                }
            }
            if rate.is_none() && self.errors.len() == mistakes {
                self.error(Code::MissingKey, &node.span, "the limit has no `rate`".to_owned())
                    .help = Some("write for example `rate: 100/s`".to_owned());
            }
        }
        rate.map(|(requests, per)| RateLimit {
            requests,
            per,
            burst: burst.unwrap_or(requests),
            key,
        })
    }

    fn rate(&mut self, node: &Node) -> Option<(u32, std::time::Duration)> {
        let rate = node.as_str().and_then(forms::rate);
        if rate.is_none() {
            self.wrong(
                node,
                "a number of requests in a time",
                "write for example `100/s`, `6/m` or `10/30s`",
            );
        }
        rate
    }

    /// Who shares something.
    pub(super) fn client_key(&mut self, node: &Node, extra: &[ClientKey]) -> Option<ClientKey> {
        let key = node.as_str().and_then(|text| forms::client_key(text, extra));
        if key.is_none() {
            let mut wanted = "`source`, `header:NAME` or `cookie:NAME`".to_owned();
            for (word, key) in [("all", ClientKey::All), ("path", ClientKey::Path)] {
                if extra.contains(&key) {
                    wanted = format!("`{word}`, {wanted}");
                }
            }
            self.wrong(node, &wanted, "");
        }
        key
    }
}

/// `*`, `https://app.example.com`, `https://*.example.com`, `http://localhost:*`.
pub(crate) fn check_origin(text: &str) -> Result<(), String> {
    let wrong = || format!("`{text}` is not an origin");
    if text == "*" {
        return Ok(());
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let scheme_is_good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !scheme_is_good || rest.is_empty() || text.matches('*').count() > 1 {
        return Err(wrong());
    }
    if rest.contains(['/', '?', '#', '@', ' ']) {
        return Err(format!("`{text}` is not an origin: it ends with the host or port"));
    }
    Ok(())
}
