//! Certificates come, are renewed, and when they don't come it is said why.

use std::time::Duration;

use keel_acme::{Attempts, Notice};
use keel_model::AcmeChallenge;
use keel_route::snapshot::Certificate;
use keel_store::Store;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::authority::Pebble;
use crate::proxy::Mood;
use crate::{Server, clock, move_on, store, wanted};

/// The names in a certificate and its serial number.
fn facts(certificate: &Certificate) -> (Vec<String>, Vec<u8>) {
    let der = CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap();
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let names = names.value.general_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => panic!("{other:?}"),
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    (names, parsed.raw_serial().to_vec())
}

async fn attempts(store: &dyn Store, id: &str) -> Attempts {
    let entry = store.get(&format!("acme/attempts/{id}")).await.unwrap();
    serde_json::from_slice(&entry.unwrap().value).unwrap()
}

clock!(of_proofs);

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_issued_with_either_proof_and_outlive_the_server() {
    let mut pebble = Pebble::start();
    let store = store();
    let all = vec![
        wanted(&pebble, AcmeChallenge::Http01, &["shop.test", "www.shop.test"]),
        wanted(&pebble, AcmeChallenge::TlsAlpn01, &["api.shop.test", "pay.shop.test"]),
    ];
    let mut server = Server::start(store.clone(), pebble.proofs, all.clone(), of_proofs::now).await;
    for _ in 0..2 {
        let notice = server.notice().await;
        let Notice::Issued { until, .. } = &notice else { panic!("{notice}") };
        assert!(until.since(of_proofs::now()) > Duration::from_secs(24 * 3600));
        let text = notice.to_string();
        assert!(text.starts_with("certificate for ") && text.contains("127.0.0.1"), "{text}");
    }
    let mut published = server.proxy.published.clone();
    let both = published.wait_for(|p| p.certificates.len() == 2 && p.challenges.is_empty());
    both.await.unwrap();
    let mut names: Vec<_> = server.proxy.certificates().iter().map(|c| facts(c).0).collect();
    names.sort();
    let expected = [all[1].names.clone(), all[0].names.clone()];
    assert_eq!(names, expected);
    let log = pebble.log();
    assert_eq!(log.matches("There are now 1 accounts").count(), 1, "one account for both");

    let before = server.proxy.certificates();
    drop(server);
    pebble.stop();
    let server = Server::start(store, pebble.proofs, all, of_proofs::now).await;
    assert_eq!(server.proxy.certificates(), before, "from the first moment");
}

clock!(of_renewal);

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_the_old_one_is_shown() {
    let pebble = Pebble::start();
    let all = vec![wanted(&pebble, AcmeChallenge::Http01, &["shop.test"])];
    let mut server = Server::start(store(), pebble.proofs, all, of_renewal::now).await;
    let first = server.notice().await;
    let Notice::Issued { until, .. } = first else { panic!("{first}") };
    let before = server.proxy.certificates();
    let lifetime = until.since(of_renewal::now());
    move_on(&of_renewal::AHEAD, lifetime / 2);
    server.wake();
    move_on(&of_renewal::AHEAD, lifetime / 5);
    server.wake();
    let mut published = server.proxy.published.clone();
    let mut shown = Vec::new();
    loop {
        let now = published.borrow_and_update().clone();
        assert_eq!(now.certificates.len(), 1, "never without");
        shown.push(now.certificates);
        if shown.last() != Some(&before) {
            break;
        }
        tokio::time::timeout(crate::PATIENCE, published.changed()).await.unwrap().unwrap();
    }
    let renewed = shown.pop().unwrap();
    assert_ne!(facts(&renewed[0]).1, facts(&before[0]).1);
    assert!(matches!(server.notice().await, Notice::Issued { .. }));
    assert!(server.notices.try_recv().is_err(), "at half of its time it was left alone");
}

clock!(of_failure);

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_fails_is_told_and_tried_again_later() {
    let pebble = Pebble::start();
    let store = store();
    let one = wanted(&pebble, AcmeChallenge::Http01, &["shop.test"]);
    let mut server =
        Server::start(store.clone(), pebble.proofs, vec![one.clone()], of_failure::now).await;
    server.proxy.mood.send_replace(Mood::Wrong);
    let notice = server.notice().await;
    let Notice::Failed { reason, again, .. } = &notice else { panic!("{notice}") };
    assert!(reason.starts_with("shop.test: "), "{reason}");
    assert!(reason.contains("something else"), "{reason}");
    let minute = Duration::from_secs(60);
    let pause = again.since(of_failure::now());
    assert!(pause > minute * 9 / 10 && pause < minute * 12 / 10, "{pause:?}");
    assert!(notice.to_string().contains("; the next try is at 20"), "{notice}");
    let tried = attempts(&*store, &one.id()).await;
    assert_eq!((tried.count, tried.reason, tried.next), (1, reason.clone(), *again));

    move_on(&of_failure::AHEAD, minute * 2);
    server.wake();
    let notice = server.notice().await;
    let Notice::Failed { again, .. } = &notice else { panic!("{notice}") };
    assert!(again.since(of_failure::now()) > minute * 3);
    server.proxy.mood.send_replace(Mood::Honest);
    move_on(&of_failure::AHEAD, minute * 5);
    server.wake();
    let notice = server.notice().await;
    assert!(matches!(notice, Notice::Issued { .. }), "{notice}");
    assert_eq!(attempts(&*store, &one.id()).await.count, 0);
}

clock!(of_absence);

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_not_there_is_told() {
    let mut pebble = Pebble::start();
    pebble.stop();
    let all = vec![wanted(&pebble, AcmeChallenge::Http01, &["shop.test"])];
    let mut server = Server::start(store(), pebble.proofs, all, of_absence::now).await;
    let notice = server.notice().await.to_string();
    assert!(notice.starts_with("no certificate for shop.test from 127.0.0.1:"), "{notice}");
    assert!(notice.to_lowercase().contains("connection refused"), "{notice}");
}

clock!(of_strangers);

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_nobody_vouches_for_is_not_asked() {
    let pebble = Pebble::start();
    let mut one = wanted(&pebble, AcmeChallenge::Http01, &["shop.test"]);
    one.acme.ca = None;
    let mut server = Server::start(store(), pebble.proofs, vec![one], of_strangers::now).await;
    let notice = server.notice().await.to_string();
    assert!(notice.contains("UnknownIssuer"), "{notice}");
}
