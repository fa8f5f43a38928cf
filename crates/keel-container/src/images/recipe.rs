//! How an image is built, as it is sent to the engine; and what only BuildKit can do. Pure.

use std::collections::BTreeMap;

use keel_model::Build;
use serde::{Deserialize, Serialize};

use super::context::is_remote;

/// How an image is built; the context comes apart from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// The name that the image gets.
    pub reference: String,
    /// Further names.
    pub tags: Vec<String>,
    /// The Dockerfile, in the context.
    pub dockerfile: String,
    /// What the engine fetches in the place of a context that is sent.
    pub remote: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// The stage that is built.
    pub target: Option<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Images whose layers are taken where they fit.
    pub cache_from: Vec<String>,
    /// Every step is run anew.
    pub no_cache: bool,
    /// Images that it begins with are pulled even if they are here.
    pub pull: bool,
    /// The network of its steps.
    pub network: Option<String>,
    /// Size of `/dev/shm` in its steps, in bytes.
    pub shm_size: Option<u64>,
    /// Further entries of `/etc/hosts`, as `name:address`.
    pub extra_hosts: Vec<String>,
    /// Limits of its steps.
    pub ulimits: BTreeMap<String, (u64, u64)>,
    /// `os[/arch[/variant]]`.
    pub platform: Option<String>,
}

impl Recipe {
    /// That of a service. `dockerfile` is its name in the context that is sent.
    #[must_use]
    pub fn new(build: &Build, reference: &str, platform: Option<&str>, dockerfile: &str) -> Self {
        let hosts = build.extra_hosts.iter();
        let hosts = hosts.flat_map(|(name, all)| all.iter().map(move |it| format!("{name}:{it}")));
        Self {
            reference: reference.to_owned(),
            tags: build.tags.clone(),
            dockerfile: dockerfile.to_owned(),
            remote: is_remote(&build.context).then(|| build.context.clone()),
            args: build.args.clone(),
            target: build.target.clone(),
            labels: build.labels.clone(),
            cache_from: build.cache_from.clone(),
            no_cache: build.no_cache,
            pull: build.pull,
            network: build.network.clone(),
            shm_size: build.shm_size,
            extra_hosts: hosts.collect(),
            ulimits: build.ulimits.clone(),
            platform: platform.map(str::to_owned).or_else(|| build.platforms.first().cloned()),
        }
    }
}

/// What of a build the engine's own builder can't do: keys of `build`, or what its Dockerfile uses.
#[must_use]
pub fn needs_buildkit(build: &Build, dockerfile: &str) -> Vec<&'static str> {
    let steps: Vec<&str> = dockerfile.lines().map(str::trim).collect();
    let has = |words: &[&str], option: &str| {
        let of = |line: &&str| {
            let mut parts = line.split_whitespace();
            let word = parts.next().unwrap_or_default();
            words.iter().any(|known| known.eq_ignore_ascii_case(word))
                && parts.take_while(|part| part.starts_with("--")).any(|it| it.starts_with(option))
        };
        steps.iter().any(of)
    };
    // `RUN <<EOF`, not `RUN cat <<< x`, which is the shell's.
    let here = |line: &&str| {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or_default();
        ["RUN", "COPY", "ADD"].iter().any(|known| known.eq_ignore_ascii_case(word))
            && rest.trim_start().starts_with("<<")
    };
    [
        (!build.secrets.is_empty(), "secrets"),
        (!build.ssh.is_empty(), "ssh"),
        (!build.additional_contexts.is_empty(), "additional_contexts"),
        (!build.cache_to.is_empty(), "cache_to"),
        (!build.entitlements.is_empty(), "entitlements"),
        (build.privileged, "privileged"),
        (!build.no_cache_filter.is_empty(), "no_cache_filter"),
        (build.platforms.len() > 1, "more than one platform"),
        (has(&["RUN"], "--mount"), "RUN --mount"),
        (has(&["RUN"], "--network") || has(&["RUN"], "--security"), "RUN --network, --security"),
        (has(&["COPY", "ADD"], "--link"), "COPY --link"),
        (has(&["COPY", "ADD"], "--chmod"), "COPY --chmod"),
        (has(&["ADD"], "--checksum"), "ADD --checksum"),
        (steps.iter().any(here), "here-documents"),
    ]
    .into_iter()
    .filter_map(|(needs, what)| needs.then_some(what))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_has_what_the_file_says() {
        let build = Build {
            context: "https://example.com/x.git".into(),
            extra_hosts: BTreeMap::from([("db".into(), vec!["10.0.0.1".into(), "::1".into()])]),
            platforms: vec!["linux/amd64".into()],
            ..Build::default()
        };
        let recipe = Recipe::new(&build, "shop-api", None, "Dockerfile");
        assert_eq!(recipe.remote.as_deref(), Some("https://example.com/x.git"));
        assert_eq!(recipe.extra_hosts, ["db:10.0.0.1", "db:::1"]);
        assert_eq!(recipe.platform.as_deref(), Some("linux/amd64"));
        let own = Recipe::new(&build, "shop-api", Some("linux/arm64"), "Dockerfile");
        assert_eq!(own.platform.as_deref(), Some("linux/arm64"));
    }

    #[test]
    fn what_only_buildkit_can_do_is_seen() {
        let text =
            "FROM a\nRUN --mount=type=cache,target=/x make\nCOPY --link a b\nRUN <<EOF\nls\nEOF\n";
        let found = needs_buildkit(&Build::default(), text);
        assert_eq!(found, ["RUN --mount", "COPY --link", "here-documents"]);
        let plain = "FROM --platform=linux/amd64 a\nCOPY --from=a --chown=1 a b\nRUN x --mount=y\nRUN cat <<< x\n";
        assert!(needs_buildkit(&Build::default(), plain).is_empty());
        let build =
            Build { cache_to: vec!["type=inline".into()], privileged: true, ..Build::default() };
        assert_eq!(needs_buildkit(&build, ""), ["cache_to", "privileged"]);
    }
}
