//! Origins of scripts (Fetch standard, 3.2), as expressions for the value of `Origin`.

use crate::pattern;

/// What stands for `*` in front of a parent.
const LABEL: &str = "[A-Za-z0-9_-]+";
/// What stands for `*` as a port.
const PORT: &str = "[0-9]+";

/// The expression for one origin: exact, or with one `*` for a label or the port. Browsers send lower case.
pub(crate) fn expression(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let literal = |text: &str| pattern::literal(text.as_bytes());
    match origin.split_once('*') {
        None => format!(r"\A{}\z", literal(&origin)),
        Some((before, "")) if before.ends_with(':') => format!(r"\A{}{PORT}\z", literal(before)),
        Some((before, after)) => format!(r"\A{}{LABEL}{}\z", literal(before), literal(after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (origin, expected) in [
            ("https://A.example", r"\Ahttps://a\.example\z"),
            ("https://*.b.example", r"\Ahttps://[A-Za-z0-9_-]+\.b\.example\z"),
            ("http://localhost:*", r"\Ahttp://localhost:[0-9]+\z"),
            ("a*b*", r"\Aa[A-Za-z0-9_-]+b\x2A\z"),
        ] {
            assert_eq!(expression(origin), expected);
        }
    }
}
