//! Rules between parts of a project: references, exclusive keys, cycles.
//!
//! Services without `image`, `build` and `provider` are refused by Docker; here they are host processes when they
//! have a `command`, and refused otherwise.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic, Outcome, Span, nearest};
use crate::print::{bytes_of, number_of};
use crate::value::{Map, Node};

/// The model with its active and inactive services.
pub(crate) struct Model<'m> {
    pub root: &'m Node,
    /// Names of services that no active profile selects.
    pub inactive: &'m BTreeSet<String>,
}

impl Model<'_> {
    fn section(&self, name: &str) -> Option<&Map> {
        self.root.get(name).and_then(Node::as_map)
    }

    fn services(&self) -> impl Iterator<Item = (&str, &Node)> {
        let services = self.section("services").into_iter().flat_map(Map::iter);
        services.filter(|(name, _)| !self.inactive.contains(*name))
    }

    fn active(&self, name: &str) -> Option<&Node> {
        self.section("services")
            .and_then(|map| map.get(name))
            .filter(|_| !self.inactive.contains(name))
    }
}

/// Checks a normalized model; all violations are reported.
pub(crate) fn check(model: &Model<'_>) -> Outcome<()> {
    let mut errors = Vec::new();
    for (name, service) in model.services() {
        let mut check = Check { model, name, service, errors: &mut errors };
        check.kind();
        check.build();
        check.references();
        check.dependencies();
        check.limits();
        check.scale();
        check.health();
        check.watch();
        check.mounts();
    }
    for (name, secret) in model.section("secrets").into_iter().flat_map(Map::iter) {
        let external = secret.get("external").and_then(Node::display).as_deref() == Some("true");
        let sourced = ["file", "environment"]
            .iter()
            .any(|key| secret.text(key).is_some_and(|t| !t.is_empty()));
        if !external && !sourced {
            let message = format!("the secret `{name}` needs a `file` or an `environment`");
            errors.push(Diagnostic::error(Code::MissingKey, message).at(&secret.span));
        }
    }
    if errors.is_empty() {
        errors.extend(cycle(model));
    }
    errors.sort_by(|a, b| a.span.cmp(&b.span));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

struct Check<'c> {
    model: &'c Model<'c>,
    name: &'c str,
    service: &'c Node,
    errors: &'c mut Vec<Diagnostic>,
}

impl<'c> Check<'c> {
    /// Where the service's name stands.
    fn key_span(&self) -> Span {
        let services = self.model.section("services");
        services.and_then(|map| map.key_span(self.name)).unwrap_or(&self.service.span).clone()
    }

    fn error(&mut self, code: Code, span: &Span, message: impl Into<String>) {
        self.errors.push(Diagnostic::error(code, message).at(span));
    }

    fn error_help(&mut self, code: Code, span: &Span, message: String, help: impl Into<String>) {
        self.errors.push(Diagnostic::error(code, message).at(span).help(help));
    }

    fn kind(&mut self) {
        let has = |key: &str| self.service.get(key).is_some_and(|node| !node.is_null());
        let has_image = self.service.text("image").is_some_and(|image| !image.is_empty());
        if has_image || has("build") || has("provider") || has("command") || has("entrypoint") {
            return;
        }
        self.error_help(
            Code::MissingKey,
            &self.key_span(),
            format!("the service `{}` has nothing to run", self.name),
            "give it a `command` to run on this host, or an `image`",
        );
    }

    fn build(&mut self) {
        let Some(build) = self.service.get("build") else { return };
        if build.text("dockerfile").is_some()
            && build.text("dockerfile_inline").is_some_and(|t| !t.is_empty())
        {
            self.error_help(
                Code::Conflict,
                &build.span,
                format!(
                    "the service `{}` has both `dockerfile` and `dockerfile_inline`",
                    self.name
                ),
                "keep one of them",
            );
        }
        for (context, value) in build.get("additional_contexts").into_iter().flat_map(Node::entries)
        {
            let Some(target) = value.as_str().and_then(|text| text.strip_prefix("service:")) else {
                continue;
            };
            match self.model.active(target) {
                None => self.error(
                    Code::UndefinedReference,
                    &value.span,
                    format!("the build context `{context}` names the unknown service `{target}`"),
                ),
                Some(other) if other.get("build").is_none() => self.error(
                    Code::UndefinedReference,
                    &value.span,
                    format!("the build context `{context}` names the service `{target}`, which is not built"),
                ),
                Some(_) => {}
            }
        }
        let platforms = build.get("platforms").map(Node::items).unwrap_or_default();
        if let Some(platform) = self.service.text("platform").filter(|text| !text.is_empty())
            && !platforms.is_empty()
            && !platforms.iter().any(|item| item.as_str() == Some(platform))
        {
            self.error(
                Code::Conflict,
                &build.span,
                format!("`build.platforms` does not contain the service's platform `{platform}`"),
            );
        }
    }

