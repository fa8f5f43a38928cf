//! What is said about images. Credentials go in and never out.

use keel_model::PullPolicy;
use serde::{Deserialize, Serialize};

pub use keel_container::images::{
    Context, Credentials, Error as ImageError, ImageSummary, Logins, Pieces, Progress, Recipe,
    Reference, Secret,
};

use super::types::ErrorBody;

/// Body of `POST /v1/images/pull`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// What has to be on the machine.
    pub images: Vec<PullImage>,
}

/// An image that has to be on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullImage {
    /// Its name.
    pub reference: String,
    /// `os[/arch[/variant]]`.
    #[serde(default)]
    pub platform: Option<String>,
    /// When it is pulled. What is only built has to be here.
    #[serde(default)]
    pub policy: PullPolicy,
    /// What the registry is shown.
    #[serde(default)]
    pub credentials: Option<Credentials>,
}

/// Body of `POST /v1/images/push`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// What is pushed.
    pub images: Vec<PushImage>,
}

/// An image that is pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushImage {
    /// Its name, which says the registry.
    pub reference: String,
    /// What the registry is shown.
    #[serde(default)]
    pub credentials: Option<Credentials>,
}

/// The first line of the body of `POST /v1/images/build`; the archive of the context follows it, as it is. The
/// context comes over the wire because the server may run as another user, who may not read the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// How it is built.
    pub recipe: Recipe,
    /// What registries are shown from which images come that it begins with.
    pub credentials: Vec<Credentials>,
}

/// A line of the answers to those: something on the way, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLine {
    /// Which image.
    pub reference: String,
    /// What of it.
    #[serde(flatten)]
    pub news: ImageNews,
}

/// What is told of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageNews {
    /// It goes on.
    Progress(Progress),
    /// It is there. The last line about it.
    Done {
        /// Its content (`sha256:…`).
        id: String,
        /// Something was done; otherwise it was there already.
        changed: bool,
    },
    /// It can't be had. The last line about it.
    Error {
        /// Why, and what to do.
        error: ErrorBody,
        /// The last lines of a build's step that failed.
        output: Vec<String>,
    },
}

/// Answer to `GET /v1/engine`: the container engine of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineView {
    /// `docker` or `podman`.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// Where it is.
    pub url: String,
    /// Directory of the certificates for it.
    #[serde(default)]
    pub tls: Option<std::path::PathBuf>,
    /// What people call it.
    pub text: String,
}
