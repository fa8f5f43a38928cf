//! Level-triggered wake-ups: a change wakes the watcher and tells it nothing else.
//!
//! Any number of changes between two turns make one wake-up, so nothing queues and nothing has to be bounded.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// Wakes after changes under one prefix.
#[derive(Debug)]
pub struct Watch {
    receiver: watch::Receiver<()>,
}

impl Watch {
    /// A watch and the end that wakes it; for implementations of [`Store`](crate::Store) and for tests.
    #[must_use]
    pub fn pair() -> (WatchSender, Self) {
        let (sender, receiver) = watch::channel(());
        (WatchSender(sender), Self { receiver })
    }

    /// Returns once something under the prefix has changed since creation or since this last returned.
    /// Cancel-safe. Waits for ever once the store is closed.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The waking end of a [`Watch`].
#[derive(Debug)]
pub struct WatchSender(watch::Sender<()>);

impl WatchSender {
    /// Wakes the watch.
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// Whether the watch is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// All watches of one store.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Vec<(String, WatchSender)>>);

impl Watchers {
    pub(crate) fn add(&self, prefix: &str) -> Watch {
        let (sender, watch) = Watch::pair();
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|(_, sender)| !sender.is_closed());
        watchers.push((prefix.to_owned(), sender));
        watch
    }

    /// Wakes everyone who watches one of `keys`.
    pub(crate) fn wake<'a>(&self, keys: impl Iterator<Item = &'a String> + Clone) {
        let watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (prefix, sender) in watchers.iter() {
            if keys.clone().any(|key| key.starts_with(prefix.as_str())) {
                sender.wake();
            }
        }
    }

    /// Wakes everyone.
    pub(crate) fn wake_all(&self) {
        let watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().for_each(|(_, sender)| sender.wake());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn wakes_once_for_many_changes_under_its_prefix_only() {
        let watchers = Watchers::default();
        let mut watch = watchers.add("a/");
        let (inside, outside) = ("a/1".to_owned(), "b/1".to_owned());
        watchers.wake([&outside].into_iter());
        assert!(watch.changed().now_or_never().is_none());
        watchers.wake([&outside, &inside].into_iter());
        watchers.wake([&inside].into_iter());
        assert!(watch.changed().now_or_never().is_some());
        assert!(watch.changed().now_or_never().is_none());
        drop(watch);
        let _other = watchers.add("c/");
        assert_eq!(watchers.0.lock().unwrap().len(), 1, "closed watches are forgotten");
    }
}