    fn references(&mut self) {
        let service = self.service;
        let mut networks = service.get("networks");
        if self.service.text("network_mode").is_some_and(|mode| !mode.is_empty())
            && let Some(networks) =
                networks.take().filter(|node| node.as_map().is_some_and(|map| !map.is_empty()))
        {
            self.error_help(
                Code::Conflict,
                &networks.span,
                format!("the service `{}` has both `network_mode` and `networks`", self.name),
                "keep one of them",
            );
        }
        let names: Vec<(&'static str, &str, &Span)> = networks
            .into_iter()
            .flat_map(Node::entries)
            .map(|(name, node)| ("networks", name, &node.span))
            .chain(Self::sources(service, "configs"))
            .chain(Self::sources(service, "secrets"))
            .chain(Self::volumes(service))
            .chain(
                service
                    .get("models")
                    .into_iter()
                    .flat_map(Node::entries)
                    .map(|(name, node)| ("models", name, &node.span)),
            )
            .chain(Self::build_secrets(service))
            .collect();
        for (section, name, span) in names {
            if self.model.section(section).is_some_and(|map| map.contains(name)) {
                continue;
            }
            let what = section.trim_end_matches('s');
            let message = format!(
                "the service `{}` uses the {what} `{name}`, which is not defined",
                self.name
            );
            let known = self.model.section(section).into_iter().flat_map(Map::keys);
            let help = match nearest(name, known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("define it under the top-level `{section}:` key"),
            };
            self.error_help(Code::UndefinedReference, span, message, help);
        }
    }

    fn sources(
        service: &'c Node,
        section: &'static str,
    ) -> impl Iterator<Item = (&'static str, &'c str, &'c Span)> {
        let items = service.get(section).map(Node::items).unwrap_or_default();
        items.iter().map(move |item| (section, item.text("source").unwrap_or_default(), &item.span))
    }

    fn build_secrets(service: &'c Node) -> impl Iterator<Item = (&'static str, &'c str, &'c Span)> {
        let items = service.at(&["build", "secrets"]).map(Node::items).unwrap_or_default();
        items.iter().map(|item| ("secrets", item.text("source").unwrap_or_default(), &item.span))
    }

    fn volumes(service: &'c Node) -> impl Iterator<Item = (&'static str, &'c str, &'c Span)> {
        let items = service.get("volumes").map(Node::items).unwrap_or_default();
        items.iter().filter(|item| item.text("type") == Some("volume")).filter_map(|item| {
            let source = item.text("source").filter(|source| !source.is_empty())?;
            Some(("volumes", source, &item.span))
        })
    }

    fn dependencies(&mut self) {
        for (other, dependency) in
            self.service.get("depends_on").into_iter().flat_map(Node::entries)
        {
            if self.model.active(other).is_some() {
                continue;
            }
            let required =
                dependency.get("required").and_then(Node::display).as_deref() != Some("false");
            let inactive = self.model.inactive.contains(other);
            if inactive && !required {
                continue;
            }
            let services: Vec<&str> = self.model.services().map(|(name, _)| name).collect();
            let (message, help) = if inactive {
                let all = self.model.section("services").and_then(|map| map.get(other));
                let profiles: Vec<&str> = all
                    .and_then(|service| service.get("profiles"))
                    .map(Node::items)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(Node::as_str)
                    .collect();
                (
                    format!(
                        "the service `{}` depends on `{other}`, which no active profile selects",
                        self.name
                    ),
                    format!(
                        "activate one of its profiles ({}), or write `required: false`",
                        profiles.join(", ")
                    ),
                )
            } else {
                (
                    format!(
                        "the service `{}` depends on `{other}`, which is not defined",
                        self.name
                    ),
                    match nearest(other, services) {
                        Some(known) => format!("did you mean `{known}`?"),
                        None => "define it under `services:`, or remove the dependency".to_owned(),
                    },
                )
            };
            self.error_help(Code::UndefinedReference, &dependency.span, message, help);
        }
        let shared = self.service.get("network_mode");
        let target = shared.and_then(Node::as_str).and_then(|mode| mode.strip_prefix("service:"));
        if let (Some(shared), Some(target)) = (shared, target)
            && self.model.active(target).is_none()
        {
            let message = format!("`network_mode` names the unknown service `{target}`");
            self.error(Code::UndefinedReference, &shared.span, message);
        }
    }

    /// Old and new spellings of a limit must agree.
    fn limits(&mut self) {
        let pairs = [
            ("cpus", "limits", "cpus"),
            ("mem_limit", "limits", "memory"),
            ("mem_reservation", "reservations", "memory"),
            ("pids_limit", "limits", "pids"),
        ];
        for (old, group, new) in pairs {
            let Some(node) = self.service.get(old) else { continue };
            let Some(group_node) = self.service.at(&["deploy", "resources", group]) else {
                continue;
            };
            let amount = |node: &Node| match new {
                #[allow(clippy::cast_precision_loss)] // Compared for equality only.
                "memory" => bytes_of(node).map_or(0.0, |bytes| bytes as f64),
                _ => number_of(node).unwrap_or(0.0),
            };
            let value = amount(node);
            #[allow(clippy::cast_possible_truncation)] // Docker compares in 32 bits.
            let differs = value as f32 != group_node.get(new).map_or(0.0, amount) as f32;
            if value != 0.0 && differs {
                let message = format!(
                    "the service `{}` has different values in `{old}` and `deploy.resources.{group}.{new}`",
                    self.name
                );
                self.error_help(Code::Conflict, &node.span, message, "keep one of them");
            }
        }
    }

    fn scale(&mut self) {
        let count = |node: Option<&Node>| node.and_then(|node| number_of(node).ok());
        let scale = self.service.get("scale");
        let replicas = self.service.at(&["deploy", "replicas"]);
        if let (Some(a), Some(b)) = (count(scale), count(replicas))
            && (a - b).abs() > 0.0
        {
            let message = format!(
                "the service `{}` has different values in `scale` and `deploy.replicas`",
                self.name
            );
            let span = scale.map_or_else(|| self.service.span.clone(), |node| node.span.clone());
            self.error_help(Code::Conflict, &span, message, "keep one of them");
        }
        for (node, key) in [(scale, "scale"), (replicas, "deploy.replicas")] {
            if let Some(node) = node
                && count(Some(node)).is_some_and(|number| number < 0.0)
            {
                let message = format!("`{key}` of the service `{}` cannot be negative", self.name);
                self.error(Code::InvalidValue, &node.span, message);
            }
        }
    }

    fn health(&mut self) {
        let Some(test) = self.service.at(&["healthcheck", "test"]) else { return };
        let Some(first) = test.items().first() else { return };
        if !matches!(first.as_str(), Some("CMD" | "CMD-SHELL" | "NONE")) {
            self.error_help(
                Code::InvalidValue,
                &first.span,
                format!(
                    "the health check of `{}` must begin with CMD, CMD-SHELL or NONE",
                    self.name
                ),
                "write `test: [CMD, program, argument]`, or a string for a shell command",
            );
        }
    }

    fn watch(&mut self) {
        let watches = self.service.at(&["develop", "watch"]).map(Node::items).unwrap_or_default();
        for watch in watches {
            let needs_target = !matches!(watch.text("action"), Some("rebuild" | "restart"));
            if needs_target && watch.text("target").is_none_or(str::is_empty) {
                let message =
                    format!("a watch of `{}` with this action needs a `target`", self.name);
                self.error(Code::MissingKey, &watch.span, message);
            }
        }
    }

    fn mounts(&mut self) {
        let mut targets: BTreeMap<String, Span> = BTreeMap::new();
        let tmpfs = self.service.get("tmpfs");
        let tmpfs_items = tmpfs.map(|node| node.as_seq().unwrap_or(std::slice::from_ref(node)));
        let mounts: Vec<(String, &Span)> =
            tmpfs_items
                .unwrap_or_default()
                .iter()
                .filter_map(|item| Some((item.as_str()?.split(':').next()?.to_owned(), &item.span)))
                .chain(
                    self.service.get("volumes").map(Node::items).unwrap_or_default().iter().map(
                        |item| (item.text("target").unwrap_or_default().to_owned(), &item.span),
                    ),
                )
                .collect();
        for (target, span) in mounts {
            if let Some(first) = targets.get(&target) {
                let message = format!(
                    "`{target}` of the service `{}` is already mounted at {first}",
                    self.name
                );
                self.error(Code::Conflict, span, message);
            } else {
                targets.insert(target, span.clone());
            }
        }
    }
}

/// The first circle of `depends_on`, if there is one.
fn cycle(model: &Model<'_>) -> Option<Diagnostic> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for (start, _) in model.services() {
        let mut way: Vec<(&str, Vec<&str>)> = vec![(start, children(model, start))];
        while let Some((_, rest)) = way.last_mut() {
            let Some(next) = rest.pop() else {
                if let Some((name, _)) = way.pop() {
                    done.insert(name);
                }
                continue;
            };
            if let Some(at) = way.iter().position(|(name, _)| *name == next) {
                let circle: Vec<&str> =
                    way[at..].iter().map(|(name, _)| *name).chain([next]).collect();
                let last = way.last().map(|(name, _)| *name)?;
                let span = &model.active(last)?.at(&["depends_on", next])?.span;
                let message =
                    format!("services depend on each other in a circle: {}", circle.join(" → "));
                return Some(
                    Diagnostic::error(Code::Cycle, message)
                        .at(span)
                        .help("remove one of these dependencies"),
                );
            }
            if !done.contains(next) {
                way.push((next, children(model, next)));
            }
        }
    }
    None
}

/// The active services that a service depends on, last first.
fn children<'m>(model: &'m Model<'_>, name: &str) -> Vec<&'m str> {
    let depends_on = model.active(name).and_then(|service| service.get("depends_on"));
    let mut names: Vec<&str> = depends_on
        .into_iter()
        .flat_map(Node::entries)
        .map(|(other, _)| other)
        .filter(|other| model.active(other).is_some())
        .collect();
    names.reverse();
    names
}
