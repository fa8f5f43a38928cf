//! Building through the engine's own builder.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::BuildInfo;
use bollard::query_parameters::BuildImageOptions;
use bollard::{body_full, body_try_stream};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::credentials::Credentials;
use super::error::{About, Error};
use super::facts::ImageFacts;
use super::follow::prepared;
use super::progress::{Listener, Progress};
use super::recipe::Recipe;
use super::{Images, Reference};
use crate::Kind;

/// The engine may take this long to begin an answer: it reads the whole context first.
const ANSWER: Duration = Duration::from_secs(24 * 3600);
/// Last lines of a failed step that are kept for the error.
const LAST_LINES: usize = 20;
/// What the builder says of its own work, in the place of a step's output.
const NOISE: [&str; 2] = [" --->", "Removing intermediate container"];
/// Longest line that is told, in bytes.
const MAX_LINE: usize = 4096;

/// The output of a build, cut into lines.
#[derive(Debug, Default)]
struct Output {
    /// The step that is run.
    step: String,
    /// Its last lines.
    lines: VecDeque<String>,
    /// A line that has not ended.
    begun: String,
}

impl Output {
    /// The lines that `text` completes.
    fn take(&mut self, text: &str) -> Vec<String> {
        self.begun.push_str(text);
        let mut done = Vec::new();
        while let Some(end) = self.begun.find('\n').or_else(|| self.too_long()) {
            let line: String = self.begun.drain(..end).collect();
            if self.begun.starts_with('\n') {
                self.begun.remove(0);
            }
            let line = line.trim_end().to_owned();
            self.note(&line);
            done.push(line);
        }
        done
    }

    fn too_long(&self) -> Option<usize> {
        let fits = |end: &usize| self.begun.is_char_boundary(*end);
        (self.begun.len() > MAX_LINE).then(|| (0..=MAX_LINE).rev().find(fits))?
    }

    fn note(&mut self, line: &str) {
        // Docker's `Step 1/3 : RUN x`, Podman's `STEP 1/3: RUN x`.
        let begins = line.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("step "));
        if begins {
            line.clone_into(&mut self.step);
            self.lines.clear();
        } else if !line.is_empty() && !NOISE.iter().any(|word| line.starts_with(word)) {
            if self.lines.len() == LAST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line.to_owned());
        }
    }
}

impl Images {
    /// Builds an image. `context` is the archive that [`super::Context`] packs; none where the recipe names a remote one.
    ///
    /// # Errors
    /// [`Error::Build`] with the step that failed, or another [`Error`].
    pub async fn build(
        &self,
        recipe: &Recipe,
        credentials: &[Credentials],
        context: Option<impl Stream<Item = io::Result<Bytes>> + Send + 'static>,
        listener: Option<Listener>,
    ) -> Result<ImageFacts, Error> {
        for name in recipe.tags.iter().chain([&recipe.reference]) {
            let _: Reference = name.parse()?;
        }
        let client = self.engine.client().await?.with_timeout(ANSWER);
        let kind = self.engine.info().await?.kind;
        let client = prepared(client, more(recipe, kind));
        let unread: Arc<Mutex<Option<String>>> = Arc::default();
        let noted = unread.clone();
        let body = match context {
            Some(context) => body_try_stream(context.inspect(move |piece| {
                if let Err(error) = piece {
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                }
            })),
            None => body_full(Bytes::new()),
        };
        let known: HashMap<_, _> =
            credentials.iter().map(|it| (it.server.clone(), it.for_engine())).collect();
        let stream = client.build_image(options(recipe), Some(known), Some(body));
        let built = self.run(recipe, stream, listener).await;
        // The engine only knows that the rest of the context did not come.
        let unread = unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Err(_), Some(message)) = (&built, unread) {
            return Err(Error::Context { message });
        }
        built?;
        let found = self.inspect(&recipe.reference).await?;
        let facts = found.ok_or_else(|| Error::Absent { image: recipe.reference.clone() })?;
        for tag in &recipe.tags {
            self.tag(&facts.id, tag).await?;
        }
        Ok(facts)
    }

    async fn run(
        &self,
        recipe: &Recipe,
        stream: impl Stream<Item = Result<BuildInfo, bollard::errors::Error>>,
        listener: Option<Listener>,
    ) -> Result<(), Error> {
        let about = self.about(&recipe.reference, recipe.platform.as_deref());
        let mut output = Output::default();
        tokio::pin!(stream);
        let tell = async |progress: Progress| {
            if let Some(listener) = &listener {
                // Whoever stops listening does not stop the build by that.
                let _ = listener.send(progress).await;
            }
        };
        while let Some(info) = stream.next().await {
            let info = match info {
                Ok(info) => info,
                Err(error) => return Err(self.explain_build(&about, &error, output)),
            };
            if let Some(text) = info.stream {
                for line in output.take(&text) {
                    tell(Progress::line(line)).await;
                }
            }
            if let Some(status) = info.status {
                tell(Progress::of_engine(info.id, status, info.progress_detail)).await;
            }
        }
        Ok(())
    }

    fn explain_build(
        &self,
        about: &About,
        error: &bollard::errors::Error,
        mut output: Output,
    ) -> Error {
        let error = self.engine.failed(error);
        if error.is_away() {
            return Error::Engine(error);
        }
        let message = error.to_string();
        // The disk and the registries of the images that it begins with have their own errors.
        let meaning = about.explain(error);
        if output.step.is_empty() && output.lines.is_empty()
            || matches!(meaning, Error::DiskFull { .. })
        {
            return match meaning {
                Error::Refused { image, message } | Error::NotFound { image, message, .. } => {
                    Error::Build { image, step: String::new(), message, output: Vec::new() }
                }
                other => other,
            };
        }
        let _ = output.take("\n");
        Error::Build {
            image: about.image.clone(),
            step: output.step,
            message,
            output: output.lines.into(),
        }
    }
}

