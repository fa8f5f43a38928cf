//! Building the images of services, one after another: each build may use all that the machine has.

use std::collections::{BTreeMap, BTreeSet};

use keel_container::images::{Context as BuildContext, Recipe, is_remote, needs_buildkit};
use keel_model::{Build, ImageSource};
use keel_server::api::client::Client;
use keel_server::api::images::{BuildRequest, EngineView};

use super::plugin::{self, Plugin};
use super::{Present, Show, Sources, follow, logins};
use crate::context::Context;
use crate::failure::Failure;

/// What the command line says in addition to the file.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Run every step anew.
    pub no_cache: bool,
    /// Pull the images that it begins with.
    pub pull: bool,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Show nothing of it.
    pub quiet: bool,
}

/// Builds those of `sources` that can be built.
///
/// # Errors
/// When one can't be built; those after it are not begun.
pub async fn build(
    ctx: &Context,
    client: &Client,
    sources: &Sources,
    options: &BuildOptions,
) -> Result<Vec<Present>, Failure> {
    let mut built: Vec<Present> = Vec::new();
    if sources.values().all(|source| source.build.is_none()) {
        return Ok(built);
    }
    let engine = client.engine().await?;
    for name in in_order(sources) {
        let Some(source) = sources.get(&name) else { continue };
        let Some(build) = &source.build else { continue };
        if built.iter().any(|it| it.reference == source.reference) {
            continue;
        }
        let mut build = Build::clone(build);
        build.no_cache |= options.no_cache;
        build.pull |= options.pull;
        build.args.extend(options.args.clone());
        build.additional_contexts.values_mut().for_each(|value| named(value, sources));
        built.extend(one(ctx, client, &engine, source, &build, options.quiet).await?);
    }
    Ok(built)
}

/// `service:NAME` is the image of that service.
fn named(context: &mut String, sources: &Sources) {
    let service = context.strip_prefix("service:").and_then(|name| sources.get(name));
    if let Some(source) = service {
        *context = format!("docker-image://{}", source.reference);
    }
}

/// Services after those that they are built from.
fn in_order(sources: &Sources) -> Vec<String> {
    fn visit(name: &str, sources: &Sources, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        let build = sources.get(name).and_then(|source| source.build.as_ref());
        let contexts = build.into_iter().flat_map(|build| build.additional_contexts.values());
        for other in contexts.filter_map(|context| context.strip_prefix("service:")) {
            visit(other, sources, seen, order);
        }
        order.push(name.to_owned());
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in sources.keys() {
        visit(name, sources, &mut seen, &mut order);
    }
    order
}

async fn one(
    ctx: &Context,
    client: &Client,
    engine: &EngineView,
    source: &ImageSource,
    build: &Build,
    quiet: bool,
) -> Result<Vec<Present>, Failure> {
    let failed = |error: keel_container::images::Error| {
        let failure = Failure::failed(error.code(), error.to_string());
        error.hint().into_iter().fold(failure, Failure::hint)
    };
    let context = BuildContext::open(build).map_err(failed)?;
    // Podman's builder knows these steps; Docker's own does not.
    let docker = engine.kind == "docker";
    let text = context.as_ref().filter(|_| docker).map_or("", BuildContext::text);
    let needs = needs_buildkit(build, text);
    if !needs.is_empty() {
        let plugin = Plugin { engine, source, build, needs: &needs, quiet };
        plugin::run(&plugin).await?;
        return Ok(vec![Present {
            reference: source.reference.clone(),
            id: String::new(),
            changed: true,
        }]);
    }
    let dockerfile = context.as_ref().map(|context| context.dockerfile().to_owned());
    let dockerfile = dockerfile.or_else(|| build.dockerfile.clone());
    let recipe = Recipe::new(
        build,
        &source.reference,
        source.platform.as_deref(),
        dockerfile.as_deref().unwrap_or("Dockerfile"),
    );
    let credentials = logins()?.all().await;
    let pieces = context.filter(|_| !is_remote(&build.context)).map(BuildContext::pack);
    let pieces = futures_util::stream::unfold(pieces, |pieces| async {
        let mut pieces = pieces?;
        Some((pieces.recv().await?, Some(pieces)))
    });
    let lines = client.build(&BuildRequest { recipe, credentials }, pieces).await?;
    follow(lines, Show::new(ctx, quiet, "built")).await
}

#[cfg(test)]
mod tests {
    use keel_model::PullPolicy;

    use super::*;

    fn source(contexts: &[&str]) -> ImageSource {
        let contexts = contexts.iter().map(|it| ((*it).to_owned(), format!("service:{it}")));
        ImageSource {
            reference: "x".into(),
            platform: None,
            pull: PullPolicy::default(),
            build: Some(Box::new(Build {
                additional_contexts: contexts.collect(),
                ..Build::default()
            })),
        }
    }

    #[test]
    fn what_is_built_from_another_comes_after_it() {
        let all = [("a", source(&["c"])), ("b", source(&[])), ("c", source(&["b", "a"]))];
        let sources: Sources = all.into_iter().map(|(name, it)| (name.to_owned(), it)).collect();
        // A circle is the engine's to refuse.
        assert_eq!(in_order(&sources), ["b", "c", "a"]);
        let mut context = "service:b".to_owned();
        named(&mut context, &sources);
        assert_eq!(context, "docker-image://x");
    }
}
