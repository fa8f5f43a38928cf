//! Keeps the images of the last revisions of each service, and lets go of older ones.
//!
//! Looks at the whole world again whenever it has changed; a lost wake-up is made good by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keel_container::images::{Images, KEPT_REVISIONS};
use keel_model::{RevisionId, Service, ServiceName, StackName};

use crate::world::{StackState, World, WorldReader};

/// Shortest time between two looks: nothing hurries.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest: what was in use the last time may be free now.
const AGAIN: Duration = Duration::from_secs(600);

/// The revisions of each service with the content of their images, newest first.
type Wanted = BTreeMap<(StackName, ServiceName), Vec<(RevisionId, String)>>;

/// Keeps images.
pub struct Kept {
    /// Those of the engine.
    pub images: Images,
    /// What is wanted.
    pub worlds: Arc<WorldReader>,
}

impl Kept {
    /// Works until it is dropped.
    pub async fn run(self) {
        let mut changes = self.worlds.subscribe();
        let mut done = Wanted::new();
        loop {
            let wanted = wanted(&self.worlds.current());
            if wanted != done {
                done = self.keep(&wanted, done).await;
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

    /// What is kept now. What could not be done is tried again.
    async fn keep(&self, wanted: &Wanted, before: Wanted) -> Wanted {
        let mut done = Wanted::new();
        let services: BTreeSet<_> = wanted.keys().chain(before.keys()).cloned().collect();
        for key in services {
            let (stack, service) = &key;
            let kept = match wanted.get(&key) {
                Some(revisions) if before.get(&key) == Some(revisions) => Ok(Vec::new()),
                Some(revisions) => self.images.keep(stack, service, revisions).await,
                None => self.images.forget(stack, service).await,
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
                        done.insert(key, revisions.clone());
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
