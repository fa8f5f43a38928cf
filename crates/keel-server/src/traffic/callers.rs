//! By what the proxy knows who calls: the address or the cgroup of each instance that runs here.

use keel_model::Generation;
use keel_route::snapshot::{Snapshot, ToProxy};
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

/// What the proxy is to be told of callers, if `sent` does not say it.
pub fn news(wanted: &Snapshot, sent: &Snapshot, generation: &mut Generation) -> Option<ToProxy> {
    let same = wanted.callers == sent.callers && wanted.caller_cgroups == sent.caller_cgroups;
    (!same).then(|| {
        *generation = generation.next();
        ToProxy::Callers {
            generation: *generation,
            callers: wanted.callers.clone(),
            caller_cgroups: wanted.caller_cgroups.clone(),
        }
    })
}

/// Whether two states differ in nothing but what can be sent by itself: the content of clusters, and the callers.
pub fn sent_by_parts(one: &Snapshot, other: &Snapshot) -> bool {
    // Taken apart so that no field is forgotten.
    let Snapshot {
        generation: _,
        listeners,
        clusters,
        tables,
        certificates,
        challenges,
        callers: _,
        caller_cgroups: _,
        access_log,
        zone,
    } = one;
    *listeners == other.listeners
        && clusters.len() == other.clusters.len()
        && clusters.keys().eq(other.clusters.keys())
        && *tables == other.tables
        && *certificates == other.certificates
        && *challenges == other.challenges
        && *access_log == other.access_log
        && *zone == other.zone
}

#[cfg(test)]
mod tests {
    use keel_route::access_log::AccessLog;
    use keel_route::snapshot::Cluster;

    use super::*;

    fn with(id: &str, expected: bool) -> Snapshot {
        let mut snapshot = Snapshot { generation: Generation(1), ..Snapshot::default() };
        let cluster = Cluster { expected, ..Cluster::default() };
        snapshot.clusters.insert(id.to_owned(), cluster);
        snapshot
    }

    #[test]
    fn all_but_clusters_and_callers_is_sent_as_a_whole() {
        let before = with("a", false);
        assert!(sent_by_parts(&before, &with("a", true)));
        assert!(!sent_by_parts(&before, &with("b", false)));
        let mut logged = before.clone();
        logged.access_log = Some(AccessLog::default());
        assert!(!sent_by_parts(&before, &logged));
    }

    #[test]
    fn callers_are_sent_when_they_change() {
        let before = with("a", false);
        let mut after = before.clone();
        let mut generation = Generation(4);
        assert_eq!(news(&after, &before, &mut generation), None);
        after.caller_cgroups.insert(1, "shop/web".to_owned());
        let told = news(&after, &before, &mut generation);
        assert_eq!(generation, Generation(5));
        assert!(matches!(told, Some(ToProxy::Callers { generation: Generation(5), .. })));
        assert!(sent_by_parts(&before, &after));
    }
}
