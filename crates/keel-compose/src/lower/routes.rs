//! Drafts of routes → routes, with everything that they name: entrypoints, ports, other services, files, secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keel_model::{
    AcmeChallenge, BasicAuth, Entrypoint, EntrypointName, Route, RouteKind, RouteTls, Rule,
    Service, ServiceName, Split, Stack, Transport,
};

use super::Lower;
use crate::diagnostic::{Code, Span, nearest};
use crate::loader::join;
use crate::routes::{AuthDraft, Draft, Located, credentials};
use crate::source::PathKind;
use crate::xkeel::{WEB, WEBSECURE, XTop, default_acme, default_entrypoint};

/// Largest htpasswd file, in bytes.
const MAX_AUTH_FILE: usize = 1 << 20;

/// The drafts of each service.
pub(super) type Drafts = BTreeMap<ServiceName, Vec<Draft>>;

impl Lower<'_> {
    /// Gives the services of a stack their routes, and the stack the entrypoints that those need.
    pub(super) fn routes(&mut self, stack: &mut Stack, drafts: Drafts, top: XTop) {
        let mut names: BTreeMap<String, Span> = BTreeMap::new();
        let mut needs = Needs::default();
        for (service, drafts) in drafts {
            let mut routes = Vec::with_capacity(drafts.len());
            for (index, draft) in drafts.into_iter().enumerate() {
                let name = route_name(&service, index, draft.name.as_ref());
                let place = draft.name.as_ref().map_or(&draft.span, |name| &name.span).clone();
                if let Some(other) = names.get(&name) {
                    let message = format!("the route `{name}` is defined at {other} already");
                    self.error(Code::Conflict, &place, message, "give one of them another `name`");
                    continue;
                }
                names.insert(name.clone(), place);
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
        let split = self.split(service, &draft.split, stack);
        let mut tls = draft.tls.clone();
        let entrypoints = self.served_at(&draft, &mut tls, top, needs)?;
        if let Some(tls) = &tls {
            self.check_tls(tls, &draft, top, needs);
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
        match wanted {
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

    /// The entrypoints of a route. One that speaks TLS gives the route TLS.
    fn served_at(
        &mut self,
        draft: &Draft,
        tls: &mut Option<Located<RouteTls>>,
        top: &XTop,
        needs: &mut Needs,
    ) -> Option<Vec<EntrypointName>> {
        let encrypted = tls.is_some() || draft.kind == RouteKind::Passthrough;
        if draft.entrypoints.is_empty() {
            if draft.kind == RouteKind::Tcp && !encrypted {
                self.error(
                    Code::MissingKey,
                    &draft.span,
                    "connections without TLS need an entrypoint of their own",
                    "define one in the top-level `x-keel.entrypoints`, and name it under `entrypoints`",
                );
                return None;
            }
            needs.redirect |= encrypted;
            let name = if encrypted { WEBSECURE } else { WEB };
            needs.used.insert(name.to_owned());
            return Some(vec![name.to_owned()]);
        }
        let mut names = Vec::new();
        let mut plain = Vec::new();
        for Located { value: name, span } in &draft.entrypoints {
            let Some(entrypoint) = self.entrypoint(name, span, top) else { continue };
            if encrypted && !entrypoint.tls {
                plain.push((name, span));
                continue;
            }
            if entrypoint.tls && !encrypted {
                *tls = Some(Located::new(RouteTls::Any, span));
            }
            needs.used.insert(name.clone());
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        for (name, span) in plain {
            let message = format!("the route is not served at `{name}`, which speaks no TLS");
            if names.is_empty() {
                let help =
                    format!("give the entrypoint `tls: true`, or serve the route at `{WEBSECURE}`");
                self.error(Code::Conflict, span, message, help);
            } else {
                self.warn(span, message);
            }
        }
        (!names.is_empty()).then_some(names)
    }

    fn entrypoint(&mut self, name: &str, span: &Span, top: &XTop) -> Option<Entrypoint> {
        if let Some(entrypoint) = top.entrypoints.get(name) {
            return Some(entrypoint.value.clone());
        }
        if matches!(name, WEB | WEBSECURE) {
            return Some(default_entrypoint(name));
        }
        let known = top.entrypoints.keys().map(String::as_str).chain([WEB, WEBSECURE]);
        let help = nearest(name, known).map_or_else(
            || {
                format!(
                    "define it at the top level: `x-keel: {{entrypoints: {{{name}: \":8080\"}}}}`"
                )
            },
            |near| format!("did you mean `{near}`?"),
        );
        let message = format!("there is no entrypoint `{name}`");
        self.error(Code::UndefinedReference, span, message, help);
        None
    }

    fn check_tls(&mut self, tls: &Located<RouteTls>, draft: &Draft, top: &XTop, needs: &mut Needs) {
        match &tls.value {
            RouteTls::Any => {}
            RouteTls::Files { cert, key } => {
                for path in [cert, key] {
                    let path = join(&self.project.directory, &path.to_string_lossy());
                    if self.source.kind(&path) != PathKind::File {
                        let message = format!("there is no file {}", path.display());
                        self.error(
                            Code::File,
                            &tls.span,
                            message,
                            "create it, or correct its path",
                        );
                    }
                }
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

    fn basic_auth(&mut self, draft: AuthDraft) -> Option<BasicAuth> {
        let mut auth = draft.auth;
        if let Some(file) = &draft.file {
            let path = join(&self.project.directory, &file.value.to_string_lossy());
            match self.source.read(&path) {
                Ok(bytes) => auth.users.extend(self.users(&bytes, &path, &file.span)?),
                Err(error) => {
                    let message = format!("cannot read the users from {}: {error}", path.display());
                    self.error(
                        Code::File,
                        &file.span,
                        message,
                        "create the file, or correct its path",
                    );
                    return None;
                }
            }
        }
        if let Some(secret) = &draft.secret {
            let Some(definition) = self.project.model.at(&["secrets", &secret.value]) else {
                let secrets = self.project.model.get("secrets");
                let names = secrets.into_iter().flat_map(crate::value::Node::entries);
                let help = nearest(&secret.value, names.map(|(name, _)| name)).map_or_else(
                    || "define it under the top-level `secrets`".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                let message = format!("there is no secret `{}`", secret.value);
                self.error(Code::UndefinedReference, &secret.span, message, help);
                return None;
            };
            let content = self.secret(&secret.value, definition)?;
            let place = PathBuf::from(format!("the secret {}", secret.value));
            auth.users.extend(self.users(content.expose(), &place, &secret.span)?);
        }
        if auth.users.is_empty() {
            self.error(
                Code::MissingKey,
                &draft.span,
                "nobody is let in: there are no users",
                "add a user with `htpasswd -B FILE NAME`",
            );
            return None;
        }
        if auth.users.len() > credentials::MAX_USERS {
            let message = format!("a route can have at most {} users", credentials::MAX_USERS);
            self.error(
                Code::Budget,
                &draft.span,
                message,
                "let the service check its users itself",
            );
            return None;
        }
        Some(auth)
    }

    /// The lines of an htpasswd file.
    fn users(&mut self, bytes: &[u8], path: &Path, span: &Span) -> Option<Vec<String>> {
        let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_AUTH_FILE)
        else {
            let message = format!("{} is no htpasswd file", path.display());
            self.error(
                Code::InvalidValue,
                span,
                message,
                "make it with `htpasswd -B -c FILE NAME`",
            );
            return None;
        };
        let mut users = Vec::new();
        for (line, user) in credentials::lines(text) {
            match credentials::check(user) {
                Ok(()) => users.push(user.to_owned()),
                Err((message, _)) => {
                    let message = format!("{}, line {line}: {message}", path.display());
                    self.error(
                        Code::InvalidValue,
                        span,
                        message,
                        "make it with `htpasswd -B FILE NAME`",
                    );
                    return None;
                }
            }
        }
        Some(users)
    }

    /// The entrypoints of the file, and the default ones that are in use.
    fn entrypoints(&mut self, stack: &mut Stack, top: &XTop, mut needs: Needs) {
        let mut all: BTreeMap<EntrypointName, Entrypoint> = BTreeMap::new();
        for (name, entrypoint) in &top.entrypoints {
            if let Some(target) = &entrypoint.value.redirect_to {
                self.check_redirect(name, target, &entrypoint.span, top);
                needs.used.insert(target.clone());
            }
            all.insert(name.clone(), entrypoint.value.clone());
        }
        for name in [WEB, WEBSECURE] {
            if needs.used.contains(name) && !all.contains_key(name) {
                all.insert(name.to_owned(), default_entrypoint(name));
            }
        }
        // An authority asks at port 80; what else comes there is better off with TLS.
        let redirect = needs.redirect || needs.http_challenge;
        if redirect && !top.entrypoints.contains_key(WEB) && all.contains_key(WEBSECURE) {
            let web = all.entry(WEB.to_owned()).or_insert_with(|| default_entrypoint(WEB));
            web.redirect_to = Some(WEBSECURE.to_owned());
        }
        self.check_binds(&all, top);
        stack.entrypoints = all;
    }

    fn check_redirect(&mut self, name: &str, target: &str, span: &Span, top: &XTop) {
        let Some(entrypoint) = self.entrypoint(target, span, top) else { return };
        if name == target || !entrypoint.tls {
            let message = format!("`{name}` can't redirect to `{target}`, which speaks no TLS");
            self.error(Code::Conflict, span, message, format!("redirect to `{WEBSECURE}`"));
        } else if top.entrypoints.get(name).is_some_and(|own| own.value.tls) {
            let message = format!("`{name}` speaks TLS already; there is nothing to redirect");
            self.error(Code::Conflict, span, message, "remove `redirect_to`");
        }
    }

    fn check_binds(&mut self, all: &BTreeMap<EntrypointName, Entrypoint>, top: &XTop) {
        let mut seen: Vec<(&EntrypointName, &Entrypoint)> = Vec::new();
        for (name, entrypoint) in all {
            let bind = entrypoint.bind;
            let clash = seen.iter().find(|(_, other)| {
                let (a, b) = (other.bind.ip(), bind.ip());
                other.bind.port() == bind.port()
                    && (a == b || a.is_unspecified() || b.is_unspecified())
            });
            if let Some((other, _)) = clash {
                let place = top.entrypoints.get(name).or_else(|| top.entrypoints.get(*other));
                let span = place
                    .map_or_else(|| self.project.model.span.clone(), |place| place.span.clone());
                let message = format!(
                    "the entrypoints `{other}` and `{name}` both want port {}",
                    bind.port()
                );
                self.error(Code::Conflict, &span, message, "give one of them another port");
            }
            seen.push((name, entrypoint));
        }
    }
}

/// What routes need of the stack.
#[derive(Default)]
struct Needs {
    used: std::collections::BTreeSet<EntrypointName>,
    /// A route was served at `websecure` because nothing else was said.
    redirect: bool,
    acme: bool,
    http_challenge: bool,
}

/// The name that a route has unless it is given one; `#` can't be in the name of a service.
fn route_name(service: &ServiceName, index: usize, given: Option<&Located<String>>) -> String {
    match (given, index) {
        (Some(name), _) => name.value.clone(),
        (None, 0) => service.to_string(),
        (None, index) => format!("{service}#{}", index + 1),
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
