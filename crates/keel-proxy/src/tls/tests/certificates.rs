//! Which certificate is shown, and what becomes of those that are broken.

use std::sync::Arc;

use keel_model::UpstreamTls;
use keel_route::snapshot::{Certificate, Challenges, ListenerTls};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::{Certificates, Listeners, Upstreams};
use super::authority::Authority;
use super::{handshake, local, pair};

/// Takes any certificate.
fn client() -> Arc<ClientConfig> {
    let tls = UpstreamTls { insecure: true, ..UpstreamTls::default() };
    Upstreams::default().config(&tls, &[]).unwrap()
}

fn leaf(certificate: &Certificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap()
}

/// The certificate that is shown to a client that asks for `name`.
async fn shown(listeners: &Listeners, name: &str) -> CertificateDer<'static> {
    let config = listeners.config(&ListenerTls::default()).unwrap();
    let server = config.for_hello(&super::ClientHello::default());
    let (client, _) = handshake(pair().await, server, client(), name).await;
    client.unwrap().peer_certificates().unwrap()[0].clone()
}

#[test]
fn the_best_name_wins_and_none_gets_one_that_we_made() {
    local(async {
        let authority = Authority::new("root");
        let exact = authority.issue(&["shop.test", "www.shop.test"]);
        let wildcard = authority.issue(&["*.shop.test"]);
        let given =
            Certificate { names: vec!["Given.test".to_owned()], ..authority.issue(&["x.test"]) };
        let listeners = Listeners::default();
        let all = [exact.clone(), wildcard.clone(), given.clone()];
        assert_eq!(listeners.set_certificates(&all, &Challenges::default()), []);
        for (name, expected) in [
            ("shop.test", &exact),
            ("WWW.shop.test", &exact),
            ("api.shop.test", &wildcard),
            ("given.test", &given),
        ] {
            assert_eq!(shown(&listeners, name).await, leaf(expected), "{name}");
        }
        let own = shown(&listeners, "a.b.shop.test").await;
        assert!(all.iter().all(|certificate| own != leaf(certificate)), "one label only");
        assert_eq!(shown(&listeners, "x.test").await, own, "names that are given stand for all");
        assert_eq!(shown(&listeners, "127.0.0.1").await, own, "no name at all");
    });
}

#[test]
fn what_lasts_longer_is_preferred_whatever_the_order() {
    local(async {
        let authority = Authority::new("root");
        let until = |year| {
            authority.issue_with(&["a.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
                params.not_after = rcgen::date_time_ymd(year, 1, 1);
            })
        };
        let (old, new) = (until(2040), until(2050));
        let listeners = Listeners::default();
        for all in [[old.clone(), new.clone()], [new.clone(), old]] {
            assert_eq!(listeners.set_certificates(&all, &Challenges::default()), []);
            assert_eq!(shown(&listeners, "a.test").await, leaf(&new));
        }
    });
}

#[test]
fn broken_ones_are_told_by_name_and_the_others_work() {
    local(async {
        let authority = Authority::new("root");
        let good = authority.issue(&["good.test"]);
        let other = authority.issue(&["other.test"]);
        let named = |name: &str, chain: &str, key: &str| Certificate {
            names: vec![name.to_owned()],
            chain: chain.to_owned(),
            key: key.to_owned(),
        };
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let broken = [
            named("empty.test", "", &good.key),
            named("junk.test", junk, &good.key),
            named("keyless.test", &good.chain, "no key"),
            named("swapped.test", &good.chain, &other.key),
            Certificate { names: Vec::new(), ..named("", "", "") },
        ];
        let listeners = Listeners::default();
        let all: Vec<_> = broken.into_iter().chain([good.clone()]).collect();
        let problems = listeners.set_certificates(&all, &Challenges::default());
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let begins = [
            "the certificate for empty.test can't be used: there is no certificate in it",
            "the certificate for junk.test can't be used: it is no X.509 certificate",
            "the certificate for keyless.test can't be used: its private key can't be read",
            "the certificate for swapped.test can't be used: its private key is that of another one",
            "the certificate for number 5 can't be used: there is no certificate in it",
        ];
        assert_eq!(told.len(), begins.len(), "{told:?}");
        for (told, begin) in told.iter().zip(begins) {
            assert!(told.starts_with(begin), "{told}");
        }
        assert_eq!(shown(&listeners, "good.test").await, leaf(&good));
    });
}

#[test]
fn certificates_change_under_open_connections() {
    local(async {
        let authority = Authority::new("root");
        let (before, after) = (authority.issue(&["a.test"]), authority.issue(&["a.test"]));
        let listeners = Listeners::default();
        listeners.set_certificates(std::slice::from_ref(&before), &Challenges::default());
        let config = listeners.config(&ListenerTls::default()).unwrap();
        let server = config.for_hello(&super::ClientHello::default());
        let (open, peer) = handshake(pair().await, server.clone(), client(), "a.test").await;
        let (open, peer) = (open.unwrap(), peer.unwrap());
        listeners.set_certificates(std::slice::from_ref(&after), &Challenges::default());
        assert_eq!(open.try_write(b"still", b"").unwrap(), 5);
        peer.tcp().ready(tokio::io::Interest::READABLE).await.unwrap();
        let mut room = [0; 9];
        assert_eq!(peer.try_read(&mut room).unwrap(), 5);
        let (new, _) = handshake(pair().await, server, client(), "a.test").await;
        assert_eq!(new.unwrap().peer_certificates().unwrap()[0], leaf(&after));
    });
}

#[test]
fn five_thousand_names_are_found_and_not_loaded_twice() {
    local(async {
        let authority = Authority::new("root");
        // One key pair each would take minutes in a debug build.
        let one = authority.issue(&["many.test"]);
        let last = authority.issue(&["last.test"]);
        let mut all: Vec<Certificate> = (0..5000)
            .map(|n| Certificate {
                names: vec![format!("n{n}.test")],
                chain: format!("{n}\n{}", one.chain),
                key: one.key.clone(),
            })
            .collect();
        let listeners = Listeners::default();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let made = |all: &[Certificate], before: Option<&Certificates>| {
            let (table, problems) = Certificates::new(all, &[], None, before, &provider);
            assert_eq!(problems, []);
            table
        };
        let first = made(&all, None);
        all.push(last.clone());
        let second = made(&all, Some(&first));
        for n in 0..5000 {
            let name = format!("n{n}.test");
            let [before, now] =
                [&first, &second].map(|table| table.find(Some(&name), |_| true).unwrap());
            assert!(Arc::ptr_eq(before, now), "{name} was loaded again");
        }
        assert_eq!(listeners.set_certificates(&all, &Challenges::default()), []);
        assert_eq!(shown(&listeners, "n4711.test").await, leaf(&one));
        assert_eq!(shown(&listeners, "last.test").await, leaf(&last));
    });
}
