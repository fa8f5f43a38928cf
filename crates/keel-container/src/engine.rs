//! The connection to an engine, made when it is first needed and again when it was lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};

use keel_runtime::ContainerExec;

use crate::Error;
use crate::place::{Place, Surroundings, Tls};
use crate::upgrade::ask;

/// How long the engine may take to begin an answer; what takes longer (pulls, builds, waits) is streamed.
const ANSWER: Duration = Duration::from_secs(120);
/// How long it may take to say that it is there.
const GREETING: Duration = Duration::from_secs(5);

/// Which engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Docker Engine.
    Docker,
    /// Podman's API service.
    Podman,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Which it is.
    pub kind: Kind,
    /// Its version.
    pub version: String,
    /// It runs without root: addresses of its containers can't be reached from the host.
    pub rootless: bool,
    /// It runs on this machine: it sees the same files, and its processes are ours to watch.
    pub local: bool,
    /// It keeps images as registries do (containerd's image store): one may be there for several platforms.
    pub image_store: bool,
    /// The version of its API that is spoken.
    pub api: (usize, usize),
    /// The address of the machine that it runs on, where that is another.
    pub host: Option<std::net::IpAddr>,
    /// What it is called by people: `Docker 28.1 at unix:///…`.
    pub text: String,
}

/// What Docker calls its driver where containerd keeps its images.
const IMAGE_STORE: &str = "io.containerd.snapshotter";

/// An engine that answered once.
#[derive(Clone)]
struct Known {
    client: Docker,
    url: String,
    info: Arc<EngineInfo>,
}

/// An engine, wherever it is.
#[derive(Clone, Default)]
pub struct Engine {
    surroundings: Arc<Surroundings>,
    /// Not to be looked for.
    at: Option<Place>,
    known: Arc<Mutex<Option<Known>>>,
    /// One greets, the others wait for what it finds.
    greeting: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("surroundings", &self.surroundings).finish_non_exhaustive()
    }
}

impl Engine {
    /// The engine that this process's environment leads to. Nothing is looked for yet.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self { surroundings: Arc::new(Surroundings::of_this_process()), ..Self::default() }
    }

    /// The engine at this place.
    #[must_use]
    pub fn at(place: Place) -> Self {
        Self { at: Some(place), ..Self::default() }
    }

    /// The engine of the container that `container` describes.
    #[must_use]
    pub fn of(container: &ContainerExec) -> Self {
        let tls = container.tls.clone().map(|directory| Tls { directory });
        Self::at(Place { url: container.engine.clone(), named_by: "the server".into(), tls })
    }

    /// Where the engine is; also when it does not answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn place(&self) -> Result<Place, Error> {
        self.at.clone().map_or_else(|| self.surroundings.find(), Ok)
    }

    /// What is looked at to find the engine and the user's credentials.
    #[must_use]
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// What the engine says of itself.
    ///
    /// # Errors
    /// When there is none or it does not answer.
    pub async fn info(&self) -> Result<Arc<EngineInfo>, Error> {
        Ok(self.known().await?.info)
    }

    /// The client of an engine that answered once.
    ///
    /// # Errors
    /// When there is none or it does not answer.
    pub async fn client(&self) -> Result<Docker, Error> {
        Ok(self.known().await?.client)
    }

    /// What a failed request means. An engine that is away is looked for anew the next time: another may come in
    /// its place.
    pub fn failed(&self, error: &bollard::errors::Error) -> Error {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let held = known.as_ref().map(|known| known.url.clone());
        let url = held.or_else(|| Some(self.place().ok()?.url)).unwrap_or_default();
        let error = Error::from_request(&url, error);
        if error.is_away() {
            *known = None;
        }
        error
    }

    async fn known(&self) -> Result<Known, Error> {
        let held = || self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = held() {
            return Ok(known);
        }
        let _turn = self.greeting.lock().await;
        if let Some(known) = held() {
            return Ok(known);
        }
        let known = greet(&self.place()?).await?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Ok(known)
    }
}

/// Connects and asks the engine who it is.
async fn greet(place: &Place) -> Result<Known, Error> {
    let failed = |error: bollard::errors::Error| Error::from_request(&place.url, &error);
    let client = connect(place).map_err(failed)?;
    let asked = async {
        let client = client.negotiate_version().await.map_err(failed)?;
        let version = client.version().await.map_err(failed)?;
        let info = client.info().await.map_err(failed)?;
        Ok((client, version, info))
    };
    let (client, version, info) =
        tokio::time::timeout(GREETING, asked).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", GREETING.as_secs());
            Err(Error::Away { url: place.url.clone(), reason })
        })?;
    let parts = version.components.unwrap_or_default();
    let kind = match parts.iter().any(|part| part.name.starts_with("Podman")) {
        true => Kind::Podman,
        false => Kind::Docker,
    };
    let version = version.version.unwrap_or_default();
    let options = info.security_options.unwrap_or_default();
    let named = options.iter().any(|option| option.contains("rootless"));
    let rootless = named || (kind == Kind::Podman && podman_is_rootless(place).await?);
    let local = place.url.starts_with("unix://");
    let store = info.driver_status.unwrap_or_default();
    let image_store = store.iter().flatten().any(|it| it.starts_with(IMAGE_STORE));
    let api = client.client_version();
    let api = (api.major_version, api.minor_version);
    let host = if local { None } else { address(&place.url).await };
    let text = format!("{kind:?} {version} at {}", place.url);
    let info =
        Arc::new(EngineInfo { kind, version, rootless, local, image_store, api, host, text });
    Ok(Known { client, url: place.url.clone(), info })
}

/// Podman does not say it where Docker does. Its addresses must not be taken for ones that can be reached: who answers
/// there is somebody else.
async fn podman_is_rootless(place: &Place) -> Result<bool, Error> {
    let late = || Error::Away { url: place.url.clone(), reason: "no answer in time".to_owned() };
    let said = tokio::time::timeout(GREETING, ask(place, "/v4.0.0/libpod/info")).await;
    let said = said.map_err(|_| late())??;
    let security = said.as_ref().and_then(|it| it.get("host")?.get("security"));
    let said = security.and_then(|it| it.get("rootless")?.as_bool());
    // One that does not say runs as whoever asks.
    Ok(said.unwrap_or_else(|| !rustix::process::geteuid().is_root()))
}

/// The address of the machine that a URL names.
async fn address(url: &str) -> Option<std::net::IpAddr> {
    let (_, host) = url.split_once("://")?;
    let found = tokio::net::lookup_host(host.trim_end_matches('/')).await.ok()?;
    found.map(|address| address.ip()).next()
}

fn connect(place: &Place) -> Result<Docker, bollard::errors::Error> {
    let seconds = ANSWER.as_secs();
    match (place.url.strip_prefix("unix://"), &place.tls) {
        (Some(path), _) => Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION),
        (None, Some(tls)) => {
            let file = |name: &str| tls.directory.join(name);
            let (key, cert, ca) = (file("key.pem"), file("cert.pem"), file("ca.pem"));
            Docker::connect_with_ssl(&place.url, &key, &cert, &ca, seconds, API_DEFAULT_VERSION)
        }
        (None, None) => Docker::connect_with_http(&place.url, seconds, API_DEFAULT_VERSION),
    }
}
