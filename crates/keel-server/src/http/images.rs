//! The part of the API that is about images: lines of progress, and how each image ended.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use futures_util::{Stream, StreamExt as _, stream};
use keel_container::images::{Error, Progress};
use tokio::sync::mpsc;

use super::{Answer, Api, Failure, STREAM_QUEUE, Shared, body, line, stream as lines};
use crate::api::images::{
    BuildRequest, EngineView, ImageLine, ImageNews, ImageSummary, PullImage, PullRequest,
    PushImage, PushRequest,
};
use crate::api::types::ErrorBody;
use crate::error::Refusal;

/// Images of one request that are worked on at the same time; the engine is given fewer.
const AT_ONCE: usize = 32;
/// Longest first line of a build, in bytes.
const MAX_HEAD: usize = 4 << 20;

/// Lines on their way out.
type Lines = mpsc::Sender<Bytes>;

pub(super) fn pull() -> MethodRouter<Arc<Api>> {
    post(async |State(api): Shared, bytes: Bytes| -> Result<Response, Failure> {
        let request: PullRequest = body(&bytes)?;
        Ok(each(api, request.images, pull_one))
    })
}

pub(super) fn push() -> MethodRouter<Arc<Api>> {
    post(async |State(api): Shared, bytes: Bytes| -> Result<Response, Failure> {
        let request: PushRequest = body(&bytes)?;
        Ok(each(api, request.images, push_one))
    })
}

pub(super) fn build() -> MethodRouter<Arc<Api>> {
    // The context is as large as it is: it goes through, and is never held.
    post(start_build).layer(DefaultBodyLimit::disable())
}

pub(super) fn list() -> MethodRouter<Arc<Api>> {
    get(async |State(api): Shared| -> Answer<Vec<ImageSummary>> {
        Ok(Json(api.presence.images.list().await?))
    })
}

pub(super) fn engine() -> MethodRouter<Arc<Api>> {
    get(async |State(api): Shared| -> Answer<EngineView> {
        let engine = api.presence.images.engine();
        let info = engine.info().await.map_err(Error::Engine)?;
        let place = engine.place().map_err(Error::Engine)?;
        Ok(Json(EngineView {
            kind: format!("{:?}", info.kind).to_lowercase(),
            version: info.version.clone(),
            url: place.url,
            tls: place.tls.map(|tls| tls.directory),
            text: info.text.clone(),
        }))
    })
}

/// Works on each of `items`; all of it ends when the reader goes away.
fn each<T, F>(api: Arc<Api>, items: Vec<T>, work: fn(Arc<Api>, T, Lines) -> F) -> Response
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        let all = stream::iter(items)
            .map(|item| work(api.clone(), item, sender.clone()))
            .buffer_unordered(AT_ONCE)
            .for_each(async |()| {});
        tokio::select! {
            () = all => {}
            () = sender.closed() => {}
        }
    });
    lines(receiver)
}

async fn pull_one(api: Arc<Api>, wanted: PullImage, lines: Lines) {
    let (listener, told) = mpsc::channel(STREAM_QUEUE);
    let work = api.presence.ensure(&wanted, listener);
    let done = telling(&wanted.reference, work, told, &lines).await;
    finish(&wanted.reference, done.map(|(facts, changed)| (facts.id, changed)), &lines).await;
}

async fn push_one(api: Arc<Api>, wanted: PushImage, lines: Lines) {
    let images = &api.presence.images;
    let (listener, told) = mpsc::channel(STREAM_QUEUE);
    let work = async {
        images.push(&wanted.reference, wanted.credentials.clone(), Some(listener)).await?;
        let facts = images.inspect(&wanted.reference).await?;
        Ok((facts.map(|facts| facts.id).unwrap_or_default(), true))
    };
    let done = telling(&wanted.reference, work, told, &lines).await;
    finish(&wanted.reference, done, &lines).await;
}

async fn start_build(State(api): Shared, content: Body) -> Result<Response, Failure> {
    let (head, rest) = head(content.into_data_stream()).await?;
    let request: BuildRequest = body(&head)?;
    let (lines_sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        let work = build_one(&api, &request, rest, &lines_sender);
        tokio::select! {
            () = work => {}
            () = lines_sender.closed() => {}
        }
    });
    Ok(lines(receiver))
}

async fn build_one(
    api: &Api,
    request: &BuildRequest,
    context: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    lines: &Lines,
) {
    let name = &request.recipe.reference;
    let context = request.recipe.remote.is_none().then_some(context);
    let (listener, told) = mpsc::channel(STREAM_QUEUE);
    let images = &api.presence.images;
    let work = images.build(&request.recipe, &request.credentials, context, Some(listener));
    let done = telling(name, work, told, lines).await;
    finish(name, done.map(|facts| (facts.id, true)), lines).await;
}

/// The first line, and what follows it.
async fn head(
    mut content: BodyDataStream,
) -> Result<(Bytes, impl Stream<Item = std::io::Result<Bytes>>), Refusal> {
    let invalid =
        |reason: &str| Refusal::new("invalid", format!("the build is not understood: {reason}"));
    let mut begun = Vec::new();
    loop {
        let piece = content.next().await.ok_or_else(|| invalid("it has no first line"))?;
        let piece = piece.map_err(|error| invalid(&error.to_string()))?;
        if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            begun.extend_from_slice(&piece[..end]);
            let first = stream::iter([Ok(piece.slice(end + 1..))]);
            let rest = content.map(|piece| piece.map_err(std::io::Error::other));
            return Ok((Bytes::from(begun), first.chain(rest)));
        }
        begun.extend_from_slice(&piece);
        if begun.len() > MAX_HEAD {
            return Err(invalid("its first line is too long"));
        }
    }
}

/// Does `work` while what it tells is sent on.
async fn telling<T>(
    reference: &str,
    work: impl Future<Output = Result<T, Error>>,
    mut told: mpsc::Receiver<Progress>,
    lines: &Lines,
) -> Result<T, Error> {
    let passing = async {
        while let Some(progress) = told.recv().await {
            send(reference, ImageNews::Progress(progress), lines).await;
        }
    };
    // The work owns the other end of the channel: what it told last is sent before this ends.
    tokio::join!(work, passing).0
}

async fn finish(reference: &str, done: Result<(String, bool), Error>, lines: &Lines) {
    let news = match done {
        Ok((id, changed)) => ImageNews::Done { id, changed },
        Err(error) => {
            let output = match &error {
                Error::Build { output, .. } => output.clone(),
                _ => Vec::new(),
            };
            let Refusal { code, message, hint } = error.into();
            ImageNews::Error { error: ErrorBody { code: code.to_owned(), message, hint }, output }
        }
    };
    send(reference, news, lines).await;
}

/// A reader that has gone away ends the work elsewhere.
async fn send(reference: &str, news: ImageNews, lines: &Lines) {
    let _ = lines.send(line(&ImageLine { reference: reference.to_owned(), news })).await;
}
