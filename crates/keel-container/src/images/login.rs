//! The credentials that the user has: what `docker login` wrote, and what credential helpers keep.
//!
//! For the user's own process (`keel pull`), which may read the user's files and run the user's programs. The
//! server gets what is found here with a request, and keeps nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::credentials::{Credentials, Secret};
use super::reference::DOCKER_HUB;
use crate::Surroundings;

/// What Docker Hub is called in configurations, from its first days.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// How long a helper may take; it may ask the user or a keychain.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// Most bytes that a helper may answer.
const HELPER_ANSWER: u64 = 64 << 10;
/// Most characters of why it failed that are passed on.
const HELPER_SAYS: usize = 200;
/// The name that a helper gives when the secret is a token.
const TOKEN_USER: &str = "<token>";
/// What helpers say when they have nothing (from docker-credential-helpers).
const HELPER_HAS_NONE: &str = "credentials not found";
/// Most servers of which [`Logins::all`] tells.
const MAX_SERVERS: usize = 32;

/// Why credentials that should be there can't be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the credentials for {server} can't be read: {reason}")]
pub struct LoginError {
    server: String,
    reason: String,
}

/// The credentials that the user has.
#[derive(Clone, Debug)]
pub struct Logins {
    file: PathBuf,
    configuration: Configuration,
    /// How long a helper may take.
    patience: Duration,
}

impl Default for Logins {
    fn default() -> Self {
        let (file, configuration) = Default::default();
        Self { file, configuration, patience: HELPER_TIME }
    }
}

/// `config.json` of the client, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Configuration {
    auths: BTreeMap<String, Login>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

/// What `docker login` wrote.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Login {
    auth: Secret,
    username: String,
    password: Secret,
    identitytoken: Secret,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: Secret,
}

impl Logins {
    /// Reads the user's configuration. A user without one has no credentials.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn of(surroundings: &Surroundings) -> Result<Self, LoginError> {
        let Some(file) = surroundings.configuration_dir().map(|dir| dir.join("config.json")) else {
            return Ok(Self::default());
        };
        let failed = |reason: String| LoginError {
            server: "registries".to_owned(),
            reason: format!("{}: {reason}", file.display()),
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "{}".to_owned(),
            Err(error) => return Err(failed(error.to_string())),
        };
        // The parser's message could show a part of what it read.
        let configuration = serde_json::from_str(&text).map_err(|error| {
            failed(format!("line {}, column {}: not as expected", error.line(), error.column()))
        })?;
        Ok(Self { file, configuration, ..Self::default() })
    }

    /// The credentials for a registry (`docker.io`, `localhost:5000`), if the user has some.
    ///
    /// # Errors
    /// When a helper should have them and does not work.
    pub async fn get(&self, registry: &str) -> Result<Option<Credentials>, LoginError> {
        let server = if registry == DOCKER_HUB { HUB_SERVER } else { registry };
        let own = self.configuration.cred_helpers.get(server);
        let own = own.or_else(|| self.configuration.cred_helpers.get(registry));
        let store = Some(&self.configuration.creds_store).filter(|name| !name.is_empty());
        if let Some(helper) = own.or(store) {
            let found = self.ask(helper, server).await?;
            if found.is_some() || own.is_some() {
                return Ok(found);
            }
        }
        let logins = self.configuration.auths.iter();
        let of_it = |known: &str| known == server || host(known) == registry;
        let login =
            logins.filter(|(known, _)| of_it(known)).max_by_key(|(known, _)| *known == server);
        login.map_or(Ok(None), |(_, login)| self.written(server, login))
    }

    /// The credentials for all registries that the user has logged in to, for a build: which of them its steps need
    /// is known to the engine alone.
    pub async fn all(&self) -> Vec<Credentials> {
        let configuration = &self.configuration;
        let stored = match configuration.creds_store.as_str() {
            "" => BTreeMap::new(),
            // Who has none, or does not say, may still have what the file names.
            store => self.listed(store).await.unwrap_or_default(),
        };
        let written = configuration.auths.keys().chain(configuration.cred_helpers.keys());
        let servers: BTreeSet<&str> = written.chain(stored.keys()).map(|it| host(it)).collect();
        let ask = |server: &str| {
            let registry = if server == "index.docker.io" { DOCKER_HUB } else { server };
            let registry = registry.to_owned();
            // A build may need none of them; the engine says which one is missing.
            async move { self.get(&registry).await.ok().flatten() }
        };
        // At once, as each may take its time.
        let servers = servers.into_iter().take(MAX_SERVERS);
        let found = futures_util::future::join_all(servers.map(ask)).await;
        found.into_iter().flatten().collect()
    }

    /// Asks a helper for the credentials for one server.
    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Credentials>, LoginError> {
        let error = |reason: String| LoginError { server: server.to_owned(), reason };
        let answer = run(helper, "get", server, self.patience).await.map_err(error)?;
        let Some(answer) = answer else { return Ok(None) };
        let helped = serde_json::from_slice(&answer).map_err(|_| error(not_understood(helper)))?;
        Ok(Some(of_helper(server, helped)))
    }

    /// Asks a helper which servers it knows.
    async fn listed(&self, helper: &str) -> Option<BTreeMap<String, String>> {
        let answer = run(helper, "list", "", self.patience).await.ok()??;
        serde_json::from_slice(&answer).ok()
    }

    fn written(&self, server: &str, login: &Login) -> Result<Option<Credentials>, LoginError> {
        let mut found = Credentials {
            server: server.to_owned(),
            username: login.username.clone(),
            password: login.password.clone(),
            identity_token: login.identitytoken.clone(),
        };
        if !login.auth.expose().is_empty() {
            let bad = || LoginError {
                server: server.to_owned(),
                reason: format!("`auth` in {} is not base64 of NAME:PASSWORD", self.file.display()),
            };
            let text = STANDARD.decode(login.auth.expose().trim()).map_err(|_| bad())?;
            let text = String::from_utf8(text).map_err(|_| bad())?;
            let (name, password) = text.split_once(':').ok_or_else(bad)?;
            found.username = name.to_owned();
            found.password = Secret::new(password.trim_end_matches('\0'));
        }
        let says = !found.username.is_empty() || !found.identity_token.expose().is_empty();
        Ok(says.then_some(found))
    }
}

