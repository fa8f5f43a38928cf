//! What is kept in the store, and under which keys (below a prefix that the server chooses).
//!
//! ```text
//! accounts/<authority>       StoredAccount
//! certificates/<id>          Issued
//! orders/<id>                PendingOrder
//! attempts/<id>              Attempts
//! pauses/<authority>         Pause
//! ```
//!
//! Private keys are in here: the store's file is for its owner only.

use std::collections::BTreeMap;

use keel_model::{Acme, Timestamp};
use serde::{Deserialize, Serialize};

use crate::share::digest;

/// What tells certificates apart: authority and names.
pub type CertificateId = String;
/// What tells authorities apart: directory and account.
pub type AuthorityId = String;

/// A certificate that was issued.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// For whom, sorted.
    pub names: Vec<String>,
    /// The directory of who issued it.
    pub directory: String,
    /// PEM, leaf first.
    pub chain: String,
    /// PEM.
    pub key: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Issued {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// An order that has begun.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    /// For whom.
    pub names: Vec<String>,
    /// PEM: the private key of the certificate to come.
    pub key: String,
    /// Where the authority keeps it; absent until it has answered.
    pub url: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// How often it was taken up again.
    pub resumed: u32,
}

impl std::fmt::Debug for PendingOrder {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingOrder")
            .field("names", &self.names)
            .field("url", &self.url)
            .field("resumed", &self.resumed)
            .finish_non_exhaustive()
    }
}

/// Tries since the last success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// How many.
    pub count: u32,
    /// When the last one began.
    pub last: Timestamp,
    /// There is no other before.
    pub next: Timestamp,
    /// Why the last one failed; empty while it runs.
    pub reason: String,
}

/// An authority that wants to be left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// When an authority wants a certificate to be renewed (RFC 9773).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From when.
    pub start: Timestamp,
    /// Until when.
    pub end: Timestamp,
}

/// Everything that is kept, and what authorities have said lately.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Certificates.
    pub certificates: BTreeMap<CertificateId, Issued>,
    /// Orders.
    pub orders: BTreeMap<CertificateId, PendingOrder>,
    /// Tries.
    pub attempts: BTreeMap<CertificateId, Attempts>,
    /// Authorities that are left alone.
    pub pauses: BTreeMap<AuthorityId, Pause>,
    /// When authorities want certificates to be renewed (not kept over restarts), and when they are asked again.
    pub windows: BTreeMap<CertificateId, (Option<Window>, Timestamp)>,
}

/// The authority and account of `acme`.
pub fn authority_id(acme: &Acme) -> AuthorityId {
    digest(&format!("{}\n{}", acme.directory, acme.email.as_deref().unwrap_or_default()))
}

/// The certificate from `acme` for `names`.
pub fn certificate_id(acme: &Acme, names: &[String]) -> CertificateId {
    digest(&format!("{}\n{}", acme.directory, names.join("\n")))
}

/// A record that is no longer understood is worth a line in the log and nothing more: what it was about starts anew.
fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(
            |error| tracing::warn!(key, %error, "a record of certificates is not understood"),
        )
        .ok()
}

impl Records {
    /// Takes in one record, by its key below the prefix.
    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        let Some((kind, id)) = key.split_once('/') else { return };
        let id = id.to_owned();
        match kind {
            "certificates" => insert(&mut self.certificates, id, decode(key, value)),
            "orders" => insert(&mut self.orders, id, decode(key, value)),
            "attempts" => insert(&mut self.attempts, id, decode(key, value)),
            "pauses" => insert(&mut self.pauses, id, decode(key, value)),
            _ => {}
        }
    }
}

fn insert<T>(records: &mut BTreeMap<String, T>, id: String, record: Option<T>) {
    if let Some(record) = record {
        records.insert(id, record);
    }
}
