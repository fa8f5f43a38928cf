//! Drafts of routes → routes, with everything that they name: entrypoints, ports, other services, files, secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use keel_model::{
    AcmeChallenge, Route, RouteKind, RouteTls, Rule, Service, ServiceName, Split, Stack, Transport,
};

use super::entrypoints::Needs;
use super::{CertificateUse, Lower};
use crate::diagnostic::{Code, Span, nearest};
use crate::loader::join;
use crate::routes::{Draft, Located};
use crate::source::PathKind;
use crate::value::Node;
use crate::xkeel::{XTop, default_acme};

/// The drafts of each service.
pub(super) type Drafts = BTreeMap<ServiceName, Vec<Draft>>;

impl Lower<'_> {
    /// Gives the services of a stack their routes, and the stack the entrypoints that those need.
    pub(super) fn routes(&mut self, stack: &mut Stack, drafts: Drafts, top: XTop) {
        let mut names: BTreeMap<String, Span> = BTreeMap::new();
        let mut places: BTreeMap<String, Span> = BTreeMap::new();
        let given: BTreeSet<String> = drafts
            .values()
            .flatten()
            .filter_map(|d| d.name.as_ref())
            .map(|n| n.value.clone())
            .collect();
        let mut needs = Needs::default();
        for (service, drafts) in drafts {
            let mut free = default_names(&service, &given);
            let mut routes = Vec::with_capacity(drafts.len());
            for draft in drafts {
                let (name, place) = match &draft.name {
                    Some(name) => (name.value.clone(), name.span.clone()),
                    None => (free.next().unwrap_or_default(), draft.span.clone()),
                };
                if let Some(other) = names.get(&name) {
                    let message = format!("the route `{name}` is defined at {other} already");
                    self.error(Code::Conflict, &place, message, "give one of them another `name`");
                    continue;
                }
                names.insert(name.clone(), place);
                places.insert(name.clone(), draft.span.clone());
                routes.extend(self.route(&service, name, draft, stack, &top, &mut needs));
            }
            if let Some(service) = stack.services.get_mut(&service) {
                service.routes = routes;
            }
        }
        stack.acme = top.acme.clone();
        if needs.acme && stack.acme.is_none() {
            stack.acme = Some(default_acme());
        }
        self.entrypoints(stack, &top, needs);
        self.clashes(stack, &places);
    }

    fn route(
        &mut self,
        service: &ServiceName,
        name: String,
        draft: Draft,
        stack: &Stack,
        top: &XTop,
        needs: &mut Needs,
    ) -> Option<Route> {
        let definition = stack.services.get(service)?;
        self.check_port(service, definition, &draft);
        if let Some(path) = starred(&draft.rule) {
            let message = format!(
                "the `*` in `{path}` stands for itself: a path takes what is below it without one"
            );
            self.warn(&draft.span, message);
        }
        let split = self.split(service, &draft.split, stack);
        let mut tls = draft.tls.clone();
        let entrypoints = self.served_at(&draft, &mut tls, top, needs)?;
        match &tls {
            Some(tls) => self.check_tls(tls, &draft, top, needs),
            None if draft.kind == RouteKind::Tcp => self.check_no_names(&draft),
            None => {}
        }
        let mut filters = draft.filters;
        filters.basic_auth = match draft.auth {
            Some(auth) => Some(self.basic_auth(auth)?),
            None => None,
        };
        Some(Route {
            name,
            entrypoints,
            rule: draft.rule,
            priority: draft.priority,
            kind: draft.kind,
            port: draft.port.map(|port| port.value),
            split,
            tls: tls.map(|tls| tls.value),
            filters,
            timeout: draft.timeout,
        })
    }

    /// A connection tells the server's name in its TLS handshake only.
    fn check_no_names(&mut self, draft: &Draft) {
        let mut names = Vec::new();
        hosts_of(&draft.rule, &mut names);
        if let Some(name) = names.iter().find(|name| **name != "*") {
            let message = format!("without TLS a connection has no server name, such as `{name}`");
            self.error(Code::Conflict, &draft.span, message, "add `tls`, or leave the name out");
        }
    }

    fn check_port(&mut self, service: &ServiceName, definition: &Service, draft: &Draft) {
        let (span, wanted) = match &draft.port {
            Some(port) => (&port.span, Some(port.value)),
            None => (&draft.span, None),
        };
        self.check_port_of(service, definition, wanted, span);
    }

    fn check_port_of(
        &mut self,
        service: &ServiceName,
        definition: &Service,
        wanted: Option<u16>,
        span: &Span,
    ) {
        let tcp = definition.ports.iter().filter(|port| port.transport == Transport::Tcp);
        let ports: Vec<u16> = tcp.map(|port| port.target).collect();
        // What the image exposes is known later.
        let of_image = definition.spec.container.as_ref().is_some_and(|c| c.from_image.ports);
        match wanted {
            _ if ports.is_empty() && of_image => {}
            _ if ports.is_empty() => {
                let message =
                    format!("the route leads to the service `{service}`, which has no port");
                self.error(Code::MissingKey, span, message, "name it: `expose: [\"8080\"]`");
            }
            Some(port) if !ports.contains(&port) => {
                let message = format!("the service `{service}` has no port {port}");
                let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
                let help = format!("it has {}; name another under `expose`", list.join(", "));
                self.error(Code::UndefinedReference, span, message, help);
            }
            _ => {}
        }
    }

    fn split(
        &mut self,
        service: &ServiceName,
        parts: &[Located<Split>],
        stack: &Stack,
    ) -> Vec<Split> {
        for Located { value: part, span } in parts {
            if part.service == *service {
                let message =
                    format!("`{service}` gets what is left; it needs no share of its own");
                self.error(Code::Conflict, span, message, "remove it from `split`");
            } else if self.project.service(part.service.as_str()).is_none() {
                let names = self.project.service_names();
                let help = nearest(part.service.as_str(), names).map_or_else(
                    || "name a service of this project".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                let message = format!("there is no service `{}`", part.service);
                self.error(Code::UndefinedReference, span, message, help);
            } else if let Some(definition) = stack.services.get(&part.service) {
                self.check_port_of(&part.service, definition, part.port, span);
            }
        }
        parts.iter().map(|part| part.value.clone()).collect()
    }

    /// Makes sure that a file that is named at `span` is there.
    pub(super) fn check_file(&mut self, path: &Path, span: &Span) -> bool {
        let path = join(&self.project.directory, &path.to_string_lossy());
        if self.source.kind(&path) != PathKind::File {
            let message = format!("there is no file {}", path.display());
            self.error(Code::File, span, message, "create it, or correct its path");
            return false;
        }
        true
    }

    /// Makes sure of the files with which services are spoken to over TLS.
    pub(super) fn check_upstream_tls(&mut self, service: &Node) {
        let Some(tls) = service.at(&["x-keel", "traffic", "tls"]) else { return };
        for key in ["ca", "cert", "key"] {
            let Some(node) = tls.get(key) else { continue };
            let Some(path) = node.as_str() else { continue };
            if !self.check_file(Path::new(path), &node.span) {
                continue;
            }
            let path = join(&self.project.directory, path);
            let (what, begin) = match key {
                "key" => ("private key", "PRIVATE KEY-----"),
                _ => ("certificate", "-----BEGIN CERTIFICATE-----"),
            };
            let problem = match self.source.read(&path) {
                Ok(content) if String::from_utf8_lossy(&content).contains(begin) => continue,
                Ok(_) => format!("{} holds no {what} in PEM form", path.display()),
                Err(error) => format!("{} can't be read: {error}", path.display()),
            };
            self.error(Code::File, &node.span, problem, format!("name a PEM file with a {what}"));
        }
    }

    fn check_tls(&mut self, tls: &Located<RouteTls>, draft: &Draft, top: &XTop, needs: &mut Needs) {
        match &tls.value {
            RouteTls::Any => {}
            RouteTls::Files { cert, key } => {
                for path in [cert, key] {
                    self.check_file(path, &tls.span);
                }
                let at = |path: &Path| join(&self.project.directory, &path.to_string_lossy());
                let (cert, key) = (at(cert), at(key));
                let (rule, span) = (draft.rule.clone(), tls.span.clone());
                self.certificates.push(CertificateUse { cert, key, rule, span });
            }
            RouteTls::Acme => {
                needs.acme = true;
                let challenge =
                    top.acme.as_ref().map_or(AcmeChallenge::Http01, |acme| acme.challenge);
                needs.http_challenge |= challenge == AcmeChallenge::Http01;
                let mut hosts = Vec::new();
                hosts_of(&draft.rule, &mut hosts);
                if let Some(wildcard) = hosts.iter().find(|host| host.starts_with('*')) {
                    let message = format!(
                        "a certificate for `{wildcard}` can't be had this way: the authority wants proof by DNS"
                    );
                    self.error(
                        Code::Unsupported,
                        &tls.span,
                        message,
                        "name the hosts, or give `tls` the files of a certificate",
                    );
                } else if hosts.is_empty() {
                    self.error(
                        Code::MissingKey,
                        &tls.span,
                        "the rule names no host that a certificate could be for",
                        "add a `host`, or write `tls: true`",
                    );
                }
            }
        }
    }
}

/// The names that routes of a service have unless they are given one: the service's, then with a number. `#` can't be in
/// the name of a service. Routers of labels are often named like their service; those names are taken.
fn default_names<'n>(
    service: &'n ServiceName,
    given: &'n BTreeSet<String>,
) -> impl Iterator<Item = String> + 'n {
    let numbered = (2_u32..).map(move |number| format!("{service}#{number}"));
    std::iter::once(service.to_string()).chain(numbered).filter(|name| !given.contains(name))
}

/// A path of a rule that ends as if `*` meant anything.
fn starred(rule: &Rule) -> Option<&str> {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().find_map(starred),
        Rule::Not(rule) => starred(rule),
        Rule::Path(path) | Rule::PathPrefix(path) => path.ends_with('*').then_some(path),
        _ => None,
    }
}

/// The hosts that a rule names, except behind a `!`.
fn hosts_of<'r>(rule: &'r Rule, hosts: &mut Vec<&'r str>) {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().for_each(|rule| hosts_of(rule, hosts)),
        Rule::Host(host) | Rule::Sni(host) => hosts.push(host),
        _ => {}
    }
}
