//! Settles which content each container service runs, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, stream};
use keel_container::images::{Error, ImageFacts, Images};
use keel_model::{MountSource, RuntimeKind, Service, ServiceName, Stack};

use super::again::Digests;
use crate::error::Refusal;

/// Images that the engine is asked about at the same time.
const AT_ONCE: usize = 16;

/// Pins the container services of `stack` that are among `named` (all when absent): each runs the content that the name
/// of its image stands for now. Services that are pinned already are left as they are. What registries call the images.
///
/// # Errors
/// [`Refusal`] with a line for each service whose image is not there.
pub async fn pin(
    images: &Images,
    stack: &mut Stack,
    named: Option<&[ServiceName]>,
) -> Result<Digests, Refusal> {
    let concerned = |name: &ServiceName, service: &Service| {
        let open = service.spec.container.as_ref().is_some_and(|it| it.image_id.is_none());
        service.spec.runtime == RuntimeKind::Container
            && open
            && named.is_none_or(|named| named.contains(name))
    };
    let services = stack.services.iter_mut().filter(|(name, service)| concerned(name, service));
    let mut services: Vec<_> = services.collect();
    let wanted: BTreeSet<String> =
        services.iter().flat_map(|(_, service)| needed(service)).map(str::to_owned).collect();
    if wanted.is_empty() {
        return Ok(Digests::new());
    }
    // One question first: an engine that is away is told once, not for each image.
    images.engine().client().await.map_err(Error::Engine)?;
    let ask = |name: String| async move {
        let found = images.inspect(&name).await;
        (name, found)
    };
    let found: BTreeMap<String, Result<Option<ImageFacts>, Error>> =
        stream::iter(wanted).map(ask).buffer_unordered(AT_ONCE).collect().await;
    let mut problems = Vec::new();
    let mut digests = Digests::new();
    for (name, service) in &mut services {
        problems.extend(missing(name, service, &found));
        let facts = service.spec.image.as_ref().and_then(|image| found.get(image));
        if let Some(Ok(Some(facts))) = facts {
            keel_container::images::pin(service, facts);
            if !facts.digests.is_empty() {
                digests.insert(facts.id.clone(), facts.digests.clone());
            }
        }
    }
    match problems.into_iter().reduce(|first, next| first.and(next)) {
        None => Ok(digests),
        Some(problem) => Err(problem.refusal()),
    }
}

/// The images that a service needs: its own, and those of its mounts and first steps.
fn needed(service: &Service) -> impl Iterator<Item = &str> {
    let spec = &service.spec;
    let mounts = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Image { name, .. } => Some(name.as_str()),
        _ => None,
    });
    let steps = spec.pre_start.iter().filter_map(|step| step.image.as_deref());
    spec.image.as_deref().into_iter().chain(mounts).chain(steps)
}

/// Why services can't be pinned.
struct Problem {
    code: &'static str,
    lines: Vec<String>,
    hint: Option<String>,
}

impl Problem {
    fn and(mut self, next: Self) -> Self {
        self.lines.extend(next.lines);
        self
    }

    fn refusal(self) -> Refusal {
        let refusal = Refusal::new(self.code, self.lines.join("\n"));
        match self.hint {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
}

fn missing(
    name: &ServiceName,
    service: &Service,
    found: &BTreeMap<String, Result<Option<ImageFacts>, Error>>,
) -> Vec<Problem> {
    let platform = service.spec.container.as_ref().and_then(|it| it.platform.as_deref());
    let own = service.spec.image.as_deref();
    let mut problems = Vec::new();
    for image in needed(service) {
        let (code, text, hint) = match found.get(image) {
            Some(Ok(Some(facts))) => {
                let wrong = platform.filter(|it| own == Some(image) && facts.is_not_for(it));
                let Some(platform) = wrong else { continue };
                let text = format!(
                    "image {image} on this machine is for {}, not {platform}",
                    facts.platform
                );
                ("image_platform", text, Some(ABSENT.to_owned()))
            }
            Some(Err(error)) => (error.code(), error.to_string(), error.hint()),
            _ => {
                let text = format!("image {image} is not on this machine");
                ("image_absent", text, Some(ABSENT.to_owned()))
            }
        };
        problems.push(Problem { code, lines: vec![format!("service `{name}`: {text}")], hint });
    }
    problems
}

/// What to do about an image that is not there.
const ABSENT: &str = "`keel pull` brings it, `keel build` makes it; `keel up` does both first";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(image: &str, platform: Option<&str>) -> Service {
        let json = json!({
            "spec": {
                "runtime": "container", "image": image, "command": [], "environment": {}, "mounts": [],
                "files": [], "limits": {}, "network": "isolated", "init": false,
                "pre_start": [], "post_start": [], "pre_stop": [], "ports": [],
                "logs": keel_model::LogPolicy::default(), "container": {"platform": platform},
            },
            "scale": {"replicated": 1}, "ports": [], "publish": [], "aliases": [], "depends_on": {},
            "restart": keel_model::RestartPolicy::default(),
            "rollout": keel_model::RolloutPolicy::default(),
            "stop": keel_model::StopPolicy::default(),
            "readiness": keel_model::Readiness::default(),
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn each_service_has_a_line_of_its_own() {
        let facts = ImageFacts { platform: "linux/amd64".into(), ..ImageFacts::default() };
        let found =
            BTreeMap::from([("here".to_owned(), Ok(Some(facts))), ("gone".to_owned(), Ok(None))]);
        let name = |text: &str| ServiceName::new(text).unwrap();
        let line = |service: &str, it: &Service| {
            let found = missing(&name(service), it, &found);
            found.iter().flat_map(|problem| problem.lines.clone()).collect::<Vec<_>>()
        };
        assert!(line("a", &service("here", None)).is_empty());
        assert_eq!(
            line("b", &service("gone", None)),
            ["service `b`: image gone is not on this machine"]
        );
        assert_eq!(
            line("c", &service("here", Some("linux/arm64"))),
            ["service `c`: image here on this machine is for linux/amd64, not linux/arm64"]
        );
    }
}
