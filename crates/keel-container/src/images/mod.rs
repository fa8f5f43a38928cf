//! Images: what is known of them, and how they come to be on the machine.
//!
//! [`Images`] pulls, builds and pushes through the engine. Nothing here decides *when*: that is the affair of the
//! server, which makes images present before it changes anything, and pins each container service to the content
//! that the name stood for ([`pin`]).

mod build;
mod buildkit;
mod context;
mod credentials;
mod dockerfile;
mod error;
mod facts;
mod flight;
mod follow;
mod ignored;
mod keep;
mod login;
mod pin;
mod progress;
mod pull;
mod recipe;
mod reference;
mod way;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use crate::archive::Pieces;
pub use buildkit::Order;
pub use context::{Context, ignored, is_remote};
pub use credentials::{Credentials, Secret};
pub use error::Error;
pub use facts::ImageFacts;
pub(crate) use facts::with_algorithm;
pub use ignored::Ignored;
pub use keep::{ImageSummary, KEPT_REVISIONS, context_image};
pub use login::{LoginError, Logins};
pub use pin::pin;
pub use progress::{Listener, Progress};
pub use recipe::{Recipe, needs_buildkit};
pub use reference::{DOCKER_HUB, InvalidReference, Reference};
pub use way::{Way, needs_plugin, way};

use crate::{Engine, Kind};
use error::About;
use flight::Flights;

/// Images that are pulled at the same time; others wait. Each has its layers loaded in parallel by the engine.
const PARALLEL: usize = 4;
/// Without a sign of life for this long, a registry is given up.
const QUIET: Duration = Duration::from_secs(60);

/// The images of an engine. Clones share what is being done.
#[derive(Clone)]
pub struct Images {
    engine: Engine,
    pulls: Flights<pull::Wanted, Result<ImageFacts, Error>>,
    slots: Arc<Semaphore>,
    quiet: Duration,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Images {
    /// Those of this engine.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        let slots = Arc::new(Semaphore::new(PARALLEL));
        Self { engine, pulls: Flights::default(), slots, quiet: QUIET }
    }

    /// With another time without a sign of life after which a registry is given up (60 s).
    #[must_use]
    pub fn with_quiet(mut self, quiet: Duration) -> Self {
        self.quiet = quiet;
        self
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What is known of an image on this machine, by its name or its id (`sha256:…`).
    ///
    /// # Errors
    /// When the text is no name, or the engine can't be asked.
    pub async fn inspect(&self, name: &str) -> Result<Option<ImageFacts>, Error> {
        if !is_id(name) {
            let _: Reference = name.parse()?;
        }
        let client = self.engine.client().await?;
        match client.inspect_image(name).await {
            Ok(image) => self.complete(ImageFacts::of(image)).await.map(Some),
            Err(error) => match self.engine.failed(&error) {
                crate::Error::NotFound { .. } => Ok(None),
                error => Err(self.about(name, None).explain(error)),
            },
        }
    }

    /// With what Podman leaves out where it speaks as Docker does (the health check), and what is known of the engine.
    async fn complete(&self, mut facts: ImageFacts) -> Result<ImageFacts, Error> {
        let info = self.engine.info().await?;
        facts.of_several = info.image_store;
        if facts.health.is_none() && info.kind == Kind::Podman {
            let id = facts.id.strip_prefix("sha256:").unwrap_or(&facts.id);
            let said = self.engine.ask(&format!("/v4.0.0/libpod/images/{id}/json")).await?;
            facts.health = said.as_ref().and_then(facts::health_of_podman);
        }
        Ok(facts)
    }

    fn about(&self, image: &str, platform: Option<&str>) -> About {
        let registry = image.parse().map(|it: Reference| it.registry().to_owned());
        About {
            image: image.to_owned(),
            registry: registry.unwrap_or_default(),
            platform: platform.map(str::to_owned),
            user: None,
        }
    }
}

/// Whether it is the id of an image.
fn is_id(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
