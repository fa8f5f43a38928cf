//! Examples of what is due, and a small world in which authorities fail, servers crash and clocks jump.

use keel_model::{Acme, AcmeChallenge};
use proptest::prelude::*;

use super::*;
use crate::records::Pause;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn wanted(names: &[&str]) -> Wanted {
    Wanted {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        acme: Acme {
            directory: "https://ca.test/dir".to_owned(),
            email: None,
            challenge: AcmeChallenge::Http01,
            ca: None,
        },
    }
}

/// A certificate of 90 days that is `age` old.
fn issued(one: &Wanted, age: Duration) -> Issued {
    Issued {
        names: one.names.clone(),
        directory: one.acme.directory.clone(),
        chain: String::new(),
        key: String::new(),
        not_before: NOW - age,
        not_after: NOW - age + DAY * 90,
    }
}

fn attempts(count: u32, last: Timestamp, next: Timestamp) -> Attempts {
    Attempts { count, last, next, reason: "no".to_owned() }
}

fn order(url: Option<&str>, since: Timestamp, resumed: u32) -> PendingOrder {
    let url = url.map(str::to_owned);
    PendingOrder { names: Vec::new(), key: String::new(), url, since, resumed }
}

/// What is done about certificates, without questions to authorities.
fn due(wanted: &[Wanted], records: &Records) -> Vec<Step> {
    let steps = plan(wanted, records, NOW).steps;
    steps.into_iter().filter(|step| !matches!(step, Step::Ask { .. })).collect()
}

#[test]
fn what_is_missing_is_ordered_and_what_is_there_is_not() {
    let all = [wanted(&["a.test"]), wanted(&["b.test", "c.test"])];
    let mut records = Records::default();
    let missing = |index| Step::Order { index, due: Due::Missing };
    assert_eq!(due(&all, &records), [missing(0), missing(1)]);
    records.certificates.insert(all[0].id(), issued(&all[0], DAY));
    assert_eq!(due(&all, &records), [missing(1)]);
    records.certificates.insert(all[1].id(), issued(&all[1], DAY * 91));
    assert_eq!(due(&all, &records), [missing(1)], "expired");
    assert_eq!(due(&[], &records), [Step::Forget(all[1].id())], "what is valid is kept a while");
}

#[test]
fn a_certificate_for_more_names_does_until_it_is_renewed() {
    let (both, one) = (wanted(&["a.test", "b.test"]), wanted(&["a.test"]));
    let mut records = Records::default();
    records.certificates.insert(both.id(), issued(&both, DAY));
    assert_eq!(due(std::slice::from_ref(&one), &records), []);
    records.certificates.insert(both.id(), issued(&both, DAY * 61));
    let renewal = Step::Order { index: 0, due: Due::Renewal };
    assert_eq!(due(std::slice::from_ref(&one), &records), [renewal]);
    let mut elsewhere = one;
    elsewhere.acme.directory = "https://other.test/dir".to_owned();
    let missing = Step::Order { index: 0, due: Due::Missing };
    assert_eq!(due(&[elsewhere], &records), [missing], "another authority was asked for");
}

#[test]
fn renewal_comes_at_two_thirds_or_when_the_authority_wants_it() {
    let one = wanted(&["a.test"]);
    let certificate = issued(&one, Duration::ZERO);
    let day = |at: Timestamp| at.since(NOW).as_secs_f64() / DAY.as_secs_f64();
    let days: Vec<f64> =
        (0..50).map(|n| day(renew_at(&n.to_string(), &certificate, None))).collect();
    assert!(days.iter().all(|day| (55.4..=60.0).contains(day)), "{days:?}");
    let spread = days.iter().fold(0.0_f64, |most, day| most.max(60.0 - day));
    assert!(spread > 3.0, "{spread} days");
    let window = Window { start: NOW + DAY * 10, end: NOW + DAY * 12 };
    let asked = day(renew_at("a", &certificate, Some(window)));
    assert!((10.0..12.0).contains(&asked), "{asked}");
    let late = Window { start: NOW + DAY * 100, end: NOW + DAY * 120 };
    assert_eq!(renew_at("a", &certificate, Some(late)), certificate.not_after);
    let absurd = Window { start: NOW + DAY, end: NOW };
    assert!(day(renew_at("a", &certificate, Some(absurd))) > 55.0);
}

