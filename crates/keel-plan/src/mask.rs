//! Hides what must not be shown: contents of files, and text that looks like a secret.
//!
//! Whether text is secret can't be known for sure. This errs towards hiding: a hidden harmless value costs a look
//! into the file, a shown password costs a rotation.

use serde_json::Value;

/// What stands for a hidden value.
const HIDDEN: &str = "(hidden)";

/// `value`, which stands under `key`, with everything secret replaced.
pub(crate) fn masked(key: &str, value: &Value) -> Value {
    match value {
        // `users` of a route are names with hashes of passwords.
        Value::String(_) if matches!(key, "content" | "users") || looks_secret(key) => {
            Value::String(HIDDEN.to_owned())
        }
        Value::String(text) => Value::String(mask_text(text)),
        Value::Array(items) => Value::Array(mask_list(key, items)),
        Value::Object(map) => {
            let inner = |(key, value): (&String, &Value)| (key.clone(), masked(key, value));
            Value::Object(map.iter().map(inner).collect())
        }
        other => other.clone(),
    }
}

/// A list of arguments: `--password x` hides the `x`.
fn mask_list(key: &str, items: &[Value]) -> Vec<Value> {
    let mut after_secret = false;
    let mut list = Vec::with_capacity(items.len());
    for item in items {
        let text = item.as_str().unwrap_or_default();
        if after_secret && !text.is_empty() && !text.starts_with('-') {
            list.push(Value::String(HIDDEN.to_owned()));
        } else {
            list.push(masked(key, item));
        }
        after_secret = text.starts_with('-') && !text.contains('=') && looks_secret(text);
    }
    list
}

/// `--token=x`, `TOKEN=x` and `scheme://user:password@host` lose their secret part.
fn mask_text(text: &str) -> String {
    let words: Vec<String> = text.split(' ').map(mask_word).collect();
    words.join(" ")
}

fn mask_word(word: &str) -> String {
    if let Some((name, _)) = word.split_once('=').filter(|(name, _)| looks_secret(name)) {
        return format!("{name}={HIDDEN}");
    }
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) if rest[..at].contains(':') => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        _ => word.to_owned(),
    }
}

/// Whether a name is one that secrets go by.
pub(crate) fn looks_secret(name: &str) -> bool {
    const ANYWHERE: [&str; 10] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "credential",
        "apikey",
        "privatekey",
        "auth",
        "signature",
    ];
    const WHOLE: [&str; 8] = ["pass", "pwd", "pw", "key", "keys", "pat", "dsn", "salt"];
    let lower = name.to_ascii_lowercase();
    let joined: String = lower.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut parts = lower.split(|c: char| !c.is_ascii_alphanumeric());
    ANYWHERE.iter().any(|word| joined.contains(word)) || parts.any(|part| WHOLE.contains(&part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        for name in ["DB_PASSWORD", "API_KEY", "apiKey", "GITHUB_TOKEN", "PGPASS_PWD", "x-auth"] {
            assert!(looks_secret(name), "{name}");
        }
        for name in ["LOG_LEVEL", "KEYBOARD", "COMPASS", "PORT", "BYPASSED"] {
            assert!(!looks_secret(name), "{name}");
        }
    }

    #[test]
    fn secrets_in_text_are_hidden() {
        for (text, shown) in [
            ("postgres://me:pw@db/x?y", "postgres://(hidden)@db/x?y"),
            ("http://host/a@b:c", "http://host/a@b:c"),
            ("run --token=abc --level=2", "run --token=(hidden) --level=2"),
        ] {
            assert_eq!(mask_text(text), shown);
        }
        let command = json!(["serve", "--password", "x", "--port", "80"]);
        assert_eq!(
            masked("command", &command),
            json!(["serve", "--password", "(hidden)", "--port", "80"])
        );
        assert_eq!(masked("x", &json!({"content": "c2VjcmV0"})), json!({"content": "(hidden)"}));
    }
}
