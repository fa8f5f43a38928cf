//! Keeps the images of the last revisions of each service, and lets go of older ones.
//!
//! Looks at the whole world again whenever it has changed; a lost wake-up is made good by the next. Which services have
//! images with names of ours is noted before they get them, so that whoever comes after a crash takes them away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_container::images::{Images, KEPT_REVISIONS};
use keel_model::{RevisionId, Service, ServiceName, StackName};
use keel_store::{Store, Transaction};

use crate::keys;
use crate::world::{StackState, World, WorldReader};

/// Shortest time between two looks: nothing hurries.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest: what was in use the last time may be free now.
const AGAIN: Duration = Duration::from_secs(600);
/// After this the image of a build's context belongs to nobody any more.
const CONTEXTS_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Notes that are forgotten at once.
const FORGOTTEN_AT_ONCE: usize = 100;

/// The revisions of each service with the content of their images, newest first.
type Wanted = BTreeMap<(StackName, ServiceName), Vec<(RevisionId, String)>>;

/// Keeps images.
pub struct Kept {
    /// Those of the engine.
    pub images: Images,
    /// What is wanted.
    pub worlds: Arc<WorldReader>,
    /// Where it is noted.
    pub store: Arc<dyn Store>,
}

impl Kept {
    /// Keeps these.
    pub fn new(images: &Images, worlds: &Arc<WorldReader>, store: &Arc<dyn Store>) -> Self {
        Self { images: images.clone(), worlds: worlds.clone(), store: store.clone() }
    }

    /// Works until it is dropped.
    pub async fn run(self) {
        let mut changes = self.worlds.subscribe();
        let mut done = self.noted().await;
        let mut swept = None::<Instant>;
        loop {
            let wanted = wanted(&self.worlds.current());
            if wanted != done {
                done = self.keep(&wanted, done).await;
            }
            // Where there are no containers nobody is asked.
            if !done.is_empty() && swept.is_none_or(|at| at.elapsed() > AGAIN) {
                self.sweep().await;
                swept = Some(Instant::now());
            }
            tokio::time::sleep(PAUSE).await;
            match tokio::time::timeout(AGAIN, changes.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) => {}
                // Looked at anew as a whole; only what this server has kept itself can be let go of.
                Err(_) => done.values_mut().for_each(Vec::clear),
            }
        }
    }

    /// The services that an earlier server kept images for.
    async fn noted(&self) -> Wanted {
        let listed = self.store.list(keys::KEPT).await;
        let entries = listed.map(|listing| listing.entries).unwrap_or_else(|error| {
            tracing::warn!(%error, "which images are kept can't be read");
            Vec::new()
        });
        let read = |key: &str| {
            let (stack, service) = key.strip_prefix(keys::KEPT)?.split_once('/')?;
            Some((StackName::new(stack).ok()?, ServiceName::new(service).ok()?))
        };
        entries.iter().filter_map(|entry| Some((read(&entry.key)?, Vec::new()))).collect()
    }

    /// Takes away what commands that were killed have left, and forgets what registries call images that are let go.
    async fn sweep(&self) {
        if let Err(error) = self.images.forget_contexts(CONTEXTS_AFTER).await {
            tracing::debug!(%error, "images of contexts are not looked at now");
        }
        let Ok(listed) = self.store.list(keys::DIGESTS).await else { return };
        // After they were listed: what is noted from now on is not among them.
        let wanted = wanted(&self.worlds.current());
        let used: BTreeSet<String> =
            wanted.values().flatten().map(|(_, image)| keys::digests(image)).collect();
        let unused = listed.entries.into_iter().filter(|entry| !used.contains(&entry.key));
        let gone: Vec<String> = unused.map(|entry| entry.key).take(FORGOTTEN_AT_ONCE).collect();
        if gone.is_empty() {
            return;
        }
        let forget = gone.into_iter().fold(Transaction::new(), Transaction::delete);
        if let Err(error) = self.store.commit(forget).await {
            tracing::debug!(%error, "what registries call old images stays for now");
        }
    }

    async fn note(&self, transaction: Transaction) -> Result<(), String> {
        self.store.commit(transaction).await.map(drop).map_err(|error| error.to_string())
    }

    async fn keep_one(
        &self,
        (stack, service): &(StackName, ServiceName),
        revisions: &[(RevisionId, String)],
        noted: bool,
    ) -> Result<Vec<String>, String> {
        if !noted {
            let key = keys::kept(stack, service);
            self.note(Transaction::new().put(key, Vec::new())).await?;
        }
        let kept = self.images.keep(stack, service, revisions).await;
        kept.map_err(|error| error.to_string())
    }

    async fn forget_one(
        &self,
        (stack, service): &(StackName, ServiceName),
    ) -> Result<Vec<String>, String> {
        let gone = self.images.forget(stack, service).await.map_err(|error| error.to_string())?;
        self.note(Transaction::new().delete(keys::kept(stack, service))).await?;
        Ok(gone)
    }

    /// What is kept now. What could not be done is tried again.
    async fn keep(&self, wanted: &Wanted, before: Wanted) -> Wanted {
        let mut done = Wanted::new();
        let services: BTreeSet<_> = wanted.keys().chain(before.keys()).cloned().collect();
        for key in services {
            let (stack, service) = &key;
            let kept = match wanted.get(&key) {
                Some(revisions) if before.get(&key) == Some(revisions) => Ok(Vec::new()),
                Some(revisions) => self.keep_one(&key, revisions, before.contains_key(&key)).await,
                None => self.forget_one(&key).await,
            };
            match kept {
                Ok(gone) => {
                    if !gone.is_empty() {
                        tracing::info!(
                            images = gone.join(", "),
                            "images of older revisions let go"
                        );
                    }
                    if let Some(revisions) = wanted.get(&key) {
                        done.insert(key.clone(), revisions.clone());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, %stack, %service, "images are not kept now");
                    done.insert(key, Vec::new());
                }
            }
        }
        done
    }
}

fn wanted(world: &World) -> Wanted {
    let mut all = Wanted::new();
    for (name, stack) in &world.stacks {
        let Some(record) = stack.record.as_ref().filter(|record| !record.value.removing) else {
            continue;
        };
        for service in record.value.stack.services.keys() {
            let revisions = revisions(stack, service);
            if !revisions.is_empty() {
                all.insert((name.clone(), service.clone()), revisions);
            }
        }
    }
    all
}

/// The last revisions of a service, and those that still run.
fn revisions(stack: &StackState, name: &ServiceName) -> Vec<(RevisionId, String)> {
    let current = stack.record.as_ref().map(|record| &record.value);
    let past = stack.history.values().rev();
    let defined = current.into_iter().chain(past).filter_map(|it| it.stack.services.get(name));
    let mut kept: Vec<(RevisionId, String)> = Vec::new();
    let mut take = |service: &Service, most: usize| {
        let id = service.spec.container.as_ref().and_then(|it| it.image_id.clone());
        let Some(id) = id else { return };
        let revision = service.spec.revision();
        if kept.len() < most && kept.iter().all(|(known, _)| *known != revision) {
            kept.push((revision, id));
        }
    };
    for service in defined {
        take(service, KEPT_REVISIONS);
    }
    let running = stack.assignments.values().filter(|it| it.value.service == *name);
    for assignment in running {
        let revision = (name.clone(), assignment.value.revision.clone());
        if let Some(service) = stack.revisions.get(&revision) {
            take(service, usize::MAX);
        }
    }
    kept
}
