//! Making images present before a change: which are pulled, which are built, and how that is shown.

mod build;
mod contexts;
mod plugin;
mod show;

use std::collections::{BTreeMap, BTreeSet};

use keel_compose::Lowered;
use keel_container::Surroundings;
use keel_container::images::{Credentials, Logins, Reference};
use keel_model::{ImageSource, PullPolicy, ServiceName};
use keel_server::api::client::{Client, Lines};
use keel_server::api::images::{ImageLine, ImageNews, PullImage, PullRequest};
use keel_server::api::types::ErrorBody;
use serde::Serialize;

pub use build::{BuildOptions, build};
pub use show::Show;

use crate::context::Context;
use crate::failure::Failure;

/// Images by the services that they are for, and those that mounts and steps name.
pub type Sources = BTreeMap<String, ImageSource>;

/// An image that is there now.
#[derive(Clone, Debug, Serialize)]
pub struct Present {
    /// Its name.
    pub reference: String,
    /// Its content.
    pub id: String,
    /// Something was done for it.
    pub changed: bool,
}

/// What `keel up` is told about images.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Build what can be built.
    pub build: bool,
    /// Build nothing.
    pub no_build: bool,
    /// In the place of what the file says.
    pub policy: Option<PullPolicy>,
    /// Show nothing of it.
    pub quiet: bool,
}

/// The images that these services need, by service or name; of all services when absent.
pub fn sources(lowered: &Lowered, services: Option<&BTreeSet<ServiceName>>) -> Sources {
    let wanted = |name: &ServiceName| services.is_none_or(|services| services.contains(name));
    let own = lowered.images.iter().filter(|(name, _)| wanted(name));
    let own = own.map(|(name, source)| (name.to_string(), source.clone()));
    let further = lowered.further_images.iter();
    let mut all: Sources =
        own.chain(further.map(|(name, source)| (name.clone(), source.clone()))).collect();
    // What one is built from, which may be built from others.
    loop {
        let builds = all.values().filter_map(|source| source.build.as_ref());
        let contexts = builds.flat_map(|build| build.additional_contexts.values());
        let from = contexts.filter_map(|context| context.strip_prefix("service:"));
        let from: BTreeSet<&str> = from.filter(|name| !all.contains_key(*name)).collect();
        let missing = lowered.images.iter().filter(|(name, _)| from.contains(name.as_str()));
        let missing: Sources =
            missing.map(|(name, source)| (name.to_string(), source.clone())).collect();
        if missing.is_empty() {
            return all;
        }
        all.extend(missing);
    }
}

/// Makes present what `up` needs.
///
/// # Errors
/// When an image can't be had.
pub async fn ensure(
    ctx: &Context,
    client: &Client,
    mut sources: Sources,
    wishes: &Wishes,
) -> Result<(), Failure> {
    if let Some(policy) = wishes.policy {
        sources.values_mut().for_each(|source| source.pull = policy);
    }
    let must_build = |source: &ImageSource| {
        source.build.is_some() && (wishes.build || source.pull == PullPolicy::Build)
    };
    let (forced, rest): (Sources, Sources) =
        sources.into_iter().partition(|(_, source)| !wishes.no_build && must_build(source));
    let absent = absent(client, &rest).await?;
    let pulled = |source: &ImageSource| match source.pull {
        PullPolicy::Always | PullPolicy::Every(_) => source.build.is_none(),
        // What can be built is built where it is missing.
        PullPolicy::Missing => source.build.is_none() && absent.contains_key(&source.reference),
        PullPolicy::Never | PullPolicy::Build => false,
    };
    let is_absent = |source: &ImageSource| absent.contains_key(&source.reference);
    let (built, rest): (Sources, Sources) = rest
        .into_iter()
        .partition(|(_, source)| source.build.is_some() && !wishes.no_build && is_absent(source));
    let builds: Sources = forced.into_iter().chain(built).collect();
    // One service may run what another builds or pulls.
    let of = |all: &Sources| -> BTreeSet<String> {
        all.values().map(|source| source.reference.clone()).collect()
    };
    let made = of(&builds);
    let rest = rest.into_iter().filter(|(_, source)| !made.contains(&source.reference));
    let (pulls, rest): (Sources, Sources) = rest.partition(|(_, source)| pulled(source));
    let brought = of(&pulls);
    let mut lacking = rest.values().filter(|source| !brought.contains(&source.reference));
    if let Some(error) = lacking.find_map(|source| absent.get(&source.reference)) {
        return Err(refused(error));
    }
    pull(ctx, client, &pulls, wishes.quiet).await?;
    let options = BuildOptions { quiet: wishes.quiet, ..BuildOptions::default() };
    build(ctx, client, &builds, &options).await.map(|_| ())
}

