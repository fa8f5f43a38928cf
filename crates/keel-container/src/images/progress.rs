//! What is told while an image is pulled, built or pushed.

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

/// Messages that wait for their reader; who is slower misses some.
const QUEUE: usize = 256;

/// One thing that is told while an image is pulled, built or pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Which layer; empty when it is about the whole image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// What is done (`Downloading`), or a line of a build's output.
    pub status: String,
    /// Bytes that are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// Bytes in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl Progress {
    pub(super) fn line(status: impl Into<String>) -> Self {
        Self { status: status.into(), ..Self::default() }
    }

    pub(super) fn of_engine(
        layer: Option<String>,
        status: String,
        detail: Option<bollard::models::ProgressDetail>,
    ) -> Self {
        let detail = detail.unwrap_or_default();
        let bytes = |count: Option<i64>| {
            count.and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0)
        };
        Self {
            layer: layer.unwrap_or_default(),
            status,
            current: bytes(detail.current),
            total: bytes(detail.total),
        }
    }
}

/// Whom progress is told.
pub type Listener = mpsc::Sender<Progress>;

/// Progress of one piece of work, for all who wait for it.
#[derive(Clone, Debug)]
pub(super) struct Teller(broadcast::Sender<Progress>);

impl Teller {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(QUEUE).0)
    }

    /// Nobody may be listening.
    pub(super) fn tell(&self, progress: Progress) {
        let _ = self.0.send(progress);
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Progress> {
        self.0.subscribe()
    }

    /// For others who want to listen, without being the one who tells.
    pub(super) fn weak(&self) -> WeakTeller {
        WeakTeller(self.0.downgrade())
    }
}

/// A teller that may be gone.
pub(super) struct WeakTeller(broadcast::WeakSender<Progress>);

impl WeakTeller {
    pub(super) fn listen(&self) -> Option<broadcast::Receiver<Progress>> {
        Some(self.0.upgrade()?.subscribe())
    }
}

/// Passes on until the work has ended. A reader that is slower than the engine misses messages and does not hold it up.
pub(super) async fn pass_on(mut from: broadcast::Receiver<Progress>, to: Option<Listener>) {
    let Some(to) = to else { return };
    loop {
        match from.recv().await {
            Ok(progress) => {
                if to.send(progress).await.is_err() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
