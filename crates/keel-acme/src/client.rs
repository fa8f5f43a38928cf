//! HTTP towards an authority: TLS only, bounded in time and size, and with an ear for `Retry-After`.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// One request, with its answer.
const REQUEST: Duration = Duration::from_secs(30);
/// Largest answer, in bytes. A chain is about 5 KB.
const MAX_ANSWER: usize = 1 << 20;

/// What an authority that had enough asked us to wait.
#[derive(Clone, Debug, Default)]
pub struct RetryAfter(Arc<Mutex<Option<Duration>>>);

impl RetryAfter {
    /// Takes what was said since it was last taken.
    pub fn take(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }
}

/// A client of one authority.
pub struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    retry_after: RetryAfter,
}

impl Client {
    /// A client that trusts the authorities in the file `ca`, or those of the system.
    ///
    /// # Errors
    /// A sentence, when the file is not what it should be.
    pub fn new(ca: Option<&Path>, retry_after: RetryAfter) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .build();
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, retry_after })
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        return Ok(roots);
    };
    let failed = |reason: String| format!("can't use {}: {reason}", path.display());
    let content = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

type Answer = Result<BytesResponse, Error>;

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let (sent, retry_after) = (self.http.request(request), self.retry_after.clone());
        Box::pin(async move {
            let answer = async {
                let answer = sent.await.map_err(|error| Error::Other(Box::new(error)))?;
                let (parts, body) = answer.into_parts();
                if matches!(
                    parts.status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                ) && let Some(time) = seconds(&parts.headers)
                {
                    retry_after.set(time);
                }
                let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Error::Other)?;
                Ok(BytesResponse { parts, body: Box::new(body.to_bytes()) })
            };
            tokio::time::timeout(REQUEST, answer).await.unwrap_or_else(|_| {
                Err(Error::Other(format!("{host} did not answer in time").into()))
            })
        })
    }
}

/// `Retry-After` in seconds; authorities do not send dates where it counts.
fn seconds(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}
