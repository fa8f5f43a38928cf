//! What is shown to the world, and whether the proxies show it already.

use std::time::Duration;

use keel_route::snapshot::{Certificate, Challenges};
use tokio::sync::watch;

use crate::order::Failure;

/// Proxies have this long to show a proof.
const SHOWN_BY: Duration = Duration::from_secs(30);
/// What proxies are to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Rises with every change.
    pub revision: u64,
    /// Certificates for the names that are wanted.
    pub certificates: Vec<Certificate>,
    /// Proofs that an authority will look at.
    pub challenges: Challenges,
}

/// What is shown, and whether the proxies show it.
pub struct Showcase {
    /// For the proxies.
    pub published: watch::Sender<Published>,
    /// The last revision that every proxy shows.
    pub acknowledged: watch::Receiver<u64>,
}

impl Showcase {
    /// Publishes a change, if it is one; the revision that has it.
    pub fn change(&self, change: impl FnOnce(&mut Published)) -> u64 {
        self.published.send_if_modified(|published| {
            let before = published.clone();
            change(published);
            let changed = *published != before;
            published.revision += u64::from(changed);
            changed
        });
        self.published.borrow().revision
    }

    /// Shows these proofs from now on.
    pub fn show(&self, challenges: Challenges) -> u64 {
        self.change(|published| published.challenges = challenges)
    }

    /// As [`Self::show`], and waits until every proxy does.
    pub async fn show_everywhere(&self, challenges: Challenges) -> Result<(), Failure> {
        let revision = self.show(challenges);
        let mut acknowledged = self.acknowledged.clone();
        let shown = acknowledged.wait_for(|acknowledged| *acknowledged >= revision);
        match tokio::time::timeout(SHOWN_BY, shown).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Failure::new("the proxy did not take the proof over in time")),
        }
    }
}
