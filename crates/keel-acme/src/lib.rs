//! Certificates from authorities that speak ACME (RFC 8555): ordered, proved, kept and renewed.
//!
//! [`plan()`] decides what is due, from what is wanted, what is kept and the time; [`Renewals`] does it, one order at a
//! time. What has to be shown to the authority, and what was issued, is [`Published`]; whoever passes it on to
//! the proxies says when they have it.
//!
//! Invariants:
//! - Every try is written down before the authority hears of it, with the time before which there is no other. So neither
//!   a crash loop nor a broken clock hammers an authority.
//! - A private key is in the store before a request for its certificate is sent. An order that a crash has cut off is
//!   taken up again, a few times, and then forgotten.
//! - A certificate is shown until it expires or its successor is there, whatever goes wrong.

mod account;
mod client;
mod examine;
mod notice;
mod order;
mod plan;
mod proof;
mod records;
mod renewals;
mod share;
mod showcase;
mod vault;

pub use examine::{Examined, examine, flaw};
pub use notice::Notice;
pub use plan::{Due, Plan, RENEWAL_CHECK, Step, backoff, is_covered, plan, renew_at};
pub use records::{Attempts, CertificateId, Issued, Pause, PendingOrder, Records, Window};
pub use renewals::Renewals;
pub use showcase::Published;

use keel_model::{Acme, AcmeChallenge};

/// A certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Names that it must be for, sorted, in lower case, without wildcards; never empty.
    pub names: Vec<String>,
    /// Who issues it.
    pub acme: Acme,
}

impl Wanted {
    /// What tells it from other certificates.
    #[must_use]
    pub fn id(&self) -> CertificateId {
        records::certificate_id(&self.acme, &self.names)
    }

    fn challenge(&self) -> instant_acme::ChallengeType {
        match self.acme.challenge {
            AcmeChallenge::Http01 => instant_acme::ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => instant_acme::ChallengeType::TlsAlpn01,
        }
    }
}
