//! Two routes of one file that want the same requests, with the places of both. What the server refuses between stacks, it
//! refuses within one, too; here the author is told where.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::claims::{Claim, claims, describe};
use keel_model::{Route, RouteKind, ServiceName, Stack};

use super::Lower;
use crate::diagnostic::{Code, Span};

/// What to do about routes that want the same.
const HELP: &str =
    "change the host or path of one of them, or give the one that shall win a higher `priority`";

/// What to do about a route that leaves nothing to others.
const HELP_ALL: &str = "give it an entrypoint of its own";

/// A route and where it is described.
struct Placed<'s> {
    span: &'s Span,
    service: &'s ServiceName,
    route: &'s Route,
}

impl Placed<'_> {
    fn describe(&self) -> String {
        format!("route `{}` of service `{}`", self.route.name, self.service)
    }

    fn priority(&self) -> i64 {
        self.route.priority.unwrap_or_else(|| self.route.rule.default_priority())
    }
}

impl Lower<'_> {
    /// No two routes may want the same requests, unless priorities say who gets them.
    pub(super) fn clashes(&mut self, stack: &Stack, places: &BTreeMap<String, Span>) {
        let mut all: Vec<Placed<'_>> = stack
            .services
            .iter()
            .flat_map(|(service, definition)| {
                definition.routes.iter().map(move |route| (service, route))
            })
            .filter_map(|(service, route)| {
                Some(Placed { span: places.get(&route.name)?, service, route })
            })
            .collect();
        all.sort_by_key(|placed| placed.span);
        let mut held: BTreeMap<(&str, Claim), Vec<&Placed<'_>>> = BTreeMap::new();
        let mut opaque: BTreeMap<&str, &Placed<'_>> = BTreeMap::new();
        let mut others: BTreeMap<&str, &Placed<'_>> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for placed in &all {
            for name in &placed.route.entrypoints {
                // Connections that can't be told apart take the whole address.
                let takes_all = placed.route.kind == RouteKind::Tcp
                    && stack.entrypoints.get(name).is_some_and(|entrypoint| !entrypoint.tls);
                if !takes_all {
                    others.entry(name).or_insert(placed);
                } else if let Some(before) = opaque.insert(name, placed) {
                    self.clash(placed, before, "all connections", name, &mut told);
                }
                for claim in claims(&placed.route.rule) {
                    let holders = held.entry((name, claim.clone())).or_default();
                    let same = |other: &&&Placed<'_>| other.priority() == placed.priority();
                    if let Some(before) = holders.iter().find(same) {
                        self.clash(placed, before, &describe(&claim), name, &mut told);
                    }
                    holders.push(placed);
                }
            }
        }
        for (name, placed) in opaque {
            if let Some(other) = others.get(name) {
                self.leaves_nothing(placed, other, name);
            }
        }
    }

    /// A route that takes all connections stands beside another one.
    fn leaves_nothing(&mut self, placed: &Placed<'_>, other: &Placed<'_>, entrypoint: &str) {
        let message = format!(
            "{} takes all connections at the entrypoint `{entrypoint}`, where {} is served too, described at {}",
            placed.describe(),
            other.describe(),
            place(other.span, placed.span)
        );
        self.error(Code::Conflict, placed.span, message, HELP_ALL);
    }

    /// Each pair is told once, however many requests both want.
    fn clash<'s>(
        &mut self,
        placed: &Placed<'s>,
        before: &Placed<'s>,
        what: &str,
        entrypoint: &str,
        told: &mut BTreeSet<(&'s str, &'s str)>,
    ) {
        if !told.insert((&placed.route.name, &before.route.name)) {
            return;
        }
        let message = format!(
            "{} wants {what} at the entrypoint `{entrypoint}`, which {} has at {}",
            placed.describe(),
            before.describe(),
            place(before.span, placed.span)
        );
        self.error(Code::Conflict, placed.span, message, HELP);
    }
}

/// A place as it is told at `here`: what is in the same file needs no directory.
fn place(span: &Span, here: &Span) -> String {
    let name = span.file.rsplit('/').next().filter(|_| span.file == here.file);
    format!("{}:{}:{}", name.unwrap_or(&span.file), span.line, span.column)
}
