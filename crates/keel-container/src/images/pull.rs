//! Pulling: once per image, a few at a time, told layer by layer.

use std::time::Duration;

use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt as _;

use super::credentials::Credentials;
use super::error::{About, Error};
use super::facts::ImageFacts;
use super::follow::{Seen, follow, prepared};
use super::progress::{Listener, Progress, Teller};
use super::{Images, Reference};

/// Pauses before another try when the registry can't be reached.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// How long a registry may take to say which platforms there are.
const PLATFORMS: Duration = Duration::from_secs(10);

/// What is pulled. Who has other credentials may get another answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    reference: Reference,
    platform: Option<String>,
    credentials: Option<Credentials>,
}

impl Images {
    /// Brings an image onto the machine, whether or not one of its name is there already. Who asks for the same at
    /// the same time waits for the same work, and is told its progress.
    ///
    /// # Errors
    /// [`Error`]; what was loaded is kept by the engine for another try.
    pub async fn pull(
        &self,
        name: &str,
        platform: Option<&str>,
        credentials: Option<Credentials>,
        listener: Option<Listener>,
    ) -> Result<ImageFacts, Error> {
        let reference: Reference = name.parse()?;
        let platform = platform.map(str::to_owned);
        let wanted = Wanted { reference, platform, credentials };
        let images = self.clone();
        let work = wanted.clone();
        self.pulls
            .join(wanted, listener, |teller| async move { images.load(work, teller).await })
            .await
    }

    async fn load(self, wanted: Wanted, teller: Teller) -> Result<ImageFacts, Error> {
        let _slot = self.slots.acquire().await;
        let mut about = self.about(&wanted.reference.to_string(), wanted.platform.as_deref());
        about.user = wanted.credentials.as_ref().map(|known| known.username.clone());
        let mut pauses = PAUSES.iter();
        loop {
            let mut seen = Seen::default();
            let error = match self.try_once(&wanted, &about, &mut seen, &teller).await {
                Ok(facts) => return Ok(facts),
                Err(error) => error,
            };
            // An engine that has tried several times itself has waited long enough.
            let pause = pauses.next().filter(|_| error.is_passing() && !seen.engine_retried);
            let Some(pause) = pause else { return Err(error) };
            teller.tell(Progress::line(format!("{error}; again in {} s", pause.as_secs())));
            tokio::time::sleep(*pause).await;
        }
    }

    async fn try_once(
        &self,
        wanted: &Wanted,
        about: &About,
        seen: &mut Seen,
        teller: &Teller,
    ) -> Result<ImageFacts, Error> {
        let client = prepared(self.engine.client().await?, String::new());
        let options = CreateImageOptions {
            from_image: Some(wanted.reference.repository()),
            tag: Some(wanted.reference.version().to_owned()),
            platform: wanted.platform.clone().unwrap_or_default(),
            ..CreateImageOptions::default()
        };
        let credentials = wanted.credentials.as_ref().map(Credentials::for_engine);
        let stream = client.create_image(Some(options), None, credentials).map(|info| {
            let info = info?;
            Ok(Progress::of_engine(info.id, info.status.unwrap_or_default(), info.progress_detail))
        });
        let followed = follow(&self.engine, about, seen, stream, teller, self.quiet).await;
        if let Err(error) = followed {
            return Err(self.with_platforms(error, wanted).await);
        }
        let found = self.inspect(&about.image).await?;
        let facts = found.ok_or_else(|| about.explain_text("not found after it was pulled"))?;
        let Some(platform) = wanted.platform.as_deref().filter(|it| !facts.is_for(it)) else {
            return Ok(facts);
        };
        let known = |it: &String| {
            let one = ImageFacts { platform: it.clone(), ..ImageFacts::default() };
            one.is_for(platform)
        };
        // What is kept for several platforms is described as it is for this machine's.
        if facts.of_several && self.platforms(wanted).await.iter().any(known) {
            return Ok(facts);
        }
        Err(Error::WrongPlatform {
            image: about.image.clone(),
            platform: platform.to_owned(),
            message: format!("the registry has it for {}", facts.platform),
        })
    }

    /// Says which platforms there are, where the one that is wanted is not among them: the engine does not.
    async fn with_platforms(&self, error: Error, wanted: &Wanted) -> Error {
        let Error::WrongPlatform { image, platform, message } = error else { return error };
        let names = self.platforms(wanted).await;
        let message = match names.is_empty() {
            true => message,
            false => format!("the registry has it for {}", names.join(", ")),
        };
        Error::WrongPlatform { image, platform, message }
    }

    /// For which platforms a registry has an image, as far as it says.
    async fn platforms(&self, wanted: &Wanted) -> Vec<String> {
        let asked = async {
            let client = prepared(self.engine.client().await.ok()?, String::new());
            let credentials = wanted.credentials.as_ref().map(Credentials::for_engine);
            client.inspect_registry_image(&wanted.reference.to_string(), credentials).await.ok()
        };
        // Podman does not know the question.
        let there = tokio::time::timeout(PLATFORMS, asked).await.ok().flatten();
        let names = there.map(|it| it.platforms).unwrap_or_default().into_iter().map(|it| {
            let parts = [it.os, it.architecture, it.variant];
            let parts = parts.into_iter().flatten().filter(|part| !part.is_empty());
            parts.collect::<Vec<_>>().join("/")
        });
        names.filter(|name| !name.is_empty() && !name.starts_with("unknown")).collect()
    }
}
