//! A build in the words of BuildKit's Dockerfile frontend. Pure.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use keel_model::Build;

use crate::images::recipe::Recipe;

/// The tree with the Dockerfile.
pub(super) const DOCKERFILE: &str = "dockerfile";
/// The tree with the files of the build.
pub(super) const CONTEXT: &str = "context";
/// The Dockerfile in its tree.
pub(super) const FILE: &str = "Dockerfile";

/// Attributes of the frontend. `local` says that the files come from this machine.
pub(super) fn frontend(recipe: &Recipe, build: &Build, local: bool) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        all.insert(name.to_owned(), value.to_owned());
    };
    let own = local || build.dockerfile_inline.is_some();
    set("filename", if own { FILE } else { &recipe.dockerfile });
    if let Some(remote) = recipe.remote.as_ref().filter(|_| !local) {
        set("context", remote);
        if own {
            set("dockerfilekey", DOCKERFILE);
        }
    }
    set("image-resolve-mode", if recipe.pull { "pull" } else { "default" });
    if recipe.no_cache {
        set("no-cache", "");
    } else if !build.no_cache_filter.is_empty() {
        set("no-cache", &build.no_cache_filter.join(","));
    }
    for (name, value) in [("target", &recipe.target), ("platform", &recipe.platform)] {
        value.iter().for_each(|value| set(name, value));
    }
    if let Some(mode @ ("host" | "none")) = recipe.network.as_deref() {
        set("force-network-mode", mode);
    }
    if let Some(size) = recipe.shm_size {
        set("shm-size", &size.to_string());
    }
    let hosts = recipe.extra_hosts.iter().filter_map(|host| host.split_once(':'));
    let hosts: Vec<String> = hosts.map(|(name, address)| format!("{name}={address}")).collect();
    let limits = recipe.ulimits.iter();
    let limits: Vec<String> =
        limits.map(|(name, (soft, hard))| format!("{name}={soft}:{hard}")).collect();
    for (name, values) in [("add-hosts", &hosts), ("ulimit", &limits)] {
        if !values.is_empty() {
            set(name, &values.join(","));
        }
    }
    recipe.args.iter().for_each(|(name, value)| set(&format!("build-arg:{name}"), value));
    recipe.labels.iter().for_each(|(name, value)| set(&format!("label:{name}"), value));
    all
}

/// `type=registry,ref=…`, or the name of an image.
pub(super) fn cache(text: &str) -> CacheOptionsEntry {
    let pairs: Option<Vec<(&str, &str)>> =
        text.split(',').map(|part| part.trim().split_once('=')).collect();
    let mut attrs: std::collections::HashMap<String, String> = match pairs {
        Some(pairs) => pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        None => std::collections::HashMap::from([("ref".to_owned(), text.to_owned())]),
    };
    let r#type = attrs.remove("type").unwrap_or_else(|| "registry".to_owned());
    CacheOptionsEntry { r#type, attrs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_said_in_the_words_of_the_frontend() {
        let build = Build {
            context: "/src".into(),
            args: BTreeMap::from([("WHO".into(), "a b".into())]),
            labels: BTreeMap::from([("k".into(), "v".into())]),
            target: Some("base".into()),
            network: Some("none".into()),
            no_cache_filter: vec!["a".into(), "b".into()],
            extra_hosts: BTreeMap::from([("db".into(), vec!["10.0.0.1".into(), "::1".into()])]),
            ulimits: BTreeMap::from([("nofile".into(), (1, 2))]),
            shm_size: Some(7),
            platforms: vec!["linux/arm64".into()],
            pull: true,
            ..Build::default()
        };
        let recipe = Recipe::new(&build, "x", None, "deploy/Dockerfile");
        let said = frontend(&recipe, &build, true);
        for (name, value) in [
            ("filename", "Dockerfile"),
            ("build-arg:WHO", "a b"),
            ("label:k", "v"),
            ("target", "base"),
            ("force-network-mode", "none"),
            ("no-cache", "a,b"),
            ("add-hosts", "db=10.0.0.1,db=::1"),
            ("ulimit", "nofile=1:2"),
            ("shm-size", "7"),
            ("platform", "linux/arm64"),
            ("image-resolve-mode", "pull"),
        ] {
            assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(said.get("context"), None);
        let remote = Build { context: "https://example.com/x.git".into(), ..Build::default() };
        let recipe = Recipe::new(&remote, "x", None, "deploy/Dockerfile");
        let said = frontend(&recipe, &remote, false);
        assert_eq!(said["context"], "https://example.com/x.git");
        assert_eq!(said["filename"], "deploy/Dockerfile");
    }

    #[test]
    fn caches_are_read_as_the_file_has_them() {
        let plain = cache("localhost:5000/app:cache");
        assert_eq!(
            (plain.r#type.as_str(), plain.attrs["ref"].as_str()),
            ("registry", "localhost:5000/app:cache")
        );
        let typed = cache("type=gha,scope=x");
        assert_eq!((typed.r#type.as_str(), typed.attrs["scope"].as_str()), ("gha", "x"));
        assert_eq!(cache("type=inline").r#type, "inline");
    }
}
