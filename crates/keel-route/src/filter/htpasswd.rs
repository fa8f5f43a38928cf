//! Stored passwords in the forms that Apache's `htpasswd` and `openssl passwd` write: bcrypt, `$apr1$`, SHA-crypt (`$5$`,
//! `$6$`) and `{SHA}`. Not taken: plain text and DES, which protect nothing.

use base64::Engine as _;
use base64::alphabet::BCRYPT;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::{Digest as _, Md5};
use sha_crypt::{PasswordVerifier as _, ShaCrypt};
use sha1::Sha1;
use subtle::ConstantTimeEq as _;

/// Longest password in bytes: SHA-crypt takes time with the square of it.
pub(crate) const MAX_PASSWORD: usize = 512;
/// Highest cost of bcrypt (about two seconds).
const MAX_COST: u32 = 15;
/// Most rounds of SHA-crypt (about a second).
const MAX_ROUNDS: u32 = 1_000_000;

/// bcrypt's own alphabet. Some programs leave bits set that belong to no byte.
const BCRYPT64: GeneralPurpose = GeneralPurpose::new(
    &BCRYPT,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// A stored password.
#[derive(Clone)]
pub(crate) enum Hash {
    Bcrypt { cost: u32, salt: [u8; 16], hash: [u8; 23] },
    Apr1 { salt: Box<str>, hash: Box<str> },
    ShaCrypt(Box<str>),
    Sha1([u8; 20]),
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Hash {
    /// Reads the part of a line after the name.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if let Some(rest) = text.strip_prefix("{SHA}") {
            let hash = STANDARD.decode(rest).ok().and_then(|bytes| bytes.try_into().ok());
            return hash.map(Self::Sha1).ok_or("the hash after {SHA} is not complete");
        }
        if let Some(rest) = text.strip_prefix("$apr1$") {
            let (salt, hash) = rest.split_once('$').ok_or("the $apr1$ hash is not complete")?;
            let fits =
                salt.len() <= 8 && hash.len() == 22 && hash.bytes().all(|b| CRYPT64.contains(&b));
            return match fits {
                true => Ok(Self::Apr1 { salt: salt.into(), hash: hash.into() }),
                false => Err("the $apr1$ hash is not complete"),
            };
        }
        if text.starts_with("$5$") || text.starts_with("$6$") {
            return sha_crypt(text);
        }
        match text.get(..4) {
            Some("$2y$" | "$2b$" | "$2a$") => bcrypt(&text[4..]),
            _ => Err(
                "the hash is of no kind that is taken (bcrypt, $apr1$, $5$, $6$ or {SHA}); make one with `htpasswd -nB`, and write each $ as $$ in a Compose file",
            ),
        }
    }

    /// Whether it takes long enough to be a matter for a thread of its own.
    pub fn is_slow(&self) -> bool {
        !matches!(self, Self::Sha1(_))
    }

    /// Whether it is the hash of `password`. Takes as long for a wrong one as for the right one.
    pub fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt { cost, salt, hash } => {
                // A NUL ends the password, and 72 bytes are looked at (OpenBSD's bcrypt).
                let mut key = password[..password.len().min(72)].to_vec();
                key.push(0);
                key.truncate(72);
                let found = bcrypt::bcrypt(*cost, *salt, &key);
                found[..23].ct_eq(hash).into()
            }
            Self::Apr1 { salt, hash } => {
                apr1(password, salt.as_bytes()).as_bytes().ct_eq(hash.as_bytes()).into()
            }
            Self::ShaCrypt(text) => ShaCrypt::default().verify_password(password, &**text).is_ok(),
            Self::Sha1(hash) => Sha1::digest(password).as_slice().ct_eq(hash).into(),
        }
    }
}

fn bcrypt(rest: &str) -> Result<Hash, &'static str> {
    let incomplete = "the bcrypt hash is not complete";
    let (cost, rest) = rest.split_once('$').ok_or(incomplete)?;
    let cost = cost.parse().map_err(|_| incomplete)?;
    if !(4..=MAX_COST).contains(&cost) {
        return Err(
            "the cost of the bcrypt hash must be from 4 to 15; make one with `htpasswd -nB`",
        );
    }
    let (salt, hash) = rest.split_at_checked(22).ok_or(incomplete)?;
    let decode = |text: &str| BCRYPT64.decode(text).map_err(|_| incomplete);
    Ok(Hash::Bcrypt {
        cost,
        salt: decode(salt)?.try_into().map_err(|_| incomplete)?,
        hash: decode(hash)?.try_into().map_err(|_| incomplete)?,
    })
}

