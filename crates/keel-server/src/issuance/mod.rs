//! Certificates that authorities issue, for the routes that want one.
//!
//! Yields one [`Published`] after the other. Its revision rises with what [`keel_acme`] publishes; the [link] says
//! which one the proxy shows, because an authority is only sent to look at a proof that is there.
//!
//! [link]: crate::traffic::Link

mod wanted;

use std::sync::Arc;

use keel_acme::{Published, Renewals, Wanted};
use keel_model::EventKind;
use keel_store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::wanted::{Demands, demands};
use crate::events::EventLog;
use crate::world::{World, WorldReader};
use crate::{Error, clock, keys};

/// What the loop needs.
pub struct Issuance {
    /// Says what is wanted.
    pub worlds: Arc<WorldReader>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// Where keys and certificates are kept.
    pub store: Arc<dyn Store>,
    /// The last revision that the proxy shows.
    pub shown: watch::Receiver<u64>,
}

impl Issuance {
    /// Starts the loop; what the proxy is to show. What is known is in it from the first moment, so that a proxy never
    /// hears of a world without its certificates.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn start(self, tasks: &mut JoinSet<()>) -> Result<watch::Receiver<Published>, Error> {
        let worlds = self.worlds.subscribe();
        let (want, wanted) = watch::channel(Vec::new());
        let mut turns = Turns { events: self.events.clone(), want, told: Vec::new() };
        turns.turn(demands(&worlds.borrow()));
        let (store, shown) = (self.store.clone(), self.shown.clone());
        let renewals = Renewals::open(store, keys::ACME, None, wanted, shown, clock::now).await?;
        let renewals = renewals.telling(move |notice| {
            self.events.add(EventKind::Platform, None, None, None, notice.to_string());
        });
        let published = renewals.published();
        tasks.spawn(renewals.run());
        tasks.spawn(turns.run(worlds));
        Ok(published)
    }
}

/// What lasts from turn to turn.
struct Turns {
    events: Arc<EventLog>,
    want: watch::Sender<Vec<Wanted>>,
    told: Vec<String>,
}

impl Turns {
    async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) {
        while worlds.changed().await.is_ok() {
            let demands = demands(&worlds.borrow_and_update());
            self.turn(demands);
        }
    }

    fn turn(&mut self, demands: Demands) {
        // The world changes all the time, and its routes hardly ever.
        self.want.send_if_modified(|before| {
            let changed = *before != demands.acme;
            *before = demands.acme;
            changed
        });
        // Each problem once, for as long as it lasts.
        for problem in demands.problems.iter().filter(|problem| !self.told.contains(*problem)) {
            tracing::warn!("{problem}");
            self.events.add(EventKind::Platform, None, None, None, problem);
        }
        self.told = demands.problems;
    }
}
