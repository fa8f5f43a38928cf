//! What every implementation of [`Store`] must do. Each check takes an empty store.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use keel_store::{
    Condition, Error, LeaseId, MAX_KEY_BYTES, MAX_VALUE_BYTES, Outcome, Store, Transaction, Version,
};

/// The store under test.
pub type Subject = Arc<dyn Store>;

/// Names the checks as test functions for one implementation; `$make` gives an empty store.
#[macro_export]
macro_rules! conformance {
    ($make:expr; $($check:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            suite::$check($make).await;
        })+
    };
    ($make:expr) => {
        $crate::conformance!($make;
            reads_what_was_written, lists_sorted_by_prefix, conditions_guard,
            transactions_are_atomic, versions_rise, bounds_are_enforced, one_of_many_racers_wins,
            concurrent_commits_all_apply, watch_sees_changes_under_its_prefix,
            watch_misses_nothing_under_load, keys_die_with_their_lease, keep_alive_prolongs,
            revoke_removes_keys, a_key_can_leave_its_lease, dead_leases_are_refused,
            one_leads_at_a_time, a_candidate_takes_over_from_itself, a_replaced_leader_is_fenced,
            leadership_ends_with_its_lease, a_dropped_leadership_is_free,
        );
    };
}

const DEADLINE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for: {what}"))
}

async fn commit(store: &Subject, transaction: Transaction) -> Version {
    store.commit(transaction).await.unwrap().committed().expect("the conditions hold")
}

async fn keys(store: &Subject, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

pub async fn reads_what_was_written(store: Subject) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let version = commit(&store, Transaction::new().put("a", b"\0\xff1".to_vec())).await;
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.version, entry.lease), (&b"\0\xff1"[..], version, None));
    let _ = commit(&store, Transaction::new().put("a", "")).await;
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"");
    let _ = commit(&store, Transaction::new().delete("a")).await;
    assert_eq!(store.get("a").await.unwrap(), None);
}

pub async fn lists_sorted_by_prefix(store: Subject) {
    let transaction = ["b/2", "a/1", "b/10", "b", "b0", "b/é", "c/1"]
        .into_iter()
        .fold(Transaction::new(), |transaction, key| transaction.put(key, key));
    let version = commit(&store, transaction).await;
    assert_eq!(keys(&store, "b/").await, ["b/10", "b/2", "b/é"]);
    assert_eq!(keys(&store, "").await.len(), 7);
    assert_eq!(keys(&store, "d").await, [""; 0]);
    assert_eq!(store.list("b/").await.unwrap().version, version);
    let _ = commit(&store, Transaction::new().delete_prefix("b/")).await;
    assert_eq!(keys(&store, "").await, ["a/1", "b", "b0", "c/1"]);
}

pub async fn conditions_guard(store: Subject) {
    let create = || Transaction::new().if_absent("a").put("a", "1");
    let first = commit(&store, create()).await;
    assert_eq!(store.commit(create()).await.unwrap(), Outcome::Conflict);
    let update = |version| Transaction::new().if_version("a", version).put("a", "2");
    let second = commit(&store, update(first)).await;
    assert_eq!(store.commit(update(first)).await.unwrap(), Outcome::Conflict);
    let _ = commit(&store, Transaction::new().delete("a")).await;
    assert_eq!(store.commit(update(second)).await.unwrap(), Outcome::Conflict);
    // A key made anew is not the one that was seen before.
    let _ = commit(&store, create()).await;
    assert_eq!(store.commit(update(second)).await.unwrap(), Outcome::Conflict);
    // Without writes a transaction only looks.
    let look = Transaction::new().if_absent("nothing");
    assert!(store.commit(look).await.unwrap().committed().is_some());
}

pub async fn transactions_are_atomic(store: Subject) {
    let seen = commit(&store, Transaction::new().put("a", "1").put("b", "1")).await;
    let mixed = Transaction::new()
        .if_version("a", seen)
        .if_absent("b")
        .put("c", "1")
        .delete("a")
        .delete_prefix("b");
    assert_eq!(store.commit(mixed).await.unwrap(), Outcome::Conflict);
    assert_eq!(keys(&store, "").await, ["a", "b"]);
    // An error leaves nothing behind either.
    let broken = Transaction::new().put("d", "1").put_leased("e", "1", LeaseId(4711));
    assert_eq!(store.commit(broken).await, Err(Error::LeaseLost(LeaseId(4711))));
    assert_eq!(keys(&store, "").await, ["a", "b"]);
    let all = Transaction::new().if_version("a", seen).put("c", "1").delete("a").delete_prefix("b");
    let version = commit(&store, all).await;
    let listing = store.list("").await.unwrap();
    assert_eq!((listing.entries.len(), listing.entries[0].version), (1, version));
}