/// Those that are not there, by name. One question for all.
async fn absent(
    client: &Client,
    sources: &Sources,
) -> Result<BTreeMap<String, ErrorBody>, Failure> {
    let asked = sources.values().filter(|source| {
        !matches!(source.pull, PullPolicy::Always | PullPolicy::Every(_)) || source.build.is_some()
    });
    let images: Vec<PullImage> =
        asked.map(|source| wanted(source, PullPolicy::Never, None)).collect();
    let mut absent = BTreeMap::new();
    if images.is_empty() {
        return Ok(absent);
    }
    let mut lines = client.pull(&PullRequest { images }).await?;
    while let Some(line) = lines.next().await {
        let ImageLine { reference, news } = line?;
        match news {
            ImageNews::Error { error, .. } if error.code == "image_absent" => {
                absent.insert(reference, error);
            }
            ImageNews::Error { error, .. } => return Err(refused(&error)),
            _ => {}
        }
    }
    Ok(absent)
}

fn wanted(source: &ImageSource, policy: PullPolicy, credentials: Option<Credentials>) -> PullImage {
    PullImage {
        reference: source.reference.clone(),
        platform: source.platform.clone(),
        policy,
        credentials,
    }
}

/// Pulls these, as their policies say.
///
/// # Errors
/// When one can't be had: the others have been waited for.
pub async fn pull(
    ctx: &Context,
    client: &Client,
    sources: &Sources,
    quiet: bool,
) -> Result<Vec<Present>, Failure> {
    let references: BTreeSet<&str> = sources.values().map(|it| it.reference.as_str()).collect();
    let (credentials, problems) = credentials(references).await?;
    let mut images: Vec<PullImage> = Vec::new();
    for source in sources.values() {
        let known = credentials.get(&source.reference).cloned();
        let image = wanted(source, source.pull, known);
        if !images.contains(&image) {
            images.push(image);
        }
    }
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let lines = client.pull(&PullRequest { images }).await?;
    with_problems(ctx, follow(lines, Show::new(ctx, quiet, "pulled")).await, problems)
}

/// Says why credentials could not be had: as the reason of a failure, or as a warning where it went without.
pub fn with_problems<T>(
    ctx: &Context,
    done: Result<T, Failure>,
    problems: Vec<String>,
) -> Result<T, Failure> {
    match done {
        Ok(done) => {
            problems.iter().for_each(|problem| ctx.warn(problem));
            Ok(done)
        }
        Err(failure) => Err(failure.details(problems)),
    }
}

/// Shows what comes, until the end.
///
/// # Errors
/// When an image failed: the others have been waited for.
pub async fn follow(mut lines: Lines<ImageLine>, mut show: Show) -> Result<Vec<Present>, Failure> {
    let (mut present, mut failed) = (Vec::new(), Vec::new());
    while let Some(line) = lines.next().await {
        let line = line?;
        show.update(&line);
        match line.news {
            ImageNews::Progress(_) => {}
            ImageNews::Done { id, changed } => {
                present.push(Present { reference: line.reference, id, changed });
            }
            ImageNews::Error { error, output } => failed.push((error, output)),
        }
    }
    show.end();
    let Some((first, mut output)) = failed.first().cloned() else { return Ok(present) };
    // The others go with the first, whose hint is the one that is shown.
    let others = failed.iter().skip(1).map(|(error, _)| error.message.clone());
    output.extend(others);
    Err(refused(&first).details(output))
}

/// What registries are shown for these images, by image; and why there are none where there should be some: the image may
/// be there for everybody.
///
/// # Errors
/// When the user's configuration can't be read.
pub async fn credentials(
    references: BTreeSet<&str>,
) -> Result<(BTreeMap<String, Credentials>, Vec<String>), Failure> {
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    if references.is_empty() {
        return Ok((found, problems));
    }
    let logins = logins()?;
    let mut known: BTreeMap<String, Option<Credentials>> = BTreeMap::new();
    for text in references {
        // A text that is no name is refused by the server, with a reason.
        let Ok(reference) = text.parse::<Reference>() else { continue };
        let registry = reference.registry();
        if !known.contains_key(registry) {
            let credentials = logins.get(registry).await.unwrap_or_else(|error| {
                problems.push(error.to_string());
                None
            });
            known.insert(registry.to_owned(), credentials);
        }
        if let Some(Some(credentials)) = known.get(registry) {
            found.insert(text.to_owned(), credentials.clone());
        }
    }
    Ok((found, problems))
}

/// What all registries are shown that the user has logged in to; nothing where that can't be read.
pub async fn all_credentials(ctx: &Context) -> Vec<Credentials> {
    match Logins::of(&Surroundings::of_this_process()) {
        Ok(logins) => logins.all().await,
        Err(error) => {
            ctx.warn(&error.to_string());
            Vec::new()
        }
    }
}

fn logins() -> Result<Logins, Failure> {
    Logins::of(&Surroundings::of_this_process())
        .map_err(|error| Failure::failed("credentials", error.to_string()))
}

fn refused(error: &ErrorBody) -> Failure {
    keel_server::api::client::Error::Refused(error.clone()).into()
}
