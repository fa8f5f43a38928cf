//! A project → the [`Stack`] that the platform runs.
//!
//! Every key of every active service ends in the stack, in a warning that says why it has no effect, or in an error
//! with a remedy; [`crate::keys`] is the table of which. Content of secrets and configs is read here.

mod clashes;
mod container;
mod devices;
mod entrypoints;
mod files;
mod health;
mod images;
mod limits;
mod logs;
mod mounts;
mod network;
mod policy;
mod ports;
mod routes;
mod single;
mod spec;
mod support;
mod users;
mod volumes;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use keel_model::{
    Balance, ImageSource, Retry, Rule, RuntimeKind, Scale, Service, ServiceName, Stack, StackName,
    TrafficPolicy,
};

use crate::diagnostic::{Code, Diagnostic, Span};
use crate::labels::{self, FromLabels, LabelTraffic, is_routing};
use crate::project::Project;
use crate::services::is_process;
use crate::source::FileSource;
use crate::value::Node;
use crate::xkeel::traffic::default_cookie;
use crate::xkeel::{self, XKeel, XTop};

pub use watch::{WatchAction, WatchRule};

/// The result of lowering.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// What to run.
    pub stack: Stack,
    /// Where the image of each container comes from.
    pub images: BTreeMap<ServiceName, ImageSource>,
    /// Images that mounts and `pre_start` steps name, by their names; needed besides those of the services.
    pub further_images: BTreeMap<String, ImageSource>,
    /// What to do when source files change (`develop.watch`).
    pub watch: BTreeMap<ServiceName, Vec<WatchRule>>,
    /// Files with certificates that routes name, for whoever can look into them.
    pub certificates: Vec<CertificateUse>,
    /// What has no effect or may surprise.
    pub notes: Vec<Diagnostic>,
}

/// A route with a certificate in files.
#[derive(Clone, Debug)]
pub struct CertificateUse {
    /// Path of the certificate.
    pub cert: PathBuf,
    /// Path of its key.
    pub key: PathBuf,
    /// For which requests.
    pub rule: Rule,
    /// Where it is written.
    pub span: Span,
}

/// Lowers a project.
pub(crate) fn lower(
    project: &Project,
    source: &dyn FileSource,
) -> Result<Lowered, Vec<Diagnostic>> {
    let mut lower = Lower {
        project,
        source,
        images: BTreeMap::new(),
        further_images: BTreeMap::new(),
        watch: BTreeMap::new(),
        certificates: Vec::new(),
        notes: Vec::new(),
        errors: Vec::new(),
    };
    let stack = lower.stack();
    lower.errors.sort_by(|a, b| a.span.cmp(&b.span));
    lower.notes.sort_by(|a, b| a.span.cmp(&b.span));
    match stack {
        Some(stack) if lower.errors.is_empty() => Ok(Lowered {
            stack,
            images: lower.images,
            further_images: lower.further_images,
            watch: lower.watch,
            certificates: lower.certificates,
            notes: lower.notes,
        }),
        _ => Err(lower.errors),
    }
}

/// What lowering reads and reports.
pub(crate) struct Lower<'l> {
    project: &'l Project,
    source: &'l dyn FileSource,
    images: BTreeMap<ServiceName, ImageSource>,
    further_images: BTreeMap<String, ImageSource>,
    watch: BTreeMap<ServiceName, Vec<WatchRule>>,
    certificates: Vec<CertificateUse>,
    notes: Vec<Diagnostic>,
    errors: Vec<Diagnostic>,
}

/// One service on its way.
struct Context<'c> {
    name: &'c str,
    node: &'c Node,
    /// Where its name stands.
    span: &'c Span,
    runtime: RuntimeKind,
    scale: Scale,
    settings: XKeel,
}

impl Context<'_> {
    fn is_container(&self) -> bool {
        self.runtime == RuntimeKind::Container
    }
}

