//! `extends`: a service that starts from another one, of the same file or of another.

use std::path::Path;

use super::{Depth, Loader, Scope, join, relative};
use crate::diagnostic::{Code, Diagnostic, Outcome, Span, fail};
use crate::merge::extend_service;
use crate::reset::Resets;
use crate::resolve;
use crate::value::{Map, Node, Value};

/// Longest chain of services that extend each other.
const MAX_CHAIN: usize = 64;

/// A service on the way through a chain: the file it was found in, and its name.
type Link = (String, String);

/// One step of a chain.
struct Step<'s> {
    /// The file whose services are looked at.
    file: &'s str,
    scope: &'s Scope,
    chain: &'s [Link],
    /// The `!reset` places of that file.
    resets: &'s Resets,
}

impl Loader<'_> {
    /// Replaces every service that extends another by the merged result.
    pub(super) fn apply_extends(
        &self,
        document: &mut Node,
        path: &Path,
        scope: &Scope,
        resets: &Resets,
    ) -> Outcome<()> {
        let Some(services) = document.as_map_mut().and_then(|map| map.get_mut("services")) else {
            return Ok(());
        };
        let services = mapping(services, "services")?;
        let names: Vec<String> = services
            .iter()
            .filter(|(_, service)| service.get("extends").is_some())
            .map(|(name, _)| name.to_owned())
            .collect();
        let file = path.to_string_lossy();
        let step = Step { file: &file, scope, chain: &[], resets };
        for name in names {
            let merged = self.extended(&name, services, &step)?;
            replace(services, &name, merged);
        }
        Ok(())
    }

    /// A service with everything that it extends.
    fn extended(&self, name: &str, services: &mut Map, step: &Step<'_>) -> Outcome<Node> {
        let Some(service) = services.get(name).cloned() else {
            return fail(Diagnostic::error(
                Code::UndefinedReference,
                format!("no service `{name}`"),
            ));
        };
        let Some(extends) = service.get("extends").cloned() else { return Ok(service) };
        let (other, file) = reference(name, &extends)?;
        let source = file.map_or(step.file, |file| file.as_str().unwrap_or_default());
        let chain = enter(step.chain, source, name, &extends.span)?;
        let mut base = match file {
            Some(file) => {
                let (mut loaded, resets) = self.base_file(file, step.scope)?;
                let Some(others) = loaded.as_map_mut().and_then(|map| map.get_mut("services"))
                else {
                    let message = format!("{source} has no services");
                    return fail(
                        Diagnostic::error(Code::UndefinedReference, message).at(&file.span),
                    );
                };
                let others = mapping(others, "services")?;
                known(others, other, source)?;
                let next =
                    Step { chain: &chain, resets: &resets, file: step.file, scope: step.scope };
                self.extended(other.as_str().unwrap_or_default(), others, &next)?
            }
            None => {
                known(services, other, source)?;
                let next = Step { chain: &chain, ..*step };
                self.extended(other.as_str().unwrap_or_default(), services, &next)?
            }
        };
        if base.is_null() {
            return Ok(service);
        }
        step.resets.apply_to_service(name, &mut base);
        let mut merged = extend_service(base, service)?;
        if let Some(map) = merged.as_map_mut() {
            map.remove("extends");
        }
        replace(services, name, merged.clone());
        Ok(merged)
    }

    /// Loads the file that holds the extended service; its paths become relative to the project.
    fn base_file(&self, file: &Node, scope: &Scope) -> Outcome<(Node, Resets)> {
        let name = file.as_str().unwrap_or_default();
        self.refuse_remote(name, &file.span)?;
        let path = join(&scope.directory, name);
        if let Some(loaded) = scope.bases.borrow().get(&path) {
            return Ok(loaded.clone());
        }
        // Read once ahead, so that an absent file is reported where it is named.
        self.read(&path, Some(&file.span))?;
        let empty = Node::new(Value::Map(Map::new()), &file.span);
        let (mut model, resets) = self.file(&path, scope, empty, Depth::Base, &[])?;
        let directory = path.parent().unwrap_or(&path);
        let prefix = relative(&scope.directory, directory);
        resolve::paths(&mut model, &self.base(scope, &prefix))?;
        scope.bases.borrow_mut().insert(path, (model.clone(), resets.clone()));
        Ok((model, resets))
    }
}

/// The service's mapping, or an error at its place.
fn mapping<'n>(node: &'n mut Node, what: &str) -> Outcome<&'n mut Map> {
    let span = node.span.clone();
    let kind = node.kind_name();
    match node.as_map_mut() {
        Some(map) => Ok(map),
        None => {
            let message = format!("`{what}` must be a mapping, not {kind}");
            fail(Diagnostic::error(Code::InvalidValue, message).at(&span))
        }
    }
}

/// Sets a value and keeps the place of its key.
fn replace(map: &mut Map, key: &str, node: Node) {
    match map.get_mut(key) {
        Some(slot) => *slot = node,
        None => map.insert(key, node),
    }
}

/// The service, and the file if any, that `extends` names.
fn reference<'n>(name: &str, extends: &'n Node) -> Outcome<(&'n Node, Option<&'n Node>)> {
    if extends.as_str().is_some() {
        return Ok((extends, None));
    }
    let file = extends.get("file").filter(|file| !file.is_null());
    match extends.get("service") {
        Some(service)
            if service.as_str().is_some() && file.is_none_or(|f| f.as_str().is_some()) =>
        {
            Ok((service, file))
        }
        _ => {
            let message = format!("`extends` of the service `{name}` needs a `service`");
            fail(
                Diagnostic::error(Code::MissingKey, message)
                    .at(&extends.span)
                    .help("write `extends: NAME`, or `service:` and `file:`"),
            )
        }
    }
}

fn known(services: &Map, other: &Node, file: &str) -> Outcome<()> {
    let name = other.as_str().unwrap_or_default();
    if services.contains(name) {
        return Ok(());
    }
    let message = format!("there is no service `{name}` in {file} to extend");
    let error = Diagnostic::error(Code::UndefinedReference, message).at(&other.span);
    fail(match crate::diagnostic::nearest(name, services.keys()) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error,
    })
}

/// The chain with one more link, unless that link is already in it.
fn enter(chain: &[Link], file: &str, service: &str, span: &Span) -> Outcome<Vec<Link>> {
    let link = (file.to_owned(), service.to_owned());
    if chain.len() >= MAX_CHAIN {
        let message = format!("more than {MAX_CHAIN} services extend each other in a row");
        return fail(Diagnostic::error(Code::Budget, message).at(span));
    }
    if chain.contains(&link) {
        let way: Vec<&str> = chain.iter().map(|(_, name)| name.as_str()).chain([service]).collect();
        let message = format!("services extend each other in a circle: {}", way.join(" → "));
        return fail(Diagnostic::error(Code::Cycle, message).at(span).help("break the circle"));
    }
    let mut chain = chain.to_vec();
    chain.push(link);
    Ok(chain)
}