fn sha_crypt(text: &str) -> Result<Hash, &'static str> {
    let incomplete = "the SHA-crypt hash is not complete";
    let mut parts = text[3..].split('$');
    let mut part = parts.next().ok_or(incomplete)?;
    if let Some(rounds) = part.strip_prefix("rounds=") {
        if !rounds.parse().is_ok_and(|rounds: u32| (1000..=MAX_ROUNDS).contains(&rounds)) {
            return Err("the SHA-crypt hash must have from 1000 to 1000000 rounds");
        }
        part = parts.next().ok_or(incomplete)?;
    }
    let length = if text.starts_with("$5$") { 43 } else { 86 };
    let hash = parts.next().ok_or(incomplete)?;
    let fits = part.len() <= 16
        && hash.len() == length
        && hash.bytes().all(|b| CRYPT64.contains(&b))
        && parts.next().is_none()
        && text.is_ascii();
    if fits { Ok(Hash::ShaCrypt(text.into())) } else { Err(incomplete) }
}

const CRYPT64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The `$apr1$` hash of Apache (`apr_md5_encode`): the MD5 crypt of FreeBSD with another magic word. No kept-up crate
/// has it.
fn apr1(password: &[u8], salt: &[u8]) -> String {
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password);
    let inner = inner.finalize();
    let mut outer = Md5::new().chain_update(password).chain_update(b"$apr1$").chain_update(salt);
    for part in password.chunks(16) {
        outer.update(&inner[..part.len()]);
    }
    let mut length = password.len();
    while length != 0 {
        outer.update(if length & 1 == 1 { &[0] } else { &password[..1] });
        length >>= 1;
    }
    let mut hash = outer.finalize();
    for round in 0..1000 {
        let mut next = Md5::new();
        next.update(if round & 1 == 1 { password } else { &hash });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if round & 1 == 1 { &hash } else { password });
        hash = next.finalize();
    }
    let mut out = String::with_capacity(22);
    let mut push = |mut bits: u32, digits: usize| {
        for _ in 0..digits {
            out.push(char::from(CRYPT64[(bits & 63) as usize]));
            bits >>= 6;
        }
    };
    for (a, b, c) in [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)] {
        push(u32::from_be_bytes([0, hash[a], hash[b], hash[c]]), 4);
    }
    push(u32::from(hash[11]), 2);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hashes_of_other_programs() {
        for (text, password) in VECTORS {
            let hash = Hash::new(text).unwrap();
            assert!(hash.verify(password.as_bytes()), "{text}");
            assert!(!hash.verify(b"wrong"), "{text}");
            assert!(!hash.verify(b""), "{text}");
        }
    }

    #[test]
    fn only_the_first_72_bytes_count_for_bcrypt() {
        let hash =
            Hash::new("$2b$04$abcdefghijklmnopqrstuubzadhGtS2zEF.gu0yd0opP6cVzb.e0i").unwrap();
        assert!(hash.verify("x".repeat(80).as_bytes()));
        assert!(hash.verify("x".repeat(72).as_bytes()));
        assert!(!hash.verify("x".repeat(71).as_bytes()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("secret", "no kind"),
            ("rqXexS6ZhobKA", "no kind"),
            ("$$apr1$$a$$b", "$$"),
            ("$1$a$bbbbbbbbbbbbbbbbbbbbbb", "no kind"),
            ("$apr1$abc", "not complete"),
            ("$apr1$abc$short", "not complete"),
            ("{SHA}AAAA", "not complete"),
            ("$2y$31$yUlekwmcLh8uMZlNQn2W2.SPiJ3EyiSWZWaAfdiLcDQhzZQfUemle", "cost"),
            ("$2y$04$yUlekwmcLh8uMZlNQn2W2.SPiJ3EyiSWZWaAfdiLcDQhzZQfUem", "not complete"),
            ("$2y$04$é", "not complete"),
            ("$5$abc$", "not complete"),
            ("$6$rounds=999999999$abc$a", "rounds"),
            ("$6$rounds=x$abc$a", "rounds"),
        ] {
            let problem = Hash::new(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(
            text in "(\\$2y\\$0[0-9]\\$|\\$apr1\\$|\\$[56]\\$(rounds=1000\\$)?|\\{SHA\\})?[./0-9A-Za-z$=é]{0,64}",
            password in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(hash) = Hash::new(&text)
                && !matches!(hash, Hash::Bcrypt { cost, .. } if cost > 4)
            {
                hash.verify(&password);
            }
        }
    }

    #[rustfmt::skip] // One vector a line.
    const VECTORS: &[(&str, &str)] = &[
        ("$apr1$Rz.x/7qB$AciJ7uXxxjOqn3Xv/qWWU.", "password"),
        ("$5$Rz.x/7qB$5D3CGp8onXAzql0pthkZZjXoFJaEyAbWGubiraO/Ul1", "password"),
        ("$6$Rz.x/7qB$GE9UDkQrwCwj4OMluPZu1sGCmD3UOtNhbJU5Cxanz8dZEcgNaZubxte3.kkrLOeuRJlPCbL0Er7O2z6zkorYX.", "password"),
        ("$2y$04$H3ETL8xQA647Cb6A7PA4Lu3xsA73wf6VAbir97JLAqRGAU8JKxXV2", "password"),
        ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "password"),
        ("$apr1$Rz.x/7qB$ltFpL6M2wgsSu3uagouTb/", "p"),
        ("$5$Rz.x/7qB$HX8ojkR27SEPfOmceB.OYryWRdrUiJMBBXGJXjV4ga7", "p"),
        ("$6$Rz.x/7qB$HnejwpilwNBh49BnR8u662xW90GvLRJYoqsaiffhgCjWt3yYGE2Y2uk.8GGhwhmG2oxXtN9wjlUOudb4LaDRW0", "p"),
        ("$2y$04$DufvfrW0islG3YnyGPjJVeLhTCpxWZtspbzwfrONM02KT.s1rvfjm", "p"),
        ("{SHA}UWuXg/ylF+7L0dBk2i0WUxCxl1k=", "p"),
        ("$apr1$Rz.x/7qB$v6HUPzW9rRiXHZrYonJtD.", "a longer pass phrase of 40 bytes and more!"),
        ("$5$Rz.x/7qB$W/YihOU.6AWtQOnS4Vt.nKbHWMHO912.6P941Ey7zfA", "a longer pass phrase of 40 bytes and more!"),
        ("$6$Rz.x/7qB$zAqKkXZalcWip9hJb9qAkB9LikkzipSJkZ/SQ7lPb7QO/2KDR2jPeYvEp2FrJl4t3x8s/GIQK67Y8TsN6Fkvj.", "a longer pass phrase of 40 bytes and more!"),
        ("$2y$04$Jb/FQ7q0NceO9mmlyYG6lOhzTwZ4CMIaOJY75piUvNPiY6rN4T1vq", "a longer pass phrase of 40 bytes and more!"),
        ("{SHA}ig3gpTe/ROWAUCC2P6xzz9y8DDs=", "a longer pass phrase of 40 bytes and more!"),
        ("$apr1$Rz.x/7qB$5PsOw5jMos3vNkiM.KuuU.", "pässwörd"),
        ("$5$Rz.x/7qB$8qIEB1pr3boyj44BFu5iJ9l3Hwu9z.jPJmRAvC7yJ7.", "pässwörd"),
        ("$6$Rz.x/7qB$B5iMJUz1X/2HQ4k1TAbR8vxSr4I00YoC8WPma9O6EdAwMgGySl1G7RSAQNaVMPVjuCJ59HVjgLvAmrMw4TuZ6/", "pässwörd"),
        ("$2y$04$Zc4y.nl44mvoxzqm5t5oLOxmrpb0TSx/CsO57BIEa003zUI3RGO26", "pässwörd"),
        ("{SHA}9Rfd8dMqES/xrVXGbRsSyzjn6Pc=", "pässwörd"),
        ("$6$rounds=1000$saltstring$EzTqOEb9gQc3Va/4p4pnqWqp/wIh1Otyhg9H9E8sV0eDyHGbNBkoMxYIM0ODHPBfmDNWb6wRiAvTriYxeDgb9.", "password"),
    ];
}