pub async fn versions_rise(store: Subject) {
    let first = commit(&store, Transaction::new().put("a", "1").put("b", "1")).await;
    let second = commit(&store, Transaction::new().put("a", "1")).await;
    assert!(second > first, "also when the value is the same");
    assert_eq!(commit(&store, Transaction::new().delete("nothing")).await, second);
    assert_eq!(store.get("b").await.unwrap().unwrap().version, first);
    let third = commit(&store, Transaction::new().delete("a")).await;
    assert!(third > second);
    assert_eq!(store.list("").await.unwrap().version, third);
}

pub async fn bounds_are_enforced(store: Subject) {
    let key = "k".repeat(MAX_KEY_BYTES);
    let _ = commit(&store, Transaction::new().put(&key, vec![7; MAX_VALUE_BYTES])).await;
    assert_eq!(store.get(&key).await.unwrap().unwrap().value.len(), MAX_VALUE_BYTES);
    let long = Transaction::new().put(format!("{key}k"), "");
    assert!(matches!(store.commit(long).await, Err(Error::TooLarge { .. })));
    let large = Transaction::new().put("a", vec![7; MAX_VALUE_BYTES + 1]);
    assert!(matches!(store.commit(large).await, Err(Error::TooLarge { .. })));
    let twice = Transaction::new().put("a", "1").put("a", "2");
    assert!(matches!(store.commit(twice).await, Err(Error::Invalid(_))));
    assert!(matches!(store.grant(Duration::ZERO).await, Err(Error::Invalid(_))));
    assert_eq!(keys(&store, "").await, [key]);
}

pub async fn one_of_many_racers_wins(store: Subject) {
    for round in 0..20 {
        let key = format!("race/{round}");
        let racers = (0..16).map(|racer| {
            let transaction = Transaction::new().if_absent(&key).put(&key, vec![racer]);
            let store = Arc::clone(&store);
            async move { store.commit(transaction).await.unwrap().committed().map(|_| racer) }
        });
        let winners: Vec<_> =
            futures_util::future::join_all(racers).await.into_iter().flatten().collect();
        let written = store.get(&key).await.unwrap().unwrap().value[0];
        assert_eq!(winners, [written]);
    }
}

pub async fn concurrent_commits_all_apply(store: Subject) {
    const TASKS: u64 = 8;
    const EACH: u64 = 50;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..EACH {
                    increment(&store).await;
                }
            })
        })
        .collect();
    within("all increments", futures_util::future::join_all(tasks)).await;
    assert_eq!(counter(&store).await.0, TASKS * EACH);
}

async fn counter(store: &Subject) -> (u64, Option<Version>) {
    let entry = store.get("counter").await.unwrap();
    let value = entry.as_ref().map_or(0, |e| {
        String::from_utf8_lossy(&e.value).parse().expect("only numbers are written")
    });
    (value, entry.map(|entry| entry.version))
}

async fn increment(store: &Subject) {
    loop {
        let (value, version) = counter(store).await;
        let transaction = Transaction::new().put("counter", (value + 1).to_string());
        let transaction = match version {
            Some(version) => transaction.if_version("counter", version),
            None => transaction.if_absent("counter"),
        };
        if store.commit(transaction).await.unwrap().committed().is_some() {
            return;
        }
    }
}

pub async fn watch_sees_changes_under_its_prefix(store: Subject) {
    let _ = commit(&store, Transaction::new().put("a/1", "1")).await;
    let mut inside = store.watch("a/");
    let mut everything = store.watch("");
    let mut outside = store.watch("b/");
    let _ = commit(&store, Transaction::new().put("a/2", "1")).await;
    within("a put", inside.changed()).await;
    within("a put anywhere", everything.changed()).await;
    let _ = commit(&store, Transaction::new().delete_prefix("a/")).await;
    within("a removal", inside.changed()).await;
    assert!(outside.changed().now_or_never().is_none(), "woken by a foreign key");
}

pub async fn watch_misses_nothing_under_load(store: Subject) {
    const LAST: u64 = 300;
    let watcher = Arc::clone(&store);
    let mut watch = watcher.watch("counter");
    let seen = tokio::spawn(async move {
        while counter(&watcher).await.0 < LAST {
            watch.changed().await;
        }
    });
    for _ in 0..LAST {
        increment(&store).await;
    }
    within("the last value", seen).await.unwrap();
}

pub async fn keys_die_with_their_lease(store: Subject) {
    let mut watch = store.watch("leased/");
    let started = Instant::now();
    let lease = store.grant(SHORT).await.unwrap();
    let keeps = store.grant(LONG).await.unwrap();
    let transaction = Transaction::new()
        .if_lease_held(lease)
        .put_leased("leased/a", "1", lease)
        .put_leased("leased/b", "1", lease)
        .put_leased("leased/c", "1", keeps)
        .put("leased/d", "1");
    let written = commit(&store, transaction).await;
    assert_eq!(store.get("leased/a").await.unwrap().unwrap().lease, Some(lease));
    let gone = async {
        while keys(&store, "leased/").await.len() > 2 {
            watch.changed().await;
        }
    };
    within("the end of a lease", gone).await;
    assert!(started.elapsed() >= SHORT, "ended early, after {:?}", started.elapsed());
    assert_eq!(keys(&store, "leased/").await, ["leased/c", "leased/d"]);
    assert!(store.list("").await.unwrap().version > written);
}

