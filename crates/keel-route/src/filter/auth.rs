//! Name and password (RFC 7617).
//!
//! Most stored passwords take tens of milliseconds to check, too long for a thread that serves connections: then the answer
//! is an [`AuthCheck`], to be run elsewhere, whose result is handed in with the same request. Right passwords are
//! remembered ([`crate::filter::remembered`]); at most [`MAX_CHECKS`] checks are under way at once for all routes, so that
//! guessing can't take all the time there is. An unknown name is checked against somebody's hash, always the
//! same, so that the time tells nothing about which names exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use keel_model::BasicAuth;

use crate::filter::answer::Answer;
use crate::filter::headers::{check_name, is_value};
use crate::filter::htpasswd::{Hash, MAX_PASSWORD};
use crate::filter::remembered::{Remembered, Tag};
use crate::request::{Headers, RequestView, any_value};

/// Checks of passwords that are under way at once.
pub const MAX_CHECKS: usize = 32;
/// Longest value of `Authorization` that is read, in bytes.
const MAX_FIELD: usize = 2048;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who may pass.
#[derive(Debug)]
pub(crate) struct Auth {
    challenge: String,
    /// By name; not empty if compiled without a problem.
    users: Vec<User>,
    user_header: Option<Box<str>>,
    remove_header: bool,
    state: AuthState,
}

