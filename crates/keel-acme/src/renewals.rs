//! The loop that does what [`plan`](crate::plan()) says, one step at a time.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::Order;
use keel_model::Timestamp;
use keel_route::snapshot::{Certificate, Challenges};
use keel_store::{Condition, Store, Transaction};
use tokio::sync::watch;

use crate::Wanted;
use crate::account;
use crate::client::RetryAfter;
use crate::notice::Notice;
use crate::order::{self, Failure};
use crate::plan::{Plan, RENEWAL_CHECK, Step, backoff, plan};
use crate::records::{Attempts, CertificateId, Issued, Pause, PendingOrder, Records, authority_id};
use crate::showcase::{Published, Showcase};
use crate::vault::{Vault, encode};

/// A whole try, with everything that is waited for.
const TRY: Duration = Duration::from_secs(5 * 60);
/// No other order for the same names this soon after one that succeeded, whatever the authority says of its end.
const AFTER_SUCCESS: Duration = Duration::from_secs(3600);
/// Pause when the store does not answer.
const STORE_PAUSE: Duration = Duration::from_secs(10);
/// A question about renewal, with its answer.
const ASK: Duration = Duration::from_secs(30);
/// Bounds of how often an authority is asked when it wants a certificate to be renewed.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));

/// Orders certificates and keeps them fresh.
pub struct Renewals {
    vault: Vault,
    records: Records,
    wanted: watch::Receiver<Vec<Wanted>>,
    showcase: Showcase,
    tell: Arc<dyn Fn(&Notice) + Send + Sync>,
    now: fn() -> Timestamp,
}

