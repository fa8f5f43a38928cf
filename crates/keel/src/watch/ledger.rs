//! What has been copied since the beginning, and which container has it. Pure.
//!
//! A container that was not there when something was copied gets it later: one that is new all of it, one that was down
//! what it missed. What is copied is always what there is at that time, so that an old entry does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::decide::Copy;

/// What was copied to the containers of one service.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By where it is in a container, with the number of the batch that it last came with.
    copies: BTreeMap<PathBuf, (Copy, u64)>,
    /// Number of the last batch.
    batch: u64,
    /// Up to which batch each container has everything, by its id.
    have: BTreeMap<String, u64>,
}

/// What a container lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// By where it comes.
    pub copies: BTreeMap<PathBuf, Copy>,
    /// The batch up to which it then has everything.
    pub upto: u64,
}

impl Ledger {
    /// Takes up a batch.
    pub fn add(&mut self, copies: BTreeMap<PathBuf, Copy>) {
        if !copies.is_empty() {
            self.batch += 1;
            let batch = self.batch;
            self.copies.extend(copies.into_iter().map(|(to, copy)| (to, (copy, batch))));
        }
    }

    /// What this container lacks.
    pub fn lacking(&self, container: &str) -> Lacking {
        let has = self.have.get(container).copied().unwrap_or(0);
        let lacks = self.copies.iter().filter(|(_, (_, batch))| *batch > has);
        Lacking {
            copies: lacks.map(|(to, (copy, _))| (to.clone(), copy.clone())).collect(),
            upto: self.batch,
        }
    }

    /// A container has everything up to a batch.
    pub fn has(&mut self, container: &str, upto: u64) {
        self.have.insert(container.to_owned(), upto);
    }

    /// Whether a container was not there before.
    pub fn is_new(&self, container: &str) -> bool {
        !self.have.contains_key(container)
    }

    /// Forgets containers that are gone. One that is only down comes back as it was.
    pub fn keep(&mut self, containers: &BTreeSet<String>) {
        self.have.retain(|container, _| containers.contains(container));
    }

    /// A new image has what is in this directory: instances of it need not be restarted for that.
    pub fn built_from(&mut self, context: &std::path::Path) {
        for (copy, _) in self.copies.values_mut() {
            copy.restarts &= !copy.source.starts_with(context);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn copies(names: &[&str]) -> BTreeMap<PathBuf, Copy> {
        let copy = |name: &&str| {
            let source = Path::new("/here").join(name);
            let copy = Copy { source, below: "/app".into(), restarts: true };
            (Path::new("/app").join(name), copy)
        };
        names.iter().map(copy).collect()
    }

    fn lacks(ledger: &Ledger, container: &str) -> Vec<String> {
        let lacking = ledger.lacking(container);
        lacking.copies.keys().map(|to| to.display().to_string()).collect()
    }

    #[test]
    fn each_container_gets_what_it_missed() {
        let mut ledger = Ledger::default();
        assert!(ledger.is_new("one"));
        ledger.has("one", 0);
        ledger.add(copies(&["a", "b"]));
        assert_eq!(lacks(&ledger, "one"), ["/app/a", "/app/b"]);
        ledger.has("one", ledger.lacking("one").upto);
        ledger.add(copies(&["b", "c"]));
        assert_eq!(lacks(&ledger, "one"), ["/app/b", "/app/c"]);
        assert_eq!(lacks(&ledger, "new"), ["/app/a", "/app/b", "/app/c"]);
        ledger.has("new", 2);
        assert_eq!(lacks(&ledger, "new"), [] as [&str; 0]);
        // One that failed half way lacks it still.
        assert_eq!(ledger.lacking("one").upto, 2);
        ledger.keep(&["new".to_owned()].into());
        assert!(ledger.is_new("one") && !ledger.is_new("new"));
        ledger.add(BTreeMap::new());
        assert_eq!(lacks(&ledger, "new"), [] as [&str; 0]);
    }

    #[test]
    fn a_new_image_needs_no_restart_for_what_it_was_built_from() {
        let mut ledger = Ledger::default();
        ledger.add(copies(&["src/a", "etc/b"]));
        ledger.built_from(Path::new("/here/src"));
        let lacking = ledger.lacking("new");
        assert!(!lacking.copies[Path::new("/app/src/a")].restarts);
        assert!(lacking.copies[Path::new("/app/etc/b")].restarts);
    }
}
