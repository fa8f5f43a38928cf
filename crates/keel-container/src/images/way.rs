//! Who builds an image: the engine's BuildKit, its own old builder, or Docker's plugin `buildx`. Pure.

use keel_model::Build;

use super::recipe::needs_buildkit;
use crate::{EngineInfo, Kind};

/// The first version of the API that has BuildKit (Docker 18.09).
const BUILDKIT: (usize, usize) = (1, 39);
/// The first whose BuildKit limits its steps (Docker 23).
const LIMITS: (usize, usize) = (1, 42);
/// Steps that came with it.
const NEWER: [&str; 3] = ["here-documents", "COPY --link", "ADD --checksum"];
/// Networks of steps that BuildKit knows.
const NETWORKS: [&str; 3] = ["default", "none", "host"];

/// Who builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The engine's BuildKit.
    BuildKit,
    /// The engine's own builder: Podman's, or the one that Docker had first.
    Engine,
    /// Docker's plugin, as the engine's BuildKit can't do these.
    Plugin(Vec<&'static str>),
    /// Nobody.
    Nobody {
        /// What can't be done.
        needs: Vec<&'static str>,
        /// By whom not.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}

/// Who builds `build`, whose Dockerfile has this text. `wanted` is what the user says of BuildKit, as Docker's own
/// client reads it (`DOCKER_BUILDKIT`).
#[must_use]
pub fn way(build: &Build, dockerfile: &str, engine: &EngineInfo, wanted: Option<bool>) -> Way {
    // Further contexts are images by now, for every builder.
    let needs = needs_buildkit(build, dockerfile);
    if engine.kind == Kind::Podman {
        // Podman's builder knows the steps.
        let needs = needs_buildkit(build, "");
        return match needs.is_empty() {
            true => Way::Engine,
            false => Way::Nobody {
                needs,
                reason: "Podman does not do it through its API".to_owned(),
                hint: "build it with Docker, or with `podman build` under the name of the image",
            },
        };
    }
    let plugin = beyond(build);
    if !plugin.is_empty() {
        return Way::Plugin(plugin);
    }
    let refused = not_for_buildkit(build, dockerfile, engine);
    match (needs.is_empty(), wanted != Some(false) && engine.api >= BUILDKIT, refused) {
        (_, true, None) => Way::BuildKit,
        (true, ..) => Way::Engine,
        (false, true, Some(what)) => Way::Nobody {
            needs,
            reason: format!("the BuildKit of {} does not know {what}", engine.text),
            hint: "use Docker 23 or later, or leave it out; steps can be had by `# syntax=docker/dockerfile:1` as the \
                   Dockerfile's first line, which the engine fetches",
        },
        (false, false, _) if wanted == Some(false) => Way::Nobody {
            needs,
            reason: "DOCKER_BUILDKIT=0 keeps it from the engine's BuildKit".to_owned(),
            hint: "unset DOCKER_BUILDKIT",
        },
        (false, false, _) => Way::Nobody {
            needs,
            reason: format!("{} has no BuildKit", engine.text),
            hint: "use Docker 18.09 or later",
        },
    }
}

/// Whether only a BuildKit that Docker's plugin starts can build it.
#[must_use]
pub fn needs_plugin(build: &Build) -> bool {
    !beyond(build).is_empty()
}

/// What the BuildKit that is part of Docker can't do, and one that the plugin starts can.
fn beyond(build: &Build) -> Vec<&'static str> {
    let kind = |text: &str| {
        let kind = text.split(',').find_map(|part| part.trim().strip_prefix("type="));
        kind.map(str::to_owned)
    };
    let other = |texts: &[String], own: &str| {
        texts.iter().any(|text| kind(text).is_some_and(|kind| kind != own))
    };
    let exports_image = build.cache_to.iter().any(|text| kind(text).is_none());
    [
        (build.platforms.len() > 1, "more than one platform"),
        (other(&build.cache_from, "registry"), "cache_from of another type than registry"),
        (exports_image || other(&build.cache_to, "inline"), "cache_to of another type than inline"),
        (
            build.additional_contexts.values().any(|it| is_for_plugin(it)),
            "additional_contexts from Git or OCI layouts",
        ),
    ]
    .into_iter()
    .filter_map(|(needs, what)| needs.then_some(what))
    .collect()
}

fn is_for_plugin(context: &str) -> bool {
    ["oci-layout://", "git://", "git@", "ssh://", "github.com/"]
        .iter()
        .any(|prefix| context.starts_with(prefix))
        || (context.starts_with("http") && context.contains(".git"))
}

/// What only the engine's old builder knows, of a build.
fn not_for_buildkit(build: &Build, dockerfile: &str, engine: &EngineInfo) -> Option<&'static str> {
    let network = build.network.as_deref();
    if network.is_some_and(|network| !NETWORKS.contains(&network)) {
        return Some("other networks than `default`, `none` and `host`");
    }
    if engine.api >= LIMITS {
        return None;
    }
    if !build.ulimits.is_empty() || build.shm_size.is_some() {
        return Some("ulimits and shm_size");
    }
    // Another frontend may know them.
    let chosen = dockerfile.lines().take_while(|line| line.starts_with('#')).any(|line| {
        let name = line.trim_start_matches('#').split('=').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("syntax")
    });
    let needs = needs_buildkit(build, dockerfile);
    NEWER.into_iter().find(|step| !chosen && needs.contains(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(kind: Kind, api: (usize, usize)) -> EngineInfo {
        EngineInfo {
            kind,
            version: String::new(),
            rootless: false,
            local: true,
            image_store: false,
            api,
            host: None,
            text: "it".into(),
        }
    }

    #[test]
    fn buildkit_is_the_way_where_it_is() {
        let plain = Build::default();
        let mount = "FROM a\nRUN --mount=type=cache,target=/x make\n";
        let limited = Build { shm_size: Some(1), ..Build::default() };
        let docker = |minor| engine(Kind::Docker, (1, minor));
        assert_eq!(way(&plain, "", &docker(41), None), Way::BuildKit);
        assert_eq!(way(&plain, mount, &docker(41), Some(true)), Way::BuildKit);
        assert_eq!(way(&plain, "", &docker(41), Some(false)), Way::Engine);
        assert_eq!(way(&plain, "", &docker(38), None), Way::Engine);
        assert_eq!(way(&limited, "", &docker(41), None), Way::Engine);
        assert_eq!(way(&limited, mount, &docker(42), None), Way::BuildKit);
        assert_eq!(way(&plain, mount, &engine(Kind::Podman, (1, 41)), None), Way::Engine);
    }

    #[test]
    fn what_nobody_can_do_is_said() {
        let mount = "FROM a\nRUN --mount=type=cache,target=/x make\n";
        let docker = engine(Kind::Docker, (1, 41));
        let why = |way: Way| match way {
            Way::Nobody { needs, reason, .. } => format!("{}: {reason}", needs.join(", ")),
            other => panic!("{other:?}"),
        };
        let limited = Build { shm_size: Some(1), ..Build::default() };
        assert!(why(way(&limited, mount, &docker, None)).contains("ulimits and shm_size"));
        assert!(
            why(way(&Build::default(), mount, &docker, Some(false))).contains("DOCKER_BUILDKIT")
        );
        let old = engine(Kind::Docker, (1, 38));
        assert_eq!(
            why(way(&Build::default(), mount, &old, None)),
            "RUN --mount: it has no BuildKit"
        );
        let here = "FROM a\nRUN <<EOF\nls\nEOF\n";
        assert!(why(way(&Build::default(), here, &docker, None)).ends_with("here-documents"));
        let chosen = format!("# syntax = docker/dockerfile:1\n{here}");
        assert_eq!(way(&Build::default(), &chosen, &docker, None), Way::BuildKit);
        let new = engine(Kind::Docker, (1, 42));
        assert_eq!(way(&Build::default(), here, &new, None), Way::BuildKit);
        let agent = Build { ssh: [("default".to_owned(), None)].into(), ..Build::default() };
        let podman = engine(Kind::Podman, (1, 41));
        assert!(why(way(&agent, "", &podman, None)).starts_with("ssh: Podman"));
    }

    #[test]
    fn the_plugin_is_for_what_is_beyond() {
        let docker = engine(Kind::Docker, (1, 41));
        let cache = |to: &str| Build { cache_to: vec![to.into()], ..Build::default() };
        assert_eq!(way(&cache("type=inline"), "", &docker, None), Way::BuildKit);
        for to in ["type=local,dest=x", "app:cache", "type=registry,ref=x"] {
            assert!(matches!(way(&cache(to), "", &docker, None), Way::Plugin(_)), "{to}");
        }
        let from = Build {
            cache_from: vec!["app".into(), "type=registry,ref=x".into()],
            ..Build::default()
        };
        assert_eq!(way(&from, "", &docker, None), Way::BuildKit);
    }
}
