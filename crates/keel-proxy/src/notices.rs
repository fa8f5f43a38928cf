//! What people are to be told of endpoints: that one is left out, or let in again. Kept until the server asks for the
//! counters.

use std::mem;
use std::sync::{Mutex, PoisonError};

use keel_model::{ActiveCheck, InstanceId, Outlier};
use keel_route::outlier::LeftOut;
use keel_route::snapshot::{ClusterId, EndpointNotice, Notices as Told, Refused};

use crate::limits::MAX_NOTICES;

/// That there is no TLS with endpoints of a cluster is said again after this time, in milliseconds.
const NO_TLS_MS: u64 = 60_000;
/// That a caller is refused is said again after this time, in milliseconds.
const REFUSED_MS: u64 = 600_000;

/// What was not asked for yet.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Each with its time.
    notices: Vec<(u64, EndpointNotice)>,
    lost: u64,
    /// What is to be told of endpoints that are left out, and when: their time is over then.
    later: Vec<(u64, EndpointNotice)>,
    /// Clusters of which was told that TLS fails, and when.
    no_tls: Vec<(ClusterId, u64)>,
    /// Who was refused.
    refused: Vec<Refused>,
    /// Of whom that was told, and when.
    told_refused: Vec<(Refused, u64)>,
}

impl Kept {
    fn add(&mut self, at_ms: u64, notice: EndpointNotice) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.push((at_ms, notice));
        } else {
            self.lost += 1;
        }
    }
}

impl Notices {
    /// Notes something. Beyond [`MAX_NOTICES`] things are only counted: whatever makes so many, the first ones tell.
    pub fn add(&self, now_ms: u64, notice: EndpointNotice) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((back_ms, back)) = time_over(now_ms, &notice) {
            if kept.later.len() < MAX_NOTICES {
                kept.later.push((back_ms, back));
            } else {
                kept.lost += 1;
            }
        }
        kept.add(now_ms, notice);
    }

    /// No TLS with an endpoint: told once in [`NO_TLS_MS`] for a cluster, however many requests meet it. Whether it was.
    pub fn no_tls(
        &self,
        now_ms: u64,
        cluster: &ClusterId,
        instance: &InstanceId,
        error: &dyn std::fmt::Display,
    ) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.no_tls.retain(|(_, told_ms)| now_ms.saturating_sub(*told_ms) < NO_TLS_MS);
        let known = kept.no_tls.iter().any(|(known, _)| known == cluster);
        if known || kept.no_tls.len() >= MAX_NOTICES {
            return false;
        }
        kept.no_tls.push((cluster.clone(), now_ms));
        let notice = EndpointNotice {
            cluster: cluster.clone(),
            instance: instance.clone(),
            is_out: false,
            reason: error.to_string(),
            for_ms: None,
            ago_ms: 0,
            no_tls: true,
        };
        kept.add(now_ms, notice);
        true
    }

    /// A caller was refused: told once in [`REFUSED_MS`], however often it tries.
    pub fn refused(&self, now_ms: u64, caller: String, cluster: &ClusterId) {
        let refused = Refused { caller, cluster: cluster.clone() };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.told_refused.retain(|(_, told_ms)| now_ms.saturating_sub(*told_ms) < REFUSED_MS);
        let known = kept.told_refused.iter().any(|(known, _)| *known == refused);
        if !known && kept.told_refused.len() < MAX_NOTICES {
            kept.told_refused.push((refused.clone(), now_ms));
            kept.refused.push(refused);
        }
    }

    /// Takes what there is. An endpoint whose time is over is told of if it `is_there`; that is looked at only here, so
    /// that it costs no request anything.
    pub fn take(&self, now_ms: u64, is_there: impl Fn(&ClusterId, &InstanceId) -> bool) -> Told {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due: Vec<_> = kept.later.extract_if(.., |(at_ms, _)| *at_ms <= now_ms).collect();
        for (at_ms, back) in due {
            if is_there(&back.cluster, &back.instance) {
                kept.add(at_ms, back);
            }
        }
        let (mut notices, lost) = (mem::take(&mut kept.notices), mem::take(&mut kept.lost));
        let refused = mem::take(&mut kept.refused);
        drop(kept);
        notices.sort_by_key(|(at_ms, _)| *at_ms);
        let aged =
            |(at_ms, notice)| EndpointNotice { ago_ms: now_ms.saturating_sub(at_ms), ..notice };
        let endpoints = notices.into_iter().map(aged).collect();
        Told { endpoints, lost, refused, ..Told::default() }
    }
}

