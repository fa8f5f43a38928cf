//! Where images come from: `image`, `platform`, `pull_policy`, `build`.

use std::path::PathBuf;
use std::time::Duration;

use keel_model::{Build, BuildSecret, ImageSource, MountSource, PullPolicy, ServiceName, Spec};

use super::Lower;
use super::container::{one_or_more, text};
use super::spec::{is_true, texts};
use crate::diagnostic::{Code, Span, nearest};
use crate::loader::join;
use crate::number::parse_duration;
use crate::resolve::is_remote_context;
use crate::value::Node;

/// The variable that names the platform of services without `platform`, as Docker Compose has it.
const DEFAULT_PLATFORM: &str = "DOCKER_DEFAULT_PLATFORM";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Words of `pull_policy`.
const POLICIES: [(&str, PullPolicy); 7] = [
    ("missing", PullPolicy::Missing),
    ("if_not_present", PullPolicy::Missing),
    ("always", PullPolicy::Always),
    ("never", PullPolicy::Never),
    ("build", PullPolicy::Build),
    ("daily", PullPolicy::Every(DAY)),
    ("weekly", PullPolicy::Every(Duration::from_secs(7 * DAY.as_secs()))),
];

impl<'l> Lower<'l> {
    /// The image of a service.
    pub(super) fn image(&mut self, service: &str, node: &Node, span: &Span) -> ImageSource {
        let build = node.get("build").filter(|build| !build.is_null());
        let pull = self.pull_policy(node);
        if pull == PullPolicy::Build && build.is_none() {
            let span = node.get("pull_policy").map_or(span, |policy| &policy.span).clone();
            let message = format!("the image of `{service}` can't be built: there is no `build`");
            self.error(Code::Conflict, &span, message, "add a `build`, or choose another policy");
        }
        ImageSource {
            reference: self.reference(service, node),
            platform: self.platform(node),
            pull,
            build: build.map(|build| Box::new(self.build(build))),
        }
    }

    /// A build may begin with what another service builds, even if that service does not run.
    pub(super) fn images_of_contexts(&mut self) {
        while let Some((name, node)) = self.next_context() {
            let span = self.project.span_of(name.as_str()).unwrap_or(&node.span).clone();
            let source = self.image(name.as_str(), node, &span);
            self.images.insert(name, source);
        }
    }

    fn next_context(&self) -> Option<(ServiceName, &'l Node)> {
        let project = self.project;
        let builds = self.images.values().filter_map(|image| image.build.as_deref());
        let contexts = builds.flat_map(|build| build.additional_contexts.values());
        let names = contexts.filter_map(|context| context.strip_prefix("service:"));
        names.filter(|name| !self.images.contains_key(*name)).find_map(|name| {
            let node = project.service(name)?;
            Some((ServiceName::new(name).ok()?, node))
        })
    }

    /// Its name; one that is only built is called like the service, as Docker Compose calls it.
    fn reference(&mut self, service: &str, node: &Node) -> String {
        let node = node.get("image").filter(|image| image.as_str() != Some(""));
        let Some((node, image)) = node.and_then(|node| Some((node, node.as_str()?))) else {
            return format!("{}-{service}", self.project.name);
        };
        self.check_reference(image, &node.span);
        image.to_owned()
    }

    /// What no engine takes for a name. A first part in capitals is a host.
    fn check_reference(&mut self, image: &str, span: &Span) {
        let path = image.split_once('@').map_or(image, |(name, _)| name);
        let path = path.split_once('/').map_or(path, |(_, path)| path);
        let path = path.split_once(':').map_or(path, |(path, _)| path);
        if path.is_empty() || image.contains(char::is_whitespace) {
            let message = format!("`{image}` is not the name of an image");
            self.error(Code::InvalidValue, span, message, "write for example nginx:1.27");
        } else if path.contains(|c: char| c.is_ascii_uppercase()) {
            let message = format!("`{image}` is not the name of an image: it has capital letters");
            let help = format!("write `{}`", image.to_lowercase());
            self.error(Code::InvalidValue, span, message, help);
        }
    }

    pub(super) fn platform(&self, service: &Node) -> Option<String> {
        text(service, "platform").or_else(|| self.default_platform())
    }

    fn default_platform(&self) -> Option<String> {
        self.project.variables.get(DEFAULT_PLATFORM).filter(|text| !text.is_empty()).cloned()
    }

