//! What is due: which certificate is ordered, renewed, taken up again or forgotten, and when to look next. Pure.

use std::time::Duration;

use keel_model::Timestamp;

use crate::Wanted;
use crate::records::{
    Attempts, CertificateId, Issued, PendingOrder, Records, Window, authority_id,
};
use crate::share::share;

/// Pause after the first failed try. Four times as long after each other one: authorities commonly allow five failed
/// proofs of a name in an hour.
const FIRST_BACKOFF: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST_BACKOFF: Duration = Duration::from_secs(12 * 3600);
/// An order older than this is not taken up again; authorities forget them after a week or so.
const ORDER_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often an order is taken up again.
const MAX_RESUMED: u32 = 3;
/// How often authorities are asked when they want a certificate to be renewed, unless they say otherwise (RFC 9773, 4.3.2).
pub const RENEWAL_CHECK: Duration = Duration::from_secs(6 * 3600);
/// Longest sleep: clocks jump, and machines sleep too.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why a certificate is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// There is none that is valid.
    Missing,
    /// The one that is there ends.
    Renewal,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new order.
    Order {
        /// Which of the wanted ones.
        index: usize,
        /// Why.
        due: Due,
    },
    /// An order that was cut off.
    Resume {
        /// Which of the wanted ones.
        index: usize,
    },
    /// An order that leads nowhere.
    Abandon(CertificateId),
    /// A certificate that is neither wanted nor valid.
    Forget(CertificateId),
    /// Ask the authority when it wants this one to be renewed.
    Ask {
        /// Which of the wanted ones.
        index: usize,
        /// The certificate that is there.
        id: CertificateId,
    },
}

/// What to do now, in this order, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Most urgent first.
    pub steps: Vec<Step>,
    /// When something becomes due by itself.
    pub wake_at: Timestamp,
}

/// What is due at `now`.
#[must_use]
pub fn plan(wanted: &[Wanted], records: &Records, now: Timestamp) -> Plan {
    let mut steps = housekeeping(wanted, records, now);
    let mut wake_at = now + LONGEST_SLEEP;
    let mut orders = Vec::new();
    for (index, one) in wanted.iter().enumerate() {
        let id = one.id();
        let attempts = records.attempts.get(&id);
        let pause = records.pauses.get(&authority_id(&one.acme));
        let pause = pause.filter(|pause| pause.since <= now);
        let paused_until = pause.map_or(Timestamp(0), |pause| pause.until);
        if let Some(order) = records.orders.get(&id).filter(|order| may_resume(order, now)) {
            // Without a reason it has not failed: we have.
            let failed = attempts.filter(|attempts| !attempts.reason.is_empty());
            let at = next_try(failed, now).max(paused_until);
            if at <= now {
                orders.push(((Due::Missing, 0, order.since), Step::Resume { index }));
            } else {
                wake_at = wake_at.min(at);
            }
            continue;
        }
        let covering = covering(one, records);
        let (due, at) = match covering {
            None => (Due::Missing, now),
            Some((_, issued)) if issued.not_after <= now => (Due::Missing, now),
            Some((id, issued)) => (Due::Renewal, renew_at(id, issued, window(records, id))),
        };
        let at = at.max(next_try(attempts, now)).max(paused_until);
        if at <= now {
            let count = attempts.map_or(0, |attempts| attempts.count);
            let until = covering.map_or(Timestamp(0), |(_, issued)| issued.not_after);
            orders.push(((due, count, until), Step::Order { index, due }));
        } else {
            wake_at = wake_at.min(at);
        }
        if let Some((id, _)) = covering {
            let ask_at = records.windows.get(id).map_or(now, |(_, again)| *again);
            if ask_at <= now {
                steps.push(Step::Ask { index, id: id.clone() });
            } else {
                wake_at = wake_at.min(ask_at);
            }
        }
    }
    // What has no certificate first, then what has failed least: one that fails must not hold up the others.
    orders.sort_by_key(|(urgency, _)| *urgency);
    steps.splice(0..0, orders.into_iter().map(|(_, step)| step));
    Plan { steps, wake_at }
}

fn housekeeping(wanted: &[Wanted], records: &Records, now: Timestamp) -> Vec<Step> {
    let is_wanted = |id: &CertificateId| wanted.iter().any(|one| one.id() == *id);
    let orders = records.orders.iter();
    let orders = orders.filter(|(id, order)| !is_wanted(id) || !may_resume(order, now));
    let orders = orders.map(|(id, _)| Step::Abandon(id.clone()));
    let expired = records.certificates.iter();
    let expired = expired.filter(|(id, issued)| issued.not_after <= now && !is_wanted(id));
    orders.chain(expired.map(|(id, _)| Step::Forget(id.clone()))).collect()
}

fn may_resume(order: &PendingOrder, now: Timestamp) -> bool {
    order.url.is_some() && order.resumed < MAX_RESUMED && now.since(order.since) < ORDER_LIFETIME
}

/// The certificate that lasts longest among those that are for all the names of `one`.
fn covering<'a>(one: &Wanted, records: &'a Records) -> Option<(&'a CertificateId, &'a Issued)> {
    let of_them = records.certificates.iter().filter(|(_, issued)| is_covered(one, issued));
    of_them.max_by_key(|(_, issued)| issued.not_after)
}

/// Whether `issued` does for what is wanted.
#[must_use]
pub fn is_covered(one: &Wanted, issued: &Issued) -> bool {
    issued.directory == one.acme.directory
        && one.names.iter().all(|name| issued.names.contains(name))
}

fn window(records: &Records, id: &CertificateId) -> Option<Window> {
    records.windows.get(id).and_then(|(window, _)| *window)
}

/// When a certificate is renewed: at a moment of the window that its authority asks for, else when two thirds of its time are
/// over, up to a twentieth of its time sooner so that certificates of one day do not stay together.
#[must_use]
pub fn renew_at(id: &str, issued: &Issued, window: Option<Window>) -> Timestamp {
    if let Some(window) = window.filter(|window| window.start < window.end) {
        let length = window.end.0 - window.start.0;
        return Timestamp(window.start.0 + share(length, id)).min(issued.not_after);
    }
    let lifetime = issued.not_after.0.saturating_sub(issued.not_before.0);
    Timestamp(issued.not_before.0 + lifetime / 3 * 2 - share(lifetime / 20, id))
}

/// How long to wait after `count` tries that failed: 1 min, 4 min, 16 min, … 12 h, up to a tenth longer.
#[must_use]
pub fn backoff(id: &str, count: u32) -> Duration {
    let pause = FIRST_BACKOFF.saturating_mul(4_u32.saturating_pow(count.saturating_sub(1)));
    let pause = pause.min(LONGEST_BACKOFF);
    let tenth = u64::try_from(pause.as_millis() / 10).unwrap_or(u64::MAX);
    pause + Duration::from_millis(share(tenth, &format!("{id}{count}")))
}

fn next_try(attempts: Option<&Attempts>, now: Timestamp) -> Timestamp {
    match attempts {
        // A clock that was set back says nothing about how long ago the last one was; one try will tell.
        Some(attempts) if attempts.last <= now => attempts.next,
        _ => Timestamp(0),
    }
}

#[cfg(test)]
mod tests;
