//! Which certificates the proxies show: those in files, and those that an authority issues.
//!
//! Yields one [`Published`] after the other. Its revision rises with what [`keel_acme`] publishes; the [link] says
//! which one the proxy shows, because an authority is only sent to look at a proof that is there.
//!
//! [link]: crate::traffic::Link

mod files;
mod wanted;

use std::sync::Arc;
use std::time::Duration;

use keel_acme::{Published, Renewals, Wanted};
use keel_model::EventKind;
use keel_store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::files::Files;
use self::wanted::{Demands, demands};
use crate::events::EventLog;
use crate::world::{World, WorldReader};
use crate::{Error, clock, keys};

/// How often files of certificates are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The loop.
pub struct Certificates {
    /// Says what is wanted.
    pub worlds: Arc<WorldReader>,
    /// Where people are told.
    pub events: Arc<EventLog>,
    /// Where keys and certificates are kept.
    pub store: Arc<dyn Store>,
    /// The last revision that the proxy shows.
    pub shown: watch::Receiver<u64>,
}

impl Certificates {
    /// Starts the loop; what the proxy is to show. What is known is in it from the first moment, so that a proxy never
    /// hears of a world without its certificates.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn start(
        self,
        tasks: &mut JoinSet<()>,
    ) -> Result<watch::Receiver<Arc<Published>>, Error> {
        let worlds = self.worlds.subscribe();
        let first = demands(&worlds.borrow());
        let (want, wanted) = watch::channel(first.acme.clone());
        let (store, shown) = (self.store.clone(), self.shown.clone());
        let renewals = Renewals::open(store, keys::ACME, None, wanted, shown, clock::now).await?;
        let events = self.events.clone();
        let renewals = renewals.telling(move |notice| {
            events.add(EventKind::Platform, None, None, None, notice.to_string());
        });
        let (sender, published) = watch::channel(Arc::new(Published::default()));
        let mut turns = Turns {
            events: self.events,
            want,
            issued: renewals.published(),
            sender,
            demands: Demands::default(),
            files: Files::default(),
            told: Vec::new(),
        };
        turns.turn(first).await;
        tasks.spawn(renewals.run());
        tasks.spawn(turns.run(worlds));
        Ok(published)
    }
}

/// What lasts from turn to turn.
struct Turns {
    events: Arc<EventLog>,
    want: watch::Sender<Vec<Wanted>>,
    issued: watch::Receiver<Published>,
    sender: watch::Sender<Arc<Published>>,
    /// Of the last turn.
    demands: Demands,
    files: Files,
    told: Vec<String>,
}

impl Turns {
    async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) {
        loop {
            let has_files = !self.demands.files.is_empty();
            tokio::select! {
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The world changes all the time, and its routes hardly ever.
                    let demands = demands(&worlds.borrow_and_update());
                    if demands != self.demands {
                        self.turn(demands).await;
                    }
                    continue;
                }
                changed = self.issued.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if has_files => {}
            }
            self.turn(self.demands.clone()).await;
        }
    }

    async fn turn(&mut self, demands: Demands) {
        self.demands = demands.clone();
        let Demands { acme, files: paths, problems } = demands;
        self.want.send_if_modified(|before| {
            let changed = *before != acme;
            *before = acme;
            changed
        });
        let mut files = std::mem::take(&mut self.files);
        let looking = tokio::task::spawn_blocking(move || {
            let found = files.read(&paths);
            (files, found)
        });
        // Fails only when the server ends.
        let Ok((files, (from_files, unreadable))) = looking.await else { return };
        self.files = files;
        self.tell(problems.into_iter().chain(unreadable).collect());
        let mut next = self.issued.borrow_and_update().clone();
        // An operator's own certificate comes first among those for the same name that are equally good.
        next.certificates.splice(0..0, from_files);
        self.sender.send_if_modified(|before| {
            let changed = **before != next;
            if changed {
                *before = Arc::new(next);
            }
            changed
        });
    }

    /// Each problem once, for as long as it lasts.
    fn tell(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.told.contains(*problem)) {
            tracing::warn!("{problem}");
            self.events.add(EventKind::Platform, None, None, None, problem);
        }
        self.told = problems;
    }
}