    fn pull_policy(&mut self, service: &Node) -> PullPolicy {
        let Some(node) = service.get("pull_policy") else { return PullPolicy::default() };
        let word = node.as_str().unwrap_or_default();
        if word.is_empty() {
            return PullPolicy::default();
        }
        if word == "refresh" {
            let every = self.duration(service.get("pull_refresh_after"));
            return PullPolicy::Every(every.unwrap_or(DAY));
        }
        let every = word.strip_prefix("every_").and_then(parse_duration);
        if let Some(time) = every.and_then(|nanos| u64::try_from(nanos).ok()) {
            return PullPolicy::Every(Duration::from_nanos(time));
        }
        if let Some((_, policy)) = POLICIES.iter().find(|(known, _)| *known == word) {
            return *policy;
        }
        let help = match nearest(word, POLICIES.iter().map(|(known, _)| *known)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write for example `always`, `daily` or `every_12h`".to_owned(),
        };
        let message = format!("`{word}` is not a pull policy");
        self.error(Code::InvalidValue, &node.span, message, help);
        PullPolicy::default()
    }

    fn build(&mut self, node: &Node) -> Build {
        let contexts = node.get("additional_contexts").into_iter().flat_map(Node::entries);
        let contexts = contexts.filter_map(|(name, value)| {
            Some((name.to_owned(), self.build_context(value.as_str()?)))
        });
        Build {
            context: self.build_context(node.text("context").unwrap_or_default()),
            dockerfile: text(node, "dockerfile"),
            dockerfile_inline: text(node, "dockerfile_inline"),
            additional_contexts: contexts.collect(),
            args: self.environment(node.get("args")),
            target: text(node, "target"),
            labels: self.labels(node.get("labels")),
            tags: texts(node.get("tags")),
            platforms: texts(node.get("platforms")),
            cache_from: texts(node.get("cache_from")),
            cache_to: texts(node.get("cache_to")),
            no_cache: is_true(node.get("no_cache")),
            no_cache_filter: one_or_more(node.get("no_cache_filter")),
            pull: is_true(node.get("pull")),
            network: text(node, "network"),
            shm_size: self.bytes(node.get("shm_size")),
            extra_hosts: self.hosts(node.get("extra_hosts")),
            ulimits: self.ulimits(node.get("ulimits")),
            secrets: self.build_secrets(node),
            ssh: self.ssh(node),
            privileged: is_true(node.get("privileged")),
            entitlements: texts(node.get("entitlements")),
        }
    }

    /// A directory is absolute already, unless paths were not resolved.
    fn build_context(&self, text: &str) -> String {
        if is_remote_context(text) {
            return text.to_owned();
        }
        join(&self.project.directory, text).to_string_lossy().into_owned()
    }

    fn build_secrets(&mut self, build: &Node) -> Vec<BuildSecret> {
        let mut secrets = Vec::new();
        for item in build.get("secrets").map(Node::items).unwrap_or_default() {
            let name = item.text("source").unwrap_or_default();
            let Some(definition) = self.project.model.at(&["secrets", name]) else {
                // What no active service uses was left out.
                let message =
                    format!("the secret `{name}` is for the build of a service that is not active");
                self.error(Code::UndefinedReference, &item.span, message, "name that service, too");
                continue;
            };
            for key in ["uid", "gid", "mode"] {
                if let Some(node) = item.get(key).filter(|node| !node.is_null()) {
                    let message = format!("`{key}` has no effect on a secret of a build");
                    self.warn(&node.span, message);
                }
            }
            if let Some(content) = self.secret(name, definition) {
                let id = text(item, "target").unwrap_or_else(|| name.to_owned());
                secrets.push(BuildSecret { id, content });
            }
        }
        secrets
    }

    fn ssh(&self, build: &Node) -> std::collections::BTreeMap<String, Option<PathBuf>> {
        let keys = build.get("ssh").into_iter().flat_map(Node::entries);
        let path = |node: &Node| {
            let path = node.as_str().filter(|path| !path.is_empty())?;
            Some(join(&self.project.directory, path))
        };
        keys.map(|(id, node)| (id.to_owned(), path(node))).collect()
    }

    /// Images that a service needs besides its own.
    pub(super) fn further_images(&mut self, spec: &Spec) {
        let steps = spec.pre_start.iter().filter_map(|step| step.image.clone());
        let mounted = spec.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Image { name, .. } => Some(name.clone()),
            _ => None,
        });
        for reference in steps.chain(mounted) {
            let source = ImageSource {
                reference: reference.clone(),
                platform: self.default_platform(),
                pull: PullPolicy::default(),
                build: None,
            };
            self.further_images.insert(reference, source);
        }
    }
}
