//! The HTTP API over a Unix socket that only its owner can open.
//!
//! Handlers translate: JSON in, a call, JSON out. Bodies are bounded; a stream ends when its reader goes away.

mod adopt;
mod images;
mod once;
mod usage;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use keel_model::{Event, InstanceId, StackName, Timestamp};
use keel_route::snapshot::Snapshot;
use keel_runtime::{ExecSpec, Runtime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};

use crate::api::types::{
    Applied, ApplyRequest, ChangeView, DownRequest, EdgesView, ErrorBody, EventsQuery,
    HistoryEntry, LacksView, LogsQuery, RollbackRequest, RouteView, ScaleRequest, ServerInfo,
    ServicesRequest, StackSummary, StackView,
};
use crate::changes::{Changes, Operation};
use crate::error::Refusal;
use crate::events::EventLog;
use crate::images::Presence;
use crate::traffic::Figures;
use crate::views::Viewer;
use crate::{clock, logs};

/// Largest request body, in bytes: a stack with its secrets and configs.
const MAX_BODY: usize = 64 << 20;
/// Lines of a stream that wait for their reader.
const STREAM_QUEUE: usize = 64;
/// What happens within this time is told in one line of a stack's watch.
const WATCH_PAUSE: Duration = Duration::from_millis(1);
/// The longest such time, for stacks that take long to look at.
const WATCH_PAUSE_MAX: Duration = Duration::from_millis(40);
/// How much longer than its view took a watch rests.
const WATCH_REST: u32 = 20;

/// What handlers use.
pub struct Api {
    /// Makes changes.
    pub changes: Changes,
    /// Shows state.
    pub viewer: Viewer,
    /// What happened.
    pub events: Arc<EventLog>,
    /// For logs and exec.
    pub runtime: Arc<dyn Runtime>,
    /// Makes images present.
    pub presence: Presence,
    /// What the proxy has counted.
    pub figures: Figures,
    /// Who this server is.
    pub info: ServerInfo,
    /// Ends the server.
    pub shutdown: Arc<Notify>,
}

type Shared = State<Arc<Api>>;
type Answer<T> = Result<Json<T>, Failure>;

/// A refusal on its way out.
struct Failure(Refusal);

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            "no_such_stack" | "no_such_service" | "no_such_instance" | "no_such_project" => {
                StatusCode::NOT_FOUND
            }
            "conflict" | "port_in_use" | "route_taken" | "image_absent" | "image_platform" => {
                StatusCode::CONFLICT
            }
            "engine_away" => StatusCode::SERVICE_UNAVAILABLE,
            "invalid" => StatusCode::BAD_REQUEST,
            "disk_full" => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let Refusal { code, message, hint } = self.0;
        (status, Json(ErrorBody { code: code.to_owned(), message, hint })).into_response()
    }
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/shutdown", post(shutdown))
        .route("/v1/events", get(events))
        .route("/v1/edges", get(edges))
        .route("/metrics", get(metrics))
        .route("/v1/routes", get(routes))
        .route("/v1/traffic/snapshot", get(snapshot))
        .route("/v1/engine", images::engine())
        .route("/v1/images", images::list())
        .route("/v1/images/pull", images::pull())
        .route("/v1/images/build", images::build())
        .route("/v1/images/push", images::push())
        .route("/v1/stacks", get(stacks))
        .route("/v1/stacks/{stack}", put(apply).get(stack))
        .route("/v1/stacks/{stack}/watch", get(watch))
        .route("/v1/stacks/{stack}/lacks", get(lacks))
        .route("/v1/stacks/{stack}/diff", post(diff))
        .route("/v1/stacks/{stack}/scale", post(scale))
        .route("/v1/stacks/{stack}/stop", post(stop))
        .route("/v1/stacks/{stack}/start", post(start))
        .route("/v1/stacks/{stack}/restart", post(restart))
        .route("/v1/stacks/{stack}/rm", post(remove))
        .route("/v1/stacks/{stack}/down", post(down))
        .route("/v1/stacks/{stack}/rollback", post(rollback))
        .route("/v1/stacks/{stack}/history", get(history))
        .route("/v1/stacks/{stack}/logs", get(stack_logs))
        .route("/v1/stacks/{stack}/volumes", usage::volumes())
        .route("/v1/stacks/{stack}/stats", usage::stats())
        .route("/v1/stacks/{stack}/adopt", adopt::adopt())
        .route("/v1/stacks/{stack}/once", once::make())
        .route("/v1/stacks/{stack}/once/remove", once::remove())
        .route("/v1/instances/{instance}/exec", get(exec))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

fn stack_name(text: &str) -> Result<StackName, Refusal> {
    StackName::new(text).map_err(|e| Refusal::new("invalid", e.to_string()))
}

fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|e| Refusal::new("invalid", format!("the request is not understood: {e}")))
}

async fn version(State(api): Shared) -> Json<ServerInfo> {
    let state = api.viewer.proxy.borrow();
    Json(ServerInfo { lacks: state.lacks.clone(), proxy: state.view(), ..api.info.clone() })
}

async fn shutdown(State(api): Shared) -> Json<serde_json::Value> {
    api.shutdown.notify_one();
    Json(serde_json::json!({}))
}

async fn metrics(State(api): Shared, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (kind, page) = crate::metrics::page(&api.figures, accept).await;
    ([(CONTENT_TYPE, kind)], page).into_response()
}

async fn edges(State(api): Shared) -> Json<EdgesView> {
    let state = api.figures.now().await;
    let age = state.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
    let at = Timestamp(clock::now().0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0)));
    Json(EdgesView { at, proxy: state.pid, edges: state.stats.edges.clone() })
}

