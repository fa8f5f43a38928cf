//! Making images present, as their pull policies say.

use std::sync::Arc;
use std::time::Duration;

use keel_container::images::{Error, ImageFacts, Images, Listener};
use keel_model::{PullPolicy, Timestamp};
use keel_store::{Store, Transaction};

use crate::api::images::PullImage;
use crate::{clock, keys};

/// Makes images present.
#[derive(Clone)]
pub struct Presence {
    /// Those of the engine.
    pub images: Images,
    /// Remembers when an image was pulled: engines do not say it.
    pub store: Arc<dyn Store>,
}

impl Presence {
    /// Makes one present. The answer says whether something was done for it.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn ensure(
        &self,
        wanted: &PullImage,
        listener: Listener,
    ) -> Result<(ImageFacts, bool), Error> {
        let platform = wanted.platform.as_deref();
        let fits = |it: &ImageFacts| platform.is_none_or(|platform| it.is_for(platform));
        let present = match wanted.policy {
            PullPolicy::Always => None,
            PullPolicy::Every(time) if self.is_due(&wanted.reference, time).await => None,
            _ => self.images.inspect(&wanted.reference).await?.filter(fits),
        };
        if let Some(facts) = present {
            return Ok((facts, false));
        }
        if matches!(wanted.policy, PullPolicy::Never | PullPolicy::Build) {
            return Err(Error::Absent { image: wanted.reference.clone() });
        }
        let credentials = wanted.credentials.clone();
        let facts =
            self.images.pull(&wanted.reference, platform, credentials, Some(listener)).await?;
        if let PullPolicy::Every(_) = wanted.policy {
            self.note(&wanted.reference).await;
        }
        Ok((facts, true))
    }

    async fn is_due(&self, reference: &str, time: Duration) -> bool {
        let pulled = self.store.get(&keys::pulled(reference)).await.ok().flatten();
        let pulled: Option<Timestamp> =
            pulled.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        pulled.is_none_or(|pulled| clock::now().0 >= pulled.0.saturating_add(time))
    }

    /// What can't be noted is pulled again the next time.
    async fn note(&self, reference: &str) {
        let now = serde_json::to_vec(&clock::now()).expect("a number is JSON");
        let noted = self.store.commit(Transaction::new().put(keys::pulled(reference), now)).await;
        if let Err(error) = noted {
            tracing::warn!(%error, reference, "when it was pulled is not noted");
        }
    }
}
