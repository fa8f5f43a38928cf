//! Who is verified against what, on either side.

use std::sync::Arc;

use keel_model::{ClientAuth, UpstreamTls};
use keel_route::snapshot::{Challenges, ListenerTls};
use rustls::{ClientConfig, ServerConfig};

use super::super::{ClientCertificate, Listeners, Upstreams, server_name};
use super::authority::Authority;
use super::{HandshakeError, Tls, handshake, local, pair};

fn listeners(authority: &Authority) -> Listeners {
    let listeners = Listeners::default();
    let problems =
        listeners.set_certificates(&[authority.issue(&["a.test"])], &Challenges::default());
    assert_eq!(problems, []);
    listeners
}

fn server(listeners: &Listeners, client_auth: Option<ClientAuth>) -> Arc<ServerConfig> {
    let tls = ListenerTls { client_auth, ..ListenerTls::default() };
    listeners.config(&tls).unwrap().for_hello(&super::ClientHello::default())
}

async fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (Result<Tls, HandshakeError>, Result<Tls, HandshakeError>) {
    handshake(pair().await, server.clone(), client.clone(), name).await
}

#[test]
fn endpoints_are_verified_as_the_policy_says() {
    local(async {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let server = server(&listeners(&authority), None);
        let upstreams = Upstreams::default();
        let config = |ca: Option<&Authority>, insecure| {
            let ca = ca.map(Authority::file);
            let tls = UpstreamTls { ca, insecure, ..UpstreamTls::default() };
            upstreams.config(&tls, &[b"h2", b"http/1.1"]).unwrap()
        };
        let trusted = config(Some(&authority), false);
        let (client, _) = shake(&server, &trusted, "a.test").await;
        assert_eq!(client.unwrap().alpn().as_deref(), Some(&b"h2"[..]));
        for (client, name) in [
            (&trusted, "b.test"),
            (&config(Some(&other), false), "a.test"),
            (&config(None, false), "a.test"),
        ] {
            let (client, served) = shake(&server, client, name).await;
            let error = client.unwrap_err().to_string();
            assert!(error.contains("invalid peer certificate"), "{error}");
            assert!(served.is_err(), "the server is told");
        }
        assert!(shake(&server, &config(None, true), "b.test").await.0.is_ok());
    });
}

#[test]
fn files_that_changed_make_a_new_configuration_and_others_do_not() {
    let authority = Authority::new("root");
    let upstreams = Upstreams::default();
    let identity = authority.identity("proxy");
    let tls = UpstreamTls {
        ca: Some(authority.file()),
        identity: Some(identity.clone()),
        ..UpstreamTls::default()
    };
    let first = upstreams.config(&tls, &[]).unwrap();
    assert!(Arc::ptr_eq(&first, &upstreams.config(&tls, &[]).unwrap()));
    assert!(!Arc::ptr_eq(&first, &upstreams.config(&tls, &[b"h2"]).unwrap()));
    authority.identity("proxy");
    assert!(!Arc::ptr_eq(&first, &upstreams.config(&tls, &[]).unwrap()));
    std::fs::write(&identity.1, "no key").unwrap();
    let error = upstreams.config(&tls, &[]).unwrap_err().to_string();
    assert!(error.contains("proxy.key: there is no private key"), "{error}");
    std::fs::remove_file(&identity.0).unwrap();
    let error = upstreams.config(&tls, &[]).unwrap_err().to_string();
    assert!(error.starts_with("can't read") && error.contains("proxy.pem"), "{error}");
}

#[test]
fn the_name_of_an_endpoint_is_that_of_the_policy_or_of_the_request() {
    let named = UpstreamTls { server_name: Some("b.test".to_owned()), ..UpstreamTls::default() };
    assert_eq!(server_name(&named, "a.test").unwrap(), "b.test".try_into().unwrap());
    let plain = UpstreamTls::default();
    assert_eq!(server_name(&plain, "a.test").unwrap(), "a.test".try_into().unwrap());
    assert_eq!(server_name(&plain, "[::1]").unwrap(), "::1".try_into().unwrap());
    assert!(server_name(&plain, "no name").is_err());
}

