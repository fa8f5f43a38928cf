//! What is tried again.

use std::time::Duration;

use keel_model::{Balance, Retry, TrafficPolicy};

use super::{mood, moody, of, patient, silent, tally, under};
use crate::http2::background::wait;
use crate::http2::either::Caller;
use crate::routes::{Site, all, named};

fn policy(retry: Retry) -> TrafficPolicy {
    TrafficPolicy {
        retry,
        balance: Balance::RoundRobin,
        outlier: patient(),
        ..TrafficPolicy::default()
    }
}

#[test]
fn a_try_that_takes_too_long_is_repeated_elsewhere() {
    let per_try_timeout = Some(Duration::from_millis(300));
    let policy = policy(Retry { per_try_timeout, ..Retry::default() });
    wait(all(async |client, version| {
        let (good, bad) = (named(version, "good"), silent(version));
        let mut site = Site::bare(under(&policy, &[&good, &bad]));
        let mut caller = Caller::connect(client, site.address).await;
        let counts = tally(&mut caller, "GET", 4).await;
        assert_eq!(of(&counts, 200, "good"), 4, "{counts:?}");
        let retries = site.proxy.stats().retries;
        // A repeat takes the turn of the next request, so that each may meet the silent one first.
        assert!((1..=4).contains(&retries), "{retries}");
        // What may have been done is not done again.
        let counts = tally(&mut caller, "POST", 2).await;
        let timed_out = "An instance of shop/cart:80 did not answer in time.\n";
        assert_eq!((of(&counts, 200, "good"), of(&counts, 504, timed_out)), (1, 1), "{counts:?}");
    }));
}

#[test]
fn statuses_that_count_as_no_answer_are_asked_for_again() {
    let retry = Retry { on_status: vec![503], ..Retry::default() };
    wait(all(async |client, version| {
        let bad_mood = mood(503);
        let (good, bad) = (named(version, "good"), moody(version, "bad", &bad_mood));
        let mut site = Site::bare(under(&policy(retry.clone()), &[&good, &bad]));
        let mut caller = Caller::connect(client, site.address).await;
        let counts = tally(&mut caller, "GET", 8).await;
        assert_eq!(of(&counts, 200, "good"), 8, "{counts:?}");
        let counts = tally(&mut caller, "POST", 8).await;
        assert_eq!((of(&counts, 200, "good"), of(&counts, 503, "bad")), (4, 4), "{counts:?}");
        // Another status is an answer.
        bad_mood.store(500, std::sync::atomic::Ordering::SeqCst);
        let counts = tally(&mut caller, "GET", 8).await;
        assert_eq!((of(&counts, 200, "good"), of(&counts, 500, "bad")), (4, 4), "{counts:?}");
        // Without a budget nothing is repeated, and the answer passes on.
        bad_mood.store(503, std::sync::atomic::Ordering::SeqCst);
        let broke = policy(Retry { budget_percent: 0, ..retry.clone() });
        site.proxy.server.update(under(&broke, &[&good, &bad]));
        let counts = tally(&mut caller, "GET", 8).await;
        assert_eq!((of(&counts, 200, "good"), of(&counts, 503, "bad")), (4, 4), "{counts:?}");
        // As it does when all are the same.
        let twice = policy(Retry { attempts: 2, ..retry.clone() });
        site.proxy.server.update(under(&twice, &[&bad]));
        let before = site.proxy.stats().retries;
        let counts = tally(&mut caller, "GET", 3).await;
        assert_eq!(of(&counts, 503, "bad"), 3, "{counts:?}");
        assert_eq!(site.proxy.stats().retries - before, 6);
    }));
}

#[test]
fn a_budget_that_is_used_up_lets_failures_pass() {
    let retry = Retry { on_status: vec![503], budget_percent: 1, ..Retry::default() };
    wait(async {
        let version = crate::http2::either::Version::One;
        let bad = moody(version, "bad", &mood(503));
        let mut site = Site::bare(under(&policy(retry), &[&bad]));
        let mut caller = Caller::connect(version, site.address).await;
        let counts = tally(&mut caller, "GET", 400).await;
        assert_eq!(of(&counts, 503, "bad"), 400, "{counts:?}");
        // One worker's floor of 100, and what grew back while this went on.
        let retries = site.proxy.stats().retries;
        assert!((100..300).contains(&retries), "{retries}");
    });
}
