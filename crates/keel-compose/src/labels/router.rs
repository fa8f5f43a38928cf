//! Routers → routes of the service that they lead to.

use std::collections::BTreeMap;

use keel_model::{RouteKind, RouteTls};

use super::entry::Entry;
use super::middleware::Middlewares;
use super::service::Target;
use super::{Labels, Named};
use crate::diagnostic::{Code, nearest};
use crate::project::Project;
use crate::routes::{Draft, Located};
use crate::rule::{self, Protocol};
use crate::value::Node;

/// What routers may refer to.
pub(super) struct Known<'k> {
    pub project: &'k Project,
    pub targets: BTreeMap<String, Target>,
    pub middlewares: Middlewares,
    /// `http` or `tcp`.
    pub protocol: &'static str,
}

impl<'p> Labels<'p> {
    pub(super) fn router(&mut self, name: &str, router: &Named<'p>, known: &Known<'p>) {
        let options: BTreeMap<String, &Entry> =
            router.entries.iter().map(|entry| (entry.option(), entry)).collect();
        let Some(place) = router.entries.first() else { return };
        let get = |name: &str| options.get(name).copied();
        let Some(rule_entry) = get("rule").filter(|entry| !entry.text().is_empty()) else {
            let message = format!("the router `{name}` has no rule");
            self.reader.error(Code::MissingKey, &place.key_place, message).help =
                Some("add a `rule` such as Host(`shop.example.com`)".to_owned());
            return;
        };
        let mut draft = Draft::new(&rule_entry.key_place);
        draft.name = Some(Located::new(name.to_owned(), &rule_entry.key_place));
        let tcp = known.protocol == "tcp";
        if tcp {
            draft.kind = RouteKind::Tcp;
        }
        self.tls(&options, &mut draft);
        let Some(target) = self.target(name, router, get("service"), known) else { return };
        draft.port = target.port;
        if !self.rule(rule_entry, tcp, &mut draft) {
            return;
        }
        if let Some(entry) = get("priority") {
            let priority =
                self.reader.number(&entry.value, i64::from(i32::MIN), i64::from(i32::MAX));
            // 0 is Traefik's word for the default.
            draft.priority = priority.filter(|priority| *priority != 0);
        }
        for node in get("entrypoints").map(Entry::list).unwrap_or_default() {
            let name = node.as_str().unwrap_or_default().to_owned();
            draft.entrypoints.push(Located::new(name, &node.span));
        }
        let names = get("middlewares").map(Entry::list).unwrap_or_default();
        let retries = self.apply(&names, &known.middlewares, &mut draft);
        draft.allow_by_rule();
        let result = self.of(&target.service);
        result.traffic.retries = retries.or(result.traffic.retries);
        result.routes.push(draft);
    }

    fn rule(&mut self, entry: &Entry, tcp: bool, draft: &mut Draft) -> bool {
        let text = entry.value.as_str().unwrap_or_default();
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Http };
        match rule::parse(text, protocol) {
            Ok(rule) => {
                draft.rule = rule;
                true
            }
            Err(error) => {
                let place = entry.value.place_of(error.at);
                self.reader.error(Code::InvalidValue, &place, error.message).help = error.help;
                false
            }
        }
    }

    fn tls(&mut self, options: &BTreeMap<String, &Entry>, draft: &mut Draft) {
        let get = |name: &str| options.get(name).copied();
        let on = get("tls").and_then(|entry| self.bool_of(entry));
        if let Some(entry) = get("tls.passthrough")
            && self.bool_of(entry) == Some(true)
        {
            draft.kind = RouteKind::Passthrough;
            return;
        }
        let resolver = get("tls.certresolver").filter(|entry| !entry.text().is_empty());
        draft.tls = match (on, resolver) {
            (Some(false), _) => None,
            (_, Some(entry)) => Some(Located::new(RouteTls::Acme, &entry.key_place)),
            (Some(true), None) => {
                get("tls").map(|entry| Located::new(RouteTls::Any, &entry.key_place))
            }
            (None, None) => None,
        };
    }

    /// The service that a router leads to: the one that it names, or the only one of the same labels, or the Compose
    /// service itself.
    fn target(
        &mut self,
        name: &str,
        router: &Named<'p>,
        named: Option<&Entry>,
        known: &Known<'p>,
    ) -> Option<Target> {
        let itself = |service: &str| Target { service: service.to_owned(), port: None };
        let Some(entry) = named else {
            let own: Vec<&Target> =
                known.targets.values().filter(|target| target.service == router.owner).collect();
            return match own[..] {
                [] => Some(itself(router.owner)),
                [only] => Some(only.clone()),
                _ => {
                    let place = &router.entries.first()?.key_place;
                    let message =
                        format!("the router `{name}` could lead to any of several services");
                    self.reader.error(Code::MissingKey, place, message).help = Some(format!(
                        "say which: `traefik.{}.routers.{name}.service=…`",
                        known.protocol
                    ));
                    None
                }
            };
        };
        let text = entry.text();
        let wanted =
            text.strip_suffix("@docker").or_else(|| text.strip_suffix("@swarm")).unwrap_or(text);
        if let Some(target) = known.targets.get(wanted) {
            return Some(target.clone());
        }
        // Traefik names the services that it makes by itself after service and project.
        let plain = wanted.strip_suffix(&format!("-{}", known.project.name)).unwrap_or(wanted);
        if let Some(service) =
            [wanted, plain].into_iter().find(|name| known.project.service(name).is_some())
        {
            return Some(itself(service));
        }
        self.no_service(entry, wanted, known);
        None
    }

    fn no_service(&mut self, entry: &Entry, wanted: &str, known: &Known<'p>) {
        let help = if wanted.ends_with("@internal") {
            "Traefik's own services (dashboard, ping) are not here; see `keel routes` and `keel ps`"
                .to_owned()
        } else {
            let services = known.project.model.get("services").into_iter().flat_map(Node::entries);
            let names =
                services.map(|(name, _)| name).chain(known.targets.keys().map(String::as_str));
            nearest(wanted, names).map_or_else(
                || {
                    format!(
                        "define it: `traefik.{}.services.{wanted}.loadbalancer.server.port=…`",
                        known.protocol
                    )
                },
                |near| format!("did you mean `{near}`?"),
            )
        };
        let message = format!("there is no service `{wanted}`");
        self.reader.error(Code::UndefinedReference, &entry.value.place_of(0), message).help =
            Some(help);
    }
}