#[test]
fn failures_are_paused_for_longer_and_longer() {
    let minutes: Vec<u64> = (1..8).map(|count| backoff("x", count).as_secs() / 60).collect();
    for (minutes, least) in minutes.iter().zip([1, 4, 16, 64, 256, 720, 720]) {
        assert!((least..=least * 11 / 10).contains(minutes), "{minutes} instead of {least}");
    }
    assert!(backoff("x", u32::MAX) <= Duration::from_secs(12 * 3600 * 11 / 10));
    let one = [wanted(&["a.test"])];
    let mut records = Records::default();
    let next = NOW + Duration::from_secs(60);
    records.attempts.insert(one[0].id(), attempts(1, NOW, next));
    assert_eq!(plan(&one, &records, NOW), Plan { steps: Vec::new(), wake_at: next });
    let then = plan(&one, &records, next);
    assert_eq!(then.steps, [Step::Order { index: 0, due: Due::Missing }]);
    records.attempts.insert(one[0].id(), attempts(1, NOW + DAY, NOW + DAY * 2));
    assert_eq!(due(&one, &records).len(), 1, "the clock was set back by a day");
}

#[test]
fn an_authority_that_had_enough_is_left_alone_with_all_names() {
    let all = [wanted(&["a.test"]), wanted(&["b.test"])];
    let mut records = Records::default();
    let pause = Pause { since: NOW, until: NOW + Duration::from_secs(600) };
    records.pauses.insert(authority_id(&all[0].acme), pause.clone());
    records.orders.insert(all[1].id(), order(Some("url"), NOW, 0));
    assert_eq!(plan(&all, &records, NOW), Plan { steps: Vec::new(), wake_at: pause.until });
    assert_eq!(plan(&all, &records, pause.until).steps.len(), 2);
}

#[test]
fn an_order_is_taken_up_again_at_once_after_a_crash_and_later_after_a_failure() {
    let one = [wanted(&["a.test"])];
    let id = one[0].id();
    let mut records = Records::default();
    records.orders.insert(id.clone(), order(Some("url"), NOW, 0));
    let next = NOW + Duration::from_secs(60);
    let crashed = Attempts { reason: String::new(), ..attempts(1, NOW, next) };
    records.attempts.insert(id.clone(), crashed);
    assert_eq!(due(&one, &records), [Step::Resume { index: 0 }]);
    records.attempts.insert(id.clone(), attempts(1, NOW, next));
    assert_eq!(plan(&one, &records, NOW), Plan { steps: Vec::new(), wake_at: next });
    assert_eq!(plan(&one, &records, next).steps, [Step::Resume { index: 0 }]);
    for hopeless in
        [order(None, NOW, 0), order(Some("url"), NOW, 3), order(Some("url"), NOW - DAY, 0)]
    {
        records.orders.insert(id.clone(), hopeless);
        assert_eq!(due(&one, &records), [Step::Abandon(id.clone())]);
    }
    assert_eq!(due(&[], &records), [Step::Abandon(id)], "nobody wants it any more");
}

#[test]
fn what_fails_does_not_hold_up_the_others() {
    let all: Vec<Wanted> = ["a.test", "b.test", "c.test"].map(|name| wanted(&[name])).into();
    let mut records = Records::default();
    records.attempts.insert(all[0].id(), attempts(5, NOW - DAY, NOW));
    records.certificates.insert(all[1].id(), issued(&all[1], DAY * 80));
    let order = |index, due| Step::Order { index, due };
    let expected = [order(2, Due::Missing), order(0, Due::Missing), order(1, Due::Renewal)];
    assert_eq!(due(&all, &records), expected);
}

#[test]
fn authorities_are_asked_about_renewal_now_and_then() {
    let one = [wanted(&["a.test"])];
    let id = one[0].id();
    let mut records = Records::default();
    records.certificates.insert(id.clone(), issued(&one[0], DAY));
    let ask = Step::Ask { index: 0, id: id.clone() };
    assert_eq!(plan(&one, &records, NOW).steps, [ask]);
    let again = NOW + Duration::from_secs(600);
    let window = Window { start: NOW - DAY, end: NOW - DAY + Duration::from_secs(1) };
    records.windows.insert(id.clone(), (None, again));
    assert_eq!(plan(&one, &records, NOW), Plan { steps: Vec::new(), wake_at: again });
    records.windows.insert(id, (Some(window), again));
    assert_eq!(due(&one, &records), [Step::Order { index: 0, due: Due::Renewal }]);
}