#[test]
fn the_proxy_shows_who_it_is_and_the_listener_reads_it() {
    local(async {
        let authority = Authority::new("root");
        let listeners = listeners(&authority);
        let ca = ClientAuth { ca: authority.file(), optional: false };
        let server = server(&listeners, Some(ca));
        let tls = UpstreamTls {
            ca: Some(authority.file()),
            identity: Some(authority.identity("proxy")),
            ..UpstreamTls::default()
        };
        let client = Upstreams::default().config(&tls, &[]).unwrap();
        let (ours, served) = shake(&server, &client, "a.test").await;
        let served = served.unwrap();
        ours.unwrap();
        let shown = served.peer_certificates().unwrap();
        let shown = ClientCertificate::from_der(&shown[0]).unwrap();
        assert_eq!(shown.subject, r"O=A\, B,CN=proxy");
    });
}

/// A session brings the client's certificate along, and nobody verifies it again. So one that began where no
/// certificate is demanded must not be resumed where one is.
#[test]
fn a_session_is_not_resumed_where_more_is_demanded() {
    local(async {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let listeners = listeners(&authority);
        let demand = |ca: &Authority, optional| Some(ClientAuth { ca: ca.file(), optional });
        let open = server(&listeners, None);
        let optional = server(&listeners, demand(&authority, true));
        let required = server(&listeners, demand(&authority, false));
        let foreign = server(&listeners, demand(&other, true));
        let tls = UpstreamTls { ca: Some(authority.file()), ..UpstreamTls::default() };
        let anonymous = Upstreams::default().config(&tls, &[]).unwrap();
        for first in [&open, &optional] {
            begin_and_resume(first, &anonymous).await;
            let (_, served) = shake(&required, &anonymous, "a.test").await;
            assert!(served.is_err(), "let in without a certificate");
        }
        let identity = Some(authority.identity("ann"));
        let known = Upstreams::default().config(&UpstreamTls { identity, ..tls }, &[]).unwrap();
        begin_and_resume(&required, &known).await;
        let (_, served) = shake(&foreign, &known, "a.test").await;
        assert!(served.is_err(), "let in with a certificate of somebody else's authority");
    });
}

/// Makes sure that what follows is not refused only because there was nothing to resume.
async fn begin_and_resume(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) {
    for resumed in [false, true] {
        let (ours, served) = shake(server, client, "a.test").await;
        let (ours, served) = (ours.unwrap(), served.unwrap());
        assert!(!resumed || served.is_resumed());
        // Tickets come after the handshake.
        ours.tcp().ready(tokio::io::Interest::READABLE).await.unwrap();
        let _ = ours.try_read(&mut [0]);
    }
}

#[test]
fn authorities_that_changed_take_effect() {
    local(async {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let listeners = listeners(&authority);
        let file = authority.path("clients.pem");
        std::fs::copy(authority.file(), &file).unwrap();
        let auth = || Some(ClientAuth { ca: file.clone(), optional: false });
        let tls = UpstreamTls {
            ca: Some(authority.file()),
            identity: Some(authority.identity("ann")),
            ..UpstreamTls::default()
        };
        let client = Upstreams::default().config(&tls, &[]).unwrap();
        begin_and_resume(&server(&listeners, auth()), &client).await;
        std::fs::copy(other.file(), &file).unwrap();
        assert!(shake(&server(&listeners, auth()), &client, "a.test").await.1.is_err());
        std::fs::write(&file, "nothing").unwrap();
        let tls = ListenerTls { client_auth: auth(), ..ListenerTls::default() };
        let error = listeners.config(&tls).unwrap_err().to_string();
        assert!(error.contains("clients.pem: there is no certificate in it"), "{error}");
    });
}