impl Renewals {
    /// Renewals that keep their records below `prefix` of `store`, and write only while `fence` holds (leadership).
    /// `acknowledged` is the last revision of [`Published`] that every proxy shows. What is kept and wanted already is
    /// published when this returns.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn open(
        store: Arc<dyn Store>,
        prefix: impl Into<String>,
        fence: Option<Condition>,
        wanted: watch::Receiver<Vec<Wanted>>,
        acknowledged: watch::Receiver<u64>,
        now: fn() -> Timestamp,
    ) -> Result<Self, keel_store::Error> {
        let vault = Vault { store, prefix: prefix.into(), fence };
        let records = vault.load().await?;
        let published = watch::channel(Published::default()).0;
        let showcase = Showcase { published, acknowledged };
        let renewals = Self { vault, records, wanted, showcase, tell: Arc::new(|_| {}), now };
        renewals.publish(&renewals.wanted.borrow(), &renewals.records);
        Ok(renewals)
    }

    /// Tells what happens.
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.tell = Arc::new(tell);
        self
    }

    /// What proxies are to show.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Published> {
        self.showcase.published.subscribe()
    }

    /// Works until nobody wants certificates any more (the other end of `wanted` is gone).
    pub async fn run(mut self) {
        let mut records = std::mem::take(&mut self.records);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.publish(&wanted, &records);
            let Plan { steps, wake_at } = plan(&wanted, &records, (self.now)());
            if let Some(step) = steps.into_iter().next() {
                match self.carry_out(step, &wanted, &mut records).await {
                    Ok(None) => {}
                    // Told when it is true for others too.
                    Ok(Some(notice)) => {
                        self.publish(&wanted, &records);
                        (self.tell)(&notice);
                    }
                    Err(failure) => {
                        tracing::warn!(%failure, "certificates can't be kept");
                        tokio::time::sleep(STORE_PAUSE).await;
                    }
                }
                continue;
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wake_at.since((self.now)())) => {}
            }
        }
    }

    /// Publishes what is valid and for a name that is wanted. A certificate for some of the names is better than none
    /// until the one for all of them is there.
    fn publish(&self, wanted: &[Wanted], records: &Records) {
        let now = (self.now)();
        let is_wanted = |issued: &Issued| {
            let mut names = wanted.iter().flat_map(|one| &one.names);
            issued.not_after > now && names.any(|name| issued.names.contains(name))
        };
        let issued = records.certificates.values().filter(|issued| is_wanted(issued));
        let certificates: Vec<Certificate> = issued
            .map(|issued| Certificate {
                names: issued.names.clone(),
                chain: issued.chain.clone(),
                key: issued.key.clone(),
            })
            .collect();
        self.showcase.change(|published| published.certificates = certificates);
    }

    /// Fails only if the store does.
    async fn carry_out(
        &self,
        step: Step,
        wanted: &[Wanted],
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        match step {
            Step::Order { index, .. } => return self.attempt(&wanted[index], records).await,
            Step::Resume { index } => return self.resume(&wanted[index], records).await,
            Step::Abandon(id) => {
                self.delete(&format!("orders/{id}")).await?;
                records.orders.remove(&id);
            }
            Step::Forget(id) => {
                self.delete(&format!("certificates/{id}")).await?;
                records.certificates.remove(&id);
            }
            Step::Ask { index, id } => self.ask(&wanted[index], id, records).await,
        }
        Ok(None)
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        self.vault.commit(Transaction::new().delete(self.vault.key(key))).await
    }

    /// Writes down that there is a try, and when the next one may be should we not live to see what comes of this one.
    async fn note_try(
        &self,
        id: &CertificateId,
        now: Timestamp,
        records: &mut Records,
    ) -> Result<(), Failure> {
        let count = records.attempts.get(id).map_or(0, |attempts| attempts.count) + 1;
        let next = now + backoff(id, count);
        let attempts = Attempts { count, last: now, next, reason: String::new() };
        self.vault.put(&format!("attempts/{id}"), &attempts).await?;
        records.attempts.insert(id.clone(), attempts);
        Ok(())
    }

    async fn attempt(
        &self,
        wanted: &Wanted,
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        let (id, now) = (wanted.id(), (self.now)());
        self.note_try(&id, now, records).await?;
        let replaces = records.certificates.get(&id).cloned();
        let retry_after = RetryAfter::default();
        let trying = async {
            let account = account::open(&self.vault, &wanted.acme, retry_after.clone()).await?;
            let (pending, mut order) =
                order::begin(&self.vault, &account, wanted, replaces.as_ref(), now).await?;
            self.complete(&mut order, wanted, &pending).await
        };
        self.finish(wanted, trying, &retry_after, records).await
    }

    async fn resume(
        &self,
        wanted: &Wanted,
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        let id = wanted.id();
        let Some(mut pending) = records.orders.get(&id).cloned() else { return Ok(None) };
        self.note_try(&id, (self.now)(), records).await?;
        pending.resumed += 1;
        self.vault.put(&format!("orders/{id}"), &pending).await?;
        records.orders.insert(id.clone(), pending.clone());
        let retry_after = RetryAfter::default();
        let trying = async {
            let account = account::open(&self.vault, &wanted.acme, retry_after.clone()).await?;
            let mut order = order::resume(&account, &pending).await?;
            self.complete(&mut order, wanted, &pending).await
        };
        self.finish(wanted, trying, &retry_after, records).await
    }

    async fn complete(
        &self,
        order: &mut Order,
        wanted: &Wanted,
        pending: &PendingOrder,
    ) -> Result<Issued, Failure> {
        order::complete(order, wanted, pending, &self.showcase).await
    }

    /// Waits for what is tried, and writes down what came of it.
    async fn finish(
        &self,
        wanted: &Wanted,
        trying: impl Future<Output = Result<Issued, Failure>>,
        retry_after: &RetryAfter,
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        let tried = tokio::time::timeout(TRY, trying).await;
        let tried = tried.unwrap_or_else(|_| Err(Failure::new("it took too long")));
        self.showcase.show(Challenges::default());
        match tried {
            Ok(issued) => self.keep(wanted, issued, records).await,
            Err(failure) => {
                let failure = failure.with_retry_after(retry_after.take());
                self.note_failure(wanted, &failure, records).await
            }
        }
    }

    async fn keep(
        &self,
        wanted: &Wanted,
        issued: Issued,
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        let (id, now) = (wanted.id(), (self.now)());
        let next = now + AFTER_SUCCESS;
        let attempts = Attempts { count: 0, last: now, next, reason: String::new() };
        let transaction = Transaction::new()
            .put(self.vault.key(&format!("certificates/{id}")), encode(&issued))
            .put(self.vault.key(&format!("attempts/{id}")), encode(&attempts))
            .delete(self.vault.key(&format!("orders/{id}")));
        self.vault.commit(transaction).await?;
        let notice = Notice::Issued {
            names: issued.names.clone(),
            directory: issued.directory.clone(),
            until: issued.not_after,
        };
        records.attempts.insert(id.clone(), attempts);
        records.orders.remove(&id);
        records.windows.remove(&id);
        records.certificates.insert(id, issued);
        Ok(Some(notice))
    }

    async fn note_failure(
        &self,
        wanted: &Wanted,
        failure: &Failure,
        records: &mut Records,
    ) -> Result<Option<Notice>, Failure> {
        let (id, now) = (wanted.id(), (self.now)());
        let Some(attempts) = records.attempts.get_mut(&id) else { return Ok(None) };
        attempts.next = attempts.next.max(now + backoff(&id, attempts.count));
        attempts.reason.clone_from(&failure.reason);
        let next = attempts.next;
        let mut transaction =
            Transaction::new().put(self.vault.key(&format!("attempts/{id}")), encode(attempts));
        if let Some(time) = failure.pause {
            let authority = authority_id(&wanted.acme);
            let pause = Pause { since: now, until: now + time };
            let key = self.vault.key(&format!("pauses/{authority}"));
            transaction = transaction.put(key, encode(&pause));
            records.pauses.insert(authority, pause);
        }
        if failure.order_lost {
            transaction = transaction.delete(self.vault.key(&format!("orders/{id}")));
            records.orders.remove(&id);
        } else if let Some(order) = self.vault.get(&format!("orders/{id}")).await? {
            records.put(&format!("orders/{id}"), &order);
        }
        let pause = records.pauses.get(&authority_id(&wanted.acme));
        let again = pause.map_or(next, |pause| pause.until.max(next));
        self.vault.commit(transaction).await?;
        if failure.account_lost {
            account::reopen(&self.vault, &wanted.acme).await?;
        }
        Ok(Some(Notice::Failed {
            names: wanted.names.clone(),
            directory: wanted.acme.directory.clone(),
            reason: failure.reason.clone(),
            again,
        }))
    }

    /// Asks when the certificate is to be renewed. That an authority does not say is no failure: there is a rule without it.
    async fn ask(&self, wanted: &Wanted, id: CertificateId, records: &mut Records) {
        let now = (self.now)();
        let Some(issued) = records.certificates.get(&id) else { return };
        let asking = async {
            let account = account::open(&self.vault, &wanted.acme, RetryAfter::default()).await?;
            order::ask(&account, issued).await
        };
        let asked = tokio::time::timeout(ASK, asking).await;
        let (window, again) = match asked {
            Ok(Ok((window, again))) => (Some(window), again.clamp(ASK_AGAIN.0, ASK_AGAIN.1)),
            Ok(Err(failure)) => {
                tracing::debug!(%failure, "the authority does not say when to renew");
                (None, RENEWAL_CHECK)
            }
            Err(_) => (None, RENEWAL_CHECK),
        };
        records.windows.insert(id, (window, now + again));
    }
}
