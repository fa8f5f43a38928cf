//! All stored state, decoded: one immutable [`World`] per version of the store.
//!
//! Loops are level-triggered: each turn works on the latest whole world. A refresh reads every key and decodes
//! only what changed since the last one, so that a turn costs the same whatever caused it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use keel_model::{
    Assignment, InstanceId, RevisionId, Rollout, Service, ServiceName, StackName, StackRecord,
};
use keel_store::{Entry, Store, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::{Error, keys};

/// The addresses of one service. Stable for as long as the service exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    /// Its virtual address.
    pub address: IpAddr,
    /// Host ports chosen for `ports:` entries that name none, by target port.
    #[serde(default)]
    pub chosen: BTreeMap<u16, u16>,
}

/// A stored value with the version that wrote it.
#[derive(Clone, Debug)]
pub struct Stored<T> {
    /// When it was written.
    pub version: Version,
    /// What was written.
    pub value: Arc<T>,
}

/// All stored state of one stack.
#[derive(Clone, Debug, Default)]
pub struct StackState {
    /// What the user wants; absent only while records of an interrupted removal remain.
    pub record: Option<Stored<StackRecord>>,
    /// What the user wanted, by generation.
    pub history: BTreeMap<u64, Arc<StackRecord>>,
    /// Addresses.
    pub addresses: BTreeMap<ServiceName, Arc<ServiceAddress>>,
    /// Host ports that an engine holds for containers that were taken over, and where the proxy listens in their place.
    pub detours: BTreeMap<ServiceName, Arc<BTreeMap<u16, u16>>>,
    /// Next serials.
    pub serials: BTreeMap<ServiceName, u64>,
    /// Last rollouts.
    pub rollouts: BTreeMap<ServiceName, Stored<Rollout>>,
    /// Definitions of known revisions.
    pub revisions: BTreeMap<(ServiceName, RevisionId), Arc<Service>>,
    /// Assigned instances.
    pub assignments: BTreeMap<InstanceId, Stored<Assignment>>,
}

impl StackState {
    /// Whether any of its instances is a container that something else has started.
    pub fn has_adopted(&self) -> bool {
        self.assignments.values().any(|stored| stored.value.adoption.is_some())
    }

    /// The definition that an instance of `revision` was started with. Policies that can change under it come
    /// from the current record, where the service still is.
    pub fn definition(&self, service: &ServiceName, revision: &RevisionId) -> Option<Service> {
        let known = self.revisions.get(&(service.clone(), revision.clone()));
        let current = self.record.as_ref().and_then(|r| r.value.stack.services.get(service));
        match (known, current) {
            (Some(known), Some(current)) => {
                let (spec, image_command) = (known.spec.clone(), known.image_command.clone());
                Some(Service { spec, image_command, ..current.clone() })
            }
            (Some(known), None) => Some(Service::clone(known)),
            (None, Some(current)) if current.spec.revision() == *revision => Some(current.clone()),
            (None, _) => None,
        }
    }
}

/// All stored state at one version.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// By name.
    pub stacks: BTreeMap<StackName, StackState>,
}

/// Reads worlds from the store and hands them out.
pub struct WorldReader {
    store: Arc<dyn Store>,
    cache: Mutex<HashMap<String, Cached>>,
    sender: watch::Sender<Arc<World>>,
}

struct Cached {
    version: Version,
    leaf: Leaf,
}

#[derive(Clone)]
enum Leaf {
    Record(Arc<StackRecord>),
    History(u64, Arc<StackRecord>),
    Address(ServiceName, Arc<ServiceAddress>),
    Detours(ServiceName, Arc<BTreeMap<u16, u16>>),
    Serial(ServiceName, u64),
    Rollout(ServiceName, Arc<Rollout>),
    Revision(ServiceName, RevisionId, Arc<Service>),
    Assignment(Arc<Assignment>),
    Other,
}

impl WorldReader {
    /// Reads the first world.
    ///
    /// # Errors
    /// When the store can't be read or holds something that this version does not understand.
    pub async fn new(store: Arc<dyn Store>) -> Result<Self, Error> {
        let (sender, _) = watch::channel(Arc::new(World::default()));
        let reader = Self { store, cache: Mutex::new(HashMap::new()), sender };
        reader.refresh().await?;
        Ok(reader)
    }

