//! The environment of a workload, and the placeholders in its command.
//!
//! From weakest to strongest: a few variables of the server (`PATH`, `LANG`, `LC_*`, `TZ`, `TMPDIR`; nothing else,
//! because a server's environment may hold credentials), `HOME` and `USER` of its user, the platform's variables
//! (`PORT`, `KEEL_*`, [`Launch::environment`]), the spec's own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use keel_model::PortBinding;

use crate::types::{Identity, Launch};

/// Given when the server itself has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The server's variables that a workload inherits, besides `LC_*`.
const INHERITED: [&str; 4] = ["PATH", "LANG", "TZ", "TMPDIR"];

/// Variables that are also placeholders in commands and values.
pub(super) fn placeholders(
    launch: &Launch,
    ports: &[PortBinding],
    port: SocketAddr,
    secrets_dir: &Path,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        ("PORT".to_owned(), port.port().to_string()),
        ("KEEL_ADDRESS".to_owned(), port.ip().to_string()),
        ("KEEL_INSTANCE".to_owned(), launch.id.to_string()),
        ("KEEL_SERVICE".to_owned(), launch.service.to_string()),
        ("KEEL_STACK".to_owned(), launch.stack.to_string()),
        ("KEEL_REVISION".to_owned(), launch.revision.to_string()),
        ("KEEL_ATTEMPT".to_owned(), launch.attempt.to_string()),
        ("KEEL_SECRETS_DIR".to_owned(), secrets_dir.display().to_string()),
    ]);
    for binding in ports {
        all.insert(format!("PORT_{}", binding.target), binding.address.port().to_string());
    }
    all
}

/// The whole environment.
pub(super) fn environment(
    launch: &Launch,
    user: &Identity,
    placeholders: &BTreeMap<String, String>,
    server: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = server
        .filter(|(key, _)| INHERITED.contains(&key.as_str()) || key.starts_with("LC_"))
        .collect();
    all.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    all.insert("HOME".to_owned(), user.home.display().to_string());
    all.insert("USER".to_owned(), user.name.clone());
    all.extend(placeholders.iter().map(|(key, value)| (key.clone(), value.clone())));
    all.extend(launch.environment.iter().map(|(key, value)| (key.clone(), value.clone())));
    all.extend(
        launch
            .spec
            .environment
            .iter()
            .map(|(key, value)| (key.clone(), expand(value, placeholders))),
    );
    all
}

/// Replaces `${NAME}` where `NAME` is one of `placeholders`. Everything else is the program's business and stays.
pub(super) fn expand(text: &str, placeholders: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let after = &rest[at + 2..];
        let known = after.find('}').and_then(|end| Some((end, placeholders.get(&after[..end])?)));
        out.push_str(&rest[..at]);
        match known {
            Some((end, value)) => {
                out.push_str(value);
                rest = &after[end + 1..];
            }
            None => {
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_placeholders_are_replaced() {
        let known = BTreeMap::from([
            ("PORT".to_owned(), "20001".to_owned()),
            ("PORT_53".to_owned(), "20002".to_owned()),
        ]);
        let cases = [
            ("--port=${PORT}", "--port=20001"),
            ("${PORT}${PORT_53}", "2000120002"),
            ("${HOME}/${PORT}", "${HOME}/20001"),
            ("$PORT ${PORT", "$PORT ${PORT"),
            ("${${PORT}}", "${20001}"),
            ("ü${PORT}ü", "ü20001ü"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &known), expected);
        }
    }
}