impl Lower<'_> {
    fn error(
        &mut self,
        code: Code,
        span: &Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.errors.push(Diagnostic::error(code, message).at(span).help(help));
    }

    fn warn(&mut self, span: &Span, message: impl Into<String>) {
        self.notes.push(Diagnostic::warning(Code::Unsupported, message).at(span));
    }

    fn note(&mut self, span: &Span, message: impl Into<String>) {
        self.notes.push(Diagnostic::note(Code::Unsupported, message).at(span));
    }

    /// Takes a result that was checked when the project was loaded; reports it if it fails after all.
    fn take<T>(&mut self, result: Result<T, Vec<Diagnostic>>) -> Option<T> {
        result.map_err(|errors| self.errors.extend(errors)).ok()
    }

    fn stack(&mut self) -> Option<Stack> {
        let project = self.project;
        let name = match StackName::new(project.name.clone()) {
            Ok(name) => name,
            Err(error) => {
                self.errors.push(
                    Diagnostic::error(Code::Project, error.to_string())
                        .help("name the project with -p"),
                );
                return None;
            }
        };
        self.top_level();
        let top = match project.model.get("x-keel") {
            Some(settings) => self.take(xkeel::read_top(settings))?,
            None => XTop::default(),
        };
        let mut labels = labels::read(project);
        self.errors.append(&mut labels.errors);
        self.notes.append(&mut labels.notes);
        let mut drafts = routes::Drafts::new();
        let mut services = BTreeMap::new();
        for (name, node) in project.active_services() {
            let span = project.span_of(name).unwrap_or(&node.span).clone();
            let service_name = match ServiceName::new(name) {
                Ok(name) => name,
                Err(error) => {
                    self.error(Code::InvalidValue, &span, error.to_string(), "rename the service");
                    continue;
                }
            };
            let from_labels = labels.services.remove(name).unwrap_or_default();
            if let Some(service) = self.service(name, node, &span, from_labels, &mut drafts) {
                services.insert(service_name, service);
            }
        }
        self.images_of_contexts();
        self.link_aliases(&mut services);
        let volumes = self.volumes(&services);
        let mut stack = Stack {
            name,
            directory: project.directory.clone(),
            services,
            volumes,
            networks: self.networks(),
            entrypoints: BTreeMap::new(),
            acme: None,
        };
        self.routes(&mut stack, drafts, top);
        Some(stack)
    }

    fn service(
        &mut self,
        name: &str,
        node: &Node,
        span: &Span,
        from_labels: FromLabels,
        drafts: &mut routes::Drafts,
    ) -> Option<Service> {
        if node.get("provider").is_some() {
            let message = format!(
                "the service `{name}` is run by a provider, which this platform does not have"
            );
            self.error(Code::Unsupported, span, message, "run it as a service with a `command`");
            return None;
        }
        let mut settings = match node.get("x-keel") {
            Some(settings) => self.take(xkeel::read(settings))?,
            None => XKeel::default(),
        };
        join_labels(&mut settings, from_labels, name);
        let runtime = self.runtime(name, node, span)?;
        let scale = self.scale(name, node);
        let context = Context { name, node, span, runtime, scale, settings };
        self.unsupported_keys(&context);
        self.check_upstream_tls(node);
        let ports = self.ports(&context);
        let mut spec = self.spec(&context, &ports)?;
        let service_name = ServiceName::new(name).ok()?;
        if context.is_container() {
            let source = self.image(name, node, span);
            spec.image = Some(source.reference.clone());
            self.images.insert(service_name.clone(), source);
            self.further_images(&spec);
        }
        self.watch_rules(&context, &service_name);
        drafts.insert(service_name, context.settings.routes.clone());
        let mut service = Service {
            spec,
            scale,
            aliases: self.aliases(&context),
            depends_on: self.depends_on(&context),
            restart: self.restart(&context),
            rollback: context
                .node
                .at(&["deploy", "rollback_config"])
                .is_some()
                .then(|| self.rollout(&context, "rollback_config")),
            rollout: self.rollout(&context, "update_config"),
            stop: self.stop(&context),
            readiness: Self::readiness(&context),
            labels: self.service_labels(&context),
            ports: ports.inside,
            publish: ports.published,
            routes: Vec::new(),
            traffic: context.settings.traffic.clone(),
            image_command: None,
        };
        self.one_at_a_time(&context, &mut service);
        Some(service)
    }

    /// Which runtime starts a service; a container needs something to be made from.
    fn runtime(&mut self, name: &str, node: &Node, span: &Span) -> Option<RuntimeKind> {
        if is_process(node) {
            return Some(RuntimeKind::Process);
        }
        let has_image = node.text("image").is_some_and(|image| !image.is_empty());
        if has_image || node.get("build").is_some_and(|build| !build.is_null()) {
            return Some(RuntimeKind::Container);
        }
        let span = node.at(&["x-keel", "runtime"]).map_or(span, |runtime| &runtime.span).clone();
        let message = format!("the service `{name}` is to be a container but has no image");
        self.error(
            Code::MissingKey,
            &span,
            message,
            "give it an `image` or a `build`, or write `runtime: process`",
        );
        None
    }

    fn labels(&mut self, node: Option<&Node>) -> BTreeMap<String, String> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return BTreeMap::new() };
        let labels = self.take(crate::print::environment_of(node)).unwrap_or_default();
        labels.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()
    }

    /// Labels that are about the service: those of `deploy`, and those about routing, which may change under running
    /// instances.
    fn service_labels(&mut self, context: &Context<'_>) -> BTreeMap<String, String> {
        let mut labels = self.labels(context.node.get("labels"));
        labels.retain(|key, _| is_routing(key));
        labels.extend(self.labels(context.node.at(&["deploy", "labels"])));
        labels
    }

    /// Aliases that other services' `links` give; they become names for the whole stack.
    fn link_aliases(&mut self, services: &mut BTreeMap<ServiceName, Service>) {
        for (_, node) in self.project.active_services() {
            for link in node.get("links").map(Node::items).unwrap_or_default() {
                let Some((service, alias)) = link.as_str().and_then(|text| text.split_once(':'))
                else {
                    continue;
                };
                if let Some(service) = services.get_mut(service)
                    && !alias.is_empty()
                {
                    service.aliases.insert(alias.to_owned());
                }
            }
        }
    }

    /// `container_name` and network aliases.
    fn aliases(&mut self, context: &Context<'_>) -> BTreeSet<String> {
        let mut aliases = BTreeSet::new();
        for (_, network) in context.node.get("networks").into_iter().flat_map(Node::entries) {
            let names = network.get("aliases").map(Node::items).unwrap_or_default();
            aliases.extend(names.iter().filter_map(Node::as_str).map(str::to_owned));
        }
        if let Some(name) = context.node.get("container_name")
            && let Some(text) = name.as_str().filter(|text| !text.is_empty())
        {
            aliases.insert(text.to_owned());
            if !matches!(context.scale, Scale::Replicated(0 | 1) | Scale::Job(0 | 1)) {
                let message = format!(
                    "`container_name` cannot name every replica of `{}`; `{text}` becomes a DNS name of the service",
                    context.name
                );
                self.note(&name.span, message);
            }
        }
        aliases.remove(context.name);
        aliases
    }
}

/// Adds what labels say to the settings of a service; `x-keel` wins.
fn join_labels(settings: &mut XKeel, labels: FromLabels, service: &str) {
    for (port, protocol) in labels.protocols {
        settings.protocols.entry(port).or_insert(protocol);
    }
    settings.protocol = settings.protocol.or(labels.protocol);
    settings.routes.extend(labels.routes);
    join_traffic(&mut settings.traffic, labels.traffic);
    if let Some(cookie) = &mut settings.traffic.sticky
        && cookie.name.is_empty()
    {
        cookie.name = default_cookie(service);
    }
}

fn join_traffic(policy: &mut TrafficPolicy, labels: LabelTraffic) {
    if policy.balance == Balance::default() {
        policy.balance = labels.balance.unwrap_or_default();
    }
    policy.sticky = policy.sticky.take().or(labels.sticky);
    policy.check = policy.check.take().or(labels.check);
    policy.tls = policy.tls.take().or(labels.tls);
    policy.send_proxy = policy.send_proxy.or(labels.send_proxy);
    if policy.retry.attempts == Retry::default().attempts {
        policy.retry.attempts = labels.retries.unwrap_or(policy.retry.attempts);
    }
}