    /// The latest world that was read.
    pub fn current(&self) -> Arc<World> {
        self.sender.borrow().clone()
    }

    /// Wakes with every new world.
    pub fn subscribe(&self) -> watch::Receiver<Arc<World>> {
        self.sender.subscribe()
    }

    /// Reads the store and publishes what it holds now.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn refresh(&self) -> Result<Arc<World>, Error> {
        let mut cache = self.cache.lock().await;
        let listing = self.store.list(keys::STACKS).await?;
        let mut next = HashMap::with_capacity(listing.entries.len());
        let mut world = World::default();
        for entry in listing.entries {
            let leaf = match cache.remove(&entry.key) {
                Some(cached) if cached.version == entry.version => cached.leaf,
                _ => decode(&entry)?,
            };
            place(&mut world, &entry, &leaf)?;
            next.insert(entry.key, Cached { version: entry.version, leaf });
        }
        *cache = next;
        let world = Arc::new(world);
        self.sender.send_replace(world.clone());
        Ok(world)
    }
}

fn unreadable(key: &str, reason: impl ToString) -> Error {
    Error::Unreadable { key: key.to_owned(), reason: reason.to_string() }
}

fn json<T: DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value).map_err(|e| unreadable(&entry.key, e))
}

fn parts(key: &str) -> Vec<&str> {
    key.strip_prefix(keys::STACKS).unwrap_or(key).split('/').collect()
}

fn decode(entry: &Entry) -> Result<Leaf, Error> {
    let key = entry.key.as_str();
    let service = |name: &str| ServiceName::new(name).map_err(|e| unreadable(key, e));
    Ok(match parts(key).as_slice() {
        [_, "record"] => Leaf::Record(Arc::new(json(entry)?)),
        [_, "history", generation] => {
            let generation = generation.parse().map_err(|e| unreadable(key, e))?;
            Leaf::History(generation, Arc::new(json(entry)?))
        }
        [_, "services", name, "address"] => Leaf::Address(service(name)?, Arc::new(json(entry)?)),
        [_, "services", name, "detours"] => Leaf::Detours(service(name)?, Arc::new(json(entry)?)),
        [_, "services", name, "serial"] => Leaf::Serial(service(name)?, json(entry)?),
        [_, "services", name, "rollout"] => Leaf::Rollout(service(name)?, Arc::new(json(entry)?)),
        [_, "services", name, "revisions", revision] => {
            let revision = RevisionId::new(*revision).map_err(|e| unreadable(key, e))?;
            Leaf::Revision(service(name)?, revision, Arc::new(json(entry)?))
        }
        [_, "instances", _, "assignment"] => Leaf::Assignment(Arc::new(json(entry)?)),
        _ => Leaf::Other,
    })
}

fn place(world: &mut World, entry: &Entry, leaf: &Leaf) -> Result<(), Error> {
    let name = parts(&entry.key).first().copied().unwrap_or_default();
    let name = StackName::new(name).map_err(|e| unreadable(&entry.key, e))?;
    let stack = world.stacks.entry(name).or_default();
    let version = entry.version;
    match leaf.clone() {
        Leaf::Record(value) => stack.record = Some(Stored { version, value }),
        Leaf::History(generation, value) => {
            stack.history.insert(generation, value);
        }
        Leaf::Address(service, value) => {
            stack.addresses.insert(service, value);
        }
        Leaf::Detours(service, value) => {
            stack.detours.insert(service, value);
        }
        Leaf::Serial(service, value) => {
            stack.serials.insert(service, value);
        }
        Leaf::Rollout(service, value) => {
            stack.rollouts.insert(service, Stored { version, value });
        }
        Leaf::Revision(service, revision, value) => {
            stack.revisions.insert((service, revision), value);
        }
        Leaf::Assignment(value) => {
            stack.assignments.insert(value.id.clone(), Stored { version, value });
        }
        Leaf::Other => {}
    }
    Ok(())
}
