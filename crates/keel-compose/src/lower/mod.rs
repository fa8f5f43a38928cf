//! A project → the [`Stack`] that the platform runs.
//!
//! Every key of every active service ends in the stack, in a warning that says why it has no effect, or in an error
//! with a remedy; [`crate::keys`] is the table of which. Content of secrets and configs is read here.

mod clashes;
mod entrypoints;
mod files;
mod limits;
mod mounts;
mod policy;
mod ports;
mod routes;
mod spec;
mod support;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{Balance, Retry, Service, ServiceName, Stack, StackName, TrafficPolicy, Volume};

use crate::diagnostic::{Code, Diagnostic, Span};
use crate::keys::NEEDS_ENGINE;
use crate::labels::{self, FromLabels, LabelTraffic, is_routing};
use crate::project::Project;
use crate::services::is_process;
use crate::source::FileSource;
use crate::value::Node;
use crate::xkeel::traffic::default_cookie;
use crate::xkeel::{self, XKeel, XTop};

/// The result of lowering.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// What to run.
    pub stack: Stack,
    /// What has no effect or may surprise.
    pub notes: Vec<Diagnostic>,
}

/// Lowers a project.
pub(crate) fn lower(
    project: &Project,
    source: &dyn FileSource,
) -> Result<Lowered, Vec<Diagnostic>> {
    let mut lower = Lower { project, source, notes: Vec::new(), errors: Vec::new() };
    let stack = lower.stack();
    lower.errors.sort_by(|a, b| a.span.cmp(&b.span));
    lower.notes.sort_by(|a, b| a.span.cmp(&b.span));
    match stack {
        Some(stack) if lower.errors.is_empty() => Ok(Lowered { stack, notes: lower.notes }),
        _ => Err(lower.errors),
    }
}

/// What lowering reads and reports.
pub(crate) struct Lower<'l> {
    project: &'l Project,
    source: &'l dyn FileSource,
    notes: Vec<Diagnostic>,
    errors: Vec<Diagnostic>,
}

/// One service on its way.
struct Context<'c> {
    name: &'c str,
    node: &'c Node,
    settings: XKeel,
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
        self.link_aliases(&mut services);
        let mut stack = Stack {
            name,
            directory: project.directory.clone(),
            services,
            volumes: self.volumes(),
            networks: BTreeMap::new(),
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
        if !is_process(node) {
            let message = format!(
                "service `{name}` needs a container engine, which this version does not drive yet"
            );
            self.error(Code::Unsupported, span, message, NEEDS_ENGINE);
            return None;
        }
        let mut settings = match node.get("x-keel") {
            Some(settings) => self.take(xkeel::read(settings))?,
            None => XKeel::default(),
        };
        join_labels(&mut settings, from_labels, name);
        let context = Context { name, node, settings };
        self.unsupported_keys(&context);
        let ports = self.ports(&context);
        let scale = self.scale(&context);
        let spec = self.spec(&context, &ports.targets)?;
        let rollout = self.rollout(&context, "update_config");
        drafts.insert(ServiceName::new(name).ok()?, context.settings.routes.clone());
        Some(Service {
            spec,
            scale,
            aliases: self.aliases(&context, scale),
            depends_on: self.depends_on(&context),
            restart: self.restart(&context),
            rollback: context
                .node
                .at(&["deploy", "rollback_config"])
                .is_some()
                .then(|| self.rollout(&context, "rollback_config")),
            rollout,
            stop: self.stop(&context),
            readiness: Self::readiness(&context),
            labels: self.service_labels(&context),
            ports: ports.inside,
            publish: ports.published,
            routes: Vec::new(),
            traffic: context.settings.traffic,
        })
    }

    /// The volumes of the stack by the key that services use.
    fn volumes(&mut self) -> BTreeMap<String, Volume> {
        let mut volumes = BTreeMap::new();
        for (key, node) in self.project.model.get("volumes").into_iter().flat_map(Node::entries) {
            if let Some(driver) =
                node.get("driver").filter(|driver| driver.as_str() != Some("local"))
            {
                let text = driver.display().unwrap_or_default();
                self.warn(&driver.span, format!("the volume driver `{text}` has no effect: volumes are directories of this host"));
            }
            if let Some(options) = node.get("driver_opts") {
                self.warn(
                    &options.span,
                    "`driver_opts` have no effect: volumes are directories of this host",
                );
            }
            let volume = Volume {
                name: node.text("name").unwrap_or(key).to_owned(),
                external: node.get("external").and_then(Node::display).as_deref() == Some("true"),
                labels: self.labels(node.get("labels")),
                driver: None,
                driver_opts: BTreeMap::new(),
            };
            volumes.insert(key.to_owned(), volume);
        }
        volumes
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
    fn aliases(&mut self, context: &Context<'_>, scale: keel_model::Scale) -> BTreeSet<String> {
        let mut aliases = BTreeSet::new();
        for (_, network) in context.node.get("networks").into_iter().flat_map(Node::entries) {
            let names = network.get("aliases").map(Node::items).unwrap_or_default();
            aliases.extend(names.iter().filter_map(Node::as_str).map(str::to_owned));
        }
        if let Some(name) = context.node.get("container_name")
            && let Some(text) = name.as_str().filter(|text| !text.is_empty())
        {
            aliases.insert(text.to_owned());
            if !matches!(
                scale,
                keel_model::Scale::Replicated(0 | 1) | keel_model::Scale::Job(0 | 1)
            ) {
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
