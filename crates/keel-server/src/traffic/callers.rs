//! By what the proxy knows who calls: the cgroup of each instance that runs here, or its addresses if it has its own.

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
            Origin::Cgroup(id) => drop(snapshot.caller_cgroups.insert(id, name)),
            // The first of them is there already; a container has one on each network.
            Origin::Addresses(addresses) => {
                let named = addresses.into_iter().map(|address| (address, name.clone()));
                snapshot.callers.extend(named);
            }
        }
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
    use std::collections::BTreeMap;

    use keel_route::snapshot::{Certificate, Cluster, Listener, RouteTable};

    use super::*;

    fn with(id: &str, expected: bool) -> Snapshot {
        let mut snapshot = Snapshot { generation: Generation(1), ..Snapshot::default() };
        let cluster = Cluster { expected, ..Cluster::default() };
        snapshot.clusters.insert(id.to_owned(), cluster);
        snapshot
    }

    #[test]
    fn endpoints_and_callers_travel_alone_and_everything_else_with_the_whole() {
        let cluster = |expected| Cluster { expected, ..Cluster::default() };
        let snapshot = |expected| Snapshot {
            clusters: BTreeMap::from([("s/a:80".to_owned(), cluster(expected))]),
            ..Snapshot::default()
        };
        assert!(sent_by_parts(&snapshot(true), &snapshot(false)));
        let differ = |edit: &dyn Fn(&mut Snapshot)| {
            let mut other = snapshot(true);
            edit(&mut other);
            !sent_by_parts(&snapshot(true), &other)
        };
        assert!(differ(&|s| s.clusters.clear()));
        assert!(differ(&|s| s.listeners.push(Listener::default())));
        assert!(differ(&|s| {
            s.tables.insert("0.0.0.0:80".to_owned(), RouteTable::default());
        }));
        assert!(differ(&|s| s.certificates = vec![certificate()].into()));
        assert!(differ(&|s| s.challenges.tls_alpn.push(certificate())));
        assert!(differ(&|s| s.access_log = Some(AccessLog::default())));
        assert!(differ(&|s| s.zone = Some("a".to_owned())));
        assert!(!differ(&|s| {
            s.callers.insert(std::net::Ipv4Addr::LOCALHOST.into(), "s/a".to_owned());
        }));
    }

    fn certificate() -> Certificate {
        Certificate { names: Vec::new(), chain: String::new(), key: String::new() }
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