/// When the time of an endpoint is over that is left out from now on, and what is told of it then.
fn time_over(now_ms: u64, notice: &EndpointNotice) -> Option<(u64, EndpointNotice)> {
    let for_ms = notice.for_ms.filter(|_| notice.is_out)?;
    let reason = "its time is over, and it is tried again".to_owned();
    let back = EndpointNotice { is_out: false, reason, for_ms: None, ..notice.clone() };
    Some((now_ms.saturating_add(for_ms), back))
}

/// An endpoint is left out for its answers.
pub fn left_out(
    cluster: &ClusterId,
    instance: &InstanceId,
    out: LeftOut,
    policy: &Outlier,
) -> EndpointNotice {
    let reason = match (out.is_again, policy.consecutive_errors) {
        (true, _) => "it was let in again, and failed again".to_owned(),
        (false, 1) => "a request failed there".to_owned(),
        (false, failures) => format!("{failures} requests in a row failed there"),
    };
    EndpointNotice {
        cluster: cluster.clone(),
        instance: instance.clone(),
        is_out: true,
        reason,
        for_ms: Some(out.for_ms),
        ago_ms: 0,
        no_tls: false,
    }
}

/// An endpoint is left out for what the proxy's checks have shown, the last of them this; or let in again.
pub fn checked(
    cluster: &ClusterId,
    instance: &InstanceId,
    check: &ActiveCheck,
    last: &Result<(), String>,
) -> EndpointNotice {
    let path = &check.path;
    let reason = match (last, check.failures, check.successes) {
        (Err(why), ..=1, _) => format!("a check of {path} failed ({why})"),
        (Err(why), failures, _) => format!("{failures} checks of {path} in a row failed ({why})"),
        (Ok(()), _, ..=1) => format!("a check of {path} succeeded"),
        (Ok(()), _, successes) => format!("{successes} checks of {path} in a row succeeded"),
    };
    EndpointNotice {
        cluster: cluster.clone(),
        instance: instance.clone(),
        is_out: last.is_err(),
        reason,
        for_ms: None,
        ago_ms: 0,
        no_tls: false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn instance() -> InstanceId {
        InstanceId::new("shop-cart-1").unwrap()
    }

    #[test]
    fn each_is_taken_once_and_the_rest_is_counted() {
        let notices = Notices::default();
        let check = ActiveCheck {
            path: "/".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            failures: 1,
            successes: 1,
        };
        let notice = checked(&"shop/cart:80".to_owned(), &instance(), &check, &Ok(()));
        for _ in 0..MAX_NOTICES + 7 {
            notices.add(100, notice.clone());
        }
        let told = notices.take(350, |_, _| true);
        assert_eq!((told.endpoints.len(), told.lost), (MAX_NOTICES, 7));
        assert!(told.endpoints.iter().all(|notice| notice.ago_ms == 250));
        assert_eq!(notices.take(400, |_, _| true), Told::default());
    }

    #[test]
    fn that_the_time_of_one_is_over_is_told_once_and_in_its_place() {
        let notices = Notices::default();
        let out = |now_ms, for_ms| {
            let out = LeftOut { for_ms, is_again: false };
            let cluster = "shop/cart:80".to_owned();
            notices.add(now_ms, left_out(&cluster, &instance(), out, &Outlier::default()));
        };
        let take = |now_ms, is_there| {
            let told = notices.take(now_ms, |_, id| is_there && *id == instance());
            assert_eq!(told.lost, 0);
            let told = told.endpoints.into_iter();
            told.map(|notice| (notice.is_out, notice.ago_ms)).collect::<Vec<_>>()
        };
        out(100, 50);
        assert_eq!(take(149, true), [(true, 49)], "its time is not over");
        out(155, 50);
        assert_eq!(take(160, true), [(false, 10), (true, 5)], "again, before anybody asked");
        assert_eq!(take(500, false), [], "it is gone meanwhile");
        assert_eq!(take(501, true), []);
        // Nobody asks for long.
        for _ in 0..MAX_NOTICES + 2 {
            out(600, 50);
        }
        let told = notices.take(700, |_, _| true);
        let lost = u64::try_from(MAX_NOTICES).unwrap() + 4;
        assert_eq!((told.endpoints.len(), told.lost), (MAX_NOTICES, lost));
    }

    #[test]
    fn that_tls_fails_is_told_once_in_a_while() {
        let notices = Notices::default();
        let failed = |now_ms, cluster: &str| {
            notices.no_tls(now_ms, &cluster.to_owned(), &instance(), &"an unknown authority")
        };
        assert!(failed(0, "shop/cart:80"));
        assert!(!failed(1, "shop/cart:80"));
        assert!(failed(1, "shop/web:80"));
        assert!(!failed(NO_TLS_MS - 1, "shop/cart:80"));
        assert!(failed(NO_TLS_MS, "shop/cart:80"));
        let told = notices.take(NO_TLS_MS, |_, _| true).endpoints;
        assert_eq!(told.len(), 3);
        assert!(told.iter().all(|notice| notice.no_tls && notice.reason == "an unknown authority"));
    }

    #[test]
    fn who_is_refused_is_told_once_in_a_while() {
        let notices = Notices::default();
        let refused = |now_ms, caller: &str| {
            notices.refused(now_ms, caller.to_owned(), &"shop/db:5432".to_owned());
        };
        for _ in 0..1_000 {
            refused(0, "shop/web");
            refused(1, "shop/mail");
        }
        let told = notices.take(2, |_, _| true).refused;
        let callers: Vec<_> = told.iter().map(|refused| refused.caller.as_str()).collect();
        assert_eq!(callers, ["shop/web", "shop/mail"]);
        refused(REFUSED_MS - 1, "shop/web");
        assert!(notices.take(REFUSED_MS, |_, _| true).is_empty());
        refused(REFUSED_MS, "shop/web");
        assert_eq!(notices.take(REFUSED_MS, |_, _| true).refused.len(), 1);
    }

    #[test]
    fn reasons() {
        let out = |is_again, consecutive_errors| {
            let policy = Outlier { consecutive_errors, ..Outlier::default() };
            let out = LeftOut { for_ms: 10_000, is_again };
            left_out(&"shop/cart:80".to_owned(), &instance(), out, &policy).reason
        };
        assert_eq!(out(false, 5), "5 requests in a row failed there");
        assert_eq!(out(false, 1), "a request failed there");
        assert_eq!(out(true, 5), "it was let in again, and failed again");
        let check = |times, last: &Result<(), String>| {
            let check = ActiveCheck {
                path: "/health".to_owned(),
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                failures: times,
                successes: times,
            };
            checked(&"shop/cart:80".to_owned(), &instance(), &check, last).reason
        };
        let failed = Err("it answered 503".to_owned());
        assert_eq!(check(3, &failed), "3 checks of /health in a row failed (it answered 503)");
        assert_eq!(check(1, &failed), "a check of /health failed (it answered 503)");
        assert_eq!(check(2, &Ok(())), "2 checks of /health in a row succeeded");
        assert_eq!(check(1, &Ok(())), "a check of /health succeeded");
    }
}
