//! Where in the tree a phase is.
//!
//! Compose's rules hang on paths such as `services.*.ports`. A [`Path`] is a linked list on the call stack, cheap to
//! extend while walking; [`Path::parts`] turns it into a slice for a `match`, so that each rule table is plain
//! Rust patterns. Items of sequences have the segment `[]`.

/// Longest path that a rule can have; deeper places match no rule.
const MAX_RULE_DEPTH: usize = 10;

/// The segment of a sequence's item.
pub(crate) const ITEM: &str = "[]";

/// A place in the tree.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: &'a str,
    depth: usize,
}

impl<'a> Path<'a> {
    /// The top of a document.
    pub const ROOT: Path<'static> = Path { parent: None, segment: "", depth: 0 };

    /// The place one step down.
    pub fn child(&'a self, segment: &'a str) -> Path<'a> {
        Path { parent: Some(self), segment, depth: self.depth + 1 }
    }

    /// The segments from the top; empty when the place is too deep for any rule.
    pub fn with_parts<T>(&self, f: impl FnOnce(&[&str]) -> T) -> T {
        let mut buffer = [""; MAX_RULE_DEPTH];
        if self.depth > MAX_RULE_DEPTH {
            return f(&[]);
        }
        let mut at = self;
        for slot in buffer[..self.depth].iter_mut().rev() {
            *slot = at.segment;
            match at.parent {
                Some(parent) => at = parent,
                None => break,
            }
        }
        f(&buffer[..self.depth])
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(parent) = self.parent {
            if parent.depth > 0 && self.segment != ITEM {
                write!(f, "{parent}.")?;
            } else if parent.depth > 0 {
                write!(f, "{parent}")?;
            }
        }
        f.write_str(self.segment)
    }
}
