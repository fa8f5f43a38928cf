//! Where images come from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::is_default;

/// How the image of a service comes to be on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// Its name, as the file has it, or `<stack>-<service>` where only a build is given.
    pub reference: String,
    /// `os[/arch[/variant]]`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub platform: Option<String>,
    /// When it is pulled or built.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull: PullPolicy,
    /// How it is built, if it can be.
    #[serde(default, skip_serializing_if = "is_default")]
    pub build: Option<Box<Build>>,
}

/// When an image is pulled or built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// When there is none of its name here (`missing`, `if_not_present`).
    #[default]
    Missing,
    /// Before every change.
    Always,
    /// Never; it must be here.
    Never,
    /// It is built before every change.
    Build,
    /// When it was pulled longer ago than this (`daily`, `weekly`, `every_<duration>`).
    Every(#[serde(with = "crate::millis")] Duration),
}

/// How an image is built. Paths are absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// A directory of the machine where the command was given, or a URL that the engine fetches.
    pub context: String,
    /// The Dockerfile, relative to the context (`Dockerfile`).
    #[serde(skip_serializing_if = "is_default")]
    pub dockerfile: Option<String>,
    /// The text of the Dockerfile.
    #[serde(skip_serializing_if = "is_default")]
    pub dockerfile_inline: Option<String>,
    /// `args`; one without a value has that of the environment where the command was given, if it is there.
    #[serde(skip_serializing_if = "is_default")]
    pub args: BTreeMap<String, String>,
    /// The stage that is built.
    #[serde(skip_serializing_if = "is_default")]
    pub target: Option<String>,
    /// Labels of the image.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// Further names of the image.
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Platforms that it is built for.
    #[serde(skip_serializing_if = "is_default")]
    pub platforms: Vec<String>,
    /// Images whose layers are taken where they fit.
    #[serde(skip_serializing_if = "is_default")]
    pub cache_from: Vec<String>,
    /// Where the cache is exported to.
    #[serde(skip_serializing_if = "is_default")]
    pub cache_to: Vec<String>,
    /// Every step is run anew.
    #[serde(skip_serializing_if = "is_default")]
    pub no_cache: bool,
    /// Stages whose steps are run anew.
    #[serde(skip_serializing_if = "is_default")]
    pub no_cache_filter: Vec<String>,
    /// Images that it begins with are pulled even if they are here.
    #[serde(skip_serializing_if = "is_default")]
    pub pull: bool,
    /// The network of its steps.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Option<String>,
    /// Size of `/dev/shm` in its steps, in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub shm_size: Option<u64>,
    /// Further entries of `/etc/hosts` in its steps.
    #[serde(skip_serializing_if = "is_default")]
    pub extra_hosts: BTreeMap<String, Vec<String>>,
    /// Limits of its steps: name to (soft, hard).
    #[serde(skip_serializing_if = "is_default")]
    pub ulimits: BTreeMap<String, (u64, u64)>,
    /// Further contexts by name: a directory, a URL, `docker-image://…`, or `service:NAME`.
    #[serde(skip_serializing_if = "is_default")]
    pub additional_contexts: BTreeMap<String, String>,
    /// Secrets that its steps may mount.
    #[serde(skip_serializing_if = "is_default")]
    pub secrets: Vec<BuildSecret>,
    /// SSH agents or keys that its steps may use: id to path, or to nothing for the agent of the environment.
    #[serde(skip_serializing_if = "is_default")]
    pub ssh: BTreeMap<String, Option<PathBuf>>,
    /// Its steps have all rights.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// What its steps may do besides (`network.host`, `security.insecure`).
    #[serde(skip_serializing_if = "is_default")]
    pub entitlements: Vec<String>,
}

/// A secret that a step of a build may mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSecret {
    /// The id that the step names it by.
    pub id: String,
    /// What it holds.
    pub content: crate::Content,
}
