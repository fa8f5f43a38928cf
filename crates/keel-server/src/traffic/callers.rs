//! By what the proxy knows who calls: the address or the cgroup of each instance that runs here.

use keel_route::snapshot::Snapshot;
use keel_runtime::{Origin, Runtime};

use crate::board::BoardView;
use crate::world::World;

/// Adds them to `snapshot`.
pub fn add(snapshot: &mut Snapshot, world: &World, board: &BoardView, runtime: &dyn Runtime) {
    let assignments = world.stacks.values().flat_map(|stack| stack.assignments.values());
    for assignment in assignments.map(|stored| &stored.value) {
        let running = board.statuses.get(&assignment.id).is_some_and(|s| s.pid.is_some());
        let Some(origin) = running.then(|| runtime.origin(&assignment.id)).flatten() else {
            continue;
        };
        let name = format!("{}/{}", assignment.stack, assignment.service);
        match origin {
            Origin::Address(ip) => snapshot.callers.insert(ip, name),
            Origin::Cgroup(id) => snapshot.caller_cgroups.insert(id, name),
        };
    }
}

/// Whether two states differ in nothing but the content of clusters (and their generation).
pub fn same_but_for_clusters(one: &Snapshot, other: &Snapshot) -> bool {
    // Taken apart so that no field is forgotten.
    let Snapshot {
        generation: _,
        listeners,
        clusters,
        tables,
        certificates,
        challenges,
        callers,
        caller_cgroups,
        access_log,
        zone,
    } = one;
    *listeners == other.listeners
        && clusters.len() == other.clusters.len()
        && clusters.keys().eq(other.clusters.keys())
        && *tables == other.tables
        && *certificates == other.certificates
        && *challenges == other.challenges
        && *callers == other.callers
        && *caller_cgroups == other.caller_cgroups
        && *access_log == other.access_log
        && *zone == other.zone
}

#[cfg(test)]
mod tests {
    use keel_model::Generation;
    use keel_route::access_log::AccessLog;
    use keel_route::snapshot::Cluster;

    use super::*;

    #[test]
    fn only_clusters_can_be_sent_by_themselves() {
        let with = |id: &str, expected| {
            let mut snapshot = Snapshot { generation: Generation(1), ..Snapshot::default() };
            let cluster = Cluster { expected, ..Cluster::default() };
            snapshot.clusters.insert(id.to_owned(), cluster);
            snapshot
        };
        let before = with("a", false);
        assert!(same_but_for_clusters(&before, &with("a", true)));
        assert!(!same_but_for_clusters(&before, &with("b", false)));
        let mut logged = before.clone();
        logged.access_log = Some(AccessLog::default());
        assert!(!same_but_for_clusters(&before, &logged));
        let mut called = before.clone();
        called.caller_cgroups.insert(1, "shop/web".to_owned());
        assert!(!same_but_for_clusters(&before, &called));
    }
}
