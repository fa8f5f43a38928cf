//! What the proxy needs for TLS that ends there: certificates and proofs, from all who provide some.
//!
//! This is the one place where they meet. Each provider replaces its own part; the link to the proxy wakes with every
//! change and takes the whole.

use std::sync::Arc;

use keel_acme::Published;
use keel_route::snapshot::{Certificate, Challenges};
use tokio::sync::watch;

/// Certificates and proofs, by who provides them.
#[derive(Debug, Default)]
struct Parts {
    files: Vec<Certificate>,
    issued: Published,
    /// Both together, as every snapshot has them.
    all: Arc<Vec<Certificate>>,
}

impl Parts {
    /// Those of users come first: where two are for one name, a user's own choice wins.
    fn join(&mut self) {
        let all: Vec<_> = self.files.iter().chain(&self.issued.certificates).cloned().collect();
        if *self.all != all {
            self.all = Arc::new(all);
        }
    }
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
        self.parts.send_if_modified(|parts| {
            let differs = parts.files != certificates;
            parts.files = certificates;
            parts.join();
            differs
        });
    }

    /// Replaces what authorities issued, and the proofs that they ask for.
    pub fn set_issued(&self, issued: Published) {
        self.parts.send_if_modified(|parts| {
            let differs = parts.issued != issued;
            parts.issued = issued;
            parts.join();
            differs
        });
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

    /// All certificates: the same list until one of them changes.
    pub fn certificates(&self) -> Arc<Vec<Certificate>> {
        Arc::clone(&self.parts.borrow().all)
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
            credentials.certificates().iter().flat_map(|c| c.names.clone()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(wake.0.has_changed().unwrap());
    }

    #[test]
    fn the_same_again_wakes_nobody() {
        let credentials = Credentials::default();
        credentials.set_files(vec![certificate("a")]);
        let wake = credentials.subscribe();
        credentials.set_files(vec![certificate("a")]);
        let before = credentials.certificates();
        credentials.set_issued(Published::default());
        assert!(!wake.0.has_changed().unwrap());
        assert!(Arc::ptr_eq(&before, &credentials.certificates()), "nothing is copied");
    }
}
