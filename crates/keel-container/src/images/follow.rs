//! Following what the engine says while it works on an image.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::Docker;
use futures_util::{Stream, StreamExt as _};
use http::HeaderValue;

use super::error::{About, Error};
use super::progress::{Progress, Teller};
use crate::Engine;

/// The engine may unpack a layer for this long without a word: that is no affair of the network.
const UNPACKING: Duration = Duration::from_secs(1800);
/// Layers whose state is kept; those of an image are at most 127.
const MAX_LAYERS: usize = 1024;

/// What became of the work.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The engine itself has tried again.
    pub(super) engine_retried: bool,
    /// The last thing that it said.
    last: String,
    /// Where each layer stands.
    layers: BTreeMap<String, Progress>,
}

impl Seen {
    /// Whether it is news.
    fn note(&mut self, progress: &Progress) -> bool {
        self.engine_retried |= progress.status.starts_with("Retrying in");
        self.last = [progress.layer.as_str(), &progress.status].join(" ").trim().to_owned();
        if progress.layer.is_empty() {
            return true;
        }
        if self.layers.get(&progress.layer) == Some(progress) {
            return false;
        }
        if self.layers.len() < MAX_LAYERS || self.layers.contains_key(&progress.layer) {
            self.layers.insert(progress.layer.clone(), progress.clone());
        }
        true
    }

    fn unpacks(&self) -> bool {
        let busy = ["Extracting", "Download complete", "Verifying Checksum"];
        self.layers.values().any(|layer| busy.iter().any(|status| layer.status.starts_with(status)))
            && !self.layers.values().any(|layer| layer.status.starts_with("Downloading"))
    }
}

/// Tells what comes, until the end. What says nothing new for `quiet` is given up.
pub(super) async fn follow(
    engine: &Engine,
    about: &About,
    seen: &mut Seen,
    stream: impl Stream<Item = Result<Progress, bollard::errors::Error>>,
    teller: &Teller,
    quiet: Duration,
) -> Result<(), Error> {
    tokio::pin!(stream);
    loop {
        let limit = if seen.unpacks() { quiet.max(UNPACKING) } else { quiet };
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let next = tokio::time::timeout_at(deadline, stream.next()).await;
            let next = next.map_err(|_| Error::Stalled {
                image: about.image.clone(),
                seconds: limit.as_secs(),
                last: seen.last.clone(),
            })?;
            let Some(next) = next else { return Ok(()) };
            let progress = next.map_err(|error| about.explain(engine.failed(&error)))?;
            let news = seen.note(&progress);
            teller.tell(progress);
            if news {
                break;
            }
        }
    }
}

/// The client as requests about images need it: with credentials as engines read them, and with `query` (`&key=value`)
/// added to requests to build.
///
/// Credentials are sent as base64 in a header. Bollard writes the usual alphabet, engines read that of URLs, and take
/// what they can't read for no credentials at all: a password with a `~` in an unlucky place would never work.
pub(super) fn prepared(client: Docker, query: String) -> Docker {
    client.with_request_modifier(move |mut request| {
        for name in ["x-registry-auth", "x-registry-config"] {
            let value = request.headers().get(name).and_then(|value| value.to_str().ok());
            let readable = value.map(|value| value.replace('+', "-").replace('/', "_"));
            let readable = readable.and_then(|value| HeaderValue::from_str(&value).ok());
            if let Some(mut readable) = readable {
                readable.set_sensitive(true);
                request.headers_mut().insert(name, readable);
            }
        }
        if !query.is_empty()
            && request.uri().path().ends_with("/build")
            && let Ok(uri) = format!("{}{query}", request.uri()).parse()
        {
            *request.uri_mut() = uri;
        }
        request
    })
}