/// With keys and password hashes: whoever may open the socket may see them.
async fn snapshot(State(api): Shared) -> Answer<Snapshot> {
    let snapshot = api.viewer.proxy.borrow().snapshot.clone();
    let none = || Refusal::new("no_snapshot", "the server has not told the proxy anything yet");
    Ok(Json((*snapshot.ok_or_else(none)?).clone()))
}

async fn stacks(State(api): Shared) -> Json<Vec<StackSummary>> {
    Json(api.viewer.summaries())
}

async fn routes(State(api): Shared) -> Json<Vec<RouteView>> {
    Json(api.viewer.routes())
}

async fn stack(State(api): Shared, Path(name): Path<String>) -> Answer<StackView> {
    Ok(Json(api.viewer.stack(&stack_name(&name)?)?))
}

async fn lacks(State(api): Shared, Path(name): Path<String>) -> Answer<LacksView> {
    Ok(Json(api.viewer.lacks(&stack_name(&name)?)))
}

async fn apply(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    let request: ApplyRequest = body(&bytes)?;
    if request.stack.name.as_str() != name {
        let message = format!("the path names stack `{name}`, the body `{}`", request.stack.name);
        return Err(Refusal::new("invalid", message).into());
    }
    Ok(Json(api.changes.apply(request).await?))
}

async fn diff(State(api): Shared, bytes: Bytes) -> Answer<Vec<ChangeView>> {
    Ok(Json(api.changes.diff(body(&bytes)?).await?))
}

async fn scale(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    let request: ScaleRequest = body(&bytes)?;
    Ok(Json(api.changes.scale(&stack_name(&name)?, &request).await?))
}

async fn operate(api: &Api, name: &str, operation: Operation, bytes: &Bytes) -> Answer<Applied> {
    let request: ServicesRequest = body(bytes)?;
    Ok(Json(api.changes.operate(&stack_name(name)?, operation, &request).await?))
}

async fn stop(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    operate(&api, &name, Operation::Stop, &bytes).await
}

async fn start(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    operate(&api, &name, Operation::Start, &bytes).await
}

async fn restart(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    operate(&api, &name, Operation::Restart, &bytes).await
}

async fn remove(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    let request: ServicesRequest = body(&bytes)?;
    Ok(Json(api.changes.remove_stopped(&stack_name(&name)?, &request).await?))
}

async fn down(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    let request: DownRequest = body(&bytes)?;
    let name = stack_name(&name)?;
    once::remove_all(&api, &name).await;
    Ok(Json(api.changes.down(&name, &request).await?))
}

async fn rollback(State(api): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Applied> {
    let request: RollbackRequest = body(&bytes)?;
    Ok(Json(api.changes.rollback(&stack_name(&name)?, &request).await?))
}

async fn history(State(api): Shared, Path(name): Path<String>) -> Answer<Vec<HistoryEntry>> {
    Ok(Json(api.viewer.history(&stack_name(&name)?)?))
}

async fn exec(State(api): Shared, Path(id): Path<String>) -> Answer<ExecSpec> {
    let id = InstanceId::new(id).map_err(|e| Refusal::new("invalid", e.to_string()))?;
    let spec = api.runtime.exec_spec(&id).await;
    Ok(Json(spec.map_err(|e| Refusal::new("no_such_instance", e.to_string()))?))
}

async fn watch(State(api): Shared, Path(name): Path<String>) -> Result<Response, Failure> {
    let name = stack_name(&name)?;
    let mut view = api.viewer.stack(&name)?;
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        let mut changes = api.viewer.subscribe();
        let mut pause = WATCH_PAUSE;
        loop {
            if sender.send(line(&view)).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    () = changes.changed() => {}
                    () = sender.closed() => return,
                }
                tokio::time::sleep(pause).await;
                let begun = Instant::now();
                let next = api.viewer.stack(&name);
                pause = (begun.elapsed() * WATCH_REST).clamp(WATCH_PAUSE, WATCH_PAUSE_MAX);
                match next {
                    Ok(next) if next == view => {}
                    Ok(next) => {
                        view = next;
                        break;
                    }
                    Err(_) => return,
                }
            }
        }
    });
    Ok(stream(receiver))
}

async fn events(State(api): Shared, Query(query): Query<EventsQuery>) -> Response {
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        let mut newest = api.events.subscribe();
        let mut last = 0;
        loop {
            newest.borrow_and_update();
            for event in api.events.after(last) {
                last = event.seq;
                if wanted(&event, &query) && sender.send(line(&event)).await.is_err() {
                    return;
                }
            }
            if !query.follow {
                return;
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    stream(receiver)
}

fn wanted(event: &Event, query: &EventsQuery) -> bool {
    let stack = event.stack.as_ref().map(StackName::as_str);
    query.stack.as_deref().is_none_or(|name| stack.is_none_or(|stack| stack == name))
        && query.since.is_none_or(|since| event.at.0 >= since)
        && query.until.is_none_or(|until| event.at.0 <= until)
}

async fn stack_logs(
    State(api): Shared,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Failure> {
    let name = stack_name(&name)?;
    let source = logs::Source::new(&api.viewer, api.runtime.clone(), &name, query)?;
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(source.send_to(sender));
    Ok(stream(receiver))
}

/// One value as a line of JSON.
pub fn line<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("answers have only string keys");
    text.push(b'\n');
    Bytes::from(text)
}

fn stream(receiver: mpsc::Receiver<Bytes>) -> Response {
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
