//! What the proxy needs for TLS that ends there: certificates and proofs, from all who provide some.
//!
//! This is the one place where they meet. Each provider replaces its own part; the link to the proxy wakes with every
//! change and takes the whole.

use std::sync::Arc;

use keel_acme::Published;
use keel_route::snapshot::{Certificate, Challenges};
use tokio::sync::watch;

/// Certificates and proofs, by who provides them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parts {
    files: Vec<Certificate>,
    issued: Published,
}

/// Certificates and proofs that are in force.
#[derive(Debug)]
pub struct Credentials {
    parts: watch::Sender<Parts>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self { parts: watch::channel(Parts::default()).0 }
    }
}

impl Credentials {
    /// Replaces the certificates that are read from files of users.
    pub fn set_files(&self, certificates: Vec<Certificate>) {
        self.change(|parts| parts.files = certificates);
    }

    /// Replaces what authorities issued, and the proofs that they ask for.
    pub fn set_issued(&self, issued: Published) {
        self.change(|parts| parts.issued = issued);
    }

    /// The revision of what authorities issued.
    pub fn issued_revision(&self) -> u64 {
        self.parts.borrow().issued.revision
    }

    /// Takes over what authorities issue, for as long as anybody has it issued.
    pub async fn follow(self: Arc<Self>, mut issued: watch::Receiver<Published>) {
        while issued.changed().await.is_ok() {
            let news = issued.borrow_and_update().clone();
            self.set_issued(news);
        }
    }

    /// Wakes only when something differs.
    fn change(&self, change: impl FnOnce(&mut Parts)) {
        self.parts.send_if_modified(|parts| {
            let before = parts.clone();
            change(parts);
            *parts != before
        });
    }

    /// All certificates. Those of users come first: where two are for one name, a user's own choice wins.
    pub fn certificates(&self) -> Vec<Certificate> {
        let parts = self.parts.borrow();
        parts.files.iter().chain(&parts.issued.certificates).cloned().collect()
    }

    /// The proofs.
    pub fn challenges(&self) -> Challenges {
        self.parts.borrow().issued.challenges.clone()
    }

    /// Wakes with every change.
    pub fn subscribe(&self) -> Wake {
        Wake(self.parts.subscribe())
    }
}

/// Wakes when certificates or proofs change.
#[derive(Debug)]
pub struct Wake(watch::Receiver<Parts>);

impl Wake {
    /// Waits for the next change; `false` once there can be none.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Takes what there is for known.
    pub fn seen(&mut self) {
        self.0.borrow_and_update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> Certificate {
        Certificate { names: vec![name.to_owned()], chain: String::new(), key: String::new() }
    }

    #[test]
    fn providers_do_not_disturb_each_other() {
        let credentials = Credentials::default();
        let wake = credentials.subscribe();
        credentials
            .set_issued(Published { certificates: vec![certificate("b")], ..Published::default() });
        credentials.set_files(vec![certificate("a")]);
        let names: Vec<String> =
            credentials.certificates().into_iter().flat_map(|c| c.names).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(wake.0.has_changed().unwrap());
    }

    #[test]
    fn the_same_again_wakes_nobody() {
        let credentials = Credentials::default();
        credentials.set_files(vec![certificate("a")]);
        let wake = credentials.subscribe();
        credentials.set_files(vec![certificate("a")]);
        credentials.set_issued(Published::default());
        assert!(!wake.0.has_changed().unwrap());
    }
}
