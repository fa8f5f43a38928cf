//! Volumes that the file does not name: `volumes: [/data]`, and those that an image declares.
//!
//! What is in them outlives the container, as it does when Docker Compose makes a new one in the place of the old: a
//! database whose file names no volume must not be empty after a release. So they belong to the service: an instance
//! takes the first that no running instance has, and a single one always the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use bollard::Docker;
use bollard::models::VolumeCreateRequest;
use keel_model::{InstanceId, MountSource};
use keel_runtime::{Launch, record};
use sha2::{Digest, Sha256};

use super::{Inner, labels};

/// The volumes of an attempt; while this lives, no other start takes them.
pub(super) struct Claimed<'i> {
    inner: &'i Inner,
    id: InstanceId,
    /// By target.
    pub volumes: BTreeMap<PathBuf, String>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.inner.claims().retain(|_, id| *id != self.id);
    }
}

/// Where volumes are mounted that the file does not name.
fn targets(launch: &Launch) -> impl Iterator<Item = &PathBuf> {
    let mounts = launch.spec.mounts.iter().filter(|it| it.source == MountSource::Anonymous);
    mounts.map(|mount| &mount.target)
}

/// The name of the `number`th volume of a service at a target.
fn name(launch: &Launch, target: &Path, number: usize) -> String {
    let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}_{}_{short}_{number}", launch.stack, launch.service)
}

type Claims = BTreeMap<String, InstanceId>;

/// The volumes of containers that were taken over, by service and target.
type Remembered = BTreeMap<String, BTreeMap<PathBuf, BTreeSet<String>>>;

/// The file that they are kept in, beside the directories of the instances. It outlives these: the data does too.
const REMEMBERED: &str = "adopted-volumes.json";

fn key(launch: &Launch) -> String {
    format!("{}/{}", launch.stack, launch.service)
}

impl Inner {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self) -> Remembered {
        record::read(&self.dir, REMEMBERED).unwrap_or_default()
    }

    /// Notes volumes that a service has from before the platform, so that its next container has them too.
    pub(super) fn remember(
        &self,
        launch: &Launch,
        volumes: &BTreeMap<PathBuf, String>,
    ) -> Result<(), String> {
        if volumes.is_empty() {
            return Ok(());
        }
        let _turn = self.claims();
        let mut all = self.remembered();
        let of_service = all.entry(key(launch)).or_default();
        for (target, name) in volumes {
            of_service.entry(target.clone()).or_default().insert(name.clone());
        }
        record::write(&self.dir, REMEMBERED, &all)
            .map_err(|error| format!("can't write into {}: {error}", self.dir.display()))
    }

    /// Those that other instances have that run, and those that are being taken.
    fn held(&self, claims: &Claims, but: &InstanceId) -> BTreeSet<String> {
        let entries = self.entries();
        let others = entries.iter().filter(|(id, entry)| *id != but && entry.kept.exit.is_none());
        let running = others.flat_map(|(_, entry)| entry.kept.unnamed.values().cloned());
        let taken = claims.iter().filter(|(_, id)| *id != but).map(|(name, _)| name.clone());
        running.chain(taken).collect()
    }

    /// Takes a volume for each mount that the file gives none.
    pub(super) fn claim(&self, launch: &Launch) -> Claimed<'_> {
        let mut claims = self.claims();
        let held = self.held(&claims, &launch.id);
        let remembered = self.remembered();
        let of_service = remembered.get(&key(launch));
        let free = |target: &Path| {
            // What was there before the platform, first.
            let older = of_service.and_then(|it| it.get(target)).into_iter().flatten().cloned();
            let mut names = older.chain((0..).map(|number| name(launch, target, number)));
            names.find(|name| !held.contains(name)).unwrap_or_default()
        };
        let volumes: BTreeMap<PathBuf, String> =
            targets(launch).map(|target| (target.clone(), free(target))).collect();
        claims.extend(volumes.values().map(|name| (name.clone(), launch.id.clone())));
        Claimed { inner: self, id: launch.id.clone(), volumes }
    }

    /// Takes those again that a container was made with; `None` if another instance has one of them meanwhile.
    pub(super) fn claim_again(&self, launch: &Launch) -> Option<Claimed<'_>> {
        let volumes = self.entries().get(&launch.id).map(|entry| entry.kept.unnamed.clone())?;
        let mut claims = self.claims();
        let held = self.held(&claims, &launch.id);
        if volumes.values().any(|name| held.contains(name)) {
            return None;
        }
        claims.extend(volumes.values().map(|name| (name.clone(), launch.id.clone())));
        Some(Claimed { inner: self, id: launch.id.clone(), volumes })
    }

    /// Makes those that are not there yet; the engine leaves one alone that is.
    pub(super) async fn make_unnamed(
        &self,
        client: &Docker,
        launch: &Launch,
        claimed: &Claimed<'_>,
    ) -> Result<(), String> {
        for name in claimed.volumes.values() {
            let labels = HashMap::from([
                (labels::SERVER.to_owned(), self.tag.clone()),
                (labels::STACK.to_owned(), launch.stack.to_string()),
                (labels::SERVICE.to_owned(), launch.service.to_string()),
            ]);
            let request = VolumeCreateRequest {
                name: Some(name.clone()),
                labels: Some(labels),
                ..Default::default()
            };
            client.create_volume(request).await.map_err(|error| {
                format!("volume {name} can't be made: {}", self.engine.failed(&error))
            })?;
        }
        Ok(())
    }
}
