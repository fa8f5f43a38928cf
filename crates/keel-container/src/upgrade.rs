//! Connections to the engine of our own, for what bollard has no request for: one that is taken over once the engine has
//! agreed to speak something else on it (HTTP/1.1 `Upgrade`), and questions that only Podman knows.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::place::{Place, Tls};
use crate::{Engine, Error};

/// How long the engine may take to agree.
const AGREES: Duration = Duration::from_secs(30);
/// Most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 64 << 10;
/// Most bytes of an answer.
const MAX_ANSWER: usize = 16 << 20;
/// The port of an engine that is named without one: with and without TLS.
const PORTS: (u16, u16) = (2376, 2375);

/// What can be read and written.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Engine {
    /// Takes over a connection: `POST path` with these headers, and then what `protocol` says.
    ///
    /// # Errors
    /// When the engine is away or refuses.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
        headers: &[(&str, String)],
    ) -> Result<Upgraded, Error> {
        let place = self.place()?;
        let (major, minor) = self.info().await?.api;
        let mut request = Request::post(format!("/v{major}.{minor}{path}"))
            .header(header::HOST, "engine")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let away = |reason: String| Error::Away { url: place.url.clone(), reason };
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|error| away(error.to_string()))?;
        let taken = async {
            let stream = connect(&place).await.map_err(|error| away(error.to_string()))?;
            take(stream, request).await.map_err(|refused| match refused {
                Refused::Broken(reason) => away(reason),
                Refused::With(StatusCode::NOT_FOUND, message) => Error::NotFound { message },
                Refused::With(status, message) => {
                    Error::Refused { status: Some(status.as_u16()), message }
                }
            })
        };
        let late = || away(format!("no answer within {} s", AGREES.as_secs()));
        tokio::time::timeout(AGREES, taken).await.map_err(|_| late())?
    }
}

impl Engine {
    /// What the engine answers to `GET path`; nothing where it knows no such thing.
    ///
    /// # Errors
    /// When the engine is away or refuses.
    pub(crate) async fn ask(&self, path: &str) -> Result<Option<serde_json::Value>, Error> {
        ask(&self.place()?, path).await
    }
}

/// The same of the engine at a place.
pub(crate) async fn ask(place: &Place, path: &str) -> Result<Option<serde_json::Value>, Error> {
    let away = |reason: String| Error::Away { url: place.url.clone(), reason };
    let broken = |error: &dyn std::fmt::Display| away(error.to_string());
    let request = Request::get(path).header(header::HOST, "engine").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| broken(&error))?;
    let asked = async {
        let stream = connect(place).await.map_err(|error| broken(&error))?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| broken(&error))?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|error| away(error.to_string()))?.to_bytes();
        let refused = |message: String| Error::Refused { status: Some(status.as_u16()), message };
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| {
                refused(format!("the engine's answer is not understood: {error}"))
            }),
            status => Err(refused(format!("the engine refuses (status {status})"))),
        }
    };
    let late = || away(format!("no answer within {} s", AGREES.as_secs()));
    tokio::time::timeout(AGREES, asked).await.map_err(|_| late())?
}

/// Why the engine did not agree.
enum Refused {
    Broken(String),
    With(StatusCode, String),
}

impl From<hyper::Error> for Refused {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

async fn take(
    stream: Box<dyn Stream>,
    request: Request<Empty<Bytes>>,
) -> Result<Upgraded, Refused> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends by itself when the connection is taken over, or when nobody holds the answer any more.
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(hyper::upgrade::on(answer).await?);
    }
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), MAX_REFUSAL);
    let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let said: Option<String> = serde_json::from_slice::<serde_json::Value>(&text)
        .ok()
        .and_then(|json| Some(json.get("message")?.as_str()?.to_owned()));
    let text = said.unwrap_or_else(|| String::from_utf8_lossy(&text).trim().to_owned());
    Err(Refused::With(status, if text.is_empty() { status.to_string() } else { text }))
}

async fn connect(place: &Place) -> io::Result<Box<dyn Stream>> {
    if let Some(path) = place.url.strip_prefix("unix://") {
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let (_, rest) = place.url.split_once("://").unwrap_or(("", &place.url));
    let host = rest.split('/').next().unwrap_or(rest);
    let port = if place.tls.is_some() { PORTS.0 } else { PORTS.1 };
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => format!("{host}:{port}"),
    };
    let stream = TcpStream::connect(&with_port).await?;
    let Some(tls) = &place.tls else { return Ok(Box::new(stream)) };
    let (name, _) = with_port.rsplit_once(':').unwrap_or((&with_port, ""));
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(configuration(tls)?));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Shows the client's certificate, and trusts what `ca.pem` holds.
fn configuration(tls: &Tls) -> io::Result<rustls::ClientConfig> {
    let file = |name: &str| tls.directory.join(name);
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        io::Error::other(format!("{}: {error}", path.display()))
    };
    let certificates = |path: &Path| -> io::Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.map_err(|error| failed(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&file("ca.pem"))?);
    let chain = certificates(&file("cert.pem"))?;
    let path = file("key.pem");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| failed(&path, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let configured = builder.with_root_certificates(roots).with_client_auth_cert(chain, key);
    configured.map_err(|error| failed(&file("cert.pem"), &error))
}