/// The host of a server's name: older clients wrote whole URLs.
fn host(server: &str) -> &str {
    let rest = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://"));
    let rest = rest.unwrap_or(server);
    let host = rest.split('/').next().unwrap_or(rest);
    if host == "index.docker.io" && rest == server { DOCKER_HUB } else { host }
}

fn program_of(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

fn not_understood(helper: &str) -> String {
    // What it said may hold a part of a password.
    format!("{}: its answer is not understood", program_of(helper))
}

/// What `docker-credential-<helper>` answers; nothing where it has none. An error says what went wrong.
async fn run(
    helper: &str,
    verb: &str,
    input: &str,
    patience: Duration,
) -> Result<Option<Vec<u8>>, String> {
    let program = program_of(helper);
    let failed = |reason: String| format!("{program}: {reason}");
    if helper.contains('/') {
        return Err(failed("a helper's name has no slash".to_owned()));
    }
    let asked = async {
        let mut child = tokio::process::Command::new(&program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { return Ok(None) };
        // One that does not read is judged by what it answers.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let mut answer = Vec::new();
        let read = stdout.take(HELPER_ANSWER).read_to_end(&mut answer).await;
        read.map_err(|error| failed(error.to_string()))?;
        if answer.len() as u64 == HELPER_ANSWER {
            return Err(not_understood(helper));
        }
        let status = child.wait().await.map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(Some(answer));
        }
        let said = String::from_utf8_lossy(&answer);
        if said.contains(HELPER_HAS_NONE) {
            return Ok(None);
        }
        let said = said.trim().lines().next().unwrap_or_default();
        let said: String = said.chars().take(HELPER_SAYS).collect();
        Err(failed(format!("ended with {status}: {said}").trim_end_matches([' ', ':']).to_owned()))
    };
    let late = || failed(format!("no answer within {} s", patience.as_secs()));
    tokio::time::timeout(patience, asked).await.map_err(|_| late())?
}

fn of_helper(server: &str, helped: Helped) -> Credentials {
    let Helped { username, secret } = helped;
    let server = server.to_owned();
    if username == TOKEN_USER {
        return Credentials { server, identity_token: secret, ..Credentials::default() };
    }
    Credentials { server, username, password: secret, ..Credentials::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(json: &str) -> Logins {
        Logins {
            file: PathBuf::from("config.json"),
            configuration: serde_json::from_str(json).unwrap(),
            patience: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn what_docker_login_wrote_is_read() {
        // `me:p:w`, and a token.
        let it = logins(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6cDp3"},
                "localhost:5000": {"identitytoken": "t"},
                "https://old.example/v1/": {"username": "u", "password": "p"},
                "empty.example": {}
            }}"#,
        );
        let hub = it.get("docker.io").await.unwrap().unwrap();
        assert_eq!((hub.username.as_str(), hub.password.expose()), ("me", "p:w"));
        assert_eq!(hub.server, HUB_SERVER);
        let local = it.get("localhost:5000").await.unwrap().unwrap();
        assert_eq!(local.identity_token.expose(), "t");
        assert_eq!(it.get("old.example").await.unwrap().unwrap().username, "u");
        for none in ["empty.example", "ghcr.io", "localhost"] {
            assert_eq!(it.get(none).await.unwrap(), None, "{none}");
        }
        assert_eq!(it.all().await.len(), 3);
    }

    #[tokio::test]
    async fn bad_entries_are_told_without_what_they_hold() {
        for auth in ["!!", "bm9jb2xvbg=="] {
            let it = logins(&format!(r#"{{"auths": {{"a.example": {{"auth": "{auth}"}}}}}}"#));
            let error = it.get("a.example").await.unwrap_err().to_string();
            assert!(error.contains("a.example") && !error.contains("nocolon"), "{error}");
        }
        let it = logins(r#"{"credsStore": "../evil"}"#);
        assert!(it.get("a.example").await.is_err());
        let it = logins(r#"{"credHelpers": {"a.example": "keel-none-such"}}"#);
        let error = it.get("a.example").await.unwrap_err().to_string();
        assert!(error.contains("docker-credential-keel-none-such"), "{error}");
        assert_eq!(it.get("b.example").await.unwrap(), None);
    }

    #[test]
    fn helpers_answer_with_names_or_tokens() {
        let helped = |json: &str| of_helper("a", serde_json::from_str(json).unwrap());
        let named = helped(r#"{"ServerURL": "a", "Username": "me", "Secret": "s"}"#);
        assert_eq!((named.username.as_str(), named.password.expose()), ("me", "s"));
        let token = helped(r#"{"Username": "<token>", "Secret": "s"}"#);
        assert_eq!((token.username.as_str(), token.identity_token.expose()), ("", "s"));
    }
}
