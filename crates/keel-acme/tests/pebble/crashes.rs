//! A server that dies at any moment, and one whose authority has forgotten it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keel_acme::Notice;
use keel_model::AcmeChallenge;
use keel_store::{
    BoxFuture, Entry, Leadership, LeaseId, Listing, Outcome, Store, Transaction, Watch,
};
use tokio::sync::Notify;

use crate::authority::Pebble;
use crate::{PATIENCE, PREFIX, Server, clock, move_on, store, wanted};

/// A store whose owner dies with the commit of a number: it is not done, and nothing comes after it.
struct Dying {
    store: Arc<dyn Store>,
    left: AtomicUsize,
    dead: Notify,
}

impl Store for Dying {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Entry>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Listing> {
        self.store.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if self.left.load(Ordering::Relaxed) == 0 {
                self.dead.notify_one();
                std::future::pending::<()>().await;
            }
            self.left.fetch_sub(1, Ordering::Relaxed);
            self.store.commit(transaction).await
        })
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.store.watch(prefix)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, LeaseId> {
        self.store.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, ()> {
        self.store.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, ()> {
        self.store.revoke(lease)
    }

    fn campaign<'a>(
        &'a self,
        name: &'a str,
        candidate: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Leadership> {
        self.store.campaign(name, candidate, ttl)
    }
}

/// Keys of the store below the prefix, without ids.
async fn kinds(store: &dyn Store) -> Vec<String> {
    let entries = store.list(PREFIX).await.unwrap().entries;
    let kind = |entry: Entry| entry.key[PREFIX.len()..].split('/').next().unwrap().to_owned();
    entries.into_iter().map(kind).collect()
}

clock!(of_crashes);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_at_any_write_gets_its_certificate_later() {
    let pebble = Pebble::start();
    let all = vec![wanted(&pebble, AcmeChallenge::Http01, &["shop.test"])];
    let mut resumed = 0;
    for left in 0.. {
        let store = store();
        let dying = Arc::new(Dying {
            store: store.clone(),
            left: AtomicUsize::new(left),
            dead: Notify::new(),
        });
        let mut server =
            Server::start(dying.clone(), pebble.proofs, all.clone(), of_crashes::now).await;
        let survived = tokio::select! {
            notice = server.notice() => {
                assert!(matches!(notice, Notice::Issued { .. }), "{notice}");
                true
            }
            () = dying.dead.notified() => false,
        };
        drop(server);
        if survived {
            assert!(left > 5, "there are more writes than {left}");
            break;
        }
        let accounts = account(&*store).await;
        let cut_off = order_is_known(&*store).await;
        resumed += usize::from(cut_off);
        let orders = || pebble.log().matches("Added order").count();
        let before = orders();
        let mut server =
            Server::start(store.clone(), pebble.proofs, all.clone(), of_crashes::now).await;
        let quickly = tokio::time::timeout(PATIENCE, async {
            // What can't be taken up again waits for its time.
            loop {
                tokio::select! {
                    notice = server.notices.recv() => return notice.unwrap(),
                    () = tokio::time::sleep(Duration::from_millis(500)) => {
                        move_on(&of_crashes::AHEAD, Duration::from_secs(70));
                        server.wake();
                    }
                }
            }
        });
        let notice = quickly.await.unwrap();
        assert!(matches!(notice, Notice::Issued { .. }), "after {left} writes: {notice}");
        let kept = kinds(&*store).await;
        assert_eq!(kept, ["accounts", "attempts", "certificates"], "after {left} writes");
        let same = accounts.is_none() || accounts == account(&*store).await;
        assert!(same, "another account key after {left} writes");
        assert_eq!(orders() - before, usize::from(!cut_off), "orders after {left} writes");
    }
    assert!(resumed > 0, "no order was taken up again");
}

/// Whether there is an order that can be taken up again.
async fn order_is_known(store: &dyn Store) -> bool {
    let entry = store.list("acme/orders/").await.unwrap().entries.pop();
    entry.is_some_and(|entry| {
        let order: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
        order["url"].is_string()
    })
}

clock!(of_amnesia);

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_has_forgotten_us_gets_to_know_us_again() {
    let mut pebble = Pebble::start();
    let all = vec![wanted(&pebble, AcmeChallenge::Http01, &["shop.test"])];
    let store = store();
    let mut server = Server::start(store.clone(), pebble.proofs, all, of_amnesia::now).await;
    let notice = server.notice().await;
    let Notice::Issued { until, .. } = notice else { panic!("{notice}") };
    let key = account(&*store).await;
    pebble.stop();
    pebble.launch();
    move_on(&of_amnesia::AHEAD, until.since(of_amnesia::now()) * 7 / 10);
    server.wake();
    let notice = server.notice().await;
    assert!(notice.to_string().contains("accountDoesNotExist"), "{notice}");
    assert_eq!(server.proxy.certificates().len(), 1, "what is there is still shown");
    move_on(&of_amnesia::AHEAD, Duration::from_secs(70));
    server.wake();
    let notice = server.notice().await;
    assert!(matches!(notice, Notice::Issued { .. }), "{notice}");
    assert_eq!(account(&*store).await, key);
}

/// The key of the account.
async fn account(store: &dyn Store) -> Option<String> {
    let entry = store.list("acme/accounts/").await.unwrap().entries.pop()?;
    let account: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    Some(account["key"].as_str().unwrap().to_owned())
}
