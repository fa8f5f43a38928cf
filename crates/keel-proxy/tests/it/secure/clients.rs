//! Certificates of clients, and what services hear of them.

use keel_model::ClientAuth;
use keel_route::snapshot::ListenerTls;

use super::authority::Authority;
use super::{Visitor, door, offered};
use crate::http2::background::wait;
use crate::http2::either::Caller;
use crate::routes::{Site, all, mirror, nothing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Whether the proxy refuses to speak with the visitor. In TLS 1.3 it says so after the handshake.
async fn is_refused(visitor: &Visitor, site: &Site) -> bool {
    let Ok(mut tls) = visitor.greet(site.address, &["http/1.1"]).await else { return true };
    let _ = tls.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tls.read_u8().await.is_err()
}

#[test]
fn only_clients_of_the_right_authority_come_in() {
    let (authority, partner, stranger) =
        (Authority::new("root"), Authority::new("partner"), Authority::new("stranger"));
    let bare = Visitor::new(&authority, "a.test");
    let known = bare.clone().with(partner.identity("ann"));
    let unknown = bare.clone().with(stranger.identity("eve"));
    wait(all(async |client, endpoint| {
        for optional in [false, true] {
            let endpoint = mirror(endpoint);
            let auth = Some(ClientAuth { ca: partner.file(), optional });
            let tls = ListenerTls { client_auth: auth, ..ListenerTls::default() };
            let site = door(&endpoint, tls, vec![authority.issue(&["a.test"])]);
            assert!(is_refused(&unknown, &site).await);
            assert_eq!(is_refused(&bare, &site).await, !optional);
            let visitors = if optional { vec![&known, &bare] } else { vec![&known] };
            for visitor in visitors {
                let way = visitor.way_to(site.address, offered(client)).await;
                let spoofed = nothing().with("x-forwarded-client-cert", "Subject=\"CN=root\"");
                let mut caller = Caller::connect(client, way).await;
                let text = caller.ask("GET", "/", &spoofed).await.text();
                let told: Vec<_> = text
                    .lines()
                    .filter(|line| line.to_lowercase().starts_with("x-forwarded-client-cert:"))
                    .collect();
                match visitor.identity {
                    None => assert_eq!(told, [""; 0]),
                    Some(_) => {
                        assert_eq!(told.len(), 1, "{text}");
                        assert!(told[0].contains("CN=ann"), "{told:?}");
                        assert!(told[0].contains("URI=spiffe://test/ann"), "{told:?}");
                        assert!(!told[0].contains("CN=root"), "{told:?}");
                    }
                }
            }
        }
    }));
}

#[test]
fn nobody_can_claim_a_certificate_in_clear() {
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = Site::filtered(&endpoint, keel_model::Filters::default());
        let spoofed = nothing().with("x-forwarded-client-cert", "Subject=\"CN=root\"");
        let text = site.ask(client, "GET", "a.test/", &spoofed).await.text();
        assert!(!text.to_lowercase().contains("x-forwarded-client-cert"), "{text}");
    }));
}
