//! Labels in Traefik's style → routes and traffic policies.
//!
//! Labels that begin with `traefik.` or `keel.` mean the same, and `keel.` wins where both are given, so that a file can
//! serve both. [`table`] says what is done with each; nothing is ignored in silence. Names of middlewares and services
//! hold for the whole project: one service may use what another defines. A service without a router that has a rule
//! is not exposed.

mod entry;
mod headers;
mod middleware;
mod redirects;
mod router;
mod service;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{ActiveCheck, Balance, Protocol, ProxyVersion, StickyCookie, UpstreamTls};

use crate::diagnostic::{Code, Diagnostic};
use crate::project::Project;
use crate::routes::Draft;
use crate::value::Node;
use crate::xkeel::reader::Reader;

use entry::Entry;
pub use table::{LABELS, LabelRow, label_table_markdown};

/// Whether a label is about routing: such labels belong to the service, not to its instances.
pub(crate) fn is_routing(key: &str) -> bool {
    entry::prefix_of(key).is_some()
}

/// What labels say about one service.
#[derive(Debug, Default)]
pub(crate) struct FromLabels {
    pub routes: Vec<Draft>,
    pub traffic: LabelTraffic,
    /// What is spoken on single ports.
    pub protocols: BTreeMap<u16, Protocol>,
    /// What is spoken on all ports.
    pub protocol: Option<Protocol>,
}

/// The parts of a traffic policy that labels know.
#[derive(Debug, Default)]
pub(crate) struct LabelTraffic {
    pub balance: Option<Balance>,
    pub sticky: Option<StickyCookie>,
    pub check: Option<ActiveCheck>,
    pub tls: Option<UpstreamTls>,
    pub send_proxy: Option<ProxyVersion>,
    pub retries: Option<u32>,
}

/// What the labels of a project say.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// By service.
    pub services: BTreeMap<String, FromLabels>,
    pub errors: Vec<Diagnostic>,
    pub notes: Vec<Diagnostic>,
}

/// A thing that labels name (`routers.web`), with the service whose labels do, and what they say about it.
struct Named<'p> {
    owner: &'p str,
    entries: Vec<Entry>,
}

type Section<'p> = BTreeMap<String, Named<'p>>;

/// Reads the labels of all services.
pub(crate) fn read(project: &Project) -> Read {
    let mut labels = Labels::default();
    let active: BTreeSet<&str> = project.service_names().collect();
    for (owner, node) in project.model.get("services").into_iter().flat_map(Node::entries) {
        // What a service that does not run says wrong harms nobody; what it defines may be used.
        let told = active.contains(owner);
        labels.collect(owner, node, told);
    }
    labels.read(project, &active);
    Read { services: labels.result, errors: labels.reader.errors, notes: labels.notes }
}

#[derive(Default)]
struct Labels<'p> {
    reader: Reader,
    notes: Vec<Diagnostic>,
    /// By kind: `http.routers`, `http.services`, `http.middlewares`, and the same for `tcp`.
    sections: BTreeMap<String, Section<'p>>,
    result: BTreeMap<String, FromLabels>,
}

impl<'p> Labels<'p> {
    fn warn(&mut self, entry: &Entry, message: String) {
        self.notes.push(Diagnostic::warning(Code::Unsupported, message).at(&entry.key_place));
    }

    fn collect(&mut self, owner: &'p str, node: &Node, told: bool) {
        let (mut errors, mut notes) = (Vec::new(), Vec::new());
        let entries = entry::collect(node, &mut errors, &mut notes);
        if told {
            self.reader.errors.append(&mut errors);
            self.notes.append(&mut notes);
        }
        let enabled = entries.iter().find(|entry| entry.path == ["enable"]);
        if let Some(entry) = enabled
            && self.reader.flag(&entry.value) == Some(false)
        {
            return;
        }
        for entry in entries {
            let [protocol, kind, name, ..] = &entry.path[..] else { continue };
            let (kind, name) = (format!("{protocol}.{kind}"), name.clone());
            let section = self.sections.entry(kind.clone()).or_default();
            let named =
                section.entry(name.clone()).or_insert_with(|| Named { owner, entries: Vec::new() });
            if named.owner == owner {
                named.entries.extend(Some(entry).filter(|entry| entry.honoured));
            } else if !named.entries.iter().any(|other| other.same(&entry)) && told {
                let word = kind.rsplit('.').next().unwrap_or_default().trim_end_matches('s');
                let message =
                    format!("the {word} `{name}` is defined by `{}` already", named.owner);
                self.reader.error(Code::Conflict, &entry.key_place, message).help =
                    Some("give one of them another name".to_owned());
            }
        }
    }

    fn read(&mut self, project: &'p Project, active: &BTreeSet<&'p str>) {
        let mut sections = std::mem::take(&mut self.sections);
        let mut take = |kind: &str| sections.remove(kind).unwrap_or_default();
        for protocol in ["http", "tcp"] {
            let services = take(&format!("{protocol}.services"));
            let targets = self.targets(&services, active);
            let middlewares = self.middlewares(take(&format!("{protocol}.middlewares")), active);
            let routers = take(&format!("{protocol}.routers"));
            let known = router::Known { project, targets, middlewares, protocol };
            for (name, router) in routers {
                if active.contains(router.owner) {
                    self.router(&name, &router, &known);
                    continue;
                }
                for entry in router.entries.iter().filter(|e| e.option() == "middlewares") {
                    Self::named_elsewhere(&entry.list(), &known.middlewares);
                }
            }
            self.unnamed(&known.middlewares);
        }
    }

    fn of(&mut self, service: &str) -> &mut FromLabels {
        self.result.entry(service.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_by_themselves_and_each_once() {
        let mut seen = BTreeSet::new();
        for row in LABELS {
            assert!(seen.insert(row.pattern), "{} is there twice", row.pattern);
            let label = row.pattern.replace("**", "x.y").replace('*', "name").replace("[]", "[0]");
            let parts: Vec<&str> = label.split('.').collect();
            let (found, _) = table::find(&parts).unwrap_or_else(|| panic!("{label}"));
            assert_eq!(found.pattern, row.pattern);
        }
    }

    #[test]
    fn words_know_no_case_and_names_do() {
        let (row, path) = table::find(&["HTTP", "Routers", "Shop", "Rule"]).unwrap();
        assert_eq!(row.pattern, "http.routers.*.rule");
        assert_eq!(path, ["http", "routers", "Shop", "rule"]);
        let (_, path) =
            table::find(&["http", "middlewares", "m", "headers", "customrequestheaders", "X-A.b"])
                .unwrap();
        assert_eq!(path.last().unwrap(), "X-A.b");
        assert!(table::find(&["http", "routers", "", "rule"]).is_none());
    }
}
