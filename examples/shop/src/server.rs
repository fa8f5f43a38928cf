//! What all services have in common: listen, read requests, act out the knobs, name the instance, stop gracefully.
//!
//! Stopping on SIGTERM or SIGINT: readiness fails; connections that the system has already accepted are still taken,
//! then the listening socket closes; every answer carries `Connection: close`; idle connections get [`LINGER`] for a
//! request that is already on its way; then the process exits with 0, at the latest after [`STOP_LIMIT`].

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::http::{Call, Failure, Reply, X_INSTANCE, X_REVISION, X_TRAIL};
use crate::knobs::{Crash, Dice, Knobs};
use crate::settings::{Peers, Role, Settings};
use crate::{cart, catalog, orders, payments, storefront};

/// Open connections; more wait in the system's queue.
const MAX_CONNECTIONS: u32 = 4096;
/// Connections that the system may hold for us.
const BACKLOG: u32 = 1024;
const MAX_BODY_BYTES: usize = 64 << 10;
/// An idle connection is closed after this; callers drop theirs earlier.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// When stopping: time for requests that are on their way over idle connections.
const LINGER: Duration = Duration::from_millis(200);
/// When stopping: time for requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// After a failed `accept` (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between the answer to `POST /knobs` and the crash that it asked for.
const CRASH_PAUSE: Duration = Duration::from_millis(20);
/// Touching one byte of each page makes memory resident.
const PAGE_BYTES: usize = 4096;

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    Draining,
    Closing,
}

/// What this process is, beside what all have in common.
enum App {
    Storefront(Box<storefront::Storefront>),
    Catalog(catalog::Catalog),
    Cart(cart::Cart),
    Orders(orders::Orders),
    Payments(payments::Payments),
}

impl App {
    fn open(role: Role, settings: &Settings, peers: Peers) -> io::Result<App> {
        Ok(match role {
            Role::Storefront => {
                let own = format!(
                    "storefront {} {} 0.0",
                    visible(&settings.instance),
                    visible(&settings.revision)
                );
                App::Storefront(Box::new(storefront::Storefront::new(peers, own)))
            }
            Role::Catalog => App::Catalog(catalog::Catalog::new(settings.sale_percent)),
            Role::Cart => App::Cart(cart::Cart::new(settings.cart_secret.clone(), peers.catalog)),
            Role::Orders => App::Orders(orders::Orders::open(
                &settings.data_dir,
                settings.instance.clone(),
                peers.payments,
            )?),
            Role::Payments => App::Payments(payments::Payments),
        })
    }

    async fn answer(&self, call: Call) -> Result<Reply, Failure> {
        match self {
            App::Storefront(app) => app.answer(call).await,
            App::Catalog(app) => app.answer(&call),
            App::Cart(app) => app.answer(&call).await,
            App::Orders(app) => app.answer(&call).await,
            App::Payments(app) => app.answer(&call),
        }
    }
}

struct Server {
    app: App,
    instance: HeaderValue,
    revision: HeaderValue,
    phase: watch::Receiver<Phase>,
    knobs: Mutex<Knobs>,
    dice: Mutex<Dice>,
    ballast: Mutex<Vec<u8>>,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// The port can't be had, or the orders file can't be opened.
pub fn run(mut settings: Settings) -> io::Result<()> {
    // One thread: these services wait more than they compute, and each further thread costs memory in every replica.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let peers = settings.peers.clone();
        let app = App::open(settings.role, &settings, peers)?;
        let (phase_sender, phase) = watch::channel(Phase::Serving);
        let server = Arc::new(Server {
            app,
            instance: header_value(&settings.instance),
            revision: header_value(&settings.revision),
            phase,
            knobs: Mutex::default(),
            dice: Mutex::new(Dice::new()),
            ballast: Mutex::default(),
        });
        let knobs = std::mem::take(&mut settings.knobs);
        sleep(Duration::from_millis(knobs.start_delay_ms)).await;
        server.turn(knobs);
        let listener = listen(settings.port)?;
        println!("{} listening on http://{}", settings.role, listener.local_addr()?);
        serve(server, listener, phase_sender).await
    })
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map_err(|error| {
        io::Error::new(error.kind(), format!("can't listen on port {port} (PORT): {error}"))
    })?;
    socket.listen(BACKLOG)
}

fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '_' }).collect()
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(&visible(text)).expect("visible ASCII is a valid header value")
}

async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    phase: watch::Sender<Phase>,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = accept(&server, &listener, &slots) => {}
        }
    }
    phase.send_replace(Phase::Draining);
    // What the system has accepted for us would be reset when the socket closes: take it first.
    for _ in 0..BACKLOG {
        if timeout(Duration::ZERO, accept(&server, &listener, &slots)).await.is_err() {
            break;
        }
    }
    drop(listener);
    if timeout(LINGER, slots.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        phase.send_replace(Phase::Closing);
        if timeout(STOP_LIMIT, slots.acquire_many(MAX_CONNECTIONS)).await.is_err() {
            eprintln!("requests were still in flight after {} s", STOP_LIMIT.as_secs());
        }
    }
    Ok(())
}

