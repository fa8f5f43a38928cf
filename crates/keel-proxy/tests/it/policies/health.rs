//! Endpoints that are left out for what they do, and come back.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keel_model::{ActiveCheck, Balance, Outlier, Retry, Timeouts, TrafficPolicy};

use super::{get, mood, moody, of, patient, silent, tally, under};
use crate::http2::background::wait;
use crate::http2::either::{Caller, Endpoint, Version};
use crate::proxy::{CART, PATIENCE};
use crate::routes::{Site, all, answer, named};

fn strict(base_ms: u64) -> TrafficPolicy {
    let outlier = Outlier {
        consecutive_errors: 3,
        base: Duration::from_millis(base_ms),
        ..Outlier::default()
    };
    TrafficPolicy { outlier, balance: Balance::RoundRobin, ..TrafficPolicy::default() }
}

/// Asks until this answer comes.
async fn until_answered(caller: &mut Caller, status: u16, name: &str) {
    let begun = Instant::now();
    loop {
        let answer = get(caller).await;
        if (answer.status, &*answer.text()) == (status, name) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no {status} of {name} in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn failures_in_a_row_leave_an_endpoint_out_until_it_has_recovered() {
    wait(all(async |client, version| {
        let state = mood(500);
        let (a, b) = (moody(version, "a", &state), named(version, "b"));
        let mut site = Site::bare(under(&strict(120_000), &[&a, &b]));
        let mut caller = Caller::connect(client, site.address).await;
        let counts = tally(&mut caller, "POST", 20).await;
        assert_eq!((of(&counts, 500, "a"), of(&counts, 200, "b")), (3, 17), "{counts:?}");
        // It is told once.
        let told = site.proxy.all_stats().notices;
        assert_eq!((told.endpoints.len(), told.lost), (1, 0), "{told:?}");
        let notice = &told.endpoints[0];
        assert_eq!((&*notice.cluster, notice.is_out), (CART, true));
        assert_eq!(notice.reason, "3 requests in a row failed there");
        assert!(notice.for_ms.is_some_and(|for_ms| for_ms == 120_000), "{notice:?}");
        // The other workers know it, too.
        let mut other = Caller::connect(client, site.address).await;
        assert_eq!(of(&tally(&mut other, "GET", 8).await, 200, "b"), 8);
        // The last one is used whatever it does.
        site.proxy.server.update(under(&strict(120_000), &[&a]));
        assert_eq!(of(&tally(&mut caller, "GET", 8).await, 500, "a"), 8);
        assert!(site.proxy.all_stats().notices.is_empty());
    }));
    wait(async {
        let state = mood(500);
        let (a, b) = (moody(Version::One, "a", &state), named(Version::One, "b"));
        let mut site = Site::bare(under(&strict(600), &[&a, &b]));
        let mut caller = Caller::connect(Version::One, site.address).await;
        let counts = tally(&mut caller, "GET", 12).await;
        assert!(of(&counts, 500, "a") >= 3, "{counts:?}");
        state.store(200, Ordering::SeqCst);
        until_answered(&mut caller, 200, "a").await;
        let told = site.proxy.all_stats().notices.endpoints.into_iter();
        let told: Vec<_> = told.map(|notice| (notice.is_out, notice.reason)).collect();
        let back = (false, "its time is over, and it is tried again".to_owned());
        assert_eq!((told[0].0, told.last()), (true, Some(&back)), "{told:?}");
    });
}

#[test]
fn answers_that_do_not_come_count_as_failures() {
    let short = Some(Duration::from_millis(200));
    let by_try = Retry { per_try_timeout: short, attempts: 0, ..Retry::default() };
    let by_try = TrafficPolicy { retry: by_try, ..strict(120_000) };
    let whole = Timeouts { request: short, ..Timeouts::default() };
    let whole = TrafficPolicy { timeouts: whole, ..strict(120_000) };
    wait(all(async |client, version| {
        for policy in [&by_try, &whole] {
            let (a, b) = (silent(version), named(version, "b"));
            let site = Site::bare(under(policy, &[&a, &b]));
            let mut caller = Caller::connect(client, site.address).await;
            let counts = tally(&mut caller, "GET", 12).await;
            let timed_out = "An instance of shop/cart:80 did not answer in time.\n";
            let found = (of(&counts, 504, timed_out), of(&counts, 200, "b"));
            assert_eq!(found, (3, 9), "{:?} {counts:?}", policy.timeouts);
        }
    }));
}

#[test]
fn checks_of_the_proxy_take_an_endpoint_out_and_back() {
    let check = ActiveCheck {
        path: "/health?x".into(),
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        failures: 2,
        successes: 2,
    };
    let policy = TrafficPolicy {
        check: Some(check),
        balance: Balance::RoundRobin,
        outlier: patient(),
        ..TrafficPolicy::default()
    };
    wait(async {
        let state = mood(200);
        let health = std::sync::Arc::clone(&state);
        let a = Endpoint::new(Version::One, move |got| match &*got.target {
            "/health?x" => answer(health.load(Ordering::SeqCst), "checked"),
            _ => answer(200, "a"),
        });
        let b = named(Version::One, "b");
        let mut site = Site::bare(under(&policy, &[&a, &b]));
        let mut caller = Caller::connect(Version::One, site.address).await;
        let turn = async |caller: &mut Caller, a_is_in: bool| {
            let begun = Instant::now();
            // Half of a round of eight, or none.
            while (of(&tally(caller, "GET", 8).await, 200, "a") > 0) != a_is_in {
                assert!(begun.elapsed() < PATIENCE);
            }
        };
        turn(&mut caller, true).await;
        for status in [503, 204, 404, 302] {
            state.store(status, Ordering::SeqCst);
            turn(&mut caller, status < 400).await;
        }
        let told = site.proxy.all_stats().notices.endpoints.into_iter();
        let told: Vec<_> = told.map(|n| (n.is_out, n.for_ms, n.reason)).collect();
        let failed =
            |status| format!("2 checks of /health?x in a row failed (it answered {status})");
        let succeeded = "2 checks of /health?x in a row succeeded".to_owned();
        let expected = [
            (true, None, failed(503)),
            (false, None, succeeded.clone()),
            (true, None, failed(404)),
            (false, None, succeeded),
        ];
        assert_eq!(told, expected);
        state.store(500, Ordering::SeqCst);
        turn(&mut caller, false).await;
        // Nobody is out whom nobody checks.
        let unchecked = TrafficPolicy { check: None, ..policy.clone() };
        site.proxy.server.update(under(&unchecked, &[&a, &b]));
        turn(&mut caller, true).await;
    });
}
