//! Names and numbers that identify things, validated where they enter.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that does not follow the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {name:?} is not valid: {rule}")]
pub struct InvalidName {
    /// What was to be named (`stack`, `service`, …).
    pub kind: &'static str,
    /// The offending text, cut to 80 characters.
    pub name: String,
    /// What is allowed.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks `name` against the rules of its kind.
            ///
            /// # Errors
            /// [`InvalidName`] with the rule that was broken.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                let valid: fn(&str) -> bool = $valid;
                if name.len() <= 128 && valid(&name) {
                    Ok(Self(name))
                } else {
                    Err(InvalidName {
                        kind: $kind,
                        name: name.chars().take(80).collect(),
                        rule: $rule,
                    })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

fn word(name: &str, extra: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

name!(
    /// The name of a stack: a Compose project name.
    StackName, "stack",
    "use lower-case letters, digits, '-' and '_', beginning with a letter or digit",
    |n| word(n, "-_") && !n.chars().any(|c| c.is_ascii_uppercase())
);
name!(
    /// The name of a service within its stack.
    ServiceName, "service",
    "use letters, digits, '.', '-' and '_'",
    |n| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && n != "." && n != ".."
);
name!(
    /// The name of a machine.
    NodeName, "node", "use letters, digits, '.', '-' and '_', beginning with a letter or digit",
    |n| word(n, "._-")
);
name!(
    /// The name of a zone: machines that fail together, with short ways among them.
    ZoneName, "zone", "use letters, digits, '.', '-' and '_', beginning with a letter or digit",
    |n| word(n, "._-")
);
name!(
    /// One running copy of a revision, unique for all time: `<stack>-<service>-<serial>`.
    InstanceId, "instance", "use letters, digits, '.', '-' and '_', beginning with a letter or digit",
    |n| word(n, "._-")
);
name!(
    /// The first 12 hexadecimal digits of the SHA-256 of a service's spec.
    RevisionId, "revision", "12 hexadecimal digits",
    |n| n.len() == 12 && n.bytes().all(|b| b.is_ascii_hexdigit())
);

impl InstanceId {
    /// The identity of the `serial`-th instance that `service` of `stack` ever had.
    #[must_use]
    pub fn numbered(stack: &StackName, service: &ServiceName, serial: u64) -> Self {
        Self(format!("{stack}-{service}-{serial}"))
    }
}

/// A counter that fences: an agent that has seen a higher one refuses a lower one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(StackName::new("shop-1_a").is_ok());
        for bad in ["", "Shop", "-a", "a b", "a/b", "é"] {
            assert!(StackName::new(bad).is_err(), "{bad}");
        }
        assert!(ServiceName::new("Web.api-1").is_ok());
        assert!(ServiceName::new("..").is_err());
        assert!(RevisionId::new("0123456789ab").is_ok());
        assert!(RevisionId::new("0123456789a").is_err());
        assert!(StackName::new("x".repeat(129)).is_err());
    }
}