/// What befalls a try.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Issued,
    Refused,
    RateLimited,
    Unreachable,
    /// The server dies before the authority has answered, or after.
    Crash {
        answered: bool,
    },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Issued),
        Just(Fate::Refused),
        Just(Fate::RateLimited),
        Just(Fate::Unreachable),
        any::<bool>().prop_map(|answered| Fate::Crash { answered }),
    ]
}

/// Does what a [`Step`] asks for, as the loop does it.
fn carry_out(step: &Step, all: &[Wanted], records: &mut Records, now: Timestamp, fate: Fate) {
    let (index, resumed) = match step {
        Step::Order { index, .. } => (*index, false),
        Step::Resume { index } => (*index, true),
        Step::Abandon(id) => {
            records.orders.remove(id);
            return;
        }
        Step::Forget(id) => {
            records.certificates.remove(id);
            return;
        }
        Step::Ask { id, .. } => {
            records.windows.insert(id.clone(), (None, now + RENEWAL_CHECK));
            return;
        }
    };
    let id = all[index].id();
    let count = records.attempts.get(&id).map_or(0, |attempts| attempts.count) + 1;
    let mut tried = attempts(count, now, now + backoff(&id, count));
    tried.reason.clear();
    if resumed {
        records.orders.get_mut(&id).unwrap().resumed += 1;
    } else {
        records.orders.insert(id.clone(), order(None, now, 0));
    }
    let url = Some("url".to_owned());
    match fate {
        Fate::Issued => {
            tried = Attempts { count: 0, next: now + Duration::from_secs(3600), ..tried };
            records.orders.remove(&id);
            records.windows.remove(&id);
            let certificate = issued(&all[index], NOW.since(now));
            let not_before = now;
            let certificate = Issued { not_before, not_after: now + DAY * 90, ..certificate };
            records.certificates.insert(id.clone(), certificate);
        }
        Fate::Refused | Fate::RateLimited => {
            tried.reason = "refused".to_owned();
            records.orders.remove(&id);
            if matches!(fate, Fate::RateLimited) {
                let pause = Pause { since: now, until: now + Duration::from_secs(3600) };
                records.pauses.insert(authority_id(&all[index].acme), pause);
            }
        }
        Fate::Unreachable => {
            tried.reason = "unreachable".to_owned();
            records.orders.get_mut(&id).unwrap().url = url;
        }
        Fate::Crash { answered } => {
            if answered {
                records.orders.get_mut(&id).unwrap().url = url;
            }
            records.windows.clear();
        }
    }
    records.attempts.insert(id, tried);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever happens: the loop comes to rest, looks again in time, never tries too often, and has a certificate in the end.
    #[test]
    fn authorities_are_not_hammered_and_certificates_come(
        fates in prop::collection::vec(fate(), 1..60),
    ) {
        let all = [wanted(&["a.test"]), wanted(&["b.test"])];
        let mut records = Records::default();
        let (mut now, mut fates) = (NOW, fates.into_iter());
        let mut tries: Vec<(Timestamp, bool)> = Vec::new();
        for _ in 0..2000 {
            let Plan { steps, wake_at } = plan(&all, &records, now);
            prop_assert!(wake_at <= now + LONGEST_SLEEP);
            let Some(step) = steps.first() else {
                prop_assert!(wake_at > now, "it would spin");
                let valid = records.certificates.values().filter(|one| one.not_after > now);
                let rests = valid.count() == all.len();
                if rests && fates.len() == 0 {
                    break;
                }
                now = if rests { now + DAY * 61 } else { wake_at };
                continue;
            };
            if matches!(step, Step::Order { .. } | Step::Resume { .. }) {
                tries.push((now, matches!(step, Step::Order { .. })));
                let fate = fates.next().unwrap_or(Fate::Issued);
                carry_out(step, &all, &mut records, now, fate);
            } else {
                carry_out(step, &all, &mut records, now, Fate::Issued);
            }
        }
        for (at, _) in &tries {
            let hour = Duration::from_secs(3600);
            let within = tries.iter().filter(|(t, _)| *t >= *at && t.since(*at) < hour);
            let (orders, resumed): (Vec<&(Timestamp, bool)>, Vec<_>) =
                within.partition(|(_, order)| *order);
            prop_assert!(orders.len() <= 4 * all.len(), "{} orders in an hour", orders.len());
            prop_assert!(resumed.len() <= 12 * all.len(), "{} more in an hour", resumed.len());
        }
        let valid = records.certificates.values().filter(|one| one.not_after > now);
        prop_assert_eq!(valid.count(), all.len());
    }
}
