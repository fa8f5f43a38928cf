//! Metrics over TCP, for scrapers that can't reach the server's socket. Nothing else is served there.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Error;
use crate::traffic::Figures;

/// Scrapers at a time; others wait.
const MAX_CONNECTIONS: usize = 32;
/// From the first byte of a request to the end of its head, and for a connection to be used again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause when nothing can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listener, if one is wanted.
///
/// # Errors
/// When the address can't be had.
pub async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| Error::Metrics { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "metrics are open to everybody who reaches this address");
    }
    Ok(Some(listener))
}

/// Serves what [`bind`] opened, as one of `tasks`; where.
pub fn start(
    listener: Option<TcpListener>,
    figures: &Figures,
    tasks: &mut JoinSet<()>,
) -> Option<SocketAddr> {
    let listener = listener?;
    let address = listener.local_addr().ok();
    tasks.spawn(serve(listener, figures.clone()));
    address
}

async fn serve(listener: TcpListener, figures: Figures) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let figures = figures.clone();
                tokio::spawn(async move {
                    connection(stream, figures).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a scraper can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, figures: Figures) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let figures = figures.clone();
        async move { Ok::<_, Infallible>(answer(&request, &figures).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scraper's connection broke");
    }
}

async fn answer(request: &Request<Incoming>, figures: &Figures) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = Full::from("Metrics are at /metrics.\n");
        return response;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let (kind, page) = super::page(figures, accept.unwrap_or_default()).await;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    *response.body_mut() = Full::from(page);
    response
}
