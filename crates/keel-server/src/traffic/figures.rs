//! What the proxy has counted, for whoever asks: asked for anew, but not waited for longer than is good.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::ProxyState;

/// A proxy that does not answer in this time has its last figures shown.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where figures are had from.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Has the link ask the proxy.
    pub ask: Arc<Notify>,
    /// What it said.
    pub state: watch::Receiver<ProxyState>,
}

impl Figures {
    /// What the proxy says now; what it said last if it does not answer, which the age tells.
    pub async fn now(&self) -> ProxyState {
        let asked = Instant::now();
        let mut state = self.state.clone();
        if state.borrow().pid.is_some() {
            self.ask.notify_one();
            // If nothing comes in time, or the link is gone for good, what is known is shown.
            let _ = timeout(PATIENCE, state.wait_for(|s| s.asked >= Some(asked))).await;
        }
        self.state.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use keel_route::snapshot::Stats;

    use super::*;

    fn state(asked: Option<Instant>, connections: u64) -> ProxyState {
        let mut stats = Stats::default();
        stats.proxy.connections = connections;
        ProxyState { pid: Some(1), asked, stats: Arc::new(stats), ..ProxyState::default() }
    }

    #[tokio::test]
    async fn an_answer_to_an_earlier_question_is_not_taken() {
        let early = Instant::now();
        let (sender, receiver) = watch::channel(state(Some(early), 1));
        let figures = Figures { ask: Arc::default(), state: receiver };
        let ask = figures.ask.clone();
        tokio::spawn(async move {
            ask.notified().await;
            sender.send_replace(state(Some(early), 2));
            tokio::task::yield_now().await;
            sender.send_replace(state(Some(Instant::now()), 3));
            std::future::pending::<()>().await;
        });
        assert_eq!(figures.now().await.stats.proxy.connections, 3);
    }

    #[tokio::test]
    async fn a_proxy_that_is_silent_is_not_waited_for() {
        let (sender, receiver) = watch::channel(state(None, 1));
        let figures = Figures { ask: Arc::default(), state: receiver };
        let begun = Instant::now();
        assert_eq!(figures.now().await.stats.proxy.connections, 1);
        assert!(begun.elapsed() >= PATIENCE);
        sender.send_modify(|state| state.pid = None);
        let begun = Instant::now();
        figures.now().await;
        assert!(begun.elapsed() < PATIENCE, "nobody is there to answer");
    }
}