/// What all routes share.
#[derive(Clone, Debug)]
pub(crate) struct AuthState {
    pub remembered: Arc<Remembered>,
    pub under_way: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct User {
    name: Box<str>,
    stored: Box<str>,
    hash: Hash,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It passes, with these changes.
    Granted {
        user: Option<(Box<str>, String)>,
        remove_header: bool,
    },
    Denied(Answer),
    Check(AuthCheck),
}

/// A password to be checked, on a thread that may be busy for a while. Dropping it is a way to give up.
#[derive(Debug)]
pub struct AuthCheck {
    hash: Hash,
    password: Vec<u8>,
    known: bool,
    tag: Tag,
    _turn: Turn,
}

/// The result of an [`AuthCheck`]: goes back into `decide_verified` with the request it came from.
#[derive(Debug)]
pub struct Verified {
    tag: Tag,
    right: bool,
}

impl AuthCheck {
    /// Checks it: milliseconds to seconds of work.
    #[must_use]
    pub fn run(self) -> Verified {
        // In this order, so that an unknown name takes as long as a known one.
        let right = self.hash.verify(&self.password) & self.known;
        Verified { tag: self.tag, right }
    }
}

/// One of the checks under way.
#[derive(Debug)]
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(under_way: &Arc<AtomicUsize>) -> Option<Self> {
        let one_more = |n: usize| (n < MAX_CHECKS).then_some(n + 1);
        under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self(under_way.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Auth {
    pub fn new(declared: &BasicAuth, state: AuthState, problems: &mut Vec<String>) -> Self {
        let mut problem = |text: String| problems.push(format!("basic_auth: {text}"));
        let mut users: Vec<User> = Vec::new();
        let lines = declared.users.iter().map(|line| line.trim());
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match User::new(line) {
                Ok(user) => users.push(user),
                Err(text) => problem(text),
            }
        }
        users.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in users.windows(2).filter(|pair| pair[0].name == pair[1].name) {
            problem(format!("the user {:?} is there twice", pair[0].name));
        }
        if declared.users.is_empty() {
            problem("there is no user; add lines of `htpasswd -nB name`".into());
        }
        if !is_value(&declared.realm) {
            problem("the realm may only have visible ASCII characters and spaces".into());
        }
        let user_header = declared.user_header.as_deref().and_then(|name| match check_name(name) {
            Ok(name) => Some(name),
            Err(text) => {
                problem(text);
                None
            }
        });
        let realm = declared.realm.replace('\\', "\\\\").replace('"', "\\\"");
        Self {
            challenge: format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
            users,
            user_header,
            remove_header: declared.remove_header,
            state,
        }
    }

    /// What becomes of a request; `verified` is the result of the check that it led to before.
    pub fn entry(&self, view: &RequestView<'_>, now_ms: u64, verified: Option<&Verified>) -> Entry {
        let Some((name, password)) = credentials(view.headers) else {
            return Entry::Denied(self.refusal());
        };
        let remembered = &self.state.remembered;
        let found = self.users.binary_search_by(|user| (*user.name).cmp(&name));
        let at = found.unwrap_or_else(|_| remembered.number(&name) % self.users.len().max(1));
        let Some(user) = self.users.get(at) else {
            return Entry::Denied(self.refusal());
        };
        let known = found.is_ok();
        let tag = remembered.tag(&user.stored, &name, &password);
        match verified {
            Some(verified) if verified.tag == tag && verified.right && known => {
                remembered.add(tag, now_ms);
                return self.granted(name);
            }
            // Another password than the one that was checked, or a wrong one.
            Some(_) => return Entry::Denied(self.refusal()),
            None if remembered.has(&tag, now_ms) & known => return self.granted(name),
            None => {}
        }
        if !user.hash.is_slow() {
            return match user.hash.verify(&password) & known {
                true => self.granted(name),
                false => Entry::Denied(self.refusal()),
            };
        }
        match Turn::take(&self.state.under_way) {
            Some(turn) => {
                let hash = user.hash.clone();
                Entry::Check(AuthCheck { hash, password, known, tag, _turn: turn })
            }
            None => Entry::Denied(
                Answer::text(503, "Too many passwords are being checked. Try again.")
                    .with("retry-after", "1"),
            ),
        }
    }

    fn granted(&self, name: String) -> Entry {
        let user = self.user_header.clone().map(|header| (header, name));
        Entry::Granted { user, remove_header: self.remove_header }
    }

    fn refusal(&self) -> Answer {
        Answer::text(401, "A name and a password are needed.")
            .with("www-authenticate", &*self.challenge)
    }
}

impl User {
    /// Reads `name:hash`.
    fn new(line: &str) -> Result<Self, String> {
        let Some((name, stored)) = line.split_once(':') else {
            return Err(
                "a line of `users` is not of the form name:hash, as `htpasswd -nB name` prints"
                    .into(),
            );
        };
        // The name goes into a header field of the request.
        if name.is_empty() || !is_value(name) {
            return Err(format!("the user {name:?} may only have visible ASCII characters"));
        }
        let hash = Hash::new(stored).map_err(|problem| format!("user {name:?}: {problem}"))?;
        Ok(Self { name: name.into(), stored: stored.into(), hash })
    }
}

/// Name and password of a request; nothing if there is none, if it is too long to be one, or if it can be read
/// in two ways.
fn credentials(headers: &dyn Headers) -> Option<(String, Vec<u8>)> {
    let mut fields = 0;
    any_value(headers, "authorization", &mut |_| {
        fields += 1;
        false
    });
    let field =
        headers.get("authorization").filter(|field| fields == 1 && field.len() <= MAX_FIELD)?;
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let password = decoded.split_off(colon + 1);
    decoded.pop();
    let name = String::from_utf8(decoded).ok()?;
    let has_control = name.bytes().chain(password.iter().copied()).any(|b| b.is_ascii_control());
    (!has_control && password.len() <= MAX_PASSWORD).then_some((name, password))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::tests::{Fields, get};

    /// `secret`, with bcrypt at its lowest cost and with SHA-1.
    const ANN: &str = "ann:$2y$04$YS7Kc2pSuX4cOpoe3qPbYO/VRRAcs76X1mjtpElUAEBB3M0EvAdFe";
    const BEN: &str = "ben:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=";

    fn state() -> AuthState {
        AuthState { remembered: Arc::new(Remembered::new([3; 32])), under_way: Arc::default() }
    }

    fn declared(users: &[&str]) -> BasicAuth {
        BasicAuth {
            realm: "the \"shop\"".into(),
            users: users.iter().map(|line| (*line).to_owned()).collect(),
            user_header: Some("X-User".into()),
            remove_header: true,
        }
    }

    fn auth(users: &[&str]) -> Auth {
        let mut problems = Vec::new();
        let auth = Auth::new(&declared(users), state(), &mut problems);
        assert_eq!(problems, [""; 0]);
        auth
    }

    fn basic(credentials: &str) -> String {
        format!("Basic {}", BASE64.encode(credentials))
    }

    fn entry(auth: &Auth, authorization: &str, verified: Option<&Verified>) -> Entry {
        let headers: Fields<'_> = &[("Authorization", authorization)];
        auth.entry(&get(&headers), 1000, verified)
    }

    #[test]
    fn a_slow_check_is_made_elsewhere_and_remembered() {
        let auth = auth(&["# a comment", "", ANN, BEN]);
        let right = basic("ann:secret");
        let Entry::Check(check) = entry(&auth, &right, None) else { panic!("a check") };
        assert_eq!(auth.state.under_way.load(Ordering::Relaxed), 1);
        let verified = check.run();
        assert_eq!(auth.state.under_way.load(Ordering::Relaxed), 0);
        let other = entry(&auth, &basic("ann:Secret"), Some(&verified));
        assert!(matches!(other, Entry::Denied(_)), "the result of another password");
        let granted = entry(&auth, &right, Some(&verified));
        let Entry::Granted { user: Some(user), remove_header: true } = granted else {
            panic!("{granted:?}")
        };
        assert_eq!(user, ("x-user".into(), "ann".to_owned()));
        assert!(matches!(entry(&auth, &right, None), Entry::Granted { .. }), "remembered");
    }

    #[test]
    fn a_wrong_password_and_an_unknown_name_take_the_same_way() {
        let auth = auth(&[ANN]);
        for credentials in ["ann:wrong", "eve:secret", "eve:"] {
            let Entry::Check(check) = entry(&auth, &basic(credentials), None) else {
                panic!("a check")
            };
            let verified = check.run();
            let Entry::Denied(answer) = entry(&auth, &basic(credentials), Some(&verified)) else {
                panic!("denied")
            };
            assert_eq!(answer.status, 401);
            assert_eq!(answer.headers[1].0, "www-authenticate");
            assert_eq!(answer.headers[1].1, "Basic realm=\"the \\\"shop\\\"\", charset=\"UTF-8\"");
            assert!(matches!(entry(&auth, &basic(credentials), None), Entry::Check(_)));
        }
    }

    #[test]
    fn a_fast_check_is_made_at_once() {
        let auth = auth(&[BEN]);
        assert!(matches!(entry(&auth, &basic("ben:secret"), None), Entry::Granted { .. }));
        assert!(matches!(entry(&auth, &basic("ben:Secret"), None), Entry::Denied(_)));
        assert!(matches!(entry(&auth, &basic("eve:secret"), None), Entry::Denied(_)));
    }

    #[test]
    fn what_is_no_credentials_is_refused_without_a_check() {
        let auth = auth(&[ANN]);
        let long = basic(&format!("ann:{}", "a".repeat(MAX_PASSWORD + 1)));
        let (no_colon, control) = (basic("ann"), basic("ann:a\0b"));
        for field in ["", "Basic", "Basic ", "Bearer abc", "Basic !!", &no_colon, &control, &long] {
            assert!(matches!(entry(&auth, field, None), Entry::Denied(_)), "{field}");
        }
        let right = basic("ann:secret");
        let twice: Fields<'_> = &[("authorization", &right), ("authorization", &right)];
        assert!(matches!(auth.entry(&get(&twice), 0, None), Entry::Denied(_)));
        let unpadded = right.trim_end_matches('=').replace("Basic ", "basic   ");
        assert!(matches!(entry(&auth, &unpadded, None), Entry::Check(_)));
    }

    #[test]
    fn checks_under_way_are_bounded() {
        let auth = auth(&[ANN]);
        let checks: Vec<Entry> =
            (0..MAX_CHECKS).map(|n| entry(&auth, &basic(&format!("ann:{n}")), None)).collect();
        assert!(checks.iter().all(|entry| matches!(entry, Entry::Check(_))));
        let Entry::Denied(answer) = entry(&auth, &basic("ann:x"), None) else { panic!("denied") };
        assert_eq!(answer.status, 503);
        drop(checks);
        assert!(matches!(entry(&auth, &basic("ann:x"), None), Entry::Check(_)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let realm = BasicAuth { realm: "a\r\nb".into(), ..declared(&[ANN]) };
        let header = BasicAuth { user_header: Some("Host".into()), ..declared(&[ANN]) };
        for (declared, part) in [
            (declared(&[]), "no user"),
            (declared(&["ann"]), "name:hash"),
            (declared(&["ann:secret"]), "no kind"),
            (declared(&[ANN, ANN]), "twice"),
            (declared(&["a\tb:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "é:x"]), "visible"),
            (realm, "realm"),
            (header, "rewrite.host"),
        ] {
            let mut problems = Vec::new();
            Auth::new(&declared, state(), &mut problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(part), "{problems:?}");
            assert!(!problems[0].contains("secret"), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn random_fields_never_panic(field in "Basic [A-Za-z0-9+/=]{0,40}|\\PC{0,20}") {
            let auth = auth(&[BEN]);
            let granted = matches!(entry(&auth, &field, None), Entry::Granted { .. });
            prop_assert!(!granted);
        }
    }
}