pub async fn keep_alive_prolongs(store: Subject) {
    // Long enough for a busy machine to renew in time.
    let ttl = SHORT * 3;
    let lease = store.grant(ttl).await.unwrap();
    let _ = commit(&store, Transaction::new().put_leased("a", "1", lease)).await;
    let started = Instant::now();
    let mut tick = tokio::time::interval(ttl / 15);
    while started.elapsed() < ttl * 3 / 2 {
        tick.tick().await;
        store.keep_alive(lease).await.unwrap();
        assert!(store.get("a").await.unwrap().is_some());
    }
    let mut watch = store.watch("a");
    let gone = async {
        while store.get("a").await.unwrap().is_some() {
            watch.changed().await;
        }
    };
    within("the end after the last renewal", gone).await;
}

pub async fn revoke_removes_keys(store: Subject) {
    let lease = store.grant(LONG).await.unwrap();
    let _ = commit(&store, Transaction::new().put_leased("a", "1", lease).put("b", "1")).await;
    let mut watch = store.watch("a");
    store.revoke(lease).await.unwrap();
    assert_eq!(keys(&store, "").await, ["b"]);
    within("the removal", watch.changed()).await;
    store.revoke(lease).await.unwrap();
}

pub async fn a_key_can_leave_its_lease(store: Subject) {
    let lease = store.grant(LONG).await.unwrap();
    let other = store.grant(LONG).await.unwrap();
    let both = Transaction::new().put_leased("a", "1", lease).put_leased("b", "1", lease);
    let _ = commit(&store, both).await;
    let _ = commit(&store, Transaction::new().put("a", "2").put_leased("b", "2", other)).await;
    store.revoke(lease).await.unwrap();
    assert_eq!(keys(&store, "").await, ["a", "b"]);
    store.revoke(other).await.unwrap();
    assert_eq!(keys(&store, "").await, ["a"]);
}

pub async fn dead_leases_are_refused(store: Subject) {
    let lease = store.grant(LONG).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.keep_alive(lease).await, Err(Error::LeaseLost(lease)));
    let write = Transaction::new().put_leased("a", "1", lease);
    assert_eq!(store.commit(write).await, Err(Error::LeaseLost(lease)));
    let guarded = Transaction::new().if_lease_held(lease).put("a", "1");
    assert_eq!(store.commit(guarded).await, Ok(Outcome::Conflict));
    assert_ne!(store.grant(LONG).await.unwrap(), lease, "ids are never used twice");
}

pub async fn one_leads_at_a_time(store: Subject) {
    let first = store.campaign("cluster", "a", LONG).await.unwrap();
    let waiting = Arc::clone(&store);
    let mut second =
        tokio::spawn(async move { waiting.campaign("cluster", "b", LONG).await.unwrap() });
    // Another election does not interfere, and shows that the waiting one had its chance.
    let other = store.campaign("other", "b", LONG).await.unwrap();
    assert!(!first.is_lost() && !other.is_lost());
    assert!((&mut second).now_or_never().is_none(), "two lead");
    let generation = first.generation();
    first.resign().await;
    let second = within("the second", second).await.unwrap();
    assert!(second.generation() > generation);
}

pub async fn a_candidate_takes_over_from_itself(store: Subject) {
    let before = store.campaign("cluster", "a", LONG).await.unwrap();
    let after = within("taking over", store.campaign("cluster", "a", LONG)).await.unwrap();
    assert!(after.generation() > before.generation());
    within("the old one to notice", before.lost()).await;
    drop(before);
    assert!(!after.is_lost());
    let fenced = Transaction { conditions: vec![after.fence()], ..Transaction::new().put("x", "") };
    let _ = commit(&store, fenced).await;
}

pub async fn a_replaced_leader_is_fenced(store: Subject) {
    let old = store.campaign("cluster", "a", LONG).await.unwrap();
    let stale = Transaction { conditions: vec![old.fence()], ..Transaction::new().put("x", "old") };
    let _ = commit(&store, stale.clone()).await;
    old.resign().await;
    let new = store.campaign("cluster", "b", LONG).await.unwrap();
    assert_eq!(store.commit(stale).await.unwrap(), Outcome::Conflict);
    assert!(matches!(new.fence(), Condition::VersionIs { .. }));
}

pub async fn leadership_ends_with_its_lease(store: Subject) {
    let leader = store.campaign("cluster", "a", LONG).await.unwrap();
    let entries = store.list("election/").await.unwrap().entries;
    let lease = entries[0].lease.expect("the election's key has a lease");
    store.revoke(lease).await.unwrap();
    within("the loss", leader.lost()).await;
    assert!(leader.is_lost());
}

pub async fn a_dropped_leadership_is_free(store: Subject) {
    drop(store.campaign("cluster", "a", LONG).await.unwrap());
    within("the next leader", store.campaign("cluster", "b", LONG)).await.unwrap();
}
