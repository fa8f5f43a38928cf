//! Names for sections of a configuration: from ours, with characters that both engines take, and never twice.

use std::collections::{BTreeMap, BTreeSet};

/// Longest name that is made of one of ours.
const MAX_NAME: usize = 80;

/// Names that were given.
#[derive(Debug, Default)]
pub(crate) struct Names {
    given: BTreeMap<String, String>,
    taken: BTreeSet<String>,
}

impl Names {
    /// The name for `ours`: always the same one.
    pub fn of(&mut self, ours: &str) -> String {
        if let Some(name) = self.given.get(ours) {
            return name.clone();
        }
        let name = self.fresh(ours);
        self.given.insert(ours.to_owned(), name.clone());
        name
    }

    /// A name like `ours` that was not given before.
    pub fn fresh(&mut self, ours: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let base: String = ours.chars().take(MAX_NAME).map(plain).collect();
        // A digit in front would make a name look like an index to HAProxy's command line.
        let base = match base.chars().next() {
            Some(first) if first.is_ascii_alphabetic() => base,
            _ => format!("x{base}"),
        };
        let numbered = (2..).map(|number| format!("{base}_{number}"));
        let free = std::iter::once(base.clone()).chain(numbered).find(|n| !self.taken.contains(n));
        let name = free.expect("there are more numbers than names");
        self.taken.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_differ() {
        let mut names = Names::default();
        assert_eq!(names.of("shop/cart:80"), "shop_cart_80");
        assert_eq!(names.of("shop_cart_80"), "shop_cart_80_2");
        assert_eq!(names.of("shop/cart:80"), "shop_cart_80");
        assert_eq!(names.fresh("shop/cart:80"), "shop_cart_80_3");
        assert_eq!(names.of("\"; }\n%[x]"), "x_______x_");
        assert_eq!(names.of(""), "x");
    }
}