fn options(recipe: &Recipe) -> BuildImageOptions {
    let map = |all: &std::collections::BTreeMap<String, String>| -> HashMap<String, String> {
        all.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    BuildImageOptions {
        dockerfile: recipe.dockerfile.clone(),
        t: Some(recipe.reference.clone()),
        remote: recipe.remote.clone(),
        nocache: recipe.no_cache,
        pull: recipe.pull.then(|| "1".to_owned()),
        rm: true,
        forcerm: true,
        cachefrom: (!recipe.cache_from.is_empty()).then(|| recipe.cache_from.clone()),
        buildargs: Some(map(&recipe.args)),
        labels: Some(map(&recipe.labels)),
        networkmode: recipe.network.clone(),
        platform: recipe.platform.clone().unwrap_or_default(),
        target: recipe.target.clone().unwrap_or_default(),
        ..BuildImageOptions::default()
    }
}

/// What bollard's options have no place for, as the rest of a query. Podman takes lists of texts where Docker takes others.
fn more(recipe: &Recipe, kind: Kind) -> String {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Ulimit<'a> {
        name: &'a str,
        soft: u64,
        hard: u64,
    }
    let mut more = String::new();
    let mut add = |key: &str, value: &str| {
        more.push_str(&format!("&{key}={}", percent(value)));
    };
    let limits = recipe.ulimits.iter();
    let (mut objects, mut texts) = (Vec::new(), Vec::new());
    for (name, (soft, hard)) in limits {
        objects.push(Ulimit { name, soft: *soft, hard: *hard });
        texts.push(format!("{name}={soft}:{hard}"));
    }
    let (docker, podman) = (serde_json::to_string(&objects), serde_json::to_string(&texts));
    if !objects.is_empty() {
        let limits = if kind == Kind::Podman { podman } else { docker };
        add("ulimits", &limits.unwrap_or_default());
    }
    if let Some(size) = recipe.shm_size {
        add("shmsize", &size.to_string());
    }
    match kind {
        Kind::Docker => recipe.extra_hosts.iter().for_each(|host| add("extrahosts", host)),
        Kind::Podman if recipe.extra_hosts.is_empty() => {}
        Kind::Podman => {
            let hosts = serde_json::to_string(&recipe.extra_hosts);
            add("extrahosts", &hosts.unwrap_or_default());
        }
    }
    more
}

/// Percent-encoded for a query.
fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_in_pieces_and_the_last_step_is_known() {
        let mut output = Output::default();
        assert_eq!(output.take("Step 1/2 : FROM a\n ---> ab"), ["Step 1/2 : FROM a"]);
        assert_eq!(output.take("c\nStep 2/2 : RUN x\nno"), [" ---> abc", "Step 2/2 : RUN x"]);
        for number in 0..30 {
            let _ = output.take(&format!("{number}\n"));
        }
        assert_eq!(output.step, "Step 2/2 : RUN x");
        assert_eq!(output.lines.len(), LAST_LINES);
        assert_eq!(output.lines.back().map(String::as_str), Some("29"));
        let long = "x".repeat(3 * MAX_LINE);
        assert!(output.take(&long).iter().all(|line| line.len() <= MAX_LINE));
    }

    #[test]
    fn each_engine_is_told_in_its_own_way() {
        let recipe = Recipe {
            ulimits: [("nofile".to_owned(), (1, 2))].into(),
            extra_hosts: vec!["db:10.0.0.1".into()],
            shm_size: Some(7),
            ..Recipe::default()
        };
        let limits = percent(r#"[{"Name":"nofile","Soft":1,"Hard":2}]"#);
        let docker = format!("&ulimits={limits}&shmsize=7&extrahosts=db%3A10.0.0.1");
        assert_eq!(more(&recipe, Kind::Docker), docker);
        let (limits, hosts) = (percent(r#"["nofile=1:2"]"#), percent(r#"["db:10.0.0.1"]"#));
        let podman = format!("&ulimits={limits}&shmsize=7&extrahosts={hosts}");
        assert_eq!(more(&recipe, Kind::Podman), podman);
        assert_eq!(more(&Recipe::default(), Kind::Podman), "");
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(percent("a b&c=[\"é\"]"), "a%20b%26c%3D%5B%22%C3%A9%22%5D");
    }
}
