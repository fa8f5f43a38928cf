//! Building the images of services, one after another: each build may use all that the machine has.

use std::collections::{BTreeMap, BTreeSet};

use keel_container::images::{
    Context as BuildContext, Images, Order, Recipe, Way, needs_buildkit, needs_plugin, way,
};
use keel_container::{Engine, Place, Tls};
use keel_model::{Build, ImageSource, PullPolicy};
use keel_server::api::client::Client;
use keel_server::api::images::{BuildRequest, EngineView, ImageLine, ImageNews};
use tokio::sync::mpsc;

use super::contexts::{Contexts, Names};
use super::plugin::{self, Plugin};
use super::{Present, Show, Sources, follow, logins};
use crate::context::Context;
use crate::failure::Failure;

/// Lines of a build that wait to be shown.
const TOLD: usize = 256;

/// What the command line says in addition to the file.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Run every step anew.
    pub no_cache: bool,
    /// Pull the images that it begins with.
    pub pull: bool,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Build no others than these; what they are built from is there.
    pub only: Option<BTreeSet<String>>,
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
    let builder = Builder::new(ctx, client, &engine);
    let wanted = |name: &String| options.only.as_ref().is_none_or(|only| only.contains(name));
    for name in in_order(sources).into_iter().filter(wanted) {
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
        built.extend(builder.service(source, &build, options.quiet).await?);
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

/// What builds.
pub(super) struct Builder<'a> {
    pub(super) ctx: &'a Context,
    pub(super) client: &'a Client,
    pub(super) engine: &'a EngineView,
    /// The engine, for this process itself: BuildKit asks whoever builds for the files.
    pub(super) images: Images,
}

/// An image that is to be built.
pub(super) struct Wanted<'a> {
    pub(super) reference: &'a str,
    pub(super) platform: Option<&'a str>,
    pub(super) build: &'a Build,
    /// Show nothing of it.
    pub(super) quiet: bool,
}

impl<'a> Builder<'a> {
    fn new(ctx: &'a Context, client: &'a Client, engine: &'a EngineView) -> Self {
        let tls = engine.tls.clone().map(|directory| Tls { directory });
        let place = Place { url: engine.url.clone(), named_by: "the server".into(), tls };
        Self { ctx, client, engine, images: Images::new(Engine::at(place)) }
    }

    /// Builds the image of a service, with images for its further contexts, which go again.
    async fn service(
        &self,
        source: &ImageSource,
        build: &Build,
        quiet: bool,
    ) -> Result<Vec<Present>, Failure> {
        let wanted = Wanted {
            reference: &source.reference,
            platform: source.platform.as_deref(),
            build,
            quiet,
        };
        if build.additional_contexts.is_empty() || needs_plugin(build) {
            return self.image(&wanted, &Names::new()).await;
        }
        let mut contexts = Contexts::default();
        let made = contexts.make(self, &wanted).await;
        let done = match made {
            Ok(()) => self.image(&wanted, &contexts.names).await,
            Err(failure) => Err(failure),
        };
        contexts.remove(self).await;
        done
    }

    /// Builds one image, in whose Dockerfile these names stand for these images.
    pub(super) async fn image(
        &self,
        wanted: &Wanted<'_>,
        names: &Names,
    ) -> Result<Vec<Present>, Failure> {
        let mut build = Build::clone(wanted.build);
        let mut context = BuildContext::open(&build).map_err(failure)?;
        let pulled = build.pull && !names.is_empty();
        if let (Some(context), true) = (&context, pulled) {
            // The engine would look for the images of contexts in a registry too.
            self.pull(context.begins_with(&build.args), wanted, names).await?;
            build.pull = false;
        }
        if !names.is_empty() {
            let Some(open) = context else {
                let message = format!(
                    "image {} can't be built: additional_contexts need a directory as the context",
                    wanted.reference
                );
                return Err(Failure::failed("build_failed", message));
            };
            let (named, shift) = open.naming(names);
            if let Some(number) = build.target.as_ref().and_then(|it| it.parse::<usize>().ok()) {
                build.target = Some((number + shift).to_string());
            }
            build.additional_contexts.clear();
            context = Some(named);
        }
        let wanted = Wanted { build: &build, ..*wanted };
        self.by_the_way(&wanted, context).await
    }

