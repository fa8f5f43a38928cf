//! Changes of clusters on their way to the workers.
//!
//! Each costs every worker a turn, and the server an answer. One that comes alone is passed on at once; what comes soon
//! after, as when many services are released at the same time, is passed on together.

use std::collections::BTreeMap;

use keel_model::Generation;
use keel_route::part::Part;
use keel_route::snapshot::{Cluster, ClusterId, ToProxy};
use tokio::time::Instant;

use super::Running;
use super::report::Report;
use crate::Error;
use crate::limits::CHANGE_PAUSE;
use crate::persist::Saver;

/// What the workers are not told yet: the last word on each cluster.
#[derive(Debug, Default)]
pub struct Pending {
    clusters: BTreeMap<ClusterId, (Generation, Cluster)>,
    newest: Generation,
    /// They were told something just now: until then nothing more is.
    rests: Option<Instant>,
}

impl Pending {
    /// The generation after all of it, if there is something.
    pub fn newest(&self) -> Option<Generation> {
        (!self.clusters.is_empty()).then_some(self.newest)
    }

    pub fn add(&mut self, generation: Generation, id: ClusterId, cluster: Cluster) {
        self.newest = generation;
        self.clusters.insert(id, (generation, cluster));
    }

    /// A part of a cluster that is `known` unless something is pending of it.
    pub fn add_part(
        &mut self,
        generation: Generation,
        id: ClusterId,
        part: Part,
        known: impl FnOnce() -> Cluster,
    ) {
        self.newest = generation;
        let pending = self.clusters.entry(id).or_insert_with(|| (generation, known()));
        pending.0 = generation;
        part.apply(&mut pending.1);
    }

    /// Until when more is waited for, if it is. Meanwhile nothing has to be read.
    pub fn rests(&self) -> Option<Instant> {
        self.rests
    }
}

impl Running {
    /// Brings what is pending into force and says so; true if there was something.
    pub(super) async fn flush(&mut self) -> Result<bool, Error> {
        if self.pending.clusters.is_empty() {
            return Ok(false);
        }
        self.pending.rests = Some(Instant::now() + CHANGE_PAUSE);
        let changed = std::mem::take(&mut self.pending.clusters);
        let generation = self.pending.newest;
        let ids: Vec<_> = changed.keys().cloned().collect();
        let for_elder = if self.elder.is_some() { in_order(&changed) } else { Vec::new() };
        let clusters = changed.into_iter().map(|(id, (_, cluster))| (id, cluster));
        let changes = self.registry.replace_clusters(generation, clusters);
        self.apply(changes).await?;
        let mut frames = vec![self.acknowledgement(&for_elder).await];
        frames.extend(self.in_flight(Report::Of(&ids)));
        self.send(&frames).await;
        if let Some(server) = &mut self.server {
            server.look_away();
        }
        Ok(true)
    }

    /// Enough was waited for.
    pub(super) async fn rested(&mut self, saver: &mut Saver) -> Result<(), Error> {
        self.pending.rests = None;
        if self.flush().await? {
            saver.changed();
        }
        Ok(())
    }
}

/// The changes as they came.
fn in_order(changed: &BTreeMap<ClusterId, (Generation, Cluster)>) -> Vec<ToProxy> {
    let mut all: Vec<_> = changed.iter().collect();
    all.sort_by_key(|(_, (generation, _))| *generation);
    let change = |(id, (generation, cluster)): (&ClusterId, &(Generation, Cluster))| {
        let (generation, id, cluster) = (*generation, id.clone(), cluster.clone());
        ToProxy::Cluster { generation, id, cluster }
    };
    all.into_iter().map(change).collect()
}
