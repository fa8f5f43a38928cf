//! The same work once, however many ask for it at the same time.
//!
//! The work lives as long as somebody waits for it: when the last has gone away, it is dropped, and so is its
//! request to the engine.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::progress::{Listener, Teller, WeakTeller, pass_on};

/// How long a reader of progress gets to take what was told before the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Work<T> = Shared<BoxFuture<'static, T>>;

struct Flight<T: Clone> {
    work: WeakShared<BoxFuture<'static, T>>,
    told: WeakTeller,
}

/// Work that is being done, by what it is about.
pub(super) struct Flights<K, T: Clone>(Arc<Mutex<BTreeMap<K, Flight<T>>>>);

impl<K, T: Clone> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Waits for the work about `key`, which is begun if it is not being done.
    pub(super) async fn join<F>(
        &self,
        key: K,
        listener: Option<Listener>,
        begin: impl FnOnce(Teller) -> F,
    ) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (work, told) = self.enter(key, begin);
        let passing = pass_on(told, listener);
        tokio::pin!(passing);
        tokio::pin!(work);
        tokio::select! {
            biased;
            () = &mut passing => work.await,
            done = &mut work => {
                // What was told before the end is still passed on. It ends by itself: the teller went with the work.
                let _ = tokio::time::timeout(LAST_WORDS, passing).await;
                done
            }
        }
    }

    fn enter<F>(
        &self,
        key: K,
        begin: impl FnOnce(Teller) -> F,
    ) -> (Work<T>, tokio::sync::broadcast::Receiver<super::Progress>)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.work.upgrade().is_some_and(|work| work.peek().is_none()));
        let going = flights.get(&key);
        let going = going.and_then(|flight| Some((flight.work.upgrade()?, flight.told.listen()?)));
        if let Some(going) = going {
            return going;
        }
        let teller = Teller::new();
        let told = teller.listen();
        let weak = teller.weak();
        let work = begin(teller).boxed().shared();
        let flight = work.downgrade().expect("it has just been made and not yet been polled");
        flights.insert(key, Flight { work: flight, told: weak });
        (work, told)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::{Notify, mpsc};

    use super::super::Progress;
    use super::*;

    #[tokio::test]
    async fn the_same_work_is_done_once_and_told_to_all() {
        let flights: Flights<&str, u32> = Flights::default();
        let begun = Arc::new(AtomicU32::new(0));
        let go = Arc::new(Notify::new());
        let work = |listener| {
            let (flights, begun, go) = (flights.clone(), begun.clone(), go.clone());
            async move {
                let begin = |teller: Teller| async move {
                    let count = begun.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    teller.tell(Progress::line("on the way"));
                    count
                };
                flights.join("a", Some(listener), begin).await
            }
        };
        let ((to_one, mut one), (to_two, mut two)) = (mpsc::channel(9), mpsc::channel(9));
        let (first, second) = (tokio::spawn(work(to_one)), tokio::spawn(work(to_two)));
        // Both wait before it goes on: on one thread, a yield lets each run as far as it can.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        go.notify_one();
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (0, 0));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(one.recv().await.unwrap().status, "on the way");
        assert_eq!(two.recv().await.unwrap().status, "on the way");
        assert_eq!(one.recv().await, None);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        let flights: Flights<&str, ()> = Flights::default();
        let held = Arc::new(());
        let inside = held.clone();
        let begin = |_| async move {
            let _inside = inside;
            std::future::pending().await
        };
        let waiting = flights.join("a", None, begin);
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        assert_eq!(Arc::strong_count(&held), 1);
        // The next does not wait for what is gone.
        flights.join("a", None, |_| async {}).await;
    }
}