    async fn by_the_way(
        &self,
        wanted: &Wanted<'_>,
        context: Option<BuildContext>,
    ) -> Result<Vec<Present>, Failure> {
        let Wanted { reference, platform, build, quiet } = *wanted;
        let text = context.as_ref().map_or("", BuildContext::text);
        let info = self.images.engine().info().await;
        let way = match &info {
            Ok(info) => way(build, text, info, by_environment()),
            // A user who may use the server only still has the engine's own builder, through it.
            Err(_) => Way::Engine,
        };
        let dockerfile = context.as_ref().map(|context| context.dockerfile().to_owned());
        let dockerfile = dockerfile.or_else(|| build.dockerfile.clone());
        let dockerfile = dockerfile.as_deref().unwrap_or("Dockerfile");
        let recipe = Recipe::new(build, reference, platform, dockerfile);
        match (way, info) {
            (Way::BuildKit, _) => {
                let (build, logins) = (build.clone(), logins()?);
                self.by_buildkit(Order { recipe, build, context, logins }, quiet).await
            }
            (Way::Engine, Err(error)) if !needs_buildkit(build, text).is_empty() => {
                Err(failure(error.into()))
            }
            (Way::Engine, _) => self.by_the_server(recipe, context, quiet).await,
            (Way::Plugin(needs), _) => {
                let engine = self.engine;
                let plugin = Plugin { engine, reference, platform, build, needs: &needs, quiet };
                plugin::run(&plugin).await?;
                Ok(vec![Present {
                    reference: reference.to_owned(),
                    id: String::new(),
                    changed: true,
                }])
            }
            (Way::Nobody { needs, reason, hint }, _) => {
                let message =
                    format!("image {reference} can't be built with {}: {reason}", needs.join(", "));
                Err(Failure::failed("build_failed", message).hint(hint))
            }
        }
    }

    async fn by_buildkit(&self, order: Order, quiet: bool) -> Result<Vec<Present>, Failure> {
        let reference = order.recipe.reference.clone();
        let mut show = Show::new(self.ctx, quiet, "built");
        let (to, mut told) = mpsc::channel(TOLD);
        let line = |news| ImageLine { reference: reference.clone(), news };
        let telling = async {
            while let Some(progress) = told.recv().await {
                show.update(&line(ImageNews::Progress(progress)));
            }
        };
        let (built, ()) = tokio::join!(self.images.build_by_buildkit(order, Some(to)), telling);
        let done = match built {
            Ok(facts) => {
                show.update(&line(ImageNews::Done { id: facts.id.clone(), changed: true }));
                Ok(vec![Present { reference: reference.clone(), id: facts.id, changed: true }])
            }
            Err(error) => Err(failure(error)),
        };
        show.end();
        done
    }

    async fn by_the_server(
        &self,
        recipe: Recipe,
        context: Option<BuildContext>,
        quiet: bool,
    ) -> Result<Vec<Present>, Failure> {
        let credentials = logins()?.all().await;
        let pieces = context.map(BuildContext::pack);
        let pieces = futures_util::stream::unfold(pieces, |pieces| async {
            let mut pieces = pieces?;
            Some((pieces.recv().await?, Some(pieces)))
        });
        let lines = self.client.build(&BuildRequest { recipe, credentials }, pieces).await?;
        follow(lines, Show::new(self.ctx, quiet, "built")).await
    }

    async fn pull(
        &self,
        images: BTreeSet<String>,
        wanted: &Wanted<'_>,
        names: &Names,
    ) -> Result<(), Failure> {
        let images = images.into_iter().filter(|image| !names.contains_key(image));
        let source = |reference: String| {
            let platform = wanted.platform.map(str::to_owned);
            let pull = PullPolicy::Always;
            (reference.clone(), ImageSource { reference, platform, pull, build: None })
        };
        let sources = images.map(source).collect();
        super::pull(self.ctx, self.client, &sources, wanted.quiet).await.map(drop)
    }
}

/// What the user says of BuildKit, as Docker's own client reads it.
fn by_environment() -> Option<bool> {
    let text = std::env::var("DOCKER_BUILDKIT").ok()?;
    match text.as_str() {
        "" => None,
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => Some(true),
    }
}

/// What went wrong, with the last words of the step that failed.
fn failure(error: keel_container::images::Error) -> Failure {
    let output = match &error {
        keel_container::images::Error::Build { output, .. } => output.clone(),
        _ => Vec::new(),
    };
    let failure = Failure::failed(error.code(), error.to_string()).details(output);
    error.hint().into_iter().fold(failure, Failure::hint)
}

#[cfg(test)]
mod tests {
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