async fn accept(server: &Arc<Server>, listener: &TcpListener, slots: &Arc<Semaphore>) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((stream, _)) => {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                connection(server, stream).await;
                drop(slot);
            });
        }
        Err(error) => {
            eprintln!("accept: {error}");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return; // The caller is gone already.
    }
    let mut phase = server.phase.clone();
    let handler = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.respond(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), handler);
    let mut connection = std::pin::pin!(connection);
    // Errors here are the caller's: it went away or spoke no HTTP. It has nobody left to be told.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = async { drop(phase.wait_for(|phase| *phase == Phase::Closing).await) } => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

impl Server {
    async fn respond(self: &Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let reply = match self.handle(request).await {
            Ok(reply) => reply,
            Err(failure) => failure.into(),
        };
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        *headers = reply.headers;
        headers.insert(X_INSTANCE, self.instance.clone());
        headers.insert(X_REVISION, self.revision.clone());
        let trail = reply.trail.to_header();
        if !trail.is_empty()
            && let Ok(trail) = HeaderValue::from_str(&trail)
        {
            headers.insert(X_TRAIL, trail);
        }
        if *self.phase.borrow() != Phase::Serving {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn handle(self: &Arc<Self>, request: Request<Incoming>) -> Result<Reply, Failure> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| {
            let status = match error.is::<LengthLimitError>() {
                true => StatusCode::PAYLOAD_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            };
            Failure::new(status, format!("the body (at most {MAX_BODY_BYTES} bytes): {error}"))
        })?;
        let call = Call {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            body: body.to_bytes(),
        };
        match (call.method.clone(), call.path.as_str()) {
            (_, "/healthz") => self.health(Phase::Closing).await,
            (_, "/readyz") => self.health(Phase::Serving).await,
            (Method::GET, "/knobs") => Ok(Reply::json(&*self.lock_knobs())),
            (Method::POST, "/knobs") => self.change_knobs(&call),
            _ => {
                self.act_out().await?;
                self.app.answer(call).await
            }
        }
    }

    /// Healthy up to `last_good`.
    async fn health(&self, last_good: Phase) -> Result<Reply, Failure> {
        let (hang, unhealthy) = {
            let knobs = self.lock_knobs();
            (knobs.hang, knobs.unhealthy)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        if unhealthy || *self.phase.borrow() > last_good {
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unhealthy or stopping"));
        }
        Ok(Reply::bytes("text/plain", "ok\n"))
    }

    fn change_knobs(self: &Arc<Self>, call: &Call) -> Result<Reply, Failure> {
        let patch: serde_json::Map<String, serde_json::Value> = call.json()?;
        let refuse = |why: &str| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        if patch.contains_key("start_delay_ms") {
            return Err(refuse("start_delay_ms acts before the start: set SHOP_START_DELAY_MS"));
        }
        let knobs = self.lock_knobs().with(patch).map_err(|why| refuse(&why))?;
        let reply = Reply::json(&knobs);
        self.turn(knobs);
        Ok(reply)
    }

    /// Puts `knobs` into effect.
    fn turn(self: &Arc<Self>, knobs: Knobs) {
        let wanted = usize::try_from(knobs.memory_mb).unwrap_or(usize::MAX).saturating_mul(1 << 20);
        {
            let mut ballast = self.ballast.lock().unwrap_or_else(PoisonError::into_inner);
            if ballast.len() != wanted {
                *ballast = vec![0; wanted];
                ballast.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
            }
        }
        if let (Some(crash), 0) = (knobs.crash, knobs.crash_after) {
            tokio::spawn(async move {
                sleep(CRASH_PAUSE).await;
                end(crash);
            });
        }
        *self.lock_knobs() = knobs;
    }

    /// Suffers what the knobs say for one request.
    async fn act_out(&self) -> Result<(), Failure> {
        let (delay, fail, hang) = {
            let mut knobs = self.lock_knobs();
            if let Some(crash) = knobs.count_down() {
                end(crash);
            }
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            (knobs.delay(dice.chance()), dice.chance() < knobs.error_rate, knobs.hang)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if fail {
            let why = "this failure was asked for (knob error_rate)";
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        Ok(())
    }

    fn lock_knobs(&self) -> std::sync::MutexGuard<'_, Knobs> {
        self.knobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(crash: Crash) -> ! {
    eprintln!("crashing: this was asked for (knob crash)");
    match crash {
        Crash::Exit => std::process::exit(1),
        Crash::Abort => std::process::abort(),
    }
}
